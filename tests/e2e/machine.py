"""A machine that can run a kubelet: as a node of the lab, with processes, cgroups and a disk of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.lab.space import Space

CGROUPS = Path("/sys/fs/cgroup")
OWN = "testcni-lab"  # the cgroup under which all machines are
V1 = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids")

# The disk outlives the machine, as a disk does: a mount namespace in which a tmpfs is mounted.
DISK = r"""
set -e
read -r go
mount -t tmpfs -o mode=0755 lab "$DIR"
mkdir "$DIR/upper" "$DIR/work" "$DIR/root" "$DIR/containerd" "$DIR/kubelet"
echo ready
exec sleep infinity
"""
# cgroup v1 and v2 alike: a group of its own, which is the root of all that it sees.
OUTER = r"""
set -e
read -r go
for top in $TOPS; do
  group=$top/$GROUP
  mkdir -p "$group"
  if [ -e "$group/cpuset.cpus" ] && [ ! -e "$top/cgroup.controllers" ]; then
    at=$top
    for part in $(echo "$GROUP" | tr / " "); do
      for file in cpuset.cpus cpuset.mems; do cat "$at/$file" > "$at/$part/$file"; done
      at=$at/$part
    done
  fi
  echo $$ > "$group/cgroup.procs"
done
exec unshare --net --mount --uts --ipc --cgroup --pid --fork --kill-child --propagation private sh -c "$INNER"
"""
INNER = r"""
set -e
read -r pid rest < /proc/self/stat  # as the machine outside sees it
hostname "$NAME"
mount -t overlay -o "lowerdir=/,upperdir=$DIR/upper,workdir=$DIR/work" lab "$DIR/root"
cd "$DIR/root"
mount -t proc proc proc
mount --rbind /dev dev
mount -t sysfs lab sys
mkdir -p sys/fs/bpf
mount -t bpf lab sys/fs/bpf
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  mount -t cgroup2 lab sys/fs/cgroup
  mkdir -p sys/fs/cgroup/init
  for process in $(cat sys/fs/cgroup/cgroup.procs); do echo "$process" > sys/fs/cgroup/init/cgroup.procs; done
  for one in $(cat sys/fs/cgroup/cgroup.controllers); do echo "+$one" > sys/fs/cgroup/cgroup.subtree_control; done
else
  mount -t tmpfs -o mode=0755 lab sys/fs/cgroup
  for one in $V1; do mkdir "sys/fs/cgroup/$one"; mount -t cgroup -o "$one" lab "sys/fs/cgroup/$one"; done
  mkdir sys/fs/cgroup/systemd
  mount -t cgroup -o none,name=systemd lab sys/fs/cgroup/systemd
fi
mount -t tmpfs -o mode=0755 lab run
mount -t tmpfs -o mode=1777 lab tmp
mkdir -p run/netns var/lib/containerd var/lib/kubelet etc/containerd
mount --bind "$DIR/containerd" var/lib/containerd
mount --bind "$DIR/kubelet" var/lib/kubelet
for shared in $SHARED; do mkdir -p ".$shared"; mount --bind "$shared" ".$shared"; done
if [ ! -e "$DIR/installed" ]; then
  rm -rf etc/cni opt/cni opt/testcni var/lib/testcni
  mkdir -p etc/cni/net.d opt/cni/bin
  touch "$DIR/installed"
fi
mkdir run/old
pivot_root . run/old
cd /
umount -l /run/old
rmdir /run/old
mount --make-rshared /run
mount --make-rshared /var/lib/kubelet
ip link set lo up
echo "ready $pid"
exec 1>&2
while :; do sleep 3600 & wait; done  # as init, it reaps orphaned processes
"""


class Disk(Space):
    """The files that a machine keeps while it is off."""

    ENTER = ("-m",)

    def setup(self) -> Sequence[str]:
        """A mount namespace with a tmpfs at the folder."""
        return ("unshare", "--mount", "--propagation", "private", "sh", "-c", DISK)


class Machine(Space):
    """A machine that is on; `disk` has what it had when it was on before."""

    ENTER = ("-n", "-m", "-u", "-i", "-p", "-C")

    def __init__(self, name: str, disk: Disk, group: str, shared: Sequence[Path]) -> None:
        self._disk = disk
        self._group = f"{OWN}/{group}/{name}"
        super().__init__(name, disk.folder, shared)

    def setup(self) -> Sequence[str]:
        """All namespaces but that of users, and a cgroup."""
        settings = {"TOPS": " ".join(map(str, tops())), "GROUP": self._group, "V1": " ".join(V1), "INNER": INNER}
        variables = [f"{name}={value}" for name, value in settings.items()]
        return (*self._disk.argv("env", *variables), "sh", "-c", OUTER)

    def start(self, log: Path, *argv: str) -> subprocess.Popen[bytes]:
        """Start a program that lives as long as the machine, with its output in a file."""
        with log.open("ab") as file:
            return subprocess.Popen(
                self.argv(*argv), stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )


def tops() -> list[Path]:
    """The root of each cgroup hierarchy."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [CGROUPS / name for name in (*V1, "systemd")]


def remove_groups(group: str) -> None:
    """Remove the cgroups of machines that are off."""
    for top in tops():
        for folder, _, _ in os.walk(top / OWN / group, topdown=False):
            with contextlib.suppress(OSError):  # a process that is just ending holds it for a moment
                Path(folder).rmdir()
