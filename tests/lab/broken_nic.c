// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* At the egress of a node's eth0, what comes of a NIC that corrupts the checksums of datagrams in the tunnel: the
 * receiver drops those whose checksum was left to it, which are known by a checksum that covers the pseudo header only.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define INNER (ETH_HLEN + sizeof(struct iphdr) + sizeof(struct udphdr) + 8 + ETH_HLEN)

SEC("tc")
int broken_nic(struct __sk_buff *skb)
{
	struct udphdr outer, udp;
	struct iphdr ip;
	__u32 sum;

	if (bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(ip), &outer, sizeof(outer)) < 0 ||
	    outer.dest != bpf_htons(8472) || bpf_skb_load_bytes(skb, INNER, &ip, sizeof(ip)) < 0 ||
	    ip.protocol != IPPROTO_UDP || bpf_skb_load_bytes(skb, INNER + sizeof(ip), &udp, sizeof(udp)) < 0)
		return TC_ACT_OK;
	sum = (ip.saddr & 0xffff) + (ip.saddr >> 16) + (ip.daddr & 0xffff) + (ip.daddr >> 16);
	sum += bpf_htons(IPPROTO_UDP) + udp.len;
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return udp.check == sum ? TC_ACT_SHOT : TC_ACT_OK;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
