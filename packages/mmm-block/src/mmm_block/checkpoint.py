"""Saving, loading and sharing: safetensors and JSON in a folder, or in a repository of the Hugging Face Hub."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from huggingface_hub import PyTorchModelHubMixin

import mmm_fusion
from mmm_block.card import TEMPLATE, card_values
from mmm_block.config import MultiModalMambaConfig
from mmm_block.errors import CheckpointError, ConfigError
from mmm_block.files import read_steady, replacing, write_json
from mmm_block.hub import fetch
from mmm_block.origins import origin, requirement, source, told
from mmm_block.unfilled import Unfilled
from mmm_block.weights import FILES, own_tensors, put_weights, read_weights, write_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from huggingface_hub import ModelCard
    from torch import Tensor

T = TypeVar("T", bound="Pretrained")

CONFIG = "config.json"
MODEL_TYPE = "multimodal_mamba"
NEEDED = [CONFIG, "model*.safetensors", "model.safetensors.index.json"]
PACKAGES = ("mmm-block", "mmm-fusion", "mmm-vit", "mmm-core", "torch")
ABOUT = ("model_type", "architectures", "packages", "fusion_source", "transformers_version", "dtype")
"""What config.json has beside the fields of a config; the last two if mmm_block.transformers wrote it."""


class Pretrained(
    PyTorchModelHubMixin,
    model_card_template=TEMPLATE,
    library_name="mmm-block",
    tags=["mamba", "multimodal"],
):
    """The part of `MultiModalMamba` that saves, loads and shares it, in the form of huggingface_hub's mixin."""

    config: MultiModalMambaConfig

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        max_shard_size: int | str = "5GB",
        model_card_kwargs: Mapping[str, Any] | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Save the model in a folder: weights in safetensors, `config.json`, and a model card in `README.md`.

        A checkpoint that is there is replaced as a whole: a crash at any moment leaves the old one or the new one.
        Other files stay, a README.md too. Tied weights are saved once, and each tensor in its dtype.

        Args:
            save_directory: The folder; made if it does not exist.
            max_shard_size: Bytes of a file, as a number or such as "5GB": more weights go into several.
            model_card_kwargs: Values for the model card: `model_id` is its title, `description` says what you will.
            push_to_hub: Upload the model as well.
            repo_id: The repository then; None: one of the name of the folder.
            push_to_hub_kwargs: Further arguments of `push_to_hub`.
        Returns:
            The address of the commit, if it was uploaded.
        """
        folder, card = Path(save_directory), dict(model_card_kwargs or {})
        # The mixin's push_to_hub saves with config=None.
        unknown = sorted(name for name, value in push_to_hub_kwargs.items() if (name, value) != ("config", None))
        if unknown and not push_to_hub:
            raise TypeError(
                "save_pretrained: expected its own arguments, or with push_to_hub=True those of push_to_hub, "
                f"got {', '.join(unknown)}."
            )
        with replacing(folder, FILES) as new:
            write_weights(new, own_tensors(self), max_shard_size)  # type: ignore[arg-type]  # it is a module
            write_json(new / CONFIG, self._config_json())
            if (folder / "README.md").is_file():
                shutil.copyfile(folder / "README.md", new / "README.md")
            else:
                self.generate_model_card(**card).save(new / "README.md")
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or folder.name, model_card_kwargs=card, **push_to_hub_kwargs)

    @classmethod
    def from_pretrained(
        cls: type[T],
        pretrained_model_name_or_path: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        **fields: Any,
    ) -> T:
        """Load a model that `save_pretrained` saved, in evaluation mode.

        Nothing is unpickled. The generators of random numbers stay as they are.

        Args:
            pretrained_model_name_or_path: A folder, or a repository of the hub: `owner/name`.
            device: Where the model goes.
            dtype: Of its floating tensors; None: each as it was saved.
            revision: A branch, tag or commit of the repository.
            token: For a repository that not everyone may read; None: what `hf auth login` has stored.
            cache_dir: Where downloads are kept.
            force_download: Download again what is there.
            local_files_only: Download nothing.
            fields: Fields of the config, in place of those that were saved: `dropout=0.1`.
        Returns:
            The model.
        Raises:
            TypeError: `dtype` is none of numbers with a point.
            CheckpointError: There is no checkpoint, it is damaged, is a pickle or another model's, or its config and
                weights do not fit.
            ConfigError: The config has an unknown key or a value out of its range, or is for another fusion contract.
            mmm_fusion.UnknownMethodError: Its fusion method is not registered; says where it came from.
        """
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(
                f"from_pretrained: `dtype` must be a floating torch.dtype, or None, got {dtype!r}. "
                "torch.bfloat16 is one."
            )
        folder = fetch(
            pretrained_model_name_or_path,
            NEEDED,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        values, weights = read_steady(folder, NEEDED, _read)
        about = {key: values.pop(key) for key in ABOUT if key in values}
        model = cls._from_values({**values, **fields}, about.get("fusion_source"), folder / CONFIG)
        put_weights(model, weights, str(folder), torch.device(device), dtype)
        model.eval()
        return model  # type: ignore[no-any-return]

    @classmethod
    def _from_values(cls, values: Mapping[str, Any], was: object, where: Path) -> Any:
        """A new model of what a config holds."""
        with naming(was, where), torch.random.fork_rng(devices=[]), Unfilled():
            config = MultiModalMambaConfig.from_dict(values)
            model = cls(config)
        look_at_source(config, was, where)
        return model

    def push_to_hub(self, repo_id: str, *, model_card_kwargs: Mapping[str, Any] | None = None, **options: Any) -> str:
        """Upload the model to the Hugging Face Hub, in one commit.

        Args:
            repo_id: The repository, `owner/name`; made if it does not exist.
            model_card_kwargs: Values for the model card, see `save_pretrained`.
            options: Further arguments of `huggingface_hub.PyTorchModelHubMixin.push_to_hub`: `private`, `branch`,
                `token`, `commit_message`, or `ignore_patterns="README.md"` to keep the card that is there.
        Returns:
            The address of the commit.
        """
        # Weights of an earlier commit must not stand beside those of this one.
        options = {"delete_patterns": NEEDED[1:], **options}
        card = {"model_id": repo_id, **(model_card_kwargs or {})}
        url: str = super().push_to_hub(repo_id, model_card_kwargs=card, **options)
        return url

    def generate_model_card(self, **values: Any) -> ModelCard:
        """The model card: sizes, the fusion method and where it comes from, and how to load the model.

        Args:
            values: Those of the template: `model_id`, `description`.
        Returns:
            The card; its `data` may be changed before it is saved.
        """
        own = card_values(self, self.config, made_with(self.config)["fusion_source"])  # type: ignore[arg-type]  # it is a module
        card = super().generate_model_card(**own, **values)
        card.data["pipeline_tag"] = "text-generation" if self.config.image_size is None else "image-text-to-text"
        return card

    def _config_json(self) -> dict[str, Any]:
        return {
            "model_type": MODEL_TYPE,
            "architectures": [type(self).__name__],
            **self.config.to_dict(),
            **made_with(self.config),
        }


def made_with(config: MultiModalMambaConfig) -> dict[str, dict[str, str]]:
    """What a checkpoint is made with, for config.json.

    Args:
        config: The model's.
    Returns:
        `packages`, the versions of ours and of torch, and `fusion_source`, where the fusion method comes from.
    """
    return {
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "fusion_source": {} if config.image_size is None else source(config.fusion_method),
    }


@contextmanager
def naming(was: object, where: Path) -> Iterator[None]:
    """Inside, what is wrong with a config is told with the name of its file, and where its fusion method came from.

    Args:
        was: The `fusion_source` of the file.
        where: The file.
    """
    try:
        yield
    except mmm_fusion.UnknownMethodError as error:
        raise mmm_fusion.UnknownMethodError(f"{where}: {error}{_where_it_was(told(was))}") from error
    except (TypeError, ValueError, RuntimeError) as error:  # of the packages below, and of sizes beyond the memory
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{where}: {reason}") from error


def read_config(path: Path) -> dict[str, Any]:
    """Read a config of any library.

    Args:
        path: The file.
    Returns:
        What it holds.
    Raises:
        CheckpointError: It is missing, or holds no JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent}: {path.name} was expected, got none. Name a folder that save_pretrained wrote."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: JSON was expected, got what is none: {error}. Restore the file.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: a JSON object was expected, got {type(values).__name__}. Restore the file.")
    return values


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the weights in a folder."""
    values = read_config(folder / CONFIG)
    if (got := values.get("model_type")) != MODEL_TYPE:
        raise CheckpointError(
            f"{folder / CONFIG}: model_type must be '{MODEL_TYPE}', got {got!r}. "
            "Mamba models of other libraries can be converted: see `python -m mmm_block convert --help`."
        )
    return values, read_weights(folder)


def _where_it_was(was: Mapping[str, str]) -> str:
    """The next step where the method of a checkpoint is not registered."""
    if needed := requirement(was):
        return f" The checkpoint was made with that of {needed}: install it by `pip install {needed}`."
    if re.fullmatch(r"[\w.-]+\.py", was.get("place", "")):
        return f" The checkpoint was made with that of {origin(was)}: load that file by mmm_fusion.load_file."
    return ""


def look_at_source(config: MultiModalMambaConfig, was: object, where: Path) -> None:
    """Warn where a method of the same name is another one.

    Args:
        config: The model's.
        was: The `fusion_source` of the config's file.
        where: The file.
    """
    then = told(was)
    if config.image_size is None or not then:
        return
    method, now = config.fusion_method, source(config.fusion_method)
    if then.get("distribution") != now.get("distribution") or then.get("sha256") != now.get("sha256"):
        warnings.warn(
            f"{where}: was made with fusion method '{method}' of {origin(then)}, it is now of {origin(now)}.",
            stacklevel=4,
        )
