// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Shared by the programs of vxlan: read a packet, count and report drops, and the two paths that bypass the stack. */
#ifndef TESTCNI_COMMON_H
#define TESTCNI_COMMON_H

#include "maps.h"
#include "packet.h"

#define MARK 0x7e57c41       // the packet has its tunnel key; set by veth_ingress, cleared by vxlan_egress
#define ALWAYS_FITS (ETH_HLEN + 512) // bytes; this fits through every tunnel

struct headers {
	__u16 align; // so that the IP header after 14 bytes of Ethernet header is aligned
	struct ethhdr eth;
	struct iphdr ip;
};

enum kind { IPV4, ARP, OTHER, MALFORMED };

INLINE struct config *configured(void)
{
	__u32 first = 0;
	struct config *config_ = bpf_map_lookup_elem(&config, &first);

	return config_ && config_->device ? config_ : NULL;
}

INLINE struct counter *count(struct __sk_buff *skb, __u32 reason)
{
	struct counter *counter = bpf_map_lookup_elem(&reason_counters, &reason);

	if (counter) {
		counter->packets++;
		counter->bytes += skb->len;
	}
	return counter;
}

INLINE int to_stack(struct __sk_buff *skb)
{
	count(skb, TO_STACK);
	return PASS;
}

INLINE void ports(struct __sk_buff *skb, __u32 offset, __u8 protocol, __be16 *source, __be16 *destination)
{
	__be16 pair[4] = {};

	switch (protocol) {
	case IPPROTO_TCP: case IPPROTO_UDP: case IPPROTO_UDPLITE: case IPPROTO_SCTP: case IPPROTO_DCCP:
		if (bpf_skb_load_bytes(skb, offset, pair, 4) == 0) {
			*source = pair[0];
			*destination = pair[1];
		}
		break;
	case IPPROTO_ICMP: // type and code, checksum, identifier
		if (bpf_skb_load_bytes(skb, offset, pair, 8) == 0)
			*source = *destination = pair[2];
		break;
	}
}

/* Count a dropped packet, and write an event for some of them.
 * Not inline: it has many callers, and dropped packets need not be fast.
 */
static __noinline __attribute__((unused))
int drop(struct __sk_buff *skb, struct headers *h, __u32 reason, __be32 remote)
{
	struct counter *counter = count(skb, reason);
	__u32 first = 0;
	struct config *config_ = bpf_map_lookup_elem(&config, &first);
	struct event *event;

	if (!counter || !config_ || ((counter->packets - 1) & config_->sample))
		return TC_ACT_SHOT;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event)
		return TC_ACT_SHOT;
	__builtin_memset(event, 0, sizeof(*event));
	event->time = bpf_ktime_get_ns();
	event->reason = reason;
	event->device = skb->ifindex;
	event->remote = remote;
	event->ethertype = h->eth.h_proto;
	__builtin_memcpy(event->source_mac, h->eth.h_source, ETH_ALEN);
	if (h->eth.h_proto == bpf_htons(ETH_P_IP)) {
		__be16 source = 0, destination = 0;

		event->source = h->ip.saddr;
		event->destination = h->ip.daddr;
		event->protocol = h->ip.protocol;
		if (!(h->ip.frag_off & bpf_htons(FRAGMENT)))
			ports(skb, ETH_HLEN + h->ip.ihl * 4, h->ip.protocol, &source, &destination);
		event->source_port = source;
		event->destination_port = destination;
	}
	bpf_ringbuf_submit(event, 0);
	return TC_ACT_SHOT;
}

INLINE enum kind parse(struct __sk_buff *skb, struct headers *h)
{
	__u32 length;

	if (skb->vlan_present)
		return OTHER;
	if (bpf_skb_load_bytes(skb, 0, &h->eth, sizeof(h->eth) + sizeof(h->ip)) < 0) {
		bpf_skb_load_bytes(skb, 0, &h->eth, sizeof(h->eth));
		h->ip.protocol = 0;
		return MALFORMED;
	}
	if (h->eth.h_proto == bpf_htons(ETH_P_ARP))
		return ARP;
	if (h->eth.h_proto != bpf_htons(ETH_P_IP))
		return OTHER;
	length = bpf_ntohs(h->ip.tot_len);
	if (!length && skb->gso_size) // more than 64 KiB, to be split into segments
		length = skb->len - ETH_HLEN;
	if (h->ip.version != 4 || h->ip.ihl < 5 || length < h->ip.ihl * 4 || length > skb->len - ETH_HLEN)
		return MALFORMED;
	return IPV4;
}

/* The reason to drop a packet that is not IPv4. */
INLINE __u32 not_ipv4(enum kind kind)
{
	return kind == MALFORMED ? DROP_MALFORMED : DROP_NOT_IP;
}

INLINE struct pod *pod_of(__be32 address)
{
	return bpf_map_lookup_elem(&pods, &address);
}

/* The node that has the block of an address, or NULL. */
INLINE __be32 *node_of(__be32 address)
{
	struct block key = { .length = 32, .address = address };

	return bpf_map_lookup_elem(&blocks, &key);
}

/* Send a packet to a pod of this node without the stack: it arrives at the interface in the pod's namespace. */
INLINE int to_pod(struct __sk_buff *skb, struct headers *h, struct pod *pod)
{
	if (bpf_skb_store_bytes(skb, 0, pod->mac, 2 * ETH_ALEN, 0) < 0)
		return drop(skb, h, DROP_FAILED, 0);
	count(skb, FORWARDED_LOCAL);
	return bpf_redirect_peer(pod->device, 0);
}

#endif
