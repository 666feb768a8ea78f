// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The maps of pod_guard, pinned beside those of the other programs; agent/objects/pod_guard.py writes and reads them.
 *
 * Addresses and ports are in network byte order, all else in the host's. IPv4 addresses are in the form ::ffff:a.b.c.d.
 */
#ifndef TESTCNI_GUARD_H
#define TESTCNI_GUARD_H

#include "packet.h"

enum guard_reason { // names in agent/objects/pod_guard.py, in this order
	GUARD_MALFORMED,    // a wrong length, or too many headers
	GUARD_NOT_IP,       // neither IP nor ARP, or tagged
	GUARD_SPOOFED_IP,   // from an address, or about one, that is not the pod's
	GUARD_SPOOFED_MAC,  // from a MAC, or about one, that is not the pod's
	GUARD_POD_TUNNEL,   // ipip or 6in4, or to the port of a vxlan tunnel
	GUARD_POD_ROUTER,   // a router advertisement or a redirect
	GUARD_FAILED,       // the maps are not filled
	GUARD_REASONS,
};

enum { UNCHECKED = 1 }; // flag of a port: "spoofCheck": false

struct guard_config {
	__be16 tunnels[2]; // UDP ports of vxlan tunnels, the node's own and others'; 0: none
};

struct guard_port {
	__u64 pod; // all interfaces of a pod have the same
	__u8 mac[ETH_ALEN];
	__u16 flags;
};

struct guard_address { // an address of a pod, allowed on each of its interfaces: its routes choose one
	__u64 pod;
	__u8 address[16];
};

struct guard_counter {
	__u64 packets, bytes;
};

struct { // one entry
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct guard_config);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} guard_config SEC(".maps");

struct { // index of the host end -> its pod
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct guard_port);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} guard_ports SEC(".maps");

struct { // the value has no meaning
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct guard_address);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} guard_addresses SEC(".maps");

struct { // by reason
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, GUARD_REASONS);
	__type(key, __u32);
	__type(value, struct guard_counter);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} guard_counters SEC(".maps");

#endif
