// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* At the egress of the host end of a pod's veth pair: packets that the node's stack sends to the pod. */
#include "common.h"
#include "flow.h"

SEC("tc")
int veth_egress(struct __sk_buff *skb)
{
	struct config *config_ = configured();
	struct headers h = {};

	if (config_ && parse(skb, &h) == IPV4)
		remember(skb, &h, config_);
	return PASS;
}
