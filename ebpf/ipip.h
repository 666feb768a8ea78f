// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* ipip (RFC 2003) without an ipip device: the outer header is added and removed at the underlay's device.
 *
 * The packets are those of a tunl0, so the other node may have one.
 * Addresses are in network byte order, all else in the host's.
 */
#ifndef TESTCNI_IPIP_H
#define TESTCNI_IPIP_H

#include "packet.h"

#define OUTER sizeof(struct iphdr)
#define DONT_FRAGMENT 0x4000

enum ipip_reason {
	IPIP_SENT,              // encapsulated
	IPIP_RECEIVED,          // decapsulated
	IPIP_DROP_UNKNOWN_NODE, // from an unknown node
	IPIP_DROP_SPOOFED,      // from a node, with an inner address of another node's pods
	IPIP_DROP_MALFORMED,    // outer options or fragments, or no valid inner packet
	IPIP_DROP_FAILED,       // the kernel refused a step
	IPIP_REASONS,
};

struct ipip_key {
	__u32 length; // of the prefix, in bits
	__be32 address;
};

struct ipip_block {
	__be32 node;       // the owner of the block
	__u32 encapsulate; // 0: packets to it get no outer header
};

struct ipip_counter {
	__u64 packets, bytes;
};

struct { // one entry: this node's address in outer headers
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __be32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} ipip_node SEC(".maps");

struct { // blocks of all nodes, this one's included
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 100000);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct ipip_key);
	__type(value, struct ipip_block);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} ipip_blocks SEC(".maps");

struct { // addresses that nodes may send from; 0: packets to them get no outer header
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 100000);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __be32);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} ipip_nodes SEC(".maps");

struct { // by reason
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, IPIP_REASONS);
	__type(key, __u32);
	__type(value, struct ipip_counter);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} ipip_counters SEC(".maps");

INLINE int done(struct __sk_buff *skb, __u32 reason, int verdict)
{
	struct ipip_counter *counter = bpf_map_lookup_elem(&ipip_counters, &reason);

	if (counter) {
		counter->packets++;
		counter->bytes += skb->len;
	}
	return verdict;
}

INLINE int drop(struct __sk_buff *skb, __u32 reason)
{
	return done(skb, reason, TC_ACT_SHOT);
}

/* This node's address; 0 until the agent has written it. */
INLINE __be32 own(void)
{
	__u32 first = 0;
	__be32 *address = bpf_map_lookup_elem(&ipip_node, &first);

	return address ? *address : 0;
}

INLINE struct ipip_block *block_of(__be32 address)
{
	struct ipip_key key = { .length = 32, .address = address };

	return bpf_map_lookup_elem(&ipip_blocks, &key);
}

#endif
