package volume

import (
	"bytes"
	"io"
	"io/fs"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Tree is a read-only file system in memory whose content changes as a whole: who
// has a file open reads on in it, who opens one next sees the new. It implements
// fs.FS and is safe for concurrent use.
type Tree struct {
	// read makes the content when it is first wanted; nil where Set does.
	read func() (map[string][]byte, error)

	mu      sync.Mutex // of reading
	content atomic.Pointer[content]
}

// content is a tree's files and folders by path, with "." for its root. It never
// changes.
type content struct {
	at    time.Time
	nodes map[string]*node
}

type node struct {
	name    string
	data    []byte
	folder  bool
	entries []string // of a folder, in order
}

// NewTree returns a tree that read fills when something of it is first looked at,
// or, without read, an empty one.
func NewTree(read func() (map[string][]byte, error)) *Tree {
	t := &Tree{read: read}
	if read == nil {
		t.Set(nil)
	}
	return t
}

// Set replaces the content by files, of which the keys are paths.
func (t *Tree) Set(files map[string][]byte) {
	c := &content{at: time.Now(), nodes: map[string]*node{".": {name: ".", folder: true}}}
	if old := t.content.Load(); old != nil && old.same(files) {
		return
	}
	for name, data := range files {
		if fs.ValidPath(name) && name != "." {
			c.add(name, &node{data: data})
		}
	}
	for _, n := range c.nodes {
		slices.Sort(n.entries)
	}
	t.content.Store(c)
}

func (c *content) same(files map[string][]byte) bool {
	count := 0
	for name, n := range c.nodes {
		if n.folder {
			continue
		}
		count++
		if data, ok := files[name]; !ok || !bytes.Equal(data, n.data) {
			return false
		}
	}
	return count == len(files)
}

// add puts a node into its folder, which it makes if need be.
func (c *content) add(name string, n *node) {
	if _, ok := c.nodes[name]; ok {
		return
	}
	n.name = path.Base(name)
	c.nodes[name] = n
	dir := path.Dir(name)
	c.add(dir, &node{folder: true})
	if parent := c.nodes[dir]; parent.folder {
		parent.entries = append(parent.entries, n.name)
	}
}

// Read is whether the tree has content: one that is filled when it is looked at
// may not have been.
func (t *Tree) Read() bool { return t.content.Load() != nil }

// IsFile is whether there is a file of that name now.
func (t *Tree) IsFile(name string) bool {
	c := t.content.Load()
	if c == nil {
		return false
	}
	n, ok := c.nodes[name]
	return ok && !n.folder
}

// current returns the content, read if it wasn't yet. One that can't be read is
// tried again by the next who looks.
func (t *Tree) current() (*content, error) {
	if c := t.content.Load(); c != nil {
		return c, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if c := t.content.Load(); c != nil {
		return c, nil
	}
	files, err := t.read()
	if err != nil {
		return nil, err
	}
	t.Set(files)
	return t.content.Load(), nil
}

// Open implements fs.FS.
func (t *Tree) Open(name string) (fs.File, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	c, err := t.current()
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	n, ok := c.nodes[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	info := info{n, c.at}
	if n.folder {
		return &folder{info: info, name: name, content: c}, nil
	}
	return &file{info: info, Reader: bytes.NewReader(n.data)}, nil
}

// info is a node as fs.FileInfo and fs.DirEntry.
type info struct {
	node *node
	at   time.Time
}

func (i info) Name() string               { return i.node.name }
func (i info) Size() int64                { return int64(len(i.node.data)) }
func (i info) ModTime() time.Time         { return i.at }
func (i info) IsDir() bool                { return i.node.folder }
func (i info) Sys() any                   { return nil }
func (i info) Type() fs.FileMode          { return i.Mode().Type() }
func (i info) Info() (fs.FileInfo, error) { return i, nil }

func (i info) Mode() fs.FileMode {
	if i.node.folder {
		return fs.ModeDir | 0o555
	}
	return 0o444
}

type file struct {
	info
	*bytes.Reader
}

func (f *file) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *file) Size() int64                { return f.info.Size() }
func (f *file) Close() error               { return nil }

type folder struct {
	info
	name    string
	content *content
	next    int
}

func (f *folder) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *folder) Close() error               { return nil }

func (f *folder) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: f.name, Err: fs.ErrInvalid}
}

// ReadDir implements fs.ReadDirFile.
func (f *folder) ReadDir(n int) ([]fs.DirEntry, error) {
	left := f.node.entries[f.next:]
	if n > 0 {
		if len(left) == 0 {
			return nil, io.EOF
		}
		left = left[:min(n, len(left))]
	}
	entries := make([]fs.DirEntry, 0, len(left))
	for _, name := range left {
		entries = append(entries, info{f.content.nodes[path.Join(f.name, name)], f.at})
	}
	f.next += len(left)
	return entries, nil
}
