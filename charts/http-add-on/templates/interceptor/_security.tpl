{{/*
Level `self` needs two capabilities, and capabilities that a container is given reach only processes of root: other users
lose them at exec. It is root without any further capability.
*/}}
{{- define "rouse.interceptor.securityContext" -}}
{{- $context := include "rouse.ownOrShared" (dict "contexts" .Values.securityContext "component" "interceptor") | fromYaml -}}
{{- if eq .Values.interceptor.dataplane.level "self" -}}
{{- $capabilities := dict "drop" (list "ALL") "add" (list "BPF" "NET_ADMIN") -}}
{{- $context = merge (dict "capabilities" $capabilities "runAsUser" 0 "runAsGroup" 0 "runAsNonRoot" false) (omit $context "capabilities") -}}
{{- end -}}
{{ toYaml $context }}
{{- end -}}
