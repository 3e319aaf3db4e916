package stack

import (
	"os"
	"path/filepath"
)

// StateEnv names the environment variable that leads to a platform's state
// folder.
const StateEnv = "WISP_PLATFORM"

// variable is an environment variable: its value, and the same as a word of a
// shell.
type variable struct{ name, value, shell string }

// variables are those by which one uses the platform.
func (c Config) variables() []variable {
	bin := filepath.Dir(c.State.Bin("x"))
	all := []variable{{"PATH", bin + ":" + os.Getenv("PATH"), quote(bin) + `:"$PATH"`}}
	for _, v := range [][2]string{
		{"KUBECONFIG", c.State.Kubeconfig()},
		{"GATEWAY", c.Gateway()},
		{"REGISTRY", c.Registry()},
	} {
		all = append(all, variable{v[0], v[1], quote(v[1])})
	}
	return all
}

// Environment is what a process needs in its environment to use the platform:
// what the file [State.Env] sets, and [StateEnv].
func (c Config) Environment() []string {
	env := []string{StateEnv + "=" + c.State.Dir}
	for _, v := range c.variables() {
		env = append(env, v.name+"="+v.value)
	}
	return env
}
