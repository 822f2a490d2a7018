"""How fast is the encoder beside transformers' ViT with the same weights, and what of the machine does each use?

The model is ViT-S/16 (12 blocks of width 384, 6 heads), on 8 images of 224 x 224, in inference mode. transformers runs
its default attention, `sdpa`, and its `eager` one. In float32, outputs must agree; in bfloat16, ours must be as close
to float32's as theirs are. The dtypes:

- float32, bfloat16: weights and images in it.
- autocast: weights and images in float32, run under `torch.autocast` to bfloat16.

A share is that of the rate of a large product, 2048 x 2048 x 2048, in the same dtype and the same run, that the model's
own products would need for its time. It may exceed 1: the rate is that of `torch.matmul`, whose library in float32 may
not be the fastest here.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from timing import measure, print_at_least, print_figure, print_timings, ratio, setting
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTConfig, ViTModel
from transformers.utils import logging

from mmm_core.testing import rms_error_ratio
from mmm_vit import VisionTransformer, config_from_transformers, from_transformers

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

SIZES = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
IMAGES, SIDE, LARGE = 8, 224, 2048
ROUNDS = 15
TOLERANCE = 1e-5  # of two libraries in float32
CLOSER = 1.2  # our error in bfloat16, at most, as a multiple of theirs
LIMITS = {"float32": 1.15, "bfloat16": 1.5}


@torch.inference_mode()
def main() -> None:
    logging.set_verbosity_error()
    torch.manual_seed(0)
    theirs = {name: transformers_model(name) for name in ("sdpa", "eager")}
    theirs["eager"].load_state_dict(theirs["sdpa"].state_dict())
    ours = encoder(theirs["sdpa"])
    images = torch.randn(IMAGES, 3, SIDE, SIDE)
    exact = patches(theirs["eager"], images)
    flops = count(theirs["eager"], images)
    print(f"ViT-S/16, {IMAGES} images, {flops / 1e9:.0f} GFLOP in products ({setting()})")
    time_all("float32", ours, theirs, images, exact, flops)
    time_all("autocast", ours, theirs, images, exact, flops)
    for model in (ours, *theirs.values()):
        model.bfloat16()
    time_all("bfloat16", ours, theirs, images.bfloat16(), exact, flops)


def transformers_model(attention: str) -> ViTModel:
    config = ViTConfig(**SIZES, image_size=SIDE, patch_size=16, attn_implementation=attention)
    return ViTModel(config, add_pooling_layer=False).eval()


def encoder(model: ViTModel) -> VisionTransformer:
    """Ours with the weights of `model`."""
    config = config_from_transformers(model.config.to_dict())
    vit = VisionTransformer(config).eval()
    vit.load_state_dict(from_transformers(model.state_dict(), config))
    return vit


def patches(model: nn.Module, images: Tensor) -> Tensor:
    """The tokens of the patches after the final norm."""
    return model(images) if isinstance(model, VisionTransformer) else model(images).last_hidden_state[:, 1:]


def count(model: ViTModel, images: Tensor) -> int:
    """The floating-point operations of the model's products."""
    with FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops()


def time_all(
    name: str, ours: VisionTransformer, theirs: dict[str, ViTModel], images: Tensor, exact: Tensor, flops: int
) -> None:
    models = {"ours": ours} | {f"transformers, {kind}": model for kind, model in theirs.items()}
    mixed = name == "autocast"

    def context() -> AbstractContextManager[object]:
        return torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext()

    def runner(model: nn.Module) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with context():
                return patches(model, images)

        return run

    runs = {label: runner(model) for label, model in models.items()}
    check(name, {label: rms_error_ratio(run(), exact) for label, run in runs.items()})
    large = torch.randn(2, LARGE, LARGE, dtype=torch.bfloat16 if mixed else images.dtype)
    times = measure(runs | {"product": lambda: large[0] @ large[1]}, ROUNDS)
    print_timings(name, times)
    rate = 2 * LARGE**3 / times["product"].median
    for label in runs:
        print_figure(f"{label}: share of the product's rate", flops / times[label].median / rate)
    question = "transformers, sdpa / ours"
    value = ratio(times, "transformers, sdpa", "ours")
    if name in LIMITS:
        print_at_least(question, value, LIMITS[name])
    else:
        print_figure(question, value)
    print_figure("transformers, eager / ours", ratio(times, "transformers, eager", "ours"))


def check(name: str, errors: dict[str, float]) -> None:
    """Raise unless ours are as near to float32's outputs as they have to be."""
    best = min(error for label, error in errors.items() if label != "ours")
    limit = TOLERANCE if name == "float32" else CLOSER * best
    assert errors["ours"] <= limit, f"{name}: RMS error ratio {errors['ours']:.2e} to float32, at most {limit:.2e}"


if __name__ == "__main__":
    main()
