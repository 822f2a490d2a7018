"""The built-in fusion methods, one file each."""

from mmm_fusion.methods.add import Add
from mmm_fusion.methods.concat import Concat
from mmm_fusion.methods.cross_attention import CrossAttention
from mmm_fusion.methods.mlp import MLP
from mmm_fusion.methods.perceiver import Perceiver
from mmm_fusion.methods.q_former import QFormer
from mmm_fusion.methods.visual_expert import VisualExpert

__all__ = [
    "MLP",
    "Add",
    "Concat",
    "CrossAttention",
    "Perceiver",
    "QFormer",
    "VisualExpert",
]
