"""Layer 6, the only place where everything meets: parts built from settings, and their life."""
