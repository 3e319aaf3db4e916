package xds

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/wisp-serving/wisp/test/envoytest"
	"github.com/wisp-serving/wisp/xds/bootstrap"
	"github.com/wisp-serving/wisp/xds/envoy"
	"go.uber.org/zap/zaptest"
)

// newServingBed returns a bed whose gateway serves one KIngress, and no Envoy yet.
func newServingBed(t *testing.T, subnet string) *bed {
	t.Helper()
	b := newBed(t, subnet)
	b.cfg.Envoy.AccessLog = false // of all the load
	b.addNode("node-a")
	b.addRevision("sort-1", translateHTTP1)
	b.addIngress("sort", rule("External", "sort.example.com", path(to("sort-1"))))
	b.startGateway()
	return b
}

// supervisor returns settings for a supervisor of b's Envoy.
func (b *bed) supervisor(dir string) envoy.Config {
	b.t.Helper()
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		_ = log.Close()
		if text, err := os.ReadFile(log.Name()); err == nil && b.t.Failed() {
			b.t.Logf("envoy's log:\n%s", text)
		}
	})
	listeners := bootstrap.Listeners(b.cfg.Envoy)
	for door, address := range addresses(b.cfg.Envoy) {
		listeners[string(door)] = address
	}
	return envoy.Config{
		Path: envoytest.Binary(b.t), Dir: dir, Listeners: listeners, Concurrency: 1,
		Bootstrap:    func(admin string) ([]byte, error) { return bootstrap.Supervised(b.cfg, admin) },
		DrainTimeout: deadline, Stdout: log, Stderr: log, Log: zaptest.NewLogger(b.t).Sugar(),
	}
}

// otherSettings makes an Envoy of cfg start from another bootstrap.
func otherSettings(cfg *envoy.Config) {
	render := cfg.Bootstrap
	cfg.Bootstrap = func(admin string) ([]byte, error) {
		text, err := render(admin)
		return append(text, "# other settings\n"...), err
	}
}

// supervise runs a supervisor, and returns how to stop it.
func (b *bed) supervise(cfg envoy.Config) (stop func()) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- envoy.New(cfg).Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("supervisor: %v", err)
		}
	})
	b.t.Cleanup(stop)
	return stop
}

// leave runs a supervisor until its Envoy serves, and stops it as one that leaves its
// Envoy. It returns Envoy's pid.
func (b *bed) leave(cfg envoy.Config) int {
	b.t.Helper()
	cfg.Keep = true
	stop := b.supervise(cfg)
	b.waitReady("sort")
	stop()
	pid := pidOf(cfg.Dir)
	b.t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) }) // if the test fails
	return pid
}

// pidOf reads a supervisor's pid file, or 0.
func pidOf(dir string) int {
	text, err := os.ReadFile(filepath.Join(dir, "envoy.pid"))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return pid
}

// bootstraps returns the files that the Envoys of a folder have started from.
func bootstraps(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "envoy-*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func (b *bed) answers() bool {
	a, err := request(context.Background(), http.DefaultClient, b.cfg.Envoy.HTTPAddress, "sort.example.com", "/")
	return err == nil && a.status == http.StatusOK
}

func TestSupervisedEnvoy(t *testing.T) {
	b := newServingBed(t, "127.102.0")
	cfg := b.supervisor(t.TempDir())
	stop := b.supervise(cfg)
	b.waitReady("sort")
	for address, want := range map[string]int{b.cfg.Envoy.AdminAddress: http.StatusOK, b.cfg.Envoy.StatsAddress: http.StatusNotFound} {
		if got := ask(t, address, "admin", "/server_info").status; got != want {
			t.Errorf("%s answers %d of the admin interface, want %d", address, got, want)
		}
	}

	first := pidOf(cfg.Dir)
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.until("another Envoy", func() bool { return pidOf(cfg.Dir) != first && b.answers() })

	// What is under way when it is stopped is finished, and nothing else begins.
	release, got := b.hold()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		stop()
	}()
	b.until("closed listeners", func() bool {
		conn, err := net.Dial("tcp", b.cfg.Envoy.HTTPAddress)
		if err == nil {
			_ = conn.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	release()
	if a := <-got; a.status != http.StatusOK {
		t.Errorf("the request under way ended with %d, want 200", a.status)
	}
	<-ended
	if pidOf(cfg.Dir) != 0 || len(bootstraps(t, cfg.Dir)) > 0 {
		t.Error("Envoy's files outlive the stop")
	}
}

// hold sends a request that node-a answers when it is released.
func (b *bed) hold() (release func(), got <-chan answer) {
	b.t.Helper()
	hold, answers := make(chan struct{}), make(chan answer, 1)
	b.nodes["node-a"].hold.Store(&hold)
	go func() {
		a, _ := request(context.Background(), &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, b.cfg.Envoy.HTTPAddress, "sort.example.com", "/")
		answers <- a
	}()
	<-b.nodes["node-a"].arrived
	b.nodes["node-a"].hold.Store(nil) // for those that come later
	release = sync.OnceFunc(func() { close(hold) })
	b.t.Cleanup(release)
	return release, answers
}

// TestSupervisorAdoptsEnvoy starts a supervisor where an earlier one has left Envoy.
func TestSupervisorAdoptsEnvoy(t *testing.T) {
	b := newServingBed(t, "127.103.0")
	cfg := b.supervisor(t.TempDir())
	left := b.leave(cfg)

	l := startLoad(b.cfg.Envoy.HTTPAddress, "sort.example.com", 1)
	if err := os.Remove(filepath.Join(cfg.Dir, "envoy.pid")); err != nil {
		t.Fatal(err)
	}
	stop := b.supervise(cfg)
	b.until("an Envoy", func() bool { return pidOf(cfg.Dir) != 0 })
	if got := pidOf(cfg.Dir); got != left {
		t.Errorf("pid is %d, want that of the Envoy that was there, %d", got, left)
	}
	b.addIngress("more", rule("External", "more.example.com", path(to("sort-1"))))
	b.waitReady("more")
	l.end(t)
	if err := syscall.Kill(left, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.until("another Envoy", func() bool { return pidOf(cfg.Dir) != left && b.answers() })
	stop()
}

// TestSupervisorReplacesEnvoy starts supervisors, one after the other, with other
// settings or another program than those of the Envoy that is there, under load.
func TestSupervisorReplacesEnvoy(t *testing.T) {
	b := newServingBed(t, "127.105.0")
	cfg := b.supervisor(t.TempDir())
	pid := b.leave(cfg)
	program := filepath.Join(t.TempDir(), "envoy")
	if err := os.Symlink(cfg.Path, program); err != nil {
		t.Fatal(err)
	}

	release, held := b.hold()
	l := startHandoverLoad(b.cfg.Envoy.HTTPAddress, "sort.example.com")
	changes := []func(*envoy.Config){
		otherSettings,
		func(c *envoy.Config) { c.Path = program },
		func(c *envoy.Config) { c.Concurrency = 2 },
		func(*envoy.Config) {}, // as the first
	}
	for round, change := range changes {
		next := cfg
		next.Keep = true
		change(&next)
		stop := b.supervise(next)
		b.until("another Envoy", func() bool { return pidOf(cfg.Dir) != pid })
		if round == 0 {
			// Its answer is under way in the old Envoy, which waits for it.
			if n := len(bootstraps(t, cfg.Dir)); n != 2 {
				t.Errorf("%d Envoys while a request is under way in the old one, want 2", n)
			}
			release()
			if a := <-held; a.status != http.StatusOK {
				t.Errorf("the request under way ended with %d, want 200", a.status)
			}
		}
		b.until("the old Envoy's end", func() bool { return len(bootstraps(t, cfg.Dir)) == 1 })
		pid = pidOf(cfg.Dir)
		stop()
	}
	l.end(t, len(changes))
	b.supervise(cfg)() // adopts the last one, and ends it
}

// handoverLoad is two kinds of clients: some keep their connections, as proxies and
// most programs do, and others make one for each request. No request is sent twice.
type handoverLoad struct {
	stop        context.CancelFunc
	wg          sync.WaitGroup
	kept, fresh tally
}

// tally counts requests. Those that were reset are ones whose connection was; what
// else fails is in failed.
type tally struct {
	all, reset, failed atomic.Int64
	text               atomic.Pointer[string]
}

const clientsOfAKind = 4

func startHandoverLoad(address, host string) *handoverLoad {
	ctx, cancel := context.WithCancel(context.Background())
	l := &handoverLoad{stop: cancel}
	for range clientsOfAKind {
		l.wg.Go(func() { l.kept.run(ctx, &http.Transport{}, address, host) })
		l.wg.Go(func() { l.fresh.run(ctx, &http.Transport{DisableKeepAlives: true}, address, host) })
	}
	return l
}

func (c *tally) run(ctx context.Context, transport *http.Transport, address, host string) {
	defer transport.CloseIdleConnections()
	post := func(r *http.Request) {
		r.Method, r.Body, r.ContentLength = http.MethodPost, io.NopCloser(strings.NewReader("body")), 4
	}
	for ctx.Err() == nil {
		a, err := request(context.Background(), &http.Client{Transport: transport}, address, host, "/", post)
		c.all.Add(1)
		switch {
		case err == nil && a.status == http.StatusOK:
		case errors.Is(err, syscall.ECONNRESET):
			c.reset.Add(1)
		default:
			c.failed.Add(1)
			text := strconv.Itoa(a.status) + " " + a.body
			if err != nil {
				text = err.Error()
			}
			c.text.Store(&text)
		}
	}
}

// end stops the load, and fails the test where a request failed but for those few
// that the kernel had given to a listener before it was closed, and that nobody has
// read. See RATIONALE.md "Why are two Envoys run side by side?".
func (l *handoverLoad) end(t *testing.T, handovers int) {
	t.Helper()
	l.stop()
	l.wg.Wait()
	for name, c := range map[string]*tally{"kept": &l.kept, "fresh": &l.fresh} {
		t.Logf("%s connections: of %d requests %d were reset and %d failed otherwise", name, c.all.Load(), c.reset.Load(), c.failed.Load())
		if text := c.text.Load(); text != nil {
			t.Errorf("a request on %s connections failed: %s", name, *text)
		}
	}
	if n := l.kept.reset.Load(); n > 0 {
		t.Errorf("%d requests on kept connections were reset, want none", n)
	}
	if n := l.fresh.reset.Load(); n > int64(handovers*clientsOfAKind) {
		t.Errorf("%d connections were reset, want at most one of each client in each of %d handovers", n, handovers)
	}
}

// TestSupervisorKeepsWhatServes starts a supervisor whose Envoy never serves.
func TestSupervisorKeepsWhatServes(t *testing.T) {
	b := newServingBed(t, "127.113.0")
	cfg := b.supervisor(t.TempDir())
	left := b.leave(cfg)
	l := startLoad(b.cfg.Envoy.HTTPAddress, "sort.example.com", 1)

	broken := cfg
	var started atomic.Int64
	broken.Bootstrap = func(string) ([]byte, error) {
		started.Add(1)
		return []byte("no: bootstrap"), nil
	}
	stop := b.supervise(broken)
	b.until("three starts", func() bool { return started.Load() > 3 }) // the first is for its hash
	if got := pidOf(cfg.Dir); got != left {
		t.Errorf("pid is %d, want that of the Envoy that serves, %d", got, left)
	}
	l.end(t)
	stop()
	b.until("the end of both", func() bool { return !b.answers() })
}

// TestSupervisorFindsTwo starts a supervisor where an earlier one was ended while it
// replaced an Envoy.
func TestSupervisorFindsTwo(t *testing.T) {
	b := newServingBed(t, "127.114.0")
	cfg := b.supervisor(t.TempDir())
	left := b.leave(cfg)

	next := cfg
	otherSettings(&next)
	waiting := next
	waiting.Keep, waiting.Listeners = true, maps.Clone(next.Listeners)
	waiting.Listeners["none"] = b.cfg.Envoy.HTTPAddress // so it is never ready
	stop := b.supervise(waiting)
	b.until("two Envoys", func() bool { return len(bootstraps(t, cfg.Dir)) == 2 })
	stop()
	if got := pidOf(cfg.Dir); got != left {
		t.Errorf("pid is %d, want that of the Envoy that serves, %d", got, left)
	}

	l := startLoad(b.cfg.Envoy.HTTPAddress, "sort.example.com", 1)
	stop = b.supervise(next)
	b.until("the old Envoy's end", func() bool { return len(bootstraps(t, cfg.Dir)) == 1 && pidOf(cfg.Dir) != left })
	l.end(t)
	stop()
}

// TestSupervisorSharesWithNobody starts a supervisor where somebody else listens.
func TestSupervisorSharesWithNobody(t *testing.T) {
	b := newBed(t, "127.115.0")
	ln, err := net.Listen("tcp", b.cfg.Envoy.HTTPAddress)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	err = envoy.New(b.supervisor(t.TempDir())).Run(t.Context())
	if want := "another process listens on " + b.cfg.Envoy.HTTPAddress; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error is %v, want %q in it", err, want)
	}
}

// TestSupervisorRefusesALongPath starts a supervisor in a folder whose sockets Linux
// would refuse.
func TestSupervisorRefusesALongPath(t *testing.T) {
	b := newBed(t, "127.116.0")
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	err := envoy.New(b.supervisor(dir)).Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "must have at most 107") {
		t.Errorf("error is %v, want the length", err)
	}
}
