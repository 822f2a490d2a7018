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
from mmm_fusion.image_first import ImageFirst
from mmm_fusion.inputs import check_arguments, check_counts, check_image, check_inputs, check_text, prepend
from mmm_fusion.interface import CONTRACT, FusionMethod, FusionOutput, ImageMemory
from mmm_fusion.loading import Failure
from mmm_fusion.local import load_file, register
from mmm_fusion.masks import joint_mask
from mmm_fusion.plugins import available, create, failures

__all__ = [
    "CONTRACT",
    "ArgumentError",
    "DuplicateMethodError",
    "Failure",
    "FusionError",
    "FusionMethod",
    "FusionOutput",
    "ImageFirst",
    "ImageMemory",
    "InputError",
    "PluginError",
    "Source",
    "UnknownMethodError",
    "available",
    "check_arguments",
    "check_counts",
    "check_image",
    "check_inputs",
    "check_text",
    "create",
    "failures",
    "hookimpl",
    "joint_mask",
    "load_file",
    "prepend",
    "register",
]
