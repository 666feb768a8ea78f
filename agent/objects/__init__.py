"""The node objects, one module each: desired values, and how to program the kernel accordingly."""
