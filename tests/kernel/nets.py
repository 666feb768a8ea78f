"""Named network namespaces and plain `ip`: what the kernel does, without anything of the project."""

from __future__ import annotations

import subprocess
from typing import Self


def ip(*arguments: str) -> str:
    """Run ip(8); AssertionError with its words when it fails."""
    done = subprocess.run(("ip", *arguments), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr.strip()}"
    return done.stdout


class Nets:
    """Namespaces that end with a block, and every device in them."""

    def __init__(self) -> None:
        self._names: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._names:
            ip("netns", "delete", name)

    def add(self, *names: str) -> None:
        """Make namespaces, their loopback up."""
        for name in names:
            ip("netns", "add", name)
            self._names.append(name)
            ip("-n", name, "link", "set", "lo", "up")

    def reaches(self, name: str, address: str) -> bool:
        """Return whether a ping from a namespace is answered."""
        ping = ("ip", "netns", "exec", name, "ping", "-c1", "-W2", address)
        return subprocess.run(ping, capture_output=True, check=False).returncode == 0
