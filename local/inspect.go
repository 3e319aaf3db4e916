package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/runtime"
	"github.com/wisp-serving/wisp/runtime/oci"
	"github.com/wisp-serving/wisp/runtime/outline"
)

// Report says what an image is.
type Report struct {
	// Reference is repository@digest, empty for a file.
	Reference string `json:"reference,omitempty"`
	// Size is that of the image in its registry, in bytes.
	Size int64 `json:"size"`
	// Module is the path of the module in the image, ModuleDigest and ModuleSize
	// are of its bytes.
	Module       string `json:"module"`
	ModuleDigest string `json:"moduleDigest"`
	ModuleSize   int64  `json:"moduleSize"`
	// ABI is how a function of this image is called unless its Service says
	// otherwise; ABIFrom is who says so.
	ABI     string            `json:"abi"`
	ABIFrom string            `json:"abiFrom"`
	Args    []string          `json:"args,omitempty"`
	Env     []string          `json:"env,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	// HasFiles is whether the image has files beside its module.
	HasFiles bool `json:"hasFiles"`
	// Outline is what the module says of itself.
	Outline outline.Module `json:"outline"`
	// Compile is how long it took to make the module ready to run, and Refused why
	// a node wouldn't run it, empty if it would.
	Compile Duration `json:"compile"`
	Refused string   `json:"refused,omitempty"`
}

// Duration is a time.Duration that is text in JSON.
type Duration time.Duration

// MarshalText returns the duration as in "24ms".
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = Duration(parsed)
	return err
}

func (d Duration) String() string { return time.Duration(d).Round(100 * time.Microsecond).String() }

// Inspect tries the image and says what it is. That a node would refuse it is no
// error but part of the Report.
func (m *Machine) Inspect(ctx context.Context, image oci.Image) (Report, error) {
	module, err := m.runtime.Module(image.ModuleDigest)
	if err != nil {
		return Report{}, err
	}
	r := Report{
		Size:         image.Size,
		Module:       image.ModulePath,
		ModuleDigest: image.ModuleDigest,
		ModuleSize:   image.ModuleSize,
		ABI:          abiOf(image, ""),
		ABIFrom:      "default",
		Args:         image.Args,
		Env:          image.Env,
		Labels:       image.Labels,
		HasFiles:     image.HasRoot,
	}
	if strings.Contains(image.Reference, "/") {
		r.Reference = image.Reference
	}
	if image.Labels[config.ABIAnnotation] != "" {
		r.ABIFrom = "label " + config.ABIAnnotation
	}
	began := time.Now()
	refused := m.Try(ctx, image, "")
	r.Compile = Duration(time.Since(began))
	switch {
	case errors.Is(refused, runtime.ErrUnusable):
		r.Refused = refused.Error()
	case refused != nil:
		return Report{}, refused
	}
	// What it can't read any more, the node has refused.
	r.Outline, _ = outline.Read(module)
	return r, nil
}

// Write prints the report for people.
func (r Report) Write(w io.Writer) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(out, name+"\t"+format+"\n", args...)
	}
	if r.Reference != "" {
		line("Reference", "%s", r.Reference)
		line("Image", "%s", sizeOf(r.Size))
	}
	line("Module", "%s, %s", printable(r.Module), sizeOf(r.ModuleSize))
	line("Digest", "%s", r.ModuleDigest)
	line("ABI", "%s (%s)", printable(r.ABI), r.ABIFrom)
	for _, key := range slices.Sorted(maps.Keys(r.Labels)) {
		line("Label", "%s=%s", printable(key), printable(r.Labels[key]))
	}
	if len(r.Args) > 0 {
		line("Arguments", "%q", r.Args)
	}
	for _, e := range r.Env {
		line("Variable", "%s", printable(e))
	}
	if r.HasFiles {
		line("Files", "others beside the module")
	}
	line("Memory", "%s", r.memory())
	line("Functions", "%d", r.Outline.Functions)
	for _, s := range r.Outline.Sections {
		line("Section", "%s, %s", printable(s.Name), sizeOf(int64(s.Size)))
	}
	for _, i := range r.Outline.Imports {
		line("Import", "%s.%s (%s)", printable(i.Module), printable(i.Name), i.Kind)
	}
	for _, e := range r.Outline.Exports {
		line("Export", "%s (%s)", printable(e.Name), e.Kind)
	}
	line("Compiled in", "%s", r.Compile)
	if r.Refused != "" {
		line("Refused", "%s", printable(r.Refused))
	}
	return out.Flush()
}

func (r Report) memory() string {
	switch m := r.Outline.Memory; {
	case m == nil:
		return "none of its own"
	case m.Max == 0:
		return sizeOf(m.Min) + " at first, no maximum"
	default:
		return sizeOf(m.Min) + " at first, " + sizeOf(m.Max) + " at most"
	}
}

// sizeOf writes a size as people read it.
func sizeOf(n int64) string {
	const unit = 1024
	switch {
	case n < unit:
		return fmt.Sprintf("%d B", n)
	case n < unit*unit:
		return fmt.Sprintf("%.1f KiB", float64(n)/unit)
	default:
		return fmt.Sprintf("%.1f MiB", float64(n)/unit/unit)
	}
}

// printable returns text without what a terminal would obey: names in an image are
// whatever its maker wrote.
func printable(text string) string {
	quoted := fmt.Sprintf("%q", text)
	if inner := quoted[1 : len(quoted)-1]; inner != text {
		return quoted
	}
	return text
}
