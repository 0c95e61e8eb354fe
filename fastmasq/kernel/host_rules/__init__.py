"""Rules for the host's own packets, which the kernel judges: the rule set translated to a table of nftables."""
