"""The rules on what a module must be to be trained, saved and compiled."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from mmm_fusion.interface import FusionMethod
from mmm_fusion.testing.kit import Kit
from mmm_fusion.testing.probes import compare, fuse, leaves, masks, noise, require, rule, same


class ModuleRules(Kit):
    """A test for each rule on parameters, state and compilation."""

    @rule(
        "every tensor that is trained, or kept from call to call, is registered.",
        "assign parameters and modules to attributes, or keep them in nn.ParameterList and nn.ModuleList; give "
        "constants to register_buffer(..., persistent=False).",
    )
    def test_parameters_are_registered(self) -> None:
        """The graph of the output ends in parameters of the module alone, and no attribute holds another tensor."""
        method = self.make()
        registered = {id(parameter) for parameter in method.parameters()}
        for tokens in outputs(method, *self.inputs(p=12)):
            for leaf in leaves(tokens):
                require(id(leaf) in registered, f"an unregistered tensor of shape {tuple(leaf.shape)} in the graph.")
        for name, tensor in plain_tensors(method):
            require(False, f"an unregistered tensor of shape {tuple(tensor.shape)} in `{name}`.")

    @rule("every parameter gets a gradient.", "use it in forward, do not detach or freeze it, or delete it.")
    def test_parameters_get_gradients(self) -> None:
        """After a call without a grid and one with it, no parameter is without a gradient, or has one of zeros."""
        method = self.make().train()
        for tokens in outputs(method, *self.inputs(p=12)):
            if tokens.requires_grad:
                (tokens * noise(tokens.shape, seed=2)).sum().backward()
        for name, parameter in method.named_parameters():
            require(parameter.grad is not None and bool(parameter.grad.any()), f"no gradient of `{name}`.")

    @rule(
        "no two names of the state dict, and no two methods, share memory.",
        "keep a parameter under one name, clone what a buffer starts from, and make parameters in the constructor.",
    )
    def test_parameters_are_not_shared(self) -> None:
        """All parameters and buffers of two methods, with each other."""
        one, two = (dict(named_tensors(self.new())) for _ in range(2))
        for a, b in combinations(one, 2):
            require(not overlap(one[a], one[b]), f"`{a}` and `{b}` are one memory.")
        for a, x in one.items():
            for b, y in two.items():
                require(not overlap(x, y), f"`{a}` of one method and `{b}` of another are one memory.")

    @rule(
        "the state dict holds all that the output depends on, and loads into a new method.",
        "register parameters and buffers, all of them in the constructor; make nothing at random that is not in the "
        "state dict, and put nothing but tensors there.",
    )
    def test_state_dict(self) -> None:
        """A method that has been trained for a call, saved tensor by tensor, and loaded into one that has not."""
        one, two = self.make(), self.make(seed=1)
        text, image = self.inputs(p=12)
        new = set(two.state_dict())
        with torch.no_grad():
            outputs(one.train(), text, image)
        saved = {}
        for name, value in one.eval().state_dict().items():
            require(isinstance(value, Tensor), f"`{name}` is a {type(value).__name__}, and no tensor.")
            saved[name] = value.detach().clone().contiguous()
        odd = ", ".join(f"`{name}`" for name in sorted(new ^ set(saved)))
        require(not odd, f"{odd} in the state dict of one of two methods: a new one, and one that was called.")
        two.load_state_dict(saved)
        for given in ({}, {"image_grid": (3, 4)}):
            a, b = (fuse(method, text, image, **given).tokens for method in (one, two))
            require(same(a, b), f"after load_state_dict the outputs differ: {compare(a, b)}.")

    @rule(
        "works under torch.compile(fullgraph=True), forward and backward.",
        "let no Python branch depend on the values of a tensor.",
    )
    def test_compiles(self) -> None:
        """The compiled method gives what the method gives, for several lengths, with masks and a grid."""
        method = self.make()
        torch.compiler.reset()  # else many methods in one process reach the compiler's limit
        compiled = torch.compile(method, fullgraph=True, backend="aot_eager")
        for l, p, masked in ((5, 7, False), (6, 4, False), (6, 6, True)):
            text, image = self.inputs(l=l, p=p)
            given: dict[str, Any] = {}
            if masked:
                given = {
                    "image_grid": (2, 3),
                    **dict(zip(("text_mask", "image_mask"), masks(text, image), strict=True)),
                }
            output, expected = compiled(text, image, **given), fuse(method, text, image, **given)
            output.tokens.sum().backward()
            require(output.text == expected.text, f"`text` {output.text} in place of {expected.text}.")
            require(same(output.tokens, expected.tokens), f"{compare(output.tokens, expected.tokens)}.")


def outputs(method: FusionMethod, text: Tensor, image: Tensor) -> list[Tensor]:
    """The tokens of a call without a grid, and of one whose image is a grid of 3 x 4."""
    return [method(text, image).tokens, method(text, image, image_grid=(3, 4)).tokens]


def named_tensors(method: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, under each of their names."""
    yield from method.named_parameters(remove_duplicate=False)
    yield from method.named_buffers(remove_duplicate=False)


def plain_tensors(method: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors in attributes of the modules and of their classes, in lists and the like too: unknown to the module."""
    for path, module in method.named_modules():
        for owner in (module, *type(module).__mro__):
            for name, value in vars(owner).items():
                if name not in ("_parameters", "_buffers", "_modules"):
                    for tensor in tensors_in(value):
                        yield f"{path}.{name}".lstrip("."), tensor


def tensors_in(value: object) -> Iterator[Tensor]:
    """A tensor itself, or those in a container, at any depth."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, list | tuple | set | frozenset):
        for each in value:
            yield from tensors_in(each)


def overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have a storage in common."""
    one, other = a.untyped_storage(), b.untyped_storage()
    return one.nbytes() > 0 and one.data_ptr() == other.data_ptr()
