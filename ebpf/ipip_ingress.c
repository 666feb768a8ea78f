// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* At the ingress of the underlay's device: remove the outer header of ipip packets from nodes; drop other ipip packets.
 *
 * A node may use any inner source address except those of other nodes' pods: its own, and those of outside clients
 * whose packets it forwards.
 */
#include "ipip.h"

SEC("tc")
int ipip_ingress(struct __sk_buff *skb)
{
	struct ipip_block *owner;
	struct iphdr outer, inner;
	__be32 node = own();
	__u32 length;

	if (skb->protocol != bpf_htons(ETH_P_IP) || !node)
		return PASS;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &outer, sizeof(outer)) < 0)
		return PASS;
	if (outer.protocol != IPPROTO_IPIP || outer.daddr != node)
		return PASS;
	if (!bpf_map_lookup_elem(&ipip_nodes, &outer.saddr))
		return drop(skb, IPIP_DROP_UNKNOWN_NODE);
	if (outer.ihl != OUTER / 4 || outer.frag_off & bpf_htons(FRAGMENT))
		return drop(skb, IPIP_DROP_MALFORMED);
	if (bpf_skb_load_bytes(skb, ETH_HLEN + OUTER, &inner, sizeof(inner)) < 0)
		return drop(skb, IPIP_DROP_MALFORMED);
	length = bpf_ntohs(inner.tot_len);
	if (inner.version != 4 || inner.ihl < 5 || length > skb->len - ETH_HLEN - OUTER)
		return drop(skb, IPIP_DROP_MALFORMED);
	owner = block_of(inner.saddr);
	if ((owner && owner->node != outer.saddr) || inner.saddr == node)
		return drop(skb, IPIP_DROP_SPOOFED);
	if (bpf_skb_adjust_room(skb, -(__s32)OUTER, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		return drop(skb, IPIP_DROP_FAILED);
	if ((outer.tos & 3) == 3) // congestion on the path: copied to an inner header with ECN (RFC 6040)
		bpf_skb_ecn_set_ce(skb);
	return done(skb, IPIP_RECEIVED, PASS);
}
