"""Micro-benchmarks of the packet path's parts, for pytest-benchmark: nanoseconds per packet, no kernel involved."""
