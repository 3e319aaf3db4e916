package wasi

import "github.com/tetratelabs/wazero/api"

func argsSizesGet(p *Process, mem api.Memory, a []uint64) errno {
	return putSizes(mem, p.cfg.Args, uint32(a[0]), uint32(a[1]))
}

func argsGet(p *Process, mem api.Memory, a []uint64) errno {
	return putStrings(mem, p.cfg.Args, uint32(a[0]), uint32(a[1]))
}

func environSizesGet(p *Process, mem api.Memory, a []uint64) errno {
	return putSizes(mem, p.cfg.Env, uint32(a[0]), uint32(a[1]))
}

func environGet(p *Process, mem api.Memory, a []uint64) errno {
	return putStrings(mem, p.cfg.Env, uint32(a[0]), uint32(a[1]))
}

// putSizes writes the number of list and the bytes of its strings, each with a
// zero byte at its end.
func putSizes(mem api.Memory, list []string, number, size uint32) errno {
	bytes := 0
	for _, s := range list {
		bytes += len(s) + 1
	}
	if !mem.WriteUint32Le(number, uint32(len(list))) || !mem.WriteUint32Le(size, uint32(bytes)) {
		return eFAULT
	}
	return ok
}

// putStrings writes the strings of list to text, each with a zero byte at its
// end, and their addresses to pointers.
func putStrings(mem api.Memory, list []string, pointers, text uint32) errno {
	for _, s := range list {
		end := text + uint32(len(s))
		if end < text || !mem.WriteUint32Le(pointers, text) || !mem.WriteString(text, s) || !mem.WriteByte(end, 0) {
			return eFAULT
		}
		pointers, text = pointers+4, end+1
	}
	return ok
}
