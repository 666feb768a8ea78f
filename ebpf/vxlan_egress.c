// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* At the egress of the vxlan device: packets redirected by veth_ingress, and those of the node's stack to other nodes. */
#include "common.h"
#include "flow.h"
#include "tunnel.h"

SEC("tc")
int vxlan_egress(struct __sk_buff *skb)
{
	struct config *config_ = configured();
	struct headers h = {};
	enum kind kind;
	__be32 *node;

	if (skb->mark == MARK) {
		skb->mark = 0; // else the outer packet would have it, too
		return PASS;
	}
	kind = parse(skb, &h);
	if (!config_)
		return drop(skb, &h, DROP_FAILED, 0);
	if (kind != IPV4)
		return drop(skb, &h, not_ipv4(kind), 0);
	node = node_of(h.ip.daddr);
	if (!node)
		return drop(skb, &h, DROP_UNKNOWN_NODE, 0);
	if (*node == config_->node) // a pod of ours has a route of its own
		return drop(skb, &h, DROP_NO_POD, 0);
	remember(skb, &h, config_);
	if (encapsulate(skb, config_, *node) < 0)
		return drop(skb, &h, DROP_FAILED, 0);
	count(skb, FROM_STACK);
	return PASS;
}
