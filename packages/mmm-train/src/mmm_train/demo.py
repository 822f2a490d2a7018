"""The demo: a small model that learns to answer questions about drawings, in minutes on two CPU cores."""

from __future__ import annotations

from dataclasses import replace

from mmm_train.config import Config, DataConfig, ModelConfig, TrainConfig
from mmm_train.data.easy_vqa import EASY_VQA


def demo_config(fusion: str = "mlp", epochs: int = 32, seed: int = 0) -> Config:
    """The settings of `mmm demo`.

    No answer of easy-vqa depends on sides or places, so its pictures may be mirrored and moved. Its smallest shapes are
    8 pixels wide: larger patches would hide what they are.

    Args:
        fusion: Name of the fusion method.
        epochs: Passes over the training pictures.
        seed: Start of every random number.
    Returns:
        The settings.
    """
    return Config(
        data=DataConfig(train=EASY_VQA, flip=True, shift=4),
        model=ModelConfig(fusion=fusion, dim=64, depth=6, patch_size=8, encoder_dim=64, encoder_depth=3),
        train=TrainConfig(epochs=epochs, lr=1e-3, seed=seed),
    )


def compare_config(epochs: int = 8, seed: int = 0) -> Config:
    """The settings of `mmm compare` where it is given no data of one's own.

    Those of the demo, but two Mamba layers and few epochs: what tells methods apart is how soon they learn.

    Args:
        epochs: Passes over the training pictures.
        seed: Start of every random number of the first run.
    Returns:
        The settings.
    """
    config = demo_config(epochs=epochs, seed=seed)
    return replace(
        config, model=replace(config.model, depth=2), train=replace(config.train, evaluate=config.train.epochs)
    )
