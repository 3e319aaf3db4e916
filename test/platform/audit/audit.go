// Package audit holds what Wisp's roles may do against what they have done: a
// permission that no test makes a role use is one too many.
//
// What a role may do is in the chart's ClusterRoles and Roles ([Permissions]); what it
// has done, the API server has noted in its audit log ([Uses]), with the role that
// allowed it. [Compare] is pure. Who asks for a log is stack's matter, and who
// compares is `platform run --permissions`.
package audit

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/wisp-serving/wisp/test/platform/cluster"
)

// Role is a ClusterRole, or, with a namespace, a Role.
type Role struct{ Namespace, Name string }

func (r Role) String() string {
	if r.Namespace == "" {
		return "ClusterRole " + r.Name
	}
	return "Role " + r.Namespace + "/" + r.Name
}

// Permission is one verb on one resource.
type Permission struct {
	Role Role
	// Verb, Group, Resource, with a subresource as in pods/log, and Name, of the only
	// object for which it is, or none.
	Verb, Group, Resource, Name string
}

// String is as in "ClusterRole wisp-gateway: patch ingresses/status in
// networking.internal.knative.dev".
func (p Permission) String() string {
	text := fmt.Sprintf("%s: %s %s in %s", p.Role, p.Verb, p.Resource, cmp.Or(p.Group, "core"))
	if p.Name != "" {
		text += " named " + p.Name
	}
	return text
}

// allows reports whether a request needs the permission.
func (p Permission) allows(r Request) bool {
	return p.Role == r.Role && p.Verb == r.Verb && p.Group == r.Group && p.Resource == r.Resource &&
		(p.Name == "" || p.Name == r.Name)
}

// Permissions takes the ClusterRoles and Roles among objects apart. It refuses what
// covers more than what it says: nothing could show that all of that is needed.
func Permissions(objects []*cluster.Object) ([]Permission, error) {
	var all []Permission
	for _, o := range objects {
		if o.GetKind() != "ClusterRole" && o.GetKind() != "Role" {
			continue
		}
		role := Role{o.GetNamespace(), o.GetName()}
		var read rbacv1.ClusterRole // a Role's rules are the same
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &read); err != nil {
			return nil, fmt.Errorf("read %s: %w", role, err)
		}
		for i, rule := range read.Rules {
			each, err := permissions(role, rule)
			if err != nil {
				return nil, fmt.Errorf("%s: rule %d: %w", role, i+1, err)
			}
			all = append(all, each...)
		}
	}
	if len(all) == 0 {
		return nil, errors.New("there is no rule of any role")
	}
	return all, nil
}

func permissions(role Role, rule rbacv1.PolicyRule) ([]Permission, error) {
	if len(rule.NonResourceURLs) > 0 {
		return nil, fmt.Errorf("nonResourceURLs = %v, must be empty", rule.NonResourceURLs)
	}
	for field, values := range map[string][]string{"verbs": rule.Verbs, "apiGroups": rule.APIGroups, "resources": rule.Resources} {
		if slices.ContainsFunc(values, func(v string) bool { return strings.Contains(v, "*") }) {
			return nil, fmt.Errorf("%s = %v, must be named one by one", field, values)
		}
	}
	names := rule.ResourceNames
	if len(names) == 0 {
		names = []string{""}
	}
	var all []Permission
	for _, group := range rule.APIGroups {
		for _, resource := range rule.Resources {
			for _, name := range names {
				for _, verb := range rule.Verbs {
					all = append(all, Permission{Role: role, Verb: verb, Group: group, Resource: resource, Name: name})
				}
			}
		}
	}
	return all, nil
}
