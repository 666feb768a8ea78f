"""Where the API server is, as the agent's own configuration says."""

from __future__ import annotations

import ipaddress
import logging
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from agent.cluster import api
from agent.ip import Address

log = logging.getLogger(__name__)


def addresses(kubeconfig: str = "") -> frozenset[Address]:
    """Return the address of the API server of a kubeconfig, or of a pod's own; none where it is not known.

    In a pod it is that of the Service `kubernetes`, unless the DaemonSet says another.
    """
    load = partial(api.from_kubeconfig, Path(kubeconfig)) if kubeconfig else api.from_cluster
    try:
        return frozenset({ipaddress.ip_address(urlsplit(load().host).hostname or "")})
    except api.CONFIGURATION as error:  # the datastore reports what is wrong with it; a name is a ValueError
        log.debug("the address of the API server is not known: %s", error)
        return frozenset()
