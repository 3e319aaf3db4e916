package podspec

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// apiService is the Service of the API server, in the namespace default, whose
// variables each pod has.
const apiService = "kubernetes"

// serviceVariables returns the variables that tell a pod of Services: the API
// server's, and unless the pod wants none, those of its namespace
// (kubernetes pkg/kubelet/envvars). services returns those of a namespace.
func serviceVariables(pod *corev1.Pod, services func(namespace string) []*corev1.Service) map[string]string {
	variables := make(map[string]string)
	if services == nil {
		return variables
	}
	for _, s := range services(metav1.NamespaceDefault) {
		if s.Name == apiService {
			addService(variables, s)
		}
	}
	if links := pod.Spec.EnableServiceLinks; links == nil || *links {
		for _, s := range services(pod.Namespace) {
			addService(variables, s)
		}
	}
	return variables
}

// addService adds the variables of one Service, if it has an address.
func addService(variables map[string]string, s *corev1.Service) {
	ip := s.Spec.ClusterIP
	if ip == "" || ip == corev1.ClusterIPNone || len(s.Spec.Ports) == 0 {
		return
	}
	prefix := variable(s.Name)
	variables[prefix+"_SERVICE_HOST"] = ip
	variables[prefix+"_SERVICE_PORT"] = strconv.Itoa(int(s.Spec.Ports[0].Port))
	for i, p := range s.Spec.Ports {
		number, protocol := strconv.Itoa(int(p.Port)), string(corev1.ProtocolTCP)
		if p.Protocol != "" {
			protocol = string(p.Protocol)
		}
		url := strings.ToLower(protocol) + "://" + net.JoinHostPort(ip, number)
		if p.Name != "" {
			variables[prefix+"_SERVICE_PORT_"+variable(p.Name)] = number
		}
		if i == 0 {
			variables[prefix+"_PORT"] = url
		}
		port := fmt.Sprintf("%s_PORT_%s_%s", prefix, number, protocol)
		variables[port], variables[port+"_PROTO"], variables[port+"_PORT"], variables[port+"_ADDR"] = url, strings.ToLower(protocol), number, ip
	}
}

// variable returns a name of the API as one of a variable.
func variable(name string) string { return strings.ToUpper(strings.ReplaceAll(name, "-", "_")) }
