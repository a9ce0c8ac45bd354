#!/bin/sh
# Takes a cluster's programs out of kind's node image, for KUBE_BIN. Needs Docker, which pulls the image.
#
#   from-kind.sh kindest/node:v1.33.1 DIR
#
# kubelet, kubectl, containerd, runc and the CNI plugins are files of that image. The control plane, etcd and kube-proxy
# are in images that it holds; its own containerd mounts them.
set -eu
image=$1 target=$2
mkdir -p "$target/cni"

name=kpx-from-kind-$$
trap 'docker rm -f "$name" >/dev/null' EXIT
docker run -d --privileged --name "$name" "$image" >/dev/null
inside() { docker exec "$name" "$@"; }

tries=60
until inside ctr version >/dev/null 2>&1; do
    tries=$((tries - 1))
    [ $tries -gt 0 ] || { echo "$image: containerd doesn't answer" >&2 && exit 1; }
    sleep 1
done

for program in kubelet kubectl containerd containerd-shim-runc-v2 ctr runc; do
    path=$(inside sh -c "command -v $program")
    docker cp -L "$name:$path" "$target/$program" >/dev/null
done
for plugin in bridge host-local loopback; do
    if inside test -e "/opt/cni/bin/$plugin"; then
        docker cp -L "$name:/opt/cni/bin/$plugin" "$target/cni/$plugin" >/dev/null
    fi
done
for program in kube-apiserver kube-controller-manager kube-scheduler kube-proxy etcd; do
    held=$(inside ctr -n k8s.io images ls -q | grep -E "/$program(-amd64|-arm64)?:" | head -n 1)
    inside mkdir -p "/mnt/$program"
    inside ctr -n k8s.io images mount "$held" "/mnt/$program" >/dev/null
    docker cp -L "$name:/mnt/$program/usr/local/bin/$program" "$target/$program" >/dev/null
done
ls -l "$target" "$target/cni"
