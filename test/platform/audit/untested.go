package audit

import corev1 "k8s.io/api/core/v1"

// kubelet returns the role of nodes that run under an account instead of with a
// kubelet's certificate: what they may do in a namespace.
func kubelet(namespace string) Role {
	role := Role{Name: "wisp-node-kubelet"}
	if namespace == corev1.NamespaceNodeLease {
		role.Namespace = namespace
	}
	return role
}

// Untested are the permissions that no test can make a role use, and why. They are
// named as a failed comparison names them.
var Untested = map[string]string{}
