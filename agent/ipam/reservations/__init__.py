"""Addresses that stay with their owner: rules, claims, and the controller of this node."""
