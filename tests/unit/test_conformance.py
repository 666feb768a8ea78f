"""What `make conformance` takes for a proof: every one of upstream's cases passed, and none is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.conformance import results
from tests.conformance.results import FAILED, LEAST, PASSED, SKIPPED, Case

NAMES = [f"[sig-network] Services should do number {number} [Conformance]" for number in range(LEAST)]
REPORT = """<?xml version="1.0" encoding="UTF-8"?>
<testsuites><testsuite name="Kubernetes e2e suite">
<testcase name="[SynchronizedBeforeSuite]" status="passed" time="2"/>
<testcase name="[It] {}" status="passed" time="1.5"/>
<testcase name="[It] {}" status="failed" time="9"><failure message="no answer" type="failed">at 1.2.3.4</failure>
</testcase>
<testcase name="[It] {}" status="timedout" time="7"><error message="too long"/></testcase>
<testcase name="[It] {}" status="skipped" time="0"><skipped message="skipped"/></testcase>
<testcase name="[It] [sig-network] Netpol should do [Feature:NetworkPolicy]" status="skipped"><skipped/></testcase>
<testcase name="[It] [sig-node] Pods should do [Conformance]" status="skipped"><skipped/></testcase>
</testsuite></testsuites>
""".format(*NAMES[:4])


def all_but(*cases: Case) -> list[Case]:
    other = {case.name: case for case in cases}
    return [other.get(name, Case(name, PASSED, 1.0)) for name in NAMES]


def test_a_run_in_which_all_passed_has_no_fault() -> None:
    assert results.faults(all_but(), NAMES) == []


def test_a_failure_is_a_fault_and_named_once() -> None:
    assert results.faults(all_but(Case(NAMES[3], FAILED, 1.0)), NAMES) == [f"failed: {NAMES[3]}"]


@pytest.mark.parametrize(
    "cases", [all_but()[1:], all_but(Case(NAMES[0], SKIPPED, 0.0))], ids=["absent", "skipped"]
)
def test_a_case_that_did_not_run_is_a_fault(cases: list[Case]) -> None:
    assert results.faults(cases, NAMES) == [f"did not run: {NAMES[0]}"]


def test_other_cases_do_not_stand_in_for_one_that_is_missing() -> None:
    more = [Case("[sig-network] Services should do more [Conformance]", PASSED, 1.0)]
    assert results.faults([*all_but()[1:], *more], NAMES) == [f"did not run: {NAMES[0]}"]


def test_a_list_that_has_become_shorter_is_a_fault() -> None:
    (fault,) = results.faults(all_but(), NAMES[1:])
    assert f"{LEAST - 1} cases" in fault
    assert len(results.faults([], [])) == 1


def test_a_failed_set_up_is_a_fault_and_each_case_did_not_run() -> None:
    assert len(results.faults([Case("[SynchronizedBeforeSuite]", FAILED, 1.0)], NAMES)) == 1 + LEAST


def test_reports_are_read(tmp_path: Path) -> None:
    report = tmp_path / "junit.xml"
    report.write_text(REPORT)
    cases = results.read(report)
    assert [(case.name, case.outcome) for case in cases] == list(
        zip(NAMES[:4], (PASSED, FAILED, FAILED, SKIPPED), strict=True)
    )
    assert "no answer" in cases[1].words
    assert "at 1.2.3.4" in cases[1].words
    assert cases[0].seconds == 1.5
    text = results.table(cases)
    assert "1 passed  2 failed  1 skipped" in text
    assert text.index(NAMES[1]) < text.index(NAMES[2]) < text.index(NAMES[0]), "the slowest first"
    assert "no answer" in text
    report.write_text(REPORT.replace('time="2"/>', 'time="2"><error/></testcase>'))
    assert results.read(report)[0] == Case("[SynchronizedBeforeSuite]", FAILED, 2.0, "\n")


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    cases = all_but(Case(NAMES[1], FAILED, 2.0, "why"), Case(NAMES[2], SKIPPED, 0.0))
    results.write(cases, tmp_path / "short.xml")
    again = results.read(tmp_path / "short.xml")
    assert [(case.name, case.outcome, case.seconds) for case in again] == [
        (case.name, case.outcome, case.seconds) for case in cases
    ]
    text = (tmp_path / "short.xml").read_text()
    assert f'tests="{LEAST}"' in text
    assert 'failures="1"' in text
    assert 'skipped="1"' in text


def test_upstreams_list_is_read(tmp_path: Path) -> None:
    listed = tmp_path / "conformance.yaml"
    other = "[sig-node] Pods should do [Conformance]"
    text = yaml.safe_dump(
        [{"testname": "any", "codename": name, "file": "x.go"} for name in [*NAMES, other]], width=40
    )
    listed.write_text(text)
    assert results.expected(listed) == set(NAMES)
