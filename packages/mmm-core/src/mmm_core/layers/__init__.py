"""The `nn.Module`s on the operations."""

from mmm_core.layers.mamba import Mamba, MambaState

__all__ = ["Mamba", "MambaState"]
