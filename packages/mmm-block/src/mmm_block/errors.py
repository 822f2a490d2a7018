"""The errors of this package. Each text says where, what was expected, what came, and the next step."""

from __future__ import annotations


class ConfigError(ValueError):
    """A value of a config is out of its range, or a key is unknown."""


class InputError(ValueError):
    """What was given to a model does not fit it, or does not fit together."""


class CheckpointError(ValueError):
    """A checkpoint is damaged, is none, or is another model's."""
