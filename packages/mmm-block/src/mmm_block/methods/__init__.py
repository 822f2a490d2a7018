"""The fusion methods that need a scan. One file each."""

from mmm_block.methods.cross_mamba import CrossMamba
from mmm_block.methods.state import State

__all__ = ["CrossMamba", "State"]
