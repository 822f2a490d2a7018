"""The kernels of `triton_gpu`.

Two kinds of programs stand in one launch: those of tiles, and behind them, where there are states, one for each
sequence and block of channels that writes its final state or the gradient of its initial state. An input is read anew
through the cache for each position that it counts for.

`t` is a position of the row, and `q` the place in its sequence that it has in the direction of the convolution, from 0;
the initial state stands at negative places. `c` are channels, `(1, COLUMNS)`; positions of a tile are `(ROWS, 1)`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def forward(
    x, x_b, x_l, x_e, weight, w_e, w_k, bias, bias_e, state, s_b, s_e, s_k, bounds, sequences, steps,
    out, final, l, e, states,
    K: tl.constexpr, UNROLL: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The output of a tile, or a final state."""
    row, block, tiles, c = _place(l, e, states, ROWS, COLUMNS)
    known = c < e
    x += row * x_b + c * x_e
    if state is not None:
        state += c * s_e
    if block < tiles:
        t = block.to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        sequence, q, _ = _sequences(t, row, l, bounds, sequences, steps, REVERSE)
        live = known & (t < l)
        y = _sum(
            x, x_l, weight + c * w_e, w_k, bias if bias is None else bias + c * bias_e,
            state if state is None else state + sequence * s_b, s_k,
            t, q, known, live, K, UNROLL, REVERSE, WIDE,
        )  # fmt: skip
        if SILU:
            y = y * _sigmoid(y)
        tl.store(out + row * l * e + t * e + c, y, mask=live)
    else:
        one, first, size = _whole_sequence(block - tiles, row, l, bounds, REVERSE)
        for m in tl.range(K - 1, loop_unroll_factor=UNROLL):
            q = c * 0 + (size - (K - 1) + m)
            t = first - q if REVERSE else first + q
            value = _input(
                x, x_l, state if state is None else state + one * s_b, s_k, t, q, known, K, WIDE
            )  # fmt: skip
            tl.store(final + (one * e + c) * (K - 1) + m, value, mask=known)


@triton.jit
def backward_of_sums(
    x, x_b, x_l, x_e, weight, w_e, w_k, bias, bias_e, state, s_b, s_e, s_k, bounds, sequences, steps,
    grad, g_b, g_l, g_e, grad_sum, parts, l, e, states,
    K: tl.constexpr, UNROLL: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile's sums before their activation, and its part of those of weight and bias, (k+1, e)."""
    row, block, tiles, c = _place(l, e, states, ROWS, COLUMNS)
    known = c < e
    x += row * x_b + c * x_e
    t = block.to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    sequence, q, _ = _sequences(t, row, l, bounds, sequences, steps, REVERSE)
    live = known & (t < l)
    if state is not None:
        state += sequence * s_b + c * s_e
    total = tl.load(grad + row * g_b + t * g_l + c * g_e, mask=live, other=0).to(WIDE)
    if SILU:
        if bias is not None:
            bias += c * bias_e
        y = _sum(x, x_l, weight + c * w_e, w_k, bias, state, s_k, t, q, known, live, K, UNROLL, REVERSE, WIDE)
        sigmoid = _sigmoid(y)
        total = total * sigmoid * (1 + y * (1 - sigmoid))
        total = tl.where(live, total, 0)
        tl.store(grad_sum + row * l * e + t * e + c, total, mask=live)
    parts += (row * tiles + block) * (K + 1) * e + c
    for j in tl.range(K, loop_unroll_factor=UNROLL):
        value = _tapped(x, x_l, state, s_k, t, q, j, live, K, REVERSE, WIDE)
        tl.store(parts + j * e, tl.sum(total * value, axis=0, keep_dims=True), mask=known)
    tl.store(parts + K * e, tl.sum(total, axis=0, keep_dims=True), mask=known)


@triton.jit
def backward_of_inputs(
    weight, w_e, w_k, bounds, sequences, steps, grad_sum, g_b, g_l, g_e, grad_final, f_b, f_e, f_k,
    grad_x, grad_state, l, e, states,
    K: tl.constexpr, UNROLL: tl.constexpr, REVERSE: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile's inputs, or of an initial state."""
    row, block, tiles, c = _place(l, e, states, ROWS, COLUMNS)
    known = c < e
    weight += c * w_e
    grad_sum += row * g_b + c * g_e
    if grad_final is not None:
        grad_final += c * f_e
    if block < tiles:
        t = block.to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        sequence, q, length = _sequences(t, row, l, bounds, sequences, steps, REVERSE)
        live = known & (t < l)
        total = _grad_input(
            weight, w_k, grad_sum, g_l, grad_final, sequence * f_b, f_k, t, q, length, known, live,
            K, UNROLL, REVERSE, WIDE,
        )  # fmt: skip
        tl.store(grad_x + row * l * e + t * e + c, total, mask=live)
    elif grad_state is not None:
        one, first, size = _whole_sequence(block - tiles, row, l, bounds, REVERSE)
        for m in tl.range(K - 1, loop_unroll_factor=UNROLL):
            q = c * 0 + (m - (K - 1))
            t = first - q if REVERSE else first + q
            total = _grad_input(
                weight, w_k, grad_sum, g_l, grad_final, one * f_b, f_k, t, q, size, known, known,
                K, UNROLL, REVERSE, WIDE,
            )  # fmt: skip
            tl.store(grad_state + (one * e + c) * (K - 1) + m, total, mask=known)


@triton.jit
def update(
    x, x_b, x_e, weight, w_e, w_k, bias, bias_e, state, s_b, s_e, s_k, out, e,
    K: tl.constexpr, UNROLL: tl.constexpr, SILU: tl.constexpr, WIDE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The output of one position; the state moves on in place, each channel by a thread of its own."""
    across = tl.cdiv(e, COLUMNS)
    row = (tl.program_id(0) // across).to(tl.int64)
    c = (tl.program_id(0) % across).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    known = c < e
    weight += c * w_e
    state += row * s_b + c * s_e
    y = tl.zeros((COLUMNS,), WIDE)
    if bias is not None:
        y += tl.load(bias + c * bias_e, mask=known, other=0).to(WIDE)
    for m in tl.range(K - 1, loop_unroll_factor=UNROLL):
        value = tl.load(state, mask=known, other=0)
        y += value.to(WIDE) * _tap(weight, w_k, m, known, WIDE)
        tl.store(state - s_k, value, mask=known & (m > 0))
        state += s_k
    value = tl.load(x + row * x_b + c * x_e, mask=known, other=0)
    y += value.to(WIDE) * _tap(weight, w_k, K - 1, known, WIDE)
    if K > 1:
        tl.store(state - s_k, value, mask=known)
    if SILU:
        y = y * _sigmoid(y)
    tl.store(out + row * e + c, y, mask=known)


@triton.jit
def _place(l, e, states, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """This program's row, its block of that row, how many of these are tiles, and its channels."""
    across = tl.cdiv(e, COLUMNS)
    tiles = tl.cdiv(l, ROWS)
    program = tl.program_id(0)
    c = (program % across).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    block = program // across
    return (block // (tiles + states)).to(tl.int64), block % (tiles + states), tiles, c


@triton.jit
def _sequences(t, row, l, bounds, sequences, steps, REVERSE: tl.constexpr):
    """The sequence of each position, its place there, and the sequence's length."""
    if bounds is None:
        sequence = row
        start = row * 0
        stop = start + l
    else:  # the last that starts at or before a position: empty ones before it start there too
        low = (t * 0).to(tl.int32)
        high = low + sequences
        for _ in range(steps):
            middle = (low + high) // 2
            before = tl.load(bounds + middle) <= t
            low = tl.where(before, middle, low)
            high = tl.where(before, high, middle)
        sequence = low.to(tl.int64)
        start = tl.load(bounds + low)
        stop = tl.load(bounds + low + 1)
    return sequence, stop - 1 - t if REVERSE else t - start, stop - start


@triton.jit
def _whole_sequence(k, row, l, bounds, REVERSE: tl.constexpr):
    """Sequence `k` of a row: its number, the position where it begins, and its length."""
    if bounds is None:
        sequence = row
        start = row * 0
        stop = start + l
    else:
        sequence = k.to(tl.int64)
        start = tl.load(bounds + k)
        stop = tl.load(bounds + k + 1)
    return sequence, stop - 1 if REVERSE else start, stop - start


@triton.jit
def _sigmoid(y):
    return 1 / (1 + tl.exp(-y))


@triton.jit
def _tap(weight, w_k, j, known, WIDE: tl.constexpr):
    return tl.load(weight + j * w_k, mask=known, other=0).to(WIDE)


@triton.jit
def _input(x, x_l, state, s_k, t, q, live, K: tl.constexpr, WIDE: tl.constexpr):
    """The input at a position or in the initial state; zero before the sequence where there is none."""
    value = tl.load(x + t * x_l, mask=live & (q >= 0), other=0).to(WIDE)
    if state is not None:
        value += tl.load(state + (q + K - 1) * s_k, mask=live & (q < 0), other=0).to(WIDE)
    return value


@triton.jit
def _tapped(
    x, x_l, state, s_k, t, q, j, live, K: tl.constexpr, REVERSE: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """What tap `j` sees: the input `K - 1 - j` places before each."""
    back = K - 1 - j
    return _input(x, x_l, state, s_k, t + back if REVERSE else t - back, q - back, live, K, WIDE)


@triton.jit
def _sum(
    x, x_l, weight, w_k, bias, state, s_k, t, q, known, live,
    K: tl.constexpr, UNROLL: tl.constexpr, REVERSE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The convolution before its activation."""
    if bias is None:
        y = tl.where(live, 0.0, 0.0).to(WIDE)
    else:
        y = tl.where(live, tl.load(bias, mask=known, other=0).to(WIDE), 0)
    for j in tl.range(K, loop_unroll_factor=UNROLL):
        y += _tap(weight, w_k, j, known, WIDE) * _tapped(x, x_l, state, s_k, t, q, j, live, K, REVERSE, WIDE)
    return y


@triton.jit
def _grad_input(
    weight, w_k, grad_sum, g_l, grad_final, f_b, f_k, t, q, length, known, live,
    K: tl.constexpr, UNROLL: tl.constexpr, REVERSE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The gradient of an input: from the sums at and behind its place that it counts for, and from the final state."""
    total = tl.where(live, 0.0, 0.0).to(WIDE)
    for ahead in tl.range(K, loop_unroll_factor=UNROLL):
        inside = live & (q + ahead >= 0) & (q + ahead < length)
        there = t - ahead if REVERSE else t + ahead
        value = tl.load(grad_sum + there * g_l, mask=inside, other=0).to(WIDE)
        total += _tap(weight, w_k, K - 1 - ahead, known, WIDE) * value
    if grad_final is not None:
        m = q - length + K - 1
        total += tl.load(grad_final + f_b + m * f_k, mask=live & (m >= 0), other=0).to(WIDE)
    return total
