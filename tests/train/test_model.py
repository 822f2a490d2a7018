"""The model and its optimiser: pictures read once, texts as if alone, groups of parameters, the schedule."""

import pytest
import torch

import mmm_fusion
from mmm_block import MultiModalMamba
from mmm_train import ConfigError, ModelConfig, TrainConfig
from mmm_train.data import SPECIAL, Batch
from mmm_train.data.tokenizer import ANSWER, END, IMAGE
from mmm_train.model import loss_of, new_model
from mmm_train.optimiser import learning_rate, make_optimiser

TINY = {
    "dim": 16,
    "depth": 2,
    "d_state": 4,
    "heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "encoder_dim": 8,
    "encoder_depth": 1,
    "encoder_heads": 2,
}
METHODS = [method.name for method in mmm_fusion.available()]


def tiny(**settings: object) -> MultiModalMamba:
    torch.manual_seed(0)
    model = new_model(ModelConfig(**{**TINY, **settings}), 12)
    with torch.no_grad():
        for parameter in model.backbone.fusion.parameters():
            if not parameter.any():  # a gate that is closed at the start, say
                parameter.normal_(std=0.3)
    return model


@pytest.fixture
def batch() -> Batch:
    """Three pictures; 1, 3 and 2 texts about them, of different lengths, a caption among them."""
    questions, answers = [3, 5, 0, 2, 5, 1], [1, 2, 4, 1, 1, 3]
    mask = torch.arange(9) < torch.tensor([q + a + 2 for q, a in zip(questions, answers, strict=True)])[:, None]
    text = torch.randint(len(SPECIAL), 12, mask.shape) * mask
    labels = torch.full_like(text, -100)
    for row, (q, a) in enumerate(zip(questions, answers, strict=True)):
        text[row, q], text[row, q + a + 1] = ANSWER, END
        labels[row, q + 1 : q + a + 2] = text[row, q + 1 : q + a + 2]
    return Batch(torch.randn(3, 3, 16, 16), text, mask, labels, torch.tensor([0, 1, 1, 1, 2, 2]))


def plainly(model: MultiModalMamba, batch: Batch) -> torch.Tensor:
    """The loss of each text read from its mark on, with a picture of its own."""
    losses = []
    for row, image in enumerate(batch.image_of):
        length = int(batch.text_mask[row].sum())
        text = torch.cat([torch.tensor([IMAGE]), batch.text[row, :length]])[None]
        labels = torch.cat([torch.tensor([-100]), batch.labels[row, :length]])[None]
        loss = model(text, batch.images[image][None], labels=labels).loss
        losses.append(loss * (labels != -100).sum())
    return torch.stack(losses)


@pytest.mark.parametrize("fusion", METHODS)
def test_texts_are_learnt_as_if_alone(fusion: str, batch: Batch) -> None:
    model = tiny(fusion=fusion)
    batch.images.requires_grad_()
    everything = [batch.images, *model.parameters()]
    together = loss_of(model, batch)
    alone = plainly(model, batch).sum() / (batch.labels != -100).sum()
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    gradients = (torch.autograd.grad(loss, everything) for loss in (together, alone))
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("fusion", METHODS)
def test_all_parameters_learn_and_the_picture_counts(fusion: str, batch: Batch) -> None:
    model = tiny(fusion=fusion)
    batch.images.requires_grad_()
    loss_of(model, batch).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []
    assert (batch.images.grad.abs().sum((1, 2, 3)) > 0).all()


def test_answers_alone_are_learnt(batch: Batch) -> None:
    model = tiny()
    logits, seen = model.lm_head, list[torch.Tensor]()
    logits.register_full_backward_hook(lambda module, inputs, outputs: seen.append(outputs[0]))
    loss_of(model, batch).backward()
    taught = seen[0].abs().sum(-1) > 0
    before_a_label = torch.zeros_like(taught)
    before_a_label[:, :-1] = batch.labels[:, 1:] != -100
    assert torch.equal(taught, before_a_label)


def test_each_image_is_encoded_once(batch: Batch) -> None:
    model, seen = tiny(), list[int]()
    model.backbone.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    loss_of(model, batch)
    assert seen == [3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": 5}, "settings under model: ViTConfig: `image_size` must be divisible by patch_size = (5, 5), "),
        ({"encoder_heads": 3}, "settings under model: ViTConfig: `dim` must be divisible by heads = 3, got 8. "),
        ({"depth": 0}, "settings under model: MultiModalMambaConfig: `depth` must be an int of at least 1, got 0."),
        ({"dim": -1}, "settings under model: MultiModalMambaConfig: `dim` must be an int of at least 1, got -1."),
        ({"heads": 3}, "settings under model: fusion method 'mlp': `heads` must divide dim = 16, got 3. "),
        ({"fusion_options": {"x": 1}}, "settings under model: fusion method 'mlp' has no option 'x'."),
    ],
)
def test_sizes_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny(**settings)
    assert str(caught.value).startswith(message)


def test_unknown_method() -> None:
    with pytest.raises(mmm_fusion.UnknownMethodError, match="fusion method 'conct' is not registered"):
        tiny(fusion="conct")


def test_only_matrices_decay() -> None:
    model = tiny()
    decayed, kept = make_optimiser(model, TrainConfig(weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert {names[p] for p in decayed["params"]} | {names[p] for p in kept["params"]} == set(names.values())
    spared = {names[p] for p in kept["params"]}
    assert {"embedding.weight", "backbone.layers.0.mixer.A_log", "backbone.layers.0.mixer.D"} <= spared
    assert {name for name in names.values() if name.endswith("bias") or ".norm" in name} <= spared
    assert "backbone.layers.0.mixer.in_proj.weight" not in spared


def test_schedule() -> None:
    config = TrainConfig(lr=2.0, warmup=4)
    rates = [learning_rate(step, 20, config) for step in range(20)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4] == 2.0
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] == pytest.approx(0.02)
    assert learning_rate(0, 1, TrainConfig(lr=2.0, warmup=0)) == 2.0
    assert learning_rate(0, 1, TrainConfig(lr=2.0, warmup=100)) == pytest.approx(0.02)
