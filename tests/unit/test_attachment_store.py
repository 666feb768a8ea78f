"""One file per attachment: what is on disk is what is in use, whatever happened in between."""

from __future__ import annotations

import errno
import ipaddress
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.ipam.allocator import ExhaustedError, usable
from agent.ipam.attachments.attachment import Attachment, encode, link_name
from agent.ipam.attachments.attachment_store import AttachmentStore, Waits
from agent.model.marks import mac_for
from agent.runtime.deadline import Deadline
from tests.networks import OPTIONS, changed, network_of
from tests.timing import in_time

BLOCK = ipaddress.ip_network("10.244.1.0/29")
RANGE = usable(BLOCK)
NETWORK = network_of(
    "net", subnet=ipaddress.ip_network("10.244.0.0/16"), range_start=ipaddress.ip_address("10.244.1.2")
)
WIRED: dict[str, Any] = {"interfaces": [], "ips": [], "routes": []}


def store(folder: Path, cool_down: float = 0) -> AttachmentStore:
    attachments = AttachmentStore(folder, cool_down, OPTIONS)
    attachments.load()
    return attachments


def add(attachments: AttachmentStore, name: str, *, wired: bool = True, within: float = 0) -> Attachment:
    wanted = Attachment(name, "eth0", NETWORK, "/run/netns/x", "ns/pod", (), "")
    made = attachments.take(wanted, [RANGE], waits=Waits(cooled_by=Deadline.after(within)))
    if wired:
        attachments.finish(made, WIRED)
    return made


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "attachments").iterdir())


def test_a_restart_knows_all_of_it(tmp_path: Path) -> None:
    before = store(tmp_path)
    add(before, "a")
    add(before, "half", wired=False)
    after = store(tmp_path)
    assert set(after.all()) == set(before.all())
    whole, half = after.get("a", "eth0"), after.get("half", "eth0")
    assert whole
    assert half
    assert (whole.wired, half.wired) == (WIRED, None)
    assert whole.mac == mac_for(whole.leases[0].address) == "0a:58:0a:f4:01:02"
    assert add(after, "b").leases[0].address == ipaddress.ip_address("10.244.1.4")


def test_files_are_for_their_owner_only_and_go_with_the_attachment(tmp_path: Path) -> None:
    attachments = store(tmp_path)
    made = add(attachments, "a")
    assert files(tmp_path) == [f"{link_name('a', 'eth0')}.json"]
    path = tmp_path / "attachments" / files(tmp_path)[0]
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    attachments.remove(made)
    attachments.remove(made)
    half = add(attachments, "b", wired=False)
    attachments.remove(half)
    assert files(tmp_path) == []
    assert attachments.all() == ()


def test_what_a_crash_left_half_written_counts_for_nothing(tmp_path: Path) -> None:
    attachments = store(tmp_path)
    add(attachments, "a", wired=False)
    folder = tmp_path / "attachments"
    path = next(folder.iterdir())
    line = path.read_bytes()
    for size in range(len(line)):
        path.write_bytes(line[:size])
        left = store(tmp_path).all()
        assert left == () or left == attachments.all(), "the line is whole, or the file is gone"
    path.write_bytes(line + b'{"interfaces": [')
    assert [a.wired for a in store(tmp_path).all()] == [None]


def newer(line: bytes) -> bytes:
    return line.replace(b'"format": 2', b'"format": 3')


def truncated(line: bytes) -> bytes:
    return line[: line.index(b'"mac"')]


def of_wrong_type(line: bytes) -> bytes:
    return line.replace(b'"mtu": null', b'"mtu": "large"')


def of_unknown_mode(line: bytes) -> bytes:
    return line.replace(b'"mode": "host-gw"', b'"mode": "warp"')


def nested(line: bytes) -> bytes:
    return b"[" * 100_000 + line


def with_a_long_number(line: bytes) -> bytes:
    return line.replace(b'"mtu": null', b'"mtu": ' + b"9" * 5000)


def binary(line: bytes) -> bytes:
    return b"\xff\xfe" + line


SPOILT = [newer, truncated, of_wrong_type, of_unknown_mode, nested, with_a_long_number, binary]


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
@pytest.mark.parametrize("suffix", [".json", ".new"])
def test_addresses_of_a_file_that_can_not_be_used_stay_in_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Any, suffix: str
) -> None:
    running = add(store(tmp_path), "running", wired=suffix == ".json")
    path = tmp_path / "attachments" / f"{running.link}{suffix}"
    before = spoil(path.read_bytes())
    path.write_bytes(before)
    after = store(tmp_path)
    assert str(path) in caplog.text
    assert path.read_bytes() == before
    others = [add(after, f"c{n}").leases[0].address for n in range(RANGE.size - 1)]
    assert running.leases[0].address not in others
    with pytest.raises(ExhaustedError):
        add(after, "one too many")
    assert after.busy(BLOCK)
    (problem,) = after.problems()
    assert str(path) in problem.where
    assert "10.244.1.2" in problem.what
    assert problem.remedy
    assert files(tmp_path).count(path.name) == 1
    after.forget(running.link)
    assert add(after, "next").leases == running.leases
    assert after.problems() == ()
    assert not path.exists()


def test_keys_that_a_newer_version_adds_are_skipped(tmp_path: Path) -> None:
    made = add(store(tmp_path), "a")
    path = tmp_path / "attachments" / f"{made.link}.json"
    first, second, _ = path.read_bytes().split(b"\n")
    line = first.replace(b'{"format": 2', b'{"colour": {"x": [1]}, "format": 2').replace(
        b'"block"', b'"weight": 1, "block"'
    )
    path.write_bytes(line.replace(b'"mode"', b'"speed": "high", "mode"') + b"\n" + second + b"\n")
    after = store(tmp_path)
    assert after.problems() == ()
    assert after.all() == (replace(made, wired=WIRED),)


def put_directory(path: Path) -> None:
    path.mkdir()


def put_fifo(path: Path) -> None:
    os.mkfifo(path)


def put_dangling_link(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def put_empty(path: Path) -> None:
    path.touch()


def put_sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 30)


@pytest.mark.parametrize(
    "put", [put_directory, put_fifo, put_dangling_link, put_empty, put_sparse], ids=lambda put: put.__name__
)
def test_anything_in_place_of_a_file_is_reported_and_keeps_no_agent_from_starting(
    tmp_path: Path, put: Any
) -> None:
    made = add(store(tmp_path), "a")
    other = add(store(tmp_path), "other")
    path = tmp_path / "attachments" / f"{made.link}.json"
    path.unlink()
    put(path)
    after = store(tmp_path)
    assert after.all() == (replace(other, wired=WIRED),)
    (problem,) = after.problems()
    assert str(path) in problem.where
    after.note_unknown_links({made.link: (frozenset({made.leases[0].address}), "testcni net a eth0 ns/pod")})
    assert [add(after, "b").leases[0].address, after.unreadable()[0].network] == [
        ipaddress.ip_address("10.244.1.4"),
        "net",
    ]
    after.forget(made.link)
    assert not os.path.lexists(path)
    assert add(after, "c").leases[0].address != other.leases[0].address


def test_a_link_whose_addresses_nobody_knows_says_so_until_it_is_gone(tmp_path: Path) -> None:
    attachments = store(tmp_path)
    name = link_name("lost", "eth0")
    attachments.note_unknown_links({name: (frozenset(), "")})
    assert [entry.blind for entry in attachments.unreadable()] == [True]
    assert "no pod can be added" in attachments.problems()[0].what
    attachments.forget_removed([name])
    assert len(attachments.unreadable()) == 1
    attachments.forget_removed([])
    assert attachments.unreadable() == ()


def test_a_misnamed_copy_keeps_the_address_and_is_not_removed(tmp_path: Path) -> None:
    first = store(tmp_path)
    made = add(first, "a")
    path = tmp_path / "attachments" / f"{made.link}.json"
    copy = path.with_name("backup.json")
    copy.write_bytes(path.read_bytes())
    after = store(tmp_path)
    assert after.all() == (replace(made, wired=WIRED),)
    after.remove(after.all()[0])
    assert copy.exists()
    assert add(after, "b").leases != made.leases
    copy.unlink()
    after.forget_removed([])
    assert after.problems() == ()


def test_a_release_does_not_free_what_another_attachment_has(tmp_path: Path) -> None:
    before = store(tmp_path)
    one, two = add(before, "one"), add(before, "two")
    path = tmp_path / "attachments" / f"{two.link}.json"
    path.write_bytes(path.read_bytes().replace(b"10.244.1.3", b"10.244.1.2"))
    after = store(tmp_path)
    after.remove(replace(one, wired=WIRED))
    assert add(after, "three").leases[0].address == ipaddress.ip_address("10.244.1.3")
    after.remove(replace(one, leases=two.leases))
    assert add(after, "four").leases[0].address == ipaddress.ip_address("10.244.1.4")


def test_a_file_that_an_older_agent_rejected_is_used_again(tmp_path: Path) -> None:
    made = add(store(tmp_path), "a")
    path = tmp_path / "attachments" / f"{made.link}.json"
    path.rename(path.with_suffix(".bad"))
    assert store(tmp_path).all() == (replace(made, wired=WIRED),)
    assert files(tmp_path) == [path.name]


RELEASED = (
    b'{"format": 2, "container_id": "c1", "ifname": "eth0", "network": {"name": "testcni", "mode": "macvlan", '
    b'"subnet": "192.0.2.0/24", "bridge": "testcni0", "mtu": null, "masquerade": true, "hairpin": true, '
    b'"range_start": "192.0.2.90", "range_end": "192.0.2.100", "vni": 1, "port": 8472, "encapsulate": "always", '
    b'"master": null, "link_mode": "bridge", "gateway": null, "via_host": ["10.96.0.0/12"], '
    b'"vxlan_backend": "ebpf", "pool": ""}, "netns": "/run/netns/x", "pod": "ns/pod", '
    b'"leases": [{"address": "192.0.2.90", "block": "192.0.2.0/24"}], "mac": "0a:58:c0:00:02:5a", '
    b'"owner": "ns/pod", "uplink": {"device": "eth0", "hosts": ["192.0.2.1"], "gateway": "192.0.2.254", '
    b'"via_host": ["10.96.0.0/12"]}}\n{"interfaces": [{"name": "eth0"}], "ips": [], "routes": []}\n'
)
"""A file as the first release writes it, with all keys that it knows."""


def test_files_of_the_release_before_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "attachments"
    folder.mkdir()
    (folder / f"{link_name('c1', 'eth0')}.json").write_bytes(RELEASED)
    (found,) = store(tmp_path).all()
    assert (found.pod, found.owner, found.network.mode) == ("ns/pod", "ns/pod", "macvlan")
    assert str(found.leases[0].address) == "192.0.2.90"
    assert found.uplink
    assert found.uplink.device == "eth0"


def test_the_release_before_reads_the_files(tmp_path: Path) -> None:
    """It takes an unknown key of the first line for an error, and knows each of these."""
    known = set(json.loads(RELEASED.split(b"\n")[0]))
    folder = tmp_path / "attachments"
    folder.mkdir()
    (folder / f"{link_name('c1', 'eth0')}.json").write_bytes(RELEASED)
    doc = json.loads(encode(store(tmp_path).all()[0]))
    assert doc["format"] == 2
    assert set(doc) <= known
    assert set(doc["uplink"]) <= {"device", "hosts", "gateway", "via_host", "reserved"}


@pytest.mark.parametrize(
    "put", [Path.mkdir, os.mkfifo, lambda path: path.write_bytes(b"\xff 1\n10.244.1.2 nan\n")]
)
def test_a_log_of_releases_that_can_not_be_read_keeps_no_agent_from_starting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, put: Callable[[Path], object]
) -> None:
    put(tmp_path / "released")
    attachments = store(tmp_path)
    attachments.remove(add(attachments, "a"))
    assert str(tmp_path / "released") in caplog.text


def test_cool_downs_outlive_a_restart(tmp_path: Path) -> None:
    attachments = store(tmp_path, cool_down=60)
    taken = [add(attachments, f"c{n}") for n in range(RANGE.size)]
    attachments.remove(taken[2])
    with pytest.raises(ExhaustedError) as caught:
        add(store(tmp_path, cool_down=60), "late")
    assert caught.value.wait
    assert 50 < caught.value.wait <= 60


def test_an_add_waits_for_an_address_to_cool_and_a_del_lets_it_go_on(tmp_path: Path) -> None:
    attachments = store(tmp_path, cool_down=0.2)
    taken = [add(attachments, f"c{n}") for n in range(RANGE.size)]
    began = time.monotonic()
    attachments.remove(taken[0])
    assert add(attachments, "waits", within=5).leases == taken[0].leases
    assert 0.2 <= time.monotonic() - began < 4


def test_a_waiting_add_holds_up_nobody(tmp_path: Path) -> None:
    def turn(number: int) -> bool:
        attachments = store(tmp_path / str(number), cool_down=1)
        taken = [add(attachments, f"c{n}") for n in range(RANGE.size)]
        attachments.remove(taken[0])
        waiting = threading.Thread(target=add, args=(attachments, "waits"), kwargs={"within": 8})
        waiting.start()
        time.sleep(0.1)
        attachments.remove(taken[1])
        attachments.all()
        still_waiting = waiting.is_alive()
        waiting.join()
        return still_waiting

    in_time(turn)


@pytest.mark.parametrize("call", ["open", "write"])
def test_a_full_disk_takes_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    attachments = store(tmp_path)

    def full(*_args: object, **_more: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left" if call == "open" else "No space left.*/attachments/"):
            add(attachments, "a")
    assert (attachments.all(), files(tmp_path)) == ((), [])
    for n in range(RANGE.size):
        add(attachments, f"c{n}")


def test_the_log_of_releases_stays_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.ipam.attachments.attachment_store.LINES_KEPT", 20)
    attachments = store(tmp_path)
    for n in range(200):
        attachments.remove(add(attachments, f"c{n}"))
    assert len((tmp_path / "released").read_text().splitlines()) <= 21
    (tmp_path / "released").write_text("junk\n10.244.1.2 soon\n10.244.1.3 5.0\n")
    assert add(store(tmp_path), "a").leases[0].address == ipaddress.ip_address("10.244.1.2")


def test_the_node_path_hears_of_those_that_change_what_it_does(tmp_path: Path) -> None:
    attachments, told = store(tmp_path), list[str]()
    attachments.listen(lambda: told.append("x"))

    def heard() -> int:
        count = len(told)
        told.clear()
        return count

    first = add(attachments, "first")
    assert heard() == 1, "the first of its network"
    second = add(attachments, "second")
    assert heard() == 0
    attachments.remove(second)
    assert heard() == 0
    other = Attachment("other", "eth0", changed(NETWORK, mode="vxlan"), "/run/netns/x", "ns/pod", (), "")
    attachments.take(other, [RANGE], ())
    assert heard() == 1
    third = add(attachments, "third")
    assert heard() == 1, "it has an address of a block that pods of another mode are in"
    attachments.remove(third)
    assert heard() == 1
    attachments.remove(other)
    assert heard() == 1
    attachments.remove(first)
    assert heard() == 1, "the last one"
    staying = Attachment("s", "eth0", NETWORK, "/run/netns/x", "ns/pod", (), "", owner="ns/pod")
    add(attachments, "fourth")
    heard()
    attachments.take(staying, [RANGE], ())
    assert heard() == 1
