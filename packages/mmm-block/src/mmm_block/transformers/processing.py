"""Pictures and texts made ready for the model: a tokenizer and an image processor in one."""

from __future__ import annotations

from typing import Any

from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD, PILImageResampling

from mmm_block.errors import InputError


class MultiModalMambaImageProcessor(PilBackend):
    """Resizes pictures, and scales their values from 0 … 255 to -1 … 1, as mmm-train does.

    Its arguments are those of every image processor of transformers: `size`, `resample`, `image_mean` and the like. It
    needs Pillow, and no torchvision.
    """

    size = {"height": 224, "width": 224}
    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True


class MultiModalMambaProcessor(ProcessorMixin):
    """A tokenizer and an image processor: texts with marks, and the pictures for them, in one call.

    A mark stays one token. Its image's tokens are put before it by the model, and are none of the text.

    Args:
        image_processor: Makes pixels of pictures.
        tokenizer: Makes tokens of texts; any of transformers that has the mark for a token of its own.
        chat_template: Makes a text of messages.
        image_token: The mark; None for a model that has one image before each row, and no mark.
    Raises:
        InputError: The tokenizer does not have the mark.
    """

    def __init__(
        self,
        image_processor: PilBackend,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        image_token: str | None = "<image>",
    ) -> None:
        self.image_token = image_token
        self.image_token_id = None if image_token is None else _find(tokenizer, image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def replace_image_token(self, image_inputs: BatchFeature, image_idx: int, **kwargs: Any) -> str:
        """What a mark is replaced by: itself.

        Args:
            image_inputs: What the image processor made.
            image_idx: The number of the image.
            kwargs: Options of the image processor.
        Returns:
            The mark.
        """
        return str(self.image_token)


def _find(tokenizer: PreTrainedTokenizerBase, mark: str) -> int:
    token = tokenizer.get_vocab().get(mark)
    if token is None:
        raise InputError(
            f"MultiModalMambaProcessor: `tokenizer` must have the token {mark!r}, got one without. "
            f'Add it: tokenizer.add_special_tokens({{"additional_special_tokens": [{mark!r}]}}).'
        )
    return int(token)
