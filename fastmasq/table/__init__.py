"""Layer 2, translation state of a size chosen at start: sessions, mappings, ports and timers."""
