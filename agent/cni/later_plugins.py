"""What the plugins after testcni in a chain do to pods: testcni has to know before it connects one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent.cni.netconf import NetConf
from agent.errors import MAC_REMEDY, UNSEEN_MAC_REMEDY, CniError, Code, invalid_config
from agent.kernel import tcx


@dataclass(frozen=True, slots=True)
class LaterPlugins:
    """What the conf folder says of later plugins, by the name of a network."""

    foreign_mac: Callable[[str], str] = lambda _network: ""
    """Return the MAC that such a plugin gives to pods; empty: none."""
    unseen_mac: Callable[[str], str] = lambda _network: ""
    """Return the plugins that may give pods a MAC that testcni is not told; empty: none."""
    egress_limit: Callable[[str], bool | None] = lambda _network: None
    """Return whether such a plugin limits what every pod sends; False: that of some pods, None: of none."""

    def check_mac(self, conf: NetConf) -> None:
        """Raise CniError 7 if a later plugin would change the pod's MAC, so that nobody could reach the pod."""
        mac = self.foreign_mac(conf.network.name)
        if mac and mac.lower() != conf.mac:
            allowed = f"none in the plugin tuning after testcni, as nobody would reach the pod; {MAC_REMEDY}"
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
