"""The interfaces of pods on this node: one file each, and the addresses that they use."""
