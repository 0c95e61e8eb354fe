"""The exceptions a user can meet, each with the exit status it ends in."""


class FastmasqError(Exception):
    """Something failed; `str(error)` is the one line shown to the user: what, where, what to do."""

    exit_status = 1


class ConfigurationError(FastmasqError):
    """The configuration or the command line is wrong; nothing was changed."""

    exit_status = 2


class KernelError(FastmasqError):
    """The kernel, or the host around us, refused something we cannot do without."""


class CapacityError(FastmasqError):
    """A size chosen at start cannot be had."""
