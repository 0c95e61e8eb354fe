"""What every test can use: the lab's fixtures; and what holds for all of them: no example has to be quick."""

import contextlib
import signal

import hypothesis
import pytest

from fastmasq.kernel import key

pytest_plugins = ["tests.support.lab_fixtures", "tests.support.alone"]

hypothesis.settings.register_profile("fastmasq", deadline=None)  # a busy machine is no mistake of ours
hypothesis.settings.load_profile("fastmasq")

# Each ends the run in order, so that fixtures are undone. Under nohup, and in the background of a script, some are
# ignored, and what tests start would inherit that.
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.default_int_handler)

had_key = (key.FOLDER / key.NAME).exists()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Take away the key that the first fastmasq in a lab has made, at the end of the run that found none."""
    if had_key or hasattr(config, "workerinput"):
        return
    (key.FOLDER / key.NAME).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it is not there, or not ours alone
        key.FOLDER.rmdir()
