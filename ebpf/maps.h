// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The maps of all programs, pinned in one folder; agent/modes/vxlan/maps.py writes and reads them.
 *
 * A change of any layout here is a new LAYOUT in agent/kernel/bpf/loader.py: old programs keep the old maps until they
 * are replaced. Addresses and ports are in network byte order, all else in the host's.
 */
#ifndef TESTCNI_MAPS_H
#define TESTCNI_MAPS_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

enum reason { // names in agent/modes/vxlan/maps.py, in this order
	FORWARDED_LOCAL,     // straight into a pod of this node
	FORWARDED_REMOTE,    // from a pod straight into the tunnel
	TO_STACK,            // handed to the node's stack
	FROM_STACK,          // from the node's stack into the tunnel
	ANSWERED_ARP,        // a pod asked for its gateway
	DROP_MALFORMED,      // a wrong length or IPv4 header
	DROP_NOT_IP,         // neither IPv4 nor ARP, or tagged
	DROP_SPOOFED_IP,     // from a pod, with an address that is not its own
	DROP_SPOOFED_MAC,    // from a pod, with a MAC that is not its own
	DROP_POD_TUNNEL,     // from a pod, to the tunnel's port of an address that is no pod's
	DROP_UNKNOWN_NODE,   // out of the tunnel from an unknown node, or into it to one
	DROP_WRONG_VNI,      // out of the tunnel with another VNI
	DROP_NO_POD,         // to an address of this node's blocks that no pod has
	DROP_FAILED,         // the kernel refused a step, or the maps are not filled
	DROP_SPOOFED_NODE,   // out of the tunnel from a node, with an address of another node's pods
	REASONS,
};

#define ROOM 32 // the most reasons, before the map of counters needs another name

#define UNKNOWN 1 // a value in the map `nodes`: the node may send from any block, as in versions without the check

struct config {
	__be32 node;    // this node's address in outer headers
	__be32 gateway; // the gateway of pods
	__u32 vni;      // of every packet, 24 bits
	__u32 device;   // index of the vxlan device
	__be16 port;    // UDP port of the tunnel
	__u16 spare;
	__u32 sample;   // an event for each drop whose number & sample is 0: a power of two, less 1
};

struct block {
	__u32 length; // of the prefix, in bits
	__be32 address;
};

struct pod {
	__u32 device; // index of the host end
	__u8 mac[6];
	__u8 host_mac[6]; // right after mac: both are stored at once
};

/* A flow is the same both ways: `low` is the lower of the two addresses as numbers. */
struct flow {
	__be32 low, high;
	__be16 low_port, high_port; // ICMP: its identifier, twice; 0 without ports
	__u8 protocol;
	__u8 spare[3];
};

struct counter {
	__u64 packets, bytes;
};

struct event { // a sampled drop
	__u64 time; // nanoseconds of CLOCK_MONOTONIC
	__u32 reason;
	__u32 device;
	__be32 source, destination, remote; // remote: outer source of a packet out of the tunnel
	__be16 source_port, destination_port;
	__be16 ethertype;
	__u8 protocol;
	__u8 source_mac[6];
	__u8 spare[3];
};

struct { // one entry
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct config);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} config SEC(".maps");

struct { // block of pods -> address of its node, this node's own blocks included
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 100000);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct block);
	__type(value, __be32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} blocks SEC(".maps");

struct { // an address that a node may send tunnel packets from -> the address of this node in `blocks`, or UNKNOWN
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 100000);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __be32);
	__type(value, __be32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} nodes SEC(".maps");

struct { // pods of this node
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __be32);
	__type(value, struct pod);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} pods SEC(".maps");

struct { // flows between pods that the node's stack carried -> source of the direction that it carried
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow);
	__type(value, __be32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flows SEC(".maps");

struct { // by reason; more entries than reasons, as those of another size can't take over a pinned map
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, ROOM);
	__type(key, __u32);
	__type(value, struct counter);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} reason_counters SEC(".maps");

struct { // bytes; a power of two and whole pages, of 64 KiB too
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} events SEC(".maps");

#endif
