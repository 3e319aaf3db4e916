package wasi

import (
	"bytes"
	"context"
	"io"
	"testing"

	"github.com/tetratelabs/wazero/experimental/sysfs"
)

// values are what guests like to get wrong: descriptors, addresses at the end of
// the memory of two pages, lengths.
var values = []uint64{
	0, 1, 2, 3, 4, 5, 6, 7, 8, 24, 48, 64, 512, 1024, 2048, 4095, 4096, 65536, 131071, 131072, 131073,
	1 << 20, 1<<31 - 1, 1 << 31, 1<<32 - 8, 1<<32 - 1, 1 << 40, 1<<63 - 1, 1 << 63, 1<<64 - 1,
}

// FuzzCalls lets a guest call whatever it likes: each call must come back, with
// an errno or with the guest's end, and the process must be able to close.
func FuzzCalls(f *testing.F) {
	for i := range functions {
		f.Add([]byte{byte(i), 3, 13, 1, 14, 1, 1, 1, 14, 14}, "sub")
		f.Add([]byte{byte(i), 4, 29, 29, 29, 29, 29, 29, 29, 29}, "../x")
	}
	f.Add([]byte{31, 3, 1, 12, 3, 1, 27, 27, 0, 14, 26, 4, 13, 1, 14, 42, 4, 0, 14}, "hello.txt")
	r := newRuntime(f)
	f.Fuzz(func(t *testing.T, calls []byte, path string) {
		ended, cancel := context.WithCancel(context.Background())
		cancel() // what would wait ends the guest
		l := NewListener(80)
		var p Process
		ctx := p.Start(ended, Config{
			Args: []string{"fuzz"}, Env: []string{"A=b"},
			Stdin: bytes.NewReader([]byte("input")), Stdout: io.Discard, Stderr: io.Discard,
			Mounts:    []Mount{{Path: "/", FS: sysfs.DirFS(prepare(t))}, {Path: "/ro", FS: EmptyFS(), ReadOnly: true}},
			Listeners: []*Listener{l},
		})
		defer p.Close()
		guest := instantiate(t, ctx, r, wazeroConfig())
		defer guest.Close(ctx)
		l.listen()
		if host, err := l.Dial(ctx); err == nil {
			_, _ = host.Write([]byte("bytes"))
			defer host.Close()
		}
		guest.put(512, path)
		guest.vector(2048, 100)
		for len(calls) > 0 {
			fn := functions[int(calls[0])%len(functions)]
			args := make([]uint64, len(fn.params))
			calls = calls[1:]
			for i := range args {
				if len(calls) > 0 {
					args[i] = values[int(calls[0])%len(values)]
					calls = calls[1:]
				}
			}
			if fn.noResult {
				continue // proc_exit does what it says
			}
			if _, ended := guest.call(fn.name, args...); ended {
				return
			}
		}
	})
}
