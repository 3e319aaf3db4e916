package autoscaler

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"
	"knative.dev/serving/pkg/apis/autoscaling"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"github.com/wisp-serving/wisp/config"
)

func TestTransformsKeepWhatIsRead(t *testing.T) {
	pod := sortPod("p1", corev1.ConditionTrue)
	deployment := sortDeployment(3)
	foreign := configMap("config-gc", nil)
	settings := configMap("config-autoscaler", map[string]string{"stable-window": "30s"})

	fullPod := pod.DeepCopy()
	fullPod.Annotations = map[string]string{"a": "b"}
	fullPod.Labels["app"] = "sort"
	fullPod.Spec.Containers = []corev1.Container{{Name: "user-container"}}
	fullPod.Status.Conditions = append([]corev1.PodCondition{{Type: corev1.PodScheduled}}, fullPod.Status.Conditions...)
	fullDeployment := deployment.DeepCopy()
	fullDeployment.Spec.Template.Spec.Containers = fullPod.Spec.Containers
	waiting := sortPod("p2", corev1.ConditionFalse)
	waiting.Status.ContainerStatuses = []corev1.ContainerStatus{{
		State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull", Message: strings.Repeat("x", maxMessage)}},
	}}
	fullWaiting := waiting.DeepCopy()
	fullWaiting.Status.ContainerStatuses[0].Name = "user-container"
	fullWaiting.Status.ContainerStatuses[0].State.Waiting.Message += "yyy"
	fullForeign := foreign.DeepCopy()
	fullForeign.Data = map[string]string{"min-non-active-revisions": "20"}
	fullSettings := settings.DeepCopy()
	fullSettings.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubectl"}}
	tombstone := cache.DeletedFinalStateUnknown{Key: "default/p1"}

	tests := []struct {
		name      string
		transform cache.TransformFunc
		obj, want any
	}{
		{"pod", trimPod, fullPod, pod},
		{"pod that waits", trimPod, fullWaiting, waiting},
		{"Deployment", trimDeployment, fullDeployment, deployment},
		{"ConfigMap with settings", trimConfigMap, fullSettings, settings},
		{"another ConfigMap", trimConfigMap, fullForeign, foreign},
		{"tombstone of a pod", trimPod, tombstone, tombstone},
		{"tombstone of a Deployment", trimDeployment, tombstone, tombstone},
		{"tombstone of a ConfigMap", trimConfigMap, tombstone, tombstone},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.transform(tt.obj)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("kept (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWhichChangesCount(t *testing.T) {
	ready, unready := sortPod("p", corev1.ConditionTrue), sortPod("p", corev1.ConditionFalse)
	leaving := sortPod("p", corev1.ConditionTrue)
	leaving.DeletionTimestamp = ptr.To(metav1.Now())
	failed := sortPod("p", corev1.ConditionTrue)
	failed.Status.Phase = corev1.PodFailed
	waiting, starting := sortPod("p", corev1.ConditionFalse), sortPod("p", corev1.ConditionFalse)
	waiting.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull", Message: "gone"}}}}
	starting.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}}}}
	refused := sortDeployment(1)
	refused.Status.Conditions = []appsv1.DeploymentCondition{{Type: appsv1.DeploymentReplicaFailure, Status: corev1.ConditionTrue, Reason: "FailedCreate", Message: "quota"}}
	scaled := sortDeployment(2)
	scaled.Generation++
	ours, theirs := sortPA(config.PodAutoscalerClass), sortPA(autoscaling.KPA)
	tests := []struct {
		name     string
		old, new client.Object
		want     bool
	}{
		{"pod gets ready", unready, ready, true},
		{"pod is no longer ready", ready, unready, true},
		{"ready pod leaves", ready, leaving, true},
		{"ready pod failed", ready, failed, true},
		{"pod stays ready", ready, ready, false},
		{"pod waits for something new", unready, waiting, true},
		{"pod is being made", unready, starting, false},
		{"Deployment is scaled", sortDeployment(1), scaled, true},
		{"Deployment can make no pods", sortDeployment(1), refused, true},
		{"Deployment's other status", sortDeployment(1), sortDeployment(1), false},
		{"PodAutoscaler of ours", ours, ours, true},
		{"PodAutoscaler given away", ours, theirs, true},
		{"PodAutoscaler handed to us", theirs, ours, true},
		{"PodAutoscaler of others", theirs, theirs, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := classChanges()
			switch tt.old.(type) {
			case *corev1.Pod:
				p = podChanges()
			case *appsv1.Deployment:
				p = targetChanges()
			}
			if got := p.Update(event.UpdateEvent{ObjectOld: tt.old, ObjectNew: tt.new}); got != tt.want {
				t.Errorf("counts = %v, want %v", got, tt.want)
			}
		})
	}
}
