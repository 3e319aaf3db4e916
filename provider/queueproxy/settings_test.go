package queueproxy

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func vars(pairs ...string) []corev1.EnvVar {
	var env []corev1.EnvVar
	for i := 0; i < len(pairs); i += 2 {
		env = append(env, corev1.EnvVar{Name: pairs[i], Value: pairs[i+1]})
	}
	return env
}

func TestParse(t *testing.T) {
	tcp := func(port int32) *corev1.Probe {
		return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Host: "127.0.0.1", Port: intstr.FromInt32(port)}}}
	}
	tests := []struct {
		name string
		env  []corev1.EnvVar
		want Settings
	}{{
		name: "nothing_is_set",
	}, {
		name: "what_Knative_sets",
		env: vars("SERVING_NAMESPACE", "ns", "SERVING_SERVICE", "svc", "SERVING_CONFIGURATION", "cfg", "SERVING_REVISION", "rev",
			"CONTAINER_CONCURRENCY", "3", "REVISION_TIMEOUT_SECONDS", "300", "REVISION_RESPONSE_START_TIMEOUT_SECONDS", "5",
			"REVISION_IDLE_TIMEOUT_SECONDS", "0", "USER_PORT", "8080", "ENABLE_HTTP_FULL_DUPLEX", "true",
			"ENABLE_MULTI_CONTAINER_PROBES", "false", "ENABLE_HTTP2_AUTO_DETECTION", "true",
			"SERVING_READINESS_PROBE", `{"tcpSocket":{"port":8080,"host":"127.0.0.1"}}`,
			"OBSERVABILITY_CONFIG", `{"enableRequestLog":true,"requestLogTemplate":"{{.Request.Method}}","enableProbeRequestLog":true}`),
		want: Settings{
			Namespace: "ns", Service: "svc", Configuration: "cfg", Revision: "rev",
			Concurrency: 3, Timeout: 300 * time.Second, ResponseStartTimeout: 5 * time.Second, UserPort: 8080,
			FullDuplex: true, DetectHTTP2: true, Readiness: []*corev1.Probe{tcp(8080)},
			RequestLog: "{{.Request.Method}}", LogProbes: true,
		},
	}, {
		name: "probes_of_several_containers",
		env:  vars("ENABLE_MULTI_CONTAINER_PROBES", "true", "SERVING_READINESS_PROBE", `[{"tcpSocket":{"port":8080,"host":"127.0.0.1"}},null]`),
		want: Settings{Readiness: []*corev1.Probe{tcp(8080)}},
	}, {
		name: "a_template_without_a_request_log",
		env:  vars("OBSERVABILITY_CONFIG", `{"requestLogTemplate":"{{.Request.Method}}"}`),
	}}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := Parse(test.env)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("settings (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseNamesEveryBadVariable(t *testing.T) {
	_, err := Parse(vars("CONTAINER_CONCURRENCY", "many", "REVISION_TIMEOUT_SECONDS", "-1", "USER_PORT", "8080",
		"ENABLE_HTTP_FULL_DUPLEX", "perhaps", "SERVING_READINESS_PROBE", "{", "OBSERVABILITY_CONFIG", `{"enableRequestLog":true,"requestLogTemplate":"{{"}`))
	if err == nil {
		t.Fatal("got no error")
	}
	for _, want := range []string{
		`CONTAINER_CONCURRENCY = "many", must be a number`, `REVISION_TIMEOUT_SECONDS = "-1", must be a number`,
		`ENABLE_HTTP_FULL_DUPLEX = "perhaps", must be true or false`, "SERVING_READINESS_PROBE", "OBSERVABILITY_CONFIG",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q:\n%v", want, err)
		}
	}
	if strings.Contains(err.Error(), "USER_PORT") {
		t.Errorf("the error names a variable that is right:\n%v", err)
	}
}
