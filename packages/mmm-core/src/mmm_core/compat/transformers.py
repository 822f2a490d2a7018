"""transformers' Mamba, Falcon-Mamba and Jamba models on our kernels, as they stand: `accelerate(model)`.

transformers is not imported here: its layers are known by the names of their classes.
"""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Any

from torch import nn

from mmm_core.compat.transformers_mixer import AcceleratedMixer, accelerated

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_PARTS = frozenset(("act", "in_proj", "conv1d", "x_proj", "dt_proj", "out_proj", "A_log", "D"))
_NORMS = frozenset(("dt_layernorm", "b_layernorm", "c_layernorm"))
# The classes that are known, and the modules and parameters that each must have: a layer of others computes otherwise.
MIXERS = {"MambaMixer": _PARTS, "FalconMambaMixer": _PARTS | _NORMS, "JambaMambaMixer": _PARTS | _NORMS}
OLDEST = (5, 16)  # the first transformers whose cache is what it is now
_ARGUMENTS = frozenset(("hidden_states", "cache", "attention_mask"))


class Acceleration:
    """Which layers `accelerate` took, and the way back: `undo`, or the end of a `with` block.

    `print` shows how many layers of which kind.
    """

    layers: dict[str, str]
    """The name of each layer that was taken, as of `named_modules`, with the name of its class."""

    def __init__(self, mixers: dict[str, nn.Module], before: int) -> None:
        self.layers = {name: type(mixer).__name__ for name, mixer in mixers.items()}
        self._before = before  # as many were taken by an earlier call
        self._taken = [(name, mixer, type(mixer)) for name, mixer in mixers.items()]
        for _, mixer, original in self._taken:
            mixer.__class__ = accelerated(original)

    def undo(self) -> None:
        """Give every layer that was taken its own forward again; a second time does nothing.

        Raises:
            RuntimeError: Another library has changed the class of a layer since. Nothing is undone then.
        """
        for name, mixer, original in self._taken:
            if type(mixer) is not accelerated(original):
                raise RuntimeError(
                    f"Acceleration.undo: `{name}` must be as accelerate left it, got {type(mixer).__name__}, which "
                    "another library made of it. Undo that first."
                )
        for _, mixer, original in self._taken:
            mixer.__class__ = original
        self._taken = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        kinds = list(self.layers.values())
        counts = [f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds))] or ["no layer"]
        counts += [f"{self._before} accelerated before"] if self._before else []
        counts += ["undone"] if self.layers and not self._taken else []
        return f"<Acceleration: {', '.join(counts)}>"


def accelerate(model: nn.Module) -> Acceleration:
    """Let the Mamba layers of a transformers model run on our kernels: in `generate` and in training.

    The model stays as it is: its parameters are used where they stand, `state_dict`, `save_pretrained` and `Trainer`
    know no difference, and outputs and gradients are equal within rounding. Layers with adapters (PEFT), quantised
    projections, gradient checkpointing, autocast and transformers' caches work. Copies and pickles of the model are
    accelerated too.

    Args:
        model: A model of transformers, 5.16 or newer, or any module that holds layers of its Mamba, Falcon-Mamba or
            Jamba.
    Returns:
        What was taken. `undo()` gives it back, and so does leaving `with accelerate(model):`.
    Raises:
        TypeError: `model` is no module.
        ValueError: It holds no such layer, or one that is not as in the versions of transformers that are known.
            Nothing is changed then.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"accelerate: `model` must be a torch.nn.Module, got {type(model).__name__}. "
            "Of a pipeline or a trainer, pass its `model`."
        )
    found = {name: module for name, module in model.named_modules() if _class_of_transformers(module)}
    if not found:
        raise ValueError(
            f"accelerate: `model` must hold layers of transformers' {', '.join(MIXERS)}, got {type(model).__name__} "
            "with none. Pass a Mamba, Falcon-Mamba or Jamba model, or a module that holds one."
        )
    mixers = {name: mixer for name, mixer in found.items() if not isinstance(mixer, AcceleratedMixer)}
    for name, mixer in mixers.items():
        _check(name, mixer)
    return Acceleration(mixers, len(found) - len(mixers))


def _class_of_transformers(module: nn.Module) -> type[Any] | None:
    """The class of transformers that this module is an object of, if it is one of the mixers."""
    for cls in type(module).__mro__:
        if cls.__name__ in MIXERS and cls.__module__.startswith("transformers."):
            return cls
    return None


def _check(name: str, mixer: nn.Module) -> None:
    """Raise unless our forward computes what this layer's own does."""
    cls = _class_of_transformers(mixer)
    assert cls is not None
    version = sys.modules["transformers"].__version__
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        raise ValueError(
            f"accelerate: transformers must be {'.'.join(map(str, OLDEST))} or newer, got {version}. Upgrade it."
        )
    if "forward" in vars(mixer) or type(mixer).forward is not cls.forward:
        raise ValueError(
            f"accelerate: `{name}` must run the forward of transformers' {cls.__name__}, got one of its own, from a "
            "subclass or from hooks as of offloading. Accelerate the model before it is changed."
        )
    parts = {part for part, _ in (*mixer.named_children(), *mixer.named_parameters(recurse=False))}
    arguments = inspect.signature(cls.forward).parameters.keys() - {"self", "kwargs"}
    arguments = {"cache" if argument == "cache_params" else argument for argument in arguments}
    for what, got, expected in (("parts", parts, MIXERS[cls.__name__]), ("arguments", arguments, _ARGUMENTS)):
        if got != expected:
            raise ValueError(
                f"accelerate: `{name}` must have the {what} {', '.join(sorted(expected))}, got "
                f"{', '.join(sorted(got))}. This {cls.__name__} of transformers {version} is not known here; look for "
                "a newer mmm-core."
            )
