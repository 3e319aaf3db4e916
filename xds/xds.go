// Package xds is the gateway: it watches the KIngresses of Wisp's class, tells
// Envoys by delta ADS how to route to the revisions behind them, and writes the
// KIngresses' status once Envoy has proved that it does.
//
// The way of a change is: an informer's event names it in the inbox → gateway
// reads it from the cache into its table (packages translate and build) → the
// table's state is published step by step (packages snapshot and server) → the
// board notes what Envoys have acknowledged → reconciler probes and writes
// status. A pod that comes or goes takes the same way and ends as new endpoints
// of one cluster.
//
// It is no proxy: requests never pass through here, and Envoy goes on serving
// while no gateway runs. `wisp gateway` calls Run, `wisp gateway bootstrap` calls
// package bootstrap.
package xds

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/go-logr/zapr"
	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/xds/bootstrap"
	"github.com/wisp-serving/wisp/xds/envoy"
	"github.com/wisp-serving/wisp/xds/server"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
)

const (
	// statusWorkers is how many KIngresses are probed at a time, as in Knative's
	// own prober.
	statusWorkers = 15
	// Backoff of a KIngress whose probe fails.
	minBackoff = 50 * time.Millisecond
	maxBackoff = 30 * time.Second
)

// Run serves as gateway until ctx ends, and then returns nil. Envoys that are
// connected keep what they have. Of the settings that come by changes it takes over
// what config.Gateway.Adopt says; the rest of each must be as in cfg.
func Run(ctx context.Context, cfg config.Gateway, changes <-chan config.Gateway, log *zap.SugaredLogger) error {
	rc, err := cfg.Cluster.REST("wisp-gateway")
	if err != nil {
		return err
	}
	mgr, err := newManager(cfg, rc, log)
	if err != nil {
		return err
	}
	telemetry, err := newTelemetry()
	if err != nil {
		return err
	}
	events := make(chan event.GenericEvent)
	srv := server.New(serverConfig(cfg), telemetry.metrics, log)
	g, err := newGateway(cfg, deps{
		source: clusterSource{mgr.GetCache()}, server: srv, settings: changes, notify: send(events, mgr.Elected()), metrics: telemetry.metrics, log: log,
	})
	if err != nil {
		return err
	}
	if err := watch(ctx, mgr.GetCache(), g.inbox); err != nil {
		return err
	}
	r := &reconciler{
		client:  mgr.GetClient(),
		board:   g.board,
		prober:  newProber(),
		envoys:  locator{server: srv, source: g.source, envoy: cfg.Envoy, alone: cfg.LeaseNamespace == ""}.find,
		metrics: telemetry.metrics,
		log:     log,
	}
	if err := addReconciler(mgr, r, events); err != nil {
		return err
	}
	if err := telemetry.serve(mgr, cfg.HealthAddress, srv.Serving); err != nil {
		return err
	}
	// Added to a manager, it starts when the caches are filled.
	if err := mgr.Add(everywhere(func(ctx context.Context) error { return serve(ctx, g, srv) })); err != nil {
		return fmt.Errorf("add gateway: %w", err)
	}
	if cfg.Envoy.Supervise {
		if err := supervise(ctx, mgr, cfg, log); err != nil {
			return err
		}
	}
	if err := mgr.Start(ctx); err != nil {
		return fmt.Errorf("run gateway: %w", err)
	}
	return nil
}

func serverConfig(cfg config.Gateway) server.Config {
	certificate, key, authority := cfg.XDS.Files()
	return server.Config{
		Socket: cfg.XDSSocket, Address: cfg.XDS.Address,
		Certificate: certificate, Key: key, Authority: authority, ClientName: cfg.XDS.ClientName,
	}
}

// supervise adds to mgr what keeps an Envoy running. The manager waits for it to
// drain.
func supervise(ctx context.Context, mgr manager.Manager, cfg config.Gateway, log *zap.SugaredLogger) error {
	program, err := envoy.Find(ctx, cfg.Envoy.Path)
	if err != nil {
		return err
	}
	listeners := bootstrap.Listeners(cfg.Envoy)
	for door, address := range addresses(cfg.Envoy) {
		listeners[string(door)] = address
	}
	s := envoy.New(envoy.Config{
		Path:         program,
		Dir:          filepath.Dir(cfg.XDSSocket),
		Bootstrap:    func(admin string) ([]byte, error) { return bootstrap.Supervised(cfg, admin) },
		Listeners:    listeners,
		DrainTimeout: cfg.Envoy.DrainTimeout.Duration,
		Keep:         cfg.Envoy.Keep,
		Stdout:       os.Stdout,
		Stderr:       os.Stderr,
		Log:          log,
	})
	if err := mgr.Add(everywhere(s.Run)); err != nil {
		return fmt.Errorf("add Envoy's supervisor: %w", err)
	}
	return nil
}

// everywhere is what every gateway runs, whether it leads or not.
type everywhere func(context.Context) error

// Start implements manager.Runnable.
func (e everywhere) Start(ctx context.Context) error { return e(ctx) }

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (everywhere) NeedLeaderElection() bool { return false }

// serve seeds the configuration and only then lets Envoys in.
func serve(ctx context.Context, g *gateway, srv *server.Server) error {
	if err := g.seed(ctx); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return srv.Run(ctx) })
	group.Go(func() error { return g.run(ctx) })
	return group.Wait()
}

func newManager(cfg config.Gateway, rc *rest.Config, log *zap.SugaredLogger) (manager.Manager, error) {
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	caches, err := cacheOptions()
	if err != nil {
		return nil, err
	}
	grace := cfg.Envoy.DrainTimeout.Duration + 10*time.Second // a supervised Envoy drains, then ends
	mgr, err := ctrl.NewManager(rc, ctrl.Options{
		Scheme:                        scheme,
		Cache:                         caches,
		Logger:                        zapr.NewLogger(log.Desugar()),
		Metrics:                       metricsserver.Options{BindAddress: "0"}, // telemetry serves them
		LeaderElection:                cfg.LeaseNamespace != "",
		LeaderElectionID:              "wisp-gateway",
		LeaderElectionNamespace:       cfg.LeaseNamespace,
		LeaderElectionReleaseOnCancel: true,
		GracefulShutdownTimeout:       &grace,
	})
	if err != nil {
		return nil, fmt.Errorf("prepare gateway: %w", err)
	}
	return mgr, nil
}

func addReconciler(mgr manager.Manager, r reconcile.Reconciler, events <-chan event.GenericEvent) error {
	again := true // Run may be called again in one process; nothing else uses the name
	err := ctrl.NewControllerManagedBy(mgr).
		Named("ingress").
		For(&v1alpha1.Ingress{}, builder.WithPredicates(predicate.NewPredicateFuncs(ours))).
		WatchesRawSource(source.Channel(events, &handler.EnqueueRequestForObject{})).
		WithOptions(controller.Options{
			MaxConcurrentReconciles: statusWorkers,
			SkipNameValidation:      &again,
			RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](minBackoff, maxBackoff),
		}).
		Complete(r)
	if err != nil {
		return fmt.Errorf("add ingress controller: %w", err)
	}
	return nil
}

// send returns a function that hands KIngresses to the reconciler's queue. Before
// this gateway leads, nobody takes them from there, and when it does, the reconciler
// begins with all there are.
func send(events chan<- event.GenericEvent, leads <-chan struct{}) func(context.Context, map[types.NamespacedName]bool) {
	return func(ctx context.Context, keys map[types.NamespacedName]bool) {
		select {
		case <-leads:
		default:
			return
		}
		for key := range keys {
			ing := &v1alpha1.Ingress{}
			ing.Namespace, ing.Name = key.Namespace, key.Name
			select {
			case events <- event.GenericEvent{Object: ing}:
			case <-ctx.Done():
				return
			}
		}
	}
}
