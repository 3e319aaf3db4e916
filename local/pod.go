package local

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	netcfg "knative.dev/networking/pkg/config"
	"knative.dev/pkg/apis"
	"knative.dev/pkg/logging"
	"knative.dev/pkg/system"
	apiconfig "knative.dev/serving/pkg/apis/config"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	asconfig "knative.dev/serving/pkg/autoscaler/config"
	"knative.dev/serving/pkg/deployment"
	"knative.dev/serving/pkg/observability"
	configresources "knative.dev/serving/pkg/reconciler/configuration/resources"
	revisionconfig "knative.dev/serving/pkg/reconciler/revision/config"
	"knative.dev/serving/pkg/reconciler/revision/resources"

	"github.com/wisp-serving/wisp/activator"
)

// knative are Knative's settings, as they are without a ConfigMap, but for fields
// of pods that a cluster may allow.
func knative() (*revisionconfig.Config, error) {
	defaults, defaultsErr := apiconfig.NewDefaultsConfigFromMap(nil)
	features, featuresErr := apiconfig.NewFeaturesConfigFromMap(map[string]string{
		apiconfig.FeaturePodSpecRuntimeClassName: "enabled",
		apiconfig.FeaturePodSpecNodeSelector:     "enabled",
		apiconfig.FeaturePodSpecTolerations:      "enabled",
		apiconfig.FeaturePodSpecAffinity:         "enabled",
		apiconfig.FeaturePodSpecFieldRef:         "enabled",
		apiconfig.FeaturePodSpecSecurityContext:  "enabled",
	})
	scaling, scalingErr := asconfig.NewConfigFromMap(nil)
	deployments, deploymentErr := deployment.NewConfigFromMap(map[string]string{deployment.QueueSidecarImageKey: "queue-proxy"})
	network, networkErr := netcfg.NewConfigFromMap(nil)
	logs, logsErr := logging.NewConfigFromMap(nil)
	return &revisionconfig.Config{
		Config:        &apiconfig.Config{Defaults: defaults, Features: features, Autoscaler: scaling},
		Deployment:    deployments,
		Logging:       logs,
		Network:       network,
		Observability: observability.DefaultConfig(),
	}, errors.Join(defaultsErr, featuresErr, scalingErr, deploymentErr, networkErr, logsErr)
}

// podOf returns the pod that Knative would make for a Service's revision of that
// generation, and the revision as the request path knows it. It says what
// Knative's webhook would have against the Service, which it fills in as the
// webhook does.
func podOf(ctx context.Context, service *servingv1.Service, generation int64) (*corev1.Pod, activator.Revision, error) {
	var revision activator.Revision
	cfg, err := knative()
	if err != nil {
		return nil, revision, fmt.Errorf("make Knative's settings: %w", err)
	}
	if os.Getenv(system.NamespaceEnvKey) == "" {
		// Knative's code asks for its namespace, which the sidecar would report, and
		// panics where it isn't told.
		if err := os.Setenv(system.NamespaceEnvKey, "knative-serving"); err != nil {
			return nil, revision, err
		}
	}
	ctx = apiconfig.ToContext(ctx, cfg.Config)
	service.SetDefaults(ctx)
	if err := service.Validate(ctx).Filter(apis.ErrorLevel); err != nil {
		return nil, revision, fmt.Errorf("service %s: %w", service.Name, err)
	}
	rev := configresources.MakeRevision(ctx, &servingv1.Configuration{
		ObjectMeta: metav1.ObjectMeta{
			Name: service.Name, Namespace: service.Namespace, Generation: generation,
			Labels:      map[string]string{serving.ServiceLabelKey: service.Name},
			Annotations: service.Annotations,
		},
		Spec: *service.Spec.ConfigurationSpec.DeepCopy(),
	}, time.Now())
	rev.Name = fmt.Sprintf("%s-%05d", service.Name, generation) // also of one whose template has a name
	rev.UID = types.UID(fmt.Sprintf("%s/%s", rev.Namespace, rev.Name))
	d, err := resources.MakeDeployment(rev, cfg)
	if err != nil {
		return nil, revision, fmt.Errorf("service %s: %w", service.Name, err)
	}
	template := d.Spec.Template
	pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	pod.Name, pod.Namespace, pod.UID = d.Name+"-local", rev.Namespace, rev.UID
	revision = activator.Revision{
		NamespacedName: types.NamespacedName{Namespace: rev.Namespace, Name: rev.Name},
		UID:            rev.UID,
		Concurrency:    int(valueOr(rev.Spec.ContainerConcurrency, 0)),
		Timeout:        time.Duration(valueOr(rev.Spec.TimeoutSeconds, 0)) * time.Second,
	}
	revision.Timeout = cmp.Or(revision.Timeout, time.Duration(cfg.Defaults.RevisionTimeoutSeconds)*time.Second)
	return pod, revision, nil
}

func valueOr(p *int64, otherwise int64) int64 {
	if p == nil {
		return otherwise
	}
	return *p
}
