"""What modes want of a node, in tests that know that they want something."""

from __future__ import annotations

from typing import TypeVar

from agent.objects.state import NodeState, Section

S = TypeVar("S", bound=Section)


def section(state: NodeState, kind: type[S]) -> S:
    found = state.section(kind)
    assert found, f"no {kind.__name__} is desired"
    return found
