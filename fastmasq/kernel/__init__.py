"""Layer 5, the kernel around us: links, routes and neighbours followed, forwarding taken over and given back."""
