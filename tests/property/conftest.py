"""How much random traffic the property tests try: a moderate amount, or what `HYPOTHESIS_PROFILE` says.

`long` tries a lot; `unshrunk` shows a failure as it was found, at once, instead of looking for a shorter one.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

CALM = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]

settings.register_profile("usual", max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=CALM)
settings.register_profile("long", settings.get_profile("usual"), max_examples=2000)
settings.register_profile("unshrunk", settings.get_profile("usual"), phases=[Phase.reuse, Phase.generate])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "usual"))
