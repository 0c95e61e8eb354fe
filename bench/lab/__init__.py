"""Measurements on the lab's direct network: one forwarder at a time between a packet source and a sink."""
