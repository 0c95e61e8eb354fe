"""Layer 5, what a running forwarder tells about itself."""
