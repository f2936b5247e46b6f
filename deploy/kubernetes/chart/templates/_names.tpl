{{/* Of all objects: the release's name, with the chart's unless that is in it. */}}
{{- define "wasmcluster.name" -}}
{{- $name := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{/* What selects the pods of this release. */}}
{{- define "wasmcluster.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "wasmcluster.labels" -}}
{{ include "wasmcluster.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "wasmcluster.redis" -}}
{{ include "wasmcluster.name" . }}-redis
{{- end -}}

{{- define "wasmcluster.redis.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}-redis
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "wasmcluster.redis.secret" -}}
{{ .Values.redis.secret | default (include "wasmcluster.redis" .) }}
{{- end -}}
