"""Each file has a licence, and the repository has the text of each licence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.lab.space import REPO

DUAL = "GPL-2.0-only OR BSD-2-Clause"
SOURCES = {
    **dict.fromkeys((REPO / "ebpf").iterdir(), DUAL),
    **dict.fromkeys((REPO / "cni-bin").glob("*.[ch]"), "Apache-2.0"),
}


@pytest.mark.parametrize("path", sorted(SOURCES), ids=lambda path: path.name)
def test_a_source_in_c_names_its_licence_in_its_first_line(path: Path) -> None:
    first = path.read_text().partition("\n")[0]
    assert first.lstrip("/# ") == f"SPDX-License-Identifier: {SOURCES[path]}"


def test_the_kernel_takes_the_programs_as_compatible_with_the_gpl() -> None:
    declared = re.search(r'SEC\("license"\) = "([^"]*)"', (REPO / "ebpf/packet.h").read_text())
    assert declared
    assert declared[1] == "Dual BSD/GPL"  # one of the texts of include/linux/license.h


def test_each_licence_that_is_named_has_its_text() -> None:
    named = set(re.findall(r"[\w.]+-[\w.-]+", f"{DUAL} Apache-2.0"))
    assert {path.stem for path in (REPO / "LICENSES").iterdir()} == named
    assert (REPO / "LICENSES/Apache-2.0.txt").samefile(REPO / "LICENSE")
