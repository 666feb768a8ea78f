"""Addresses of pods: which one a pod gets, who has which, and the blocks that they come from.

It makes no link and no route: that is done by modes for pods, and by objects for the node.
"""
