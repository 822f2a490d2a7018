"""The rules on how tensors lie in memory, and where."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mmm_fusion.testing.kit import Kit
from mmm_fusion.testing.parts import extend, read
from mmm_fusion.testing.probes import compare, fuse, kinds_of_image, masks, real, same, where
from mmm_fusion.testing.rule import require, rule


class LayoutRules(Kit):
    """A test for each rule on memory."""

    @rule(
        "inputs may have any strides: slices, transposed and expanded tensors.",
        "use reshape, flatten and unflatten in place of view.",
    )
    def test_strides(self) -> None:
        """The same numbers, laid out in several ways, give the same."""
        method = self.make()
        text, image = (x[:1].expand_as(x) for x in self.inputs(p=12))
        text_mask, image_mask = (mask[1:2].expand_as(mask) for mask in masks(text, image))
        plain = (text.contiguous(), image.contiguous(), text_mask.contiguous(), image_mask.contiguous())
        for layout, tensors in layouts(text, image, text_mask, image_mask):
            for grid in (None, (3, 4)):
                a, b = (
                    fuse(method, text, image, text_mask=text_mask, image_mask=image_mask, image_grid=grid)
                    for text, image, text_mask, image_mask in (tensors, plain)
                )
                for x, y in zip(real(a), real(b), strict=True):
                    require(same(x, y), f"{layout} inputs give another output: {compare(x, y)}.")
                a, b = (fuse(method, text, image, image_grid=grid) for text, image, _, _ in (tensors, plain))
                require(
                    same(a.tokens, b.tokens), f"{layout} inputs give another output: {compare(a.tokens, b.tokens)}."
                )

    @rule(
        "everything runs where the weights and the inputs are.",
        "make tensors with device=text.device, or with text.new_zeros and the like; let no Python number depend on the "
        "values of a tensor.",
    )
    def test_device(self) -> None:
        """On torch's device `meta`, which computes nothing, and stands for any that is not the CPU."""
        method = self.make().to("meta")
        text, image = self.inputs(p=12)
        text_mask = masks(text, image)[0].to("meta")
        text = text.to("meta")
        for kind, (picture, given) in kinds_of_image(image).items():
            given = {name: value.to("meta") if isinstance(value, Tensor) else value for name, value in given.items()}
            picture = None if picture is None else picture.to("meta")
            for training in (False, True):
                output = fuse(method.train(training), text, picture, text_mask=text_mask, **given)
                for name, tensor in (("tokens", output.tokens), ("mask", output.mask)):
                    here = tensor is None or tensor.device == text.device
                    require(here, f"{name} are not where the text is{where(kind, training)}.")
                if picture is not None:
                    memory = read(method, picture, **given)
                    for _ in range(2):
                        tokens, memory = extend(method, text, memory, text_mask)
                        seen = f"tokens are not where the text is, by extend{where(kind, training)}."
                        require(tokens.device == text.device, seen)


def layouts(*tensors: Tensor) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    """The same tensors, the rows of each alike, laid out in memory in several ways."""
    yield "expanded", tensors
    yield "sliced", tuple(torch.cat([x[:, :1], x], dim=1)[:, 1:] for x in tensors)
    yield "transposed", tuple(x.transpose(0, 1).contiguous().transpose(0, 1) for x in tensors)
