"""Find the address of the API server in the agent's own configuration."""

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
    """Return the API server's address of a kubeconfig, or of this pod's service account; none if it is unknown.

    In a pod it is the address of the Service `kubernetes`, unless the DaemonSet sets KUBERNETES_SERVICE_HOST.
    """
    load = partial(api.from_kubeconfig, Path(kubeconfig)) if kubeconfig else api.from_cluster
    try:
        return frozenset({ipaddress.ip_address(urlsplit(load().host).hostname or "")})
    except api.CONFIGURATION as error:  # the datastore reports this problem; a host name is a ValueError
        log.debug("the address of the API server is not known: %s", error)
        return frozenset()
