"""What the node path programs on a node, one module each: desired values, and how to make the kernel match."""
