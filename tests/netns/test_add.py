"""ADD and DEL on a real kernel: what a pod gets, what comes back, and that nothing stays."""

from __future__ import annotations

import ipaddress
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from agent.errors import CniError, Code
from agent.ip import Address
from agent.ipam.assign.add_times import AddTimes
from agent.ipam.attachments.attachment import Attachment
from agent.kernel import ip_links, netlink
from agent.model.cluster import IPPool, IPReservation, Node
from agent.model.node_status import PodEvent
from tests.netns.node import CONF, SEED, Host, Pod, command
from tests.support import eventually, ip, net


def test_links_send_as_soon_as_a_pod_is_added(tmp_path: Path) -> None:
    """A bridge drops packets just after it got its first port: an ARP answer is lost, which costs a second."""
    host = Host(tmp_path)
    for number in range(100):
        pod = Pod(f"c{number}")
        names = {interface["name"] for interface in host.add(pod)["interfaces"][:2]}
        # a list, because a request for one link makes the kernel update it
        silent = [link for link in ip_links.links(netlink.host()) if link.name in names and not link.running]
        assert silent == [], f"pod {number}"
        host.delete(pod)
        pod.close()


def test_the_seeds_conf_answers_in_its_own_version(tmp_path: Path) -> None:
    host, pod = Host(tmp_path), Pod("c1")
    result = host.add(pod, SEED)
    assert result["cniVersion"] == "0.3.0"
    assert [interface["name"] for interface in result["interfaces"]][::2] == ["testcni0", "eth0"]
    assert result["ips"][0] == {
        "version": "4",
        "address": "10.244.1.2/24",
        "gateway": "10.244.1.1",
        "interface": 2,
    }
    assert "mtu" not in result["interfaces"][0]


def test_del_with_a_netconf_that_is_wrong_by_now(tmp_path: Path) -> None:
    host, pod = Host(tmp_path), Pod("c1")
    host.add(pod)
    host.delete(pod, {**CONF, "mtu": "junk", "new": 1})
    assert host.attachments.all() == ()


def test_add_again_in_a_new_netns_is_made_again(tmp_path: Path) -> None:
    host, pod = Host(tmp_path), Pod("c1")
    host.add(pod)
    again = Pod("c1")
    host.add(again)
    assert again.reaches("10.244.1.1")
    assert len(host.attachments.all()) == 1
    assert not [link for link in pod.json("link") if link["ifname"] == "eth0"]


def test_add_repairs_a_pod_that_lost_its_address(tmp_path: Path) -> None:
    host, pod = Host(tmp_path), Pod("c1")
    host.add(pod)
    pod.run("ip", "address", "flush", "dev", "eth0")
    host.add(pod)
    assert pod.reaches("10.244.1.1")


def test_a_container_with_two_interfaces(tmp_path: Path) -> None:
    host, pod = Host(tmp_path), Pod("c1")
    host.add(pod)
    result = host.add(
        pod, {**CONF, "name": "second", "ipam": {"routes": [{"dst": "198.51.100.0/24"}]}}, ifname="net1"
    )
    assert result["interfaces"][-1]["name"] == "net1"


def test_one_interface_name_is_of_one_network(tmp_path: Path) -> None:
    host, pod = Host(tmp_path), Pod("c1")
    host.add(pod)
    with pytest.raises(CniError, match="has eth0 on network 'testcni' already"):
        host.add(pod, {**CONF, "name": "second"})
    assert pod.reaches("10.244.1.1")


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        ({"container_id": ""}, Code.INVALID_ENVIRONMENT, "CNI_CONTAINERID: ''"),
        ({"container_id": "../x"}, Code.INVALID_ENVIRONMENT, "CNI_CONTAINERID"),
        ({"ifname": ""}, Code.INVALID_ENVIRONMENT, "CNI_IFNAME"),
        ({"ifname": "a/b"}, Code.INVALID_ENVIRONMENT, "CNI_IFNAME"),
        ({"ifname": ".."}, Code.INVALID_ENVIRONMENT, "CNI_IFNAME"),
        ({"ifname": "sixteen-letters-"}, Code.INVALID_ENVIRONMENT, "CNI_IFNAME"),
        ({"ifname": "lo"}, Code.KERNEL, "create veth pair"),
        ({"netns_fd": None, "netns_error": "No such file"}, Code.UNKNOWN_CONTAINER, "No such file"),
        ({"args": "IP=10.244.1.1"}, Code.ADDRESSES, "10.244.1.1 is not an address for pods"),
        ({"args": "IP=10.244.1.255"}, Code.ADDRESSES, "not an address for pods"),
        ({"args": "IP=junk"}, Code.INVALID_CONFIG, "CNI_ARGS IP"),
        ({"args": "WHO=me"}, Code.INVALID_ENVIRONMENT, "unknown key 'WHO'"),
    ],
)
def test_a_wrong_call_is_told_and_leaves_nothing(
    tmp_path: Path, more: dict[str, Any], code: Code, message: str
) -> None:
    host, pod = Host(tmp_path), Pod("c1")
    host.add(Pod("other"))
    before = host.state()
    with pytest.raises(CniError, match=message) as caught:
        host.add(pod, **more)
    assert caught.value.code == code
    assert host.state() == before


def test_a_spoilt_prev_result_fails_the_add_and_leaves_nothing(tmp_path: Path) -> None:
    host, pod = Host(tmp_path), Pod("c1")
    host.add(Pod("other"))
    before = host.state()
    for spoilt in ({"interfaces": "x"}, {"dns": [1]}):
        with pytest.raises(CniError, match="prevResult"):
            host.add(pod, {**CONF, "prevResult": spoilt})
        assert host.state() == before


def test_the_nodes_own_namespace_is_refused(tmp_path: Path) -> None:
    host, pod = Host(tmp_path), Pod("c1")
    with (
        pytest.raises(CniError, match="the node's own namespace"),
        Path("/proc/thread-self/ns/net").open() as home,
    ):
        host.add(pod, netns_fd=home.fileno())


def test_a_file_that_is_no_namespace_is_refused(tmp_path: Path) -> None:
    host, pod = Host(tmp_path), Pod("c1")
    host.add(Pod("other"))
    before = host.state()
    (tmp_path.parent / "file").touch()
    with (tmp_path.parent / "file").open() as file, pytest.raises(CniError) as caught:
        host.add(pod, netns_fd=file.fileno())
    assert caught.value.code in (Code.KERNEL, Code.UNKNOWN_CONTAINER)
    assert host.state() == before


def test_what_the_netconf_asks_for_is_in_the_kernel(tmp_path: Path) -> None:
    host, pod = Host(tmp_path), Pod("c1")
    conf = {
        **CONF,
        "bridge": "br-pods",
        "mtu": 1400,
        "dns": {"nameservers": ["192.0.2.53"]},
        "ipam": {
            "rangeStart": "10.244.1.100",
            "rangeEnd": "10.244.1.101",
            "routes": [{"dst": "198.51.100.0/24", "gw": "10.244.1.7"}],
        },
        "runtimeConfig": {"mac": "02:00:00:00:00:05"},
    }
    result = host.add(pod, conf)
    assert result["ips"][0]["address"] == "10.244.1.100/24"
    assert result["dns"] == {"nameservers": ["192.0.2.53"]}
    eth0 = pod.json("link", "show", "eth0")[0]
    assert (eth0["address"], eth0["mtu"]) == ("02:00:00:00:00:05", 1400)
    assert {(r["dst"], r.get("gateway")) for r in pod.json("route")} == {
        ("default", "10.244.1.1"),
        ("198.51.100.0/24", "10.244.1.7"),
        ("10.244.1.0/24", None),
    }
    assert "br-pods" in command("ip", "link")


def test_addresses_asked_for_by_args_and_capability(tmp_path: Path) -> None:
    host = Host(tmp_path)
    assert host.add(Pod("c1"), args="IP=10.244.1.77")["ips"][0]["address"] == "10.244.1.77/24"
    asked = {**CONF, "runtimeConfig": {"ips": ["10.244.1.78/24"]}}
    assert host.add(Pod("c2"), asked)["ips"][0]["address"] == "10.244.1.78/24"
    with pytest.raises(CniError, match="is in use"):
        host.add(Pod("c3"), asked)


def test_a_full_block_says_so_and_frees_on_del(tmp_path: Path) -> None:
    host = Host(tmp_path, ["10.244.1.0/29"])
    pods = [Pod(f"c{number}") for number in range(5)]
    for pod in pods:
        host.add(pod)
    with pytest.raises(CniError, match=r"no address is free in 10\.244\.1\.0/29 \(5 in all\)") as caught:
        host.add(Pod("late"))
    assert caught.value.code == Code.ADDRESSES
    with pytest.raises(CniError) as caught:
        host.call("STATUS")
    assert caught.value.code == Code.NOT_AVAILABLE
    host.delete(pods[2])
    assert host.call("STATUS") == {}
    assert host.add(Pod("late"))["ips"][0]["address"] == "10.244.1.4/29"


def test_a_full_node_is_a_problem_while_it_is_and_the_pod_hears_of_it(tmp_path: Path) -> None:
    host = Host(tmp_path, ["10.244.1.0/29"])
    pods = [Pod(f"c{number}") for number in range(5)]
    for pod in pods[:4]:
        host.add(pod)
    host.looked()
    assert host.reconciler.status.get().problems == ()
    host.add(pods[4])
    args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u1"
    with pytest.raises(CniError, match="no address is free") as caught:
        host.add(Pod("late"), args=args)
    assert host.pod_events == [PodEvent("shop/web", "u1", "AddressNotGiven", str(caught.value))]
    host.looked()
    (problem,) = host.reconciler.status.get().problems
    why = "no address is free in 10.244.1.0/29 (5 in all), and the node's podCIDRs are all that it has"
    assert (problem.where, problem.what) == ("network testcni", why)
    host.delete(pods[2])
    host.looked()
    assert host.reconciler.status.get().problems == ()


def test_a_pod_hears_that_its_node_has_no_block(tmp_path: Path) -> None:
    host = Host(tmp_path, [], times=AddTimes(prepared=0.3))
    with pytest.raises(CniError, match="not ready for network"):
        host.add(Pod("c1"), args="IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u1")
    (pod_event,) = host.pod_events
    assert (pod_event.pod, pod_event.reason) == ("shop/web", "AddressNotGiven")


def test_what_two_confs_of_a_network_have_in_common_is_one_problem(tmp_path: Path) -> None:
    host = Host(tmp_path, ["10.244.1.0/24"])
    host.add(Pod("c1"))
    host.add(Pod("c2"), {**CONF, "mtu": 1400})
    host.put(IPReservation(ip("10.244.1.0"), "default/web"))
    assert len(host.reconciler.status.get().blocks) == 2
    (problem,) = eventually(lambda: host.reconciler.status.get().problems)
    assert problem.where == "IPReservation 10-244-1-0"


def test_what_the_pool_excludes_is_given_to_nobody(tmp_path: Path) -> None:
    host = Host(tmp_path, ["10.244.1.0/28"])
    part = {"start": ip("10.244.1.3"), "end": ip("10.244.1.8"), "exclude": (net("10.244.1.4/31"),)}
    host.put(IPPool("pods", net("10.244.0.0/16"), 28, gateway=ip("10.244.1.7"), **part))  # type: ignore[arg-type]
    eventually(lambda: host.reconciler.status.get().excluded or host.call("STATUS"))
    given = [host.add(Pod(f"c{number}"))["ips"][0]["address"] for number in range(3)]
    assert given == ["10.244.1.3/28", "10.244.1.6/28", "10.244.1.8/28"]
    with pytest.raises(CniError, match=r"\(3 in all\), and the node's podCIDRs are all that it has") as caught:
        host.add(Pod("late"))
    assert caught.value.code == Code.ADDRESSES
    with pytest.raises(CniError, match="not an address for pods"):
        host.add(Pod("asked"), {**CONF, "runtimeConfig": {"ips": ["10.244.1.4"]}})


def test_a_block_that_was_withdrawn_after_the_add_had_looked_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tmp_path, ["10.244.1.0/24", "10.244.2.0/24"])
    host.ready()
    take, taken = host.attachments.take, list[Address]()

    def slow(*args: Any) -> Attachment:
        made = take(*args)
        taken.append(made.leases[0].address)
        if len(taken) == 1:  # the node path: publish first, then look who has addresses
            host.put(Node("one", host.me.addresses, (net("10.244.2.0/24"),)))
            eventually(lambda: host.reconciler.status.get().blocks[made.network] == (net("10.244.2.0/24"),))
            assert host.attachments.busy(net("10.244.1.0/24")), "either of the two sees the other"
        return made

    monkeypatch.setattr(host.attachments, "take", slow)
    assert host.add(Pod("c1"))["ips"][0]["address"] == "10.244.2.2/24"
    assert taken == [ip("10.244.1.2"), ip("10.244.2.2")]
    assert not host.attachments.busy(net("10.244.1.0/24"))
    assert len(host.attachments.all()) == 1


def test_an_address_cools_before_it_is_used_again(tmp_path: Path) -> None:
    host, pods = Host(tmp_path, ["10.244.1.0/30"], cool_down=0.3), [Pod("c1"), Pod("c2")]
    host.add(pods[0])
    began = time.monotonic()
    host.delete(pods[0])
    assert host.add(pods[1])["ips"][0]["address"] == "10.244.1.2/30"
    assert time.monotonic() - began > 0.29


def test_a_node_without_addresses_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host, pod = Host(tmp_path, [], times=AddTimes(prepared=0.3)), Pod("c1")
    host.me = Node("one", (ip("192.0.2.1"),))
    conf = {key: value for key, value in CONF.items() if key != "subnet"}
    with pytest.raises(CniError, match="not ready for network") as caught:
        host.add(pod, conf)
    assert caught.value.code == Code.TRY_AGAIN


def test_a_thousand_pairs_leave_what_was_there(tmp_path: Path) -> None:
    host, pod = Host(tmp_path), Pod("c1")
    host.add(Pod("other"))
    host.add(pod)
    host.delete(pod)
    before, fds = host.state(), len(list(Path("/proc/self/fd").iterdir()))
    for number in range(1000):
        host.add(pod, container_id=f"c{number}")
        host.delete(pod, container_id=f"c{number}")
    assert host.state() == before
    assert len(list(Path("/proc/self/fd").iterdir())) <= fds + 16, "no more than the reapers' own sockets"


def test_parallel_adds_give_each_pod_an_address_of_its_own(tmp_path: Path) -> None:
    host, pods = Host(tmp_path), [Pod(f"c{number}") for number in range(60)]
    results: list[str] = []
    threads = [
        threading.Thread(target=lambda pod=pod: results.append(host.add(pod)["ips"][0]["address"])) for pod in pods
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(results)) == len(pods)
    assert all(ipaddress.ip_interface(address).network == net("10.244.1.0/24") for address in results)
