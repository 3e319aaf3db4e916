package build

import (
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	streamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// stdout returns an access log of one line of JSON for each request. Times are in
// milliseconds: duration is all of it, upstream what the backend took to its first
// byte. Its keys are part of what Wisp promises; docs/gateway.md has them.
func stdout(door string) *accesslogv3.AccessLog {
	line := map[string]string{
		"time":         "%START_TIME%",
		"listener":     door,
		"client":       "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
		"method":       "%REQ(:METHOD)%",
		"host":         "%REQ(:AUTHORITY)%",
		"path":         "%REQ(:PATH)%",
		"protocol":     "%PROTOCOL%",
		"status":       "%RESPONSE_CODE%",
		"details":      "%RESPONSE_CODE_DETAILS%",
		"flags":        "%RESPONSE_FLAGS%",
		"namespace":    "%REQ(KNATIVE-SERVING-NAMESPACE)%",
		"revision":     "%REQ(KNATIVE-SERVING-REVISION)%",
		"upstream":     "%UPSTREAM_HOST%",
		"attempts":     "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
		"received":     "%BYTES_RECEIVED%",
		"sent":         "%BYTES_SENT%",
		"duration":     "%DURATION%",
		"upstreamTime": "%COMMON_DURATION(US_TX_END:US_RX_BEG:ms)%",
		"requestId":    "%REQ(X-REQUEST-ID)%",
		"traceparent":  "%REQ(TRACEPARENT)%",
		"userAgent":    "%REQ(USER-AGENT)%",
	}
	fields := &structpb.Struct{Fields: make(map[string]*structpb.Value, len(line))}
	for key, value := range line {
		fields.Fields[key] = structpb.NewStringValue(value)
	}
	return &accesslogv3.AccessLog{
		Name: "envoy.access_loggers.stdout",
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: packed(&streamv3.StdoutAccessLog{
			AccessLogFormat: &streamv3.StdoutAccessLog_LogFormat{LogFormat: &corev3.SubstitutionFormatString{
				Format:          &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: fields},
				OmitEmptyValues: true,
			}},
		})},
	}
}
