"""What `fastmasq traceroute` does: probes of GRE, ESP and UDP hop by hop, and what their ways mean."""
