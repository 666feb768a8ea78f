"""macvlan: each pod is a machine of its own on the node's segment, with its own MAC."""

from __future__ import annotations

from agent.ipam.attachments.attachment import Attachment
from agent.modes.base import AgentContext, ModeParts
from agent.modes.parent.mac_filter_check import MacFilterCheck
from agent.modes.parent.options import MACVLAN, PASSTHRU, MacvlanOptions
from agent.modes.parent.subinterface import SubinterfaceMode, link_mode, only_parents


class Macvlan(SubinterfaceMode):
    """The mode `macvlan`."""

    kind = MACVLAN
    options = MacvlanOptions

    def parts(self, agent: AgentContext) -> ModeParts:
        """Return the check whether the segment carries frames of pods' MACs."""
        problems = agent.board.part("segment")
        return ModeParts(threads=lambda view: {"segment": MacFilterCheck(view, problems, agent.host.reaper)})

    def mac(self, attachment: Attachment) -> str | None:
        """Return the MAC of its address, or the one asked for; None with passthru: it has the parent's.

        The parent's must stay as it is.

        Raises CniError 7 where one was asked for with passthru.
        """
        if link_mode(attachment.network) != PASSTHRU:
            return attachment.mac
        only_parents(attachment)
        return None
