"""An image read once and asked often gives what a plain call gives, for every fusion method."""

import pytest
import torch

import mmm_fusion
from mmm_block import ImageTokens, MultiModalMambaBlock

METHODS = [method.name for method in mmm_fusion.available()]
methods = pytest.mark.parametrize("method", METHODS)
close = {"rtol": 0, "atol": 1e-5}
SIZES = {"dropout": 0.0, "heads": 2, "d_state": 4, "image_size": (16, 24), "patch_size": 8}


class Opaque(mmm_fusion.FusionMethod):
    """Attention from words to image tokens that stand before them, all in `forward`: it reads nothing ahead."""

    name = "opaque"

    def __init__(self, dim, image_dim, *, heads, dropout):
        super().__init__()
        self.inner = mmm_fusion.create("visual_expert", dim, image_dim, heads=heads, dropout=dropout)
        self.dim, self.image_dim = dim, image_dim

    def forward(self, text, image, *, text_mask=None, image_mask=None, image_grid=None):
        return self.inner(text, image, text_mask=text_mask, image_mask=image_mask, image_grid=image_grid)


def block(method: str) -> MultiModalMambaBlock:
    """With every parameter moved, so that a gate which is zero at the start is open."""
    torch.manual_seed(0)
    opaque = method == "opaque"
    made = MultiModalMambaBlock(
        16, 2, encoder_dim=12, encoder_depth=1, encoder_heads=2, fusion_method="mlp" if opaque else method, **SIZES
    )
    if opaque:
        made.fusion = Opaque(16, 12, heads=2, dropout=0.0)
    with torch.no_grad():
        for parameter in made.fusion.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made.eval()


def plain(made, text, image, **masks):
    fused = made.fuse(text, image, **masks)
    return made.backbone(fused)[:, fused.text]


@pytest.mark.parametrize("method", [*METHODS, "opaque"])
def test_many_texts_about_few_images(method):
    made, image = block(method), torch.randn(3, 3, 16, 24)
    which = torch.tensor([2, 0, 0, 1, 0])
    text = torch.randn(5, 7, 16)
    read = made.read_image(image)
    torch.testing.assert_close(made.read_text(text, read.rows(which)), plain(made, text, image[which]), **close)
    again = torch.randn(5, 1, 16)
    torch.testing.assert_close(made.read_text(again, read.rows(which)), plain(made, again, image[which]), **close)


@pytest.mark.parametrize("method", [*METHODS, "opaque"])
def test_padding_of_texts_and_images(method):
    made = block(method)
    tokens = torch.randn(3, 6, 12)
    image_mask = torch.tensor([[1, 1, 0, 0, 1, 0], [0] * 6, [0, 1, 1, 1, 1, 1]], dtype=torch.bool)
    encoded = ImageTokens(tokens.masked_fill(~image_mask[..., None], float("nan")), (2, 3))
    text_mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 0, 1, 0], [1] * 5], dtype=torch.bool)
    text = torch.randn(4, 5, 16).masked_fill(~text_mask[..., None], float("nan"))
    which = torch.tensor([0, 1, 2, 2])
    seen = made.read_text(text, made.read_image(encoded, image_mask=image_mask).rows(which), text_mask=text_mask)
    expected = plain(
        made, text, ImageTokens(encoded.tokens[which], (2, 3)), text_mask=text_mask, image_mask=image_mask[which]
    )
    torch.testing.assert_close(seen[text_mask], expected[text_mask], **close)


@methods
def test_gradients_reach_the_image_through_the_state(method):
    made, image, which = block(method).double(), torch.randn(2, 3, 16, 24).double(), torch.tensor([1, 0, 1])
    text, weight = torch.randn(3, 4, 16).double(), torch.randn(3, 4, 16).double()
    gradients = []
    for answer in (
        lambda pixels: made.read_text(text, made.read_image(pixels).rows(which)),
        lambda pixels: plain(made, text, pixels[which]),
    ):
        pixels = image.clone().requires_grad_()
        (answer(pixels) * weight).sum().backward()
        gradients.append(pixels.grad)
    assert gradients[0].abs().max() > 1e-6
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-8)


def test_the_encoder_runs_once_and_the_layers_read_the_text_alone():
    made, seen = block("concat"), []
    made.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(("encoder", *inputs[0].shape[:1])))
    made.layers[0].register_forward_pre_hook(lambda module, inputs: seen.append(("layer", *inputs[0].shape[:2])))
    read = made.read_image(torch.randn(2, 3, 16, 24)).rows(torch.tensor([0, 1, 1]))
    made.read_text(torch.randn(3, 4, 16), read)
    assert seen == [("encoder", 2), ("layer", 2, 6), ("layer", 3, 4)]


def test_the_cost_of_a_text_does_not_grow_with_the_image():
    """`state` keeps no image token: what `read_image` leaves has one size for every image."""
    made = block("state")
    sizes = []
    for shape in ((16, 24), (32, 48)):
        state = made.read_image(torch.randn(2, 3, *shape))
        sizes.append([tuple(each.shape) for each in (state.memory.prefix, *state.memory.context)])
        assert state.layers == ()
    assert sizes[0] == sizes[1]


def test_what_the_layers_have_read_of_an_image_is_not_kept():
    made = block("concat")
    state = made.read_image(torch.randn(2, 3, 16, 24))
    assert state.memory.prefix.shape == (2, 0, 16)
    assert state.memory.prefix.untyped_storage().nbytes() == 0
    assert len(state.layers) == 2


def test_state_and_text_must_agree():
    made = block("concat")
    with pytest.raises(mmm_fusion.InputError) as raised:
        made.read_text(torch.randn(3, 4, 16), made.read_image(torch.randn(2, 3, 16, 24)))
    assert str(raised.value) == (
        "fusion method 'concat': `memory` must have b = 3 rows as `text`, got 2. "
        "Give each text the row of its image: memory.rows(index)."
    )
