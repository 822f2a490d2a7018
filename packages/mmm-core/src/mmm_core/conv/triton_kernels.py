"""The kernels of `triton_gpu`.

Two kinds of programs stand in one launch: those of tiles, and behind them, where there are states, one for each sequence
and block of channels that writes its final state or the gradient of its initial state. A tap is read anew through the
cache for each position that it counts for.

`t` is a position of the row, and `q` the place in its sequence that it has in the direction of the convolution, from 0;
the initial state stands at negative places. `c` are channels, `(1, COLUMNS)`; positions of a tile are `(ROWS, 1)`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def forward(
    x, x_b, x_l, x_e, weight, w_e, w_k, bias, bias_e, state, s_b, s_e, s_k, bounds, sequences, steps,
    out, final,
    l, e, states,
    K: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row, block, tiles, c = _place(l, e, states, ROWS, COLUMNS)
    x += row * x_b + c * x_e
    weight += c * w_e
    known = c < e
    if block < tiles:
        t = block.to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        sequence, first, length = _sequences(t, row, l, bounds, sequences, steps, REVERSE)
        live = known & (t < l)
        if state is not None:
            state += sequence * s_b + c * s_e
        if bias is not None:
            bias += c * bias_e
        q = first - t if REVERSE else t - first
        y = _sum(x, x_l, weight, w_k, bias, state, s_k, t, q, known, live, K, REVERSE, WIDE)
        if SILU:
            y = y * _sigmoid(y)
        tl.store(out + row * l * e + t * e + c, y, mask=live)
    else:
        sequence, first, length = _whole_sequence(block - tiles, row, l, bounds, REVERSE)
        if state is not None:
            state += sequence * s_b + c * s_e
        for m in range(K - 1):
            q = c * 0 + (length - (K - 1) + m)
            t = first - q if REVERSE else first + q
            value = _input(x, x_l, state, s_k, t, q, known, K, WIDE)
            tl.store(final + (sequence * e + c) * (K - 1) + m, value, mask=known)


@triton.jit
def backward(
    x, x_b, x_l, x_e, weight, w_e, w_k, bias, bias_e, state, s_b, s_e, s_k, bounds, sequences, steps,
    grad, g_b, g_l, g_e, grad_final, f_b, f_e, f_k, grad_x, grad_state, parts,
    l, e, states,
    K: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row, block, tiles, c = _place(l, e, states, ROWS, COLUMNS)
    x += row * x_b + c * x_e
    grad += row * g_b + c * g_e
    weight += c * w_e
    known = c < e
    if bias is not None:
        bias += c * bias_e
    if block < tiles:
        t = block.to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        sequence, first, length = _sequences(t, row, l, bounds, sequences, steps, REVERSE)
        live = known & (t < l)
        if state is not None:
            state += sequence * s_b + c * s_e
        if grad_final is not None:
            grad_final += sequence * f_b + c * f_e
        q = first - t if REVERSE else t - first
        own = _grad_sum(
            x, x_l, weight, w_k, bias, state, s_k, grad, g_l, t, q, length, known, live, K, SILU, REVERSE, WIDE
        )
        parts += (row * tiles + block) * (K + 1) * e + c
        for j in range(K):
            back = K - 1 - j
            value = _input(x, x_l, state, s_k, t + back if REVERSE else t - back, q - back, live, K, WIDE)
            tl.store(parts + j * e, tl.sum(own * value, axis=0, keep_dims=True), mask=known)
        tl.store(parts + K * e, tl.sum(own, axis=0, keep_dims=True), mask=known)
        total = own * _tap(weight, w_k, K - 1, known, WIDE)
        total = _grad_input(
            x, x_l, weight, w_k, bias, state, s_k, grad, g_l, grad_final, f_k, t, q, length, known, live, total,
            K, SILU, REVERSE, WIDE,
        )  # fmt: skip
        tl.store(grad_x + row * l * e + t * e + c, total, mask=live)
    elif grad_state is not None:
        sequence, first, length = _whole_sequence(block - tiles, row, l, bounds, REVERSE)
        state += sequence * s_b + c * s_e
        if grad_final is not None:
            grad_final += sequence * f_b + c * f_e
        for m in range(K - 1):
            q = c * 0 + (m - (K - 1))
            t = first - q if REVERSE else first + q
            total = tl.zeros((1, COLUMNS), WIDE)
            total = _grad_input(
                x, x_l, weight, w_k, bias, state, s_k, grad, g_l, grad_final, f_k, t, q, length, known, known, total,
                K, SILU, REVERSE, WIDE,
            )  # fmt: skip
            tl.store(grad_state + (sequence * e + c) * (K - 1) + m, total, mask=known)


@triton.jit
def update(
    x, x_b, x_e, weight, w_e, w_k, bias, bias_e, state, s_b, s_e, s_k, out, e,
    K: tl.constexpr, SILU: tl.constexpr, WIDE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(e, COLUMNS)
    row = (tl.program_id(0) // across).to(tl.int64)
    c = (tl.program_id(0) % across).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    known = c < e
    weight += c * w_e
    state += row * s_b + c * s_e
    y = tl.zeros((COLUMNS,), WIDE)
    if bias is not None:
        y += tl.load(bias + c * bias_e, mask=known, other=0).to(WIDE)
    for m in range(K - 1):
        value = tl.load(state + m * s_k, mask=known, other=0)
        y += value.to(WIDE) * _tap(weight, w_k, m, known, WIDE)
        tl.store(state + (m - 1) * s_k, value, mask=known & (m > 0))
    value = tl.load(x + row * x_b + c * x_e, mask=known, other=0)
    y += value.to(WIDE) * _tap(weight, w_k, K - 1, known, WIDE)
    if K > 1:
        tl.store(state + (K - 2) * s_k, value, mask=known)
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
    """The sequence of each position, the position where it begins in the direction of the convolution, its length."""
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
        start = tl.load(bounds + low).to(tl.int64)
        stop = tl.load(bounds + low + 1).to(tl.int64)
    return sequence, stop - 1 if REVERSE else start, stop - start


@triton.jit
def _whole_sequence(k, row, l, bounds, REVERSE: tl.constexpr):
    """The same for sequence `k` of a row."""
    if bounds is None:
        sequence = row
        start = row * 0
        stop = start + l
    else:
        sequence = k.to(tl.int64)
        start = tl.load(bounds + k).to(tl.int64)
        stop = tl.load(bounds + k + 1).to(tl.int64)
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
def _sum(
    x, x_l, weight, w_k, bias, state, s_k, t, q, known, live,
    K: tl.constexpr, REVERSE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The convolution before its activation."""
    if bias is None:
        y = tl.where(live, 0.0, 0.0).to(WIDE)
    else:
        y = tl.where(live, tl.load(bias, mask=known, other=0).to(WIDE), 0)
    for j in range(K):
        back = K - 1 - j
        value = _input(x, x_l, state, s_k, t + back if REVERSE else t - back, q - back, live, K, WIDE)
        y += _tap(weight, w_k, j, known, WIDE) * value
    return y


@triton.jit
def _grad_sum(
    x, x_l, weight, w_k, bias, state, s_k, grad, g_l, t, q, length, known, live,
    K: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The gradient of that sum; zero outside of the sequence."""
    inside = live & (q >= 0) & (q < length)
    out = tl.load(grad + t * g_l, mask=inside, other=0).to(WIDE)
    if SILU:
        y = _sum(x, x_l, weight, w_k, bias, state, s_k, t, q, known, inside, K, REVERSE, WIDE)
        sigmoid = _sigmoid(y)
        out = out * sigmoid * (1 + y * (1 - sigmoid))
    return out


@triton.jit
def _grad_input(
    x, x_l, weight, w_k, bias, state, s_k, grad, g_l, grad_final, f_k, t, q, length, known, live, total,
    K: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The gradient of an input from the sums after its own, which stands in `total`, and from the final state."""
    for ahead in range(1, K):
        there = t - ahead if REVERSE else t + ahead
        part = _grad_sum(
            x, x_l, weight, w_k, bias, state, s_k, grad, g_l, there, q + ahead, length, known, live,
            K, SILU, REVERSE, WIDE,
        )  # fmt: skip
        total += _tap(weight, w_k, K - 1 - ahead, known, WIDE) * part
    if grad_final is not None:
        m = q - length + K - 1
        total += tl.load(grad_final + m * f_k, mask=live & (m >= 0), other=0).to(WIDE)
    return total
