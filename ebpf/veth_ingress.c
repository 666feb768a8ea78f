// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* At the ingress of the host end of a pod's veth pair: all packets that the pod sends. */
#include "common.h"
#include "flow.h"
#include "tunnel.h"

/* Answer ARP for the gateway, which is on no interface. All other ARP is between the pod and the node. */
INLINE int answer_arp(struct __sk_buff *skb, struct headers *h, struct config *config_)
{
	struct {
		__u16 align;
		struct ethhdr eth;
		struct arp arp;
		__u16 end;
	} frame = {};
	struct pod *pod;
	__be32 sender;

	if (bpf_skb_load_bytes(skb, 0, &frame.eth, sizeof(frame.eth) + sizeof(frame.arp)) < 0)
		return drop(skb, h, DROP_MALFORMED, 0);
	sender = frame.arp.sender;
	pod = pod_of(sender);
	if (sender && (!pod || pod->device != skb->ifindex))
		return drop(skb, h, DROP_SPOOFED_IP, 0);
	if (pod && (!same_mac(frame.eth.h_source, pod->mac) || !same_mac(frame.arp.sender_mac, pod->mac)))
		return drop(skb, h, DROP_SPOOFED_MAC, 0);
	if (!pod || frame.arp.target != config_->gateway || frame.arp.operation != bpf_htons(1))
		return to_stack(skb);
	__builtin_memcpy(frame.eth.h_dest, pod->mac, 2 * ETH_ALEN);
	frame.arp.operation = bpf_htons(2);
	__builtin_memcpy(frame.arp.target_mac, pod->mac, ETH_ALEN);
	__builtin_memcpy(frame.arp.sender_mac, pod->host_mac, ETH_ALEN);
	frame.arp.target = sender;
	frame.arp.sender = config_->gateway;
	if (bpf_skb_store_bytes(skb, 0, &frame.eth, sizeof(frame.eth) + sizeof(frame.arp), 0) < 0)
		return drop(skb, h, DROP_FAILED, 0);
	count(skb, ANSWERED_ARP);
	return bpf_redirect(skb->ifindex, 0);
}

/* Packets of a pod to the tunnel's port: after masquerade they would have this node's address. */
INLINE int speaks_tunnel(struct __sk_buff *skb, struct headers *h, struct config *config_)
{
	__be16 source = 0, port = 0;

	if (h->ip.protocol != IPPROTO_UDP || (h->ip.frag_off & bpf_htons(LATER_FRAGMENT)))
		return 0;
	ports(skb, ETH_HLEN + h->ip.ihl * 4, IPPROTO_UDP, &source, &port);
	return port == config_->port;
}

/* Whether a packet fits through the tunnel; else the stack fragments it, or sends an ICMP error to the pod. */
INLINE int fits(struct __sk_buff *skb, struct config *config_)
{
	__u32 mtu = 0;

	return skb->len <= ALWAYS_FITS || bpf_check_mtu(skb, config_->device, &mtu, 0, BPF_MTU_CHK_SEGS) == 0;
}

SEC("tc")
int veth_ingress(struct __sk_buff *skb)
{
	struct config *config_ = configured();
	struct headers h = {};
	enum kind kind = parse(skb, &h);
	struct pod *from, *to;
	__be32 *node;

	if (!config_)
		return drop(skb, &h, DROP_FAILED, 0);
	if (kind == ARP)
		return answer_arp(skb, &h, config_);
	if (kind != IPV4)
		return drop(skb, &h, not_ipv4(kind), 0);
	from = pod_of(h.ip.saddr);
	if (!from || from->device != skb->ifindex)
		return drop(skb, &h, DROP_SPOOFED_IP, 0);
	if (!same_mac(h.eth.h_source, from->mac))
		return drop(skb, &h, DROP_SPOOFED_MAC, 0);
	if (is_tunnel(h.ip.protocol))
		return drop(skb, &h, DROP_POD_TUNNEL, 0);
	if (hides_header(&h.ip))
		return drop(skb, &h, DROP_MALFORMED, 0);
	if (is_redirect(skb, ETH_HLEN + h.ip.ihl * 4, h.ip.protocol, h.ip.frag_off)) // only routers send redirects
		return drop(skb, &h, DROP_SPOOFED_IP, 0);
	to = pod_of(h.ip.daddr);
	if (to)
		return wants_stack(skb, &h) ? to_stack(skb) : to_pod(skb, &h, to);
	node = node_of(h.ip.daddr);
	if (!node || *node == config_->node) { // the outside, a Service, or this node itself
		if (speaks_tunnel(skb, &h, config_))
			return drop(skb, &h, DROP_POD_TUNNEL, 0);
		return to_stack(skb);
	}
	if (wants_stack(skb, &h) || !fits(skb, config_))
		return to_stack(skb);
	if (encapsulate(skb, config_, *node) < 0)
		return drop(skb, &h, DROP_FAILED, 0);
	skb->mark = MARK;
	count(skb, FORWARDED_REMOTE);
	return bpf_redirect(config_->device, 0);
}
