// Package compile makes machine code of modules that nobody trusts.
//
// A module can be made to take the compiler hours, or all memory. So a node
// compiles in a child process of its own binary (Child), which has limits of its
// own and dies of them alone; what it leaves is a folder with the rewritten
// module and the compiled one, for the node to load. Here does the same in the
// calling process, for tools and tests that trust their modules.
//
// Both are a rewriting by runtime/meter before anything else: nothing runs
// unmetered. The package starts no goroutine that outlives a call.
package compile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/tetratelabs/wazero"

	"github.com/wisp-serving/wisp/runtime/api"
	"github.com/wisp-serving/wisp/runtime/meter"
)

const (
	// ModuleFile is where the rewritten module is in the folder that is made.
	ModuleFile = "module.wasm"
	// CodeDir is a wazero compilation cache in it, with that module alone.
	CodeDir = "code"
)

// Stack is how much native stack an instance has before it must ask for more, in
// bytes.
const Stack = 32 << 10

// Version changes whenever the same module comes out differently.
const Version = "meter-" + meter.Version + "-stack-32K"

// RuntimeConfig is how a wazero.Runtime must be made to run what was compiled
// here, apart from its compilation cache.
func RuntimeConfig() wazero.RuntimeConfig {
	return wazero.NewRuntimeConfigCompiler().
		// The compiler's reader would parse whatever a guest's DWARF sections hold.
		WithDebugInfoEnabled(false)
}

// Here rewrites and compiles module into the folder out, in this process. What
// can't be is api.ErrUnusable. ctx isn't looked at: compiling can't be cut short.
func Here(_ context.Context, module []byte, out string) error {
	rewritten, err := meter.Rewrite(module, meter.Options{Stack: Stack})
	if err != nil {
		return api.Unusable(err)
	}
	if err := os.WriteFile(filepath.Join(out, ModuleFile), rewritten, 0o600); err != nil {
		return err
	}
	return compile(rewritten, filepath.Join(out, CodeDir))
}

// compile fills the cache in dir. It turns a panic of the compiler, which is a
// fault that this module has found in it, into an error.
func compile(module []byte, dir string) (err error) {
	ctx := context.Background() // compiling can't be cut short
	cache, err := wazero.NewCompilationCacheWithDir(dir)
	if err != nil {
		return err
	}
	r := wazero.NewRuntimeWithConfig(ctx, RuntimeConfig().WithCompilationCache(cache))
	defer func() {
		if p := recover(); p != nil {
			err = api.Unusable(fmt.Errorf("the compiler panicked: %v", p))
		}
		err = errors.Join(err, r.Close(ctx), cache.Close(ctx))
	}()
	if _, err := r.CompileModule(ctx, module); err != nil {
		return unusable(err)
	}
	return nil
}
