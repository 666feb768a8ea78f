"""bird.conf as text: what it says, how fast it is written, and that BIRD takes it whatever nodes are called."""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.modes.ipip.bird.render import FOLDERS, render, symbol, symbols
from agent.modes.ipip.bird.types import BirdConfig, BirdError, External, Peer, Secret, Tunnel
from tests.unit.properties import examples

POOL = IPv4Network("10.244.0.0/16")
ME = BirdConfig(
    "one",
    IPv4Address("192.0.2.1"),
    blocks=(IPv4Network("10.244.1.0/24"),),
    pools=(POOL,),
    peers=(Peer("two", IPv4Address("192.0.2.2")), Peer("three.example", IPv4Address("192.0.2.3"))),
    tunnel=Tunnel("tunl0"),
)
TOP = External(IPv4Address("192.0.2.100"), 65000)


def accepted(text: str, folder: Path) -> str:
    """What `bird -p` says against it."""
    file = folder / "bird.conf"
    file.write_text(text)
    done = subprocess.run(["bird", "-p", "-c", str(file)], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr or f"exit code {done.returncode}"


def section(text: str, head: str) -> str:
    """The block that begins with `head`, without comments and indentation."""
    body = text.split(f"\n{head} {{", 1)[1].split("\n}", 1)[0]
    return "\n".join(
        line.partition("#")[0].strip() for line in body.splitlines() if line.partition("#")[0].strip()
    )


def test_full_mesh() -> None:
    text = render(ME)
    assert text.count("\nprotocol bgp") == 2
    assert "neighbor 192.0.2.2 as 64512;" in section(text, "protocol bgp node_two from node_peer")
    assert "rr client" not in text
    assert 'ifname = "tunl0";\nonlink = true;\ngw = bgp_next_hop;\naccept;' in section(text, "filter from_node")
    assert section(text, "filter to_node") == 'if proto = "testcni_blocks" then accept;\nreject;'
    assert "route 10.244.1.0/24 unreachable;" in section(text, "protocol static testcni_blocks")
    assert "define POOLS = [ 10.244.0.0/16+ ];" in text
    assert "169.254.0.0/16+, 169.254.0.0/16-, 224.0.0.0/4+" in text.split("define NEVER = [", 1)[1].split("]")[0]
    assert text.count("if net !~ POOLS || net ~ NEVER then reject;") == 2
    assert "define OWN = [ 10.244.1.0/24+, 10.244.1.0/24- ];" in text


def test_no_line_is_without_its_reason_and_nothing_is_left_to_fill_in() -> None:
    text = render(replace(ME, externals=(TOP,), password=Secret("x")))
    assert "$" not in text
    assert text.count("#") > 30


def test_reflectors() -> None:
    reflector = Peer("two", IPv4Address("192.0.2.2"), reflector=True)
    client = render(replace(ME, peers=(reflector, ME.peers[1])))
    assert client.count("\nprotocol bgp") == 1, "clients have no session with each other"
    assert "import filter from_reflector;" in section(client, "protocol bgp node_two from node_peer")
    mine = render(replace(ME, peers=(reflector, ME.peers[1]), reflector=True))
    assert mine.count("rr client;") == 1
    assert "rr client" not in section(mine, "protocol bgp node_two from node_peer")
    assert mine.count("export filter to_node_reflected;") == 2


def test_next_hops() -> None:
    near = (IPv4Network("192.0.2.0/24"), IPv4Network("198.51.100.0/24"))
    both = section(render(replace(ME, direct=near)), "filter from_node")
    line = "if bgp_next_hop ~ 192.0.2.0/24 || bgp_next_hop ~ 198.51.100.0/24 then { gw = bgp_next_hop; accept; }"
    assert f'{line}\nifname = "tunl0";' in both
    never = section(render(replace(ME, direct=near, tunnel=None)), "filter from_node")
    assert never.endswith(f"{line}\nreject;")
    router = Tunnel("eth0", gateway=IPv4Address("192.0.2.254"), mtu=1480)
    text = render(replace(ME, tunnel=router, source=IPv4Address("10.244.1.1")))
    assert "gw = 192.0.2.254;" in section(text, "filter from_node")
    assert 'if ifname = "eth0" then krt_mtu = 1480;' in section(text, "filter to_kernel")
    assert "krt_prefsrc = 10.244.1.1;" in section(text, "filter to_kernel")


def test_external_peers() -> None:
    text = render(replace(ME, externals=(replace(TOP, password=Secret("pass word"), multihop=True),)))
    body = section(text, "protocol bgp external_192_0_2_100 from external_peer")
    assert "neighbor 192.0.2.100 as 65000;" in body
    assert 'password "pass word";' in body
    assert "multihop;" in body
    assert "import none;" in section(text, "template bgp external_peer")


def test_equal_values_are_equal_text() -> None:
    turned = replace(ME, peers=ME.peers[::-1], blocks=ME.blocks[::-1])
    assert render(turned) == render(ME)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (replace(ME, asn=0), "0 is not an AS number"),
        (replace(ME, externals=(replace(TOP, asn=2**32 - 1),)), "4294967295 is not an AS number"),
        (replace(ME, externals=(replace(TOP, asn=64512),)), "the cluster's own AS 64512"),
        (replace(ME, tunnel=Tunnel('x"; y')), "as an interface name"),
        (
            replace(ME, peers=(*ME.peers, Peer("four", IPv4Address("192.0.2.2")))),
            "192.0.2.2 is the address of two",
        ),
        (replace(ME, peers=(Peer("two", ME.address),)), "192.0.2.1 is the address of two"),
        (replace(ME, metric=0), "metric 0"),
    ],
)
def test_what_bird_cannot_be_told(wrong: BirdConfig, told: str) -> None:
    with pytest.raises(BirdError, match=told):
        render(wrong)


def test_secrets_are_never_shown() -> None:
    config = replace(ME, password=Secret("hush"), externals=(replace(TOP, password=Secret("hush")),))
    assert "hush" not in repr(config)
    assert "hush" in render(config)
    with pytest.raises(BirdError) as told:
        Secret('hush"')
    assert "hush" not in str(told.value)


def test_two_hundred_nodes_within_fifty_milliseconds() -> None:
    peers = tuple(Peer(f"node-{n}.example", IPv4Address("192.0.3.0") + n) for n in range(200))
    config = replace(ME, peers=peers)
    render(config)
    began = time.thread_time()
    render(config)
    took = time.thread_time() - began
    print(f"200 nodes rendered in {took * 1000:.1f} ms")
    assert took < 0.05


def test_templates_are_found() -> None:
    assert (FOLDERS[0] / "bird.conf").exists()


names = st.text(min_size=1, max_size=253)


@given(st.lists(names, unique=True, max_size=20))
def test_names_of_different_nodes_differ(some: list[str]) -> None:
    assert len({symbol(name) for name in some}) == len(some)
    assert all(len(symbol(name)) <= 64 for name in some)


octets = st.integers(0, 2**32 - 1).map(IPv4Address)
networks = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 32)).map(
    lambda pair: IPv4Network((pair[0], pair[1]), strict=False)
)
secrets = st.text(
    st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"'), min_size=1, max_size=80
)
configs = st.builds(
    BirdConfig,
    node=names,
    address=octets.filter(int),
    asn=st.integers(1, 64000),
    blocks=st.lists(networks, max_size=4, unique=True).map(tuple),
    pools=st.lists(networks, max_size=4, unique=True).map(tuple),
    peers=st.lists(
        st.builds(Peer, names, octets.filter(int), st.booleans()), max_size=6, unique_by=lambda peer: peer.name
    ).map(tuple),
    externals=st.lists(
        st.builds(
            External,
            octets.filter(int),
            st.integers(64001, 2**32 - 2),
            st.none() | secrets.map(Secret),
            st.booleans(),
        ),
        max_size=2,
    ).map(tuple),
    reflector=st.booleans(),
    direct=st.lists(networks, max_size=3).map(tuple),
    tunnel=st.none()
    | st.builds(
        Tunnel,
        st.from_regex(r"[A-Za-z0-9_.@\-]{1,15}", fullmatch=True),
        st.none() | octets,
        st.none() | st.just(1480),
    ),
    source=st.none() | octets,
    guard=st.booleans(),
    password=st.none() | secrets.map(Secret),
)


@pytest.mark.skipif(not shutil.which("bird"), reason="BIRD is not installed (Debian: bird2)")
@settings(max_examples=examples(150), deadline=None)
@given(configs)
def test_bird_takes_whatever_is_rendered(tmp_path_factory: pytest.TempPathFactory, config: BirdConfig) -> None:
    try:
        text = render(config)
    except BirdError:  # two of one address
        return
    assert accepted(text, tmp_path_factory.getbasetemp()) == "", text
    assert set(symbols(config).values()) >= {peer.name for peer in config.peers}


def test_a_guest_is_announced_and_taken_by_its_blocks_node(tmp_path: Path) -> None:
    guest = IPv4Network("10.244.2.7/32")
    text = render(replace(ME, blocks=(*ME.blocks, guest)))
    assert f"route {guest} unreachable;" in section(text, "protocol static testcni_blocks")
    # nothing else changes, so that no session has to be asked again for all its routes
    more = [line for line in text.splitlines() if line not in render(ME).splitlines()]
    assert more == [f"  route {guest} unreachable;"]
    for name in ("filter from_node", "filter from_reflector"):
        assert "if net ~ OWN && net.len < 32 then reject;" in section(text, name)
    if shutil.which("bird"):
        assert accepted(text, tmp_path) == ""
