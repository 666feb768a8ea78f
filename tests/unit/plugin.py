"""The plugin's builds, a runtime's way of calling it, and a unix socket that plays the agent."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.cni import netconf
from agent.errors import CniError, Code

SOURCE = Path(__file__).parents[2] / "cni-bin"
VERSIONS = list(netconf.VERSIONS)
PATIENCE_MS = 100  # of the second build, so that a test need not wait for minutes
RESULT = b'{"cniVersion": "1.0.0",\n "ips": [{"address": "10.244.1.2/24"}]}'
TRY_AGAIN, NOT_AVAILABLE = Code.TRY_AGAIN, Code.NOT_AVAILABLE


@dataclass(frozen=True)
class Builds:
    plugin: Path
    hasty: Path
    fuzzer: Path
    faulty_fuzzer: Path
    """Of a plugin whose scanner reads one byte too far."""

    @classmethod
    def kept(cls) -> Builds:
        """All of them, made once for the same sources and compiler, whoever asks, in whichever clone."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "testcni"
        cache.mkdir(parents=True, exist_ok=True)
        compiler = subprocess.run(["cc", "--version"], capture_output=True, check=True).stdout
        sources = [SOURCE.parent / "agent/__init__.py", Path(__file__), *sorted(SOURCE.iterdir())]
        content = b"\0".join([compiler, *(path.read_bytes() for path in sources)])
        folder = cache / f"unit-{hashlib.sha256(content).hexdigest()[:16]}"
        with (cache / "unit.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                unfinished = folder.with_suffix(".new")
                shutil.rmtree(unfinished, ignore_errors=True)
                cls._into(unfinished)
                unfinished.rename(folder)
        return cls._of(folder)

    @classmethod
    def _of(cls, root: Path) -> Builds:
        fuzzers = (root / folder / "fuzz_testcni" for folder in ("fuzz", "fault"))
        return cls(root / "plain" / "testcni", root / "hasty" / "testcni", *fuzzers)

    @classmethod
    def _into(cls, root: Path) -> None:
        """Make all of them under `root`."""

        def make(out: str, *arguments: str, source: Path = SOURCE) -> None:
            subprocess.run(["make", "-s", "-C", source, f"OUT={root / out}", *arguments], check=True)

        faulty = _with_a_fault(root / "faulty")
        with ThreadPoolExecutor() as pool:
            made = [
                pool.submit(make, "plain"),
                pool.submit(make, "hasty", f"CPPFLAGS=-DPATIENCE_MS={PATIENCE_MS}"),
                pool.submit(make, "fuzz", "fuzz"),
                pool.submit(make, "fault", "VERSION=0", "fuzz", source=faulty),
            ]
        for one in made:
            one.result()


def _with_a_fault(copy: Path) -> Path:
    """Copy the plugin's sources with a scanner that reads one byte too far."""
    shutil.copytree(SOURCE, copy)
    scanner = (copy / "json.h").read_text()
    assert "in->at < in->end ?" in scanner
    (copy / "json.h").write_text(scanner.replace("in->at < in->end ?", "in->at <= in->end ?"))
    return copy


@dataclass
class Agent:
    """Answers each connection with the next of `answers`, the last one for ever; None leaves it hanging."""

    path: Path
    answers: list[bytes | None] = field(default_factory=lambda: [RESULT])
    requests: list[dict[str, Any]] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    inodes: list[int | None] = field(default_factory=list)

    def start(self, after: float = 0) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._hanging: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run, args=[after])
        if not after:
            self._bind()
        self._thread.start()

    def stop(self) -> None:
        for connection in self._hanging:
            connection.close()
        self._thread.join(0.01)  # a late agent that is not there yet
        if self._thread.is_alive():
            self._listener.shutdown(socket.SHUT_RDWR)
            self._thread.join()
        self._listener.close()

    def _bind(self) -> None:
        self._listener.bind(str(self.path))
        self._listener.listen(128)

    def _run(self, after: float) -> None:
        if after:
            time.sleep(after)
            self._bind()
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        data, fds, _flags, _address = socket.recv_fds(connection, 1 << 16, 4)
        while chunk := connection.recv(1 << 16):
            data += chunk
        self.inodes.append(os.fstat(fds[0]).st_ino if fds else None)
        for fd in fds:
            os.close(fd)
        self.raw.append(data)
        self.requests.append(json.loads(data.decode("utf-8", "surrogateescape")))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            self._hanging.append(connection)
            return
        with connection, suppress(BrokenPipeError):  # one that is too long is not read to its end
            connection.sendall(answer)


@dataclass
class Plugin:
    binary: Path
    tmp_path: Path

    def conf(self, **members: object) -> bytes:
        base = {"cniVersion": "1.0.0", "name": "net", "type": "testcni", "agentWait": 0.2}
        places = {"socket": str(self.tmp_path / "agent.sock"), "stateDir": str(self.tmp_path / "state")}
        return json.dumps(base | places | members).encode()

    def run(
        self, command: str | None, conf: bytes | None = None, env: Mapping[str, str | bytes] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        variables: dict[str, str | bytes] = {
            "CNI_CONTAINERID": "c1",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/opt/cni/bin",
        }
        if command is not None:
            variables["CNI_COMMAND"] = command
        given = self.conf() if conf is None else conf
        done = subprocess.run(
            [self.binary],
            input=given,
            env=variables | dict(env or {}),
            capture_output=True,
            timeout=20,
            check=False,
        )
        assert done.stderr == b""
        return done

    def fails(
        self, command: str | None, conf: bytes | None = None, env: Mapping[str, str] | None = None
    ) -> CniError:
        done = self.run(command, conf, env)
        doc = json.loads(done.stdout)
        assert set(doc) == {"cniVersion", "code", "msg", "details"}
        assert done.returncode == doc["code"]
        assert doc["cniVersion"] in VERSIONS
        return CniError(Code(doc["code"]), doc["msg"], doc["details"])

    @property
    def deletes(self) -> Path:
        return self.tmp_path / "state" / "deletes"
