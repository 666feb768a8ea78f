"""The effects of plugins after testcni in a chain: testcni has to know them before it connects a pod."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent.cni.netconf import NetConf
from agent.errors import MAC_REMEDY, UNSEEN_MAC_REMEDY, CniError, Code, invalid_config
from agent.kernel import tcx


@dataclass(frozen=True, slots=True)
class LaterPlugins:
    """The settings of later plugins in the conf directory, by the name of a network."""

    foreign_mac: Callable[[str], str] = lambda _network: ""
    """Return the MAC that such a plugin gives to pods; empty: none."""
    unseen_mac: Callable[[str], str] = lambda _network: ""
    """Return the plugins that may give pods a MAC that testcni does not get; empty: none."""
    egress_limit: Callable[[str], bool | None] = lambda _network: None
    """Return True if such a plugin limits the traffic of every pod, False if of some pods, None if of none."""

    def check_mac(self, conf: NetConf) -> None:
        """Raise CniError 7 if a later plugin would change the pod's MAC, so that no pod could reach it."""
        mac = self.foreign_mac(conf.network.name)
        if mac and mac.lower() != conf.mac:
            allowed = f"none in the plugin tuning after testcni, as no pod would reach it; {MAC_REMEDY}"
            raise invalid_config("mac", mac, allowed)
        self.check_unseen_mac(conf)

    def check_unseen_mac(self, conf: NetConf) -> None:
        """Raise CniError 7 if a later plugin may change a pod's MAC without testcni's knowledge."""
        if plugins := self.unseen_mac(conf.network.name):
            what = f"{plugins} after testcni has the capability `mac` and testcni has not"
            raise CniError(Code.INVALID_CONFIG, f"capabilities: {what}", UNSEEN_MAC_REMEDY)

    def limits_egress(self, conf: NetConf) -> bool:
        """Return whether the pod needs an ingress qdisc for a later plugin.

        Where a plugin limits only some pods, each pod gets one if the kernel has TCX for testcni's programs.
        """
        if conf.limited:
            return True
        limited = self.egress_limit(conf.network.name)
        return tcx.known() if limited is False else bool(limited)
