{{/* TLS at the interceptor: its variables, the Secrets it reads, and where these are mounted. */}}

{{/* The value of a name, or of the name that it had in older charts of the add-on. */}}
{{- define "rouse.tls.renamed" -}}
{{- get .tls .before | default (get .tls .name) -}}
{{- end -}}

{{/* Name to value; nothing without TLS. */}}
{{- define "rouse.tls.env" -}}
{{- $tls := .Values.interceptor.tls -}}
{{- $env := dict -}}
{{- with $tls.secrets }}{{ $_ := set $env "ROUSE_TLS_SECRETS" (join "," .) }}{{ end -}}
{{- if $tls.enabled -}}
{{- with $tls.defaultSecret }}{{ $_ := set $env "ROUSE_TLS_DEFAULT_SECRET" . }}{{ end -}}
{{- $env = merge $env (dict
  "KEDA_HTTP_PROXY_TLS_ENABLED" "true"
  "KEDA_HTTP_PROXY_TLS_PORT" $tls.port
  "KEDA_HTTP_PROXY_TLS_CERT_PATH" (include "rouse.tls.renamed" (dict "tls" $tls "name" "certPath" "before" "cert_path"))
  "KEDA_HTTP_PROXY_TLS_KEY_PATH" (include "rouse.tls.renamed" (dict "tls" $tls "name" "keyPath" "before" "key_path"))
  "KEDA_HTTP_TLS_SKIP_VERIFY" (include "rouse.tls.renamed" (dict "tls" $tls "name" "skipVerify" "before" "skip_verify"))
  "KEDA_HTTP_TLS_MIN_VERSION" ($tls.minVersion | toString)
  "KEDA_HTTP_TLS_MAX_VERSION" ($tls.maxVersion | toString)
  "KEDA_HTTP_TLS_CIPHER_SUITES" $tls.cipherSuites
  "KEDA_HTTP_TLS_CURVE_PREFERENCES" $tls.curvePreferences
) -}}
{{- $stores := list -}}
{{- range $tls.certStores }}{{ $stores = append $stores (printf "/cert-stores/%s" .) }}{{ end -}}
{{- $_ := set $env "KEDA_HTTP_PROXY_TLS_CERT_STORE_PATHS" (join "," $stores) -}}
{{- $authorities := list -}}
{{- range $tls.caSecrets }}{{ $authorities = append $authorities (printf "/authorities/%s" .) }}{{ end -}}
{{- $_ := set $env "KEDA_HTTP_TLS_CA_DIRS" (join "," $authorities) -}}
{{- end -}}
{{ toYaml $env }}
{{- end -}}

{{/* Secret to the folder it is mounted at. */}}
{{- define "rouse.tls.secrets" -}}
{{- $tls := .Values.interceptor.tls -}}
{{- $secrets := dict -}}
{{- if $tls.enabled -}}
{{- if not $tls.defaultSecret -}}
{{- with include "rouse.tls.renamed" (dict "tls" $tls "name" "certSecret" "before" "cert_secret") }}{{ $_ := set $secrets . "/certs" }}{{ end -}}
{{- end -}}
{{- range $tls.certStores }}{{ $_ := set $secrets . (printf "/cert-stores/%s" .) }}{{ end -}}
{{- range $tls.caSecrets }}{{ $_ := set $secrets . (printf "/authorities/%s" .) }}{{ end -}}
{{- end -}}
{{ toYaml $secrets }}
{{- end -}}

{{/* Namespace to the names of the Secrets there that are read by watch; `*` is all of the namespace, and as a namespace all. */}}
{{- define "rouse.tls.watched" -}}
{{- $tls := .Values.interceptor.tls -}}
{{- $watched := dict -}}
{{- range concat $tls.secrets (ternary (list $tls.defaultSecret) list (and $tls.enabled (ne $tls.defaultSecret ""))) -}}
{{- $parts := splitList "/" . -}}
{{- $namespace := first $parts -}}
{{- $_ := set $watched $namespace (append (get $watched $namespace | default list) (last $parts) | uniq) -}}
{{- end -}}
{{ toYaml $watched }}
{{- end -}}
