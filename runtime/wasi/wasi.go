// Package wasi is WASI preview 1 as wazero's guests call it: the host module
// wasi_snapshot_preview1.
//
// The module is made once per wazero runtime and has no state. A Process is the
// state of one instance: its arguments, streams, descriptors and sockets. Host
// functions find it in the context of the call that runs the guest, so whoever
// instantiates or calls a guest passes the context that Process.Context returns.
//
// Guests are hostile: no pointer, length, descriptor or number that they pass is
// believed, and what a call allocates doesn't follow from them without bound.
// Every call that waits ends with the context, on the guest's own goroutine; the
// package starts none, and nothing of a Process is touched by another one but
// through the Listeners, whose connections are pipes in memory.
//
// See ../RATIONALE.md "Why isn't it wazero's WASI?".
package wasi

import (
	"context"
	"fmt"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

// ModuleName is what guests import the functions from.
const ModuleName = "wasi_snapshot_preview1"

// Instantiate adds the host module to r.
func Instantiate(ctx context.Context, r wazero.Runtime) error {
	b := r.NewHostModuleBuilder(ModuleName)
	for _, f := range functions {
		results := []api.ValueType{api.ValueTypeI32}
		if f.noResult {
			results = nil
		}
		b.NewFunctionBuilder().WithName(f.name).WithGoModuleFunction(f.host(), types(f.params), results).Export(f.name)
	}
	if _, err := b.Instantiate(ctx); err != nil {
		return fmt.Errorf("make %s: %w", ModuleName, err)
	}
	return nil
}

// function is one function of the module. Its arguments come as they are on the
// stack, those that are 32 bits wide in the low half.
type function struct {
	name     string
	params   string // i or I for each: 32 or 64 bits
	noResult bool
	call     func(p *Process, mem api.Memory, args []uint64) errno
}

func (f function) host() api.GoModuleFunc {
	call := f.call
	if f.noResult {
		return func(ctx context.Context, m api.Module, stack []uint64) {
			call(processOf(ctx), m.Memory(), stack)
		}
	}
	return func(ctx context.Context, m api.Module, stack []uint64) {
		stack[0] = uint64(call(processOf(ctx), m.Memory(), stack))
	}
}

func types(params string) []api.ValueType {
	list := make([]api.ValueType, len(params))
	for i, c := range params {
		list[i] = api.ValueTypeI32
		if c == 'I' {
			list[i] = api.ValueTypeI64
		}
	}
	return list
}

// functions are all 46 of preview 1.
var functions = []function{
	{name: "args_get", params: "ii", call: argsGet},
	{name: "args_sizes_get", params: "ii", call: argsSizesGet},
	{name: "environ_get", params: "ii", call: environGet},
	{name: "environ_sizes_get", params: "ii", call: environSizesGet},
	{name: "clock_res_get", params: "ii", call: clockResGet},
	{name: "clock_time_get", params: "iIi", call: clockTimeGet},
	{name: "fd_advise", params: "iIIi", call: fdAdvise},
	{name: "fd_allocate", params: "iII", call: fdAllocate},
	{name: "fd_close", params: "i", call: fdClose},
	{name: "fd_datasync", params: "i", call: fdDatasync},
	{name: "fd_fdstat_get", params: "ii", call: fdFdstatGet},
	{name: "fd_fdstat_set_flags", params: "ii", call: fdFdstatSetFlags},
	{name: "fd_fdstat_set_rights", params: "iII", call: notSupported}, // rights are gone from WASI
	{name: "fd_filestat_get", params: "ii", call: fdFilestatGet},
	{name: "fd_filestat_set_size", params: "iI", call: fdFilestatSetSize},
	{name: "fd_filestat_set_times", params: "iIIi", call: fdFilestatSetTimes},
	{name: "fd_pread", params: "iiiIi", call: fdPread},
	{name: "fd_prestat_get", params: "ii", call: fdPrestatGet},
	{name: "fd_prestat_dir_name", params: "iii", call: fdPrestatDirName},
	{name: "fd_pwrite", params: "iiiIi", call: fdPwrite},
	{name: "fd_read", params: "iiii", call: fdRead},
	{name: "fd_readdir", params: "iiiIi", call: fdReaddir},
	{name: "fd_renumber", params: "ii", call: fdRenumber},
	{name: "fd_seek", params: "iIii", call: fdSeek},
	{name: "fd_sync", params: "i", call: fdSync},
	{name: "fd_tell", params: "ii", call: fdTell},
	{name: "fd_write", params: "iiii", call: fdWrite},
	{name: "path_create_directory", params: "iii", call: pathCreateDirectory},
	{name: "path_filestat_get", params: "iiiii", call: pathFilestatGet},
	{name: "path_filestat_set_times", params: "iiiiIIi", call: pathFilestatSetTimes},
	{name: "path_link", params: "iiiiiii", call: pathLink},
	{name: "path_open", params: "iiiiiIIii", call: pathOpen},
	{name: "path_readlink", params: "iiiiii", call: pathReadlink},
	{name: "path_remove_directory", params: "iii", call: pathRemoveDirectory},
	{name: "path_rename", params: "iiiiii", call: pathRename},
	{name: "path_symlink", params: "iiiii", call: pathSymlink},
	{name: "path_unlink_file", params: "iii", call: pathUnlinkFile},
	{name: "poll_oneoff", params: "iiii", call: pollOneoff},
	{name: "proc_exit", params: "i", noResult: true, call: procExit},
	{name: "proc_raise", params: "i", call: notSupported}, // there are no signals
	{name: "sched_yield", params: "", call: schedYield},
	{name: "random_get", params: "ii", call: randomGet},
	{name: "sock_accept", params: "iii", call: sockAccept},
	{name: "sock_recv", params: "iiiiii", call: sockRecv},
	{name: "sock_send", params: "iiiii", call: sockSend},
	{name: "sock_shutdown", params: "ii", call: sockShutdown},
}

func notSupported(*Process, api.Memory, []uint64) errno { return eNOSYS }
