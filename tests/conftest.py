"""What every test can use: the lab's fixtures; and what holds for all of them: no example has to be quick."""

import signal

import hypothesis

pytest_plugins = ["tests.support.lab_fixtures", "tests.support.alone"]

hypothesis.settings.register_profile("fastmasq", deadline=None)  # a busy machine is no mistake of ours
hypothesis.settings.load_profile("fastmasq")

# Each ends the run in order, so that fixtures are undone. Under nohup, and in the background of a script, some are
# ignored, and what tests start would inherit that.
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.default_int_handler)
