"""Claim blocks for this node, and give them back. Only the node path does that."""
