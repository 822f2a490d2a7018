"""`MultiModalMambaBlock`: a ViT reads the image, a fusion method joins it to the text, Mamba layers read both."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

import mmm_fusion
from mmm_block.padding import pack, past_padding
from mmm_block.stack import MambaStack
from mmm_core import MambaState, ShapeError
from mmm_vit import VisionTransformer, ViTConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Bool, Float, Int
    from torch import Tensor


class ImageTokens(NamedTuple):
    """Encoded images: `MultiModalMambaBlock.encode` makes them, and every call takes them in place of pixels."""

    tokens: Float[Tensor, "b p encoder_dim"]
    grid: tuple[int, int] | None  # (h, w) where the tokens are patches in raster order, else None


class ImageState(NamedTuple):
    """Images that were read: `MultiModalMambaBlock.read_image` makes it, and `read_text` goes on from it.

    Its size is that of one state a layer, and of what the fusion method needs of an image for each text.
    """

    memory: mmm_fusion.ImageMemory
    layers: tuple[MambaState, ...]  # behind the image tokens; empty where the method keeps none in the sequence

    def rows(self, index: Int[Tensor, " q"]) -> ImageState:
        """The state of some of the images, in any order and as often as wanted.

        Args:
            index: Row numbers, `(q,)`: for q texts the image of each.
        Returns:
            A state of q rows.
        """
        layers = (MambaState(*(each.index_select(0, index) for each in state)) for state in self.layers)
        return ImageState(self.memory.rows(index), tuple(layers))


class MultiModalMambaBlock(MambaStack):
    """Text embeddings and images in, one sequence of Mamba states out.

    Args:
        dim: Width of the text and of the output.
        depth: Number of Mamba layers.
        dropout: Rate in the encoder, in the fusion method and on each layer's branch; acts in training only.
        heads: Attention heads of the fusion method, where it has any.
        d_state: State size of the Mamba layers.
        image_size: Image that the encoder's positions are made for, pixels or `(y, x)`; others are taken as well.
        patch_size: One patch, pixels or `(y, x)`; divides every image.
        encoder_dim: Width of the image tokens; free of `dim`.
        encoder_depth: Number of blocks of the encoder.
        encoder_heads: Attention heads of the encoder; divide `encoder_dim`.
        fusion_method: A name of `mmm_fusion.available()`.
        fusion_options: Further options of that method.
        encoder: A module that maps images `(b, c, y, x)` to tokens `(b, p, encoder_dim)`, in place of the ViT that the
            other encoder arguments describe.
        expand: Inner width of the Mamba layers as a multiple of `dim`.
        d_conv: Taps of their convolutions.
        channels: Channels of an image.
        norm_eps: Epsilon of the norms before and after the Mamba layers.
        mixer: Further arguments of `mmm_core.Mamba`.
    Raises:
        ValueError: A size is out of its range.
        mmm_fusion.UnknownMethodError: No fusion method has that name.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        dropout: float,
        heads: int,
        d_state: int,
        image_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        encoder_dim: int,
        encoder_depth: int,
        encoder_heads: int,
        fusion_method: str = "mlp",
        *,
        fusion_options: Mapping[str, Any] | None = None,
        encoder: nn.Module | None = None,
        expand: int = 2,
        d_conv: int = 4,
        channels: int = 3,
        norm_eps: float = 1e-5,
        **mixer: Any,
    ) -> None:
        if taken := sorted({"name", "dim", "image_dim", "heads", "dropout"} & set(fusion_options or {})):
            raise ValueError(
                f"MultiModalMambaBlock: `fusion_options` must be the method's own, got {', '.join(taken)}. "
                "Give these to the block itself."
            )
        if encoder is None:
            config = ViTConfig(
                image_size=image_size,
                patch_size=patch_size,
                dim=encoder_dim,
                depth=encoder_depth,
                heads=encoder_heads,
                channels=channels,
                dropout=dropout,
            )
            encoder = VisionTransformer(config)
        fusion: mmm_fusion.FusionMethod = mmm_fusion.create(
            fusion_method, dim, encoder_dim, heads=heads, dropout=dropout, **(fusion_options or {})
        )
        super().__init__(dim, depth, dropout, norm_eps=norm_eps, d_state=d_state, expand=expand, d_conv=d_conv, **mixer)
        self.encoder = encoder
        self.fusion: mmm_fusion.FusionMethod = fusion
        options = {"heads": heads, **(fusion_options or {})}
        self.fusion_form = f"{fusion_method} {json.dumps(options, sort_keys=True, default=str)}"
        self.encoder_dim = encoder_dim
        self.patch_size = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size

    def forward(
        self,
        text: Float[Tensor, "b l d"],
        image: Float[Tensor, "b c y x"] | ImageTokens | None = None,
        *,
        text_mask: Bool[Tensor, "b l"] | None = None,
        image_mask: Bool[Tensor, "b p"] | None = None,
    ) -> Float[Tensor, "b m d"]:
        """Fuse text and images and read them with the Mamba layers.

        Args:
            text: Embeddings, `(b, l, dim)`.
            image: One image a row, pixels `(b, c, y, x)` or what `encode` made of them; None: text alone.
            text_mask: True where a text token is real, `(b, l)`; None: all are.
            image_mask: True where an image token is real, `(b, p)`; a row of False has no image.
        Returns:
            `(b, m, dim)`: m is l, or p + l where the method puts the image tokens before the text. What stands at
            padding means nothing.
        Raises:
            ShapeError: Text and image disagree in the batch.
            mmm_fusion.InputError: A tensor does not fit the fusion method.
        """
        return self.backbone(self.fuse(text, image, text_mask=text_mask, image_mask=image_mask))

    def encode(self, image: Float[Tensor, "b c y x"]) -> ImageTokens:
        """Run the encoder alone, so that an image is encoded once for many texts.

        Args:
            image: Pixels, `(b, c, y, x)`.
        Returns:
            Tokens `(b, p, encoder_dim)` and their grid; index the tokens by row to repeat an image.
        Raises:
            ShapeError: The image is not `(b, c, y, x)`, or the encoder did not return `(b, p, encoder_dim)`.
        """
        if image.ndim != 4:
            raise ShapeError(f"MultiModalMambaBlock: `image` must be (b, c, y, x), got {tuple(image.shape)}.")
        tokens = self.encoder(image)
        shape = tuple(tokens.shape) if isinstance(tokens, torch.Tensor) else type(tokens).__name__
        if len(shape) != 3 or (shape[0], shape[2]) != (image.shape[0], self.encoder_dim):
            raise ShapeError(
                f"MultiModalMambaBlock: `encoder` must return (b, p, encoder_dim) with b = {image.shape[0]} and "
                f"encoder_dim = {self.encoder_dim}, got {shape}. Wrap it so that it returns its tokens."
            )
        grid = (image.shape[2] // self.patch_size[0], image.shape[3] // self.patch_size[1])
        return ImageTokens(tokens, grid if math.prod(grid) == tokens.shape[1] else None)

    def fuse(
        self,
        text: Float[Tensor, "b l d"],
        image: Float[Tensor, "b c y x"] | ImageTokens | None = None,
        *,
        text_mask: Bool[Tensor, "b l"] | None = None,
        image_mask: Bool[Tensor, "b p"] | None = None,
    ) -> mmm_fusion.FusionOutput:
        """Encode the image and join it to the text; the arguments are those of `forward`.

        Returns:
            The tokens, the slice of them where the text stands, and their mask.
        """
        if image is not None and not isinstance(image, ImageTokens):
            image = self.encode(image)
        tokens, grid = (None, None) if image is None else image
        if tokens is not None and text.ndim == 3 and tokens.shape[0] != text.shape[0]:
            raise ShapeError(
                f"MultiModalMambaBlock: `image` must have b = {text.shape[0]} rows as `text`, got {tokens.shape[0]}. "
                "To ask several questions of an image, index the tokens that encode() returns."
            )
        fused: mmm_fusion.FusionOutput = self.fusion(
            text, tokens, text_mask=text_mask, image_mask=image_mask, image_grid=grid
        )
        return fused

    def backbone(self, fused: mmm_fusion.FusionOutput) -> Float[Tensor, "b m d"]:
        """Run the Mamba layers and the final norm over what `fuse` returned.

        Returns:
            `(b, m, dim)`; `fused.text` says where the text stands in m.
        """
        return past_padding(lambda x: self.run(x)[0], fused.tokens, fused.mask)

    def read_image(
        self, image: Float[Tensor, "b c y x"] | ImageTokens, *, image_mask: Bool[Tensor, "b p"] | None = None
    ) -> ImageState:
        """Do all that is the same for every text about an image, once: `read_text` then answers each text.

        It can be differentiated, so a training may share it too.

        Args:
            image: Pixels `(b, c, y, x)`, or what `encode` made of them.
            image_mask: True where an image token is real, `(b, p)`; a row of False has no image.
        Returns:
            The state behind the images; index it with `rows` to ask several texts of one.
        Raises:
            ShapeError: As `encode`.
            mmm_fusion.InputError: A tensor does not fit the fusion method.
        """
        tokens, grid = image if isinstance(image, ImageTokens) else self.encode(image)
        memory = self.fusion.read(tokens, image_mask=image_mask, image_grid=grid)
        b, k, dim = memory.prefix.shape
        if not k:
            return ImageState(memory, ())
        x, bounds = pack(memory.prefix, memory.prefix_mask)
        _, states = self.run(x, cu_seqlens=bounds)
        # The layers have read the prefix: no text needs it any more.
        memory = memory._replace(prefix=x.new_zeros(b, 0, dim), prefix_mask=None)
        return ImageState(memory, tuple(MambaState(conv[:b], ssm[:b]) for conv, ssm in states))

    def read_text(
        self, text: Float[Tensor, "b l d"], state: ImageState, *, text_mask: Bool[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b l d"]:
        """Read texts about images that were read before.

        Args:
            text: Embeddings, `(b, l, dim)`.
            state: What `read_image` returned, a row for each text.
            text_mask: True where a text token is real, `(b, l)`; None: all are.
        Returns:
            `(b, l, dim)`: what `forward` gives at the text's positions. What stands at padding means nothing.
        Raises:
            mmm_fusion.InputError: A tensor does not fit the fusion method, or text and state disagree in the batch.
        """
        x = self.fusion.join(text, state.memory, text_mask=text_mask)
        return past_padding(lambda x: self.run(x, state.layers)[0], x, text_mask)

    def check_fusion_method(self) -> str:
        """Print the fusion methods that are available and the one in use; return its name."""
        names = ", ".join(method.name for method in mmm_fusion.available())
        print(f"Fusion methods available: {names}. In use: {self.fusion.name}.")
        return self.fusion.name
