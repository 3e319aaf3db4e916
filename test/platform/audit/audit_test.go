package audit

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wisp-serving/wisp/test/platform/cluster"
)

const roles = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: wisp-gateway}
rules:
  - {apiGroups: [""], resources: [pods, services], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: wisp-gateway, namespace: wisp-system}
rules:
  - {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [create]}
  - {apiGroups: [coordination.k8s.io], resources: [leases], resourceNames: [wisp-gateway], verbs: [update]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: wisp-gateway}
`

func parse(t *testing.T, text string) []*cluster.Object {
	t.Helper()
	objects, err := cluster.ParseObjects([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func TestPermissions(t *testing.T) {
	all, err := Permissions(parse(t, roles))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range all {
		got = append(got, p.String())
	}
	want := []string{
		"ClusterRole wisp-gateway: list pods in core",
		"ClusterRole wisp-gateway: watch pods in core",
		"ClusterRole wisp-gateway: list services in core",
		"ClusterRole wisp-gateway: watch services in core",
		"Role wisp-system/wisp-gateway: create leases in coordination.k8s.io",
		"Role wisp-system/wisp-gateway: update leases in coordination.k8s.io named wisp-gateway",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("permissions (-want +got):\n%s", diff)
	}
}

func TestPermissions_refuses_what_covers_more(t *testing.T) {
	for rule, want := range map[string]string{
		`{apiGroups: [""], resources: [pods], verbs: ["*"]}`:       `ClusterRole r: rule 1: verbs = [*]`,
		`{apiGroups: ["*"], resources: [pods], verbs: [get]}`:      `ClusterRole r: rule 1: apiGroups = [*]`,
		`{apiGroups: [""], resources: ["*/status"], verbs: [get]}`: `ClusterRole r: rule 1: resources = [*/status]`,
		`{nonResourceURLs: [/metrics], verbs: [get]}`:              `ClusterRole r: rule 1: nonResourceURLs = [/metrics]`,
	} {
		text := "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: r}\nrules: [" + rule + "]\n"
		if _, err := Permissions(parse(t, text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", rule, err, want)
		}
	}
	if _, err := Permissions(nil); err == nil {
		t.Error("no roles at all: want an error, since nothing would be checked")
	}
}

// The events are those that an API server has written, without what isn't read.
const (
	gatewayWatch = `{"stage":"ResponseStarted","verb":"watch","requestURI":"/api/v1/pods?watch=true","user":{"username":"system:serviceaccount:wisp-system:wisp-gateway"},"objectRef":{"resource":"pods","apiVersion":"v1"},"annotations":{"authorization.k8s.io/decision":"allow","authorization.k8s.io/reason":"RBAC: allowed by ClusterRoleBinding \"wisp-gateway\" of ClusterRole \"wisp-gateway\" to ServiceAccount \"wisp-gateway/wisp-system\""}}`
	renewal      = `{"stage":"ResponseComplete","verb":"update","requestURI":"/lease","user":{"username":"system:serviceaccount:wisp-system:wisp-gateway"},"objectRef":{"resource":"leases","namespace":"wisp-system","name":"wisp-gateway","apiGroup":"coordination.k8s.io"},"annotations":{"authorization.k8s.io/decision":"allow","authorization.k8s.io/reason":"RBAC: allowed by RoleBinding \"binding/wisp-system\" of Role \"wisp-gateway\" to ServiceAccount \"wisp-gateway/wisp-system\""}}`
	denied       = `{"stage":"ResponseComplete","verb":"list","requestURI":"/api/v1/pods","user":{"username":"system:serviceaccount:wisp-system:wisp-gateway"},"objectRef":{"resource":"pods"},"annotations":{"authorization.k8s.io/decision":"forbid","authorization.k8s.io/reason":""}}`
	review       = `{"stage":"ResponseComplete","verb":"create","requestURI":"/ssar","user":{"username":"system:serviceaccount:wisp-system:wisp-node"},"objectRef":{"resource":"selfsubjectaccessreviews","apiGroup":"authorization.k8s.io"},"annotations":{"authorization.k8s.io/decision":"allow","authorization.k8s.io/reason":"RBAC: allowed by ClusterRoleBinding \"system:basic-user\" of ClusterRole \"system:basic-user\" to Group \"system:authenticated\""}}`
	nodeStatus   = `{"stage":"ResponseComplete","verb":"update","requestURI":"/api/v1/namespaces/a/pods/p/status","user":{"username":"system:node:wisp-0"},"objectRef":{"resource":"pods","namespace":"a","name":"p","subresource":"status"},"annotations":{"authorization.k8s.io/decision":"allow","authorization.k8s.io/reason":""}}`
	nodeLease    = `{"stage":"ResponseComplete","verb":"update","requestURI":"/heartbeat","user":{"username":"system:node:wisp-0"},"objectRef":{"resource":"leases","namespace":"kube-node-lease","name":"wisp-0","apiGroup":"coordination.k8s.io"},"annotations":{"authorization.k8s.io/decision":"allow","authorization.k8s.io/reason":""}}`
)

var (
	gatewayRole  = Role{Name: "wisp-gateway"}
	gatewayLease = Role{Namespace: "wisp-system", Name: "wisp-gateway"}
)

func TestUses(t *testing.T) {
	complete := strings.Replace(gatewayWatch, "ResponseStarted", "ResponseComplete", 1)
	log := strings.Join([]string{gatewayWatch, complete, renewal, denied, review, renewal[:100], renewal, nodeStatus[:50]}, "\n")
	dir := t.TempDir()
	for name, text := range map[string]string{"one.log": log, "two.log": nodeStatus + "\n" + nodeLease} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	basic := Role{Name: "system:basic-user"} // Kubernetes' own: nobody compares it
	heartbeat := Role{Namespace: "kube-node-lease", Name: "wisp-node-kubelet"}
	want := Uses{
		{Role: basic, Verb: "create", Group: "authorization.k8s.io", Resource: "selfsubjectaccessreviews"}:           {1, "/ssar"},
		{Role: gatewayRole, Verb: "watch", Resource: "pods"}:                                                         {1, "/api/v1/pods?watch=true"},
		{Role: gatewayLease, Verb: "update", Group: "coordination.k8s.io", Resource: "leases", Name: "wisp-gateway"}: {2, "/lease"},
		{Role: kubelet("a"), Verb: "update", Resource: "pods/status", Name: "p"}:                                     {1, "/api/v1/namespaces/a/pods/p/status"},
		{Role: heartbeat, Verb: "update", Group: "coordination.k8s.io", Resource: "leases", Name: "wisp-0"}:          {1, "/heartbeat"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("uses (-want +got):\n%s", diff)
	}
}

func TestReadDir_refuses_an_empty_folder(t *testing.T) {
	if _, err := ReadDir(t.TempDir()); err == nil || !strings.Contains(err.Error(), "there are none") {
		t.Errorf("got %v, want an error: nothing was noted at all", err)
	}
}

func TestCompare(t *testing.T) {
	pods := Permission{Role: gatewayRole, Verb: "watch", Resource: "pods"}
	list := Permission{Role: gatewayRole, Verb: "list", Resource: "pods"}
	mine := Permission{Role: gatewayLease, Verb: "update", Group: "g", Resource: "leases", Name: "mine"}
	leases := Permission{Role: gatewayLease, Verb: "get", Group: "g", Resource: "leases"}
	watched := Request{Role: gatewayRole, Verb: "watch", Resource: "pods"}
	theirs := Request{Role: gatewayLease, Verb: "update", Group: "g", Resource: "leases", Name: "theirs"}
	got := Request{Role: gatewayLease, Verb: "get", Group: "g", Resource: "leases", Name: "x"}
	deleted := Request{Role: kubelet(""), Verb: "delete", Resource: "nodes", Name: "wisp-0"}

	tests := map[string]struct {
		permissions []Permission
		uses        Uses
		untested    map[string]string
		want        []string // in the error; none: no error
	}{
		"all are needed": {
			permissions: []Permission{pods, leases},
			uses:        Uses{watched: {1, "/w"}, got: {1, "/l"}},
		},
		"nothing lists": {
			permissions: []Permission{pods, list},
			uses:        Uses{watched: {1, "/w"}},
			want:        []string{"no test has needed", "ClusterRole wisp-gateway: list pods in core"},
		},
		"another object's": {
			permissions: []Permission{mine},
			uses:        Uses{theirs: {1, "/l"}},
			want:        []string{"Role wisp-system/wisp-gateway: update leases in g named mine"},
		},
		"another role's": {
			permissions: []Permission{{Role: Role{Name: "other"}, Verb: "watch", Resource: "pods"}},
			uses:        Uses{watched: {1, "/w"}},
			want:        []string{"ClusterRole other: watch pods in core"},
		},
		"no test can": {
			permissions: []Permission{list},
			untested:    map[string]string{list.String(): "because"},
		},
		"an excuse for nothing": {
			permissions: []Permission{pods},
			uses:        Uses{watched: {1, "/w"}},
			untested:    map[string]string{"ClusterRole gone: get pods in core": "because"},
			want:        []string{"excuses", "ClusterRole gone: get pods in core"},
		},
		"a node's beyond its role": {
			permissions: []Permission{pods},
			uses:        Uses{watched: {1, "/w"}, deleted: {1, "/n"}},
			want:        []string{"nodes have asked", "ClusterRole wisp-node-kubelet: delete nodes in core (/n)"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			err := Compare(tt.permissions, tt.uses, tt.untested).Err()
			if (err == nil) != (len(tt.want) == 0) {
				t.Fatalf("got %v, want %q in it", err, tt.want)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want %q in it", err, want)
				}
			}
		})
	}
}

func TestPrint(t *testing.T) {
	used := Permission{Role: gatewayRole, Verb: "watch", Resource: "pods"}
	excused := Permission{Role: gatewayRole, Verb: "list", Resource: "pods"}
	needless := Permission{Role: gatewayRole, Verb: "get", Resource: "pods"}
	uses := Uses{
		{Role: gatewayRole, Verb: "watch", Resource: "pods", Name: "a"}: {2, "/a"},
		{Role: gatewayRole, Verb: "watch", Resource: "pods", Name: "b"}: {3, "/b"},
	}
	var out strings.Builder
	report := Compare([]Permission{used, excused, needless}, uses, map[string]string{excused.String(): "old servers"})
	if err := report.Print(&out); err != nil {
		t.Fatal(err)
	}
	want := `PERMISSION                                    REQUESTS  THE FIRST OF THEM
ClusterRole wisp-gateway: watch pods in core  5         /a
ClusterRole wisp-gateway: list pods in core   0         old servers
ClusterRole wisp-gateway: get pods in core    0         NOT NEEDED
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
}
