// Package runtime runs wasm modules from OCI images inside this process.
//
// It is a facade over the packages under it, which the provider calls and
// nobody else:
//
//	oci       reference → verified module bytes on disk
//	meter     module → module that preempts itself and keeps to its bounds
//	compile   module → code, in a child process with limits
//	modcache  digest → compiled module, kept on disk and in memory
//	guest     ABI ⇄ instance
//	instance  one running guest: its memory, its turn on a core
//	memory    mapped memory, and each sandbox's limit
//	cpu       who gets a core
//	garbage   how fast guests may use up Go's memory
//	sandbox   one container: settings, running instances, log
//	measure   metrics of all of it
//	api       the errors that they share
//
// It knows no Kubernetes. A guest runs on the goroutine of its request. What a
// guest can and can't do to the node is in RATIONALE.md.
package runtime

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	"go.uber.org/zap"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/runtime/api"
	"github.com/wisp-serving/wisp/runtime/compile"
	"github.com/wisp-serving/wisp/runtime/guest"
	"github.com/wisp-serving/wisp/runtime/instance"
	"github.com/wisp-serving/wisp/runtime/measure"
	"github.com/wisp-serving/wisp/runtime/modcache"
	"github.com/wisp-serving/wisp/runtime/oci"
	"github.com/wisp-serving/wisp/runtime/sandbox"
)

// The errors on which a caller branches, by errors.Is. Errors that are neither
// are the machine's (a full disk) or a context's.
var (
	// ErrImagePull: the image can't be had now; a later attempt may succeed.
	ErrImagePull = api.ErrImagePull
	// ErrUnusable: the image or module can never run here.
	ErrUnusable = api.ErrUnusable
	// ErrImageName, an ErrUnusable: the reference names no image.
	ErrImageName = api.ErrImageName
	// ErrImageNeverPull, an ErrImagePull: the image isn't here and no registry may
	// be asked.
	ErrImageNeverPull = api.ErrImageNeverPull
)

// Config says where a Runtime keeps its files and what its guests may use.
type Config struct {
	// DataDir holds pulled modules and compiled code, in folders that only this
	// user can read. One Runtime at a time may use it.
	DataDir string
	// Guest bounds what one guest may use.
	Guest config.Guest
	// ImageStore is how many bytes pulled images may take on disk before unused
	// ones are removed.
	ImageStore int64
	// InsecureRegistries are registry hosts (host or host:port) reached by
	// plain HTTP. Loopback registries always are.
	InsecureRegistries []string
	// RegistryCA is the path of a PEM file with the authorities of registries that
	// the system doesn't know; empty for none.
	RegistryCA string
	// Compiler is the command that compiles modules, which must call
	// compile.ChildMain; see compile.Child. None compiles in this process, which
	// is for modules that are trusted.
	Compiler []string
	// Cores is how many guests may run at once; 0 is GOMAXPROCS.
	Cores int
	// Meters takes the metrics of guests; nil: nobody does.
	Meters metric.MeterProvider
	// Log is required.
	Log *zap.SugaredLogger
}

// ballast is memory that is counted as Go's heap, and never touched: it keeps the
// collector from running often as long as the heap is small. See RATIONALE.md "What
// does garbage cost?".
const ballast = 48 << 20

// SetUpProcess makes this process fit for guests on all of its cores, of which
// GOMAXPROCS says how many there are: a guest keeps its thread for as long as its ration
// lasts, so the network, the timers and the collector get threads that no guest runs on,
// and the kernel shares the cores among all of them. Make Runtimes before, or tell them
// their Cores. Call undo once no guest runs any more. See RATIONALE.md "Who gets a core?".
func SetUpProcess() (undo func()) {
	cores := goruntime.GOMAXPROCS(0)
	goruntime.GOMAXPROCS(cores + (cores+1)/2)
	counted := make([]byte, ballast)
	return func() {
		goruntime.GOMAXPROCS(cores)
		goruntime.KeepAlive(counted)
	}
}

// keptMemory bounds the physical memory that waits for the next instances.
const keptMemory = 128 << 20

// Runtime pulls, compiles and runs modules. It is safe for concurrent use.
type Runtime struct {
	limits  guest.Limits
	memory  int64
	host    *instance.Host
	log     *zap.SugaredLogger
	store   *oci.Store
	modules *modcache.Cache
	metrics *measure.Metrics
	// unwatch ends the watch of the sandboxes by the metrics.
	unwatch func()

	mu       sync.Mutex
	closed   bool
	starting sync.WaitGroup // Starts under way
	// sandboxes holds what each open sandbox keeps in the store: to be released.
	sandboxes map[*sandbox.Sandbox]func()
}

// New returns a Runtime over cfg.DataDir.
func New(cfg Config) (*Runtime, error) {
	if cfg.Log == nil {
		return nil, errors.New("new runtime: Log is required")
	}
	if cfg.Meters == nil {
		cfg.Meters = noop.NewMeterProvider()
	}
	metrics, err := measure.New(cfg.Meters)
	if err != nil {
		return nil, fmt.Errorf("new runtime: %w", err)
	}
	store, err := oci.NewStore(oci.StoreConfig{
		Dir:                filepath.Join(cfg.DataDir, "images"),
		ModuleSize:         cfg.Guest.ModuleSize.Value(),
		Budget:             cfg.ImageStore,
		InsecureRegistries: cfg.InsecureRegistries,
		RegistryCA:         cfg.RegistryCA,
	})
	if err != nil {
		return nil, fmt.Errorf("new runtime: %w", err)
	}
	modules, err := modcache.New(modcache.Config{
		Dir:     filepath.Join(cfg.DataDir, "compiled"),
		Memory:  cfg.Guest.CompiledMemory.Value(),
		Disk:    cfg.Guest.CompiledDisk.Value(),
		Load:    store.Module,
		Compile: timed(metrics, compiler(cfg)),
	})
	if err != nil {
		store.Close()
		return nil, fmt.Errorf("new runtime: %w", err)
	}
	cores := cmp.Or(cfg.Cores, goruntime.GOMAXPROCS(0))
	r := &Runtime{
		memory:    cfg.Guest.Memory.Value(),
		host:      instance.NewHost(instance.HostConfig{Cores: cores, KeptMemory: keptMemory}),
		limits:    guest.DefaultLimits(int(cfg.Guest.OutputSize.Value())),
		log:       cfg.Log,
		store:     store,
		modules:   modules,
		metrics:   metrics,
		sandboxes: map[*sandbox.Sandbox]func(){},
	}
	if r.unwatch, err = metrics.Watch(r.present); err != nil {
		store.Close()
		return nil, errors.Join(fmt.Errorf("new runtime: %w", err), modules.Close())
	}
	return r, nil
}

// timed returns compile with its times recorded.
func timed(m *measure.Metrics, compile func(context.Context, []byte, string) error) func(context.Context, []byte, string) error {
	return func(ctx context.Context, module []byte, dir string) error {
		began := time.Now()
		err := compile(ctx, module, dir)
		m.Compiled(time.Since(began), err)
		return err
	}
}

// present returns what runs now.
func (r *Runtime) present() map[measure.Place]measure.Present {
	r.mu.Lock()
	defer r.mu.Unlock()
	present := map[measure.Place]measure.Present{}
	for s := range r.sandboxes {
		usage, at := s.Usage(), s.Place()
		p := present[at]
		p.Instances += usage.Instances
		p.Memory += usage.Memory
		present[at] = p
	}
	return present
}

// codeFile is the largest file of compiled code, for each byte of the largest
// module.
const codeFile = 32

func compiler(cfg Config) func(context.Context, []byte, string) error {
	if len(cfg.Compiler) == 0 {
		return compile.Here
	}
	return compile.Child{
		Command: cfg.Compiler,
		Limits: compile.Limits{
			Time:   cfg.Guest.CompileTime.Duration,
			Memory: cfg.Guest.CompileMemory.Value(),
			File:   codeFile * cfg.Guest.ModuleSize.Value(),
		},
	}.Compile
}

// Pull returns the image that is asked for, with its module and files in the
// store; see oci.Store.Pull. An error is ErrUnusable, ErrImagePull, or ctx's.
func (r *Runtime) Pull(ctx context.Context, request oci.Request) (oci.Image, error) {
	return r.store.Pull(ctx, request)
}

// Import puts an image that is in no registry into the store; see
// oci.Store.Import.
func (r *Runtime) Import(image v1.Image) (oci.Image, error) { return r.store.Import(image) }

// Module returns the bytes of a module in the store, by its digest.
func (r *Runtime) Module(digest string) ([]byte, error) { return r.store.Module(digest) }

// Prepare pulls the image that ref names and compiles its module, so that Start
// finds both. An error is as Pull's and Start's.
func (r *Runtime) Prepare(ctx context.Context, ref string) error {
	if !r.begin() {
		return fmt.Errorf("prepare %s: %w", ref, errClosed)
	}
	defer r.starting.Done()
	image, err := r.store.Pull(ctx, oci.Request{Reference: ref})
	if err != nil {
		return err
	}
	module, err := r.modules.Get(ctx, image.ModuleDigest)
	if err != nil {
		return fmt.Errorf("prepare %s: %w", ref, err)
	}
	module.Release()
	return nil
}

var errClosed = errors.New("the runtime is closed")

// Start compiles the module of spec unless that was done before, tries one
// instance without running it, and returns a sandbox that takes requests. The
// caller closes the sandbox. What can never work is ErrUnusable; a module that
// isn't in the store is ErrImagePull.
func (r *Runtime) Start(ctx context.Context, spec sandbox.Spec) (*sandbox.Sandbox, error) {
	if !r.begin() {
		return nil, fmt.Errorf("start %s: %w", spec.ID, errClosed)
	}
	defer r.starting.Done()
	release := r.store.Use(spec.Image)
	s, err := sandbox.New(ctx, sandbox.Deps{
		Modules: r.modules, Host: r.host, Memory: r.memory, Limits: r.limits,
		Observer: r.metrics.At(spec.Place), Log: r.log, OnClose: r.forget,
	}, spec)
	if err != nil {
		release()
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sandboxes[s] = release
	return s, nil
}

func (r *Runtime) begin() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.starting.Add(1)
	return true
}

func (r *Runtime) forget(s *sandbox.Sandbox) {
	r.mu.Lock()
	release := r.sandboxes[s]
	delete(r.sandboxes, s)
	r.mu.Unlock()
	release()
}

// Close ends pulls, closes every sandbox that is left (see Sandbox.Close) and
// frees the rest. It waits for starts and compilations under way, which ctx
// doesn't cut short. Only the first call does anything.
func (r *Runtime) Close(ctx context.Context) error {
	r.mu.Lock()
	first := !r.closed
	r.closed = true
	r.mu.Unlock()
	if !first {
		return nil
	}
	r.unwatch()
	r.store.Close()
	r.starting.Wait()
	defer r.host.Close()
	return errors.Join(r.closeSandboxes(ctx), r.modules.Close())
}

func (r *Runtime) closeSandboxes(ctx context.Context) error {
	r.mu.Lock()
	left := slices.Collect(maps.Keys(r.sandboxes))
	r.mu.Unlock()
	errs := make([]error, len(left))
	var closing sync.WaitGroup
	for i, s := range left {
		closing.Go(func() { errs[i] = s.Close(ctx) })
	}
	closing.Wait()
	return errors.Join(errs...)
}
