"""What runtimes and the plugin give to the agent, nearly right: requests, journaled DELs, the conf folder."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cni.handler import CniHandler
from agent.cni.journal import Journal
from agent.cni.protocol import Call
from agent.cni.server import Server
from agent.errors import Code
from agent.host import cni_conf_dir
from agent.ipam.assign.add_times import AddTimes
from agent.ipam.attachments.attachment_store import AttachmentStore
from agent.kernel.bpf.loader import Loader
from agent.model.node_status import NodeStatus
from agent.modes.registry import BUILT_IN
from agent.objects.host_kernel import HostKernel
from agent.runtime.observable import Observable
from tests.networks import OPTIONS
from tests.unit.fuzz import dumped, folder, fuzz, texts

pytestmark = pytest.mark.usefixtures("quiet")
NETWORK = "fuzzed-network"  # of no pod of this machine
CONF = {
    "cniVersion": "1.1.0", "name": NETWORK, "type": "testcni", "mode": "vxlan", "subnet": "10.244.0.0/16",
    "mtu": 1400, "ipam": {"routes": [{"dst": "0.0.0.0/0", "gw": "10.244.0.1"}]},
    "runtimeConfig": {"ips": ["10.244.0.9/16"]},
    "dns": {"nameservers": ["10.0.0.1"]}, "args": {"cni": {"ips": ["10.244.0.9"]}},
    "prevResult": {"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": "/n"}], "ips": [
        {"address": "10.244.0.9/16", "interface": 0}]},
    "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}],
}  # fmt: skip
LIST = {"name": "listed", "cniVersion": "1.0.0", "disableCheck": True, "plugins": [
    CONF, {"type": "tuning", "mac": "0a:00:00:00:00:01", "capabilities": {"mac": True}}]}  # fmt: skip
VERBS = ("ADD", "DEL", "CHECK", "GC", "STATUS")
REQUEST = {
    "protocol": 1, "containerID": "c1", "ifname": "eth0", "netns": "/n", "netnsError": "", "bootID": "x",
    "args": "IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;IP=10.0.0.1",
}  # fmt: skip
LAST = dumped({**REQUEST, "command": "DEL", "containerID": "last"})


def request(verb: str, conf: bytes = dumped(CONF)) -> bytes:
    text = conf.decode("utf-8", "surrogateescape")
    doc = json.dumps({**REQUEST, "command": verb, "config": text}, ensure_ascii=False)
    return doc.encode("utf-8", "surrogateescape")


def a_request() -> st.SearchStrategy[bytes]:
    """A request with changes, or a good one with a changed netconf."""
    return texts(*map(request, VERBS)) | st.builds(request, st.sampled_from(VERBS), texts(dumped(CONF)))


@pytest.fixture(scope="module")
def handler(tmp_path_factory: pytest.TempPathFactory) -> CniHandler:
    run_dir = tmp_path_factory.mktemp("run")
    attachments = AttachmentStore(run_dir, 0, OPTIONS)
    attachments.load()
    host = HostKernel(Loader(run_dir, run_dir / "pins"))
    status, times = Observable(NodeStatus(synced=True)), AddTimes(status=0.0)
    return CniHandler(host, attachments, status, Observable({}), modes=BUILT_IN, times=times)


@pytest.fixture(scope="module")
def ask(
    tmp_path_factory: pytest.TempPathFactory, handler: CniHandler
) -> Iterator[Callable[[bytes], dict[str, Any]]]:
    path = tmp_path_factory.mktemp("socket") / "agent.sock"
    server = Server(path, handler.answer)
    server.start()

    def call(data: bytes) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            with client.makefile("rb") as answer:
                doc: dict[str, Any] = json.loads(answer.read())
        return doc

    yield call
    assert server.stop(5)


@fuzz(100)
@given(data=a_request())
def test_every_request_gets_an_answer_of_the_cni_specification(
    ask: Callable[[bytes], dict[str, Any]], data: bytes
) -> None:
    answer = ask(data)
    assert answer.get("code", 0) in {*Code} - {Code.INTERNAL} | {0}, answer
    assert ask(LAST) == {}


@fuzz(100)
@given(conf=texts(dumped(CONF)))
def test_a_pod_goes_whatever_its_netconf_says(ask: Callable[[bytes], dict[str, Any]], conf: bytes) -> None:
    assert ask(request("DEL", conf)) == {}


@fuzz(60)
@given(entries=st.lists(a_request(), max_size=3), noted=texts(dumped([["0.json", 1, 2]])))
def test_the_last_journaled_del_is_done_whatever_comes_before_it(
    handler: CniHandler, entries: list[bytes], noted: bytes
) -> None:
    done = []

    def delete(call: Call) -> None:
        handler.answer(call)
        done.append(call.container_id)

    with folder() as state:
        (state / "noted").write_bytes(noted)
        (state / "deletes").mkdir()
        for number, data in enumerate(entries):
            (state / f"deletes/{number}.json").write_bytes(data)
        (state / "deletes/9.json").write_bytes(LAST)
        journal = Journal(state, delete, state / "noted")
        journal.prepare()
        journal.replay()
        assert done[-1:] == ["last"]
        assert not list((state / "deletes").glob("*.json"))


@fuzz(60)
@given(
    files=st.lists(texts(dumped(LIST), dumped(CONF)), max_size=3),
    template=texts(dumped(LIST)),
    suffix=st.sampled_from(["conf", "conflist", "json"]),
)
def test_a_good_conf_is_found_among_bad_ones(files: list[bytes], template: bytes, suffix: str) -> None:
    with folder() as place:
        for number, data in enumerate(files):
            (place / f"{number}.{suffix}").write_bytes(data)
        (place / "template").write_bytes(template)
        (place / "zz.conf").write_bytes(dumped(CONF | {"name": "good"}))
        found = cni_conf_dir.read(place, place / "template", modes=BUILT_IN)
    assert "good" in {network.name for network in found.networks}
