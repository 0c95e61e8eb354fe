"""Established flows carried in the kernel's own path, where it can: the program, and the arrays that it shares."""
