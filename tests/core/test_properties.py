"""Properties of the native kernels on generated calls: any cut, any packing, any direction, any strides, any dtypes.

Every example is a call with its own sizes, zero and odd ones among them, and its own optional arguments.
"""

from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmm_core import causal_conv1d, causal_conv1d_update, selective_scan, selective_state_update
from mmm_core.testing import OUTPUT_TOLERANCE, Case, ConvCase, ScanCase

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
ALONG_L = ("u", "delta", "B", "C", "z", "x")  # the tensors with a position axis; it is the second
CHANNELS = [0, 1, 2, 5, 17, 32, 127, 128, 129, 300]
STATES = [1, 2, 3, 4, 5, 8, 16, 17, 33, 256]
LENGTHS = [0, 1, 2, 3, 15, 16, 17, 32, 33, 65, 257]
WORK = 100_000  # the most exponentials in a call
examples = settings(max_examples=200)
dtypes = st.sampled_from(DTYPES)
some = st.booleans()


@st.composite
def scan_cases(draw, lengths=None):
    """Calls of `selective_scan`; packed, where `lengths` says of what."""
    e = draw(st.sampled_from(CHANNELS))
    n = draw(st.sampled_from([n for n in STATES if e * n <= WORK / 10]))
    packed = draw(lengths) if lengths is not None else None
    if packed is not None:
        packed = tuple(min(length, WORK // max(1, e * n)) for length in packed)
    l = draw(st.sampled_from([l for l in LENGTHS if l * e * n <= WORK]))
    return ScanCase(
        b=draw(st.integers(0, 3)),
        l=l,
        lengths=packed,
        e=e,
        n=n,
        groups=draw(st.sampled_from([None, *(g for g in (1, 2, 3, 5, 43, 127) if e % g == 0)])),
        reverse=draw(some),
        **{name: draw(some) for name in ("D", "z", "delta_bias", "delta_softplus", "initial_state")},
    )


@st.composite
def conv_cases(draw, lengths=None):
    """Calls of `causal_conv1d`, likewise."""
    return ConvCase(
        b=draw(st.integers(0, 3)),
        l=draw(st.sampled_from(LENGTHS)),
        lengths=draw(lengths) if lengths is not None else None,
        e=draw(st.sampled_from(CHANNELS)),
        k=draw(st.sampled_from([1, 2, 3, 4, 5, 8, 40])),
        bias=draw(some),
        activation=draw(st.sampled_from([None, "silu"])),
        reverse=draw(some),
        initial_state=draw(some),
    )


packings = st.lists(st.sampled_from([0, 0, 1, 2, 5, 15, 16, 17, 33, 65]), min_size=0, max_size=5).map(tuple)
whole_calls = scan_cases() | conv_cases()
packed_calls = scan_cases(packings) | conv_cases(packings)
all_calls = whole_calls | packed_calls


@dataclass(frozen=True)
class Call:
    """A case with its tensors, ready to run in pieces."""

    case: Case
    inputs: dict[str, torch.Tensor]
    backend: str = "native"

    @classmethod
    def of(cls, case, *kinds):
        """The tensors in the given dtypes, in turn."""
        inputs = {name: x.detach() for name, x in case.inputs().items()}
        return cls(case, {name: x.to(kinds[i % len(kinds)]) for i, (name, x) in enumerate(inputs.items())})

    @property
    def length(self):
        return self.case.rows[1]

    def part(self, **changes):
        """The call with some tensors replaced; None leaves one out."""
        inputs = {name: x for name, x in (self.inputs | changes).items() if x is not None}
        return replace(self, inputs=inputs)

    def along_l(self, change):
        """The call with `change` made to every tensor that has positions."""
        return self.part(**{name: change(x) for name, x in self.inputs.items() if name in ALONG_L})

    def run(self):
        """The output and the final state."""
        operation = selective_scan if isinstance(self.case, ScanCase) else causal_conv1d
        return operation(**self.inputs, **self.case.options(), return_final_state=True, backend=self.backend)

    def gradients(self):
        """Every gradient through both outputs, by name, with cotangents that every dtype has."""
        leaves = self.part(**{name: x.detach().requires_grad_() for name, x in self.inputs.items()})
        outputs = leaves.run()
        grads = torch.autograd.grad(outputs, list(leaves.inputs.values()), [cotangent(y) for y in outputs])
        return dict(zip(leaves.inputs, grads, strict=True))


def cotangent(y):
    """Whole sixteenths, a ramp."""
    return ((torch.arange(y.numel()) % 33 - 16) / 16).view_as(y).to(y.dtype)


def assert_close(actual, expected):
    """Within the tolerance of outputs, of a number about 1 at least; in half precision one representable number."""
    for x, y in zip(actual, expected, strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        if x.dtype in OUTPUT_TOLERANCE:
            error, size = ((t.double().square().mean().sqrt() if t.numel() else 0) for t in (x - y, y))
            assert error <= OUTPUT_TOLERANCE[x.dtype] * max(1, size)
        else:
            torch.testing.assert_close(x.float(), y.float(), rtol=torch.finfo(x.dtype).eps, atol=1e-6)


def assert_same(actual, expected):
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


def in_pieces(call, cuts, steps):
    """The outputs of the pieces between `cuts`, the state carried; with `steps`, pieces of one position are steps."""
    state_of = "initial_state"
    pairs = list(pairwise([0, *sorted(cuts), call.length]))
    pieces, state = [], call.inputs.get(state_of)
    for start, stop in reversed(pairs) if call.case.reverse else pairs:
        piece = call.along_l(lambda x, start=start, stop=stop: x[:, start:stop]).part(**{state_of: state})
        if steps and stop - start == 1 and state is not None:
            out, state = a_step(piece)
        else:
            out, state = piece.run()
        pieces.append(out)
    return torch.cat(pieces[::-1] if call.case.reverse else pieces, dim=1), state


def a_step(call):
    """A call of one position by the function that takes one token."""
    tensors = {name: x[:, 0] if name in ALONG_L else x for name, x in call.inputs.items()}
    state = tensors.pop("initial_state").clone()
    if isinstance(call.case, ScanCase):
        state = state.to(torch.promote_types(state.dtype, torch.float32))  # a step leaves it in the dtype it has
        out = selective_state_update(state, **tensors, delta_softplus=call.case.delta_softplus)
    else:
        out = causal_conv1d_update(tensors.pop("x"), state, **tensors, activation=call.case.activation)
    return out[:, None], state


def cuts_of(data, call):
    return data.draw(st.lists(st.integers(0, call.length) | st.integers(0, min(3, call.length)), max_size=5))


@examples
@given(case=whole_calls, dtype=dtypes, steps=some, data=st.data())
def test_any_split_gives_the_result_of_the_whole(case, dtype, steps, data):
    call = Call.of(case, dtype)
    assert_close(in_pieces(call, cuts_of(data, call), steps), call.run())


@examples
@given(case=whole_calls, data=st.data())
def test_any_split_gives_the_gradients_of_the_whole(case, data):
    call = Call.of(case, torch.float64)
    leaves = call.part(**{name: x.requires_grad_() for name, x in call.inputs.items()})
    outputs = in_pieces(leaves, cuts_of(data, call), steps=False)
    weights = [cotangent(y) for y in outputs]
    grads = torch.autograd.grad(outputs, list(leaves.inputs.values()), weights, materialize_grads=True)
    assert_close(grads, call.gradients().values())


def separate(call):
    """Each packed sequence as a call of its own, the state's row with it."""
    bounds = [0, *accumulate(call.case.lengths)]
    for k, (start, stop) in enumerate(pairwise(bounds)):
        alone = call.along_l(lambda x, start=start, stop=stop: x[:, start:stop])
        if call.case.initial_state:
            alone = alone.part(initial_state=call.inputs["initial_state"][k : k + 1])
        yield replace(alone, case=replace(call.case, lengths=None, b=1, l=stop - start))


@examples
@given(case=packed_calls, dtype=dtypes)
def test_packed_equals_separate(case, dtype):
    call = Call.of(case, dtype)
    out, states = call.run()
    results = [alone.run() for alone in separate(call)]
    if results:
        assert_close((out, states), (torch.cat([y for y, _ in results], dim=1), torch.cat([h for _, h in results])))
    else:
        assert (out.shape[1], states.shape[0]) == (0, 0)


@examples
@given(case=packed_calls)
def test_packed_gives_the_gradients_of_the_separate(case):
    call = Call.of(case, torch.float64)
    leaves = call.part(**{name: x.requires_grad_() for name, x in call.inputs.items()})
    outputs = [alone.run() for alone in separate(leaves)]
    if outputs:
        joined = (torch.cat([y for y, _ in outputs], dim=1), torch.cat([h for _, h in outputs]))
        weights = [cotangent(y) for y in joined]
        grads = torch.autograd.grad(joined, list(leaves.inputs.values()), weights, materialize_grads=True)
    else:
        grads = [torch.zeros_like(x) for x in leaves.inputs.values()]
    assert_close(call.gradients().values(), grads)


@examples
@given(case=whole_calls, dtype=dtypes)
def test_reverse_is_the_flip_of_the_flipped(case, dtype):
    call = Call.of(case, dtype)
    flipped = replace(call, case=replace(case, reverse=not case.reverse)).along_l(lambda x: x.flip(1))
    out, state = flipped.run()
    assert_close((out.flip(1), state), call.run())


@examples
@given(case=whole_calls)
def test_reverse_gives_the_flipped_gradients(case):
    call = Call.of(case, torch.float64)
    flipped = replace(call, case=replace(case, reverse=not case.reverse)).along_l(lambda x: x.flip(1))
    leaves = flipped.part(**{name: x.requires_grad_() for name, x in flipped.inputs.items()})
    out, state = leaves.run()
    weights = [cotangent(y) for y in (out, state)]
    grads = torch.autograd.grad((out.flip(1), state), list(leaves.inputs.values()), weights, materialize_grads=True)
    named = zip(leaves.inputs, grads, strict=True)
    assert_close([x.flip(1) if name in ALONG_L else x for name, x in named], call.gradients().values())


def transposed(x):
    return x.mT.contiguous().mT if x.ndim > 1 else x


def sliced(x):
    return torch.stack((x, torch.full_like(x, torch.nan)), dim=-1).flatten(-2)[..., ::2]


def inner(x):
    return torch.nn.functional.pad(x, (3, 1), value=torch.nan)[..., 3:-1]


def back_to_front(x):
    order = tuple(range(x.ndim))[::-1]
    return x.permute(order).contiguous().permute(order)


@examples
@given(case=all_calls, dtype=dtypes, data=st.data())
def test_any_strides_give_the_result_of_contiguous_tensors(case, dtype, data):
    layouts = st.sampled_from([transposed, sliced, inner, back_to_front])
    call = Call.of(case, dtype)
    odd = call.part(**{name: data.draw(layouts)(x) for name, x in call.inputs.items()})
    assert_same(odd.run(), call.run())
    assert_same(odd.gradients().values(), call.gradients().values())


@examples
@given(case=all_calls, data=st.data())
def test_expanded_tensors_give_the_result_of_their_copies(case, data):
    call = Call.of(case, torch.float32)
    expanded = {}
    for name, x in call.inputs.items():
        axis = data.draw(st.integers(0, x.ndim - 1))
        expanded[name] = x.narrow(axis, 0, 1).expand_as(x) if x.shape[axis] else x
    odd = call.part(**expanded)
    assert_same(odd.run(), odd.part(**{name: x.contiguous() for name, x in expanded.items()}).run())


@examples
@given(case=all_calls, kinds=st.lists(dtypes, min_size=1, max_size=9))
def test_any_mix_of_dtypes_is_the_rounded_wide_result(case, kinds):
    call = Call.of(case, *kinds)
    dtypes = {x.dtype for x in call.inputs.values()}
    wide_dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    wide = call.part(**{name: x.to(wide_dtype) for name, x in call.inputs.items()})
    (out, state), (wide_out, wide_state) = call.run(), wide.run()
    first = next(iter(call.inputs.values()))
    assert out.dtype == first.dtype
    assert state.dtype == (wide_dtype if isinstance(case, ScanCase) else first.dtype)
    assert_close((out, state), (wide_out.to(out.dtype), wide_state.to(state.dtype)))
    expected = wide.gradients()
    for name, grad in call.gradients().items():
        assert grad.dtype == call.inputs[name].dtype
        assert_close([grad], [expected[name].to(grad.dtype)])


@examples
@given(case=all_calls)
def test_any_call_matches_the_definition_in_both_passes(case):
    call = Call.of(case, torch.float64)
    definition = replace(call, backend="reference")
    assert_close(call.run(), definition.run())
    assert_close(call.gradients().values(), definition.gradients().values())
