"""The command line; one file for each command, so that each imports only what it needs."""
