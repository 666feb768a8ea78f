"""The mode vxlan: an overlay by eBPF programs, or by the kernel."""
