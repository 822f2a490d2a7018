"""The errors that a user can mend; the command line shows each as one line and ends with status 2."""

from __future__ import annotations


class TrainError(Exception):
    """Base of this package's errors."""


class ConfigError(TrainError, ValueError):
    """A setting is unknown, missing or out of its range."""


class DataError(TrainError, ValueError):
    """A data set, its metadata or a picture cannot be used."""


class RunError(TrainError, RuntimeError):
    """A run folder is not what the command needs."""


class LossError(TrainError, ArithmeticError):
    """The loss or its gradient is no longer a number."""


class Interrupted(TrainError):
    """Training was asked to stop, and has saved where it stands."""
