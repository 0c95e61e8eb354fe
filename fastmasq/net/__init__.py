"""What the kernel around us knows and does: links, routes and neighbours followed, forwarding taken over and given back."""
