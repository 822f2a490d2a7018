"""The model and its optimiser: images encoded once, padding without effect, groups of parameters, the schedule."""

import pytest
import torch
from torch import Tensor, nn

import mmm_fusion
from mmm_train import AnswerModel, ConfigError, ModelConfig, TrainConfig
from mmm_train.data import Batch
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


def tiny(**settings: object) -> AnswerModel:
    model = AnswerModel(ModelConfig(**{**TINY, **settings}), words=10, answers=5)
    with torch.no_grad():
        for parameter in model.block.fusion.parameters():
            if not parameter.any():  # a gate that is closed at the start, say
                parameter.normal_(std=0.3)
    return model


@pytest.fixture
def batch() -> Batch:
    """Three pictures; 1, 3 and 2 questions of different lengths about them."""
    lengths = torch.tensor([4, 6, 1, 3, 6, 2])
    mask = torch.arange(6) < lengths[:, None]
    return Batch(
        images=torch.randn(3, 3, 16, 16),
        text=torch.randint(2, 10, (6, 6)) * mask,
        text_mask=mask,
        image_of=torch.tensor([0, 1, 1, 1, 2, 2]),
        answers=torch.tensor([0, 1, 2, 3, 4, 0]),
    )


METHODS = [method.name for method in mmm_fusion.available()]


@pytest.mark.parametrize("fusion", METHODS)
def test_questions_are_answered_as_if_alone(fusion: str, batch: Batch) -> None:
    model = tiny(fusion=fusion).eval()
    together = model(*batch[:4])
    assert together.shape == (6, 5)
    for row, image in enumerate(batch.image_of):
        length = int(batch.text_mask[row].sum())
        alone = model(
            batch.images[image][None], batch.text[row : row + 1, :length], torch.ones(1, length) > 0, torch.tensor([0])
        )
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fusion", METHODS)
def test_all_parameters_learn_and_the_picture_counts(fusion: str, batch: Batch) -> None:
    model = tiny(fusion=fusion)
    batch.images.requires_grad_()
    scores = model(*batch[:4])
    nn.functional.cross_entropy(scores, batch.answers).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []
    assert (batch.images.grad.abs().sum((1, 2, 3)) > 0).all()


def test_each_image_is_encoded_once(batch: Batch) -> None:
    model, seen = tiny(), list[int]()
    model.block.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    model(*batch[:4])
    assert seen == [3]


def test_words_start_small_and_padding_at_zero() -> None:
    weight: Tensor = tiny().embed.weight
    assert weight[0].abs().sum() == 0
    assert 0.01 < weight[1:].std() < 0.03


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": 5}, "settings under model: ViTConfig: `image_size` must be divisible by patch_size = (5, 5), "),
        ({"encoder_heads": 3}, "settings under model: ViTConfig: `dim` must be divisible by heads = 3, got 8. "),
        ({"depth": 0}, "settings under model: MultiModalMambaBlock: `depth` must be at least 1, got 0."),
        ({"dim": -1}, "settings under model: fusion method 'mlp': `dim` must be "),
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
    assert {"embed.weight", "head.bias", "block.layers.0.mixer.A_log", "block.layers.0.mixer.D"} <= spared
    assert {name for name in names.values() if name.endswith("bias") or ".norm" in name} <= spared
    assert {"head.weight", "block.layers.0.mixer.in_proj.weight"} & spared == set()


def test_schedule() -> None:
    config = TrainConfig(lr=2.0, warmup=4)
    rates = [learning_rate(step, 20, config) for step in range(20)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4] == 2.0
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] == pytest.approx(0.02)
    assert learning_rate(0, 1, TrainConfig(lr=2.0, warmup=0)) == 2.0
    assert learning_rate(0, 1, TrainConfig(lr=2.0, warmup=100)) == pytest.approx(0.02)
