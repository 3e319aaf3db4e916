package tools

import (
	"context"
	"os"
	"path/filepath"
)

// KIngress are the programs of Knative's conformance suite for ingresses.
type KIngress struct {
	// Suite is the test binary.
	Suite string
	// Images are the images that the suite runs in pods, as programs of this
	// machine, by the name that the suite gives to each.
	Images map[string]string
}

// kingressImages are the suite's images, each a main package.
var kingressImages = []string{"grpc-ping", "httpproxy", "retry", "runtime", "timeout", "wsserver"}

// KIngress builds the conformance suite, as Build does what a platform runs.
func (b *Builder) KIngress(ctx context.Context) (KIngress, error) {
	m, err := b.module("kingress", "", nil, nil)
	if err != nil {
		return KIngress{}, err
	}
	suite := KIngress{Suite: m.file("kingress.test"), Images: map[string]string{}}
	steps := []step{m.testStep("kingress.test", ".")}
	for _, image := range kingressImages {
		suite.Images[image] = m.file(image)
		steps = append(steps, m.step(image, "knative.dev/networking/test/test_images/"+image))
	}
	return suite, b.makeMissing(ctx, steps)
}

func (m *module) testStep(program, pkg string, flags ...string) step {
	return step{program, m.file(program), func(ctx context.Context) error { return m.buildTest(ctx, program, pkg, flags...) }}
}

// buildTest builds the tests of a package. What listens is patched in other
// programs of the module: a test doesn't.
func (m *module) buildTest(ctx context.Context, program, pkg string, flags ...string) error {
	if err := os.MkdirAll(m.out, 0o700); err != nil {
		return err
	}
	tmp := m.file("." + program + ".tmp")
	args := append([]string{"test", "-c", "-trimpath", "-buildvcs=false", "-ldflags", m.ldflags, "-o", tmp}, flags...)
	if _, err := m.goCommand(ctx, append(args, pkg)...); err != nil {
		return err
	}
	return os.Rename(tmp, m.file(program))
}

// sources returns the text of the module's own Go files.
func (m *module) sources() ([]byte, error) {
	files, err := filepath.Glob(filepath.Join(m.dir, "*.go"))
	if err != nil {
		return nil, err
	}
	var all []byte
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		all = append(all, text...)
	}
	return all, nil
}
