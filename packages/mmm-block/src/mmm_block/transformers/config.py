"""The config of a `MultiModalMamba` as transformers wants it: the same fields, checked by the same rules."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig

from mmm_block.checkpoint import ABOUT, MODEL_TYPE, made_with
from mmm_block.config import MultiModalMambaConfig

if TYPE_CHECKING:
    from pathlib import Path

OWN = tuple(each.name for each in fields(MultiModalMambaConfig))
# What transformers gives a config beside its fields, and what it sets on one.
GENERAL = {each.name for each in fields(PreTrainedConfig)} | {
    "attn_implementation",
    "experts_implementation",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "quantization_config",
    "torch_dtype",
}
KEPT = {*OWN, *ABOUT, "quantization_config"}


class MultiModalMambaHfConfig(PreTrainedConfig):
    """The fields of `MultiModalMambaConfig`, in a config of transformers.

    transformers' own names for some of them are understood as well: `hidden_size`, `num_hidden_layers`, `state_size`,
    `conv_kernel`, `tie_word_embeddings`. `config.json` is as `MultiModalMamba.save_pretrained` writes it.

    Args:
        use_cache: Whether a call in evaluation returns a cache if nothing is said; not saved.
        values: The fields of `MultiModalMambaConfig`, and what every config of transformers takes.
    Raises:
        ConfigError: A field is unknown, one is missing, or a value is out of its range.
    """

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference = ["cache"]
    attribute_map = {
        "hidden_size": "dim",
        "num_hidden_layers": "depth",
        "state_size": "d_state",
        "conv_kernel": "d_conv",
        "tie_word_embeddings": "tie_embeddings",
    }

    def __init__(self, *, use_cache: bool = True, **values: Any) -> None:
        values = {self.attribute_map.get(name, name): value for name, value in values.items()}
        general = {name: values.pop(name) for name in list(values) if name in GENERAL}
        about = {name: values.pop(name, None) for name in ABOUT}
        self.__dict__.update(MultiModalMambaConfig.from_dict(values).to_dict())
        self.use_cache = use_cache
        self.packages = about["packages"]
        self.fusion_source = about["fusion_source"]
        super().__init__(**general)

    def own(self) -> MultiModalMambaConfig:
        """The fields as `MultiModalMamba` takes them.

        Returns:
            A config as the fields are now.
        Raises:
            ConfigError: A value that was set is out of its range.
        """
        return MultiModalMambaConfig(**{name: self.__dict__[name] for name in OWN})

    def to_diff_dict(self) -> dict[str, Any]:
        """What `config.json` holds, which `MultiModalMamba.from_pretrained` reads too.

        Returns:
            The fields, and what tells of the checkpoint.
        """
        return {name: value for name, value in super().to_diff_dict().items() if name in KEPT}

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save the config with the versions of the packages and the source of the fusion method.

        Args:
            save_directory: The folder.
            push_to_hub: Upload it as well.
            kwargs: Arguments of the upload.
        """
        self.__dict__.update(made_with(self.own()))
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
