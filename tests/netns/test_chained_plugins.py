"""Chained with the reference plugins, before and after them (portmap, bandwidth, tuning)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.cni import conflist
from agent.cni.server import Server
from agent.host import cni_conf_dir
from agent.kernel import tcx
from agent.modes.registry import BUILT_IN
from agent.objects import pod_guard
from tests.lab import gotools
from tests.lab.runner import Conf, Runner, RunnerError
from tests.lab.space import PYTHON
from tests.netns.node import CONF, IPIP, VXLAN, Host, Pod, command
from tests.support import eventually

PLUGIN = Path(__file__).resolve().parents[2] / "build/testcni"


@pytest.fixture(scope="module")
def reference() -> Path:
    try:
        return gotools.reference_plugins()
    except gotools.NoGoError as error:
        pytest.skip(f"the reference plugins can't be built: {error}")


def execute(path: str, environment: Mapping[str, str], stdin: str) -> tuple[int, str, str]:
    env = {"PATH": os.environ["PATH"], **environment}
    done = subprocess.run([path], env=env, input=stdin, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def served(tmp_path: Path, reference: Path, conf: dict[str, Any] = CONF) -> tuple[Host, Runner, dict[str, Any]]:
    """A host that answers on a socket, and a runner that finds our plugin beside the reference ones."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for path in (*reference.iterdir(), PLUGIN):
        (binaries / path.name).symlink_to(path)
    host = Host(tmp_path / "run", conf=conf)
    Server(tmp_path / "agent.sock", host.handler.answer).start()
    ours = {**conf, "socket": str(tmp_path / "agent.sock"), "stateDir": str(tmp_path / "state")}
    return host, Runner(execute, str(binaries)), {k: v for k, v in ours.items() if k not in ("name", "cniVersion")}


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_portmap_bandwidth_and_tuning_after_us(tmp_path: Path, reference: Path, version: str) -> None:
    host, runner, ours = served(tmp_path, reference)
    plugins = (
        ours,
        {"type": "portmap", "capabilities": {"portMappings": True}, "backend": "nftables", "snat": True},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
        {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}},
    )
    ours["capabilities"] = {"bandwidth": True}  # whose qdisc is where that of our program would be
    conf = Conf("testcni", version, plugins, tmp_path)
    pod, other = Pod("c1"), Pod("c2")
    runner.add(conf, "c2", other.path)
    before = host.state()
    rate = {"ingressRate": 8_000_000, "ingressBurst": 8_000_000, "egressRate": 8_000_000, "egressBurst": 8_000_000}
    port = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
    result = runner.add(conf, "c1", pod.path, capabilities={"portMappings": [port], "bandwidth": rate})
    assert result["cniVersion"] == version
    assert result["ips"][0]["address"] == "10.244.1.3/24"
    assert pod.run("sysctl", "-n", "net.ipv4.conf.eth0.arp_filter").strip() == "1"
    assert "tbf" in command("tc", "qdisc")
    assert "8080" in command("nft", "list", "ruleset")
    assert _answers(pod, other)
    if version >= "0.4.0":
        runner.check(conf, "c1", pod.path)
    runner.delete(conf, "c1", pod.path)
    after = host.state()
    assert {k: after[k] for k in ("links", "addresses", "routes", "used")} == {
        k: before[k] for k in ("links", "addresses", "routes", "used")
    }


RATE = {"egressRate": 8_000_000, "egressBurst": 8_000_000}
FOREIGN = "0a580af40163"  # a MAC that no pod has
SEND = r"""
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(("eth0", 0))
s.send(b"\xff" * 6 + bytes.fromhex(sys.argv[1]) + b"\x08\x00" + bytes(60))
"""


def limited(ours: dict[str, Any], tmp_path: Path, host: Host, entry: Mapping[str, Any]) -> Conf:
    """A conflist of the conf folder whose entry of testcni says nothing of the plugin bandwidth after it."""
    conf = Conf("testcni", "1.1.0", (ours, {"type": "bandwidth", **entry}), tmp_path)
    doc = {"cniVersion": "1.1.0", "name": "testcni", "plugins": list(conf.plugins)}
    host.confs.publish(cni_conf_dir.of(conflist.conflist(json.dumps(doc).encode(), tmp_path), modes=BUILT_IN))
    return conf


@pytest.mark.parametrize("conf", [CONF, IPIP], ids=["host-gw", "ipip"])
@pytest.mark.parametrize("entry", [{"capabilities": {"bandwidth": True}}, RATE], ids=["pods", "all"])
def test_an_egress_limit_needs_no_word_of_it_in_our_entry(
    tmp_path: Path, reference: Path, conf: dict[str, Any], entry: dict[str, Any]
) -> None:
    if not tcx.known():
        pytest.skip("this kernel has no TCX (Linux 6.6)")
    host, runner, ours = served(tmp_path, reference, conf)
    chain, pods = limited(ours, tmp_path, host, entry), [Pod("c1"), Pod("c2")]
    for pod, rate in zip(pods, ({"bandwidth": RATE}, {}), strict=True):
        runner.add(chain, pod.container_id, pod.path, capabilities=rate if "capabilities" in entry else {})
        runner.check(chain, pod.container_id, pod.path)
        before = pod_guard.counters(host.maps(pod_guard.GUARD))["drop_spoofed_mac"].packets
        pod.run(*PYTHON, SEND, FOREIGN)
        eventually(lambda n=before: pod_guard.counters(host.maps(pod_guard.GUARD))["drop_spoofed_mac"].packets > n)
    assert command("tc", "qdisc").count("ingress ffff:") == (1 if "capabilities" in entry else 2)
    assert "clsact" not in command("tc", "qdisc")
    for pod in pods:
        runner.delete(chain, pod.container_id, pod.path)


def test_without_tcx_pods_without_a_limit_start_and_a_limit_for_all_is_refused_with_the_reason(
    tmp_path: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcx, "known", lambda: False)
    host, runner, ours = served(tmp_path, reference)
    chain = limited(ours, tmp_path, host, {"capabilities": {"bandwidth": True}})
    runner.add(chain, "c1", Pod("c1").path)
    chain = limited(ours, tmp_path, host, RATE)
    with pytest.raises(RunnerError, match=r"needs Linux 6\.6"):
        runner.add(chain, "c2", Pod("c2").path)


def test_portmap_and_tuning_after_vxlan(tmp_path: Path, reference: Path) -> None:
    host, runner, ours = served(tmp_path, reference, VXLAN)
    plugins = (
        ours,
        {"type": "portmap", "capabilities": {"portMappings": True}, "backend": "nftables", "snat": True},
        {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}},
    )
    conf = Conf("testcni", "1.1.0", plugins, tmp_path)
    pod, other = Pod("c1"), Pod("c2")
    runner.add(conf, "c2", other.path)
    before = host.state()
    port = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
    runner.add(conf, "c1", pod.path, capabilities={"portMappings": [port]})
    assert _answers(pod, other)
    runner.check(conf, "c1", pod.path)
    runner.delete(conf, "c1", pod.path)
    after = host.state()
    kinds = ("links", "addresses", "routes", "used", "pods")
    assert {k: after[k] for k in kinds} == {k: before[k] for k in kinds}


def _answers(pod: Pod, client: Pod) -> bool:
    """Return whether the pod's port 80 is reached by the host port."""
    server = subprocess.Popen(
        ["nsenter", f"--net={pod.path}", *PYTHON,
         "import socket; s=socket.create_server(('',80)); print(flush=True); s.accept()[0].sendall(b'hello')"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout
    server.stdout.readline()
    script = "import socket; print(socket.create_connection(('192.0.2.1',8080),2).recv(9).decode())"
    try:
        return "hello" in client.run(*PYTHON, script)
    finally:
        server.kill()
        server.wait()


def test_after_another_plugin_its_result_is_kept(tmp_path: Path, reference: Path) -> None:
    host, _runner, _ours = served(tmp_path, reference)
    pod = Pod("c1")
    previous = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "first", "sandbox": pod.path}],
        "ips": [{"address": "198.51.100.5/24", "interface": 0}],
        "routes": [{"dst": "198.51.100.0/24"}],
        "dns": {"nameservers": ["198.51.100.53"]},
    }
    result = host.add(pod, {**CONF, "prevResult": previous})
    assert [i["name"] for i in result["interfaces"]][:2] == ["first", "testcni0"]
    assert [(ip["address"], ip["interface"]) for ip in result["ips"]] == [
        ("198.51.100.5/24", 0),
        ("10.244.1.2/24", 3),
    ]
    assert result["dns"] == {"nameservers": ["198.51.100.53"]}
    assert host.call("CHECK", pod, {**CONF, "prevResult": result}) == {}


def test_many_plugins_at_once_on_the_socket(tmp_path: Path, reference: Path) -> None:
    host, runner, ours = served(tmp_path, reference)
    conf = Conf("testcni", "1.1.0", (ours,), tmp_path)
    runner.status(conf)
    pods = [Pod(f"c{number}") for number in range(40)]
    failures: list[str] = []

    def one(pod: Pod) -> None:
        try:
            runner.add(conf, pod.container_id, pod.path)
            runner.check(conf, pod.container_id, pod.path)
            runner.delete(conf, pod.container_id, pod.path)
        except RunnerError as error:
            failures.append(str(error))

    threads = [threading.Thread(target=one, args=(pod,)) for pod in pods]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert host.attachments.all() == ()


def test_junk_on_the_socket_is_answered_and_harms_nobody(tmp_path: Path, reference: Path) -> None:
    host, runner, ours = served(tmp_path, reference)
    for junk in (b"", b"{", b"[]", b'{"protocol":99}', b'{"protocol":1,"command":5}', b"\xff\xfe", b"[" * 100_000):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "agent.sock"))
            client.sendall(junk)
            client.shutdown(socket.SHUT_WR)
            answer = json.loads(client.makefile("rb").read())
            assert answer["code"] == 6, answer
    with socket.socket(socket.AF_UNIX) as hung:
        hung.connect(str(tmp_path / "agent.sock"))
        hung.sendall(b'{"protocol"')
        runner.status(Conf("testcni", "1.1.0", (ours,), tmp_path))
    assert (tmp_path / "agent.sock").stat().st_mode & 0o777 == 0o600
    assert host.attachments.all() == ()
