package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	stdlog "log" //nolint:depguard // http.Server asks for it
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapio"
	"k8s.io/apimachinery/pkg/types"
	knactivator "knative.dev/serving/pkg/activator"
	"knative.dev/serving/pkg/autoscaler/metrics"

	"github.com/wisp-serving/wisp/activator"
	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/runtime/guest"
)

// RunConfig says what Run runs and how.
type RunConfig struct {
	// What is the file of a module or of a Service, or an image.
	What string
	// Module is the file of a module that takes the place of the image that the
	// Service names; empty for none.
	Module string
	// ABI, Args, Env and Dirs are added to what the Service says.
	ABI  string
	Args []string
	Env  []string
	Dirs []Dir
	// Address is the host:port to listen on.
	Address string
	// Stdout and Stderr take what the function writes there, line by line.
	Stdout, Stderr io.Writer
	// Tell takes what a user is told, a line without its end each. It is called by
	// several goroutines, one at a time.
	Tell func(line string)
}

// manifest reads the Service that is run.
func (c RunConfig) manifest() (*manifest, error) {
	if IsManifest(c.What) {
		return readManifest(c.What)
	}
	return moduleManifest(c.What), nil
}

// moduleFile is the file of the module, empty where an image is pulled.
func (c RunConfig) moduleFile() string {
	switch {
	case c.Module != "":
		return c.Module
	case !IsManifest(c.What) && IsFile(c.What):
		return c.What
	}
	return ""
}

// files are those whose change is another version.
func (c RunConfig) files() []string {
	var files []string
	if IsManifest(c.What) {
		files = append(files, c.What)
	}
	if module := c.moduleFile(); module != "" {
		files = append(files, module)
	}
	return files
}

// Run serves a function until ctx ends, as a node does: each change of its files
// makes another revision, which takes over once it answers; until then, and if
// there is something wrong with it, the one before goes on. A function of the ABI
// command has no requests: it is run once, and Run returns how that ended
// (*guest.ExitError and others). At the end of ctx running requests may finish
// within a node's drain timeout.
func (m *Machine) Run(ctx context.Context, cfg RunConfig) error {
	// The first look at the files comes before they are read: a change in between
	// is one more version, not one less.
	w, err := newWatcher(cfg.files())
	if err != nil {
		return err
	}
	defer w.close()
	first, err := m.newVersion(ctx, cfg, 1)
	if err != nil {
		return err
	}
	if first.abi == guest.ABICommand {
		defer first.close(ctx)
		if err := first.sandbox.Run(ctx); !errors.Is(err, context.Canceled) {
			return err
		}
		return nil
	}
	s, err := newServer(m, cfg)
	if err != nil {
		first.close(ctx)
		return err
	}
	return s.run(ctx, first, w.changed)
}

// server is one function that is being served.
type server struct {
	machine   *Machine
	cfg       RunConfig
	activator *activator.Activator
	listener  net.Listener
	closing   sync.WaitGroup // versions whose requests are coming to their ends

	mu       sync.RWMutex
	current  *version                          // nil once no more requests are taken
	versions map[types.NamespacedName]*version // current, and those that are closing
	telling  sync.Mutex                        // held while cfg.Tell is called
}

func newServer(m *Machine, cfg RunConfig) (*server, error) {
	s := &server{machine: m, cfg: cfg, versions: map[types.NamespacedName]*version{}}
	node := config.DefaultNode()
	var err error
	s.activator, err = activator.New(activator.Config{
		Addr:      cfg.Address,
		NodeName:  node.Name,
		Revisions: s,
		// The one version that there is has always been added.
		StartEarly:   func(context.Context, activator.Revision) error { return errors.New("it is not running") },
		Report:       func([]metrics.StatMessage) {},
		QueueBytes:   node.QueueBytes.Value(),
		QueueTimeout: node.QueueTimeout.Duration,
		DrainTimeout: node.DrainTimeout.Duration,
		Log:          m.log,
	})
	if err != nil {
		return nil, err
	}
	if s.listener, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp", cfg.Address); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return s, nil
}

// Get implements activator.Revisions.
func (s *server) Get(key types.NamespacedName) (activator.Revision, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	v, ok := s.versions[key]
	if !ok {
		return activator.Revision{}, false
	}
	return v.Revision, true
}

func (s *server) tell(format string, args ...any) {
	s.telling.Lock()
	defer s.telling.Unlock()
	s.cfg.Tell(fmt.Sprintf(format, args...))
}

// run serves first, and what comes after it, until ctx ends.
func (s *server) run(ctx context.Context, first *version, changed <-chan struct{}) error {
	defer func() { _ = s.listener.Close() }() // the server has closed it, unless it never was
	drain, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	if err := s.start(ctx, first); err != nil {
		gone, cancel := context.WithCancel(drain)
		cancel() // nobody has called it
		first.close(gone)
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	s.use(drain, first)
	srv := s.httpServer()
	served := make(chan error, 1)
	go func() { served <- srv.Serve(s.listener) }()
	s.tell("%s: http://%s/ (%s, Ctrl-C ends it)", first.service, readable(s.listener.Addr()), first.abi)

	generation, err := int64(1), error(nil)
loop:
	for {
		select {
		case <-ctx.Done():
			break loop
		case err = <-served:
			err = fmt.Errorf("serve: %w", err)
			break loop
		case <-changed:
			generation++
			s.reload(ctx, drain, generation)
		}
	}
	s.stop(drain, cut, srv)
	return err
}

// stop lets requests finish within a node's drain timeout.
func (s *server) stop(drain context.Context, cut context.CancelFunc, srv *http.Server) {
	limit := config.DefaultNode().DrainTimeout.Duration
	timeout := time.AfterFunc(limit, cut)
	defer timeout.Stop()
	s.mu.RLock()
	running := int64(0)
	for _, v := range s.versions {
		running += v.requests.count.Load()
	}
	s.mu.RUnlock()
	if running > 0 {
		s.tell("waiting up to %s for %d requests (Ctrl-C cuts them off)", limit, running)
	}
	s.use(drain, nil)
	if err := srv.Shutdown(drain); err != nil {
		_ = srv.Close()
	}
	s.closing.Wait()
}

// start begins v and waits until it answers.
func (s *server) start(ctx context.Context, v *version) error {
	v.begin(func(err error) { s.tell("%s has ended (%v), starting it again in %s", v.Name, err, restartAfter) })
	return v.ready(ctx, func() {
		s.tell("%s runs, but doesn't listen on port %d yet", v.Name, v.spec.Proxy.UserPort)
	})
}

// reload brings up what the files hold now and puts it in the place of what is
// served.
func (s *server) reload(ctx, drain context.Context, generation int64) {
	began := time.Now()
	s.tell("changed: bringing it up")
	next, err := s.machine.newVersion(ctx, s.cfg, generation)
	if err == nil {
		if err = s.start(ctx, next); err != nil {
			gone, cancel := context.WithCancel(drain)
			cancel() // nobody has called it
			next.close(gone)
		}
	}
	switch {
	case ctx.Err() != nil:
	case err != nil:
		s.tell("the last one goes on: %v", err)
	default:
		s.use(drain, next)
		s.tell("%s serves, after %s", next.Name, time.Since(began).Round(time.Millisecond))
	}
}

// use makes v the version that gets requests, nil for none. The one before ends
// when its requests have.
func (s *server) use(drain context.Context, v *version) {
	if v != nil {
		s.activator.Add(v.NamespacedName, v.UID, v.spec.Concurrency, v.front)
	}
	s.mu.Lock()
	last := s.current
	s.current = v
	if v != nil {
		s.versions[v.NamespacedName] = v
	}
	s.mu.Unlock()
	if last == nil {
		return
	}
	s.closing.Go(func() {
		last.close(drain)
		s.activator.Remove(last.NamespacedName, last.UID)
		s.activator.Forget(last.NamespacedName)
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.versions, last.NamespacedName)
	})
}

// enter counts a request among those of the version that takes it, nil for none.
func (s *server) enter() *version {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.current != nil {
		s.current.requests.begin()
	}
	return s.current
}

// ServeHTTP is the gateway's part: it names the revision, over whatever the client
// says, and who the client is.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v := s.enter()
	if v == nil {
		http.Error(w, guest.ErrClosed.Error(), http.StatusServiceUnavailable)
		return
	}
	defer v.requests.end()
	r.Header.Set(knactivator.RevisionHeaderNamespace, v.Namespace)
	r.Header.Set(knactivator.RevisionHeaderName, v.Name)
	r.Header.Set("X-Forwarded-Proto", "http")
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		r.Header.Set("X-Forwarded-For", strings.TrimPrefix(r.Header.Get("X-Forwarded-For")+", "+host, ", "))
	}
	s.activator.ServeHTTP(w, r)
}

func (s *server) httpServer() *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           s,
		Protocols:         protocols,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          stdlog.New(&zapio.Writer{Log: s.machine.log.Desugar(), Level: zap.DebugLevel}, "", 0),
	}
}

// readable is an address as a user would write it.
func readable(a net.Addr) string {
	if tcp, ok := a.(*net.TCPAddr); ok && tcp.IP.IsLoopback() {
		return fmt.Sprintf("localhost:%d", tcp.Port)
	}
	return a.String()
}
