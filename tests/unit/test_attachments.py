"""One file per attachment: what is on disk is what is in use, whatever happened in between."""

from __future__ import annotations

import errno
import ipaddress
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.datapath.state import mac_for
from agent.ipam.allocator import ExhaustedError, usable
from agent.ipam.attachment import Attachment, link_name
from agent.ipam.attachments import Attachments
from agent.model import Network

BLOCK = ipaddress.ip_network("10.244.1.0/29")
RANGE = usable(BLOCK)
NETWORK = Network(
    "net", subnet=ipaddress.ip_network("10.244.0.0/16"), range_start=ipaddress.ip_address("10.244.1.2")
)
WIRED: dict[str, Any] = {"interfaces": [], "ips": [], "routes": []}


def store(folder: Path, cool_down: float = 0) -> Attachments:
    attachments = Attachments(folder, cool_down)
    attachments.load()
    return attachments


def add(attachments: Attachments, name: str, *, wired: bool = True, within: float = 0) -> Attachment:
    wanted = Attachment(name, "eth0", NETWORK, "/run/netns/x", "ns/pod", (), "")
    made = attachments.reserve(wanted, [RANGE], (), time.monotonic() + within)
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


def test_a_spoilt_file_is_set_aside_not_believed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add(store(tmp_path), "a")
    path = next((tmp_path / "attachments").iterdir())
    path.write_bytes(b'{"format": 99}\n{}\n')
    assert store(tmp_path).all() == ()
    assert files(tmp_path) == [path.with_suffix(".bad").name]
    assert str(path) in caplog.text


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
    attachments = store(tmp_path, cool_down=4)
    taken = [add(attachments, f"c{n}") for n in range(RANGE.size)]
    attachments.remove(taken[0])
    waiting = threading.Thread(target=add, args=(attachments, "waits"), kwargs={"within": 8})
    waiting.start()
    time.sleep(0.1)
    began = time.monotonic()
    attachments.remove(taken[1])
    attachments.all()
    assert time.monotonic() - began < 3
    assert waiting.is_alive()
    waiting.join()


@pytest.mark.parametrize("call", ["open", "write"])
def test_a_full_disk_takes_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    attachments = store(tmp_path)

    def full(*_args: object, **_more: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left"):
            add(attachments, "a")
    assert (attachments.all(), files(tmp_path)) == ((), [])
    for n in range(RANGE.size):
        add(attachments, f"c{n}")


def test_the_log_of_releases_stays_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.ipam.attachments.LINES_KEPT", 20)
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
    other = Attachment("other", "eth0", replace(NETWORK, mode="vxlan"), "/run/netns/x", "ns/pod", (), "")
    attachments.reserve(other, [RANGE], (), 0)
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
    attachments.reserve(staying, [RANGE], (), 0)
    assert heard() == 1
