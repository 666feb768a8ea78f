"""Each test of this folder runs in a process and a network namespace of its own: a real and empty node."""

from __future__ import annotations

import ctypes
import inspect
import os
import pickle
import traceback
from collections.abc import Callable
from typing import Any

import pytest

CLONE_NEWNET = 0x40000000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        for item in items:
            if "netns" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason="network namespaces need root"))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if "netns" not in pyfuncitem.path.parts:
        return None
    wanted = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in wanted}
    _in_child(lambda: pyfuncitem.obj(**arguments))
    return True


def _in_child(test: Callable[[], Any]) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        outcome: tuple[str, str] = ("", "")
        try:
            if ctypes.CDLL(None).unshare(CLONE_NEWNET):
                raise OSError("unshare(CLONE_NEWNET) failed")
            test()
        except pytest.skip.Exception as skipped:
            outcome = ("skip", str(skipped))
        except BaseException:  # noqa: BLE001 - the parent reports each of them
            outcome = ("fail", traceback.format_exc())
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(outcome, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    kind, text = pickle.loads(data) if data else ("fail", "the test's process died")  # noqa: S301 - our own child
    if kind == "skip":
        pytest.skip(text)
    if kind == "fail":
        pytest.fail(text, pytrace=False)
