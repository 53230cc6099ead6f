{{/* What all three Deployments' pods have in common. Each takes `root`, `component`, `name` and `values`. */}}

{{/* A component's own security context, or the one for all without the keys of components. */}}
{{- define "rouse.ownOrShared" -}}
{{- $own := get .contexts .component -}}
{{- if $own -}}
{{ toYaml $own }}
{{- else -}}
{{ toYaml (omit .contexts "interceptor" "scaler" "operator" "kuberbacproxy") }}
{{- end -}}
{{- end -}}

{{/* The top of a pod's spec. */}}
{{- define "rouse.podSpec" -}}
serviceAccountName: {{ include (printf "rouse.%s.account" .component) .root }}
{{- with .values.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ if kindIs "map" . }}{{ .name }}{{ else }}{{ . }}{{ end }}
{{- end }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .root.Values.podSecurityContext }}
securityContext:
  {{- include "rouse.ownOrShared" (dict "contexts" . "component" $.component) | nindent 2 }}
{{- end }}
nodeSelector:
  {{- toYaml (merge (dict) .values.nodeSelector (dict "kubernetes.io/os" "linux")) | nindent 2 }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
{{- if .values.topologySpreadConstraints }}
  {{- toYaml .values.topologySpreadConstraints | nindent 2 }}
{{- else }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "rouse.selector" . | nindent 8 }}
{{- end }}
{{- end -}}

{{- define "rouse.image" -}}
image: {{ printf "%s:%s" (get .root.Values.images .component) (.root.Values.images.tag | default .root.Chart.AppVersion) | quote }}
imagePullPolicy: {{ .values.pullPolicy }}
{{- end -}}

{{/* How the process logs, and what the user adds. */}}
{{- define "rouse.args" -}}
{{- $logging := get .root.Values.logging .component -}}
- --zap-log-level={{ $logging.level }}
- --zap-encoder={{ $logging.format }}
- --zap-time-encoding={{ $logging.timeEncoding }}
{{- range .values.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end -}}

{{/*
`env`, name to value, with the user's in its place; sorted, so that an upgrade that changes nothing rolls nothing. Numbers of
values files are floats to Helm, which would write a million as 1e+06.
*/}}
{{- define "rouse.env" -}}
{{- range $name, $value := merge (dict) .values.extraEnvs .env }}
{{- if and (kindIs "float64" $value) (eq (floor $value) $value) }}{{ $value = int64 $value }}{{ end }}
- name: {{ $name }}
  value: {{ $value | toString | quote }}
{{- end }}
{{- end -}}

{{/* Lets an account read one Namespace, which is no object of that namespace. */}}
{{- define "rouse.namespaceReader" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: {{ .name }}
  labels:
    {{- include "rouse.labels" .it | nindent 4 }}
rules:
  - apiGroups: [""]
    resources: [namespaces]
    resourceNames: [{{ .namespace }}]
    verbs: [get, list, watch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ .name }}
  labels:
    {{- include "rouse.labels" .it | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ .name }}
subjects:
  - kind: ServiceAccount
    name: {{ .account }}
    namespace: {{ .it.root.Release.Namespace }}
{{- end -}}
