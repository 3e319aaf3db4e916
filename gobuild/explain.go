package gobuild

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// hints say what a guest can't do, by what go prints about code that does it.
var hints = []struct {
	printed *regexp.Regexp
	hint    string
}{
	{regexp.MustCompile(`C source files not allowed|import "C"|cgo: `), "a guest can't use cgo: look for a build tag of that package that leaves C out, or another package"},
	{regexp.MustCompile(`build constraints exclude all Go files`), "that package is made for other systems only: look for a build tag that leaves it out, or another package"},
	{regexp.MustCompile(`undefined: (syscall|unix|windows)\.`), "a guest has no system calls but WASI's: no processes, signals, sockets of its own, users or terminals"},
	{regexp.MustCompile(`missing function body|\.s: `), "a guest can't contain assembly of other machines: most packages have a tag such as purego or noasm"},
	{regexp.MustCompile(`unsupported GOOS/GOARCH pair wasip1/wasm`), "this Go is too old for WASI, it must be 1.21 or later"},
}

// explain returns the error of a build that printed text.
func explain(ctx context.Context, err error, printed string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if printed = strings.TrimSpace(printed); printed != "" {
		err = errors.New(printed)
	}
	for _, h := range hints {
		if h.printed.MatchString(printed) {
			return fmt.Errorf("build for WASI: %w\n%s", err, h.hint)
		}
	}
	return fmt.Errorf("build for WASI: %w", err)
}
