"""`make reference` writes what the code and the manifests say into the pages of docs/reference.

A page marks where: the text between `<!-- made by make reference: NAME -->` and `<!-- end -->` is replaced.
"""

from __future__ import annotations

import re
import socket
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from agent.ip import Subnet
from agent.model.special_addresses import CLASSES
from agent.modes.registry import BUILT_IN
from agent.options import OPTIONS

REPO = Path(__file__).resolve().parents[1]
MARK = re.compile(r"(<!-- made by make reference: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
CRDS = REPO / "manifests/base/crds.yaml"

Schema = Mapping[str, Any]


def options() -> str:
    """Return the table of the agent's options."""
    rows = (
        (f"`{option.name}`", f"`{option.env}`", code(option.default), option.allowed, sentence(option.help))
        for option in (*OPTIONS, *BUILT_IN.agent_options)
    )
    return table(("option", "environment", "default", "allowed", "meaning"), rows)


def _written(network: Subnet) -> str:
    """Return a network as inet_ntop(3) writes it: Python writes IPv4-mapped addresses differently since 3.13."""
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    return f"{socket.inet_ntop(family, network.network_address.packed)}/{network.prefixlen}"


def special_addresses() -> str:
    """Return the table of the ranges that no pod can have."""
    rows = ((f"`{_written(each.network)}`", each.use, each.source) for each in CLASSES)
    return table(("range", "kept for", "source"), rows)


def crds() -> str:
    """Return a section for each CustomResourceDefinition."""
    return "\n".join(map(_crd, yaml.safe_load_all(CRDS.read_text())))


BLOCKS: Mapping[str, Callable[[], str]] = {
    "crds": crds,
    "options": options,
    "special_addresses": special_addresses,
}


def rendered(page: str) -> str:
    """Return a page with what the code says now. Raises KeyError for a mark of an unknown name."""
    return MARK.sub(lambda found: f"{found[1]}\n{BLOCKS[found[2]]()}\n{found[3]}", page)


def pages() -> list[Path]:
    """Return the pages that have marks."""
    return [path for path in sorted(REPO.glob("docs/**/*.md")) if MARK.search(path.read_text())]


def main() -> None:
    """Write the pages that have changed."""
    for path in pages():
        before = path.read_text()
        if (now := rendered(before)) != before:
            path.write_text(now)
            print(f"wrote {path.relative_to(REPO)}")


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(line)} |" for line in (head, *rows)]
    lines.insert(1, f"|{'---|' * len(head)}")
    return "\n".join((*lines, ""))


def code(text: str | None) -> str:
    """Return a text as code; nothing where it is empty."""
    return f"`{text}`" if text else ""


def sentence(text: str) -> str:
    """Return a text without its full stop, as cells of tables have none at their end."""
    return text.strip().removesuffix(".")


def _crd(doc: Schema) -> str:
    names, version = doc["spec"]["names"], doc["spec"]["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    short = ", ".join(f"`{name}`" for name in (names["plural"], *names["shortNames"]))
    parts = {part: schema["properties"].get(part, {}) for part in ("spec", "status")}
    rows = (row for part, inner in parts.items() for row in _fields(part, inner))
    words = [*_refusals(schema), *_refusals(parts["spec"])]
    for field in parts["spec"]["properties"].values():
        words += _refusals(field)
    return (
        f"## {names['kind']}\n\n{textwrap.fill(schema['description'], 120)}\n\nNames for kubectl: {short}.\n\n"
        + table(("field", "type", "allowed", "meaning"), rows)
        + "\nThe API server refuses an object with these words:\n\n"
        + "".join(f"- {word}\n" for word in words)
    )


def _fields(path: str, schema: Schema) -> Iterator[tuple[str, str, str, str]]:
    """Yield the row of each field of an object, those of objects in lists after the list."""
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        items = field.get("items", {})
        kind = f"list of {items['type']}s" if items else field["type"]
        needed = ", required" if name in required and path == "spec" else ""
        yield f"`{path}.{name}`", kind + needed, "; ".join(_allowed(field)), sentence(field["description"])
        yield from _fields(f"{path}.{name}[]", items)


def _allowed(field: Schema) -> Iterator[str]:
    if "enum" in field:
        yield ", ".join(f"`{value}`" for value in field["enum"])
    if "minimum" in field:
        yield f"{field['minimum']} to {field['maximum']}" if "maximum" in field else f"{field['minimum']} or more"
    if field.get("format") == "date-time":
        yield "a time, such as `2026-01-31T12:00:00Z`"
    for rule in (*_rules(field), *_rules(field.get("items", {}))):
        if _is_form(rule):
            yield rule["message"]


def _refusals(schema: Schema) -> Iterator[str]:
    """Yield the words of rules that are more than the form of a value."""
    return (rule["message"] for rule in _rules(schema) if not _is_form(rule))


def _rules(schema: Schema) -> list[dict[str, str]]:
    rules: list[dict[str, str]] = schema.get("x-kubernetes-validations", [])
    return rules


def _is_form(rule: Mapping[str, str]) -> bool:
    """Return whether a rule says what a value looks like; its words are the value's, such as "an address"."""
    return (
        rule["message"].startswith(("a ", "an "))
        and re.fullmatch(r"is(IP|CIDR)\(self\).*", rule["rule"]) is not None
    )


if __name__ == "__main__":
    main()
