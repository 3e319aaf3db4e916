// Package nodespec describes a wasm node to Kubernetes. It is pure.
package nodespec

import (
	"runtime"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/wisp-serving/wisp/config"
)

// Versions are what a node says of itself.
type Versions struct {
	// Kubelet is the version of Kubernetes that it speaks, by which tools judge
	// whether it fits its control plane; Wisp is its own.
	Kubelet, Wisp string
}

// Of returns the Node object for cfg, ready since now.
func Of(cfg config.Node, versions Versions, now time.Time) *corev1.Node {
	capacity := corev1.ResourceList{
		corev1.ResourceCPU:    cfg.Capacity.CPU,
		corev1.ResourceMemory: cfg.Capacity.Memory,
		corev1.ResourcePods:   cfg.Capacity.Pods,
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: cfg.Name,
			Labels: map[string]string{
				config.NodeLabel:       "true",
				corev1.LabelHostname:   cfg.Name,
				corev1.LabelOSStable:   runtime.GOOS,
				corev1.LabelArchStable: runtime.GOARCH,
				"type":                 "virtual-kubelet",
				"node.kubernetes.io/exclude-from-external-load-balancers": "true",
			},
		},
		Spec: corev1.NodeSpec{
			Taints: []corev1.Taint{{Key: config.NodeTaint, Value: "wisp", Effect: corev1.TaintEffectNoSchedule}},
		},
		Status: corev1.NodeStatus{
			Capacity:    capacity,
			Allocatable: capacity,
			Conditions:  conditions(metav1.NewTime(now)),
			Addresses: []corev1.NodeAddress{
				{Type: corev1.NodeInternalIP, Address: cfg.Address},
				{Type: corev1.NodeHostName, Address: cfg.Name},
			},
			DaemonEndpoints: corev1.NodeDaemonEndpoints{
				KubeletEndpoint: corev1.DaemonEndpoint{Port: int32(cfg.Kubelet.Port)},
			},
			NodeInfo: corev1.NodeSystemInfo{
				KubeletVersion:          versions.Kubelet,
				ContainerRuntimeVersion: "wisp://" + versions.Wisp,
				OperatingSystem:         runtime.GOOS,
				Architecture:            runtime.GOARCH,
			},
		},
	}
}

func conditions(now metav1.Time) []corev1.NodeCondition {
	condition := func(kind corev1.NodeConditionType, status corev1.ConditionStatus, reason, message string) corev1.NodeCondition {
		return corev1.NodeCondition{
			Type: kind, Status: status, Reason: reason, Message: message,
			LastHeartbeatTime: now, LastTransitionTime: now,
		}
	}
	return []corev1.NodeCondition{
		condition(corev1.NodeReady, corev1.ConditionTrue, "KubeletReady", "wisp is serving"),
		condition(corev1.NodeMemoryPressure, corev1.ConditionFalse, "KubeletHasSufficientMemory", ""),
		condition(corev1.NodeDiskPressure, corev1.ConditionFalse, "KubeletHasNoDiskPressure", ""),
		condition(corev1.NodePIDPressure, corev1.ConditionFalse, "KubeletHasSufficientPID", ""),
		condition(corev1.NodeNetworkUnavailable, corev1.ConditionFalse, "RouteCreated", "pods share the node's address"),
	}
}
