// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Shared by all programs that see packets of pods; it uses no map.
 *
 * Helpers used are those of Linux 5.15; nothing depends on the layout of kernel structures (no CO-RE).
 * Packets are read and written by helpers, not by pointers: a packet may be in several buffers, and each access is checked.
 */
#ifndef TESTCNI_PACKET_H
#define TESTCNI_PACKET_H

#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define INLINE static __always_inline
#define PASS TC_ACT_UNSPEC   // go on to other programs at this hook, and then to the stack
#define FRAGMENT 0x3fff      // more fragments, or an offset
#define MORE_FRAGMENTS 0x2000
#define LATER_FRAGMENT 0x1fff // an offset: without the header of the next protocol

char LICENSE[] SEC("license") = "Dual BSD/GPL"; // the tunnel key helpers need a licence compatible with the GPL

enum { ECHO_REPLY = 0, UNREACHABLE = 3, QUENCH = 4, REDIRECT = 5, EXCEEDED = 11, PARAMETER = 12 }; // RFC 792

struct arp { // RFC 826, for IPv4 on Ethernet
	__be16 hardware, protocol;
	__u8 hardware_length, protocol_length;
	__be16 operation;
	__u8 sender_mac[ETH_ALEN];
	__be32 sender;
	__u8 target_mac[ETH_ALEN];
	__be32 target;
} __attribute__((packed));

INLINE int same_mac(const __u8 *one, const __u8 *other)
{
	const __u16 *a = (const __u16 *)one, *b = (const __u16 *)other;

	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2];
}

/* ipip and 6in4. After masquerade, the outer header of such a packet of a pod would have the node's address, and the
 * receiving node would accept any inner source address.
 */
INLINE int is_tunnel(__u8 protocol)
{
	return protocol == IPPROTO_IPIP || protocol == IPPROTO_IPV6;
}

/* Bytes of a protocol's header without which ports and types cannot be judged. */
INLINE __u32 least(__u8 protocol)
{
	switch (protocol) {
	case IPPROTO_TCP: return 20;
	case IPPROTO_UDP: case IPPROTO_ICMP: return 8;
	case IPPROTO_ICMPV6: return 4;
	default: return 0;
	}
}

/* Whether a first fragment ends before its protocol's header does, or a later one may change it (RFC 1858, RFC 3128).
 * Padding behind a packet is no part of it, and no sender makes fragments as small as a header.
 */
INLINE int hides_header(struct iphdr *ip)
{
	__u32 offset = bpf_ntohs(ip->frag_off) & LATER_FRAGMENT, wanted = least(ip->protocol);

	if (offset)
		return offset * 8 <= wanted;
	return ip->frag_off & bpf_htons(MORE_FRAGMENTS) && bpf_ntohs(ip->tot_len) < ip->ihl * 4 + wanted;
}

/* Whether this is an ICMP redirect: only routers send them, and a pod is no router. */
INLINE int is_redirect(struct __sk_buff *skb, __u32 offset, __u8 protocol, __be16 fragment)
{
	__u8 type = ECHO_REPLY;

	if (protocol != IPPROTO_ICMP || fragment & bpf_htons(LATER_FRAGMENT))
		return 0;
	return bpf_skb_load_bytes(skb, offset, &type, sizeof(type)) == 0 && type == REDIRECT;
}

#endif
