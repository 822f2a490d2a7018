"""AdamW on groups with and without weight decay, and the learning rate of each step."""

from __future__ import annotations

import math

import torch
from torch import nn

from mmm_train.config import TrainConfig

FLOOR = 0.01
"""Part of the highest learning rate that the last step has."""


def make_optimiser(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; only matrices decay, and of them none that carries `_no_weight_decay` (the scan's A, say).

    Args:
        model: Its parameters are trained.
        config: Learning rate and weight decay.
    Returns:
        The optimiser.
    """
    decayed, kept = list[nn.Parameter](), list[nn.Parameter]()
    for parameter in model.parameters():
        decays = parameter.ndim > 1 and not getattr(parameter, "_no_weight_decay", False)
        (decayed if decays else kept).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """The learning rate of a step: a linear warm-up, then a cosine down to a hundredth.

    Args:
        step: Step, from 0.
        steps: Number of steps.
        config: Highest rate, and length of the warm-up.
    Returns:
        The rate.
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, steps - 1 - config.warmup)
    return config.lr * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
