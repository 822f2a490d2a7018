"""`Mamba` with the weights of transformers' mixers: the same state dict, the same outputs, whole and token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from transformers import FalconMambaConfig, JambaConfig, MambaConfig
from transformers.models.falcon_mamba.modeling_falcon_mamba import FalconMambaMixer
from transformers.models.jamba.modeling_jamba import JambaMambaMixer
from transformers.models.mamba.modeling_mamba import MambaMixer

from mmm_core import Mamba

if TYPE_CHECKING:
    from torch import nn

DIM, EPS = 24, 1e-3  # an eps that counts beside the squares of what is normed
SIZES = {"hidden_size": DIM, "state_size": 5, "conv_kernel": 3, "expand": 2, "num_hidden_layers": 1}
JAMBA = {"mamba_d_state": 5, "mamba_d_conv": 3, "mamba_expand": 2, "mamba_dt_rank": 7, "rms_norm_eps": EPS}
OURS = {"d_state": 5, "d_conv": 3, "dt_rank": 7}
RANK = {"time_step_rank": 7}
MIXERS = {
    "mamba": (lambda: MambaMixer(MambaConfig(**SIZES, **RANK), 0), OURS),
    "mamba, biases": (
        lambda: MambaMixer(MambaConfig(**SIZES, **RANK, use_bias=True, use_conv_bias=False), 0),
        {**OURS, "bias": True, "conv_bias": False},
    ),
    "falcon-mamba": (
        lambda: FalconMambaMixer(FalconMambaConfig(**SIZES, **RANK, mixer_rms_eps=EPS), 0, False),
        {**OURS, "selection_norm": EPS},
    ),
    "jamba": (
        lambda: JambaMambaMixer(JambaConfig(hidden_size=DIM, **JAMBA), 0),
        {**OURS, "selection_norm": EPS, "selection_norm_weight": True},
    ),
}
mixers = pytest.mark.parametrize("name", MIXERS)


def theirs_and_ours(name: str) -> tuple[nn.Module, Mamba]:
    """One of their mixers with random parameters, and our layer with its state dict."""
    make, options = MIXERS[name]
    theirs, ours = make().eval(), Mamba(DIM, **options)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
        theirs.A_log.uniform_(-1, 1)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@mixers
@torch.no_grad()
def test_the_same_output(name: str) -> None:
    theirs, ours = theirs_and_ours(name)
    x = torch.randn(2, 17, DIM)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


@mixers
@torch.no_grad()
def test_steps_in_place_give_the_same_output(name: str) -> None:
    theirs, ours = theirs_and_ours(name)
    x = torch.randn(2, 17, DIM)
    expected = theirs(x)
    _, state = ours(x[:, :4], return_state=True)
    steps = torch.stack([ours.step(x[:, t], state) for t in range(4, 17)], dim=1)
    torch.testing.assert_close(steps, expected[:, 4:], rtol=1e-4, atol=1e-4)


@mixers
def test_the_same_gradients(name: str) -> None:
    theirs, ours = theirs_and_ours(name)
    x = torch.randn(2, 9, DIM)
    weight = torch.randn(2, 9, DIM)
    for mixer in (theirs, ours):
        (mixer(x) * weight).sum().backward()
    expected = {key: p.grad for key, p in theirs.named_parameters()}
    for key, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[key], rtol=1e-4, atol=1e-4)
