"""The ingress guard, which keeps from the host what is ours; by tc or by nftables, whichever works here."""
