"""Addresses of pods: which one a pod gets, who has which, and the blocks that they come from."""
