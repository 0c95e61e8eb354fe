"""The benchmarks: fastmasq beside kernel masquerade on the lab, and micro-benchmarks of the path."""
