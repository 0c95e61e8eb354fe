"""Layer 3, the packet path: parse, look up, rewrite, send; without Python object, allocation, exception or log line."""
