package gobuild

import (
	"bytes"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
)

// listen is added to package net.
//
//go:embed listen.go.txt
var listen []byte

// change is one edit of a file of the standard library.
type change struct {
	file string // under GOROOT/src
	// at is found once in the file, on the line after which insert comes.
	at     *regexp.Regexp
	insert string
	// needs is what insert refers to; it must be in one of the package's files.
	needs map[string]string
}

var changes = []change{
	{
		file: "net/net_fake.go",
		at:   regexp.MustCompile(`(?m)^func socket\(ctx context\.Context, net string, family, sotype, proto int, ipv6only bool, laddr, raddr sockaddr, .*\) \(\*netFD, error\) \{\n`),
		insert: `	if raddr == nil {
		if fd, err := wispListener(sotype, laddr); fd != nil || err != nil {
			return fd, err
		}
	}
`,
		needs: map[string]string{
			"net/fd_fake.go": "func newFD(net string, sysfd int) *netFD {",
		},
	},
	{
		// Go's wasip1 waits for signals, which never come, in a loop that takes a
		// whole core and keeps the scheduler from looking at the network.
		file: "os/signal/signal_unix.go",
		at:   regexp.MustCompile(`(?m)^func init\(\) \{\n\twatchSignalLoop = loop\n`),
		insert: `	watchSignalLoop = nil
`,
	},
	{
		file: "syscall/syscall_wasip1.go",
		at:   regexp.MustCompile(`(?m)^func Sysctl\(key string\) \(string, error\) \{\n`),
		insert: `	if name, ok := Getenv("HOSTNAME"); ok && key == "kern.hostname" {
		return name, nil
	}
`,
	},
}

// overlay returns the files of the standard library in goroot that differ in a
// guest, by their paths.
func overlay(goroot string) (map[string][]byte, error) {
	src := filepath.Join(goroot, "src")
	files := map[string][]byte{filepath.Join(src, "net", "wisp_listen_wasip1.go"): listen}
	for _, c := range changes {
		content, err := c.apply(src)
		if err != nil {
			return nil, err
		}
		files[filepath.Join(src, c.file)] = content
	}
	return files, nil
}

// apply returns the content of the changed file.
func (c change) apply(src string) ([]byte, error) {
	path := filepath.Join(src, c.file)
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("this Go isn't known, it must be 1.21 or later: %w", err)
	}
	found := c.at.FindAllIndex(content, -1)
	if len(found) != 1 {
		return nil, fmt.Errorf("this Go isn't known: %s has %d places of the form %s, must be 1", path, len(found), c.at)
	}
	for file, text := range c.needs {
		other, err := os.ReadFile(filepath.Join(src, file))
		if err != nil || !bytes.Contains(other, []byte(text)) {
			return nil, fmt.Errorf("this Go isn't known: %s has no %q", filepath.Join(src, file), text)
		}
	}
	at := found[0][1]
	return bytes.Join([][]byte{content[:at], content[at:]}, []byte(c.insert)), nil
}
