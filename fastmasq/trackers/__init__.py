"""Layer 4, what follows protocols: bytes and time in, decisions out; sans I/O, sans clock."""
