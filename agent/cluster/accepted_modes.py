"""What nodes say of how and where they take packets for pods: as text, in an annotation or a file."""

from __future__ import annotations

from agent.model.cluster import ENDS, Receives
from agent.model.network import MODES

ANNOTATION = "testcni.io/receives"


def encode(receives: Receives) -> str:
    """`NETWORK=MODE,MODE` for each network, with a blank between."""
    return " ".join(f"{network}={','.join(modes)}" for network, modes in receives)


def decode(text: object) -> Receives:
    """What `encode` made the text of.

    Words that are not understood count for nothing, as of an agent that knows more modes: its node is still there.
    """
    found = {}
    for word in text.split() if isinstance(text, str) else ():
        network, _, modes = word.partition("=")
        said = tuple(dict.fromkeys(modes.split(",")))
        known = said if network == ENDS else tuple(mode for mode in said if mode in MODES)
        if network and known:
            found[network] = known
    return tuple(sorted(found.items()))
