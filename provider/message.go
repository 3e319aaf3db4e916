package provider

import (
	"path"

	"github.com/tetratelabs/wazero/experimental/sys"
	corev1 "k8s.io/api/core/v1"

	"github.com/wisp-serving/wisp/provider/podlife"
	"github.com/wisp-serving/wisp/runtime/memfs"
	"github.com/wisp-serving/wisp/runtime/sandbox"
	"github.com/wisp-serving/wisp/runtime/wasi"
)

// How much of a termination message is shown, and how much of its log a container
// that has failed without one shows instead, in bytes and lines (a kubelet's
// bounds: kubernetes pkg/kubelet/container/runtime.go).
const (
	maxMessage    = 4096
	fallbackLines = 80
	fallbackBytes = 2048
)

// maxMessageFile is how much a guest may write to its termination message's file,
// of which the end counts.
const maxMessageFile = 64 << 10

// messageName is the file's in its file system.
const messageName = "message"

// message is the file into which one run of a container may write what its status
// is to show when it has ended. It is in memory, and safe for concurrent use.
type message struct {
	fs   memfs.FS
	held int64
}

func newMessage() (*message, error) {
	m := new(message)
	m.fs.Init(m)
	// It is there from the start: a program may open it without creating it.
	f, errno := m.fs.OpenFile(messageName, sys.O_WRONLY|sys.O_CREAT, 0o600)
	if errno != 0 {
		return nil, errno
	}
	if errno := f.Close(); errno != 0 {
		return nil, errno
	}
	return m, nil
}

// Hold implements memfs.Room, which calls it one at a time.
func (m *message) Hold(bytes int64) bool {
	if bytes > 0 && m.held+bytes > maxMessageFile {
		return false
	}
	m.held += bytes
	return true
}

// at mounts the file at the container's terminationMessagePath.
func (m *message) at(messagePath string) sandbox.File {
	return sandbox.File{At: path.Clean("/" + messagePath), File: wasi.File{FS: &m.fs, Path: messageName}}
}

// text is the end of what was written. A nil message is empty.
func (m *message) text() string {
	if m == nil {
		return ""
	}
	f, errno := m.fs.OpenFile(messageName, sys.O_RDONLY, 0)
	if errno != 0 {
		return ""
	}
	defer func() { _ = f.Close() }() // it was only read
	st, errno := f.Stat()
	if errno != 0 {
		return ""
	}
	b := make([]byte, min(st.Size, maxMessage))
	n, errno := f.Pread(b, st.Size-int64(len(b)))
	if errno != 0 {
		return ""
	}
	return cut(string(b[:n]))
}

// explain adds to how a run has ended what the container itself says of it: its
// termination message, or the end of its log where the policy says so.
func (c *container) explain(f *function, exit podlife.Exit) podlife.Exit {
	text := f.message.text()
	if text == "" && exit.Message == "" && exit.Code != 0 && c.spec.TerminationMessagePolicy == corev1.TerminationMessageFallbackToLogsOnError {
		text = c.pod.provider.logOf(c.pod.uid, c.spec.Name).Tail(fallbackLines, fallbackBytes)
	}
	switch {
	case text == "":
	case exit.Message == "":
		exit.Message = text
	default:
		exit.Message += ": " + text
	}
	return exit
}
