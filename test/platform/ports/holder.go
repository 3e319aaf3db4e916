package ports

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// holder says who listens on a port, as well as one user may see it: another
// user's process shows its user only.
func holder(host string, port int) string {
	s, ok := findListener(host, port)
	if !ok {
		return "another process"
	}
	if pid, name := s.process(); pid != "" {
		return fmt.Sprintf("process %s (%s)", pid, name)
	}
	if u, err := user.LookupId(s.uid); err == nil {
		return "a process of user " + u.Username
	}
	return "a process of user id " + s.uid
}

// socket is one of the kernel's listening TCP sockets.
type socket struct{ uid, inode string }

func findListener(host string, port int) (socket, bool) {
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(table)
		if err != nil {
			continue // without IPv6 there is no such table
		}
		s, ok := listener(f, host, port)
		f.Close()
		if ok {
			return s, true
		}
	}
	return socket{}, false
}

// The columns of /proc/net/tcp that matter here, and the state that means
// listening.
const (
	columnLocal = 1
	columnState = 3
	columnUID   = 7
	columnInode = 9
	listening   = "0A"
)

// listener finds in a table like /proc/net/tcp who listens on a port of host,
// or of all addresses.
func listener(table io.Reader, host string, port int) (socket, bool) {
	want, err := netip.ParseAddr(host)
	if err != nil {
		return socket{}, false
	}
	lines := bufio.NewScanner(table)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) <= columnInode || fields[columnState] != listening {
			continue
		}
		at, ok := parseAddrPort(fields[columnLocal])
		if ok && int(at.Port()) == port && (at.Addr() == want || at.Addr().IsUnspecified()) {
			return socket{fields[columnUID], fields[columnInode]}, true
		}
	}
	return socket{}, false
}

// parseAddrPort reads an address as the kernel shows it: in hexadecimal, as
// 32-bit words of the machine's byte order, which is little-endian wherever
// Envoy runs.
func parseAddrPort(text string) (netip.AddrPort, bool) {
	address, port, ok := strings.Cut(text, ":")
	if !ok {
		return netip.AddrPort{}, false
	}
	bytes, err := hex.DecodeString(address)
	if err != nil {
		return netip.AddrPort{}, false
	}
	for word := range slices.Chunk(bytes, 4) {
		slices.Reverse(word)
	}
	addr, ok := netip.AddrFromSlice(bytes)
	number, err := strconv.ParseUint(port, 16, 16)
	return netip.AddrPortFrom(addr.Unmap(), uint16(number)), ok && err == nil
}

// process finds who has the socket open, among the processes that this user may
// look into; "" if none.
func (s socket) process() (pid, name string) {
	link := "socket:[" + s.inode + "]"
	descriptors, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return "", ""
	}
	for _, fd := range descriptors {
		if to, err := os.Readlink(fd); err != nil || to != link {
			continue // gone, or another
		}
		dir := filepath.Dir(filepath.Dir(fd))
		comm, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil {
			continue
		}
		return filepath.Base(dir), strings.TrimSpace(string(comm))
	}
	return "", ""
}
