"""Rule sets of today's kernels, read from iptables-save and nft, and carried over to fastmasq's policy."""
