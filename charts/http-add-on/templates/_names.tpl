{{/* Names and labels. All of them are those of the KEDA HTTP Add-on's chart. */}}

{{- define "rouse.chart" -}}
{{- printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* What tells this release's pods from all others; with the component, what tells one Deployment's. */}}
{{- define "rouse.selector" -}}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/name: http-add-on
app.kubernetes.io/part-of: {{ .root.Chart.Name }}
{{- end -}}

{{/* Labels of every object of a component. */}}
{{- define "rouse.labels" -}}
{{ include "rouse.selector" . }}
app.kubernetes.io/version: {{ .root.Values.images.tag | default .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ include "rouse.chart" .root }}
{{- with .root.Values.additionalLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/*
A Deployment's selector can't be changed. One that is there already, perhaps the add-on's, keeps the selector it has, so
that `helm upgrade` works from any version of it.
*/}}
{{- define "rouse.deploymentSelector" -}}
{{- $found := lookup "apps/v1" "Deployment" .root.Release.Namespace .name -}}
{{- if $found -}}
{{ toYaml $found.spec.selector.matchLabels }}
{{- else -}}
{{ include "rouse.selector" . }}
{{- end -}}
{{- end -}}

{{/* Labels of pods: the component's, the user's, and what the Deployment selects by. */}}
{{- define "rouse.podLabels" -}}
{{- $selector := include "rouse.deploymentSelector" . | fromYaml -}}
{{- $labels := include "rouse.labels" . | fromYaml -}}
{{ toYaml (merge (dict) $selector .values.podLabels $labels) }}
{{- end -}}

{{- define "rouse.interceptor.name" -}}{{ .Chart.Name }}-interceptor{{- end -}}
{{- define "rouse.agent.name" -}}{{ .Chart.Name }}-agent{{- end -}}
{{- define "rouse.scaler.name" -}}{{ .Chart.Name }}-external-scaler{{- end -}}
{{- define "rouse.operator.name" -}}{{ .Chart.Name }}-controller-manager{{- end -}}
{{- define "rouse.interceptor.account" -}}{{ .Chart.Name }}-interceptor{{- end -}}
{{- define "rouse.agent.account" -}}{{ .Chart.Name }}-agent{{- end -}}
{{- define "rouse.scaler.account" -}}{{ .Chart.Name }}-external-scaler{{- end -}}
{{- define "rouse.operator.account" -}}{{ .Chart.Name }}{{- end -}}
{{- define "rouse.interceptor.adminService" -}}{{ .Chart.Name }}-{{ .Values.interceptor.admin.service }}{{- end -}}
{{- define "rouse.interceptor.proxyService" -}}{{ .Chart.Name }}-{{ .Values.interceptor.proxy.service }}{{- end -}}
{{- define "rouse.agent.adminService" -}}{{ .Chart.Name }}-agent-admin{{- end -}}
{{- define "rouse.scaler.service" -}}{{ .Chart.Name }}-{{ .Values.scaler.service }}{{- end -}}
{{- define "rouse.operator.metricsService" -}}{{ .Chart.Name }}-controller-manager-metrics-service{{- end -}}

{{/* The operator takes no other port for metrics by TLS. */}}
{{- define "rouse.operator.metricsPort" -}}
{{ ternary 8443 .Values.operator.metrics.port .Values.operator.metrics.secure }}
{{- end -}}
