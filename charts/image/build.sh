#!/bin/sh
# Builds the image of charts/image/Dockerfile, with Docker or without any engine:
#
#   build.sh archive FILE     an archive for `docker load`, `podman load` or `skopeo copy`
#   build.sh rootfs FOLDER    its root file system
#
# Without a Docker engine (as root, on Debian): buildah runs the same Dockerfile, and its base image is made of Debian's
# packages by mmdebstrap instead of pulled. ENGINE=docker or ENGINE=buildah decides; what is missing is installed.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
source=$(cd "$here/../.." && pwd)
what=$1 target=$2

say() { echo "image: $*" >&2; }

has_docker() { docker info >/dev/null 2>&1 && docker buildx version >/dev/null 2>&1; }
engine=${ENGINE:-$(has_docker && echo docker || echo buildah)}
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$source/kpx/version.py")
revision=$(git -C "$source" rev-parse HEAD 2>/dev/null || echo unknown)
suite=$(sed -n 's/^ARG BASE=.*debian:\([a-z]*\).*/\1/p' "$here/Dockerfile")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Packages come from where this host gets them: pip's configuration and certificates, as build secrets.
bundle=${PIP_CERT:-${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}}
{
    echo "[global]"
    for name in index-url extra-index-url; do
        python3 -m pip config get "global.$name" 2>/dev/null | sed -n "s/^\(http.*\)/$name = \1/p"
    done
    [ ! -e "$bundle" ] || echo "cert = /etc/pip-ca.pem"
} >"$work/pip.conf"
[ -e "$bundle" ] || bundle=/dev/null
set -- --build-arg "VERSION=$version" --build-arg "REVISION=$revision" --network host \
    --secret "id=pip.conf,src=$work/pip.conf" --secret "id=ca.pem,src=$bundle" -f "$here/Dockerfile"

with_docker() {
    docker buildx build --load "$@" -t "kpx:$version" "$source" >&2
    case $what in
    archive) docker save -o "$target" "kpx:$version" ;;
    rootfs)
        container=$(docker create "kpx:$version")
        mkdir -p "$target"
        docker export "$container" | tar -x -C "$target"
        docker rm "$container" >/dev/null
        ;;
    esac
}

with_buildah() {
    export BUILDAH_ISOLATION=chroot
    b() { command buildah --root "$work/storage" --runroot "$work/run" "$@"; }
    say "making Debian $suite"
    mmdebstrap --quiet --variant=minbase \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        "$suite" "$work/base.tar" >&2
    base=$(b from scratch)
    b add -q "$base" "$work/base.tar" / >/dev/null
    b commit -q --rm "$base" localhost/debian >/dev/null
    say "building kpx:$version"
    b bud --build-arg BASE=localhost/debian "$@" -t "localhost/kpx:$version" "$source" >"$work/log" 2>&1 ||
        { cat "$work/log" >&2 && return 1; }
    case $what in
    archive) b push -q "localhost/kpx:$version" "docker-archive:$target:kpx:$version" ;;
    rootfs)
        container=$(b from "localhost/kpx:$version")
        mkdir -p "$target"
        cp -a "$(b mount "$container")/." "$target"
        b umount "$container" >/dev/null
        ;;
    esac
}

missing=""
[ "$engine" = docker ] || for tool in buildah mmdebstrap; do
    command -v $tool >/dev/null || missing="$missing $tool"
done
if [ -n "$missing" ]; then
    say "installing$missing"
    apt-get update -qq >/dev/null 2>&1 || say "apt-get update failed; trying with the package lists at hand"
    # shellcheck disable=SC2086 # a list of names
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
with_"$engine" "$@"
say "done: $target"
