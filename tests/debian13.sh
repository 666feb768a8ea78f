#!/bin/bash
# The project on a fresh Debian 13 that has nothing but make, on this machine's kernel: README promises that it works.
# usage: debian13.sh [COMMAND...]   in a copy of HEAD; without a command the demo, the quick checks and the kernel tests
#
# All mounts and processes are in namespaces that end with this program, whatever ends it. The root is made once and kept
# by content: Debian's minimal packages, and on them what `make deps` installs. A run writes to a tmpfs above it.
set -euo pipefail
cd "$(dirname "$0")/.."
export CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/testcni
CONTENT=$({ cat tests/debian13.sh requirements-dev.lock; grep '^DEBS :=' Makefile; } | sha256sum | cut -c1-16)
ROOT=$CACHE/debian13-$CONTENT

main() {
  mkdir -p "$CACHE/debian13" "$CACHE/debian13.packages"
  exec 9> "$CACHE/debian13.lock"
  flock 9
  [ -e "$ROOT" ] || build
  flock -s 9 # no other run removes a root that is in use
  [ $# -gt 0 ] || set -- bash -c "$(declare -f prove); prove"
  within "$ROOT" "$@"
}

# Each step as a user calls it; the last one without the environment that make gives its own. Times are held by `make test`.
prove() {
  set -e
  make demo
  make check
  # the tests fork beside xdist's thread, of which Python 3.12 and later warn
  local pytest=("$HOME"/.cache/testcni/venv-*/bin/pytest -q -W "ignore:This process:DeprecationWarning")
  "${pytest[@]}" -n 3 --dist loadgroup -m "not scale and not alone" tests/netns tests/lab/test_uninstall.py
}

build() {
  rm -rf "$CACHE"/debian13-*
  tests/thrice.sh mmdebstrap --quiet --variant=minbase --include=make,ca-certificates \
    --aptopt='APT::Install-Recommends "false"' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' trixie "$ROOT.new"
  KEEP=1 within "$ROOT.new" make -s deps
  mv "$ROOT.new" "$ROOT"
}

# Run a command in a root; what it writes is forgotten, unless KEEP is set.
within() {
  setpriv --pdeathsig KILL unshare --mount --propagation private --pid --fork --kill-child --uts \
    bash -c "$(declare -f inside); inside \"\$@\"" debian13 "$@" 9>&-
}

inside() {
  set -euo pipefail
  local root=$1 top=$CACHE/debian13
  shift
  mount -t tmpfs -o mode=0755 debian13 "$top"
  mkdir "$top/upper" "$top/work" "$top/root"
  if [ -n "${KEEP:-}" ]; then
    mount --bind "$root" "$top/root"
  else
    mount -t overlay -o "lowerdir=$root,upperdir=$top/upper,workdir=$top/work" debian13 "$top/root"
  fi
  cd "$top/root"
  mount -t proc proc proc
  mount -t sysfs sysfs sys
  mount --rbind /sys/fs/cgroup sys/fs/cgroup
  mount -t bpf bpf sys/fs/bpf
  mount --rbind /dev dev
  mount -t tmpfs -o mode=1777 shm dev/shm # tests keep their files there
  mount -t tmpfs -o mode=0755 run run
  mount -t tmpfs -o mode=1777 tmp tmp
  mount --bind "$CACHE/debian13.packages" var/cache/apt/archives
  cp -L /etc/resolv.conf /etc/hosts etc/
  local environment=(HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM="${TERM:-dumb}" LC_ALL=C.UTF-8
    PYTEST_ADDOPTS="${PYTEST_ADDOPTS:-}")
  if [ -e "${PIP_CERT:-}" ]; then # behind a proxy with a CA of its own
    cp "$PIP_CERT" run/ca.crt
    environment+=(PIP_CERT=/run/ca.crt)
  fi
  mkdir -p run/old root/testcni
  mount -t tmpfs clone root/testcni
  git -C "$OLDPWD" archive HEAD | tar -x -C root/testcni
  pivot_root . run/old
  cd /root/testcni
  umount -l /run/old
  hostname debian13
  env -i "${environment[@]}" "$@"
}

main "$@"
