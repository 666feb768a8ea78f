"""What `testcnictl status` shows of what the agent says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest

from agent import config, ctl
from agent.ipam.attachments.attachment_store import AttachmentStore
from agent.kernel.bpf.loader import Loader
from agent.model.cluster import Snapshot
from agent.model.network import ParentLink
from agent.model.node_status import NodeStatus
from agent.modes.registry import BUILT_IN
from agent.objects.host_kernel import HostKernel
from agent.observe.status import report
from tests.networks import AGENT_OPTIONS, OPTIONS, parse_conf

DOC: dict[str, Any] = {
    "node": "one", "synced": True, "nodes": 1, "routes": 0, "attachments": 0, "uptimeSeconds": 1,
    "datastore": "dir:/x", "networks": [], "problems": [],
}  # fmt: skip


def shown(tmp_path: Path, *confs: dict[str, Any]) -> list[str]:
    """The table of networks, from the report of a node that has prepared them, in words."""
    networks = [parse_conf({"cniVersion": "1.0.0", "type": "testcni", **conf}).network for conf in confs]
    status = NodeStatus(
        synced=True,
        blocks={network: (network.subnet,) for network in networks if network.subnet},
        uplinks={network: ParentLink("bond0", ()) for network in networks if network.needs_parent},
    )
    conf = config.load(["--datastore", "dir:/x", "--node", "one"], {}, AGENT_OPTIONS)
    attachments, host = AttachmentStore(tmp_path, 0, OPTIONS), HostKernel(Loader(tmp_path, tmp_path / "pins"))
    doc = report(conf, 0.0, Snapshot(synced=True), status, attachments, BUILT_IN, host)
    text = ctl.render({**doc, "bgp": None}, colour=False)
    return [" ".join(line.split()) for line in text.splitlines()[2:]]


def test_a_network_of_any_mode_is_shown_with_what_its_pods_hang_on(tmp_path: Path) -> None:
    lan = {"name": "lan", "mode": "macvlan", "subnet": "192.0.2.0/24", "ipam": {"rangeStart": "192.0.2.250"}}
    pods = {"name": "pods", "bridge": "br7", "subnet": "10.244.1.0/24"}
    vxlan = {"name": "far", "mode": "vxlan", "subnet": "10.245.1.0/24"}
    ipip = {"name": "bgp", "mode": "ipip", "subnet": "10.246.1.0/24"}
    assert shown(tmp_path, lan, pods, vxlan, ipip) == [
        "NETWORK MODE DEVICE FAMILY USED COOLING FREE BLOCKS",
        "lan macvlan bond0 ipv4 0 0 6 192.0.2.0/24",
        "pods host-gw br7 ipv4 0 0 253 10.244.1.0/24",
        "far vxlan testcni-vxlan ipv4 0 0 253 10.245.1.0/24",
        "bgp ipip testcni-ipip ipv4 0 0 253 10.246.1.0/24",
    ]


def test_a_network_of_two_ip_versions_has_a_line_for_each() -> None:
    counts = {"ipv4": {"used": 2, "cooling": 1, "free": 250}, "ipv6": {"used": 2, "cooling": 0, "free": 2**64 - 4}}
    blocks = ["10.244.1.0/24", "10.244.9.0/24", "fd00:1::/64"]
    network = {"name": "pods", "mode": "host-gw", "device": "br7", "blocks": blocks, "addresses": counts}
    text = ctl.render({**DOC, "networks": [network]}, colour=False)
    assert [" ".join(line.split()) for line in text.splitlines()[3:]] == [
        "pods host-gw br7 ipv4 2 1 250 10.244.1.0/24 10.244.9.0/24",
        f"pods host-gw br7 ipv6 2 0 {2**64 - 4} fd00:1::/64",
    ]


def test_a_problem_is_shown_with_its_remedy() -> None:
    doc = {**DOC, "problems": [{"where": "eth0", "what": "is down", "remedy": "up"}]}
    assert "problem eth0: is down; up" in ctl.render(doc, colour=False)


def test_words_of_others_do_not_control_the_terminal() -> None:
    """The name of a file beside testcni's, for example, is in a problem."""
    problem = {"where": "00-\x1b[2J\x9b\u202e.conf", "what": "is\nbad", "remedy": "remove\x7f it"}
    text = ctl.render({**DOC, "problems": [problem]}, colour=False)
    assert r"problem 00-\u001b[2J\u009b\u202e.conf: is\u000abad; remove\u007f it" in text
    assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "changed", [{"synced": None, "networks": 5}, {"problems": [{}]}, {"nodes": 1, "uptimeSeconds": "long"}]
)
def test_a_report_of_another_form_says_what_to_do(
    changed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ctl.show({**DOC, **changed}, "text") == ctl.EXIT_NO_AGENT
    out, err = capsys.readouterr()
    assert out == ""
    assert "use the testcnictl of the agent's version" in err


def test_a_report_without_its_state_is_not_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl.show({"node": "one"}, "json") == ctl.EXIT_NO_AGENT
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("output", ["text", "json"])
def test_a_reader_that_ends_early_changes_no_exit_code(output: str) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        assert shown_to(pipe, output) == (0, "")


def test_a_full_disk_is_said_in_one_line() -> None:
    with Path("/dev/full").open("wb") as full:
        assert shown_to(full) == (3, "testcnictl: cannot write: [Errno 28] No space left on device\n")


def shown_to(out: IO[bytes], output: str = "text") -> tuple[int, str]:
    """Show a healthy report to a file; return exit code and stderr."""
    script = f"import sys\nfrom agent import ctl\nsys.exit(ctl.show({DOC!r}, {output!r}))"
    argv = [sys.executable, "-c", script]
    done = subprocess.run(argv, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stderr
