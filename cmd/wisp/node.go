package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	goruntime "runtime"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"knative.dev/serving/pkg/client/clientset/versioned"
	"knative.dev/serving/pkg/networking"

	"github.com/wisp-serving/wisp/activator"
	"github.com/wisp-serving/wisp/activator/fleet"
	"github.com/wisp-serving/wisp/activator/revisions"
	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/provider"
	"github.com/wisp-serving/wisp/provider/copies"
	"github.com/wisp-serving/wisp/provider/nodespec"
	"github.com/wisp-serving/wisp/provider/queueproxy"
	"github.com/wisp-serving/wisp/runtime"
	"github.com/wisp-serving/wisp/runtime/watchdog"
)

// watchdogTimeout is how long a node may go without a heartbeat.
const watchdogTimeout = 5 * time.Second

func nodeCommand() *cobra.Command {
	return roleCommand("node", "Be a Kubernetes node whose pods are wasm modules in this process", config.LoadNode,
		func(ctx context.Context, cfg config.Node, _ source[config.Node]) error {
			log, err := newLog("node", cfg.Log)
			if err != nil {
				return err
			}
			n, err := newNode(cfg, log)
			if err != nil {
				return err
			}
			return n.run(ctx)
		})
}

// node is the process that `wisp node` runs: the runtime, the provider that
// fills it with pods, and the activator that brings it requests.
type node struct {
	cfg       config.Node
	runtime   *runtime.Runtime
	provider  *provider.Provider
	revisions *revisions.Revisions
	fleet     *fleet.Fleet
	activator *activator.Activator
	pushers   *activator.Pushers
	copies    *copies.Copies
	meters    *meters
	traces    *traces
}

func newNode(cfg config.Node, log *zap.SugaredLogger) (*node, error) {
	n := &node{cfg: cfg}
	c, err := clients(cfg)
	if err != nil {
		return nil, err
	}
	if n.pushers, err = activator.NewPushers(cfg.Autoscalers, log); err != nil {
		return nil, err
	}
	n.revisions, err = revisions.New(c.serving, func(key types.NamespacedName, uid types.UID) {
		n.activator.Forget(key)
		n.provider.ForgetRevision(key, uid)
	})
	if err != nil {
		return nil, err
	}
	if n.fleet, err = n.newFleet(c.reader, log); err != nil {
		return nil, err
	}
	if n.meters, err = newMeters(); err != nil {
		return nil, err
	}
	if n.traces, err = newTraces(os.Getenv, log); err != nil {
		return nil, err
	}
	queue, err := activator.NewMetrics(n.meters)
	if err != nil {
		return nil, err
	}
	n.activator, err = activator.New(activator.Config{
		Addr:      net.JoinHostPort(cfg.Address, strconv.Itoa(networking.BackendHTTPPort)),
		NodeName:  cfg.Name,
		Revisions: n.revisions,
		StartEarly: func(ctx context.Context, r activator.Revision) error {
			return n.provider.StartEarly(ctx, r.NamespacedName, r.UID)
		},
		Report:       n.pushers.Report,
		MayStart:     func() bool { return !n.fleet.Cordoned() },
		Next:         n.fleet.Next,
		Refusal:      n.fleet.Refusal,
		QueueBytes:   cfg.QueueBytes.Value(),
		QueueTimeout: cfg.QueueTimeout.Duration,
		DrainTimeout: cfg.DrainTimeout.Duration,
		Metrics:      queue,
		Traces:       n.traces.provider(),
		Log:          log.Named("activator"),
	})
	if err != nil {
		return nil, err
	}
	self, err := compiler()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	n.runtime, err = runtime.New(runtime.Config{
		Compiler:           self,
		Cores:              goruntime.GOMAXPROCS(0),
		DataDir:            cfg.DataDir,
		Guest:              cfg.Guest,
		ImageStore:         cfg.ImageStore.Value(),
		InsecureRegistries: cfg.InsecureRegistries,
		RegistryCA:         cfg.RegistryCA,
		Meters:             n.meters,
		Log:                log.Named("runtime"),
	})
	if err != nil {
		return nil, err
	}
	if n.copies, err = copies.New(copies.Config{Client: c.copies, Log: log.Named("copies")}); err != nil {
		return nil, err
	}
	requests, err := queueproxy.NewMetrics(n.meters)
	if err != nil {
		return nil, err
	}
	n.provider, err = provider.New(provider.Config{
		Node:     cfg,
		Versions: nodespec.Versions{Kubelet: kubeletVersion(), Wisp: version()},
		Client:   c.kubelet,
		Events:   c.events.CoreV1(),
		Runtime:  n.runtime,
		Router:   n.activator,
		Outlook:  n.fleet,
		Objects:  n.copies,
		Metrics:  requests,
		PodMetrics: func() (*queueproxy.Metrics, http.Handler, error) {
			pod, err := newPodMeters()
			if err != nil {
				return nil, nil, err
			}
			requests, err := queueproxy.NewMetrics(pod)
			return requests, pod, err
		},
		Log: log.Named("provider"),
	})
	return n, err
}

// newFleet watches what there is of revisions beyond this node, and tells those
// whom it concerns.
func (n *node) newFleet(reader kubernetes.Interface, log *zap.SugaredLogger) (*fleet.Fleet, error) {
	return fleet.New(fleet.Config{
		Client:    reader,
		Node:      n.cfg.Name,
		Port:      networking.BackendHTTPPort,
		Elsewhere: func(key types.NamespacedName, nodes map[string]int) { n.activator.SetElsewhere(key, nodes) },
		Refused: func(r fleet.Revision, reason string) {
			n.provider.RefuseRevision(r.NamespacedName, r.UID, reason)
		},
		Started:  func(pod *corev1.Pod) { n.provider.LearnPod(pod) },
		Appeared: func(_ fleet.Revision, image string) { n.provider.PrepareImage(image) },
		Marked: func(cordoned bool) {
			if cordoned {
				log.Infow("this node is cordoned: it starts nothing ahead of a pod")
			} else {
				log.Infow("this node is no longer cordoned")
			}
		},
	})
}

// run starts what requests need before what brings them, and stops in reverse:
// requests are drained while their functions still run.
func (n *node) run(ctx context.Context) error {
	outlive, stopRest := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRest()
	defer runtime.SetUpProcess()()

	rest, outlive := errgroup.WithContext(outlive)
	rest.Go(func() error { return watchdog.Run(outlive, watchdogTimeout) })
	// What fails of the rest ends the request path too.
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(outlive, stop)()

	rest.Go(func() error { return n.revisions.Run(outlive) })
	rest.Go(func() error { return n.pushers.Run(outlive) })
	rest.Go(func() error { return n.copies.Run(outlive) })
	rest.Go(func() error { return serveHealth(outlive, n.cfg.HealthAddress, n.ready, n.meters) })

	err := n.revisions.Synced(ctx)
	if err == nil {
		rest.Go(func() error { return n.fleet.Run(outlive) })
		err = n.fleet.Synced(ctx)
	}
	if err == nil {
		n.provider.KeepRevisions(n.exists)
		// Not before: a pod that is Ready takes requests.
		rest.Go(func() error { return n.provider.Run(outlive) })
		err = n.activator.Run(ctx)
	} else if ctx.Err() != nil {
		err = nil
	}
	stopRest()
	err = errors.Join(err, rest.Wait())
	// Every sandbox is closed: the runtime has nothing left to wait for.
	defer n.traces.close()
	return errors.Join(err, n.runtime.Close(context.Background()))
}

// exists is whether there is a revision of that name and UID.
func (n *node) exists(key types.NamespacedName, uid types.UID) bool {
	r, ok := n.revisions.Get(key)
	return ok && r.UID == uid
}

// ready is whether the node takes pods and requests.
func (n *node) ready() error {
	select {
	case <-n.activator.Ready():
	default:
		return errors.New("requests are not served yet")
	}
	select {
	case <-n.provider.Ready():
	default:
		return errors.New("the node is not registered yet")
	}
	return nil
}

// nodeClients are clients of the node's two identities.
type nodeClients struct {
	kubelet *kubernetes.Clientset
	// events is the first identity's too, with a budget of requests of its own.
	events *kubernetes.Clientset
	// reader, copies and serving are of the second one. Each has limits of its own:
	// many watches to begin don't keep anything else waiting.
	reader  *kubernetes.Clientset
	copies  *kubernetes.Clientset
	serving *versioned.Clientset
}

func clients(cfg config.Node) (nodeClients, error) {
	var c nodeClients
	kubeletConfig, err := cfg.Cluster.REST("wisp-node")
	if err != nil {
		return c, fmt.Errorf("cluster: %w", err)
	}
	readerConfig, err := cfg.Reader.REST("wisp-node-reader")
	if err != nil {
		return c, fmt.Errorf("reader: %w", err)
	}
	if c.kubelet, err = kubernetes.NewForConfig(kubeletConfig); err != nil {
		return c, fmt.Errorf("make the kubelet's client: %w", err)
	}
	if c.events, err = kubernetes.NewForConfig(kubeletConfig); err != nil {
		return c, fmt.Errorf("make the client of Events: %w", err)
	}
	if c.reader, err = kubernetes.NewForConfig(readerConfig); err != nil {
		return c, fmt.Errorf("make the reader's client: %w", err)
	}
	if c.copies, err = kubernetes.NewForConfig(readerConfig); err != nil {
		return c, fmt.Errorf("make the reader's client: %w", err)
	}
	if c.serving, err = versioned.NewForConfig(readerConfig); err != nil {
		return c, fmt.Errorf("make the reader's client: %w", err)
	}
	return c, nil
}
