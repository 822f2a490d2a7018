"""The built-in fusion methods, one file each."""

from mmm_fusion.methods.add import Add
from mmm_fusion.methods.concat import Concat
from mmm_fusion.methods.cross_attention import CrossAttention
from mmm_fusion.methods.gated import Gated
from mmm_fusion.methods.ldp_v2 import LDPv2
from mmm_fusion.methods.low_rank import LowRank
from mmm_fusion.methods.matmul import Matmul
from mmm_fusion.methods.mlp import MLP
from mmm_fusion.methods.mobilevlm import MobileVLM
from mmm_fusion.methods.perceiver import Perceiver
from mmm_fusion.methods.q_former import QFormer
from mmm_fusion.methods.visual_expert import VisualExpert

__all__ = [
    "MLP",
    "Add",
    "Concat",
    "CrossAttention",
    "Gated",
    "LDPv2",
    "LowRank",
    "Matmul",
    "MobileVLM",
    "Perceiver",
    "QFormer",
    "VisualExpert",
]
