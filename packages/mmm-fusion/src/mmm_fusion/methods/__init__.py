"""The built-in fusion methods, one file each."""

from mmm_fusion.methods.add import Add
from mmm_fusion.methods.concat import Concat
from mmm_fusion.methods.mlp import MLP
from mmm_fusion.methods.visual_expert import VisualExpert

__all__ = ["MLP", "Add", "Concat", "VisualExpert"]
