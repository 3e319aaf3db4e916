{{/* The one image. */}}
{{- define "wisp.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* Labels of everything of a role: (dict "root" $ "role" "node"). */}}
{{- define "wisp.labels" -}}
{{ include "wisp.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{/* Labels that pods are selected by. */}}
{{- define "wisp.selector" -}}
app.kubernetes.io/name: wisp
app.kubernetes.io/component: {{ .role }}
{{- end }}

{{/* What the Pod Security Standard "restricted" asks of a pod. */}}
{{- define "wisp.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* The same of a container. */}}
{{- define "wisp.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Probes of a role that serves its health at a port named health. */}}
{{- define "wisp.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: health}
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /healthz, port: health}
  periodSeconds: 10
  timeoutSeconds: 5
readinessProbe:
  httpGet: {path: /readyz, port: health}
  periodSeconds: 2
  timeoutSeconds: 5
{{- end }}

{{/* Where a role's pods go: its nodeSelector, tolerations and affinity. */}}
{{- define "wisp.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The settings of a role, as its file. */}}
{{- define "wisp.nodeSettings" -}}
{{- $own := dict
  "healthAddress" "0.0.0.0:9440"
  "autoscalers" (list (printf "ws://wisp-autoscaler.%s.svc:9460" .Release.Namespace))
  "capacity" .Values.node.capacity -}}
{{- if include "wisp.kubeletClientCA" . -}}
{{- $_ := set $own "kubelet" (dict "clientCA" "/etc/wisp/kubelet-client-ca.crt") -}}
{{- end -}}
{{- toYaml (mergeOverwrite $own (deepCopy .Values.node.settings)) -}}
{{- end }}

{{- define "wisp.gatewaySettings" -}}
{{- $own := dict
  "healthAddress" "0.0.0.0:9450"
  "envoy" (dict "httpAddress" "0.0.0.0:8080" "httpsAddress" "0.0.0.0:8443" "internalAddress" "0.0.0.0:8081" "internalHTTPSAddress" "0.0.0.0:8444")
  "externalDomain" (printf "wisp-gateway.%s.svc.cluster.local" .Release.Namespace)
  "internalDomain" (printf "wisp-gateway-internal.%s.svc.cluster.local" .Release.Namespace)
  "leaseNamespace" .Release.Namespace -}}
{{- if .Values.gateway.envoy.separate -}}
{{- $_ := set $own "xds" (dict "address" "0.0.0.0:18000" "certificates" "/etc/wisp-xds") -}}
{{- end -}}
{{- toYaml (mergeOverwrite $own (deepCopy .Values.gateway.settings)) -}}
{{- end }}

{{/* The role of the pods that Envoy is in. */}}
{{- define "wisp.envoyRole" -}}
{{ ternary "envoy" "gateway" .Values.gateway.envoy.separate }}
{{- end }}

{{/* What writes the file that Envoy starts from. */}}
{{- define "wisp.bootstrap" -}}
- name: bootstrap
  image: {{ include "wisp.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args:
    - gateway
    - bootstrap
    - --config=/etc/wisp/gateway.yaml
    - --output=/run/wisp/envoy.yaml
    {{- if .Values.gateway.envoy.separate }}
    - --set=xds.server=wisp-gateway-xds.{{ .Release.Namespace }}.svc:18000
    {{- end }}
  resources: {{- toYaml .Values.gateway.resources | nindent 4 }}
  securityContext: {{- include "wisp.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - {name: settings, mountPath: /etc/wisp, readOnly: true}
    - {name: run, mountPath: /run/wisp}
{{- end }}

{{/* Envoy. */}}
{{- define "wisp.envoy" -}}
- name: envoy
  image: {{ .Values.gateway.envoy.image }}
  args:
    - --config-path=/run/wisp/envoy.yaml
    - --concurrency={{ .Values.gateway.envoy.concurrency }}
    - --disable-hot-restart
  ports:
    - {name: http, containerPort: 8080}
    - {name: https, containerPort: 8443}
    - {name: internal, containerPort: 8081}
    - {name: internal-tls, containerPort: 8444}
  # Its admin interface is on loopback: what can be asked from outside is
  # whether it listens, which it does once it is configured.
  readinessProbe:
    tcpSocket: {port: http}
    periodSeconds: 2
  {{- with .Values.gateway.envoy.preStop }}
  lifecycle:
    preStop: {{- toYaml . | nindent 6 }}
  {{- end }}
  resources: {{- toYaml .Values.gateway.envoy.resources | nindent 4 }}
  securityContext: {{- include "wisp.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - {name: run, mountPath: /run/wisp}
    - {name: tmp, mountPath: /tmp}
    {{- if .Values.gateway.envoy.separate }}
    - {name: certificate, mountPath: /etc/wisp-xds, readOnly: true}
    {{- end }}
{{- end }}

{{/* Those of them that a gateway takes only when it starts. */}}
{{- define "wisp.gatewayStart" -}}
{{- $all := include "wisp.gatewaySettings" . | fromYaml -}}
{{- $envoy := omit $all.envoy "accessLog" "httpsPort" -}}
{{- $log := omit (default (dict) $all.log) "level" -}}
{{- toYaml (merge (dict "envoy" $envoy "log" $log) (omit $all "envoy" "log" "externalDomain" "internalDomain" "externalNames" "sharedHost" "sharedNamespaces")) -}}
{{- end }}

{{- define "wisp.autoscalerSettings" -}}
{{- $own := dict
  "healthAddress" "0.0.0.0:9461"
  "statAddress" "0.0.0.0:9460"
  "systemNamespace" .Values.knative.namespace
  "leaseNamespace" .Release.Namespace -}}
{{- toYaml (mergeOverwrite $own (deepCopy .Values.autoscaler.settings)) -}}
{{- end }}

{{/* The authority behind the API server's client certificate. */}}
{{- define "wisp.kubeletClientCA" -}}
{{- if .Values.node.kubeletClientCA -}}
{{- .Values.node.kubeletClientCA -}}
{{- else -}}
{{- $cm := lookup "v1" "ConfigMap" "kube-system" "extension-apiserver-authentication" -}}
{{- dig "data" "client-ca-file" "" (default (dict) $cm) -}}
{{- end -}}
{{- end }}
