// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Send into the tunnel: the only place that sets addresses of the outer packet. */
#ifndef TESTCNI_TUNNEL_H
#define TESTCNI_TUNNEL_H

#include "common.h"

/* The MAC of our vxlan device is computed from the node's address, so none must be learned. All packets have a source
 * MAC that no device has, because the kernel drops a packet with the device's own MAC as an echo (vxlan_set_mac).
 */
struct tunnel_macs {
	__u16 align;
	__u8 prefix[2]; // TUNNEL_MAC_PREFIX in agent/modes/vxlan/maps.py
	__be32 node;
	__u8 source[ETH_ALEN];
	__u16 end;
};

INLINE int encapsulate(struct __sk_buff *skb, struct config *config_, __be32 node)
{
	struct bpf_tunnel_key key = {
		.tunnel_id = config_->vni,
		.remote_ipv4 = bpf_ntohl(node),
		.local_ipv4 = bpf_ntohl(config_->node), // peers know no other address of ours
		.tunnel_ttl = 64,
	};
	struct tunnel_macs macs = {
		.prefix = { 0x0e, 0x76 },
		.node = node,
		.source = { 0x0a, 0x76, 0x78, 0x6c, 0x61, 0x6e },
	};

	if (bpf_skb_store_bytes(skb, 0, macs.prefix, 2 * ETH_ALEN, 0) < 0)
		return -1;
	if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), BPF_F_ZERO_CSUM_TX) == 0)
		return 0;
	// before 6.0 a key has no source: the routes choose it
	return bpf_skb_set_tunnel_key(skb, &key, offsetof(struct bpf_tunnel_key, local_ipv4), BPF_F_ZERO_CSUM_TX);
}

#endif
