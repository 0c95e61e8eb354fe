"""What every test can use: the lab's fixtures; and what holds for all of them: no example has to be quick."""

import signal

import hypothesis

pytest_plugins = ["tests.support.lab_fixtures"]

hypothesis.settings.register_profile("fastmasq", deadline=None)  # a busy machine is no mistake of ours
hypothesis.settings.load_profile("fastmasq")

# Under nohup and in the background of a script these are ignored, and what tests start would inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
