"""`MultiModalMamba`: texts in parts, padded and packed; images anywhere; gradients; what the config's fields do."""

import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import mmm_fusion
from mmm_block import ImageTokens, InputError, MultiModalMamba, MultiModalMambaConfig
from mmm_core import Mamba

METHODS = [method.name for method in mmm_fusion.available()]
methods = pytest.mark.parametrize("method", METHODS)
MARK = 3
TEXTS = [[5, MARK, 7, 8, MARK, 9, 10], [11, 12, 13], [MARK, 14], [15, MARK, MARK, 16, 17], [18]]
IMAGES = [text.count(MARK) for text in TEXTS]  # 5
PACKED = torch.tensor([[token for text in TEXTS for token in text]])
BOUNDS = torch.tensor([0, *map(len, TEXTS)]).cumsum(0)
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def pictures(n=5):
    return torch.randn(n, 3, 16, 24, generator=torch.Generator().manual_seed(1))


def own_images(row, images):
    start = sum(IMAGES[:row])
    return images[start : start + IMAGES[row]] if IMAGES[row] else None


def padded(side, pad=20):
    """All texts as rows of one batch, the padding on one side, or on both, or anywhere."""
    longest = max(map(len, TEXTS)) + 2
    ids, mask = torch.full((len(TEXTS), longest), pad), torch.zeros(len(TEXTS), longest, dtype=torch.bool)
    for row, text in enumerate(TEXTS):
        rest = longest - len(text)
        before = {"left": rest, "right": 0, "both": rest // 2}.get(side)
        places = (
            torch.randperm(longest)[: len(text)].sort().values if before is None else before + torch.arange(len(text))
        )
        ids[row, places], mask[row, places] = torch.tensor(text), True
    return ids, mask


def separate(model, images, **options):
    return [model(torch.tensor([text]), own_images(row, images), **options) for row, text in enumerate(TEXTS)]


@methods
@pytest.mark.parametrize("side", ["left", "right", "both", "anywhere"])
def test_padded_rows_are_as_separate_rows(small, method, side):
    model, images = small(fusion_method=method), pictures()
    ids, mask = padded(side)
    ids[0, ~mask[0]] = MARK  # at padding it marks nothing
    out = model(ids, images, attention_mask=mask, return_state=True)
    last = model(ids, images, attention_mask=mask.long(), last_only=True).logits
    for row, one in enumerate(separate(model, images, return_state=True)):
        torch.testing.assert_close(out.logits[row, mask[row]], one.logits[0], **CLOSE)
        torch.testing.assert_close(last[row], one.logits[0, -1], **CLOSE)
        for ours, theirs in zip(out.state.layers, one.state.layers, strict=True):
            torch.testing.assert_close(ours.ssm[row], theirs.ssm[0], **CLOSE)
            torch.testing.assert_close(ours.conv[row], theirs.conv[0], **CLOSE)
        assert out.state.length[row] == one.state.length[0] == len(TEXTS[row])


@methods
def test_packed_rows_are_as_separate_rows(small, method):
    model, images = small(fusion_method=method), pictures()
    out = model(PACKED, images, cu_seqlens=BOUNDS, return_state=True)
    last = model(PACKED, images, cu_seqlens=BOUNDS.int(), last_only=True).logits
    for row, one in enumerate(separate(model, images, return_state=True)):
        torch.testing.assert_close(out.logits[0, BOUNDS[row] : BOUNDS[row + 1]], one.logits[0], **CLOSE)
        torch.testing.assert_close(last[row], one.logits[0, -1], **CLOSE)
        torch.testing.assert_close(out.state.layers[1].ssm[row], one.state.layers[1].ssm[0], **CLOSE)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@methods
def test_padded_and_packed_rows_have_the_gradients_of_separate_rows_in_training(small, method):
    model, images = small(fusion_method=method).train().double(), pictures().double().requires_grad_()
    weights = [torch.randn(len(text), 29, dtype=torch.float64) for text in TEXTS]
    outs = separate(model, images)
    expected = gradients(model, sum((o.logits[0] * w).sum() for o, w in zip(outs, weights, strict=True)))
    expected_images, images.grad = images.grad, None
    assert all(grad is not None for grad in expected.values())
    ids, mask = padded("anywhere")
    for logits in (
        model(ids, images, attention_mask=mask).logits[mask],
        model(PACKED, images, cu_seqlens=BOUNDS).logits[0],
    ):
        found = gradients(model, (logits * torch.cat(weights)).sum())
        for name, grad in expected.items():
            torch.testing.assert_close(found[name], grad, atol=1e-8, rtol=1e-6, msg=name)
        torch.testing.assert_close(images.grad, expected_images, atol=1e-8, rtol=1e-6)
        images.grad = None


@st.composite
def cut_rows(draw):
    """Rows of texts with marks in them, each cut in the same number of parts; some of these are empty."""
    b, parts = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    text = st.lists(st.sampled_from([MARK, 5, 7, 8, 9, 10]), max_size=4)
    return [[draw(text) for _ in range(parts)] for _ in range(b)]


def aligned(texts, side):
    """Texts as rows of a batch, the shorter ones padded on a side."""
    longest = max(map(len, texts))
    mask = torch.tensor([[place < len(text) for place in range(longest)] for text in texts])
    mask = mask.flip(1) if side == "left" else mask
    return torch.full(mask.shape, 20).masked_scatter(
        mask, torch.tensor([token for text in texts for token in text])
    ), mask


@methods
@settings(max_examples=40)
@given(rows=cut_rows(), side=st.sampled_from(["left", "right"]))
def test_any_split_of_a_text_gives_the_logits_of_the_whole(small, method, rows, side):
    """A part of each row in each call, ragged; where each row has one token that is no mark, as a step."""
    assume(all(map(any, rows)))
    model, wholes = small(fusion_method=method), [[token for part in row for token in part] for row in rows]
    images = [torch.randn(whole.count(MARK), 3, 16, 24) for whole in wholes]
    with torch.no_grad():
        expected = [
            model(torch.tensor([whole]), own if len(own) else None).logits[0]
            for whole, own in zip(wholes, images, strict=True)
        ]
        state, found = None, [[] for _ in rows]
        for part in filter(any, zip(*rows, strict=True)):
            counts = [text.count(MARK) for text in part]
            own = torch.cat([pixels[:count] for pixels, count in zip(images, counts, strict=True)])
            images = [pixels[count:] for pixels, count in zip(images, counts, strict=True)]
            ids, mask = aligned(part, side)
            if state is not None and ids.shape[1] == 1 and mask.all() and not sum(counts):
                logits = model.step(ids[:, 0], state)[:, None]
            else:
                options = {} if mask.all() else {"attention_mask": mask}
                out = model(ids, own if len(own) else None, state=state, return_state=True, **options)
                logits, state = out.logits, out.state
            for row, real in enumerate(mask):
                found[row] += list(logits[row, real])
    for ours, whole in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.stack(ours), whole, **CLOSE)
    assert state.length.tolist() == [len(whole) for whole in wholes]


def hastily(mixer, x):
    selected = Mamba._selected_by(mixer, x)
    return {**selected, "delta": selected["delta"] + 5}


class Hasty(Mamba):
    _selected_by = hastily


def half_as_much(mixer):
    return lambda x, state: Mamba.step(mixer, x, state) / 2


@pytest.mark.parametrize(
    ("change", "goes_on"),
    [
        (lambda layer: setattr(layer.mixer, "__class__", Hasty), True),
        (lambda layer: setattr(layer.mixer, "_selected_by", partial(hastily, layer.mixer)), True),
        (lambda layer: setattr(layer.mixer, "step", half_as_much(layer.mixer)), False),
        (lambda layer: setattr(layer, "step", lambda x, state: x), False),
    ],
)
@torch.no_grad()
def test_a_step_is_that_of_each_layer(small, change, goes_on):
    model, ids = small(image_token_id=None), torch.tensor([[5, 6, 7, 8]])
    before = model.step(ids[:, 3], model(ids[:, :3], return_state=True).state)
    change(model.backbone.layers[1])
    after = model.step(ids[:, 3], model(ids[:, :3], return_state=True).state)
    assert (after - before).abs().max() > 1e-3
    if goes_on:
        torch.testing.assert_close(after, model(ids).logits[:, 3], **CLOSE)


@methods
def test_token_by_token(small, method):
    model, images = small(fusion_method=method), pictures(2)
    ids = torch.tensor([[5, MARK, 7, 8, 9, 10], [11, MARK, 12, 13, 14, 15]])
    expected = model(ids, images).logits
    out = model(ids[:, :3], images, return_state=True)
    torch.testing.assert_close(out.logits, expected[:, :3], **CLOSE)
    for place in range(3, 6):
        torch.testing.assert_close(model.step(ids[:, place], out.state), expected[:, place], **CLOSE)


@methods
def test_a_row_without_an_image_in_a_batch_is_as_in_a_batch_without_any(small, method):
    model = small(fusion_method=method)
    text = torch.tensor([[11, 12, 13]])
    batch = model(torch.tensor([[5, MARK, 7], [11, 12, 13]]), pictures(1)).logits
    torch.testing.assert_close(batch[1:], model(text).logits, **CLOSE)


@methods
def test_each_image_changes_what_stands_behind_its_mark_alone(small, method):
    model, images = small(fusion_method=method), pictures()
    ids, mask = padded("right")
    before = model(ids, images, attention_mask=mask).logits
    for number in range(len(images)):
        changed = images.clone()
        changed[number] += 1
        other = (model(ids, changed, attention_mask=mask).logits - before).abs().amax(2) > 1e-5
        marks = (ids == MARK).flatten().cumsum(0).view(ids.shape) > number
        row = [row for row, count in enumerate(IMAGES) for _ in range(count)][number]
        here = marks & mask & (torch.arange(len(TEXTS)) == row)[:, None]
        assert not (other & mask & ~here).any()
        assert other[here].any()


def count_encoder_rows(model):
    rows = []
    model.backbone.encoder.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    return rows


def test_text_alone_costs_no_encoder_time(small):
    model = small()
    rows = count_encoder_rows(model)
    ids, mask = padded("left")
    model(ids, pictures(), attention_mask=mask)
    assert rows == [5]  # the images, and nothing for the two rows without
    rows.clear()
    state = model(ids[:, -2:].where(ids[:, -2:] != MARK, 9), return_state=True).state
    model.step(torch.tensor([5] * 5), state)
    model(ids, model.backbone.encode(pictures()), attention_mask=mask)
    assert rows == [5]  # that of encode alone


def test_a_list_of_images_and_encoded_images(small):
    model, images = small(), pictures()
    ids, mask = padded("left")
    expected = model(ids, images, attention_mask=mask).logits
    torch.testing.assert_close(model(ids, list(images), attention_mask=mask).logits, expected)
    torch.testing.assert_close(model(ids, model.backbone.encode(images), attention_mask=mask).logits, expected)


@pytest.mark.parametrize(
    "fields", [{}, {"image_token_id": None}, {"image_token_id": None, "image_size": None}], ids=str
)
def test_no_images_in_any_form_are_none(small, fields):
    model, ids = small(**fields), torch.tensor([[5, 7, 8], [9, 10, 11]])
    rows = count_encoder_rows(model) if "image_size" not in fields else []
    expected = model(ids).logits
    nothing = ImageTokens(torch.zeros(0, 6, 12), (2, 3))
    for images in ([], torch.zeros(0, 3, 16, 24), nothing):
        assert torch.equal(model(ids, images).logits, expected)
    assert rows == []


@methods
@pytest.mark.parametrize("bounds", [[0, 0, 3], [0, 3, 3], [0, 2, 2, 3], [0, 0, 0, 3, 3]], ids=str)
@pytest.mark.parametrize("text", [[5, 7, 8], [5, MARK, 8]], ids=["words", "image"])
def test_packed_texts_may_be_empty(small, method, bounds, text):
    model, ids = small(fusion_method=method), torch.tensor([text])
    images = pictures(1) if MARK in text else None
    out = model(ids, images, cu_seqlens=torch.tensor(bounds), return_state=True)
    full = [row for row, (start, stop) in enumerate(itertools.pairwise(bounds)) if start < stop]
    dense = model(ids, images, cu_seqlens=torch.tensor([bounds[row] for row in full] + [3]), return_state=True)
    torch.testing.assert_close(out.logits, dense.logits, **CLOSE)
    assert out.state.length.tolist() == [stop - start for start, stop in itertools.pairwise(bounds)]
    after = model.step(torch.full((len(bounds) - 1,), 9), out.state)
    torch.testing.assert_close(after[full], model.step(torch.full((len(full),), 9), dense.state), **CLOSE)


def test_a_packed_text_that_is_empty_has_no_room_for_an_image(small):
    model = small(fusion_method="concat", image_token_id=None)
    with pytest.raises(InputError) as caught:
        model(torch.tensor([[5, 7, 8]]), pictures(2), cu_seqlens=torch.tensor([0, 0, 3]))
    assert str(caught.value) == (
        "MultiModalMamba: `cu_seqlens` must give each text with an image at least one token, got [0, 0, 3]. "
        "Leave empty texts and their images out."
    )


def test_without_a_mark_each_row_has_one_image_before_it(small):
    model, images = small(fusion_method="concat", image_token_id=None), pictures(2)
    ids = torch.tensor([[5, MARK, 7], [8, 9, 10]])  # 3 is a word like others
    out = model(ids, images, return_state=True)
    marked = small(fusion_method="concat", image_token_id=20)
    behind = torch.tensor([[20, 5, MARK, 7], [20, 8, 9, 10]])
    assert not torch.allclose(marked(behind, images).logits[:, 1:], out.logits)  # the mark is a token as well
    mask = torch.tensor([[True, True, True], [True, True, False]])
    ragged = model(ids, images, attention_mask=mask, return_state=True)
    torch.testing.assert_close(ragged.logits[mask], out.logits[mask], **CLOSE)
    torch.testing.assert_close(model(ids, state=out.state).logits[0], model(ids, state=ragged.state).logits[0], **CLOSE)
    assert not torch.allclose(model(ids).logits, out.logits, atol=1e-3)


def cross_entropy(model, text, images, asked):
    """The losses of one text, at the tokens that are asked for, by definition."""
    logits = model(torch.tensor([text]), images).logits[0].double().log_softmax(1)
    return [-logits[place - 1, text[place]] for place in range(1, len(text)) if place in asked and text[place] != MARK]


@pytest.mark.parametrize("side", ["left", "right", "anywhere", "packed"])
def test_the_loss_leaves_out_padding_marks_first_tokens_and_what_is_not_asked(small, side):
    model, images = small(), pictures()
    asked = [{0, 1, 2, 6}, {1, 2}, {0, 1}, {2, 3}, {0}]
    losses = [
        loss
        for row, text in enumerate(TEXTS)
        for loss in cross_entropy(model, text, own_images(row, images), asked[row])
    ]
    if side == "packed":
        ids, options = PACKED, {"cu_seqlens": BOUNDS}
        mask = torch.ones_like(ids, dtype=torch.bool)
    else:
        ids, mask = padded(side)
        options = {"attention_mask": mask}
    labels = ids.clone()
    wanted = torch.tensor([place in row for text, row in zip(TEXTS, asked, strict=True) for place in range(len(text))])
    labels[mask] = labels[mask].where(wanted, -100)
    out = model(ids, images, labels=labels, **options)
    torch.testing.assert_close(out.loss.double(), torch.stack(losses).mean(), **CLOSE)
    assert out.logits.shape == (*ids.shape, 29)


def test_a_batch_of_several_may_have_nothing_to_predict(small):
    model, ids = small(), torch.tensor([[5, 7, 8], [9, 10, 11]])
    loss = model(ids, labels=torch.full_like(ids, -100), loss_count=4).loss
    assert loss.item() == 0
    loss.backward()
    assert not any(parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)


def test_labels_need_not_be_the_tokens(small):
    model = small()
    ids, labels = torch.tensor([[5, 7, 8]]), torch.tensor([[-100, 9, 10]])
    out = model(ids, labels=labels)
    expected = torch.nn.functional.cross_entropy(out.logits[0, :2], labels[0, 1:])
    torch.testing.assert_close(out.loss, expected)
    assert model.double()(ids, labels=labels).loss.dtype == torch.float64


@methods
def test_embeddings_in_place_of_logits(small, method):
    model, images = small(fusion_method=method), pictures()
    ids, mask = padded("left")
    out = model(ids, images, attention_mask=mask, return_embeddings=True)
    assert out.logits is None
    torch.testing.assert_close(model.lm_head(out.embeddings), model(ids, images, attention_mask=mask).logits, **CLOSE)
    last = model(ids, images, attention_mask=mask, return_embeddings=True, last_only=True, return_state=True)
    torch.testing.assert_close(last.embeddings, out.embeddings[:, -1], **CLOSE)
    assert last.state is not None


@methods
def test_nan_in_one_row_touches_no_other(small, method):
    model, images = small(fusion_method=method), pictures()
    ids, mask = padded("both")
    before = model(ids, images, attention_mask=mask, return_state=True)
    images[0] = math.nan
    after = model(ids, images, attention_mask=mask, return_state=True)
    assert torch.equal(before.logits[1:][mask[1:]], after.logits[1:][mask[1:]])
    assert after.logits[0][mask[0]][1:].isnan().any()
    assert torch.equal(before.state.layers[1].ssm[1:], after.state.layers[1].ssm[1:])
    follow = torch.full((5,), 9)
    assert torch.equal(model.step(follow, before.state)[1:], model.step(follow, after.state)[1:])


@methods
def test_checkpointing_gives_the_same_gradients_and_keeps_less(small, method):
    model, images = small(fusion_method=method).train(), pictures()
    ids, mask = padded("left")

    def run():
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            loss = model(ids, images, attention_mask=mask, labels=ids.masked_fill(~mask, -100)).loss
        return gradients(model, loss), sum(kept)

    assert model.checkpointing is False
    expected, whole = run()
    model.checkpointing = True
    assert model.backbone.checkpointing
    found, less = run()
    assert less < whole
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, msg=name)


def test_narrow_weights_leave_the_tokens_between_the_layers_in_float32(small):
    model, images = small(fusion_method="concat").to(torch.bfloat16), pictures().bfloat16()
    seen = []
    for layer in model.backbone.layers:
        layer.register_forward_hook(lambda _, args, out: seen.extend([args[0].dtype, out[0].dtype]))
    ids, mask = padded("left")
    out = model(ids, images, attention_mask=mask, labels=ids.masked_fill(~mask, -100), return_state=True)
    assert set(seen) == {torch.float32}
    assert out.logits.dtype == torch.bfloat16
    assert out.loss.dtype == torch.float32
    assert out.state.layers[0].ssm.dtype == torch.float32
    out.loss.backward()
    wide = small(fusion_method="concat")(ids, images.float(), attention_mask=mask).logits
    torch.testing.assert_close(out.logits[mask].float(), wide[mask], atol=0.15, rtol=0.1)


def test_autocast(small):
    model, images = small().train(), pictures()
    ids, mask = padded("left")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(ids, images, attention_mask=mask, labels=ids.masked_fill(~mask, -100)).loss
    loss.backward()
    expected = model(ids, images, attention_mask=mask, labels=ids.masked_fill(~mask, -100)).loss
    torch.testing.assert_close(loss, expected, atol=0.05, rtol=0.05)


def test_a_gradient_passes_through_a_state(small):
    model, images = small(fusion_method="cross_attention").double(), pictures(1).double()
    first, second = torch.tensor([[5, MARK, 7]]), torch.tensor([[8, 9]])
    whole = gradients(model, model(torch.cat([first, second], 1), images).logits[:, 3:].square().sum())
    state = model(first, images, return_state=True).state
    parts = gradients(model, model(second, state=state).logits.square().sum())
    for name, grad in whole.items():
        torch.testing.assert_close(parts[name], grad, atol=1e-8, rtol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"vocab_size": 30}, "embedding."),
        ({"dim": 20}, "backbone.layers."),
        ({"depth": 3}, "backbone.layers."),
        ({"d_state": 5}, "backbone.layers."),
        ({"expand": 3}, "backbone.layers."),
        ({"d_conv": 3}, "backbone.layers."),
        ({"mixer_options": {"dt_rank": 3}}, "backbone.layers."),
        ({"tie_embeddings": False}, "lm_head."),
        ({"image_size": 24}, "backbone.encoder.pos_embed"),
        ({"patch_size": 4}, "backbone.encoder.patch_embed"),
        ({"encoder_dim": 16}, "backbone.encoder."),
        ({"encoder_depth": 2}, "backbone.encoder.blocks."),
        ({"encoder_options": {"channels": 1}}, "backbone.encoder.patch_embed"),
        ({"fusion_method": "concat"}, "backbone.fusion."),
        ({"fusion_method": "visual_expert", "fusion_options": {"ratio": 2.0}}, "backbone.fusion."),
    ],
    ids=str,
)
def test_a_field_changes_the_parameters_it_names(small, change, part):
    def shapes(**fields):
        return {name: parameter.shape for name, parameter in small(**fields).named_parameters()}

    before = {"fusion_method": change["fusion_method"]} if "fusion_options" in change else {}
    assert any(name.startswith(part) for name, _ in shapes(**before).items() ^ shapes(**change).items())


@pytest.mark.parametrize(
    ("change", "method"),
    [({"heads": 1}, "visual_expert"), ({"encoder_heads": 1}, "mlp"), ({"norm_eps": 0.1}, "mlp")],
    ids=str,
)
def test_a_field_changes_the_result_at_equal_weights(small, change, method):
    one, other = small(fusion_method=method), small(fusion_method=method, **change)
    other.load_state_dict(one.state_dict())
    ids = torch.tensor([[5, MARK, 7]])
    assert not torch.allclose(one(ids, pictures(1)).logits, other(ids, pictures(1)).logits, atol=1e-4)


@pytest.mark.parametrize("part", ["encoder", "fusion", "layers"])
def test_dropout_reaches_each_part_in_training_alone(small, part):
    model, ids = small(dropout=0.5), torch.tensor([[5, MARK, 7]])
    assert torch.equal(model(ids, pictures(1)).logits, model(ids, pictures(1)).logits)
    getattr(model.backbone, part).train()
    assert not torch.equal(model(ids, pictures(1)).logits, model(ids, pictures(1)).logits)


def test_the_head_is_the_embedding_where_they_are_tied(small):
    model = small()
    assert model.lm_head.weight is model.embedding.weight
    assert "lm_head.weight" not in dict(model.named_parameters())
    assert small(tie_embeddings=False).lm_head.weight is not model.embedding.weight


def test_a_model_of_text_alone_has_no_encoder_and_no_fusion(small):
    model = small(image_size=None, image_token_id=None)
    assert {name.split(".")[0] for name, _ in model.backbone.named_parameters()} == {"layers", "norm_f"}


def test_a_config_or_its_fields():
    fields = {"vocab_size": 9, "dim": 8, "depth": 1}
    config = MultiModalMambaConfig(**fields)
    assert MultiModalMamba(**fields).config == MultiModalMamba(config).config == config
    for arguments in ({}, {"config": config, "dim": 8}):
        with pytest.raises(TypeError, match="expected either a config or its fields as keywords, got both or none"):
            MultiModalMamba(**arguments)


@pytest.mark.parametrize("dim", [16, 64, 256])
def test_a_new_model_guesses_nearly_by_chance(dim):
    model = MultiModalMamba(vocab_size=100, dim=dim, depth=2)
    tokens = torch.randint(100, (8, 60))
    assert math.log(100) - 0.1 < model(tokens, labels=tokens).loss < math.log(100) + 0.7
    assert model.embedding.weight.std().item() * math.sqrt(dim) == pytest.approx(0.4, rel=0.1)
