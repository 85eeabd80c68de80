#!/usr/bin/env bash
# Print the secrets that a cluster needs and nobody has to know: Ray's token, Spark's token, and a certificate for Spark Connect.
#
#   k8s/secrets.sh topicscale | kubectl create -f -               the argument is the namespace
#   k8s/secrets.sh topicscale localhost | kubectl create -f -     and more names of Spark's server, such as a port-forward's
#
# No value is ever an argument of a command or a file outside a private folder that is removed. Run again, all values are new: replace the secrets while
# no job runs. Where cert-manager issues certificates, have it write topicscale-spark-tls and drop the last one.
set -euo pipefail
namespace="${1:?the namespace must be given: k8s/secrets.sh topicscale}"
days=825
server=topicscale-spark-server
names="DNS:$server,DNS:$server.$namespace,DNS:$server.$namespace.svc,DNS:$server.$namespace.svc.cluster.local"
for name in "${@:2}"; do names+=",DNS:$name"; done
umask 077
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT

secret() {  # name, type, then key=file ...
    printf -- '---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\n  namespace: %s\ntype: %s\ndata:\n' "$1" "$namespace" "$2"
    for pair in "${@:3}"; do printf '  %s: %s\n' "${pair%%=*}" "$(base64 -w 0 < "${pair#*=}")"; done
}

openssl rand -hex 32 | tr -d '\n' > "$folder/ray"
openssl rand -hex 32 | tr -d '\n' > "$folder/spark"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days "$days" -subj "/CN=$server" \
    -addext "subjectAltName=$names" \
    -keyout "$folder/tls.key" -out "$folder/tls.crt" 2> /dev/null

secret topicscale-ray-token Opaque "auth_token=$folder/ray"
secret topicscale-spark-token Opaque "token=$folder/spark"
secret topicscale-spark-tls kubernetes.io/tls "tls.crt=$folder/tls.crt" "tls.key=$folder/tls.key" "ca.crt=$folder/tls.crt"
