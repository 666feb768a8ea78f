"""A real control plane: etcd, kube-apiserver and, where pods are to run, controller manager and scheduler."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.e2e import programs

LOOPBACK = "127.0.0.1"
PORT = 6443
SERVICES = "10.96.0.0/16"
PODS = "10.244.0.0/16"
CONTROLLERS = ("kube-controller-manager", "kube-scheduler")
READY_WITHIN = 90.0  # seconds
ADMIN = "admin"
OWN_GROUP = "system:serviceaccounts:testcni"
GROUPS = {ADMIN: "system:masters", "system:kube-proxy": ""}


class ControlError(RuntimeError):
    """A program of the control plane ended or did not become ready; its last words are in the message."""


def free_port() -> int:
    """A TCP port of the loopback that is not in use."""
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        port: int = it.getsockname()[1]
        return port


class ControlPlane:
    """Programs, their keys and their users' kubeconfigs in a folder; `address` is where nodes find the API.

    `enter` is the beginning of a command line that runs the rest of it elsewhere than on this machine.
    """

    def __init__(self, folder: Path, address: str = LOOPBACK, enter: Sequence[str] = ()) -> None:
        self.folder = folder
        self.port = PORT if enter else free_port()
        self.server = f"https://{address}:{self.port}"
        self._address = address
        self._enter = enter
        self._etcd = (free_port(), free_port())
        self._programs: dict[str, subprocess.Popen[bytes]] = {}
        self._bin = programs.build("kube-apiserver", "kubectl")
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, *, users: Sequence[str] = (), controllers: bool = True) -> None:
        """Start everything; `users` beyond the admin get a kubeconfig each. Raises ControlError."""
        for name in ("sa.key", "sa.pub"):
            if not (self.folder / name).exists():
                _make_key(self.folder)
        tokens = [f"{_token(user)},{user},{user},{_groups(user)}" for user in (*GROUPS, *users)]
        self._write("tokens.csv", "\n".join(tokens) + "\n")
        etcd = shutil.which("etcd")
        if etcd is None:
            raise ControlError("etcd is not installed; Debian's package is etcd-server")
        client, peer = (f"http://127.0.0.1:{port}" for port in self._etcd)
        self.run(
            "etcd", [
                etcd, "--data-dir", str(self.folder / "etcd"), "--unsafe-no-fsync", "--listen-client-urls", client,
                "--advertise-client-urls", client, "--listen-peer-urls", peer,
            ],
        )  # fmt: skip
        self.start_apiserver()
        for user in (*GROUPS, *users):
            self._write(f"{user}.kubeconfig", yaml.safe_dump(self._kubeconfig(user)))
        if controllers:
            self._start_controllers()

    def come_back(self) -> None:
        """Start the API server again, and restart the controllers: with leader election they end."""
        self.start_apiserver()
        for name in CONTROLLERS:
            self.end(name)
        self._start_controllers()

    def start_apiserver(self) -> None:
        """Start the API server and wait until it is ready."""
        own = self.folder
        self.run(
            "kube-apiserver", [
                str(self._bin / "kube-apiserver"), f"--etcd-servers=http://127.0.0.1:{self._etcd[0]}",
                f"--service-cluster-ip-range={SERVICES}", f"--cert-dir={own}/certs", f"--secure-port={self.port}",
                f"--bind-address={self._address}",
                f"--advertise-address={self._address}", f"--token-auth-file={own}/tokens.csv",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={own}/sa.pub", f"--service-account-signing-key-file={own}/sa.key",
                "--authorization-mode=Node,RBAC", "--allow-privileged=true",
                "--kubelet-preferred-address-types=InternalIP",
                f"--endpoint-reconciler-type={'master-count' if self._enter else 'none'}",
                "--shutdown-watch-termination-grace-period=1s",  # or clients hold it for 60 s
                f"--audit-log-path={own}/audit.log", f"--audit-policy-file={self._audit_policy()}",
            ],
        )  # fmt: skip
        end = time.monotonic() + READY_WITHIN
        while not self._is_ready():
            if self._programs["kube-apiserver"].poll() is not None or time.monotonic() > end:
                raise ControlError(f"kube-apiserver is not ready: {self._last_words('kube-apiserver')}")
            time.sleep(0.1)

    def end(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End one program."""
        program = self._programs.pop(name)
        program.send_signal(number)
        program.wait()

    def freeze(self, name: str, *, frozen: bool) -> None:
        """Let a program hang, or go on."""
        self._programs[name].send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    def stop(self) -> None:
        """End all of it."""
        for name in list(self._programs):
            self.end(name)

    def kubeconfig(self, user: str = ADMIN) -> Path:
        """A user's kubeconfig."""
        return self.folder / f"{user}.kubeconfig"

    def kubectl_argv(self, *argv: str) -> list[str]:
        """The command line of kubectl as the admin."""
        return [str(self._bin / "kubectl"), "--kubeconfig", str(self.kubeconfig()), *argv]

    def kubectl(self, *argv: str, stdin: str | None = None, check: bool = True) -> str:
        """Return what kubectl prints, as the admin; raises ControlError with its words if it fails and `check`."""
        command = [*self._enter, *self.kubectl_argv(*argv)]
        done = subprocess.run(command, input=stdin, check=False, capture_output=True, text=True, timeout=60)
        if check and done.returncode:
            raise ControlError(done.stderr.strip())
        return done.stdout + done.stderr

    def _start_controllers(self) -> None:
        kube = programs.build(*CONTROLLERS)
        common = (f"--kubeconfig={self.kubeconfig()}", "--leader-elect=false")
        self.run(
            "kube-controller-manager", [
                str(kube / "kube-controller-manager"), *common, "--allocate-node-cidrs=true",
                f"--cluster-cidr={PODS}", f"--service-account-private-key-file={self.folder}/sa.key",
                f"--root-ca-file={self.folder}/certs/apiserver.crt", "--use-service-account-credentials=true",
            ],
        )  # fmt: skip
        self.run("kube-scheduler", [str(kube / "kube-scheduler"), *common])

    def run(self, name: str, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a program beside the others, with its output in a file."""
        with (self.folder / f"{name}.log").open("ab") as log:
            program = subprocess.Popen(
                [*self._enter, *argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._programs[name] = program
        return program

    def _is_ready(self) -> bool:
        if not (self.folder / "certs/apiserver.crt").exists():
            return False
        if not self.kubeconfig().exists():
            self._write(f"{ADMIN}.kubeconfig", yaml.safe_dump(self._kubeconfig(ADMIN)))
        return self.kubectl("get", "--raw", "/readyz", check=False) == "ok"

    def _kubeconfig(self, user: str) -> dict[str, Any]:
        cluster = {"server": self.server, "certificate-authority": f"{self.folder}/certs/apiserver.crt"}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": _token(user)}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user}}],
            "current-context": "lab",
        }

    def _audit_policy(self) -> Path:
        """Which requests testcni makes is counted against its ClusterRole."""
        rules = [
            {
                "level": "Metadata",
                "omitStages": ["RequestReceived"],
                "userGroups": ["system:serviceaccounts:testcni"],
            },
            {"level": "None"},
        ]
        policy = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": rules}
        return self._write("audit.yaml", json.dumps(policy))

    def _write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o600)
        return path

    def _last_words(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_bytes()[-1000:].decode(errors="replace")


def _token(user: str) -> str:
    return f"token-of-{user.replace(':', '-')}"


def _groups(user: str) -> str:
    return GROUPS.get(user, "system:nodes" if user.startswith("system:node:") else "")


def _make_key(folder: Path) -> None:
    """A key pair for service account tokens."""
    key, public = folder / "sa.key", folder / "sa.pub"
    subprocess.run(("openssl", "genrsa", "-out", str(key), "2048"), check=True, capture_output=True)
    subprocess.run(
        ("openssl", "rsa", "-in", str(key), "-pubout", "-out", str(public)), check=True, capture_output=True
    )
