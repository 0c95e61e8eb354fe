"""A test network made of network namespaces, for tests and for people."""
