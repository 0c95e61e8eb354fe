"""What `fastmasq sniff` does: listen on links, decode what may be part of a VPN, say what is missing."""
