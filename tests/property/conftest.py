"""How much random traffic the property tests try: a moderate amount, or a lot with `HYPOTHESIS_PROFILE=long`."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

CALM = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]

settings.register_profile("usual", max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=CALM)
settings.register_profile("long", max_examples=3000, stateful_step_count=80, deadline=None, suppress_health_check=CALM)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "usual"))
