package ports

import (
	"fmt"
	"net"
	"os"
	"reflect"
	"strings"
	"testing"
)

func TestSettings_lists_every_port_by_its_json_name(t *testing.T) {
	p := Default()
	fields := reflect.TypeFor[Ports]()
	settings := p.Settings()
	if len(settings) != fields.NumField() {
		t.Fatalf("%d settings, want %d, one for each field", len(settings), fields.NumField())
	}
	for i, s := range settings {
		if want := fields.Field(i).Tag.Get("json"); s.Name != want {
			t.Errorf("setting %d = %s, want %s", i, s.Name, want)
		}
		if want := reflect.ValueOf(&p).Elem().Field(i).Addr().Interface(); s.Number != want {
			t.Errorf("setting %s is another field's", s.Name)
		}
	}
}

func TestCheck_names_a_taken_port_and_its_setting(t *testing.T) {
	p := free(t)
	l, err := net.Listen("tcp", Loopback+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p.Gateway = l.Addr().(*net.TCPAddr).Port
	self := fmt.Sprintf("process %d (ports.test)", os.Getpid())
	want := fmt.Sprintf("port %d on 127.0.0.1 is taken by %s: give another with --port gateway=NUMBER", p.Gateway, self)
	if err := p.Check(); err == nil || err.Error() != want {
		t.Errorf("Check = %v, want %q", err, want)
	}
}

// A socket that listens on all interfaces, IPv4 and IPv6, takes the port of each.
func TestCheckFree_names_who_listens_everywhere(t *testing.T) {
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	self := fmt.Sprintf("is taken by process %d (ports.test)", os.Getpid())
	if err := CheckFree("127.0.0.3", l.Addr().(*net.TCPAddr).Port); err == nil || !strings.Contains(err.Error(), self) {
		t.Errorf("CheckFree = %v, want that it %s", err, self)
	}
}

func TestListener_finds_a_socket_among_others(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1388 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0000000000000000 100 0 0 10 0
   1: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 00000000  1001        0 4712 1 0000000000000000 100 0 0 10 0
   2: 0101007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1002        0 4713 1 0000000000000000 100 0 0 10 0
   3: 00000000:2328 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1003        0 4714 1 0000000000000000 100 0 0 10 0
   4: short
`
	const table6 = `  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:2329 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1004        0 4715 1 0000000000000000 100 0 0 10 0
   1: 0000000000000000FFFF00000100007F:232A 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1005        0 4716 1 0000000000000000 100 0 0 10 0
`
	tests := map[string]struct {
		host  string
		port  int
		inode string
	}{
		"its_own_address":      {"127.0.0.1", 5000, "4711"},
		"only_a_connection":    {"127.0.0.1", 8080, ""},
		"another_address":      {"127.0.1.1", 8080, "4713"},
		"all_addresses":        {"127.0.0.1", 9000, "4714"},
		"all_IPv6_addresses":   {"127.0.0.1", 9001, "4715"},
		"an_IPv4_address_as_6": {"127.0.0.1", 9002, "4716"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := socket{}
			for _, text := range []string{table, table6} {
				if s, ok := listener(strings.NewReader(text), tt.host, tt.port); ok {
					got = s
				}
			}
			if got.inode != tt.inode {
				t.Errorf("got socket %+v, want inode %q", got, tt.inode)
			}
		})
	}
}

func TestCheck_names_settings_that_share_a_port(t *testing.T) {
	p := free(t)
	p.Webhook = p.Etcd
	want := fmt.Sprintf("port webhook = %d, must be another than that of etcd", p.Etcd)
	if err := p.Check(); err == nil || err.Error() != want {
		t.Errorf("Check = %v, want %q", err, want)
	}
}

func TestFree_is_free(t *testing.T) {
	p := free(t)
	if err := p.Check(); err != nil {
		t.Error(err)
	}
}

func TestSet(t *testing.T) {
	tests := map[string]struct {
		name   string
		number int
		want   string
	}{
		"known":    {"gateway", 8090, ""},
		"unknown":  {"gatewey", 8090, "port gatewey: there is no such setting"},
		"too_low":  {"gateway", 0, "port gateway = 0, must be in [1; 65535]"},
		"too_high": {"gateway", 65536, "port gateway = 65536, must be in [1; 65535]"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := Default()
			err := p.Set(tt.name, tt.number)
			if tt.want == "" {
				if err != nil || p.Gateway != tt.number {
					t.Errorf("Set = %v and port %d, want %d", err, p.Gateway, tt.number)
				}
				return
			}
			if err == nil || err.Error() != tt.want {
				t.Errorf("Set = %v, want %q", err, tt.want)
			}
		})
	}
}

func TestFreeHost_is_loopback_and_another_each_time(t *testing.T) {
	seen := map[string]bool{}
	for range 3 {
		host, err := FreeHost(8012, 10250)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(host, "127.") || seen[host] {
			t.Errorf("FreeHost = %s after %v, want another of 127.0.0.0/8", host, seen)
		}
		seen[host] = true
	}
}

func free(t *testing.T) Ports {
	t.Helper()
	p, err := Free()
	if err != nil {
		t.Fatal(err)
	}
	return p
}
