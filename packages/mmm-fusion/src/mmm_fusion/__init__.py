"""Fusion methods for text and images, and the registry that lets anyone publish one."""

from .discovery import Source
from .errors import (
    ArgumentError,
    DuplicateMethodError,
    FusionError,
    InputError,
    PluginError,
    UnknownMethodError,
)
from .hookspecs import hookimpl
from .inputs import check_arguments, check_inputs, prepend
from .interface import CONTRACT, FusionMethod, FusionOutput
from .plugins import Failure, available, create, failures

__all__ = [
    "CONTRACT",
    "ArgumentError",
    "DuplicateMethodError",
    "Failure",
    "FusionError",
    "FusionMethod",
    "FusionOutput",
    "InputError",
    "PluginError",
    "Source",
    "UnknownMethodError",
    "available",
    "check_arguments",
    "check_inputs",
    "create",
    "failures",
    "hookimpl",
    "prepend",
]
