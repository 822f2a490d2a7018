"""`Kit`: the method under test, newly made, and inputs for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from mmm_fusion.interface import FusionMethod, FusionOutput
from mmm_fusion.testing.probes import default_dtype, fuse, noise
from mmm_fusion.testing.settings import seeded

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class Kit:
    """What the tests of the contract are made of; its attributes are those of `FusionContract`."""

    method: ClassVar[type[FusionMethod]]
    options: ClassVar[dict[str, Any]] = {}
    dim: ClassVar[int] = 24
    image_dim: ClassVar[int] = 20
    heads: ClassVar[int] = 4

    def new(self, *, image_dim: int | None = None, heads: int | None = None, dropout: float = 0.0) -> FusionMethod:
        """The method as its constructor leaves it."""
        return self.method(
            self.dim, image_dim or self.image_dim, heads=heads or self.heads, dropout=dropout, **self.options
        )

    def make(
        self, *, image_dim: int | None = None, heads: int | None = None, dropout: float = 0.0, seed: int = 0
    ) -> FusionMethod:
        """The method in float64 and evaluation, with every parameter moved by 0.1 to 0.3, up or down."""
        with torch.random.fork_rng(devices=[]), default_dtype(torch.float64):
            torch.manual_seed(seed)
            method = self.new(image_dim=image_dim, heads=heads, dropout=dropout)
            with torch.no_grad():
                for parameter in method.parameters():
                    size = 0.1 + 0.2 * torch.rand_like(parameter)
                    parameter.add_(size * torch.randn_like(parameter).sgn())
        return method.double().eval()

    def fused(self, text: Tensor, image: Tensor | None, *, training: bool = False, **given: Any) -> FusionOutput:
        """What a method made for this one call gives, all its random numbers from one seed."""
        method = self.make().train(training)
        with seeded(0):
            return fuse(method, text, image, **given)

    def inputs(
        self, *, l: int = 5, p: int = 7, image_dim: int | None = None, seed: int = 0
    ) -> tuple[Float[Tensor, "b l dim"], Float[Tensor, "b p image_dim"]]:
        """Text and image of three rows, in float64."""
        return noise((3, l, self.dim), seed), noise((3, p, image_dim or self.image_dim), seed + 1000)
