// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* At the ingress of the vxlan device: packets of other nodes, without their outer headers.
 *
 * Only packets from addresses in the blocks of the sending node bypass the stack, as the replies to them do. Replies to
 * all other sources pass the stack, so these packets must pass it, too: connection tracking must see both directions.
 * A node may use any source address except those of other nodes' pods: its own, and those of outside clients.
 */
#include "common.h"
#include "flow.h"

SEC("tc")
int vxlan_ingress(struct __sk_buff *skb)
{
	struct config *config_ = configured();
	struct bpf_tunnel_key key = {};
	struct headers h = {};
	enum kind kind = parse(skb, &h);
	struct pod *pod;
	__be32 remote, *owner, *known;

	if (!config_ || bpf_skb_get_tunnel_key(skb, &key, offsetof(struct bpf_tunnel_key, local_ipv4), 0) < 0)
		return drop(skb, &h, DROP_FAILED, 0);
	remote = bpf_htonl(key.remote_ipv4);
	owner = kind == IPV4 ? node_of(h.ip.saddr) : NULL;
	if (!owner || *owner != remote) {
		known = bpf_map_lookup_elem(&nodes, &remote);
		if (!known)
			return drop(skb, &h, DROP_UNKNOWN_NODE, remote);
		if (owner && *known != UNKNOWN && *owner != *known) // a node with several addresses may send from any of them
			return drop(skb, &h, DROP_SPOOFED_NODE, remote);
	}
	if (key.tunnel_id != config_->vni)
		return drop(skb, &h, DROP_WRONG_VNI, remote);
	if (kind != IPV4)
		return drop(skb, &h, not_ipv4(kind), remote);
	if (skb->pkt_type != 0) // PACKET_HOST; a packet for another MAC is not from a peer of ours
		bpf_skb_change_type(skb, 0);
	pod = pod_of(h.ip.daddr);
	if (!pod || !owner || *owner != remote || wants_stack(skb, &h))
		return to_stack(skb);
	return to_pod(skb, &h, pod);
}
