"""Options: flag before environment before file before default, and an error says where the wrong one stands."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from agent import config
from agent.config import ConfigError
from agent.model.marks import ROUTE_PROTOCOL
from tests.networks import AGENT_OPTIONS

NEEDED = ["--datastore", "dir:/cluster"]

load = partial(config.load, mode_options=AGENT_OPTIONS)


def test_precedence(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("resync: 40\ncool-down: 50\nnode: from-file\n")
    conf = load(
        [*NEEDED, "--config", str(file), "--node", "flag"], {"TESTCNI_COOL_DOWN": "5", "TESTCNI_NODE": "env"}
    )
    assert (conf.node, conf.cool_down, conf.resync, conf.run_dir) == ("flag", 5, 40, Path("/run/testcni"))
    assert conf.socket == Path("/run/testcni/agent.sock")


def test_the_file_may_be_named_by_environment(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("node: x\ndatastore: dir:/y\n")
    assert load([], {"TESTCNI_CONFIG": str(tmp_path / "c")}).datastore == "dir:/y"


@pytest.mark.parametrize(("text", "on"), [("on", True), ("true", True), ("off", False), ("False", False)])
def test_switches(text: str, on: bool, tmp_path: Path) -> None:
    assert load([*NEEDED, "--pod-annotations", text], {}).pod_annotations == on
    (tmp_path / "c").write_text(f"pod-annotations: {text}\n")  # YAML says true for on
    assert load([*NEEDED, "--config", str(tmp_path / "c")], {}).pod_annotations == on
    with pytest.raises(ConfigError, match="--pod-annotations: 'yes' is none of on, off"):
        load([*NEEDED, "--pod-annotations", "yes"], {})


@pytest.mark.parametrize(
    ("text", "listen"),
    [
        ("0.0.0.0:9480", ("0.0.0.0", 9480)),  # noqa: S104
        ("[::]:80", ("::", 80)),
        ("off", None),
        ("", ("127.0.0.1", 9480)),
    ],
)
def test_where_to_listen(text: str, listen: tuple[str, int] | None) -> None:
    assert load([*NEEDED, "--listen", text], {}).listen == listen


@pytest.mark.parametrize("text", ["5", "84", "116", "200", "254"])  # 84: for the way back to a version before
def test_numbers_for_routes(text: str, tmp_path: Path) -> None:
    assert load([*NEEDED, "--route-protocol", text], {}).route_protocol == int(text)
    (tmp_path / "c").write_text(f"route-protocol: {text}\n")
    assert load([*NEEDED, "--config", str(tmp_path / "c")], {}).route_protocol == int(text)
    assert load(NEEDED, {}).route_protocol == ROUTE_PROTOCOL


@pytest.mark.parametrize(
    ("argv", "environ", "message"),
    [
        ([], {}, "--datastore: '' is no datastore; give dir:PATH"),
        (["--datastore", "x"], {}, "--datastore: 'x' is no datastore"),
        (["--datastore", "kubernetes:"], {}, "--datastore: 'kubernetes:' is no datastore"),
        (NEEDED, {"TESTCNI_RESYNC": "soon"}, "TESTCNI_RESYNC: 'soon' must be a number of seconds from 1 to 3600"),
        (NEEDED, {"TESTCNI_RESYNC": "nan"}, "TESTCNI_RESYNC: 'nan' must be"),
        ([*NEEDED, "--block-idle", "0"], {}, "--block-idle: '0' must be a number of seconds from 1 to 2592000"),
        ([*NEEDED, "--namespace-reservations", "-1"], {}, "--namespace-reservations: '-1' must be a whole number"),
        ([*NEEDED, "--node-gone", "never"], {}, "--node-gone: 'never' must be a number"),
        ([*NEEDED, "--run-dir", "here"], {}, "--run-dir: here must be an absolute path"),
        ([*NEEDED, "--log-level", "loud"], {}, "--log-level: 'loud' is none of debug, info"),
        ([*NEEDED, "--listen", "9480"], {}, "--listen: '9480' must be an address and a port, as 0.0.0.0:9480"),
        ([*NEEDED, "--listen", "127.0.0.1:0"], {}, "--listen: '127.0.0.1:0' must be"),
        ([*NEEDED, "--listen", "localhost:80"], {}, "--listen: 'localhost:80' must be"),
        (NEEDED, {"TESTCNI_LISTEN": "::1:x"}, "TESTCNI_LISTEN: '::1:x' must be"),
        ([*NEEDED, "--config", "/nowhere"], {}, "config file /nowhere: "),
        ([*NEEDED, "--route-protocol", "12"], {}, "--route-protocol: 12 is the protocol number of bird; choose"),
        ([*NEEDED, "--route-protocol", "80"], {}, "--route-protocol: 80 is the protocol number of Calico"),
        (NEEDED, {"TESTCNI_ROUTE_PROTOCOL": "196"}, "TESTCNI_ROUTE_PROTOCOL: 196 is the protocol number of FRR's"),
        *(
            ([*NEEDED, "--route-protocol", text], {}, f"--route-protocol: {text!r} must be a number from 5 to 254")
            for text in ("4", "255", "0", "-9", "x", "²", "1_0", "9" * 5000)
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_place(argv: list[str], environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(argv, environ)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"), [("- a", "not a list"), ("nod: x", "unknown option 'nod'"), ("a: [", "is not YAML")]
)
def test_a_wrong_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load([*NEEDED, "--config", str(tmp_path / "c")], {})


@pytest.mark.parametrize("blank", ["bgp:", "bgp: null", "bgp: ~", 'bgp: ""', "bgp: ' '", "node: x\nbgp:"])
def test_a_blank_in_the_file_takes_no_bgp_password_away(tmp_path: Path, blank: str) -> None:
    (tmp_path / "c").write_text(blank)
    with pytest.raises(ConfigError, match="bgp: is blank; give it a value"):
        load([*NEEDED, "--config", str(tmp_path / "c")], {})


@pytest.mark.parametrize("text", ["", "# bgp: /etc/testcni/bgp.yaml", "---"])
def test_an_empty_file_takes_no_bgp_password_away(tmp_path: Path, text: str) -> None:
    (tmp_path / "c").write_text(text)
    with pytest.raises(ConfigError, match=r"is empty; for no options write \{\} into it"):
        load([*NEEDED, "--config", str(tmp_path / "c")], {})
    (tmp_path / "c").write_text("{}")
    assert load([*NEEDED, "--config", str(tmp_path / "c")], {}).mode_options["bgp"] == ""


@pytest.mark.parametrize("text", ["", " "])
def test_a_blank_flag_or_variable_takes_no_bgp_password_away(text: str) -> None:
    with pytest.raises(ConfigError, match="--bgp: is blank"):
        load([*NEEDED, "--bgp", text], {})
    with pytest.raises(ConfigError, match="TESTCNI_BGP: is blank"):
        load(NEEDED, {"TESTCNI_BGP": text})
