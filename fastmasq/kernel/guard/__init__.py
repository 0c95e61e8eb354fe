"""The ingress guard, which keeps from the host what is ours; by tc, nftables or iptables, whichever works here."""
