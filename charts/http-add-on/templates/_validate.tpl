{{/* What the values ask for and this version can't do is refused here, with a sentence that says what to do instead. */}}
{{- define "rouse.validate" -}}
{{- $replicas := .Values.interceptor.replicas -}}
{{- if gt (int $replicas.min) (int $replicas.max) -}}
{{- fail (printf "interceptor.replicas: min is %d and must not be above max, %d" (int $replicas.min) (int $replicas.max)) -}}
{{- end -}}
{{- end -}}
