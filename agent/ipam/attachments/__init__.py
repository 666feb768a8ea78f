"""The interfaces of pods on this node: one file each, and the addresses that they use.

Nothing here chooses an address, or asks the cluster.
"""
