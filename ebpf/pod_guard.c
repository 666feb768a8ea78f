// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* At the ingress of the host end of a pod's veth pair without veth_ingress: accept only the pod's own addresses.
 *
 * Frames must have the pod's MAC and packets its addresses as source; ARP and neighbour discovery must be about these.
 * "spoofCheck": false turns this off. Redirects, router advertisements and tunnel packets are dropped in any case,
 * before masquerade gives them the node's address.
 */
#include "guard.h"
#include <linux/icmpv6.h>
#include <linux/ipv6.h>

#define EXTENSIONS 8 // headers of an IPv6 packet before that of its protocol
#define OPTIONS 4    // of a neighbour discovery message

enum { HOP_BY_HOP = 0, ROUTING = 43, PIECE = 44, AUTHENTICATION = 51, DESTINATION = 60, MOBILITY = 135 }; // RFC 8200
enum { // RFC 4861, 2710, 3810
	LISTENER_REPORT = 131, LISTENER_DONE = 132, ROUTER_SOLICITATION = 133, ROUTER_ADVERTISEMENT = 134,
	SOLICITATION = 135, ADVERTISEMENT = 136, REDIRECT6 = 137, LISTENER_REPORT2 = 143,
	SOURCE_MAC = 1, TARGET_MAC = 2,
};

struct nd { // solicitation or advertisement
	__u8 type, code;
	__be16 checksum;
	__be32 flags;
	struct in6_addr target;
};

struct chain { // of IPv6 headers
	__u32 offset, end; // of the next one, and of the packet: what follows is padding
	__u8 next;
	__u8 fragment; // it has a fragment header
};

static __noinline int drop(struct __sk_buff *skb, __u32 reason)
{
	struct guard_counter *counter = bpf_map_lookup_elem(&guard_counters, &reason);

	if (counter) {
		counter->packets++;
		counter->bytes += skb->len;
	}
	return TC_ACT_SHOT;
}

INLINE int owns4(struct guard_port *port, __be32 address)
{
	struct guard_address key = { .pod = port->pod };

	key.address[10] = key.address[11] = 0xff;
	__builtin_memcpy(key.address + 12, &address, sizeof(address));
	return bpf_map_lookup_elem(&guard_addresses, &key) != NULL;
}

/* Whether it is one of the pod's addresses, or the link-local one that the kernel derives from its MAC. */
INLINE int owns6(struct guard_port *port, struct in6_addr *address)
{
	struct guard_address key = { .pod = port->pod };
	__u8 *a = address->s6_addr, *mac = port->mac;

	if (address->s6_addr32[0] == bpf_htonl(0xfe800000))
		return !address->s6_addr32[1] && a[8] == (mac[0] ^ 2) && a[9] == mac[1] && a[10] == mac[2] &&
		       a[11] == 0xff && a[12] == 0xfe && a[13] == mac[3] && a[14] == mac[4] && a[15] == mac[5];
	__builtin_memcpy(key.address, a, sizeof(key.address));
	return bpf_map_lookup_elem(&guard_addresses, &key) != NULL;
}

INLINE int is_nobody(struct in6_addr *address)
{
	__u32 *words = address->s6_addr32;

	return !(words[0] | words[1] | words[2] | words[3]);
}

INLINE int to_vxlan(struct __sk_buff *skb, __u32 offset, __u8 protocol)
{
	struct guard_config *config;
	__be16 ports[2] = {};
	__u32 first = 0;

	if (protocol != IPPROTO_UDP)
		return 0;
	config = bpf_map_lookup_elem(&guard_config, &first);
	if (!config || bpf_skb_load_bytes(skb, offset, ports, sizeof(ports)) < 0)
		return 0;
	return ports[1] && (ports[1] == config->tunnels[0] || ports[1] == config->tunnels[1]);
}

INLINE int guard_arp(struct __sk_buff *skb, struct guard_port *port)
{
	struct {
		__u16 align;
		struct ethhdr eth;
		struct arp arp;
		__u16 end;
	} frame = {};

	if (bpf_skb_load_bytes(skb, 0, &frame.eth, sizeof(frame.eth) + sizeof(frame.arp)) < 0)
		return drop(skb, GUARD_MALFORMED);
	if (frame.arp.hardware_length != ETH_ALEN || frame.arp.protocol_length != 4)
		return drop(skb, GUARD_MALFORMED);
	if (!same_mac(frame.arp.sender_mac, port->mac))
		return drop(skb, GUARD_SPOOFED_MAC);
	if (!frame.arp.sender && frame.arp.operation == bpf_htons(1)) // a probe (RFC 5227)
		return PASS;
	return owns4(port, frame.arp.sender) ? PASS : drop(skb, GUARD_SPOOFED_IP);
}

INLINE int guard_ipv4(struct __sk_buff *skb, struct guard_port *port, int checked)
{
	struct iphdr ip;
	__u32 offset, length;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) < 0 || ip.version != 4 || ip.ihl < 5)
		return drop(skb, GUARD_MALFORMED);
	length = bpf_ntohs(ip.tot_len);
	if (!length && skb->gso_size) // more than 64 KiB, to be split into segments
		length = skb->len - ETH_HLEN;
	if (length < ip.ihl * 4 || length > skb->len - ETH_HLEN)
		return drop(skb, GUARD_MALFORMED);
	if (checked && !owns4(port, ip.saddr))
		return drop(skb, GUARD_SPOOFED_IP);
	offset = ETH_HLEN + ip.ihl * 4;
	if (is_redirect(skb, offset, ip.protocol, ip.frag_off))
		return drop(skb, GUARD_POD_ROUTER);
	// the port of a fragment is in the first one, the protocol in each
	if (is_tunnel(ip.protocol) ||
	    (!(ip.frag_off & bpf_htons(LATER_FRAGMENT)) && to_vxlan(skb, offset, ip.protocol)))
		return drop(skb, GUARD_POD_TUNNEL);
	return hides_header(&ip) ? drop(skb, GUARD_MALFORMED) : PASS;
}

/* Check the options from `offset` to `end`: each MAC in them must be the pod's. */
INLINE int guard_options(struct __sk_buff *skb, struct guard_port *port, __u32 offset, __u32 end)
{
	struct {
		__u16 align;
		__u8 type, length; // in 8 bytes
		__u8 mac[ETH_ALEN];
	} option = {};

	for (int i = 0; i < OPTIONS; i++) {
		if (offset == end)
			return PASS;
		if (offset + 8 > end || bpf_skb_load_bytes(skb, offset, &option.type, 8) < 0 || !option.length)
			return drop(skb, GUARD_MALFORMED);
		if ((option.type == SOURCE_MAC || option.type == TARGET_MAC) && !same_mac(option.mac, port->mac))
			return drop(skb, GUARD_SPOOFED_MAC);
		offset += option.length * 8;
	}
	return offset == end ? PASS : drop(skb, GUARD_MALFORMED);
}

/* Check neighbour discovery: only about the pod's own addresses and MAC. `nobody`: from the unspecified address. */
INLINE int guard_icmp6(struct __sk_buff *skb, struct guard_port *port, struct chain *chain, __u8 type, int nobody)
{
	struct nd nd = {};

	if (chain->fragment && (type == ROUTER_SOLICITATION || type == SOLICITATION || type == ADVERTISEMENT))
		return drop(skb, GUARD_MALFORMED); // RFC 6980: the options may be in a later one
	if (type == ROUTER_SOLICITATION)
		return guard_options(skb, port, chain->offset + 8, chain->end);
	if (type != SOLICITATION && type != ADVERTISEMENT) {
		if (nobody && type != LISTENER_REPORT && type != LISTENER_DONE && type != LISTENER_REPORT2)
			return drop(skb, GUARD_SPOOFED_IP);
		return PASS;
	}
	if (chain->offset + sizeof(nd) > chain->end || bpf_skb_load_bytes(skb, chain->offset, &nd, sizeof(nd)) < 0)
		return drop(skb, GUARD_MALFORMED);
	// a solicitation without a source address is duplicate address detection (RFC 4862)
	if ((nobody || type == ADVERTISEMENT) && !owns6(port, &nd.target))
		return drop(skb, GUARD_SPOOFED_IP);
	return guard_options(skb, port, chain->offset + sizeof(nd), chain->end);
}

/* Find the header of the packet's protocol. Returns 0 if found, 1 in a fragment without it, -1 if it is missing: the
 * chain of headers must end within the packet, and within its first fragment (RFC 7112, section 5).
 */
INLINE int skip_extensions(struct __sk_buff *skb, struct chain *chain)
{
	struct {
		__u8 next, length;
		__be16 fragment;
	} header;

	for (int i = 0; i < EXTENSIONS; i++) {
		__u8 kind = chain->next;

		if (kind != HOP_BY_HOP && kind != ROUTING && kind != PIECE && kind != AUTHENTICATION &&
		    kind != DESTINATION && kind != MOBILITY)
			return chain->offset + least(kind) > chain->end ? -1 : 0;
		if (bpf_skb_load_bytes(skb, chain->offset, &header, sizeof(header)) < 0)
			return -1;
		chain->next = header.next;
		if (kind == PIECE) {
			chain->offset += 8;
			if (chain->fragment++ || chain->offset > chain->end) // RFC 8200: at most one
				return -1;
			if (header.fragment & bpf_htons(0xfff8))
				return 1;
		} else {
			chain->offset += kind == AUTHENTICATION ? (header.length + 2) * 4 : (header.length + 1) * 8;
		}
		if (chain->offset > chain->end)
			return -1;
	}
	return -1;
}

INLINE int guard_ipv6(struct __sk_buff *skb, struct guard_port *port, int checked)
{
	struct chain chain = { .offset = ETH_HLEN + sizeof(struct ipv6hdr) };
	struct ipv6hdr ip;
	int later, nobody;
	__u8 type;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) < 0 || ip.version != 6)
		return drop(skb, GUARD_MALFORMED);
	nobody = is_nobody(&ip.saddr);
	if (checked && !nobody && !owns6(port, &ip.saddr))
		return drop(skb, GUARD_SPOOFED_IP);
	chain.end = chain.offset + bpf_ntohs(ip.payload_len);
	if (!ip.payload_len && (ip.nexthdr == HOP_BY_HOP || skb->gso_size)) // more than 64 KiB (RFC 2675)
		chain.end = skb->len;
	chain.next = ip.nexthdr;
	later = chain.end > skb->len ? -1 : skip_extensions(skb, &chain);
	if (later < 0)
		return drop(skb, GUARD_MALFORMED);
	if (is_tunnel(chain.next) || (!later && to_vxlan(skb, chain.offset, chain.next)))
		return drop(skb, GUARD_POD_TUNNEL);
	if (later || chain.next != IPPROTO_ICMPV6)
		return checked && nobody ? drop(skb, GUARD_SPOOFED_IP) : PASS;
	if (bpf_skb_load_bytes(skb, chain.offset, &type, sizeof(type)) < 0)
		return drop(skb, GUARD_MALFORMED);
	if (type == ROUTER_ADVERTISEMENT || type == REDIRECT6)
		return drop(skb, GUARD_POD_ROUTER);
	return checked ? guard_icmp6(skb, port, &chain, type, nobody) : PASS;
}

SEC("tc")
int pod_guard(struct __sk_buff *skb)
{
	__u32 device = skb->ifindex;
	struct guard_port *port = bpf_map_lookup_elem(&guard_ports, &device);
	struct ethhdr eth;
	int checked;

	if (!port)
		return drop(skb, GUARD_FAILED);
	if (bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)) < 0)
		return drop(skb, GUARD_MALFORMED);
	checked = !(port->flags & UNCHECKED);
	if (checked && !same_mac(eth.h_source, port->mac))
		return drop(skb, GUARD_SPOOFED_MAC);
	// the outer tag has been removed already; the kernel would remove further ones
	if ((checked && skb->vlan_present) || eth.h_proto == bpf_htons(ETH_P_8021Q) ||
	    eth.h_proto == bpf_htons(ETH_P_8021AD))
		return drop(skb, GUARD_NOT_IP);
	if (eth.h_proto == bpf_htons(ETH_P_IP))
		return guard_ipv4(skb, port, checked);
	if (eth.h_proto == bpf_htons(ETH_P_IPV6))
		return guard_ipv6(skb, port, checked);
	if (!checked)
		return PASS;
	return eth.h_proto == bpf_htons(ETH_P_ARP) ? guard_arp(skb, port) : drop(skb, GUARD_NOT_IP);
}
