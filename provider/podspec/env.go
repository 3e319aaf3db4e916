package podspec

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// environment returns the variables as "KEY=value", and their values. A value
// may refer to variables before it as $(KEY); $$ stands for one $; a reference
// to an unknown variable stays as it is (Kubernetes' rules: EnvVar.Value in
// k8s.io/api/core/v1).
func environment(vars []corev1.EnvVar) (env []string, known map[string]string) {
	known = make(map[string]string, len(vars))
	env = make([]string, 0, len(vars))
	for _, v := range vars {
		value := expand(v.Value, known)
		known[v.Name] = value
		env = append(env, v.Name+"="+value)
	}
	return env, known
}

// expandAll expands args, whose references are to the container's variables
// (Container.Args in k8s.io/api/core/v1). nil stays nil.
func expandAll(args []string, known map[string]string) []string {
	args = slices.Clone(args)
	for i, arg := range args {
		args[i] = expand(arg, known)
	}
	return args
}

func expand(s string, known map[string]string) string {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(s, "$")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		if rest, ok := strings.CutPrefix(after, "$"); ok {
			b.WriteByte('$')
			s = rest
			continue
		}
		name, rest, closed := strings.Cut(strings.TrimPrefix(after, "("), ")")
		value, ok := known[name]
		if !strings.HasPrefix(after, "(") || !closed || !ok {
			b.WriteByte('$')
			s = after
			continue
		}
		b.WriteString(value)
		s = rest
	}
}
