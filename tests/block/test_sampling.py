"""Each rule of sampling against its plain definition."""

import math

import pytest
import torch

from mmm_block import InputError
from mmm_block.sampling import Sampling, draw, keep_top_k, keep_top_p, penalise_repeats, uniform

INF = math.inf


def rows(b=3, v=17, scale=2.0):
    return torch.randn(b, v) * scale


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3])
def test_repetition_penalty(penalty):
    logits, seen = rows(), torch.rand(3, 17) < 0.5
    logits[0, 0] = 0.0
    expected = [
        [(x / penalty if x > 0 else x * penalty) if was else x for x, was in zip(*row, strict=True)]
        for row in zip(logits.tolist(), seen.tolist(), strict=True)
    ]
    torch.testing.assert_close(penalise_repeats(logits, seen, penalty), torch.tensor(expected))


@pytest.mark.parametrize("k", [1, 2, 5, 16, 17, 1000])
def test_top_k_keeps_the_k_greatest(k):
    logits = rows()
    expected = [[x if x in sorted(row)[-k:] else -INF for x in row] for row in logits.tolist()]
    assert torch.equal(keep_top_k(logits, k), torch.tensor(expected))


def test_top_k_keeps_all_that_are_equal_to_the_last():
    assert keep_top_k(torch.tensor([[1.0, 2.0, 2.0, 0.0, 3.0]]), 2).tolist() == [[-INF, 2.0, 2.0, -INF, 3.0]]


def kept_by_top_p(row, p):
    """The fewest of the likeliest tokens whose probabilities have the sum p."""
    probabilities = torch.tensor(row, dtype=torch.float64).softmax(0).tolist()
    kept, total = set(), 0.0
    for token in sorted(range(len(row)), key=lambda t: -row[t]):
        kept.add(token)
        total += probabilities[token]
        if total >= p:
            break
    return kept


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.7, 0.95, 0.9999, 1.0])
def test_top_p_keeps_the_fewest_with_that_probability(p):
    logits = rows(b=8)
    for row, after in zip(logits.tolist(), keep_top_p(logits, p).tolist(), strict=True):
        kept = kept_by_top_p(row, p)
        assert after == [x if token in kept else -INF for token, x in enumerate(row)]


def test_top_p_of_one_keeps_even_what_rounding_would_not():
    logits = torch.zeros(1, 50_000)
    logits[0, 0] = 30.0
    assert torch.equal(keep_top_p(logits, 1.0), logits)


def test_what_is_forbidden_stays_so():
    logits = rows()
    logits[:, 5] = -INF
    seen = torch.ones_like(logits, dtype=torch.bool)
    for after in (penalise_repeats(logits, seen, 1.5), keep_top_k(logits, 3), keep_top_p(logits, 0.999)):
        assert (after[:, 5] == -INF).all()


def test_draws_fall_as_often_as_a_token_is_likely():
    n, logits = 4000, torch.tensor([[0.3, -INF, 1.0, -2.0, -INF, 2.5, 0.0, -INF]])
    at = (torch.arange(n) + 0.5) / n
    counts = draw(logits.expand(n, -1), at).bincount(minlength=8)
    torch.testing.assert_close(counts / n, logits.softmax(1)[0], atol=2 / n, rtol=0)
    assert counts[logits[0] == -INF].eq(0).all()


def test_no_draw_at_the_ends_gives_a_token_without_probability():
    logits = torch.tensor([[-INF, 0.0, 1.0, -INF]]).expand(2, -1)
    assert draw(logits, torch.tensor([0.0, 1 - 2**-24])).tolist() == [1, 2]


def test_a_row_of_nan_draws_a_token_and_leaves_the_others_as_they_are():
    logits, at = rows(), torch.tensor([0.1, 0.5, 0.9])
    before = draw(logits, at)
    logits[1] = math.nan
    after = draw(logits, at)
    assert after[[0, 2]].tolist() == before[[0, 2]].tolist()
    assert 0 <= after[1] < 17


def split_mix(state):
    """The next output of SplitMix64 from a state, and the state after it."""
    state = (state + 0x9E3779B97F4A7C15) % 2**64
    return mix(state), state


def mix(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def test_the_definition_gives_the_published_numbers():
    state, found = 1234567, []
    for _ in range(3):
        number, state = split_mix(state)
        found.append(number)
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("seed", [0, 1, 42, 2**63 - 1, -1, -(2**63)])
def test_uniform_is_split_mix(seed):
    state, expected = mix(seed % 2**64), []
    for _ in range(20):
        number, state = split_mix(state)
        expected.append((number >> 40) / 2**24)
    assert uniform(torch.full((20,), seed), torch.arange(20)).tolist() == expected


@pytest.mark.parametrize("along", ["seeds", "places"])
def test_uniform_numbers_are_spread_evenly(along):
    n, bins = 20_000, 50
    count, still = torch.arange(n), torch.full((n,), 7)
    numbers = uniform(count, still) if along == "seeds" else uniform(still, count)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    shares = torch.histc(numbers, bins, 0, 1)
    chi_squared = ((shares - n / bins) ** 2 / (n / bins)).sum()
    assert chi_squared < 49 + 5 * math.sqrt(2 * 49)
    assert torch.corrcoef(torch.stack([numbers[:-1], numbers[1:]]))[0, 1].abs() < 0.03


def choose(logits, seen=None, **options):
    b = len(logits)
    return Sampling(**options).choose(logits, seen, torch.arange(b), torch.zeros(b, dtype=torch.long))


def test_greedy_takes_the_likeliest():
    logits = rows()
    assert torch.equal(choose(logits), logits.argmax(1))


def test_the_penalty_comes_before_the_choice():
    logits = torch.tensor([[2.0, 1.9, -1.0]])
    assert choose(logits).tolist() == [0]
    seen = torch.tensor([[True, False, False]])
    assert choose(logits, seen, repetition_penalty=1.2).tolist() == [1]


def test_temperature_narrows_and_widens():
    logits = torch.tensor([[1.0, 0.0]]).expand(4000, -1)
    for temperature in (0.25, 1.0, 4.0):
        share = choose(logits, temperature=temperature).eq(0).float().mean()
        torch.testing.assert_close(share, torch.tensor(1 / temperature).sigmoid(), atol=0.03, rtol=0)


@pytest.mark.parametrize("temperature", [1e-30, 1e-38, 1e-42])
def test_a_temperature_near_zero_takes_the_likeliest(temperature):
    logits, one = torch.tensor([[1.0, -math.inf, 9.0, 5.0], [-7.0, -4.0, -5.0, -6.0]]), torch.ones(2, dtype=torch.long)
    for cut in ({}, {"top_k": 3}, {"top_p": 0.5}):
        assert Sampling(temperature=temperature, **cut).choose(logits, None, one, one).tolist() == [2, 1]


def test_top_k_and_top_p_cut_after_the_temperature():
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]]).expand(1000, -1)
    assert set(choose(logits, temperature=1.0, top_k=2).tolist()) == {3, 4}
    assert set(choose(logits, temperature=1.0, top_p=0.5).tolist()) == {4}
    assert set(choose(logits, temperature=5.0, top_p=0.5).tolist()) == {3, 4}  # flatter: two are needed
    assert set(choose(logits, temperature=1.0, top_k=2, top_p=0.5).tolist()) == {4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "`temperature` must be a number of at least 0, got -1.0. 0 takes the likeliest token."),
        ({"temperature": math.nan}, "`temperature` must be a number of at least 0, got nan."),
        ({"temperature": INF}, "`temperature` must be a number of at least 0, got inf."),
        ({"temperature": 1.0, "top_k": 0}, "`top_k` must be an int of at least 1, or None, got 0. None keeps all."),
        ({"temperature": 1.0, "top_k": True}, "`top_k` must be an int of at least 1, or None, got True."),
        ({"temperature": 1.0, "top_k": 1.5}, "`top_k` must be an int of at least 1, or None, got 1.5."),
        ({"temperature": 1.0, "top_p": 0}, "`top_p` must be above 0 and at most 1, or None, got 0. None keeps all."),
        ({"temperature": 1.0, "top_p": 1.1}, "`top_p` must be above 0 and at most 1, or None, got 1.1."),
        ({"temperature": 1.0, "top_p": math.nan}, "`top_p` must be above 0 and at most 1, or None, got nan."),
        ({"repetition_penalty": 0}, "`repetition_penalty` must be a number above 0, got 0. 1 changes nothing."),
        ({"temperature": "1"}, "`temperature` must be a number of at least 0, got '1'."),
        ({"temperature": 1.0, "top_p": "1"}, "`top_p` must be above 0 and at most 1, or None, got '1'."),
        ({"repetition_penalty": None}, "`repetition_penalty` must be a number above 0, got None."),
        ({"repetition_penalty": -1.2}, "`repetition_penalty` must be a number above 0, got -1.2."),
        (
            {"top_k": 5},
            "`top_k` must be None at temperature = 0, got 5. "
            "Pass temperature=1.0 to draw from the model's own probabilities.",
        ),
        ({"top_p": 0.9}, "`top_p` must be None at temperature = 0, got 0.9."),
    ],
)
def test_a_value_out_of_range(options, message):
    with pytest.raises(InputError) as caught:
        Sampling(**options)
    assert str(caught.value).startswith(f"generate: {message}")
