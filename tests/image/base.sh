#!/bin/bash
# The Debian base image, for machines that reach Debian's packages but no registry of images.
# usage: base.sh TAG    (what was fetched is good for a day)
set -euo pipefail
tag=$1
cache=${XDG_CACHE_HOME:-$HOME/.cache}/testcni
tar=$cache/base-bookworm-$(sha256sum "$0" | cut -c1-8).tar
mkdir -p "$cache"
if [ -z "$(find "$cache" -path "$tar" -mtime -1)" ]; then
  "$(dirname "$0")/../thrice.sh" mmdebstrap --quiet --variant=minbase --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' bookworm "$cache/new-$$.tar"
  mv "$cache/new-$$.tar" "$tar"
fi
digest=$(sha256sum "$tar" | cut -c1-16)
[ "$(buildah inspect --type image --format '{{index .OCIv1.Config.Labels "digest"}}' "$tag" 2>/dev/null)" = "$digest" ] && exit
container=$(buildah from scratch)
trap 'buildah rm "$container" >/dev/null' EXIT
buildah add --quiet "$container" "$tar" / >/dev/null
buildah config --label digest="$digest" "$container"
buildah commit --quiet "$container" "$tag" >/dev/null
