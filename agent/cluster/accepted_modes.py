"""Encode and decode the modes that a node accepts, as text for an annotation or a file."""

from __future__ import annotations

from agent.model.cluster import AcceptedModes

ANNOTATION = "testcni.io/receives"


def encode(accepted_modes: AcceptedModes) -> str:
    """Return `NETWORK=MODE,MODE` for each network, separated by blanks."""
    return " ".join(f"{network}={','.join(modes)}" for network, modes in accepted_modes)


def decode(text: object) -> AcceptedModes:
    """Return the accepted modes of a text of `encode`; words that cannot be understood are ignored."""
    found = {}
    for word in text.split() if isinstance(text, str) else ():
        network, _, modes = word.partition("=")
        said = tuple(dict.fromkeys(filter(None, modes.split(","))))
        if network and said:
            found[network] = said
    return tuple(sorted(found.items()))
