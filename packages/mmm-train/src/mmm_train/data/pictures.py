"""From a picture file to a tensor, and the changes to it that keep its answers."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.nn import functional as F

from mmm_train.data.questions import QuestionSet
from mmm_train.errors import DataError
from mmm_train.seeds import derive

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from torch import Tensor

# What Pillow's decoders raise at broken files.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


def open_picture(path: str | Path) -> Image.Image:
    """Read a whole picture as RGB, upright as its camera says, on white where it is transparent.

    Args:
        path: A file of any format that Pillow reads.
    Returns:
        The picture.
    Raises:
        DataError: The file is missing, unreadable, truncated or too large; names it.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode[0] in "IF":
                raise ValueError(f"mode {image.mode}: save it with 8 bits a channel")
            if image.has_transparency_data:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            return image.convert("RGB")
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: a picture was expected, got {_kind(error, reason)}.") from error


def _kind(error: Exception, reason: str) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "a file that is none"
    return reason.rstrip(".") or type(error).__name__


def to_bytes(image: Image.Image, size: int) -> UInt8[Tensor, "c y x"]:
    """Resize a picture to a square where it is none of that size.

    Args:
        image: An RGB picture.
        size: Side of the square in pixels.
    Returns:
        `(3, size, size)`, values from 0 to 255.
    """
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # (c, y, x)


def to_tensor(values: UInt8[Tensor, "c y x"]) -> Float[Tensor, "c y x"]:
    """Scale the values of a picture to [-1, 1], in float32."""
    return values.float() / 127.5 - 1


@dataclass(frozen=True)
class Augment:
    """Changes pictures at random in training. The same seed, epoch and picture give the same change.

    Args:
        flip: Mirror every second picture left to right.
        shift: Move each by up to this many pixels in each direction; its border fills the gap.
        seed: Start of the random numbers.
        epoch: Epoch, from 0.
    """

    flip: bool
    shift: int
    seed: int
    epoch: int

    def __call__(self, image: Float[Tensor, "c y x"], index: int) -> Float[Tensor, "c y x"]:
        """Change picture number `index`."""
        chance = random.Random(derive(self.seed, "augment", self.epoch, index))
        if self.flip and chance.random() < 0.5:
            image = image.flip(-1)
        if self.shift:
            y, x = (chance.randint(0, 2 * self.shift) for _ in range(2))
            wide = F.pad(image[None], (self.shift,) * 4, mode="replicate")[0]
            image = wide[:, y : y + image.shape[1], x : x + image.shape[2]]
        return image


def check_pictures(data: QuestionSet, done: Callable[[int], None] = lambda pictures: None) -> None:
    """Read every picture once, so that a broken one shows before the training and not within.

    Args:
        data: The pictures.
        done: Called with 1 after each.
    Raises:
        DataError: The first picture that cannot be read.
    """
    with ThreadPoolExecutor() as pool:
        try:
            for _ in pool.map(lambda picture: open_picture(picture.path).close(), data.pictures):
                done(1)
        finally:
            pool.shutdown(cancel_futures=True)
