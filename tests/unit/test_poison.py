"""Poisoned input and state: it costs itself, never the agent, and never what comes after it."""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import config
from agent.app import Agent
from agent.cluster import objects
from agent.cluster.directory_store import DirectoryStore
from agent.cluster.kubernetes_store import KubernetesStore
from agent.cluster.object_fields import ObjectError
from agent.cluster.snapshot_cache import SnapshotCache
from agent.cluster.store import Datastore
from agent.cni.handler import CniHandler
from agent.cni.journal import Journal
from agent.cni.protocol import Call
from agent.cni.server import Server
from agent.codec import strict_json, strict_yaml
from agent.codec.strict_json import JsonError
from agent.codec.strict_yaml import YamlError
from agent.config import ConfigError
from agent.errors import Code
from agent.host import cni_conf_dir
from agent.host.cni_conf_dir import Confs
from agent.host.run_dir import Lock
from agent.ipam.attachments.attachment_store import AttachmentStore
from agent.kernel import nft
from agent.kernel.bpf.loader import Loader
from agent.model.node_status import NodeStatus
from agent.modes.registry import BUILT_IN
from agent.objects.host_kernel import HostKernel
from agent.observe import health
from agent.runtime.observable import Observable
from tests.networks import AGENT_OPTIONS, OPTIONS, network_of
from tests.support import eventually
from tests.unit import poison
from tests.unit.awkward import Asked, Awkward
from tests.unit.awkward import config as reach
from tests.unit.test_kubernetes_store import event, page

REQUEST = {"protocol": 1, "containerID": "c1", "ifname": "eth0"}
GOOD = '{"cniVersion": "1.0.0", "name": "good", "type": "testcni"}'


@pytest.fixture(autouse=True)
def _garbage_waits() -> Iterator[None]:
    """Some texts exhaust the stack, where a finalizer of what earlier tests left fails, and pytest hears of it."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def handler(tmp_path: Path) -> CniHandler:
    attachments = AttachmentStore(tmp_path, 0, OPTIONS)
    attachments.load()
    host = HostKernel(Loader(tmp_path, tmp_path / "pins"))
    return CniHandler(host, attachments, Observable(NodeStatus()), Observable({}), modes=BUILT_IN)


@pytest.fixture
def ask(tmp_path: Path, handler: CniHandler) -> Iterator[Callable[[str, str], dict[str, Any]]]:
    """Calls the verbs by the agent's socket."""
    server = Server(tmp_path / "agent.sock", handler.answer)
    server.start()

    def call(verb: str, conf: str) -> dict[str, Any]:
        request = json.dumps({**REQUEST, "command": verb, "config": conf}, ensure_ascii=False)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "agent.sock"))
            client.sendall(request.encode("utf-8", "surrogateescape"))
            client.shutdown(socket.SHUT_WR)
            with client.makefile("rb") as answer:
                doc: dict[str, Any] = json.load(answer)
        return doc

    yield call
    server.stop(5)


@pytest.mark.parametrize("conf", poison.JSON.values(), ids=poison.JSON)
def test_a_netconf_that_cannot_be_read_is_error_6_at_add(
    ask: Callable[[str, str], dict[str, Any]], conf: str
) -> None:
    assert ask("ADD", conf)["code"] == Code.DECODING_FAILURE


@pytest.mark.parametrize("conf", [*poison.JSON.values(), '{"name": ["net"]}', '{"mode": {}}'])
def test_a_pod_can_go_whatever_its_netconf_says(ask: Callable[[str, str], dict[str, Any]], conf: str) -> None:
    assert ask("DEL", conf) == {}


def entry(folder: Path, name: str, **more: object) -> Path:
    path = folder / name
    doc = {**REQUEST, "command": "DEL", "config": "{}", **more}
    path.write_bytes(json.dumps(doc, ensure_ascii=False).encode("utf-8", "surrogateescape"))
    return path


def test_a_poisoned_journal_entry_holds_up_no_other(tmp_path: Path, handler: CniHandler) -> None:
    done: list[str] = []

    def delete(call: Call) -> None:
        if call.container_id == "bug":
            raise RuntimeError("a bug")
        handler.answer(call)
        done.append(call.container_id)

    journal = Journal(tmp_path, delete)
    journal.prepare()
    folder = tmp_path / "deletes"
    entry(folder, "00.json", containerID="first")
    for number, text in enumerate(poison.JSON.values()):
        (folder / f"1{number:02}.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        entry(folder, f"2{number:02}.json", containerID=f"c{number}", config=text)
    entry(folder, "30.json", protocol=10**60)
    entry(folder, "31.json", containerID="bug")
    entry(folder, "32.json", containerID="../etc")
    (folder / "33.json").mkdir()
    os.mkfifo(folder / "34.json")
    (folder / "35.json").symlink_to("nowhere")
    (folder / "36.json").symlink_to("36.json")
    (folder / "38.json").symlink_to("/etc/hostname/nowhere")
    os.mkfifo(folder / ".37.json.tmp")
    entry(folder, "99.json", containerID="last")
    assert journal.replay() == len(poison.JSON) + 2
    assert (done[0], done[-1]) == ("first", "last")
    left = sorted(path.name for path in folder.iterdir() if path.suffix == ".json")
    assert left == ["31.json"], "a bug may be gone tomorrow; a link is no entry of a plugin, and leads nowhere"
    rejected = {path.stem for path in folder.glob("*.rejected")}
    assert {"33", "34", "35", "36", "38"} <= rejected


def test_a_poisoned_conf_costs_its_neighbours_nothing(tmp_path: Path) -> None:
    for number, text in enumerate(poison.JSON.values()):
        data = f'"testcni" {text}'.encode("utf-8", "surrogateescape")
        (tmp_path / f"{number}.conf").write_bytes(data)
    os.mkfifo(tmp_path / "fifo.conf")
    (tmp_path / os.fsdecode(b"odd\xff.conf")).write_text('"testcni')
    (tmp_path / "zz.conf").write_text(GOOD)
    found = cni_conf_dir.read(tmp_path, modes=BUILT_IN)
    assert [network.name for network in found.networks] == ["good"]
    assert len(found.problems) == len(poison.JSON) + 2
    page_ = health.ready(NodeStatus(synced=True, problems=found.problems), found, None)
    assert b"odd" in page_.body, "a file name that is not UTF-8 can be shown"


@pytest.mark.parametrize("text", poison.YAML.values(), ids=poison.YAML)
def test_a_poisoned_manifest_is_a_problem_and_its_neighbours_are_read(tmp_path: Path, text: str) -> None:
    """In a process of its own, as deep nesting ends the one that reads it."""
    (tmp_path / "bad.yaml").write_text(text)
    (tmp_path / "good.yaml").write_text("apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n")
    program = (
        "import sys, pathlib; from agent.cluster.directory_store import DirectoryStore\n"
        "seen = DirectoryStore(pathlib.Path(sys.argv[1]))._scan()\n"
        "print(*seen.problems, [name for _kind, name in seen.objects])"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == f"{tmp_path}/bad.yaml ['n1']", done.stderr


@pytest.mark.parametrize("text", [*poison.YAML.values(), "node: [a]", "node: {a: b}", "[]", "\x00"])
def test_a_poisoned_config_file_is_a_usage_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(ConfigError):
        config.load(["--config", str(path), "--datastore", "dir:/x"], {}, AGENT_OPTIONS)


def test_an_option_without_a_value_is_not_given(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("node:\n")
    conf = config.load(["--config", str(tmp_path / "config"), "--datastore", "dir:/x"], {}, AGENT_OPTIONS)
    assert conf.node == os.uname().nodename.lower()


@pytest.mark.parametrize(
    "when", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "9999-12-31T00:00:00Z"]
)
def test_a_reservation_from_the_end_of_time_is_refused(when: str) -> None:
    spec = {"address": "10.0.0.1", "owner": "a/b", "pod": "a/b", "node": "n", "network": "x", "since": when}
    doc = {"apiVersion": "testcni.io/v1", "kind": "IPReservation", "metadata": {"name": "10-0-0-1"}, "spec": spec}
    with pytest.raises(ObjectError, match=r"spec\.since"):
        objects.parse(doc)


HOSTILE = [
    b'{"type":"ADDED","object":{"metadata":{"name":"odd","x":%s}}}\n' % poison.DIGITS.encode(),
    b'{"type":"ADDED","object":{"metadata":{"name":"odd","resourceVersion":%s}}}\n' % poison.DIGITS.encode(),
    b'{"type":"ADDED","object":{"metadata":{"name":NaN}}}\n',
    b'{"type":"ADDED","object":{"metadata":"x"}}\n',
    b'{"type":"DELETED","object":{"metadata":[7]}}\n',
    b'{"type":"BOOKMARK","object":{"metadata":7}}\n',
    b'{"type":"ADDED","object":{"metadata":{"name":"odd"},"spec":{"podCIDRs":[%s]}}}\n' % poison.DIGITS.encode(),
    b'{"type":"ADDED","object":{"metadata":{"name":"odd","labels":{"\\ud800":"x"}},"spec":[]}}\n',
    b'{"type":"ADDED","object":' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}\n",
    b'{"type":["ADDED"],"object":{"metadata":{"name":"odd"}}}\n',
    b'{"type":"ADDED","object":{"metadata":{"name":"\xff"}}}\n',
    b"\xff\xfe\n",
]


@pytest.fixture
def api_server() -> Iterator[Callable[..., tuple[SnapshotCache, Awkward]]]:
    """Follows an API server with the agent's own parts."""
    stop, servers, threads = threading.Event(), [], []

    def start(answer: Callable[[Asked], Any]) -> tuple[SnapshotCache, Awkward]:
        from agent.cluster.api import Api  # noqa: PLC0415 - as the agent does

        server = Awkward(answer)
        servers.append(server)
        store: Datastore = KubernetesStore(Api(lambda: reach(server.port, "t")))
        snapshot_cache = SnapshotCache(store)
        threads.append(threading.Thread(target=snapshot_cache.run, args=(stop,)))
        threads[-1].start()
        return snapshot_cache, server

    yield start
    stop.set()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    for server in servers:
        server.close()


def test_hostile_events_hold_up_no_good_ones(api_server: Callable[..., tuple[SnapshotCache, Awkward]]) -> None:
    def lines() -> Iterator[bytes]:
        for number, line in enumerate(HOSTILE):
            yield line
            yield event("ADDED", {"metadata": {"name": f"n{number}", "resourceVersion": "11"}})
        time.sleep(20)

    snapshot_cache, server = api_server(lambda asked: lines() if asked.is_watch else (200, page()))
    wanted = {f"n{number}" for number in range(len(HOSTILE))}
    eventually(lambda: wanted <= set(snapshot_cache.snapshot.get().nodes))
    lists = [one for one in server.asked if one.path == "/api/v1/nodes" and not one.is_watch]
    assert len(lists) == 1
    assert snapshot_cache.problems.get(), "what can't be read is a problem"


def test_hostile_items_of_a_list_hold_up_no_good_ones(
    api_server: Callable[..., tuple[SnapshotCache, Awkward]],
) -> None:
    items = ["null", "7", "[]", '{"metadata": 7}', f'{{"metadata": {{"name": {poison.DIGITS}}}}}']
    items += ['{"metadata": {"name": "x"}, "spec": {"podCIDRs": [NaN]}}', '{"kind": ["Node"], "apiVersion": 7}']
    items += ['{"metadata": {"name": "good"}}']
    body = f'{{"metadata": {{"resourceVersion": "1"}}, "items": [{",".join(items)}]}}'

    def answer(asked: Asked) -> Any:
        if asked.is_watch:
            return iter(())
        return (200, body.encode() if asked.path == "/api/v1/nodes" else page())

    snapshot_cache, _server = api_server(answer)
    eventually(lambda: "good" in snapshot_cache.snapshot.get().nodes)


def test_a_wait_that_the_api_server_asks_for_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from agent.cluster.api import _refusal  # noqa: PLC0415

    class Refused:
        status, reason, data, headers = 429, "", b"{", {"Retry-After": poison.DIGITS}

    assert _refusal("GET /", Refused()).retry_after == 300  # type: ignore[arg-type,attr-defined]


@pytest.mark.parametrize("text", [*poison.JSON.values(), '{"nftables": 7}', '{"nftables": [7]}', "{}"])
def test_what_nft_says_that_is_no_ruleset_is_an_error_of_nft(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(nft, "_run", lambda *_args: text.encode("utf-8", "replace").decode())
    with pytest.raises(nft.NftError):
        nft.list_table("inet", "testcni")


def test_a_file_beside_the_manifests_that_is_no_announcement_costs_only_itself(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text("apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n")
    (tmp_path / "n1.receives").write_text("net=vxlan")
    os.mkfifo(tmp_path / "n2.receives")
    (tmp_path / "n3.receives").mkdir()
    (tmp_path / "n4.receives").write_bytes(b"\xff")
    found = DirectoryStore(tmp_path).get("Node", "n1")
    assert getattr(found, "accepted_modes") == (("net", ("vxlan",)),)  # noqa: B009 - of a Node


@pytest.mark.parametrize("text", poison.JSON.values(), ids=poison.JSON)
def test_the_readers_have_one_error(text: str) -> None:
    with pytest.raises(JsonError):
        strict_json.mapping(text)
    with pytest.raises(JsonError):
        strict_json.mapping(text.encode("utf-8", "surrogateescape"))


@pytest.mark.parametrize("text", poison.YAML.values(), ids=poison.YAML)
def test_the_reader_of_yaml_has_one_error(text: str) -> None:
    with pytest.raises(YamlError):
        strict_yaml.value(text.encode())


def test_an_agent_starts_whatever_is_in_its_state(tmp_path: Path) -> None:
    """The whole of it: journal, state files, conf folder and manifests are poisoned at once."""
    for folder in ("conf", "data", "run", "state/deletes", "run/attachments"):
        (tmp_path / folder).mkdir(parents=True)
    for number, text in enumerate(poison.JSON.values()):
        data = text.encode("utf-8", "surrogateescape")
        for place in ("conf/{}.conf", "state/deletes/{}.json", "data/{}.json", "run/attachments/tcni{}.json"):
            (tmp_path / place.format(number)).write_bytes(data)
    (tmp_path / "run/prepared.json").write_text(poison.JSON["5,000 digits"])
    (tmp_path / "run/reservations.json").write_text(poison.JSON["deeper than the interpreter"])
    (tmp_path / "run/deletes-done").write_text(poison.JSON["NaN"])
    (tmp_path / "run/released").write_text(f"10.0.0.1 {poison.DIGITS}\n")
    given = {"conf-dir": "conf", "run-dir": "run", "state-dir": "state"}
    flags = [f"--{name}={tmp_path / place}" for name, place in given.items()]
    conf = config.load([*flags, f"--datastore=dir:{tmp_path}/data", "--node=n", "--listen=off"], {}, AGENT_OPTIONS)
    agent = Agent(conf, Lock(conf.run_dir), BUILT_IN)
    agent.shared.attachments.load()
    agent.pods.journal.prepare()
    assert agent.pods.journal.replay() == 0
    assert not list((tmp_path / "state/deletes").glob("*.json"))
    assert isinstance(agent.node.confs.found.get(), Confs)
    assert network_of("net") not in agent.node.reconciler.status.get().blocks
