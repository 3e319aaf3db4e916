package native

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// The kubelet of a real node waits whole seconds between probes; a test has
// better things to do.
const (
	probeInterval = 50 * time.Millisecond
	probeTimeout  = time.Second
)

// awaitProbe probes until it succeeds, and reports false if ctx or the process
// ends first. Once ready, a pod stays it.
func awaitProbe(ctx context.Context, probe *corev1.Probe, pr *process) bool {
	ticker := time.NewTicker(probeInterval)
	defer ticker.Stop()
	for {
		if try(ctx, probe, pr.address) == nil {
			return true
		}
		select {
		case <-ticker.C:
		case <-pr.exited:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

func try(ctx context.Context, probe *corev1.Probe, address string) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	switch {
	case probe.HTTPGet != nil:
		return get(ctx, "http://"+hostPort(address, probe.HTTPGet.Port)+probe.HTTPGet.Path)
	case probe.TCPSocket != nil:
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", hostPort(address, probe.TCPSocket.Port))
		if err != nil {
			return err
		}
		return conn.Close()
	}
	return nil
}

func get(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	// By this name images know a probe from a request.
	req.Header.Set("User-Agent", "kube-probe/1.35")
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		return fmt.Errorf("GET %s: status %s", url, resp.Status)
	}
	return nil
}

func hostPort(address string, port intstr.IntOrString) string {
	return net.JoinHostPort(address, strconv.Itoa(port.IntValue()))
}
