"""How fast does a model of 129 M parameters read, write and learn, beside transformers' model with the same weights?

The model is `MultiModalMamba` without images: 24 Mamba layers of width 768 and a head of 50,280 words that is tied to
the embedding; random weights, one text. transformers' `MambaForCausalLM` has the same parameters in the same memory. It
runs as it does where no CUDA kernels are installed, and once more under `mmm_core.compat.transformers.accelerate`.
Checks that logits, losses and gradients agree: in float32 with transformers', in bfloat16 with float32's as well as
theirs do. What is timed:

- read, in float32 and bfloat16: a prompt of 512 tokens, to the state and to the logits behind its last token.
- write, likewise: one token from its number to its logits, each time with the state that the time before left.
- products alone: a vector times each matrix that writing a token uses, the head included, in the step's order: by the
  kernel of `mmm_core.products`, and by `torch.nn.functional.linear`.
- learn, in float32: forward, loss, backward and AdamW's step on 512 tokens. transformers' takes minutes, since the time
  of its backward grows with the square of the length: it runs once, and gives the gradients of the check as well.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from timing import Timing, measure, print_at_least, print_at_most, print_figure, print_timings, ratio, setting
from torch.nn import functional as F
from transformers import MambaConfig, MambaForCausalLM
from transformers.utils import logging

from mmm_block import MultiModalMamba
from mmm_core.compat.transformers import accelerate
from mmm_core.native_library import array, call
from mmm_core.products import linear
from mmm_core.testing import rms_error_ratio

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

WORDS, DIM, DEPTH, LENGTH = 50_280, 768, 24, 512
LEARN_ROUNDS, READ_ROUNDS, WRITE_ROUNDS = 3, 5, 30
TOLERANCE = 1e-5  # of two libraries in float32, after 24 layers and their backward
CLOSER = 1.2  # our error in bfloat16, at most, as a multiple of theirs
READ = {torch.float32: 5, torch.bfloat16: 12}  # what is asked of transformers / ours


def main() -> None:
    logging.set_verbosity_error()  # transformers says that it has no CUDA kernels
    torch.manual_seed(0)
    ours = MultiModalMamba(vocab_size=WORDS, dim=DIM, depth=DEPTH).eval()
    text = torch.randint(WORDS, (1, LENGTH))
    count = sum(parameter.numel() for parameter in ours.parameters())
    print(f"{count / 1e6:.0f} M parameters, one text ({setting()})")
    exact = written(ours, text)
    for dtype in (torch.float32, torch.bfloat16):
        models = (ours.to(dtype), *transformers_models(ours))
        check(*models, text, exact)
        time_reading(*models, text)
        time_writing(*models, text)
    time_learning(ours.float().train(), *transformers_models(ours), text)


def transformers_models(ours: MultiModalMamba) -> tuple[MambaForCausalLM, MambaForCausalLM]:
    """transformers' model on the parameters of ours, as it stands and accelerated."""
    config = MambaConfig(vocab_size=WORDS, hidden_size=DIM, num_hidden_layers=DEPTH)
    weights = ours.state_dict(keep_vars=True)
    models = []
    for _ in range(2):
        with torch.device("meta"):
            model = MambaForCausalLM(config)
        named = {theirs_of(name): weight for name, weight in weights.items()}
        model.load_state_dict(named, assign=True)
        models.append(model.train(ours.training))
    accelerate(models[1])
    return models[0], models[1]


def theirs_of(name: str) -> str:
    """What transformers calls a parameter of ours."""
    return name.replace("embedding.", "backbone.embeddings.")


@torch.inference_mode()
def written(model: MultiModalMamba | MambaForCausalLM, text: Tensor) -> Tensor:
    """The logits behind a prompt, then behind each of a few tokens more."""
    if isinstance(model, MultiModalMamba):
        out = model(text, return_state=True, last_only=True)
        return torch.stack([out.logits, *(model.step(token, out.state) for token in text[:, :8].unbind(1))])
    out = model(text, use_cache=True, logits_to_keep=1)
    steps = [model(token[:, None], cache=out.cache, use_cache=True).logits for token in text[:, :8].unbind(1)]
    return torch.stack([out.logits, *steps])[:, :, 0]


def check(
    ours: MultiModalMamba, theirs: MambaForCausalLM, accelerated: MambaForCausalLM, text: Tensor, exact: Tensor
) -> None:
    """Raise unless all models give the logits of transformers', or as near to float32's."""
    expected, dtype = written(theirs, text), ours.lm_head.weight.dtype
    for which, model in (("ours", ours), ("accelerated", accelerated)):
        logits = written(model, text)
        if dtype == torch.float32:
            agree(f"{which}: logits", logits, expected)
        else:
            error, allowed = (rms_error_ratio(each, exact) for each in (logits, expected))
            assert error <= CLOSER * allowed, f"{which}: RMS error ratio {error:.2e}, transformers has {allowed:.2e}"


def agree(what: str, actual: Tensor, expected: Tensor) -> None:
    error = rms_error_ratio(actual, expected)
    assert error <= TOLERANCE, f"{what}: RMS error ratio {error:.2e} to transformers, at most {TOLERANCE:.0e}"


@torch.inference_mode()
def time_reading(ours: MultiModalMamba, theirs: MambaForCausalLM, accelerated: MambaForCausalLM, text: Tensor) -> None:
    dtype = ours.lm_head.weight.dtype
    runs: dict[str, Callable[[], object]] = {
        "ours": lambda: ours(text, return_state=True, last_only=True),
        "accelerated": lambda: accelerated(text, use_cache=True, logits_to_keep=1),
        "transformers": lambda: theirs(text, use_cache=True, logits_to_keep=1),
    }
    times = measure(runs, READ_ROUNDS)
    print_timings(f"Read {LENGTH} tokens, {dtype}", times)
    print_at_least("transformers / ours", ratio(times, "transformers", "ours"), READ[dtype])
    print_at_least("transformers / accelerated", ratio(times, "transformers", "accelerated"), 4)


@torch.inference_mode()
def time_writing(ours: MultiModalMamba, theirs: MambaForCausalLM, accelerated: MambaForCausalLM, text: Tensor) -> None:
    dtype, token = ours.lm_head.weight.dtype, text[:, -1]
    state = ours(text, return_state=True, last_only=True).state
    caches = [model(text, use_cache=True, logits_to_keep=1).cache for model in (theirs, accelerated)]
    runs: dict[str, Callable[[], object]] = {
        "ours": lambda: ours.step(token, state),
        "products alone": products(ours),
        "torch's products alone": torch_products(ours),
        "accelerated": lambda: accelerated(token[:, None], cache=caches[1], use_cache=True),
        "transformers": lambda: theirs(token[:, None], cache=caches[0], use_cache=True),
    }
    times = measure(runs, WRITE_ROUNDS)
    print_timings(f"Write a token, {dtype}", times)
    bound = print_at_least if dtype == torch.float32 else lambda question, value, _: print_figure(question, value)
    bound("transformers / ours", ratio(times, "transformers", "ours"), 2)
    print_figure("transformers / accelerated", ratio(times, "transformers", "accelerated"))
    print_at_most("ours / products alone", ratio(times, "ours", "products alone"), 1.5)
    print_figure("ours / torch's products alone", ratio(times, "ours", "torch's products alone"))
    seconds, size = times["products alone"].median, sum(parameter.nbytes for parameter in ours.parameters())
    print_figure("products alone, GB/s", size / seconds / 1e9)


def operands(model: MultiModalMamba) -> list[tuple[Tensor, Tensor]]:
    """The matrices of a step in its order, each with a vector of its own that is at hand."""
    matrices: list[Tensor] = []
    for layer in model.backbone.layers:
        mixer = layer.mixer
        matrices += [each.weight for each in (mixer.in_proj, mixer.x_proj, mixer.dt_proj, mixer.out_proj)]
    matrices.append(model.lm_head.weight)
    return [(matrix.new_empty(1, matrix.shape[1]).normal_(), matrix) for matrix in matrices]


def products(model: MultiModalMamba) -> Callable[[], list[Tensor]]:
    """The kernel of `mmm_core.products` on them, called with as little of Python as there can be."""
    pairs = operands(model)
    outs = [vector.new_empty(1, len(matrix)) for vector, matrix in pairs]
    calls = [
        [0, 1, matrix.shape[1], len(matrix), *array(vector), *array(matrix), *array(None), *array(out)]
        for (vector, matrix), out in zip(pairs, outs, strict=True)
    ]

    def run() -> list[Tensor]:
        for words in calls:
            call("mmm_core_product", words)
        return outs

    for out, (vector, matrix) in zip(run(), pairs, strict=True):
        assert torch.equal(out, linear(vector, matrix))
    return run


def torch_products(model: MultiModalMamba) -> Callable[[], None]:
    pairs = operands(model)

    def run() -> None:
        for vector, matrix in pairs:
            F.linear(vector, matrix)

    return run


def time_learning(ours: MultiModalMamba, theirs: MambaForCausalLM, accelerated: MambaForCausalLM, text: Tensor) -> None:
    optimiser = torch.optim.AdamW(ours.parameters(), lr=0.0)  # as much work as at any rate, and the weights stay

    def learn(model: nn.Module) -> Tensor:
        optimiser.zero_grad()
        loss: Tensor = model(input_ids=text, labels=text).loss
        loss.backward()
        optimiser.step()
        return loss.detach()

    def gradients(model: nn.Module) -> dict[str, Tensor]:
        loss = learn(model)
        grads = {name: parameter.grad for name, parameter in ours.named_parameters() if parameter.grad is not None}
        optimiser.zero_grad()
        return {"loss": loss, **grads}

    found = {"ours": gradients(ours), "accelerated": gradients(accelerated)}
    start = time.perf_counter()
    expected = gradients(theirs)
    once = Timing(time.perf_counter() - start, 0.0)
    for which, results in found.items():
        for name, value in expected.items():
            agree(f"{which}: {name}", results[name], value)
    runs: dict[str, Callable[[], object]] = {"ours": lambda: learn(ours), "accelerated": lambda: learn(accelerated)}
    times = measure(runs, LEARN_ROUNDS) | {"transformers, once": once}
    print_timings(f"Learn from {LENGTH} tokens, float32", times)
    print_at_least("transformers / ours", ratio(times, "transformers, once", "ours"), 40)
    print_at_least("transformers / accelerated", ratio(times, "transformers, once", "accelerated"), 30)


if __name__ == "__main__":
    main()
