package ports

import (
	"fmt"
	"net"
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
	want := fmt.Sprintf("port %d on 127.0.0.1 is taken by another process: give another with --port gateway=NUMBER", p.Gateway)
	if err := p.Check(); err == nil || err.Error() != want {
		t.Errorf("Check = %v, want %q", err, want)
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
