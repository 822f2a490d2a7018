"""The rules on what a module must be to be trained, saved and copied."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import combinations

import torch
from torch import Tensor, nn

from mmm_fusion.interface import FusionMethod
from mmm_fusion.testing.gradients import outputs
from mmm_fusion.testing.kit import Kit
from mmm_fusion.testing.probes import compare, fuse, kinds_of_image, leaves, real, same
from mmm_fusion.testing.rule import require, rule


class ModuleRules(Kit):
    """A test for each rule on parameters and state."""

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
        with torch.no_grad():
            outputs(two, text, image)  # what it has made of its first weights must not outlive them
        two.load_state_dict(saved)
        check_twins(one, two, text, image, "after load_state_dict")

    @rule(
        "copy.deepcopy makes a method that gives the same.",
        "keep no lock, file or generator in an attribute, and no tensor of a graph.",
    )
    def test_copies(self) -> None:
        """A method that has been trained for a call."""
        method = self.make().train()
        text, image = self.inputs(p=12)
        for tokens in outputs(method, text, image):
            if tokens.requires_grad:
                tokens.sum().backward()
        check_twins(method.eval(), copy.deepcopy(method), text, image, "in the copy")


def check_twins(one: FusionMethod, two: FusionMethod, text: Tensor, image: Tensor, which: str) -> None:
    """Refuse two methods that differ in what they give."""
    for picture, given in kinds_of_image(image).values():
        for a, b in zip(*(real(fuse(method, text, picture, **given)) for method in (one, two)), strict=True):
            require(same(a, b), f"{which} the outputs differ: {compare(a, b)}.")


def named_tensors(method: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, under each of their names."""
    yield from method.named_parameters(remove_duplicate=False)
    yield from method.named_buffers(remove_duplicate=False)


def plain_tensors(method: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors in attributes of the modules and of their classes, in lists and the like too: unknown to the module."""
    known = {id(tensor) for _, tensor in named_tensors(method)}
    for path, module in method.named_modules():
        for owner in (module, *type(module).__mro__):
            for name, value in vars(owner).items():
                if name not in ("_parameters", "_buffers", "_modules"):
                    for tensor in tensors_in(value):
                        if id(tensor) not in known:  # a second list of the parameters, as torch's GRU has
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
