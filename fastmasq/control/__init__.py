"""The local socket through which the other commands talk to the running forwarder."""
