"""testcnictl: show the status of this node's agent, or dropped packets and flows as they happen."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from agent import __version__
from agent.cni.protocol import PROTOCOL
from agent.codec import strict_json
from agent.ip import FAMILIES
from agent.runtime.printable import escaped, escaped_values

EXIT_PROBLEMS, EXIT_UNABLE, EXIT_NO_AGENT = 1, 3, 4
WITHIN = 5.0  # seconds
GREEN, RED, BOLD, PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[1m", "\x1b[0m"


def ask(path: Path) -> dict[str, Any]:
    """Return the status report of the agent behind this socket. Raises OSError, ValueError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(WITHIN)
        connection.connect(str(path))
        connection.sendall(json.dumps({"protocol": PROTOCOL, "command": "INFO"}).encode())
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as answer:
            doc = strict_json.mapping(answer.read())
    if "node" not in doc:
        raise ValueError(f"the agent's answer is no status report: {doc}")
    return doc


def render(doc: dict[str, Any], *, colour: bool) -> str:
    """Return the status report as text."""

    def paint(text: str, code: str) -> str:
        return f"{code}{text}{PLAIN}" if colour else text

    doc = escaped_values(doc)
    healthy = doc["synced"] and not doc["problems"]
    state = (
        paint("healthy", GREEN)
        if healthy
        else paint("has problems" if doc["synced"] else "waits for the datastore", RED)
    )
    lines = [f"{paint('node ' + doc['node'], BOLD)}: {state}"]
    lines.append(
        f"  {doc['nodes']} nodes, {doc['routes']} routes to peers, {doc['attachments']} pod interfaces, "
        f"up {doc['uptimeSeconds']:.0f} s, datastore {doc['datastore']}"
    )
    rows = [("NETWORK", "MODE", "DEVICE", "FAMILY", "USED", "COOLING", "FREE", "BLOCKS")]
    for network in doc["networks"]:
        for family, addresses in network["addresses"].items():
            counts = (str(addresses[key]) for key in ("used", "cooling", "free"))
            blocks = " ".join(b for b in network["blocks"] if FAMILIES[ip_network(b).version] == family)
            rows.append((network["name"], network["mode"], network["device"], family, *counts, blocks))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines += ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines += [f"  {summary}" for summary in doc.get("summaries", ())]
    lines += [f"  {paint('problem', RED)} {p['where']}: {p['what']}; {p['remedy']}" for p in doc["problems"]]
    lines += [f"  note: {note}" for note in doc.get("notes", ())]
    return "\n".join(lines)


def monitor(run_dir: Path, output: str, seconds: float) -> int:
    """Print drops and flows until the time is over or Ctrl-C: a table in a terminal, lines in a pipe."""
    from agent.modes.registry import BUILT_IN  # noqa: PLC0415 - `status` does not need it

    try:
        packets = BUILT_IN.packet_monitor(run_dir)
        table = output == "text" and sys.stdout.isatty()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            events = packets.wait()
            if output == "json":
                texts = [escaped(json.dumps(event, ensure_ascii=False)) for event in events]
            else:
                plain = escaped_values(events)
                texts = [packets.screen(plain)] if table else list(map(packets.line, plain))
            for text in texts:
                print(text, flush=True)  # noqa: T201
    except BrokenPipeError:
        discard_output()
    except KeyboardInterrupt:
        pass
    except OSError as error:
        print(f"testcnictl: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_UNABLE
    return 0


def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 healthy, 1 problems, 2 wrong options, 3 nothing to show, 4 no usable answer."""
    parser = argparse.ArgumentParser(prog="testcnictl", description="Shows the state of this node's agent.")
    parser.add_argument("--version", action="version", version=f"testcni {__version__}")
    parser.add_argument("--socket", type=Path, default=Path("/run/testcni/agent.sock"), help="the agent's socket")
    commands = parser.add_subparsers(dest="command", required=True)
    status = commands.add_parser("status", help="networks, addresses, routes and problems of this node")
    status.add_argument("-o", "--output", choices=("text", "json"), default="text")
    live = commands.add_parser("monitor", help="dropped packets and flows as they happen, in modes that show them")
    live.add_argument("-o", "--output", choices=("text", "json"), default="text")
    live.add_argument(
        "--for", dest="seconds", type=float, default=float("inf"), help="seconds; the default is no limit"
    )
    options = parser.parse_args(argv)
    if options.command == "monitor":
        return monitor(options.socket.parent, options.output, options.seconds)
    try:
        doc = ask(options.socket)
    except (OSError, ValueError) as error:
        print(f"testcnictl: no agent answers on {options.socket}: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_NO_AGENT
    return show(doc, options.output)


def show(doc: dict[str, Any], output: str) -> int:
    """Print a status report; return the exit code."""
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    try:
        text = json.dumps(doc, indent=2) if output == "json" else render(doc, colour=colour)
        healthy = doc["synced"] and not doc["problems"]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"the agent's status report has another form ({error!r}); use the testcnictl of the agent's version"
        print(f"testcnictl: {what}", file=sys.stderr)  # noqa: T201
        return EXIT_NO_AGENT
    try:
        print(text, flush=True)  # noqa: T201
    except BrokenPipeError:
        discard_output()
    except OSError as error:
        discard_output()
        print(f"testcnictl: cannot write: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_UNABLE
    return 0 if healthy else EXIT_PROBLEMS


def discard_output() -> None:
    """Send the output nowhere: it cannot be written, and Python would write the rest when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
