// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Replies of flows that the node's stack translated must come back through that stack.
 *
 * At the exits of the stack (to a pod, to the tunnel) flows between pods are recorded with the addresses that they have
 * there. A packet of the other direction is a reply, and goes to the stack. If the pod itself sends a packet of the same
 * direction, the flow is not translated any more: a pod that uses a Service does not send to the backend's address.
 */
#ifndef TESTCNI_FLOW_H
#define TESTCNI_FLOW_H

#include "common.h"

struct direction {
	struct flow flow;
	__be32 source;
	__u8 fragment; // then it has no ports, like all other fragments of the packet
	__u8 error;    // an ICMP error about the flow; it takes the path of the replies
	__u8 spare[2];
};

INLINE int is_error(__u8 type)
{
	return type == UNREACHABLE || type == QUENCH || type == REDIRECT || type == EXCEEDED || type == PARAMETER;
}

INLINE void order(struct direction *d, __be32 source, __be32 destination, __be16 source_port, __be16 port)
{
	int low = bpf_ntohl(source) < bpf_ntohl(destination);

	d->source = source;
	d->flow.low = low ? source : destination;
	d->flow.high = low ? destination : source;
	d->flow.low_port = low ? source_port : port;
	d->flow.high_port = low ? port : source_port;
}

/* The flow of a packet; for an ICMP error, the reverse flow of the packet that it is about. */
INLINE void flow_of(struct __sk_buff *skb, struct headers *h, struct direction *d)
{
	__u32 offset = ETH_HLEN + h->ip.ihl * 4;
	__be16 source = 0, destination = 0;

	d->flow.protocol = h->ip.protocol;
	if (h->ip.frag_off & bpf_htons(FRAGMENT)) {
		d->fragment = 1;
	} else if (h->ip.protocol == IPPROTO_ICMP) {
		struct {
			__u8 type, code;
			__be16 checksum;
			__be32 rest;
			struct iphdr ip;
		} error;

		if (bpf_skb_load_bytes(skb, offset, &error, sizeof(error)) == 0 && is_error(error.type) &&
		    error.ip.ihl >= 5) {
			d->error = 1;
			d->flow.protocol = error.ip.protocol;
			ports(skb, offset + 8 + error.ip.ihl * 4, error.ip.protocol, &source, &destination);
			order(d, error.ip.daddr, error.ip.saddr, destination, source);
			return;
		}
		ports(skb, offset, IPPROTO_ICMP, &source, &destination);
	} else {
		ports(skb, offset, h->ip.protocol, &source, &destination);
	}
	order(d, h->ip.saddr, h->ip.daddr, source, destination);
}

/* Whether the node's stack must see this packet: it has IP options, or is a reply to translate. */
INLINE int wants_stack(struct __sk_buff *skb, struct headers *h)
{
	struct direction d = {};
	__be32 *carried;

	if (h->ip.ihl > 5)
		return 1;
	flow_of(skb, h, &d);
	carried = bpf_map_lookup_elem(&flows, &d.flow);
	if (!carried)
		return 0;
	if (d.fragment || d.error || *carried != d.source)
		return 1;
	bpf_map_delete_elem(&flows, &d.flow);
	return 0;
}

INLINE int is_elsewhere(__be32 address, struct config *config_)
{
	__be32 *node = node_of(address);

	return node && *node != config_->node;
}

/* Record a packet that leaves the stack, if its replies could come by a path that bypasses the stack. */
INLINE void remember(struct __sk_buff *skb, struct headers *h, struct config *config_)
{
	struct direction d = {};
	__be32 *carried;

	if (!pod_of(h->ip.saddr) && !is_elsewhere(h->ip.saddr, config_))
		return;
	flow_of(skb, h, &d);
	if (d.error)
		return;
	carried = bpf_map_lookup_elem(&flows, &d.flow);
	if (!carried || *carried != d.source)
		bpf_map_update_elem(&flows, &d.flow, &d.source, BPF_ANY);
	if (d.fragment || (!d.flow.low_port && !d.flow.high_port))
		return;
	d.flow.low_port = d.flow.high_port = 0; // fragments of the replies are found by this key
	if (!bpf_map_lookup_elem(&flows, &d.flow))
		bpf_map_update_elem(&flows, &d.flow, &d.source, BPF_ANY);
}

#endif
