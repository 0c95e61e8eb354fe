"""How well inbound SPIs find their hosts, and how long starts wait: the ESP trackers under simulated traffic."""
