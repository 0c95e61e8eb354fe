"""Layer 4, application gateways: protocols that say addresses and ports in a TCP connection; sans I/O, sans clock."""
