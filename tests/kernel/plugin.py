"""In the guest, a run that shows nothing is a failure: none passed, or one found that the kernel lacks a thing."""

from __future__ import annotations

import pytest

LACKS = "this kernel has no"

passed = 0
lacking: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    global passed  # noqa: PLW0603 - a plugin's hooks share its module
    passed += report.when == "call" and report.passed
    if report.skipped and LACKS in report.longreprtext:
        lacking.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.exitstatus != pytest.ExitCode.OK:
        return
    if not passed:
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
    elif lacking:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for test in lacking:
        terminalreporter.write_line(f"FAILED {test}: skipped, and this tier is there so that it is not")
