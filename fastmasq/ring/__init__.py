"""Layer 2, memory shared with the kernel: AF_PACKET rings seen as numpy arrays."""
