"""What `fastmasq test pptp` does: a PPTP client's first steps with a server, and what each shows."""
