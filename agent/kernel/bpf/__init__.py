"""eBPF by bpf(2) and libbpf: load programs, read and write maps."""
