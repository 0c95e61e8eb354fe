"""Small eBPF programs of our own: assembled, loaded and attached by bpf(2), without a compiler or a library."""
