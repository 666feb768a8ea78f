"""A network segment: machines in miniature on one switch, and a namespace that stands for the internet."""

from __future__ import annotations

import os
import secrets
import subprocess
from typing import Self

from tests.lab import registry
from tests.lab.registry import LABS
from tests.lab.space import Space, SpaceError

OUTSIDE = "203.0.113.1"  # RFC 5737: stands for the internet, which has no route to pods
UNDERLAY = "172.18"
PREFIX = 16
GATEWAY = f"{UNDERLAY}.255.254"


class Segment:
    """A switch, the outside, and whatever is plugged in; noted on disk, so that it ends with its creator."""

    def __init__(self) -> None:
        if os.geteuid() != 0:
            raise SpaceError("the lab makes namespaces and mounts: run it as root")
        self.id = secrets.token_hex(3)
        self.folder = LABS / self.id
        self._spaces: list[Space] = []
        self._kept = False
        self._warden: subprocess.Popen[bytes] | None = None
        registry.purge()
        self._lock = registry.claim(self.id)
        try:
            self._build()
        except BaseException:  # Ctrl-C too: nobody has it yet who could end it
            self.down()
            raise

    def _build(self) -> None:
        self._note()
        self._warden = registry.warden(self.id)
        self.folder.mkdir(parents=True, mode=0o700)
        self.switch = Space("switch", self.folder / "switch")
        self.outside = Space("outside", self.folder / "outside")
        self.begin(self.switch, self.outside)
        self.switch.batch(["link add br0 type bridge stp_state 0", "link set br0 up"])
        self.plug(self.outside, GATEWAY, f"address add {OUTSIDE}/32 dev lo")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._kept:
            self.down()

    def begin(self, *spaces: Space) -> None:
        """Set spaces up at once, but not before they are noted. Raises SpaceError."""
        self._spaces += spaces
        self._note()
        for one in spaces:
            one.begin()
        for one in spaces:
            one.wait_ready()

    def plug(self, one: Space, address: str, *more: str) -> None:
        """Give a space an eth0 on the switch, with a default route if it is not the gateway itself."""
        default = [] if address == GATEWAY else [f"route add default via {GATEWAY}"]
        self.switch.batch([
            f"link add {one.name} type veth peer name eth0 netns {one.inner}",
            f"link set {one.name} master br0 up",
        ])  # fmt: skip
        one.batch(["link set eth0 up", f"address add {address}/{PREFIX} dev eth0", *default, *more])

    def unplug(self, one: Space) -> None:
        """Pull the cable of a space that may have ended."""
        self.switch.exec("ip", "link", "delete", one.name, check=False)

    def keep(self) -> None:
        """Let it outlive this process."""
        self._kept = True
        self._note()
        self._dismiss()
        self._release()

    def down(self) -> None:
        """End every process of the segment, and so its namespaces, and remove its folder."""
        registry.down(self.id)
        for one in self._spaces:
            one.reap()
        self._dismiss()
        self._release()

    def _note(self) -> None:
        registry.note(self.id, self._spaces, kept=self._kept)

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _dismiss(self) -> None:
        if self._warden:
            registry.dismiss(self._warden)
            self._warden = None
