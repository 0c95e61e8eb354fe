"""Settings: what may be written in fastmasq.toml, and how it is read."""
