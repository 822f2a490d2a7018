"""Cases, an oracle and tolerances for the kernels: this project's tests use them, and so can a new backend's.

The oracle is a loop over scalars that shares no code with any backend. Its scalars are float64 tensors, so that
autograd gives the gradients without a formula of ours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import accumulate, product
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    _Places = dict[tuple[int, ...], Tensor]

OUTPUT_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-6}
"""The largest RMS error ratio of an output or a final state to the oracle."""

GRADIENT_TOLERANCE = {torch.float64: 1e-10, torch.float32: 5e-6}
"""The largest RMS error ratio of a gradient to the oracle."""


def rms_error_ratio(actual: Tensor, expected: Tensor) -> float:
    """RMS of the error over RMS of what was expected; 0 where both are empty or both are zero, NaN counts as infinite.

    Raises:
        AssertionError: The shapes differ.
    """
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    error = (actual.detach().double() - expected.detach().double()).square().sum().sqrt()
    if not torch.isfinite(error):
        return float("inf")
    return 0.0 if error == 0 else float(error / expected.detach().double().square().sum().sqrt())


def ulps_apart(actual: Tensor, expected: Tensor) -> int:
    """The most representable numbers between two float16 or bfloat16 tensors at any place."""
    assert actual.dtype == expected.dtype
    ranks = [_rank(tensor.detach().contiguous()) for tensor in (actual, expected)]
    return int((ranks[0] - ranks[1]).abs().max()) if actual.numel() else 0


def _rank(half: Tensor) -> Tensor:
    """Each number's place in the order of all 16-bit floats."""
    bits = half.view(torch.int16).to(torch.int32)
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


@dataclass(frozen=True, kw_only=True)
class Case(ABC):
    """The sizes and options of one call; `inputs` makes its tensors."""

    b: int = 2
    l: int = 17
    e: int = 6
    lengths: tuple[int, ...] | None = None  # of packed sequences; then b is 1 and l is their sum
    initial_state: bool = True
    reverse: bool = False

    @property
    def rows(self) -> tuple[int, int, int]:
        """The sizes of b and l, and of the states' first axis."""
        return (self.b, self.l, self.b) if self.lengths is None else (1, sum(self.lengths), len(self.lengths))

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor to differentiate, by name."""

    def options(self) -> dict[str, Any]:
        """The other keyword arguments."""
        options: dict[str, Any] = {"reverse": self.reverse}
        if self.lengths is not None:
            options["cu_seqlens"] = torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32)
        return options

    def inputs(self, dtype: torch.dtype = torch.float32, *, seed: int = 0) -> dict[str, Tensor]:
        """Normally distributed tensors by name, each a leaf that requires its gradient."""
        random = torch.Generator().manual_seed(seed)
        tensors = {name: torch.randn(shape, generator=random) for name, shape in self.shapes().items()}
        return {name: tensor.to(dtype).requires_grad_() for name, tensor in tensors.items()}


@dataclass(frozen=True, kw_only=True)
class ScanCase(Case):
    """A call of `selective_scan`."""

    n: int = 3
    groups: int | None = None  # None: B and C have no such axis
    D: bool = True
    z: bool = True
    delta_bias: bool = True
    delta_softplus: bool = True

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor to differentiate, by name."""
        b, l, states = self.rows
        projection = (b, l, self.n) if self.groups is None else (b, l, self.groups, self.n)
        shapes: dict[str, tuple[int, ...]] = {"u": (b, l, self.e), "delta": (b, l, self.e), "A": (self.e, self.n)}
        shapes |= {"B": projection, "C": projection}
        shapes |= {"D": (self.e,)} if self.D else {}
        shapes |= {"z": (b, l, self.e)} if self.z else {}
        shapes |= {"delta_bias": (self.e,)} if self.delta_bias else {}
        return shapes | ({"initial_state": (states, self.e, self.n)} if self.initial_state else {})

    def options(self) -> dict[str, Any]:
        """The other keyword arguments."""
        return {**super().options(), "delta_softplus": self.delta_softplus}

    def inputs(self, dtype: torch.dtype = torch.float32, *, seed: int = 0) -> dict[str, Tensor]:
        """Tensors by name; A is negative, and delta with its bias positive where no softplus makes it so."""
        tensors = {name: tensor.detach() for name, tensor in super().inputs(dtype, seed=seed).items()}
        tensors["A"] = -tensors["A"].exp()
        if not self.delta_softplus:
            tensors |= {name: tensors[name].abs() for name in ("delta", "delta_bias") if name in tensors}
        return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


@dataclass(frozen=True, kw_only=True)
class ConvCase(Case):
    """A call of `causal_conv1d`."""

    k: int = 4
    bias: bool = True
    activation: str | None = "silu"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor to differentiate, by name."""
        b, l, states = self.rows
        shapes: dict[str, tuple[int, ...]] = {"x": (b, l, self.e), "weight": (self.e, self.k)}
        shapes |= {"bias": (self.e,)} if self.bias else {}
        return shapes | ({"initial_state": (states, self.e, self.k - 1)} if self.initial_state else {})

    def options(self) -> dict[str, Any]:
        """The other keyword arguments."""
        return {**super().options(), "activation": self.activation}


CONV_CASES = {
    "everything": ConvCase(),
    "plain": ConvCase(bias=False, initial_state=False, activation=None),
    "one tap": ConvCase(k=1),
    "two taps": ConvCase(k=2, reverse=True),
    "more taps than positions": ConvCase(l=2, k=5),
    "more taps than positions, reverse": ConvCase(l=2, k=5, reverse=True),
    "reverse": ConvCase(reverse=True),
    "packed": ConvCase(lengths=(3, 0, 1, 9)),
    "packed, reverse": ConvCase(lengths=(3, 0, 1, 9), reverse=True),
    "packed, none": ConvCase(lengths=()),
    "no rows": ConvCase(b=0),
    "no positions": ConvCase(l=0),
    "no channels": ConvCase(e=0),
    **{f"l = {l}": ConvCase(l=l, b=1, e=3) for l in (1, 3, 5, 65, 257)},
}
"""Calls of `causal_conv1d` that cover its contract, by name."""


SCAN_CASES = {
    "plain": ScanCase(D=False, z=False, delta_bias=False, initial_state=False, delta_softplus=False),
    "everything": ScanCase(),
    "no softplus": ScanCase(delta_softplus=False),
    "no gate": ScanCase(z=False),
    "no skip": ScanCase(D=False),
    "one group": ScanCase(groups=1),
    "groups": ScanCase(b=3, groups=3),
    "a group a channel": ScanCase(groups=6),
    "one state": ScanCase(n=1),
    "many states": ScanCase(l=3, e=2, n=33),
    "reverse": ScanCase(reverse=True),
    "reverse groups": ScanCase(l=65, e=4, groups=2, reverse=True),
    "packed": ScanCase(lengths=(3, 1, 40, 5, 17)),
    "packed, empty ones": ScanCase(lengths=(0, 3, 0, 0, 35, 0), groups=2),
    "packed, reverse": ScanCase(lengths=(31, 0, 1, 33), reverse=True),
    "packed, fresh": ScanCase(lengths=(2, 7), initial_state=False),
    "packed, none": ScanCase(lengths=()),
    "no rows": ScanCase(b=0),
    "no positions": ScanCase(l=0),
    "no channels": ScanCase(e=0),
    "no channels, groups": ScanCase(e=0, groups=2),
    **{f"l = {l}": ScanCase(l=l, b=1, e=3, n=2) for l in (1, 2, 3, 5, 63, 64, 65, 257)},
}
"""Calls of `selective_scan` that cover its contract, by name."""


def assert_correct(case: Case, operation: Callable[..., tuple[Tensor, Tensor]], dtype: torch.dtype) -> None:
    """Check an operation on a case: output, final state, and every gradient through both, against the oracle.

    Args:
        case: The call.
        operation: `selective_scan` or `causal_conv1d`, or a stand-in with the same arguments.
        dtype: Of all the inputs; float32 or float64.
    Raises:
        AssertionError: A result is off by more than `OUTPUT_TOLERANCE` or `GRADIENT_TOLERANCE`; names it.
    """
    oracle: Callable[..., Any] = scan_oracle if isinstance(case, ScanCase) else conv_oracle
    results = {}
    for name, function, width in (("oracle", oracle, torch.float64), ("actual", operation, dtype)):
        inputs = {key: x.detach().to(width).requires_grad_() for key, x in case.inputs(dtype).items()}
        outputs = function(**inputs, **case.options(), return_final_state=True)
        weights = torch.Generator().manual_seed(1)
        cotangents = [torch.randn(y.shape, generator=weights).to(y.dtype) for y in outputs]
        grads = _gradients(outputs, list(inputs.values()), cotangents)
        results[name] = dict(zip(("output", "final state"), outputs, strict=True)) | dict(
            zip((f"gradient of {key}" for key in inputs), grads, strict=True)
        )
    for key, expected in results["oracle"].items():
        tolerance = (GRADIENT_TOLERANCE if "gradient" in key else OUTPUT_TOLERANCE)[dtype]
        ratio = rms_error_ratio(results["actual"][key], expected)
        assert ratio <= tolerance, f"{key}: RMS error ratio {ratio:.2e} to the oracle, at most {tolerance:.0e}; {case}"


def both_passes(
    case: Case, operation: Callable[..., tuple[Tensor, Tensor]], inputs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Both outputs of a call and every gradient through both, by name: to compare backends, dtypes or layouts.

    Args:
        case: The call.
        operation: As of `assert_correct`.
        inputs: What to call it with in place of the case's own tensors.
    Returns:
        "output" and "final state", and each gradient under its input's name. They are those of cotangents in whole
        sixteenths, which every dtype has.
    """
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    outputs = operation(**leaves, **case.options(), return_final_state=True)
    weights = torch.Generator().manual_seed(1)
    cotangents = [torch.randint(-16, 17, y.shape, generator=weights).to(y) / 16 for y in outputs]
    grads = torch.autograd.grad(outputs, list(leaves.values()), cotangents)
    return dict(zip(("output", "final state", *leaves), (*outputs, *grads), strict=True))


def _gradients(outputs: Sequence[Tensor], inputs: list[Tensor], cotangents: list[Tensor]) -> Sequence[Tensor]:
    """As `torch.autograd.grad`, with zeros where nothing connects: an empty output depends on no scalar."""
    pairs = [pair for pair in zip(outputs, cotangents, strict=True) if pair[0].requires_grad]
    if not pairs:
        return [torch.zeros_like(x) for x in inputs]
    connected, weights = zip(*pairs, strict=True)
    return torch.autograd.grad(connected, inputs, weights, allow_unused=True, materialize_grads=True)


def scan_oracle(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
) -> Any:
    """`mmm_core.selective_scan` by a scalar float64 loop; the arguments and results are its."""
    (b, l, e), n = u.shape, A.shape[1]
    if B.ndim == 3:
        B, C = B[:, :, None], C[:, :, None]
    channels = e // max(1, B.shape[2])  # of a group
    tables = [_scalars(x) for x in (u, delta, A, B, C, D, z, delta_bias, initial_state)]
    u_, delta_, A_, B_, C_, D_, z_, bias_, state_ = tables
    out: _Places = {}
    final: _Places = {}
    for row, k, positions in _sequences(b, l, cu_seqlens, reverse):
        for c in range(e):
            h = [state_[k][c][j] if state_ else _zero() for j in range(n)]
            for t in positions:
                step = delta_[row][t][c] + (bias_[c] if bias_ else 0)
                if delta_softplus and step <= 20:
                    step = torch.log1p(torch.exp(step))
                y = D_[c] * u_[row][t][c] if D_ else _zero()
                for j in range(n):
                    h[j] = torch.exp(step * A_[c][j]) * h[j] + step * B_[row][t][c // channels][j] * u_[row][t][c]
                    y = y + C_[row][t][c // channels][j] * h[j]
                out[row, t, c] = y * z_[row][t][c] * torch.sigmoid(z_[row][t][c]) if z_ else y
            final |= {(k, c, j): h[j] for j in range(n)}
    output = _tensor(out, u.shape)
    states = b if cu_seqlens is None else len(cu_seqlens) - 1
    return (output, _tensor(final, (states, e, n))) if return_final_state else output


def conv_oracle(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
) -> Any:
    """`mmm_core.causal_conv1d` by a scalar float64 loop; the arguments and results are its."""
    (b, l, e), taps = x.shape, weight.shape[1]
    x_, weight_, bias_, state_ = (_scalars(tensor) for tensor in (x, weight, bias, initial_state))
    out: _Places = {}
    final: _Places = {}
    for row, k, positions in _sequences(b, l, cu_seqlens, reverse):
        for c in range(e):
            seen = [state_[k][c][j] if state_ else _zero() for j in range(taps - 1)]
            for t in positions:
                seen.append(x_[row][t][c])
                y = bias_[c] if bias_ else _zero()
                for j in range(taps):
                    y = y + weight_[c][j] * seen[len(seen) - taps + j]
                out[row, t, c] = y * torch.sigmoid(y) if activation == "silu" else y
            final |= {(k, c, j): seen[len(seen) - taps + 1 + j] for j in range(taps - 1)}
    output = _tensor(out, x.shape)
    states = b if cu_seqlens is None else len(cu_seqlens) - 1
    return (output, _tensor(final, (states, e, taps - 1))) if return_final_state else output


def _sequences(b: int, l: int, cu_seqlens: Tensor | None, reverse: bool) -> Iterator[tuple[int, int, range]]:
    """Each sequence: its row in the batch, its row in the states, and its positions in order."""
    bounds = [0, l] if cu_seqlens is None else cu_seqlens.tolist()
    for row in range(b):
        for k in range(len(bounds) - 1):
            positions = range(bounds[k], bounds[k + 1])
            yield row, row + k, positions[::-1] if reverse else positions


def _scalars(x: Tensor | None) -> Any:
    """A tensor as nested lists of float64 scalars that autograd follows."""
    if x is None:
        return None
    return x.double() if x.ndim == 0 else [_scalars(y) for y in x.unbind()]


def _tensor(scalars: _Places, shape: Sequence[int]) -> Tensor:
    """The inverse of `_scalars`, from the scalars by place."""
    places = product(*map(range, shape))
    return torch.stack([*(scalars[place] for place in places), _zero()])[:-1].view(*shape)


def _zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)
