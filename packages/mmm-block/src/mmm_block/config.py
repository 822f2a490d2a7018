"""What a `MultiModalMamba` is made of, in one frozen value that JSON stores."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any, TypeGuard

import mmm_fusion
from mmm_block.errors import ConfigError
from mmm_core import Mamba
from mmm_vit import ViTConfig

OWN = {
    "mixer_options": {"dim", "depth", "d_state", "expand", "d_conv", "norm_eps", "dropout"},
    "encoder_options": {"image_size", "patch_size", "dim", "depth", "heads", "dropout"},
}
"""What the further options of a part must not be, since fields of the config are."""
FURTHER = {
    "mixer_options": set(inspect.signature(Mamba).parameters) - OWN["mixer_options"],
    "encoder_options": {each.name for each in fields(ViTConfig)} - OWN["encoder_options"],
}
"""What they can be."""

SIZES = (
    *("vocab_size", "dim", "depth", "d_state", "expand", "d_conv"),
    *("encoder_dim", "encoder_depth", "encoder_heads", "heads"),
)


@dataclass(frozen=True, kw_only=True)
class MultiModalMambaConfig:
    """The sizes and options of a `MultiModalMamba`.

    Without `image_size` the model has no encoder and no fusion method: a Mamba language model. Configs can be compared,
    but not hashed, since some fields are dicts.

    Args:
        vocab_size: Number of tokens of the vocabulary.
        dim: Width of the tokens.
        depth: Number of Mamba layers.
        d_state: State of a Mamba layer, for each inner channel.
        expand: Inner width of the Mamba layers as a multiple of `dim`.
        d_conv: Taps of their convolutions.
        mixer_options: Further arguments of `mmm_core.Mamba`.
        norm_eps: Epsilon of the norms before the layers and behind the last.
        dropout: Rate in the encoder, in the fusion method and on each layer's branch; acts in training only.
        tie_embeddings: Whether the head's matrix is that of the embedding.
        image_size: Image that the encoder's positions are made for, in pixels or `[y, x]`; others are taken as well.
            None: text alone.
        patch_size: One patch, in pixels or `[y, x]`.
        encoder_dim: Width of the image tokens.
        encoder_depth: Number of blocks of the encoder.
        encoder_heads: Attention heads of the encoder.
        encoder_options: Further fields of `mmm_vit.ViTConfig`.
        fusion_method: A name of `mmm_fusion.available()`.
        fusion_options: Further options of that method.
        heads: Attention heads of the fusion method, where it has any.
        fusion_contract: The fusion contract that the weights were made for.
        image_token_id: The token that marks the place of an image in a text. None: each row has one image, before it.
        pad_token_id: The token that `generate` puts behind a row that has ended.
        eos_token_id: The token that ends a text.
    Raises:
        ConfigError: A value is out of its range, or two disagree.
    """

    vocab_size: int
    dim: int
    depth: int
    d_state: int = 16
    expand: int = 2
    d_conv: int = 4
    mixer_options: dict[str, Any] = field(default_factory=dict)
    norm_eps: float = 1e-5
    dropout: float = 0.0
    tie_embeddings: bool = True
    image_size: int | tuple[int, int] | None = None
    patch_size: int | tuple[int, int] = 16
    encoder_dim: int = 192
    encoder_depth: int = 12
    encoder_heads: int = 3
    encoder_options: dict[str, Any] = field(default_factory=dict)
    fusion_method: str = "mlp"
    fusion_options: dict[str, Any] = field(default_factory=dict)
    heads: int = 4
    fusion_contract: int = mmm_fusion.CONTRACT
    image_token_id: int | None = None
    pad_token_id: int | None = None
    eos_token_id: int | None = None

    __hash__ = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        for name in SIZES:
            value = getattr(self, name)
            _expect(is_int(value) and value >= 1, name, "an int of at least 1", value)
        _expect(_is_real(self.dropout) and 0 <= self.dropout < 1, "dropout", "from 0 to below 1", self.dropout)
        _expect(_is_real(self.norm_eps) and 0 < self.norm_eps < math.inf, "norm_eps", "a number above 0", self.norm_eps)
        _expect(isinstance(self.tie_embeddings, bool), "tie_embeddings", "True or False", self.tie_embeddings)
        self._check_tokens()
        _expect(
            is_int(self.fusion_contract) and self.fusion_contract == mmm_fusion.CONTRACT,
            "fusion_contract",
            f"{mmm_fusion.CONTRACT}, which the installed mmm-fusion speaks",
            self.fusion_contract,
            "Install an mmm-fusion of that contract, or train anew.",
        )
        self._check_options()
        for name in ("image_size", "patch_size"):  # JSON has lists
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))

    def _check_tokens(self) -> None:
        for name in ("image_token_id", "pad_token_id", "eos_token_id"):
            value = getattr(self, name)
            ok = value is None or (is_int(value) and 0 <= value < self.vocab_size)
            _expect(ok, name, f"a token from 0 to below vocab_size = {self.vocab_size}, or None", value)
        _expect(
            self.image_size is not None or self.image_token_id is None,
            "image_token_id",
            "None where image_size is None",
            self.image_token_id,
            "A model of text alone has no images to mark.",
        )
        others = {"pad_token_id": self.pad_token_id, "eos_token_id": self.eos_token_id}
        same = [name for name, token in others.items() if token is not None and token == self.image_token_id]
        _expect(
            not same,
            "image_token_id",
            "a token of its own",
            self.image_token_id,
            f"It is {' and '.join(same)} as well: give the vocabulary one more token.",
        )

    def _check_options(self) -> None:
        for name in ("mixer_options", "encoder_options", "fusion_options"):
            _expect(isinstance(value := getattr(self, name), dict), name, "a dict", value)
        for name, own in OWN.items():
            given = set(getattr(self, name))
            taken, unknown = sorted(own & given), sorted(map(str, given - own - FURTHER[name]))
            _expect(not taken, name, "further options", taken, "The config has fields for these.")
            known = f"of {', '.join(sorted(FURTHER[name]))}"
            _expect(not unknown, name, known, unknown, "Leave the others out.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MultiModalMambaConfig:
        """Make a config of plain values, as JSON holds them.

        Raises:
            ConfigError: A key is unknown, one is missing, or a value is out of its range.
        """
        known = [each.name for each in fields(cls)]
        for name in values:
            if name not in known:
                close = difflib.get_close_matches(str(name), known, n=1)
                hint = f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(known)}."
                raise ConfigError(f"MultiModalMambaConfig: unknown key '{name}'. {hint}")
        try:
            return cls(**values)
        except TypeError as error:
            required = [each.name for each in fields(cls) if _required(each) and each.name not in values]
            if not required:
                raise ConfigError(f"MultiModalMambaConfig: a value has a wrong type: {error}.") from error
            raise ConfigError(f"MultiModalMambaConfig: expected {', '.join(required)}, got none. Add it.") from error

    def to_dict(self) -> dict[str, Any]:
        """The values that JSON stores; `from_dict` reads them.

        Raises:
            ConfigError: An option holds what JSON has not.
        """
        return {each.name: _in_json(each.name, getattr(self, each.name)) for each in fields(self)}


def is_int(value: object) -> TypeGuard[int]:
    """Whether a value is an int, which True is not here."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _in_json(name: str, value: object) -> Any:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"MultiModalMambaConfig: `{name}` must hold what JSON has, got {value!r} ({error}). "
            "Use numbers, strings, bools, lists and dicts."
        ) from error


def _required(each: dataclasses.Field[Any]) -> bool:
    return each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING


def _expect(ok: bool, name: str, what: str, got: object, advice: str = "") -> None:
    if not ok:
        raise ConfigError(f"MultiModalMambaConfig: `{name}` must be {what}, got {got!r}.{advice and ' ' + advice}")
