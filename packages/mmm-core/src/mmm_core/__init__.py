"""Selective-scan kernels and the Mamba layer on them."""

from mmm_core.backends import explain
from mmm_core.conv import causal_conv1d, causal_conv1d_update
from mmm_core.errors import BackendUnavailable, ShapeError
from mmm_core.layers import BiMamba, Mamba, MambaState, init_ssm
from mmm_core.scan import selective_scan, selective_state_update

__all__ = [
    "BackendUnavailable",
    "BiMamba",
    "Mamba",
    "MambaState",
    "ShapeError",
    "causal_conv1d",
    "causal_conv1d_update",
    "explain",
    "init_ssm",
    "selective_scan",
    "selective_state_update",
]
