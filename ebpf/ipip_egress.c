// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* At the egress of the underlay's device: add an outer header to packets for pods of other nodes.
 *
 * The Ethernet header stays: the route to the block has the same next hop as packets to the node itself.
 */
#include "ipip.h"

INLINE __sum16 checksum(struct iphdr *ip)
{
	__u16 *words = (__u16 *)ip;
	__u32 sum = 0;

#pragma unroll
	for (int i = 0; i < (int)(OUTER / 2); i++)
		sum += words[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* The destination node of the outer header; 0: the packet gets none.
 *
 * A pod's packets to the address of another node get an outer header, too: an underlay may drop packets from pods'
 * addresses, and so does a node whose route to them is by its tunl0.
 */
INLINE __be32 end_of(struct iphdr *inner, __be32 node)
{
	struct ipip_block *block = block_of(inner->daddr);
	__u32 *encapsulate;

	if (block)
		return block->encapsulate && block->node != node ? block->node : 0;
	encapsulate = bpf_map_lookup_elem(&ipip_nodes, &inner->daddr);
	if (!encapsulate || !*encapsulate || inner->daddr == node)
		return 0;
	block = block_of(inner->saddr);
	return block && block->node == node ? inner->daddr : 0;
}

SEC("tc")
int ipip_egress(struct __sk_buff *skb)
{
	struct iphdr inner, outer = {};
	__be32 node = own(), end;
	__u32 length;

	if (skb->protocol != bpf_htons(ETH_P_IP) || !node)
		return PASS;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &inner, sizeof(inner)) < 0)
		return PASS;
	end = end_of(&inner, node);
	if (!end)
		return PASS;
	// segments keep their size: the route's MTU leaves room for the outer header
	if (bpf_skb_adjust_room(skb, OUTER, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_FIXED_GSO))
		return drop(skb, IPIP_DROP_FAILED);
	length = skb->len - ETH_HLEN;
	outer.version = 4;
	outer.ihl = OUTER / 4;
	outer.tos = inner.tos; // ECN too (RFC 6040)
	outer.tot_len = bpf_htons(length > 0xffff ? 0 : length); // a longer packet is split into segments, which get their own
	outer.frag_off = bpf_htons(DONT_FRAGMENT);               // so the identification may be 0 (RFC 6864)
	outer.ttl = 64;
	outer.protocol = IPPROTO_IPIP;
	outer.saddr = node;
	outer.daddr = end;
	outer.check = checksum(&outer);
	if (bpf_skb_store_bytes(skb, ETH_HLEN, &outer, sizeof(outer), 0) < 0)
		return drop(skb, IPIP_DROP_FAILED);
	return done(skb, IPIP_SENT, PASS);
}
