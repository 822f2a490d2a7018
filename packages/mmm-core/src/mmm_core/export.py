"""Programs that go without mmm-core: its operators written in torch's own.

`torch.export` keeps each operation as one operator of this package, which runs on its kernels wherever the package is
installed. Elsewhere the program wants the operators below taken apart. `torch.onnx.export(..., dynamo=True)` does so by
itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mmm_core.conv.decomposition import decomposition as _causal_conv1d
from mmm_core.scan.decomposition import decomposition as _selective_scan

if TYPE_CHECKING:
    from collections.abc import Callable


def decompositions() -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    """The operators of this package in those of torch, for `torch.export.ExportedProgram.run_decompositions`.

    What comes out computes the same for every batch and length, differentiates, and needs no mmm-core to run. It is
    slower: the scan is a loop over the positions.

    Returns:
        A function for each operator.
    """
    return {
        torch.ops.mmm_core.selective_scan.default: _selective_scan,
        torch.ops.mmm_core.causal_conv1d.default: _causal_conv1d,
    }
