"""How near are our outputs to those of the libraries whose checkpoints we read, or whose models we run?

transformers builds each model with random weights of its own; the state dict goes through our converters into our
modules, or the model is accelerated in place. All in float32. A difference is the largest of any output, beside the
largest output; of gradients, the largest RMS error ratio of any parameter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers as hf
from timing import print_at_most, print_figure
from transformers.utils import logging

from mmm_block.convert import assemble, from_mamba
from mmm_core.compat.transformers import accelerate
from mmm_core.testing import rms_error_ratio
from mmm_vit import VisionTransformer, config_from_transformers, from_transformers

if TYPE_CHECKING:
    from torch import Tensor

WORDS, LENGTH, LIMIT, GRADIENT_LIMIT = 5_000, 65, 1e-4, 1e-5
TEXT: dict[str, Any] = {"vocab_size": WORDS, "hidden_size": 256, "num_hidden_layers": 8}
JAMBA: dict[str, Any] = TEXT | {"intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
MODELS = {
    "Mamba": lambda: hf.MambaForCausalLM(hf.MambaConfig(**TEXT)),
    "Falcon-Mamba": lambda: hf.FalconMambaForCausalLM(hf.FalconMambaConfig(**TEXT)),
    "Jamba": lambda: hf.JambaForCausalLM(hf.JambaConfig(**JAMBA, num_experts=2, use_mamba_kernels=False)),
}
SIZES: dict[str, Any] = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12}
SIZES |= {"num_attention_heads": 6, "image_size": 224, "patch_size": 16}
TOWERS = {
    "ViT": lambda: hf.ViTModel(hf.ViTConfig(**SIZES)),
    "DeiT": lambda: hf.DeiTModel(hf.DeiTConfig(**SIZES)),
    "CLIP": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**SIZES)),
    "SigLIP": lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**SIZES)),
}


def main() -> None:
    logging.set_verbosity_error()  # transformers says that it has no CUDA kernels
    torch.manual_seed(0)
    print("State dict in, our module out: outputs")
    for name in ("Mamba", "Falcon-Mamba"):
        show(name, *converted(MODELS[name]().eval()))
    for name, build in TOWERS.items():
        show(name, *encoded(build().eval()))
    print("Accelerated in place: logits, and gradients")
    for name, build in MODELS.items():
        show(name, *accelerated(build()))


@torch.no_grad()
def converted(theirs: hf.PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Their logits and ours."""
    ids = torch.randint(WORDS, (2, LENGTH))
    ours = assemble(*from_mamba(theirs.config.to_dict(), theirs.state_dict()))
    return theirs(ids).logits, ours.eval()(ids).logits


@torch.no_grad()
def encoded(theirs: hf.PreTrainedModel) -> tuple[Tensor, Tensor]:
    """The last hidden states of the patches, theirs and ours."""
    config = config_from_transformers(theirs.config.to_dict())
    ours = VisionTransformer(config).eval()
    ours.load_state_dict(from_transformers(theirs.state_dict(), config))
    images = torch.randn(2, 3, 224, 224)
    return theirs(images).last_hidden_state[:, config.prefix_length :], ours(images)


def accelerated(model: hf.PreTrainedModel) -> tuple[Tensor, Tensor, float]:
    """Their logits, those under `accelerate`, and how far the gradients are apart."""
    ids = torch.randint(WORDS, (2, LENGTH))
    logits, expected = learned(model, ids)
    with accelerate(model):
        again, gradients = learned(model, ids)
    return logits, again, max(rms_error_ratio(gradients[name], expected[name]) for name in expected)


def learned(model: hf.PreTrainedModel, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits, and the gradient of every parameter that has one."""
    model.zero_grad()
    out = model(ids, labels=ids, use_cache=False)
    out.loss.backward()
    gradients = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    return out.logits.detach(), gradients


def show(name: str, expected: Tensor, got: Tensor, gradients: float | None = None) -> None:
    print_figure(f"{name}: the largest output", float(expected.abs().max()))
    print_at_most(f"{name}: the largest difference, in 1e-6", float((got - expected).abs().max()) * 1e6, LIMIT * 1e6)
    if gradients is not None:
        print_at_most(f"{name}: gradients, in 1e-6", gradients * 1e6, GRADIENT_LIMIT * 1e6)


if __name__ == "__main__":
    main()
