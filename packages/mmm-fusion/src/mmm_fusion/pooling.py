"""How many image tokens are real, and their mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


def count_real(image: Float[Tensor, "b p d"], image_mask: Bool[Tensor, "b p"] | None) -> Int[Tensor, "b 1"]:
    """The number of real image tokens of each row."""
    real = torch.ones_like(image[..., 0], dtype=torch.bool) if image_mask is None else image_mask
    return real.sum(dim=1, keepdim=True)


def mean_token(image: Float[Tensor, "b p d"], image_mask: Bool[Tensor, "b p"] | None) -> Float[Tensor, "b d"]:
    """The mean of the real image tokens of each row.

    Args:
        image: Image tokens, zero at padding, as `check_image` returns them.
        image_mask: `(b, p)`, or None where all are real.
    Returns:
        `(b, d)`; zeros in a row without real image tokens.
    """
    dtype = torch.promote_types(image.dtype, torch.float32)  # the sum may be too large for float16, the mean is not
    mean = image.sum(dim=1, dtype=dtype) / count_real(image, image_mask).clamp(min=1)
    return mean.to(image.dtype)
