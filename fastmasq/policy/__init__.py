"""Layer 4, decisions in plain Python, compiled to the arrays that the path tests."""
