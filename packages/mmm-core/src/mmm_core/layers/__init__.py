"""The `nn.Module`s on the operations."""

from mmm_core.layers.bimamba import BiMamba
from mmm_core.layers.mamba import Mamba, MambaState, init_ssm

__all__ = ["BiMamba", "Mamba", "MambaState", "init_ssm"]
