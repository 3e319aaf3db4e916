package nodespec_test

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/provider/nodespec"
)

// TestOf is what a scheduler and `kubectl get nodes -o wide` see of a node.
func TestOf(t *testing.T) {
	cfg := config.DefaultNode()
	cfg.Name, cfg.Address, cfg.Kubelet.Port = "wasm-7", "192.0.2.7", 10250
	cfg.Capacity.CPU, cfg.Capacity.Memory, cfg.Capacity.Pods = resource.MustParse("3"), resource.MustParse("5Gi"), resource.MustParse("70")
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	node := nodespec.Of(cfg, nodespec.Versions{Kubelet: "v1.35.0+wisp", Wisp: "v0.9"}, now)

	if node.Name != "wasm-7" || node.Labels[corev1.LabelHostname] != "wasm-7" || node.Labels[config.NodeLabel] != "true" {
		t.Errorf("got name %q, labels %v", node.Name, node.Labels)
	}
	if len(node.Spec.Taints) != 1 || node.Spec.Taints[0].Key != config.NodeTaint || node.Spec.Taints[0].Effect != corev1.TaintEffectNoSchedule {
		t.Errorf("got taints %v, want the one that keeps other pods away", node.Spec.Taints)
	}
	for _, list := range []corev1.ResourceList{node.Status.Capacity, node.Status.Allocatable} {
		if list.Cpu().String() != "3" || list.Memory().String() != "5Gi" || list.Pods().String() != "70" {
			t.Errorf("got %v, want what the settings say", list)
		}
	}
	if a := node.Status.Addresses; len(a) != 2 || a[0] != (corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: "192.0.2.7"}) {
		t.Errorf("got addresses %v", a)
	}
	if info := node.Status.NodeInfo; info.KubeletVersion != "v1.35.0+wisp" || info.ContainerRuntimeVersion != "wisp://v0.9" {
		t.Errorf("got versions %+v", info)
	}
	if port := node.Status.DaemonEndpoints.KubeletEndpoint.Port; port != 10250 {
		t.Errorf("got port %d of the kubelet API", port)
	}
	for _, c := range node.Status.Conditions {
		good := corev1.ConditionFalse // of what presses
		if c.Type == corev1.NodeReady {
			good = corev1.ConditionTrue
		} else if !strings.HasSuffix(string(c.Type), "Pressure") && c.Type != corev1.NodeNetworkUnavailable {
			t.Errorf("got condition %s", c.Type)
		}
		if c.Status != good || !c.LastHeartbeatTime.Time.Equal(now) {
			t.Errorf("got %+v, want %s at %s", c, good, now)
		}
	}
	if len(node.Status.Conditions) != 5 {
		t.Errorf("got %d conditions, want a kubelet's 5", len(node.Status.Conditions))
	}
}
