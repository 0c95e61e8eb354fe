"""What is unwise about a policy, and what to write instead: lint, advice and templates."""
