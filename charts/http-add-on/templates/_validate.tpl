{{/* What the values ask for and this version can't do is refused here, with a sentence that says what to do instead. */}}
{{- define "rouse.validate" -}}
{{- if .Values.agent.enabled -}}
{{- fail "agent.enabled: there is no node agent yet. Set it to false; interceptor.dataplane.level=self counts connections without one." -}}
{{- end -}}
{{- $replicas := .Values.interceptor.replicas -}}
{{- if gt (int $replicas.min) (int $replicas.max) -}}
{{- fail (printf "interceptor.replicas: min is %d and must not be above max, %d" (int $replicas.min) (int $replicas.max)) -}}
{{- end -}}
{{- end -}}
