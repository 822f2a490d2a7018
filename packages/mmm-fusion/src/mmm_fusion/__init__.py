"""Fusion methods for text and images, and the registry that lets anyone publish one."""

from mmm_fusion.discovery import Source
from mmm_fusion.errors import (
    ArgumentError,
    DuplicateMethodError,
    FusionError,
    InputError,
    PluginError,
    UnknownMethodError,
)
from mmm_fusion.hookspecs import hookimpl
from mmm_fusion.inputs import check_arguments, check_inputs, prepend
from mmm_fusion.interface import CONTRACT, FusionMethod, FusionOutput
from mmm_fusion.plugins import Failure, available, create, failures

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
