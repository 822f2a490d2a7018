"""`MultiModalMambaBlock`: the original's example, every argument's effect, masks, encoders and errors."""

import pytest
import torch
from torch import nn

import mmm_fusion
from mmm_block import ImageTokens, MultiModalMambaBlock
from mmm_core import ShapeError

METHODS = [method.name for method in mmm_fusion.available()]
methods = pytest.mark.parametrize("method", METHODS)
BEFORE_TEXT = {
    "concat": lambda y, x: y * x,
    "visual_expert": lambda y, x: y * x,
    "perceiver": lambda y, x: 16,
    "q_former": lambda y, x: 16,
    "mobilevlm": lambda y, x: -(-y // 2) * -(-x // 2),
    "ldp_v2": lambda y, x: -(-y // 2) * -(-x // 2),
}
"""The image tokens that stand before the text, for a grid of y by x patches; none for the other methods."""
SMALL = {
    "dim": 16,
    "depth": 2,
    "dropout": 0.0,
    "heads": 2,
    "d_state": 4,
    "image_size": (16, 24),
    "patch_size": 8,
    "encoder_dim": 12,
    "encoder_depth": 2,
    "encoder_heads": 2,
}  # 2 x 3 patches


def small(**changes):
    block = MultiModalMambaBlock(**SMALL | changes).eval()
    with torch.no_grad():
        for parameter in block.fusion.parameters():
            if not parameter.any():  # a gate that is closed at the start, say
                parameter.normal_(std=0.3)
    return block


@methods
def test_the_originals_example_runs(method):
    text, image = torch.randn(1, 16, 64), torch.randn(1, 3, 64, 64)
    model = MultiModalMambaBlock(
        dim=64,
        depth=5,
        dropout=0.1,
        heads=4,
        d_state=16,
        image_size=64,
        patch_size=16,
        encoder_dim=64,
        encoder_depth=5,
        encoder_heads=4,
        fusion_method=method,
    )
    m = 16 + BEFORE_TEXT.get(method, lambda y, x: 0)(4, 4)
    assert model(text, image).shape == (1, m, 64)


def test_check_fusion_method_prints_and_returns_the_name(capsys):
    assert small(fusion_method="concat").check_fusion_method() == "concat"
    assert capsys.readouterr().out == (
        f"Fusion methods available: {', '.join(m.name for m in mmm_fusion.available())}. In use: concat.\n"
    )
    assert small().check_fusion_method() == "mlp"


@pytest.mark.parametrize(
    ("change", "method", "part"),
    [
        ({"dim": 20}, "mlp", "layers."),
        ({"dim": 20}, "mlp", "fusion."),
        ({"depth": 3}, "mlp", "layers."),
        ({"d_state": 5}, "mlp", "layers."),
        ({"expand": 3}, "mlp", "layers."),
        ({"d_conv": 3}, "mlp", "layers."),
        ({"image_size": 24}, "mlp", "encoder.pos_embed"),
        ({"patch_size": 4}, "mlp", "encoder.patch_embed"),
        ({"encoder_dim": 16}, "mlp", "encoder."),
        ({"encoder_depth": 3}, "mlp", "encoder.blocks."),
        ({"channels": 1}, "mlp", "encoder.patch_embed"),
        ({"fusion_method": "concat"}, "mlp", "fusion."),
        ({"fusion_options": {"ratio": 2.0}}, "visual_expert", "fusion."),
    ],
)
def test_an_argument_changes_the_parameters_it_names(change, method, part):
    def shapes(block):
        return {name: p.shape for name, p in block.named_parameters()}

    before, after = shapes(small(fusion_method=method)), shapes(small(**{"fusion_method": method} | change))
    changed = {name for name, _ in before.items() ^ after.items()}
    assert any(name.startswith(part) for name in changed)


def test_depth_is_the_number_of_mamba_layers():
    for depth in (1, 2, 5):
        block = small(depth=depth)
        assert len(block.layers) == depth
        ran = []
        for layer in block.layers:
            layer.mixer.register_forward_hook(lambda *_, ran=ran: ran.append(1))
        block(torch.randn(2, 3, 16), torch.randn(2, 3, 16, 24))
        assert len(ran) == depth


@pytest.mark.parametrize(("argument", "method"), [("heads", "visual_expert"), ("encoder_heads", "mlp")])
def test_heads_change_the_result_at_equal_weights(argument, method):
    text, image = torch.randn(2, 5, 16), torch.randn(2, 3, 16, 24)
    one, four = (small(**{argument: heads, "fusion_method": method}) for heads in (1, 4))
    four.load_state_dict(one.state_dict())
    assert not torch.allclose(one(text, image), four(text, image), atol=1e-5)


@methods
def test_dropout_acts_in_training_only(method):
    text, image = torch.randn(2, 5, 16), torch.randn(2, 3, 16, 24)
    block = small(dropout=0.5, fusion_method=method)
    assert torch.equal(block(text, image), block(text, image))
    block.train()
    assert not torch.equal(block(text, image), block(text, image))
    without = small(dropout=0.0, fusion_method=method).train()
    assert torch.equal(without(text, image), without(text, image))


@methods
@pytest.mark.parametrize("part", ["encoder", "fusion", "layers"])
def test_dropout_reaches_each_part(method, part):
    text, image = torch.randn(2, 5, 16), torch.randn(2, 3, 16, 24)
    block = small(dropout=0.5, fusion_method=method)
    getattr(block, part).train()
    assert not torch.equal(block(text, image), block(text, image))


@methods
@pytest.mark.parametrize("l", [1, 3, 6, 17])
def test_any_text_length_and_image_shape(method, l):
    block = small(fusion_method=method)
    for y, x in ((16, 24), (8, 8), (40, 16)):
        out = block(torch.randn(3, l, 16), torch.randn(3, 3, y, x))
        before = BEFORE_TEXT.get(method, lambda y, x: 0)(y // 8, x // 8)
        assert out.shape == (3, before + l, 16)


@methods
def test_the_image_changes_what_the_text_says_and_text_alone_works(method):
    block, text, image = small(fusion_method=method), torch.randn(2, 5, 16), torch.randn(2, 3, 16, 24)
    fused = block.fuse(text, image)
    said = block.backbone(fused)[:, fused.text]
    alone = block(text)
    assert alone.shape == (2, 5, 16)
    assert (said - alone).abs().max() > 1e-3
    other = block.fuse(text, image.flip(0))
    assert (said - block.backbone(other)[:, other.text]).abs().max() > 1e-4


@methods
def test_it_is_causal_in_the_text(method):
    block, text, image = small(fusion_method=method), torch.randn(2, 7, 16), torch.randn(2, 3, 16, 24)
    changed = text.clone()
    changed[:, 4:] = torch.randn(2, 3, 16)
    place = block.fuse(text, image).text
    before, after = block(text, image)[:, place], block(changed, image)[:, place]
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


@methods
def test_padding_changes_nothing_wherever_it_stands(method):
    block, image = small(fusion_method=method), torch.randn(3, 3, 16, 24)
    masks = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1], [0, 1, 0, 1, 1, 0]], dtype=torch.bool)
    text = torch.randn(3, 6, 16)
    padded = text.masked_fill(~masks[..., None], float("nan"))
    fused = block.fuse(padded, image, text_mask=masks)
    together = block.backbone(fused)[:, fused.text]
    for row, mask in enumerate(masks):
        single = block.fuse(text[row : row + 1, mask], image[row : row + 1])
        alone = block.backbone(single)[:, single.text]
        torch.testing.assert_close(together[row : row + 1, mask], alone, rtol=1e-4, atol=1e-5)


@methods
def test_rows_with_and_without_an_image_in_one_batch(method):
    block, text, image = small(fusion_method=method), torch.randn(2, 5, 16), torch.randn(2, 3, 16, 24)
    image_mask = torch.tensor([[True] * 6, [False] * 6])
    fused = block.fuse(text, image, image_mask=image_mask)
    together = block.backbone(fused)[:, fused.text]
    single = block.fuse(text[:1], image[:1])
    torch.testing.assert_close(together[:1], block.backbone(single)[:, single.text], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[1:], block(text[1:]), rtol=1e-4, atol=1e-5)


@methods
def test_an_image_encoded_once_answers_many_texts(method):
    block, text, image = small(fusion_method=method), torch.randn(4, 5, 16), torch.randn(2, 3, 16, 24)
    tokens, grid = block.encode(image)
    assert grid == (2, 3)
    which = torch.tensor([0, 0, 1, 0])
    once = block(text, ImageTokens(tokens[which], grid))
    torch.testing.assert_close(once, block(text, image[which]), rtol=1e-4, atol=1e-5)


@methods
def test_every_parameter_learns(method):
    block = small(fusion_method=method).train()
    block(torch.randn(2, 5, 16), torch.randn(2, 3, 16, 24)).square().sum().backward()
    still = {name for name, p in block.named_parameters() if p.grad is None or not p.grad.any()}
    assert not still


@methods
def test_a_state_dict_makes_the_same_block(method):
    text, image = torch.randn(2, 5, 16), torch.randn(2, 3, 16, 24)
    one, two = small(fusion_method=method), small(fusion_method=method)
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(text, image), two(text, image))


@methods
def test_compiles_to_one_graph(method):
    text, image = torch.randn(2, 5, 16), torch.randn(2, 3, 16, 24)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    block = small(fusion_method=method)
    torch.compiler.reset()  # else many methods in one process reach the compiler's limit
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    real = (slice(None), slice(0, 3))
    torch.testing.assert_close(
        compiled(text, image, text_mask=mask)[real], block(text, image, text_mask=mask)[real], rtol=1e-4, atol=1e-5
    )


def test_each_layer_adds_to_what_it_reads():
    block = small()
    for layer in block.layers:
        nn.init.zeros_(layer.mixer.out_proj.weight)
    fused = block.fuse(torch.randn(2, 5, 16), torch.randn(2, 3, 16, 24))
    torch.testing.assert_close(block.backbone(fused), block.norm_f(fused.tokens))


def test_more_layers_start_with_smaller_branches():
    one, sixteen = (small(dim=64, depth=depth).layers[0].mixer.out_proj.weight.std().item() for depth in (1, 16))
    assert one / sixteen == pytest.approx(4, rel=0.1)


def test_patches_need_not_be_square():
    assert small(patch_size=(4, 8)).encode(torch.randn(1, 3, 16, 24)).grid == (4, 3)


def test_another_encoder_takes_the_vits_place():
    class Pixels(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(3, 12)

        def forward(self, image):
            return self.proj(image.flatten(2).mT)

    block = small(encoder=Pixels())
    assert not [name for name, _ in block.named_parameters() if name.startswith("encoder.blocks")]
    assert block(torch.randn(2, 5, 16), torch.randn(2, 3, 4, 5)).shape == (2, 5, 16)
    assert block.encode(torch.randn(2, 3, 4, 5)).grid is None
    block.encoder.proj = nn.Linear(3, 13)
    with pytest.raises(ShapeError) as raised:
        block.encode(torch.randn(2, 3, 4, 5))
    assert str(raised.value) == (
        "MultiModalMambaBlock: `encoder` must return (b, p, encoder_dim) with b = 2 and encoder_dim = 12, "
        "got (2, 20, 13). Wrap it so that it returns its tokens."
    )
    block.encoder.forward = lambda image: (image, image)
    with pytest.raises(ShapeError, match=r"got tuple\. Wrap it so that"):
        block(torch.randn(2, 5, 16), torch.randn(2, 3, 4, 5))
    with pytest.raises(ShapeError) as raised:
        block(torch.randn(2, 5, 16), torch.randn(3, 4, 5))
    assert str(raised.value) == "MultiModalMambaBlock: `image` must be (b, c, y, x), got (3, 4, 5)."


def test_names_are_the_fields():
    names = {name for name, _ in small(depth=1, encoder_depth=1).named_parameters()}
    assert {
        "encoder.patch_embed.proj.weight",
        "encoder.pos_embed",
        "encoder.blocks.0.attn.qkv.weight",
        "encoder.blocks.0.mlp.fc2.bias",
        "encoder.norm.weight",
        "layers.0.norm.weight",
        "layers.0.mixer.in_proj.weight",
        "layers.0.mixer.A_log",
        "norm_f.weight",
    } <= names


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (
            (torch.zeros(2, 5, 16), torch.zeros(3, 3, 16, 24)),
            ShapeError,
            "MultiModalMambaBlock: `image` must have b = 2 rows as `text`, got 3. "
            "To ask several questions of an image, index the tokens that encode() returns.",
        ),
        (
            (torch.zeros(()), torch.zeros(2, 3, 16, 24)),
            mmm_fusion.InputError,
            "fusion method 'mlp': `text` must be (b, l, dim) = (b, l, 16), got ().",
        ),
        (
            (torch.zeros(2, 5, 20), torch.zeros(2, 3, 16, 24)),
            mmm_fusion.InputError,
            "fusion method 'mlp': `text` must be (b, l, dim) = (b, l, 16), got (2, 5, 20).",
        ),
    ],
)
def test_a_wrong_input_is_named(arguments, error, text):
    with pytest.raises(error) as raised:
        small()(*arguments)
    assert str(raised.value) == text


def test_an_image_that_the_patches_do_not_divide_is_named():
    with pytest.raises(ValueError, match="divisible by patch_size") as raised:
        small()(torch.zeros(2, 5, 16), torch.zeros(2, 3, 20, 24))
    assert "(8, 8)" in str(raised.value)
    assert "(20, 24)" in str(raised.value)


def test_a_mask_that_is_not_bool_is_named():
    with pytest.raises(mmm_fusion.InputError, match="`text_mask` must be bool"):
        small()(torch.zeros(2, 5, 16), text_mask=torch.full((2, 5), float("nan")))
    with pytest.raises(mmm_fusion.InputError, match="`image_mask` must be None where `image` is None"):
        small()(torch.zeros(2, 5, 16), image_mask=torch.ones(2, 6, dtype=torch.bool))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="must be at least 1") as raised:
        small(depth=0)
    assert str(raised.value) == "MultiModalMambaBlock: `depth` must be at least 1, got 0."
    with pytest.raises(ValueError, match="fusion_options") as raised:
        small(fusion_options={"heads": 2, "dim": 3})
    assert str(raised.value) == (
        "MultiModalMambaBlock: `fusion_options` must be the method's own, got dim, heads. "
        "Give these to the block itself."
    )
    with pytest.raises(mmm_fusion.UnknownMethodError, match="fusion method 'conct' is not registered"):
        small(fusion_method="conct")
