"""The functions of mamba_ssm and causal_conv1d, channel-first, on our kernels: on any device, in any floating dtype.

Signatures, layouts and results are theirs; each docstring says what differs.
"""

from mmm_core.compat.mamba_ssm.conv import causal_conv1d_fn, causal_conv1d_update
from mmm_core.compat.mamba_ssm.inner import mamba_inner_fn
from mmm_core.compat.mamba_ssm.scan import selective_scan_fn
from mmm_core.compat.mamba_ssm.update import selective_state_update

__all__ = [
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "mamba_inner_fn",
    "selective_scan_fn",
    "selective_state_update",
]
