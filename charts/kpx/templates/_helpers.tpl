{{- define "kpx.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "kpx.fullname" -}}
{{- $both := contains (include "kpx.name" .) .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name (include "kpx.name" .)) -}}
{{- .Values.fullnameOverride | default $both | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "kpx.selector" -}}
app.kubernetes.io/name: {{ include "kpx.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "kpx.labels" -}}
{{ include "kpx.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "kpx.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (.Values.serviceAccount.create | ternary (include "kpx.fullname" .) "default") -}}
{{- end -}}

{{- define "kpx.image" -}}
{{- with .Values.image -}}
{{- .repository -}}{{- if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end -}}
{{- end -}}
{{- end -}}

{{- define "kpx.configMap" -}}
{{- .Values.kubeProxyConfigMap | default (include "kpx.fullname" .) -}}
{{- end -}}

{{/* The configuration: what this chart decides, under what the user says. */}}
{{- define "kpx.config" -}}
{{- $metrics := or .Values.podMonitor.enabled .Values.serviceMonitor.enabled | ternary "0.0.0.0" "127.0.0.1" -}}
{{- $config := dict
    "apiVersion" "kubeproxy.config.k8s.io/v1alpha1"
    "kind" "KubeProxyConfiguration"
    "healthzBindAddress" (printf "0.0.0.0:%v" .Values.ports.healthz)
    "metricsBindAddress" (printf "%s:%v" $metrics .Values.ports.metrics)
    "oomScoreAdj" -997
-}}
{{- $config = mergeOverwrite $config (deepCopy (.Values.config | default dict)) -}}
{{- range $name, $port := dict "healthzBindAddress" .Values.ports.healthz "metricsBindAddress" .Values.ports.metrics -}}
{{- if not (hasSuffix (printf ":%v" $port) (get $config $name)) -}}
{{- fail (printf "config.%s is %s, but probes and monitors use port %v: set both, see ports" $name (get $config $name) $port) -}}
{{- end -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}
