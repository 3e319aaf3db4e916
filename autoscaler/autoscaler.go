// Package autoscaler scales revisions whose PodAutoscaler has Wisp's class
// (config.PodAutoscalerClass): from the load that nodes push, by Knative's own
// arithmetic, to replicas of the revision's Deployment and to the status that
// Knative's Revision waits for. PodAutoscalers of other classes are left alone.
//
// It isn't on the path of any request: nodes answer requests for revisions at
// zero by themselves, and tell the autoscaler that they did.
//
//	sink       stats from nodes  →  decider, which wakes for the first request
//	load       one revision's stats over time
//	decider    load → how many pods it asks for
//	lifecycle  that, pods and settings → status and replicas (pure)
//	this       watches, carries decisions out
//
// Of several autoscalers one carries decisions out, the others are ready to.
//
// `wisp autoscaler` calls Run, which owns every goroutine: the manager's (watches,
// workers, health) and, under the manager, the deciders' loop and the sink.
package autoscaler

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/go-logr/zapr"
	"go.opentelemetry.io/otel/metric/noop"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	coordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/wisp-serving/wisp/autoscaler/decider"
	"github.com/wisp-serving/wisp/autoscaler/sink"
	"github.com/wisp-serving/wisp/config"
)

// Run scales until ctx ends. It returns nil then, after everything that it
// started has ended; anything else is why it could not go on, or not start.
func Run(ctx context.Context, cfg config.Autoscaler, log *zap.SugaredLogger) error {
	logger := zapr.NewLogger(log.Desugar())
	restConfig, err := cfg.Cluster.REST("wisp-autoscaler")
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", cfg.StatAddress)
	if err != nil {
		return fmt.Errorf("listen for stats: %w", err)
	}
	defer func() { _ = ln.Close() }()
	scheme, err := newScheme()
	if err != nil {
		return fmt.Errorf("register types: %w", err)
	}
	caches, err := cacheOptions(cfg.SystemNamespace)
	if err != nil {
		return fmt.Errorf("set up caches: %w", err)
	}
	mgr, err := manager.New(restConfig, manager.Options{
		Scheme:                 scheme,
		Cache:                  caches,
		Logger:                 logger,
		Metrics:                metricsserver.Options{BindAddress: "0"},
		HealthProbeBindAddress: cfg.HealthAddress,
	})
	if err != nil {
		return fmt.Errorf("connect to the cluster: %w", err)
	}
	if err := assemble(ctx, mgr, cfg, restConfig, ln, log); err != nil {
		return err
	}
	if err := mgr.Start(ctx); err != nil {
		return fmt.Errorf("run autoscaler: %w", err)
	}
	return nil
}

func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	err := errors.Join(clientgoscheme.AddToScheme(scheme), autoscalingv1alpha1.AddToScheme(scheme), servingv1.AddToScheme(scheme))
	return scheme, err
}

// assemble puts the parts into the manager, which starts and stops them.
func assemble(ctx context.Context, mgr manager.Manager, cfg config.Autoscaler, restConfig *rest.Config, ln net.Listener, log *zap.SugaredLogger) error {
	s := &settings{namespace: cfg.SystemNamespace, log: log}
	if err := s.load(ctx, mgr.GetAPIReader()); err != nil {
		return err
	}
	if err := mgr.GetFieldIndexer().IndexField(ctx, &corev1.Pod{}, revisionIndex, revisionOf); err != nil {
		return fmt.Errorf("index pods by revision: %w", err)
	}
	due := make(decisions)
	r := &reconciler{client: mgr.GetClient(), live: mgr.GetAPIReader(), settings: s, log: log}
	leases, err := coordinationv1.NewForConfig(restConfig)
	if err != nil {
		return fmt.Errorf("make the election's client: %w", err)
	}
	r.deciders = decider.New(decider.Config{
		ReadyNodes: func(key types.NamespacedName) ([]string, error) { return r.readyNodes(ctx, key) },
		Meter:      noop.NewMeterProvider(),
		Log:        log,
	})
	lead, err := newLeader(cfg, leases, r.deciders.TakeOver, func(ctx context.Context) { r.lookAtAll(ctx, due) }, log)
	if err != nil {
		return err
	}
	r.leads = func() bool { return lead.leading(time.Now()) }
	if err := watch(mgr, r, due); err != nil {
		return fmt.Errorf("watch the cluster: %w", err)
	}
	decide := manager.RunnableFunc(func(ctx context.Context) error {
		return r.deciders.Run(ctx, func(key types.NamespacedName) { due.send(ctx, key) })
	})
	var listening atomic.Bool
	listen := manager.RunnableFunc(func(ctx context.Context) error {
		// Stats that come before their revisions are known would be lost, and
		// the first request to a cold revision with them.
		if err := r.prime(ctx); err != nil {
			return err
		}
		listening.Store(true)
		log.Infow("autoscaler ready", "stats", ln.Addr().String())
		return sink.New(r.deciders.Record, log).Serve(ctx, ln)
	})
	return errors.Join(
		mgr.Add(decide),
		mgr.Add(listen),
		mgr.Add(manager.RunnableFunc(lead.run)),
		mgr.AddHealthzCheck("ping", healthz.Ping),
		mgr.AddReadyzCheck("stats", func(*http.Request) error {
			if !listening.Load() {
				return errors.New("not yet listening for stats")
			}
			return nil
		}),
	)
}
