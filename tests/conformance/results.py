"""Results of the cases: read from upstream's report, compared with upstream's list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import yaml

AREA, KIND = "[sig-network]", "[Conformance]"
LEAST = 47  # cases of Kubernetes 1.37: a list that was misread or lost some does not pass for fewer
SLOWEST = 8
WORDS = 3000  # characters of each failure that are shown
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


@dataclass(frozen=True)
class Case:
    """One case and what became of it; `words` say why it failed."""

    name: str
    outcome: str
    seconds: float
    words: str = ""


def expected(listed: Path) -> set[str]:
    """The names of this area's cases in upstream's conformance.yaml."""
    names = {" ".join(str(entry["codename"]).split()) for entry in yaml.safe_load(listed.read_text())}
    return {name for name in names if name.startswith(AREA)}


def read(report: Path) -> list[Case]:
    """The Conformance cases of this area in a junit report, and any set-up or tear-down that failed."""
    cases = [_case(one) for one in ElementTree.parse(report).getroot().iter("testcase")]  # noqa: S314 our own file
    return [case for case in cases if is_wanted(case.name) or case.outcome == FAILED]


def is_wanted(name: str) -> bool:
    """Return whether a case's name is one of this area's Conformance cases."""
    return name.startswith(AREA) and KIND in name


def faults(cases: Sequence[Case], wanted: Collection[str]) -> list[str]:
    """Why a run is no proof; empty: each of the cases that upstream has passed."""
    found = [f"failed: {case.name}" for case in cases if case.outcome == FAILED]
    passed = {case.name for case in cases if case.outcome == PASSED}
    failed = {case.name for case in cases if case.outcome == FAILED}
    found += [f"did not run: {name}" for name in sorted(set(wanted) - passed - failed)]
    if len(wanted) < LEAST:
        found.append(f"upstream's list has {len(wanted)} cases of {AREA}, not at least {LEAST}")
    return found


def table(cases: Sequence[Case]) -> str:
    """Return how many passed, failed and were skipped, and the slowest."""
    outcomes = Counter(case.outcome for case in cases)
    counts = "  ".join(f"{outcomes[kind]} {kind}" for kind in (PASSED, FAILED, SKIPPED))
    slow = sorted((case for case in cases if case.outcome != SKIPPED), key=lambda case: -case.seconds)[:SLOWEST]
    lines = [f"{case.seconds:.2f}s {case.outcome:8} {case.name}" for case in slow]
    words = [f"\n{case.name}:\n{case.words[-WORDS:]}" for case in cases if case.outcome == FAILED]
    return "\n".join([counts, "the slowest:", *lines, *words])


def write(cases: Sequence[Case], report: Path) -> None:
    """A junit report of these cases alone: upstream's has thousands that were not selected."""
    suite = ElementTree.Element("testsuite", name="conformance", tests=str(len(cases)))
    for case in cases:
        entry = ElementTree.SubElement(suite, "testcase", name=case.name, time=f"{case.seconds:.3f}")
        if case.outcome != PASSED:
            tag = "failure" if case.outcome == FAILED else SKIPPED
            ElementTree.SubElement(entry, tag).text = case.words
    for kind, tag in (("failures", FAILED), (SKIPPED, SKIPPED)):
        suite.set(kind, str(sum(1 for case in cases if case.outcome == tag)))
    ElementTree.ElementTree(suite).write(report, encoding="utf-8", xml_declaration=True)


def _case(entry: ElementTree.Element) -> Case:
    name = entry.get("name", "").removeprefix("[It] ")
    failures = [*entry.iter("failure"), *entry.iter("error")]
    outcome = FAILED if failures else SKIPPED if entry.find("skipped") is not None else PASSED
    words = "\n".join((one.get("message") or "") + "\n" + (one.text or "") for one in failures)
    return Case(name, outcome, float(entry.get("time") or 0), words)
