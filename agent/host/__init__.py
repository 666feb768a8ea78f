"""Files and folders of the host: conflist and plugin, the run-dir, and whether they are still the host's.

It programs nothing in the kernel, and writes no object of the cluster.
"""
