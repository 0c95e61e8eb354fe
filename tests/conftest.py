"""What every test can use: the lab's fixtures."""

pytest_plugins = ["tests.support.lab_fixtures"]
