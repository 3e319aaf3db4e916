package instance

import (
	"context"
	"fmt"

	"github.com/tetratelabs/wazero"
	wazeroapi "github.com/tetratelabs/wazero/api"

	"github.com/wisp-serving/wisp/runtime/meter"
)

// Link makes the host module that rewritten modules import in r.
func Link(ctx context.Context, r wazero.Runtime) error {
	i32 := []wazeroapi.ValueType{wazeroapi.ValueTypeI32}
	_, err := r.NewHostModuleBuilder(meter.HostModule).
		NewFunctionBuilder().WithGoFunction(wazeroapi.GoFunc(yield), i32, i32).Export(meter.Yield).
		Instantiate(ctx)
	if err != nil {
		return fmt.Errorf("make module %s: %w", meter.HostModule, err)
	}
	return nil
}

func yield(ctx context.Context, stack []uint64) {
	i := from(ctx)
	if i == nil {
		panic("a metered module was called without an instance.Instance")
	}
	switch uint32(stack[0]) {
	case meter.Refuel:
		stack[0] = uint64(i.refuel())
	case meter.Exhausted:
		stack[0] = uint64(i.moreStack())
	}
}
