"""What lies on the node, nearly right: the agent's own notes, its options, and what BIRD answers."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import config
from agent.app import Agent
from agent.codec.network_json import encode_network
from agent.config import ConfigError
from agent.host.run_dir import Lock
from agent.ipam.attachments import attachment
from agent.ipam.attachments.attachment import Attachment, Lease
from agent.model.cluster import Snapshot
from agent.model.problem_board import PartProblems
from agent.modes.base import NodeNotReadyError
from agent.modes.ipip.bird import control, daemon, logs, session_checks
from agent.modes.ipip.bird.control import Control, ControlError
from agent.modes.ipip.bird.daemon import Files
from agent.modes.ipip.bird.options import OptionsFile
from agent.modes.ipip.bird.supervisor import Supervisor
from agent.modes.ipip.bird.types import BirdConfig, BirdError
from agent.modes.registry import BUILT_IN
from agent.node import route_protocol
from tests.networks import AGENT_OPTIONS, network_of
from tests.unit.fuzz import dumped, folder, fuzz, lines, texts
from tests.unit.test_bird_control import GREETING, PROTOCOLS
from tests.unit.test_fuzz_cluster import OTHERS

pytestmark = pytest.mark.usefixtures("quiet")
BLOCK = ipaddress.ip_network("10.244.1.0/24")
NETWORK = network_of("net", subnet=ipaddress.ip_network("10.244.0.0/16"), mtu=1400)


def pod(number: int) -> Attachment:
    lease = Lease(ipaddress.ip_address(f"10.244.1.{number}"), BLOCK)
    return Attachment(f"c{number}", "eth0", NETWORK, "/n", f"a/{number}", (lease,), "0a:58:0a:f4:01:02")


WIRED = dumped({
    "interfaces": [{"name": "tcni0", "mac": "0a:58:0a:f4:01:01"}, {"name": "eth0", "sandbox": "/n"}],
    "ips": [{"address": "10.244.1.2/24", "interface": 1, "gateway": "10.244.1.1"}],
    "routes": [{"dst": "0.0.0.0/0"}],
})  # fmt: skip
FILE = attachment.encode(pod(2)) + b"\n" + WIRED + b"\n"
NETWORK_DOC = encode_network(NETWORK)
NOTES = {
    "prepared.json": dumped({"format": 1, "networks": [{
        "network": NETWORK_DOC, "blocks": ["10.244.1.0/24"], "withheld": ["10.244.1.8/29"], "families": [4],
        "uplink": {"device": "eth0", "hosts": ["192.0.2.1"], "gateway": "192.0.2.254",
                   "via_host": ["10.96.0.0/12"], "reserved": ["192.0.2.9"]}}]}),
    "reservations.json": dumped([OTHERS["IPReservation"]]),
    "nodes.json": dumped({"format": 1, "nodes": {"n1": [["192.0.2.1"], ["10.244.1.0/24"]]},
                          "owners": {"10.244.1.0/24": "n1"}}),
    "route-protocol.json": dumped({"protocols": [84, 112]}),
    "released": b"10.244.1.3 1.5\n10.244.1.4 2.5\n",
    "deletes-done": dumped([["0.json", 1, 2]]),
    "bgp-options": b"/etc/bgp.yaml",
}  # fmt: skip
BGP = (
    b"asNumber: 64512\npasswordFile: /nowhere\npeers:\n- address: 192.0.2.9\n  asNumber: 65000\n"
    b"  multihop: true\n  nodeSelector: {rack: 'a'}\n"
)
OPTIONS = b"""node: n1
datastore: dir:/x
cool-down: 10
listen: 127.0.0.1:9480
pod-annotations: on
route-protocol: 112
"""


@fuzz(40)
@given(
    notes=st.fixed_dictionaries({}, optional={name: texts(data) for name, data in NOTES.items()}),
    attached=st.lists(texts(FILE), min_size=1, max_size=2),
    suffix=st.sampled_from([".json", ".new", ".bad"]),
)
def test_an_agent_starts_and_knows_its_good_pods_among_bad_notes(
    notes: dict[str, bytes], attached: list[bytes], suffix: str
) -> None:
    with folder() as place:
        good = pod(9)
        (place / "attachments").mkdir()
        (place / f"attachments/{good.link}.json").write_bytes(attachment.encode(good) + b"\n" + WIRED + b"\n")
        for number, data in enumerate(attached, 2):
            (place / f"attachments/{pod(number).link}{suffix}").write_bytes(data)
        for name, data in notes.items():
            (place / name).write_bytes(data)
        with agent_on(place) as agent:
            start(agent)
            assert agent.shared.attachments.get("c9", "eth0") == replace(good, wired=json.loads(WIRED))
            assert route_protocol.in_use(place, 112)


@contextlib.contextmanager
def agent_on(place: Path) -> Iterator[Agent]:
    flags = [f"--{name}-dir={place}" for name in ("conf", "run", "state")]
    conf = config.load([*flags, f"--datastore=dir:{place}", "--node=n1", "--listen=off"], {}, AGENT_OPTIONS)
    lock = Lock(conf.run_dir)
    agent = Agent(conf, lock, BUILT_IN)
    yield agent
    os.close(lock._fd)
    bird = agent.node.mode_threads["bird"]
    assert isinstance(bird, Supervisor)
    os.close(bird._wake)


def start(agent: Agent) -> None:
    """What an agent does at its start, but for the kernel."""
    agent.shared.attachments.load()
    agent.shared.attachments.note_unknown_links({})
    agent.pods.journal.prepare()
    agent.pods.journal.replay()
    for known in agent.shared.attachments.in_force():
        with contextlib.suppress(NodeNotReadyError):
            BUILT_IN[known.network.mode].port(known)
    json.dumps(agent.report()).encode()
    agent.node.reconciler._last_known.look(Snapshot(synced=True))
    agent.cluster.reservations._set_reserved()
    agent.node.reconciler._inputs.marks.ownership(frozenset())


@fuzz(60)
@given(data=texts(BGP), again=texts(BGP))
def test_bgp_options_are_taken_or_a_problem(data: bytes, again: bytes) -> None:
    with folder() as place:
        file = OptionsFile(place / "bgp.yaml", PartProblems("bgp-options").report_error, place / "note")
        for text in (data, again):
            (place / "bgp.yaml").write_bytes(text)
            options, problems = file.look()
            assert options or problems


@fuzz(60)
@given(data=texts(OPTIONS))
def test_a_config_file_is_taken_or_a_usage_error(data: bytes) -> None:
    with folder() as place:
        (place / "config").write_bytes(data)
        with contextlib.suppress(ConfigError):
            config.load(["--config", str(place / "config")], {}, AGENT_OPTIONS)


class Talker:
    """A control socket that says one text to whoever connects."""

    def __init__(self, path: Path) -> None:
        self.text = b""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.sendall(self.text)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture(scope="module")
def bird(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Talker, Path]]:
    path = Files(tmp_path_factory.mktemp("bird")).socket
    talker = Talker(path)
    yield talker, path
    talker.close()


RESTRICTED = "0016 Access restricted\n"
ROUTES = (
    "1007-Table master4:\n 10.244.2.0/24        unicast [node_b 10:00:00] * (100) [i]\n \tvia 192.0.2.3 on eth0\n"
    "0000 \n"
)
COUNT = "1007-12 of 13 routes for 12 networks in table master4\n0014 Total: 12 of 13 routes for 12 networks\n"
STATUS = "1000-BIRD 2.0.12\n1011-Router ID is 192.0.2.1\n0013 Daemon is up and running\n"
REPLIES = {
    "protocols": PROTOCOLS,
    "routes": ROUTES,
    "route_count": COUNT,
    "is_busy": STATUS,
    "configure": "0003 Done\n",
}


def said(text: str) -> st.SearchStrategy[bytes]:
    """A text of BIRD with changes, most often in its lines."""
    return st.one_of(*[lines(text, 5)] * 4, texts(text.encode()))


@fuzz(100)
@given(data=st.data(), question=st.sampled_from([*REPLIES]))
def test_bird_answers_or_it_is_an_error_of_its_socket(
    bird: tuple[Talker, Path], data: st.DataObject, question: str
) -> None:
    talker, path = bird
    talker.text = f"{GREETING}{RESTRICTED}".encode() + data.draw(said(REPLIES[question]))
    with contextlib.suppress(ControlError, BirdError), Control(path) as connection:
        found = getattr(connection, question)()
        if question == "protocols":
            check_sessions(found)


@fuzz(40)
@given(greeting=said(GREETING), pid=texts(b"1234\n"))
def test_a_bird_that_does_not_answer_is_looked_for_by_its_pid(
    bird: tuple[Talker, Path], greeting: bytes, pid: bytes
) -> None:
    talker, path = bird
    talker.text = greeting
    files = Files(path.parent)
    files.pid.write_bytes(pid)
    files.standby.write_bytes(pid)
    with contextlib.suppress(BirdError):
        assert daemon.find(files) is None
    with contextlib.suppress(BirdError):
        daemon.restore(files)


def check_sessions(found: tuple[control.Protocol, ...]) -> None:
    sessions = control.sessions(found, {"node_b": "b"})
    here = BirdConfig("n1", ipaddress.IPv4Address("192.0.2.1"))
    watched = session_checks.Health()
    watched.problems(here, sessions, time.monotonic() - 60)
    for problem in watched.problems(here, sessions, time.monotonic()):
        str(problem).encode()


@fuzz(60)
@given(line=texts(b"bird: 2026-11-24 21:16:57.908 <RMT> node_b: Error: x"))
def test_a_line_of_birds_log_has_a_level(line: bytes) -> None:
    level, _text = logs.parse(line.decode(errors="replace"))
    assert level > 0
