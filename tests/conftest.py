"""What every test can use: the lab's fixtures; and what holds for all of them: no example has to be quick."""

import hypothesis

pytest_plugins = ["tests.support.lab_fixtures"]

hypothesis.settings.register_profile("fastmasq", deadline=None)  # a busy machine is no mistake of ours
hypothesis.settings.load_profile("fastmasq")
