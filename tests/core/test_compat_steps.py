"""Single tokens as mamba_ssm and causal_conv1d take them: states in place, rings, pools and heads, row by row."""

import pytest
import torch
from torch.nn import functional as F

from mmm_core.compat.mamba_ssm import causal_conv1d_update, selective_state_update
from mmm_core.testing import OUTPUT_TOLERANCE, rms_error_ratio

HALVES = [torch.float16, torch.bfloat16]


def tensors(shapes):
    """Normally distributed tensors by name."""
    random = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


def update_oracle(x, conv_state, weight, bias=None, activation=None, cache_seqlens=None, conv_state_indices=None):
    """`causal_conv1d_update` one token after the other; the output and the states after it."""
    state, out = conv_state.clone(), torch.zeros_like(x)
    k, t = weight.shape[1], conv_state.shape[2]
    for row in range(x.shape[0]):
        slot = row if conv_state_indices is None else int(conv_state_indices[row])
        if slot < 0:
            continue
        count = 0 if cache_seqlens is None else int(cache_seqlens[row])
        ring = state[slot].clone()
        for token in range(x.shape[2]):
            now = x[row, :, token]
            if cache_seqlens is None:
                seen = torch.cat((ring, now[:, None]), dim=1)[:, t + 1 - k :]
                ring = torch.cat((ring, now[:, None]), dim=1)[:, 1:]
            else:
                past = [ring[:, (count + token + j) % t] for j in range(1 - k, 0)]
                seen = torch.stack((*past, now), dim=1)
                ring[:, (count + token) % t] = now
            y = (seen * weight).sum(1) + (0 if bias is None else bias)
            out[row, :, token] = y if activation is None else y * torch.sigmoid(y)
        state[slot] = ring
    return out, state


@pytest.mark.parametrize("l", [None, 1, 3, 6], ids=str)
@pytest.mark.parametrize(("k", "t"), [(4, 3), (4, 4), (4, 9), (2, 1), (1, 0), (1, 2)])
@pytest.mark.parametrize("activation", [None, "silu", "swish"])
def test_tokens_of_a_convolution(l, k, t, activation):
    inputs = tensors({"x": (3, 5, l or 1), "conv_state": (3, 5, t), "weight": (5, k), "bias": (5,)})
    expected, after = update_oracle(**{name: x.double() for name, x in inputs.items()}, activation=activation)
    if l is None:
        inputs["x"], expected = inputs["x"].squeeze(-1), expected.squeeze(-1)
    place = inputs["conv_state"].data_ptr()
    out = causal_conv1d_update(**inputs, activation=activation)
    assert rms_error_ratio(out, expected) <= OUTPUT_TOLERANCE[torch.float32]
    assert torch.equal(inputs["conv_state"], after.float())
    assert inputs["conv_state"].data_ptr() == place


@pytest.mark.parametrize("l", [None, 1, 3, 5, 12], ids=str)
@pytest.mark.parametrize("t", [3, 5, 8])
@pytest.mark.parametrize("whole", [torch.int32, torch.int64], ids=str)
def test_the_state_of_a_convolution_as_a_ring(l, t, whole):
    inputs = tensors({"x": (4, 5, l or 1), "conv_state": (4, 5, t), "weight": (5, 3)})
    inputs["cache_seqlens"] = torch.tensor([0, 1, 7, 1000], dtype=whole)
    wide = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    expected, after = update_oracle(**wide)
    if l is None:
        inputs["x"], expected = inputs["x"].squeeze(-1), expected.squeeze(-1)
    out = causal_conv1d_update(**inputs)
    assert rms_error_ratio(out, expected) <= OUTPUT_TOLERANCE[torch.float32]
    assert torch.equal(inputs["conv_state"], after.float())


SLOTS = [[2, 0, 5], [4, -1, 1], [-1, -1, -1], [-7, 3, -1]]
slots = pytest.mark.parametrize("slots", SLOTS, ids=str)
wholes = pytest.mark.parametrize("whole", [torch.int32, torch.int64], ids=str)


@slots
@wholes
@pytest.mark.parametrize("cache_seqlens", [None, [0, 4, 11]], ids=str)
@pytest.mark.parametrize("l", [None, 1, 3], ids=str)
def test_states_of_convolutions_in_a_pool(slots, whole, cache_seqlens, l):
    inputs = tensors({"x": (3, 5, l or 1), "conv_state": (6, 5, 4), "weight": (5, 4), "bias": (5,)})
    inputs["conv_state_indices"] = torch.tensor(slots, dtype=whole)
    if cache_seqlens is not None:
        inputs["cache_seqlens"] = torch.tensor(cache_seqlens, dtype=whole)
    wide = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    expected, after = update_oracle(**wide, activation="silu")
    if l is None:
        inputs["x"], expected = inputs["x"].squeeze(-1), expected.squeeze(-1)
    out = causal_conv1d_update(**inputs, activation="silu")
    assert rms_error_ratio(out, expected) <= OUTPUT_TOLERANCE[torch.float32]
    assert torch.equal(inputs["conv_state"], after.float())


@pytest.mark.parametrize("dtype", [*HALVES, torch.float64], ids=str)
@pytest.mark.parametrize("of", ["all", "x", "conv_state", "weight"])
@pytest.mark.parametrize("backend", ["native", "chunked"])
def test_tokens_of_any_dtype(dtype, of, backend, monkeypatch):
    monkeypatch.setenv("MMM_CORE_BACKEND", backend)
    inputs = tensors({"x": (3, 5), "conv_state": (3, 5, 4), "weight": (5, 4)})
    inputs = {name: x.to(dtype) if of in ("all", name) else x for name, x in inputs.items()}
    wide = {name: x.double() for name, x in inputs.items()}
    expected, after = update_oracle(**wide | {"x": wide["x"][..., None]})
    out = causal_conv1d_update(**inputs)
    assert out.dtype == inputs["x"].dtype
    torch.testing.assert_close(out, expected.squeeze(-1).to(out.dtype))
    torch.testing.assert_close(inputs["conv_state"], after.to(inputs["conv_state"].dtype), rtol=0, atol=0)


def step_inputs(b=3, heads=None, e=5, n=3, groups=None, tied=False, pool=None, leave_out=()):
    """Arguments of `selective_state_update`; those that are tied are one number a head, expanded."""
    h = () if heads is None else (heads,)
    g = () if groups is None else (groups,)
    inner = (*h, 1) if tied else (*h, e)
    shapes = {"state": (pool or b, *h, e, n), "x": (b, *h, e), "dt": (b, *inner), "A": (*inner, 1 if tied else n)}
    shapes |= {"B": (b, *g, n), "C": (b, *g, n), "D": inner, "z": (b, *h, e), "dt_bias": inner}
    inputs = {name: x for name, x in tensors(shapes).items() if name not in leave_out}
    inputs["A"] = -inputs["A"].exp()
    whole = {"dt": (b, *h, e), "A": (*h, e, n), "D": (*h, e), "dt_bias": (*h, e)}
    return {name: x.expand(whole[name]) if name in whole else x for name, x in inputs.items()}


def step_oracle(state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False, state_batch_indices=None):
    """`selective_state_update` one head of one row after the other; the output and the states after it."""
    after, out = state.clone(), torch.zeros_like(x)
    heads = [()] if state.ndim == 3 else [(h,) for h in range(state.shape[1])]
    for row in range(x.shape[0]):
        slot = row if state_batch_indices is None else int(state_batch_indices[row])
        if slot < 0:
            continue
        for h in heads:
            group = () if B.ndim == 2 else (h[0] // (len(heads) // B.shape[1]) if h else 0,)
            steps = dt[(row, *h)] + (0 if dt_bias is None else dt_bias[h])
            steps = F.softplus(steps) if dt_softplus else steps
            now = (x[(row, *h)] * steps)[:, None] * B[(row, *group)]
            after[(slot, *h)] = torch.exp(steps[:, None] * A[h]) * state[(slot, *h)] + now
            y = (after[(slot, *h)] * C[(row, *group)]).sum(-1)
            y = y if D is None else y + D[h] * x[(row, *h)]
            out[(row, *h)] = y if z is None else y * z[(row, *h)] * torch.sigmoid(z[(row, *h)])
    return out, after


def assert_step_matches(inputs, dtype=torch.float32, **options):
    wide = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    expected, after = step_oracle(**wide, **options)
    place = inputs["state"].data_ptr()
    out = selective_state_update(**inputs, **options)
    assert out.dtype == inputs["x"].dtype
    assert rms_error_ratio(out, expected) <= OUTPUT_TOLERANCE[dtype]
    assert rms_error_ratio(inputs["state"], after) <= OUTPUT_TOLERANCE[dtype]
    assert inputs["state"].data_ptr() == place


STEPS = {
    "one head": {},
    "one group": {"groups": 1},
    "n = 16": {"n": 16, "e": 33},
    "heads": {"heads": 4},
    "heads in a group": {"heads": 4, "groups": 1},
    "heads in groups": {"heads": 6, "groups": 3},
    "tied": {"heads": 6, "groups": 3, "tied": True, "n": 16},
    "tied, without heads": {"tied": True},
    "heads alone": {"heads": 4, "leave_out": ("D", "z", "dt_bias")},
    "alone": {"leave_out": ("D", "z", "dt_bias")},
    "no dt_bias": {"heads": 2, "tied": True, "leave_out": ("dt_bias",)},
}
steps = pytest.mark.parametrize("sizes", STEPS.values(), ids=STEPS.keys())


@steps
@pytest.mark.parametrize("dt_softplus", [False, True])
def test_a_step_matches_the_oracle(sizes, dt_softplus):
    inputs = step_inputs(**sizes)
    inputs["dt"] = inputs["dt"] if dt_softplus else inputs["dt"].abs()
    assert_step_matches(inputs, dt_softplus=dt_softplus)
    wide = {name: x.double() for name, x in inputs.items()}
    assert_step_matches(wide, torch.float64, dt_softplus=dt_softplus)


@steps
@slots
@wholes
def test_states_of_scans_in_a_pool(sizes, slots, whole):
    inputs = step_inputs(**sizes, pool=6) | {"state_batch_indices": torch.tensor(slots, dtype=whole)}
    assert_step_matches(inputs, dt_softplus=True)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("of", ["all", "state", "x", "A"])
@pytest.mark.parametrize("heads", [None, 2])
def test_a_step_of_any_dtype(dtype, of, heads):
    inputs = {name: x.to(dtype) if of in ("all", name) else x for name, x in step_inputs(heads=heads).items()}
    expected, after = step_oracle(**{name: x.double() for name, x in inputs.items()}, dt_softplus=True)
    out = selective_state_update(**inputs, dt_softplus=True)
    assert out.dtype == inputs["x"].dtype
    torch.testing.assert_close(out, expected.to(out.dtype))
    torch.testing.assert_close(inputs["state"], after.to(inputs["state"].dtype))


LAYOUTS = {
    "heads behind": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "every other head": lambda x: torch.stack((x, x), dim=2)[:, :, 0],
    "every other row": lambda x: torch.stack((x, x), dim=1)[:, 0],
    "every other channel": lambda x: torch.stack((x, x), dim=3)[:, :, :, 0],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("heads", [1, 4])
def test_a_state_with_heads_may_stand_anyhow(layout, heads):
    inputs = step_inputs(heads=heads)
    inputs["state"] = layout(inputs["state"])
    assert_step_matches(inputs, dt_softplus=True)


def test_steps_record_no_gradient():
    inputs = {name: x.requires_grad_(name != "state") for name, x in step_inputs(tied=False).items()}
    assert not selective_state_update(**inputs).requires_grad
    assert not inputs["state"].requires_grad
    conv = {name: x.requires_grad_() for name, x in tensors({"x": (3, 5), "weight": (5, 4)}).items()}
    state = torch.zeros(3, 5, 4)
    assert not causal_conv1d_update(conv["x"], state, conv["weight"]).requires_grad
    assert not state.requires_grad


def test_a_single_head_may_stand_anyhow():
    inputs = tensors({"x": (2, 1, 4), "dt": (2, 1, 4), "A": (1, 4, 3), "B": (2, 3), "C": (2, 3)})
    apart = torch.randn(2, 4, 1, 3).transpose(1, 2)
    together = torch.empty(2, 1, 4, 3).copy_(apart)
    out = selective_state_update(apart, **inputs)
    torch.testing.assert_close(out, selective_state_update(together, **inputs))
    torch.testing.assert_close(apart, together)
