"""The tiers of a CI run, and which of them run side by side."""

from __future__ import annotations

from dataclasses import dataclass

INSTALLED = "from apply to all nodes Ready"  # a line of tests/e2e/test_1_install.py


@dataclass(frozen=True, slots=True)
class Tier:
    """A command, and what it needs of the machine."""

    command: str
    alone_until: str = ""
    """Tiers beside this one begin when it has printed this text: it measures a promised time first."""
    optional: bool = False
    """Left out if not enough time is left."""

    @property
    def log(self) -> str:
        """The name of the file with the output."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.command) + ".log"


@dataclass(frozen=True, slots=True)
class Lane:
    """Tiers that run one after the other in each of some slots, beside other lanes."""

    tiers: tuple[Tier, ...]
    slots: int = 1
    background: bool = False
    """Use the processor time that the other lanes leave."""


@dataclass(frozen=True, slots=True)
class Step:
    """Lanes that run side by side. A step begins when the one before it has passed."""

    lanes: tuple[Lane, ...]
    needs_built: bool = False
    """Wait for the programs of `make built`."""


PLAN = (
    Step((Lane((Tier("make test"),)),)),
    Step((Lane((Tier("make demo"),)),)),
    # Clusters wait most of the time: two of them run side by side.
    Step(
        (
            Lane(
                (
                    Tier("make e2e", alone_until=INSTALLED),
                    Tier("make e2e MODE=vxlan PROXY=nftables"),
                    Tier("make e2e MODE=ipip"),
                    Tier("make e2e MODE=macvlan"),
                    Tier("make conformance"),
                ),
                slots=2,
            ),
            Lane((Tier("make test-api"),), background=True),
        ),
        needs_built=True,
    ),
    # ipip devices and ipvlan are nowhere else than in test-kernel: it is never left out
    Step((Lane((Tier("make test-kernel"),)),), needs_built=True),
    Step((Lane((Tier("make test-debian13"),)),), needs_built=True),
    Step((Lane((Tier("make test-scale", optional=True),)),), needs_built=True),
)
