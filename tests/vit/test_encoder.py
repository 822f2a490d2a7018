"""The encoder as it is used: shapes, independence of rows, training, precision, compilation."""

from __future__ import annotations

import copy

import pytest
import torch

from mmm_vit import PatchEmbed, Tokens, VisionTransformer, ViTConfig
from mmm_vit.block import drop_path

EVERYTHING = {"class_token": True, "registers": 2, "layer_scale": 0.5}
VARIANTS = [{}, {"positions": "sincos"}, EVERYTHING, {**EVERYTHING, "prefix_positions": False}]


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("size", [(12, 20), (3, 4), (3, 40), (24, 8)])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_shapes(make_vit, options, size, batch):
    model = make_vit(**options)
    h, w = model.grid(*size)
    assert (3 * h, 4 * w) == size
    tokens = model.encode(torch.randn(batch, 3, *size))
    assert isinstance(tokens, Tokens)
    assert tokens.patches.shape == (batch, h * w, model.dim)
    assert tokens.prefix.shape == (batch, model.config.prefix_length, model.dim)


def test_what_a_model_says_of_itself(make_vit):
    model = make_vit()
    assert (model.dim, model.patch_size, model.config.grid) == (16, (3, 4), (4, 5))
    assert model.grid(6, 24) == (2, 6)


def test_patches_are_those_of_a_strided_convolution(image):
    embed = PatchEmbed(3, 16, (3, 4))
    expected = embed.proj(image).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(image), expected)
    assert embed(image).is_contiguous()


def test_patches_are_in_raster_order(make_vit):
    model = make_vit(depth=1, layer_scale=0.0, final_norm=False)  # the block passes its input on
    blank = torch.zeros(1, 3, 12, 20)
    dotted = blank.clone()
    dotted[0, :, 7, 13] = 1.0  # row 2 of patches, column 3
    with torch.no_grad():
        for scale in (model.blocks[0].ls1, model.blocks[0].ls2):
            scale.gamma.zero_()
        changed = (model(dotted) - model(blank)).abs().sum(-1)[0]
    assert changed.nonzero().flatten().tolist() == [2 * 5 + 3]


def test_forward_is_the_patches_of_encode(make_vit, image):
    model = make_vit(**EVERYTHING)
    assert torch.equal(model(image), model.encode(image).patches)


@pytest.mark.parametrize("options", VARIANTS)
def test_rows_are_independent(make_vit, options, image):
    model = make_vit(**options)
    torch.testing.assert_close(model(image)[1:], model(image[1:]))
    spoilt = image.clone()
    spoilt[0] = torch.nan
    tokens = model.encode(spoilt)
    assert tokens.patches[0].isnan().all()
    assert torch.equal(tokens.patches[1], model(image)[1])


def test_strided_images(make_vit, image):
    model = make_vit()
    channels_last = image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(model(channels_last), model(image))
    assert torch.equal(model(image[:1].expand(3, -1, -1, -1)), model(image[:1].repeat(3, 1, 1, 1)))


def test_features_come_in_the_order_asked_for(make_vit, image):
    model = make_vit(**EVERYTHING)
    first, second, last = model.features(image, [0, 1, 2])
    got = model.features(image, (-1, 0, 2, -2))
    assert [torch.equal(*each) for each in zip(got, (last, first, last, second), strict=True)] == [True] * 4
    assert first.shape == (2, 20, 16)
    assert not torch.allclose(first, last)


def test_features_with_norm_end_in_forward(make_vit, image):
    model = make_vit(**EVERYTHING)
    plain, normed = model.features(image, [-1])[0], model.features(image, [-1], norm=True)[0]
    torch.testing.assert_close(normed, model(image))
    torch.testing.assert_close(normed, model.norm(plain))


def test_features_run_no_block_in_vain(make_vit, image):
    model = make_vit()
    ran = []
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    model.features(image, [1, 0])
    assert ran == [0, 1]
    assert model.features(image, []) == []
    assert ran == [0, 1]


@pytest.mark.parametrize("rate", ["dropout", "drop_path"])
def test_rates_act_in_training_only(make_vit, image, rate):
    model, plain = make_vit(**{rate: 0.5}), make_vit()
    assert torch.equal(model(image), plain(image))
    model.train()
    assert not torch.allclose(model(image), model(image))
    assert torch.equal(plain.train()(image), plain.eval()(image))


def test_dropout_follows_the_positions_and_every_dense_layer_but_qkv(make_vit, image):
    model = make_vit(dropout=0.5, depth=1).train()
    x = torch.randn(1, 7, 16)
    seen = [model.blocks[0].attn(x), model.blocks[0].mlp(x)]
    for inside in (model.blocks[0], model.blocks[0].mlp.fc2):  # the positions, the hidden layer
        inside.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(image)
    assert [0.25 < (part == 0).float().mean() < 0.75 for part in seen] == [True] * 4


def test_drop_path_drops_whole_rows_and_keeps_the_mean():
    x = torch.randn(4000, 3, 2)
    y = drop_path(x, 0.25, training=True)
    dropped = (y == 0).all(dim=(1, 2))
    assert torch.equal(y[~dropped], x[~dropped] * (1 / 0.75))
    assert 0.22 < dropped.float().mean() < 0.28
    assert drop_path(x, 0.25, training=False) is x


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("size", [(12, 20), (6, 28)])
def test_gradient_reaches_every_parameter_and_pixel(make_vit, options, size):
    model = make_vit(**options).train()
    image = torch.randn(2, 3, *size, requires_grad=True)
    (model(image) * torch.randn(model.dim)).sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert image.grad.ne(0).all()


def test_initialisation():
    model = VisionTransformer(ViTConfig(image_size=64, patch_size=4, dim=64, depth=2, heads=4, **EVERYTHING))
    for name, parameter in model.state_dict().items():
        if name.endswith(("qkv.weight", "attn.proj.weight", "fc1.weight", "fc2.weight")):
            assert parameter.std() == pytest.approx((2 / sum(parameter.shape)) ** 0.5, rel=0.05)
        if name == "pos_embed":
            assert parameter.std() == pytest.approx(0.02, rel=0.05)
        if name.endswith(("qkv.bias", "fc1.bias", "norm1.bias")):
            assert not parameter.any()


def test_tokens_and_positions_are_marked_against_weight_decay(make_vit):
    model = make_vit(**EVERYTHING)
    marked = {name for name, p in model.named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert marked == {"cls_token", "reg_token", "pos_embed"}


def test_state_dict_round_trip(make_vit, image):
    model = make_vit(**EVERYTHING)
    other = VisionTransformer(model.config).eval()
    assert not torch.allclose(other(image), model(image))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(image), model(image))
    assert torch.equal(copy.deepcopy(model)(image), model(image))


def test_sincos_positions_are_no_state(make_vit):
    assert "pos_embed" not in make_vit(positions="sincos").state_dict()


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("size", [(12, 20), (6, 28)])
def test_bfloat16_is_near_float32(make_vit, options, size):
    model, image = make_vit(**options), torch.randn(2, 3, *size)
    exact = model(image)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(image)
    half = copy.deepcopy(model).bfloat16()(image)
    assert half.dtype == torch.bfloat16
    for got in (mixed, half):
        assert (got.float() - exact).norm() < 0.03 * exact.norm()


def test_output_has_the_dtype_of_the_weights(make_vit, image):
    model = make_vit()
    for dtype in (torch.float64, torch.float16):
        assert torch.equal(model(image.to(dtype)), model(image.to(dtype).float()))
        assert copy.deepcopy(model).to(dtype)(image).dtype == dtype
    double = copy.deepcopy(model).double()(image)
    torch.testing.assert_close(double.float(), model(image))


@pytest.mark.parametrize("options", [{}, {"positions": "sincos"}, {**EVERYTHING, "dropout": 0.2, "drop_path": 0.2}])
def test_compiles_as_one_graph(make_vit, options):
    model = make_vit(depth=2, **options)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for size in ((12, 20), (6, 28), (24, 8)):  # from the second on, sizes are dynamic
        image = torch.randn(2, 3, *size)
        torch.testing.assert_close(compiled(image), model(image))
    compiled.train()(torch.randn(2, 3, 12, 20)).sum().backward()
    assert model.blocks[0].attn.qkv.weight.grad.any()


def test_methods_compile_too(make_vit, image):
    model = make_vit(**EVERYTHING)
    torch.compiler.reset()
    features = torch.compile(model.features, fullgraph=True, backend="aot_eager")
    for got, expected in zip(features(image, [0, -1]), model.features(image, [0, -1]), strict=True):
        torch.testing.assert_close(got, expected)


def test_export(make_vit, image):
    model = make_vit(**EVERYTHING)
    program = torch.export.export(model, (image,), dynamic_shapes=({0: torch.export.Dim("b")},))
    three = torch.randn(3, 3, 12, 20)
    torch.testing.assert_close(program.module()(three), model(three))
