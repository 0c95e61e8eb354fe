"""Layer 1, bytes: what a header is and how a checksum moves when a field moves; no sockets, no clock, no tables."""
