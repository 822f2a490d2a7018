"""How much does one decoded token cost, beside the matrix-vector products that it cannot do without?

The model is a stack of 24 layers, each `x + mamba(norm(x))` at a width of 768, with a last norm and a head of 50,280
words that is tied to the embedding: 129 M parameters, float32, one text. transformers' model has the same parameters,
in the same memory. Checks that steps give the logits of the whole text at once, and of transformers. What is timed, in
inference mode, each time with the state that the time before left:

- step: one token from its number to its logits, by `Mamba.step`.
- products alone: `torch.nn.functional.linear` of one vector with each matrix that the step uses, the head included, in
  the step's order.
- transformers: one token of its `MambaForCausalLM` with its cache, where no CUDA kernels are installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from timing import measure, print_at_most, print_figure, print_timings, ratio, setting
from torch import nn
from torch.nn import functional as F
from transformers import MambaConfig, MambaForCausalLM
from transformers.utils import logging

from mmm_core import Mamba
from mmm_core.testing import rms_error_ratio

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from mmm_core import MambaState

WORDS, DIM, DEPTH = 50_280, 768, 24
ROUNDS = 30
TOLERANCE = 1e-5  # of logits, after 24 layers in float32


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(DIM, eps=1e-5)
        self.mixer = Mamba(DIM)


class Stack(nn.Module):
    """A language model; its parameters have the names that they have in transformers' `MambaModel`."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(WORDS, DIM)
        self.layers = nn.ModuleList(Layer() for _ in range(DEPTH))
        self.norm_f = nn.RMSNorm(DIM, eps=1e-5)

    def forward(self, words: Tensor) -> tuple[Tensor, list[MambaState]]:
        """The logits of a text, `(b, l, words)`, and the states behind it."""
        x, states = self.embeddings(words), []
        for layer in self.layers:
            y, state = layer.mixer(layer.norm(x), return_state=True)
            x = x + y
            states.append(state)
        return F.linear(self.norm_f(x), self.embeddings.weight), states

    def step(self, words: Tensor, states: list[MambaState]) -> Tensor:
        """The logits behind one more word, `(b, words)`."""
        x = self.embeddings(words)
        for layer, state in zip(self.layers, states, strict=True):
            x = x + layer.mixer.step(layer.norm(x), state)
        return F.linear(self.norm_f(x), self.embeddings.weight)


def products(stack: Stack) -> Callable[[], None]:
    """The products of a step, each with a vector of its own that is at hand."""
    matrices = []
    for layer in stack.layers:
        mixer = layer.mixer
        matrices += [linear.weight for linear in (mixer.in_proj, mixer.x_proj, mixer.dt_proj, mixer.out_proj)]
    matrices.append(stack.embeddings.weight)
    pairs = [(torch.randn(1, matrix.shape[1]), matrix) for matrix in matrices]

    def run() -> None:
        for vector, matrix in pairs:
            F.linear(vector, matrix)

    return run


def transformers_model(stack: Stack) -> MambaForCausalLM:
    """transformers' model on the parameters of `stack`."""
    config = MambaConfig(vocab_size=WORDS, hidden_size=DIM, num_hidden_layers=DEPTH)
    with torch.device("meta"):
        model = MambaForCausalLM(config)
    model.backbone.load_state_dict(stack.state_dict(), assign=True)
    model.lm_head.weight = model.backbone.embeddings.weight
    return model.eval()


def check(stack: Stack, theirs: MambaForCausalLM, text: Tensor) -> None:
    """Raise unless the steps' logits are those of the whole text, and transformers' steps'."""
    whole, _ = stack(text)
    _, states = stack(text[:, :4])
    cache = theirs(text[:, :4], use_cache=True).cache
    for t in range(4, text.shape[1]):
        ours = stack.step(text[:, t], states)
        other = theirs(text[:, t : t + 1], cache=cache, use_cache=True).logits[:, 0]
        for name, logits in (("the whole text", whole[:, t]), ("transformers", other)):
            error = rms_error_ratio(ours, logits)
            assert error <= TOLERANCE, f"word {t}: RMS error ratio {error:.2e} to {name}, at most {TOLERANCE:.0e}"


@torch.inference_mode()
def main() -> None:
    logging.set_verbosity_error()  # transformers says that it has no CUDA kernels
    torch.manual_seed(0)
    stack = Stack()
    nn.init.normal_(stack.embeddings.weight, std=0.02)
    theirs = transformers_model(stack)
    text = torch.randint(WORDS, (1, 12))
    check(stack, theirs, text)
    _, states = stack(text)
    cache = theirs(text, use_cache=True).cache
    word = text[:, -1]
    runs: dict[str, Callable[[], object]] = {
        "step": lambda: stack.step(word, states),
        "products alone": products(stack),
        "transformers": lambda: theirs(word[:, None], cache=cache, use_cache=True),
    }
    millions = sum(parameter.numel() for parameter in stack.parameters()) / 1e6
    times = measure(runs, ROUNDS)
    print_timings(f"One token of a model of {millions:.0f} M parameters, float32 ({setting()})", times)
    print_at_most("step / products alone", ratio(times, "step", "products alone"), 1.5)
    print_figure("transformers / step", ratio(times, "transformers", "step"))


if __name__ == "__main__":
    main()
