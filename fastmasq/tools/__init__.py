"""Programs that look at a network from outside: each with its sockets, its decoding and its verdict."""
