package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tetratelabs/wazero/experimental/sysfs"
	corev1 "k8s.io/api/core/v1"

	"github.com/wisp-serving/wisp/activator"
	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/provider"
	"github.com/wisp-serving/wisp/provider/podspec"
	"github.com/wisp-serving/wisp/provider/probe"
	"github.com/wisp-serving/wisp/provider/queueproxy"
	"github.com/wisp-serving/wisp/provider/volume"
	"github.com/wisp-serving/wisp/runtime/guest"
	"github.com/wisp-serving/wisp/runtime/oci"
	"github.com/wisp-serving/wisp/runtime/sandbox"
	"github.com/wisp-serving/wisp/runtime/wasi"
)

// address is what a function that runs here learns of its own.
const address = "127.0.0.1"

// version is one state of what is run: a revision with its one pod.
type version struct {
	activator.Revision
	service string
	abi     string
	spec    podspec.Spec
	sandbox *sandbox.Sandbox
	front   *queueproxy.Proxy
	folder  string // of its volumes

	requests inFlight

	runs     sync.WaitGroup
	stopRuns context.CancelFunc
	ended    chan error // takes how each run of a server has ended, as far as there is room
}

// newVersion starts what cfg says now. It doesn't wait until it answers.
func (m *Machine) newVersion(ctx context.Context, cfg RunConfig, generation int64) (_ *version, err error) {
	files, err := cfg.manifest()
	if err != nil {
		return nil, err
	}
	if err := files.apply(cfg); err != nil {
		return nil, err
	}
	module := cfg.moduleFile()
	if module != "" { // Knative wants the name of an image
		files.service.Spec.Template.Spec.Containers[0].Image = "local.invalid/" + files.service.Name
	}
	pod, revision, err := podOf(ctx, files.service, generation)
	if err != nil {
		return nil, err
	}
	v := &version{Revision: revision, service: files.service.Name, ended: make(chan error, 1)}
	if v.spec, err = podspec.Parse(pod); err != nil {
		return nil, err
	}
	c := v.spec.Containers[v.spec.Server()]
	resolved, err := c.Resolve(ctx, pod, facts(), files)
	if err != nil {
		return nil, err
	}
	found, err := m.image(ctx, module, c, resolved)
	if err != nil {
		return nil, err
	}
	if v.folder, err = os.MkdirTemp(m.dir, "volumes-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(v.folder)
		}
	}()
	spec := provider.SandboxSpec(v.Name, found, v.spec, c, resolved)
	if spec.Mounts, err = v.mounts(ctx, cfg, files, pod, c, resolved); err != nil {
		return nil, err
	}
	spec.Stdout, spec.Stderr = cfg.Stdout, cfg.Stderr
	spec.Env = append([]string{"HOSTNAME=" + pod.Name}, spec.Env...)
	v.abi = spec.ABI
	if v.sandbox, err = m.runtime.Start(ctx, spec); err != nil {
		return nil, err
	}
	v.front, err = queueproxy.New(queueproxy.Config{Settings: v.spec.Proxy, Pod: pod.Name, PodIP: address, Function: v.sandbox})
	if err != nil {
		return nil, errors.Join(err, v.sandbox.Close(ctx))
	}
	return v, nil
}

// facts are what a pod learns of this machine.
func facts() podspec.Facts {
	node := config.DefaultNode().Capacity
	return podspec.Facts{
		PodIPs: []string{address}, HostIPs: []string{address},
		Allocatable: corev1.ResourceList{corev1.ResourceCPU: node.CPU, corev1.ResourceMemory: node.Memory},
	}
}

// image returns the image of the container: that of a module's file, or the one
// that it names.
func (m *Machine) image(ctx context.Context, module string, c podspec.Container, resolved podspec.Resolved) (oci.Image, error) {
	if module != "" {
		return m.Find(ctx, module)
	}
	request := provider.ImageRequest(c, resolved)
	request.Own = true
	return m.runtime.Pull(ctx, request)
}

// mounts returns the pod's volumes and the folders that the command line names.
func (v *version) mounts(ctx context.Context, cfg RunConfig, files *manifest, pod *corev1.Pod, c podspec.Container, resolved podspec.Resolved) ([]wasi.Mount, error) {
	size := config.DefaultNode().EmptyDirSize
	set, err := volume.New(ctx, volume.Config{
		Dir:          v.folder,
		EmptyDirSize: size.Value(),
		Source:       files,
		Pod:          func() *corev1.Pod { return pod },
		Facts:        facts,
	}, v.spec.Volumes)
	if err != nil {
		return nil, err
	}
	made, err := set.Mounts(c.Container, resolved.Expand)
	if err != nil {
		return nil, err
	}
	mounts := make([]wasi.Mount, 0, len(made)+len(cfg.Dirs))
	for _, m := range made {
		mounts = append(mounts, wasi.Mount{Path: m.Path, FS: m.FS, ReadOnly: m.ReadOnly})
	}
	for _, d := range cfg.Dirs {
		info, err := os.Stat(d.Here)
		if err != nil {
			return nil, fmt.Errorf("dir: %w", err)
		}
		if !info.IsDir() {
			return nil, fmt.Errorf("dir: %s is no folder", d.Here)
		}
		mounts = append(mounts, wasi.Mount{Path: d.There, FS: sysfs.DirFS(d.Here), ReadOnly: d.ReadOnly})
	}
	return mounts, nil
}

// restartAfter is how long after a server has ended it is started again.
const restartAfter = time.Second

// begin runs a server, again and again, until close; what answers requests one by
// one needs nobody to run it. told is called on a goroutine of its own with how a
// run has ended.
func (v *version) begin(told func(error)) {
	ctx, cancel := context.WithCancel(context.Background())
	v.stopRuns = cancel
	if v.abi != guest.ABIServer {
		return
	}
	v.runs.Go(func() {
		for ctx.Err() == nil {
			err := v.sandbox.Run(ctx)
			if ctx.Err() != nil || errors.Is(err, guest.ErrClosed) {
				return
			}
			if err == nil {
				err = errors.New("exit status 0")
			}
			select {
			case v.ended <- err:
			default:
			}
			told(err)
			select {
			case <-ctx.Done():
			case <-time.After(restartAfter):
			}
		}
	})
}

// eager is how often a server is asked whether it answers yet.
const eager = 25 * time.Millisecond

// slow is how long a server may take to listen before its user is told.
const slow = 10 * time.Second

// ready waits until the function answers its readiness probe, which Knative gives
// each. It fails when the function ends before that. waiting is called if it takes
// long.
func (v *version) ready(ctx context.Context, waiting func()) error {
	if v.abi != guest.ABIServer {
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer time.AfterFunc(slow, waiting).Stop()
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		for _, p := range v.spec.Proxy.Readiness {
			target := probe.Target{Dial: v.sandbox.Dial, Ports: v.spec.Containers[v.spec.Server()].Ports, Host: address}
			check := func(ctx context.Context) error { return probe.Check(ctx, p, target) }
			probe.Run(ctx, p, eager, check, func(error) {}, func(ok bool, _ error) bool { return !ok })
		}
	}()
	select {
	case <-asked:
		return ctx.Err()
	case err := <-v.ended:
		cancel(nil)
		<-asked
		return fmt.Errorf("%s has ended before it listened: %w", v.Name, err)
	}
}

// close ends the function once its requests are answered or ctx has ended, which
// cuts them off. Nobody may bring it any more.
func (v *version) close(ctx context.Context) {
	v.front.Drain()
	ended := v.requests.ended()
	select {
	case <-ended:
	case <-ctx.Done():
	}
	_ = v.sandbox.Close(ctx) // its error is that ctx has ended
	<-ended
	if v.stopRuns != nil {
		v.stopRuns()
	}
	v.runs.Wait()
	_ = os.RemoveAll(v.folder)
}

// inFlight counts a version's requests.
type inFlight struct {
	count   atomic.Int64
	waiting sync.WaitGroup
}

func (f *inFlight) begin() {
	f.count.Add(1)
	f.waiting.Add(1)
}

func (f *inFlight) end() {
	f.count.Add(-1)
	f.waiting.Done()
}

// ended is closed when none is left. None may begin any more.
func (f *inFlight) ended() <-chan struct{} {
	done := make(chan struct{})
	go func() {
		f.waiting.Wait()
		close(done)
	}()
	return done
}

// Dir is a folder of this machine that a function finds at There.
type Dir struct {
	Here, There string
	ReadOnly    bool
}

// ParseDir reads HERE[:THERE][:ro]. Without THERE it is the same path, which must
// be absolute then.
func ParseDir(text string) (Dir, error) {
	rest, readOnly := strings.CutSuffix(text, ":ro")
	here, there, ok := strings.Cut(rest, ":")
	if !ok {
		there = here
	}
	if here == "" || !strings.HasPrefix(there, "/") {
		return Dir{}, fmt.Errorf("dir = %q, must be HERE[:/THERE][:ro]", text)
	}
	return Dir{Here: here, There: filepath.Clean(there), ReadOnly: readOnly}, nil
}
