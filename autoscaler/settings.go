package autoscaler

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	asconfig "knative.dev/serving/pkg/autoscaler/config"
	"knative.dev/serving/pkg/autoscaler/config/autoscalerconfig"
	"knative.dev/serving/pkg/deployment"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// settings holds Knative's settings as they are now. It is safe for concurrent
// use.
type settings struct {
	namespace        string
	log              *zap.SugaredLogger
	autoscaler       atomic.Pointer[autoscalerconfig.Config]
	progressDeadline atomic.Int64 // A time.Duration.
}

// configMaps are the names of the ConfigMaps that settings are read from.
func configMaps() []string { return []string{asconfig.ConfigName, deployment.ConfigName} }

// load reads the ConfigMaps once, so that a role that can't know how to scale
// doesn't start.
func (s *settings) load(ctx context.Context, r client.Reader) error {
	for _, name := range configMaps() {
		var cm corev1.ConfigMap
		if err := r.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: name}, &cm); err != nil {
			return fmt.Errorf("read ConfigMap %s/%s: %w", s.namespace, name, err)
		}
		if err := s.parse(&cm); err != nil {
			return err
		}
	}
	return nil
}

// take follows a ConfigMap that was written, and reports whether it is one of
// the settings and good. After a bad one, the settings from before go on.
func (s *settings) take(cm *corev1.ConfigMap) bool {
	if cm.Namespace != s.namespace || (cm.Name != asconfig.ConfigName && cm.Name != deployment.ConfigName) {
		return false
	}
	if err := s.parse(cm); err != nil {
		s.log.Errorw("settings ignored, those from before go on", "error", err)
		return false
	}
	return true
}

func (s *settings) parse(cm *corev1.ConfigMap) error {
	var err error
	if cm.Name == asconfig.ConfigName {
		var c *autoscalerconfig.Config
		if c, err = asconfig.NewConfigFromConfigMap(cm); err == nil {
			s.autoscaler.Store(c)
		}
	} else {
		var c *deployment.Config
		if c, err = deployment.NewConfigFromConfigMap(cm); err == nil {
			s.progressDeadline.Store(int64(c.ProgressDeadline))
		}
	}
	if err != nil {
		return fmt.Errorf("parse ConfigMap %s/%s: %w", cm.Namespace, cm.Name, err)
	}
	return nil
}

func (s *settings) deadline() time.Duration { return time.Duration(s.progressDeadline.Load()) }
