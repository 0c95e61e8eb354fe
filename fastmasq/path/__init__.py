"""Layer 3, the packet path: parse, look up, rewrite, send; no Python object, allocation, exception or log line per packet."""
