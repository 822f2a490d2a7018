"""Weights in safetensors: in one file, or in several and an index that says which tensor is where."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from mmm_block.errors import CheckpointError
from mmm_block.tensor_file import read_tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch
    from torch import Tensor, nn

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
EXTRA = "_extra_state"
"""What torch calls in a state dict what `get_extra_state` of a module returns."""
FILES = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
"""Names of the files that weights are written to."""


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers that a model keeps, a tensor of several names under the first of them.

    Raises:
        CheckpointError: A module keeps something else besides, by `get_extra_state`.
    """
    names: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    if extra := [name for name in state if name.rpartition(".")[2] == EXTRA]:
        raise CheckpointError(
            f"{type(model).__name__}: parameters and buffers alone were expected in its state dict, "
            f"got {listed([f'`{name}`' for name in extra])}. No checkpoint keeps it: use a buffer instead."
        )
    for name, tensor in state.items():
        names.setdefault(id(tensor), name)
    return {name: state[name] for name in names.values()}


def write_weights(folder: Path, tensors: Mapping[str, Tensor], max_shard_size: int | str) -> None:
    """Write tensors, in several files and an index where they are more than one may hold.

    Args:
        folder: Where to.
        tensors: By name.
        max_shard_size: Bytes of a file, as a number or such as "5GB"; a single tensor may be larger.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    alone = _alone(tensors)
    split = split_torch_state_dict_into_shards(
        alone, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    for file, names in split.filename_to_tensors.items():
        save_file({name: alone[name] for name in names}, folder / file, {"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read all tensors of a folder. They are views of its files: what is kept must be copied.

    Args:
        folder: Where from.
    Returns:
        Tensors on the CPU, by name.
    Raises:
        CheckpointError: There are none, a file is missing or damaged, or it is a pickle.
    """
    if (folder / SINGLE).is_file():
        return read_tensors(folder / SINGLE)[0]
    if not (folder / INDEX).is_file():
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        raise CheckpointError(
            f"{folder}: {SINGLE} was expected, got "
            + (
                f"{pickles[0]}. It is a pickle, which runs code when it is read, and is left alone. "
                "Save the weights as safetensors where they were made."
                if pickles
                else "none. Name a folder that save_pretrained wrote."
            )
        )
    weights: dict[str, Tensor] = {}
    for file, names in _read_index(folder / INDEX).items():
        tensors, _ = read_tensors(folder / file)
        if tensors.keys() != set(names):
            raise CheckpointError(
                f"{folder / file}: the tensors that {INDEX} tells of were expected; "
                f"{difference(set(names), tensors.keys())}. Take all files from one checkpoint."
            )
        weights |= tensors
    return weights


def put_weights(
    model: nn.Module, weights: Mapping[str, Tensor], where: str, device: torch.device, dtype: torch.dtype | None
) -> None:
    """Give a model the weights, its own tensors and no others; or leave it as it is.

    Args:
        model: The model. Its parameters stay the objects they are, so that what is tied stays tied.
        weights: By name; they are copied.
        where: What to name in an error.
        device: Where the model goes.
        dtype: Of all floating tensors; None: each as in `weights`.
    Raises:
        CheckpointError: As `check_weights`.
    """
    own = check_weights(model, weights, where)
    dtypes = {each.dtype for each in weights.values() if each.is_floating_point()}
    if dtype is None and len(dtypes) == 1:
        (dtype,) = dtypes
    for name, tensor in own.items():
        given = weights[name]
        # What goes elsewhere is copied on its way.
        tensor.data = given.to(dtype if given.is_floating_point() else None, copy=device.type == "cpu")
    model.to(device, dtype)


def check_weights(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Refuse weights that are not those of a model.

    Args:
        model: The model.
        weights: By name.
        where: What to name in an error.
    Returns:
        The model's own tensors.
    Raises:
        CheckpointError: There are too many, too few, or ones of another shape or kind.
    """
    own = own_tensors(model)
    wrong = [
        f"`{name}` {_form(weights[name])} for {_form(tensor)}"
        for name, tensor in own.items()
        if name in weights and _form(weights[name]) != _form(tensor)
    ]
    if own.keys() != weights.keys() or wrong:
        differences = [difference(own.keys(), weights.keys()), f"of another form: {listed(wrong)}" if wrong else ""]
        raise CheckpointError(
            f"{where}: the weights of the model that its config describes were expected; "
            f"{'; '.join(filter(None, differences))}. Take config and weights from one checkpoint."
        )
    return own


def difference(expected: Iterable[str], got: Iterable[str]) -> str:
    """Which names are missing, and which are too many; empty if none."""
    names = {"missing": sorted({*expected} - {*got}), "too many": sorted({*got} - {*expected})}
    return "; ".join(f"{what}: {listed([f'`{name}`' for name in some])}" for what, some in names.items() if some)


def listed(items: list[str], most: int = 3) -> str:
    """Some items, and how many more there are."""
    rest = len(items) - most
    return ", ".join(items[:most]) + (f" and {rest} more" if rest > 0 else "")


def _alone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that each fill a memory of their own, as files take them; copies only where they must be."""
    alone: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        memory = tensor.untyped_storage()
        whole = memory.nbytes() == tensor.nbytes and memory.data_ptr() not in taken
        taken.add(memory.data_ptr())
        alone[name] = tensor if whole else tensor.clone()
    return alone


def _form(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" {tensor.dtype}".replace("torch.", "")
    return f"{tuple(tensor.shape)}{kind}"


def _read_index(path: Path) -> dict[str, list[str]]:
    """The names of the tensors of each file."""
    try:
        index: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: JSON was expected, got what is none: {error}. Download it anew.") from error
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise CheckpointError(
            f"{path}: a `weight_map` from names of tensors to names of files was expected, got none. Download it anew."
        )
    files: dict[str, list[str]] = {}
    for name, file in places.items():
        if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", file):
            raise CheckpointError(
                f"{path}: the name of a safetensors file beside it was expected for `{name}`, got {file!r}. "
                "Such an index may have been made to read other files: do not use it."
            )
        files.setdefault(file, []).append(name)
    return files
