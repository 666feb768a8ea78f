"""`testcnictl monitor` on a node: who spoofs, and which flows go by the stack."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

from tests.lab import talk
from tests.lab.lab import VXLAN_CONF, LabNode, lab
from tests.lab.space import REPO
from tests.lab.talk import SERVICE, SERVICE_PORT, Servers, ask
from tests.lab.test_vxlan_trouble import sends
from tests.netns.frames import ethernet, ipv4, udp


def monitor(node: LabNode, *options: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    argv = node.space.argv(sys.executable, "-m", "agent.ctl", "monitor", *options)
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    return subprocess.Popen(argv, env=env, stdout=stdout, text=True)


def test_drops_and_flows_by_the_names_of_pods() -> None:
    with lab(2, conf=VXLAN_CONF) as it, Servers() as servers:
        one, two = it.nodes
        a = one.add_pod("a", args="IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web")
        backend = two.add_pod("backend")
        servers.start(backend)
        talk.serve(it.nodes, backend)
        host_mac, mac = (a.result["interfaces"][n]["mac"] for n in (0, 1))
        with monitor(one, "-o", "json", "--for", "6") as lines:
            assert lines.stdout
            for source in ("10.244.1.99", a.address):
                sends(a, ethernet(host_mac, mac, ipv4(source, "10.244.1.77", 17, udp(1000, 53))))
            told = [json.loads(lines.stdout.readline())]  # it is up: flows from before are not told
            assert ask(a, "udp", SERVICE, SERVICE_PORT, source=40000) == a.address
            told += [json.loads(line) for line in lines.stdout]
        assert lines.returncode == 0
        (spoofed,) = (event for event in told if event["what"] == "drop_spoofed_ip")
        assert (spoofed["at"], spoofed["mac"]) == ("shop/web", mac)
        assert spoofed["flow"] == "10.244.1.99:1000 → 10.244.1.77:53 udp"
        (nobody,) = (event for event in told if event["what"] == "drop_no_pod")
        assert (nobody["at"], nobody["flow"]) == ("testcni-vxlan", "shop/web:1000 → 10.244.1.77:53 udp")
        assert f"shop/web:40000 → {backend.address}:9376 udp" in [e["flow"] for e in told if e["what"] == "flow"]


def test_a_terminal_gets_a_table() -> None:
    with lab(1, conf=VXLAN_CONF) as it:
        (one,) = it.nodes
        a = one.add_pod("a")
        screen, terminal = pty.openpty()
        with monitor(one, "--for", "10", stdout=terminal):
            os.close(terminal)
            host_mac, mac = (a.result["interfaces"][n]["mac"] for n in (0, 1))
            frame = ethernet(host_mac, mac, ipv4("192.0.2.1", "192.0.2.2", 17, udp(1, 2)))
            shown = b""
            while b"drop_spoofed_ip" not in shown:
                shown += os.read(screen, 65536)
                sends(a, frame)
            assert b"PACKETS SINCE THE START" in shown
        os.close(screen)
