"""The Triton kernels of the selective scan. Only `triton_gpu.py` imports this file, when a call runs on a GPU.

A program walks over a part of a sequence and a block of 32 channels, a chunk of `STEPS` positions at a time, and within
a chunk over the states, a round of `WARPS` at a time. It works on tiles of the form

    (STEPS, WARPS, CHANNELS, 1)

for Triton gives the trailing axes to the threads of a warp, then to the warps, and keeps the leading ones in registers:
a warp has a state index, and a thread the positions of a channel. So it is where a warp has 32 threads; elsewhere the
results are the same, and the layout another.
A tile enters this form over an axis that is new, the last one or the first: the layout of its load then stays behind.

What is carried from chunk to chunk, a number for each channel and state, stands in memory, so that n has no limit.
A round loads what the next one needs where its own is used for the last time: so it takes no register, and is there in
time. What a chunk needs both before and behind its rounds is loaded twice, for registers are what the kernels lack.

Positions count in the direction of the scan. A padded position has a step size of zero: the state passes through it.
README.md has the maths.

Counts that vary from batch to batch, but for the length, are not specialized: Triton would compile anew where one is 1
or a multiple of 16.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
STEPS = tl.constexpr(16)  # positions of a chunk
CHANNELS = tl.constexpr(32)  # of a program: the threads of a warp


@triton.jit
def _pick(x, which):
    """The one index of the first axis that `which` is true of; summed as integers, to which zeros add nothing."""
    BITS: tl.constexpr = tl.int64 if x.dtype == tl.float64 else tl.int32
    return tl.sum(tl.where(which, x.to(BITS, bitcast=True), 0), 0).to(x.dtype, bitcast=True)


@triton.jit
def _step(x, steps, i):
    """Step `i` of a tile; the compiler leaves no sum, for the steps are registers."""
    return _pick(x, (steps == i)[:, None, None, None])


@triton.jit
def _put(x, steps, i, values):
    """The tile with `values` as its step `i`."""
    return tl.where((steps == i)[:, None, None, None], values[None], x)


@triton.jit
def _recur(a, x, h, steps):
    """The recurrence over the steps of a tile from `h`: what each keeps of the state before, each state, the last."""
    kept = x
    states = x
    for i in tl.static_range(x.shape[0]):
        keeps = _step(a, steps, i) * h
        h = keeps + _step(x, steps, i)
        kept = _put(kept, steps, i, keeps)
        states = _put(states, steps, i, h)
    return kept, states, h


@triton.jit
def _recur_back(a, x, h, steps):
    """As `_recur`, from the last step to the first, where each step's decay is applied on leaving it."""
    states = x
    for i in tl.static_range(x.shape[0] - 1, -1, -1):
        g = h + _step(x, steps, i)
        states = _put(states, steps, i, g)
        h = _step(a, steps, i) * g
    return states, h


@triton.jit
def _log1p(x):
    """log(1 + x) for x in [0, 1], to one rounding also where x is small."""
    if x.dtype == tl.float64:
        w = x + 1
        y = tl.where(w == 1, x, tl.log(w) * (x / tl.where(w == 1, 1, w - 1)))
    else:  # x times a polynomial, the interpolation of log(1 + x) / x at the Chebyshev nodes
        y = x * -0.003176057 + 0.019542526
        y = y * x - 0.05637361
        y = y * x + 0.105436236
        y = y * x - 0.15269667
        y = y * x + 0.19663274
        y = y * x - 0.24951616
        y = y * x + 0.3332971
        y = y * x - 0.49999893
        y = x * (y * x + 1)
    return y


@triton.jit
def _softplus(x):
    return tl.where(x > 20, x, tl.maximum(x, 0) + _log1p(tl.exp2(-tl.abs(x) * LOG2E)))


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp2(-x * LOG2E))


@triton.jit
def _silu(x):
    return x * _sigmoid(x)


@triton.jit
def _wide(size):
    """A size in 64 bits; one that is 1 is a constant to Triton, and no tensor."""
    return tl.zeros((), tl.int64) + size


@triton.jit
def _span(s, bounds, length):
    """Row, first position, the one behind the last, chunks, and first chunk slot of sequence `s`."""
    row, start, stop = s.to(tl.int64), tl.zeros((), tl.int64), _wide(length)
    slot = row * tl.cdiv(length, STEPS)
    if bounds is not None:
        row, start, stop = row * 0, tl.load(bounds + s), tl.load(bounds + s + 1)
        slot = start // STEPS + s
    return row, start, stop, tl.cdiv(stop - start, STEPS), slot


@triton.jit
def _to_warps(x, y):
    """Two tiles (STEPS, CHANNELS) in the form of the rounds, each warp with all of them.

    They go there as one, which the compiler does not look through: else it computes anew in each warp what they come
    from. A tile alone goes as both.
    """
    x, y = tl.split(tl.join(x, y))
    return x[:, None, :, None], y[:, None, :, None]


@triton.jit
def _sum_of_warps(x):
    """The sum over the warps, (STEPS, CHANNELS).

    Its axes are put so that it lies as a load of four channels by each thread does, and need not be moved once more.
    """
    x = tl.reshape(x, (STEPS // 4, 4, x.shape[1], x.shape[2] // 4, 4))
    x = tl.sum(tl.permute(x, (2, 4, 0, 1, 3)), 0)
    return tl.reshape(tl.permute(x, (1, 2, 3, 0)), (STEPS, x.shape[3] * 4))


@triton.jit
def _sums_over_channels(x, y):
    """The sums over the channels of two tiles, (WARPS, 2 * STEPS, 1): those of x, then those of y.

    They change the threads for the registers through shared memory, where a thread then has all channels of one step.
    """
    x = tl.reshape(tl.join(x, y), (STEPS, x.shape[1], x.shape[2], 2))
    x = tl.reshape(tl.permute(x, (2, 1, 3, 0)), (x.shape[2], x.shape[1], 2 * STEPS))
    return tl.sum(x[:, :, :, None], 0)


@triton.jit
def _to_channels(x):
    """B and C of a round, (WARPS, 2 * STEPS, 1), as two tiles, the same in each channel."""
    x = tl.permute(x, (1, 0, 2))[:, :, :, None]
    x = tl.broadcast_to(x, (x.shape[0], x.shape[1], CHANNELS, 1))
    x = tl.reshape(x, (2, STEPS, x.shape[1], CHANNELS, 1))
    half = tl.arange(0, 2)[:, None, None, None, None]
    return _pick(x, half == 0), _pick(x, half == 1)


@triton.jit
def _step_size(delta, bias, valid, SOFTPLUS: tl.constexpr):
    """The step sizes of a tile, zero where padded, and what softplus was taken of."""
    raw = delta if bias is None else delta + bias[None, :]
    return tl.where(valid, _softplus(raw) if SOFTPLUS else raw, 0), raw


@triton.jit
def _place_of_program(channels, groups, parts):
    """The sequence of this program, the part of it, the group, and the block of the group's channels."""
    blocks = tl.cdiv(channels, CHANNELS) * groups
    part = tl.program_id(0) // blocks % parts
    s = tl.program_id(0) // blocks // parts
    group = tl.program_id(0) % blocks // tl.cdiv(channels, CHANNELS)
    block = tl.program_id(0) % tl.cdiv(channels, CHANNELS)
    return s, part, group, block


@triton.jit
def _channels_of_block(group, block, channels):
    """The channels of a block, and which there are."""
    inside = block * CHANNELS + tl.arange(0, CHANNELS)
    return (group * channels + inside).to(tl.int64), inside < channels


@triton.jit
def _chunks_of_part(part, part_chunks, chunks):
    """The first chunk of a part, and the one behind its last."""
    first = tl.minimum(_wide(part_chunks) * part, chunks)
    return first, tl.minimum(first + part_chunks, chunks)


@triton.jit
def _positions(time, start, stop, columns, REVERSE: tl.constexpr):
    """Which positions of a sequence there are in the columns that there are, and where they stand along the length."""
    return (time < stop - start)[:, None] & columns[None, :], (stop - 1 - time if REVERSE else start + time)[:, None]


@triton.jit
def _tile(pointer, place, stride, valid):
    """(positions, channels) of a tensor; `pointer` holds the channels."""
    return tl.load(pointer[None, :] + place * stride, valid, 0)


@triton.jit
def _load_chunk(u, u_l, delta, delta_l, grad_out, grad_out_l, z, z_l, place, valid):
    """What the backward reads of a chunk; a tile stands for z where there is none."""
    grad_t = _tile(grad_out, place, grad_out_l, valid)
    z_t = grad_t if z is None else _tile(z, place, z_l, valid)
    return _tile(u, place, u_l, valid), _tile(delta, place, delta_l, valid), grad_t, z_t


@triton.jit
def _widen_chunk(u_t, delta_t, grad_t, z_t, z, bias, valid, dtype: tl.constexpr, SOFTPLUS: tl.constexpr):
    """Step sizes, what softplus was taken of, u, the gradients behind and before the gate, and z."""
    step, raw = _step_size(delta_t.to(dtype), bias, valid, SOFTPLUS)
    grad_f, z_f = grad_t.to(dtype), z_t.to(dtype)
    grad_y = grad_f if z is None else grad_f * _silu(z_f)
    return step, raw, u_t.to(dtype), grad_f, grad_y, z_f


@triton.jit
def _store_decays(decay, passed, A, channel, held, n, e):
    """What a part multiplies the states of its channels by, from the sum of its step sizes."""
    A += channel
    decay += channel
    for _ in range(n):
        tl.store(decay, tl.exp2(passed * (tl.load(A, held, 0) * LOG2E)), held)
        A += e
        decay += e


@triton.jit(do_not_specialize=["parts", "part_chunks"])
def scan_forward(
    u,
    u_b,
    u_l,
    u_e,
    delta,
    delta_b,
    delta_l,
    delta_e,
    z,
    z_b,
    z_l,
    z_e,
    A,  # (n, e)
    D,
    D_e,
    bias,
    bias_e,
    BC,  # (slots, g, n, 2, STEPS), as `gather_projections` lays it out
    state,  # (sequences, parts, n, e): the state that enters each part; then, chunk by chunk, that which leaves
    decay,  # the same, for a summary: what a part multiplies the state by
    out,  # (b, l, e)
    checkpoints,  # (slots, n, e): the state that enters each chunk; or None
    bounds,
    length,
    channels,  # of a group
    groups,
    n,
    parts,
    part_chunks,  # of a part
    REVERSE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    WARPS: tl.constexpr,  # divides n
    SUMMARY: tl.constexpr,  # the states and the decays alone, of all parts but the last
):
    """A block of channels over a part of a sequence, from its first chunk to its last."""
    dtype = state.dtype.element_ty
    s, part, group, block = _place_of_program(channels, groups, parts)
    row, start, stop, chunks, slot = _span(s, bounds, length)
    first, end = _chunks_of_part(part, part_chunks, chunks)
    if SUMMARY:
        end = tl.where(part == parts - 1, first, end)
    e = channels * groups
    states = _wide(n) * e
    rounds = n // WARPS

    channel, held = _channels_of_block(group, block, channels)
    steps, warps = tl.arange(0, STEPS), tl.arange(0, WARPS)[:, None, None]
    item = tl.arange(0, 2 * STEPS)[None, :, None]
    held_3 = tl.broadcast_to(held[None, :, None], (WARPS, CHANNELS, 1))
    bias_v = None if bias is None else tl.load(bias + channel * bias_e, held, 0).to(dtype)
    D_v = None if D is None else tl.load(D + channel * D_e, held, 0).to(dtype)
    u += row * u_b + channel * u_e
    delta += row * delta_b + channel * delta_e
    if z is not None:
        z += row * z_b + channel * z_e
    out += row * length * e + channel
    program = s.to(tl.int64) * parts + part
    state += program * states
    in_round = warps * e + channel[None, :, None]
    if SUMMARY:
        passed = tl.zeros((STEPS, CHANNELS), dtype)

    slot += first
    time = first * STEPS + steps
    valid, place = _positions(time, start, stop, held, REVERSE)
    u_t = _tile(u, place, u_l, valid)
    delta_t = _tile(delta, place, delta_l, valid)
    for _ in range(end - first):
        # Of the first round of the states.
        BC_r = BC + (slot * groups + group) * rounds * (WARPS * 2 * STEPS) + warps * (2 * STEPS) + item
        A_r, state_r = A + in_round, state + in_round
        if checkpoints is not None:
            checkpoints_r = checkpoints + slot * states + in_round
        both = tl.load(BC_r)
        A_j = tl.load(A_r, held_3, 0)
        h_0 = tl.load(state_r, held_3, 0)
        step, _raw = _step_size(delta_t.to(dtype), bias_v, valid, SOFTPLUS)
        x_s, step_s = _to_warps(u_t.to(dtype) * step, step)
        if SUMMARY:
            passed += step
        y_s = tl.zeros((STEPS, WARPS, CHANNELS, 1), dtype)
        for r in range(rounds):
            more = tl.where(r + 1 < rounds, WARPS, 0)
            BC_r += more * (2 * STEPS)
            A_r += more * e
            b, c = _to_channels(both)
            both = tl.load(BC_r)
            a = tl.exp2(step_s * (A_j * LOG2E)[None])
            A_j = tl.load(A_r, held_3, 0)
            if checkpoints is not None:
                tl.store(checkpoints_r, h_0, held_3)
                checkpoints_r += WARPS * e
            _keeps, h, leaves = _recur(a, x_s * b, h_0, steps)
            h_0 = tl.load(state_r + more * e, held_3, 0)
            tl.store(state_r, leaves, held_3)
            state_r += WARPS * e
            if not SUMMARY:
                y_s += h * c
        now, now_valid = place, valid
        if not SUMMARY:
            if D is not None:
                u_n = _tile(u, now, u_l, now_valid)
            if z is not None:
                z_n = _tile(z, now, z_l, now_valid)
        time += STEPS
        valid, place = _positions(time, start, stop, held, REVERSE)
        u_t = _tile(u, place, u_l, valid)
        delta_t = _tile(delta, place, delta_l, valid)
        if not SUMMARY:
            y = _sum_of_warps(y_s)
            if D is not None:
                y += D_v[None, :] * u_n.to(dtype)
            if z is not None:
                y *= _silu(z_n.to(dtype))
            tl.store(out[None, :] + now * e, y.to(out.dtype.element_ty), now_valid)
        slot += 1
        tl.debug_barrier()  # what this chunk stored to be carried, the next one loads, perhaps by other threads
    if SUMMARY:
        _store_decays(decay + program * states, tl.sum(passed, 0), A, channel, held, n, e)


@triton.jit(do_not_specialize=["slots", "parts", "part_chunks"])
def scan_backward(
    u,
    u_b,
    u_l,
    u_e,
    delta,
    delta_b,
    delta_l,
    delta_e,
    z,
    z_b,
    z_l,
    z_e,
    A,  # (n, e)
    D,
    D_e,
    bias,
    bias_e,
    BC,  # as in the forward
    checkpoints,  # (slots, n, e)
    bounds,
    grad_out,
    grad_out_b,
    grad_out_l,
    grad_out_e,
    grad_state,  # (sequences, parts, n, e): the gradient that enters each part; then, chunk by chunk, that which leaves
    decay,  # the same, for a summary: what a part multiplies the gradient by
    grad_u,  # (b, l, e), as those of delta and z
    grad_delta,
    grad_z,
    grad_A,  # (sequences, parts, n, e): zeros; then, chunk by chunk, the sum
    grad_BC,  # (blocks, slots, g, n, 2, STEPS)
    grad_D,  # (sequences, parts, e)
    grad_bias,
    slots,
    length,
    channels,  # of a group
    groups,
    n,
    parts,
    part_chunks,  # of a part
    REVERSE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    WARPS: tl.constexpr,  # divides n
    SUMMARY: tl.constexpr,  # the states' gradients and the decays alone, of all parts but the first
):
    """A block of channels over a part of a sequence, from its last chunk to its first.

    The states within a chunk come again from the one that the forward kept.
    """
    dtype = grad_state.dtype.element_ty
    s, part, group, block = _place_of_program(channels, groups, parts)
    row, start, stop, chunks, slot = _span(s, bounds, length)
    first, end = _chunks_of_part(part, part_chunks, chunks)
    if SUMMARY:
        end = tl.where(part == 0, first, end)
    e = channels * groups
    states = _wide(n) * e
    rounds = n // WARPS

    channel, held = _channels_of_block(group, block, channels)
    steps, warps = tl.arange(0, STEPS), tl.arange(0, WARPS)[:, None, None]
    item = tl.arange(0, 2 * STEPS)[None, :, None]
    held_3 = tl.broadcast_to(held[None, :, None], (WARPS, CHANNELS, 1))
    bias_v = None if bias is None else tl.load(bias + channel * bias_e, held, 0).to(dtype)
    D_v = None if D is None else tl.load(D + channel * D_e, held, 0).to(dtype)
    u += row * u_b + channel * u_e
    delta += row * delta_b + channel * delta_e
    grad_out += row * grad_out_b + channel * grad_out_e
    grad_u += row * length * e + channel
    grad_delta += row * length * e + channel
    if z is not None:
        z += row * z_b + channel * z_e
        grad_z += row * length * e + channel
    program = s.to(tl.int64) * parts + part
    grad_state += program * states
    grad_A += program * states
    in_round = warps * e + channel[None, :, None]
    sum_D = tl.zeros((STEPS, CHANNELS), dtype)
    sum_bias = tl.zeros((STEPS, CHANNELS), dtype)
    if SUMMARY:
        passed = tl.zeros((STEPS, CHANNELS), dtype)

    slot += end
    time = (end - 1) * STEPS + steps
    valid, place = _positions(time, start, stop, held, REVERSE)
    valid &= (time >= first * STEPS)[:, None]  # before the first chunk nothing is loaded
    u_t, delta_t, grad_t, z_t = _load_chunk(u, u_l, delta, delta_l, grad_out, grad_out_l, z, z_l, place, valid)
    for _ in range(end - first):
        slot -= 1
        # Of the first round of the states.
        BC_r = BC + (slot * groups + group) * rounds * (WARPS * 2 * STEPS) + warps * (2 * STEPS) + item
        A_r, grad_state_r, grad_A_r = A + in_round, grad_state + in_round, grad_A + in_round
        checkpoints_r = checkpoints + slot * states + in_round
        grad_BC_r = grad_BC + ((block.to(tl.int64) * slots + slot) * groups + group) * n * (2 * STEPS)
        grad_BC_r += warps * (2 * STEPS) + item
        # True of all states there are; with it the compiler has registers for five per cent more speed.
        there = (warps < n) & held_3
        both = tl.load(BC_r)
        A_j = tl.load(A_r, held_3, 0)
        carried = tl.load(grad_state_r, held_3, 0)
        if not SUMMARY:
            h_0 = tl.load(checkpoints_r, held_3, 0)
            sum_A = tl.load(grad_A_r, held_3, 0)
        step, _raw, u_f, _grad_f, grad_y, _z_f = _widen_chunk(
            u_t, delta_t, grad_t, z_t, z, bias_v, valid, dtype, SOFTPLUS
        )
        x_s, step_s = _to_warps(u_f * step, step)
        grad_y_s, _grad_y_s = _to_warps(grad_y, grad_y)
        y_s = tl.zeros((STEPS, WARPS, CHANNELS, 1), dtype)
        grad_x_s = tl.zeros((STEPS, WARPS, CHANNELS, 1), dtype)
        grad_step_s = tl.zeros((STEPS, WARPS, CHANNELS, 1), dtype)
        if SUMMARY:
            passed += step
        for r in range(rounds):
            more = tl.where(r + 1 < rounds, WARPS, 0)
            BC_r += more * (2 * STEPS)
            A_r += more * e
            next_there = (r * WARPS + more + warps < n) & held_3
            next_A = tl.load(A_r, next_there, 0)
            b, c = _to_channels(both)
            both = tl.load(BC_r)
            a = tl.exp2(step_s * (A_j * LOG2E)[None])
            if not SUMMARY:
                keeps, h, _h = _recur(a, x_s * b, h_0, steps)
                checkpoints_r += more * e
                h_0 = tl.load(checkpoints_r, next_there, 0)
                if z is not None:
                    y_s += h * c
                for_C = grad_y_s * h
            g, leaves = _recur_back(a, grad_y_s * c, carried, steps)
            carried = tl.load(grad_state_r + more * e, next_there, 0)
            tl.store(grad_state_r, leaves, there)
            if not SUMMARY:
                exponent = g * keeps
                grad_x_s += g * b
                grad_step_s += exponent * A_j[None]
                sum_A += tl.sum(exponent * step_s, 0)
                next_sum_A = tl.load(grad_A_r + more * e, next_there, 0)
                tl.store(grad_A_r, sum_A, there)
                sum_A = next_sum_A
                tl.store(grad_BC_r, _sums_over_channels(g * x_s, for_C), r * WARPS + warps < n)
                grad_BC_r += WARPS * 2 * STEPS
            A_j, there = next_A, next_there
            grad_state_r += WARPS * e
            grad_A_r += WARPS * e
        now, now_valid = place, valid
        if not SUMMARY:
            u_n, delta_n, grad_n, z_n = _load_chunk(
                u, u_l, delta, delta_l, grad_out, grad_out_l, z, z_l, now, now_valid
            )
        time -= STEPS
        valid, place = _positions(time, start, stop, held, REVERSE)
        valid &= (time >= first * STEPS)[:, None]
        u_t, delta_t, grad_t, z_t = _load_chunk(u, u_l, delta, delta_l, grad_out, grad_out_l, z, z_l, place, valid)
        if not SUMMARY:
            step, raw, u_f, grad_f, grad_y, z_f = _widen_chunk(
                u_n, delta_n, grad_n, z_n, z, bias_v, now_valid, dtype, SOFTPLUS
            )
            grad_x = _sum_of_warps(grad_x_s)
            d_u = grad_x * step
            d_delta = _sum_of_warps(grad_step_s) + grad_x * u_f
            if SOFTPLUS:
                d_delta = tl.where(raw > 20, d_delta, d_delta * _sigmoid(raw))
            if D is not None:
                d_u += grad_y * D_v[None, :]
                sum_D += grad_y * u_f
            if z is not None:
                y = _sum_of_warps(y_s)
                if D is not None:
                    y += D_v[None, :] * u_f
                sigmoid = _sigmoid(z_f)
                d_z = grad_f * y * sigmoid * (1 + z_f * (1 - sigmoid))
                tl.store(grad_z[None, :] + now * e, d_z.to(grad_z.dtype.element_ty), now_valid)
            if bias is not None:
                sum_bias += tl.where(now_valid, d_delta, 0)
            tl.store(grad_u[None, :] + now * e, d_u.to(grad_u.dtype.element_ty), now_valid)
            tl.store(grad_delta[None, :] + now * e, d_delta.to(grad_delta.dtype.element_ty), now_valid)
        tl.debug_barrier()  # what this chunk stored to be carried, the next one loads, perhaps by other threads
    if SUMMARY:
        _store_decays(decay + program * states, tl.sum(passed, 0), A, channel, held, n, e)
    else:
        if D is not None:
            tl.store(grad_D + program * e + channel, tl.sum(sum_D, 0), held)
        if bias is not None:
            tl.store(grad_bias + program * e + channel, tl.sum(sum_bias, 0), held)


@triton.jit(do_not_specialize=["parts"])
def join_parts(
    state,  # (sequences, e * n): that which enters the first part
    through,  # (sequences, parts, e * n): what leaves each part but the last where nothing enters; then what enters it
    decay,  # the same: what a part multiplies by
    size,  # e * n
    parts,
    BACKWARD: tl.constexpr,  # from the last part to the first
    BLOCK: tl.constexpr,
):
    """The recurrence from part to part."""
    s = (tl.program_id(0) // tl.cdiv(size, BLOCK)).to(tl.int64)
    i = tl.program_id(0) % tl.cdiv(size, BLOCK) * BLOCK + tl.arange(0, BLOCK)
    h = tl.load(state + s * size + i, i < size)
    for number in range(parts):
        place = (s * parts + (parts - 1 - number if BACKWARD else number)) * size + i
        leaves = tl.load(through + place, i < size)
        tl.store(through + place, h, i < size)
        h = tl.load(decay + place, i < size) * h + leaves  # none asks for it behind the last part


@triton.jit(do_not_specialize=["sequences"])
def gather_projections(
    B,
    B_b,
    B_l,
    B_g,
    B_n,
    C,
    C_b,
    C_l,
    C_g,
    C_n,
    BC,  # (slots, g, n, 2, STEPS)
    bounds,
    sequences,
    length,
    groups,
    n,
    REVERSE: tl.constexpr,
    BLOCK: tl.constexpr,  # state indices
):
    """B and C chunk by chunk in the direction of the scan, time innermost, zero where padded."""
    blocks_n = tl.cdiv(n, BLOCK)
    slot = tl.program_id(0) // (groups * blocks_n)
    row, start, stop, chunk = _chunk_of(slot, bounds, sequences, length)
    steps = tl.arange(0, STEPS)
    time = chunk * STEPS + steps
    j = (tl.program_id(0) % blocks_n * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    group = tl.program_id(0) // blocks_n % groups
    valid, place = _positions(time, start, stop, j < n, REVERSE)
    target = ((slot.to(tl.int64) * groups + group) * n + j[None, :]) * (2 * STEPS) + steps[:, None]
    for_B = tl.load(B + row * B_b + place * B_l + group.to(tl.int64) * B_g + j[None, :] * B_n, valid, 0)
    for_C = tl.load(C + row * C_b + place * C_l + group.to(tl.int64) * C_g + j[None, :] * C_n, valid, 0)
    tl.store(BC + target, for_B.to(BC.dtype.element_ty), (j < n)[None, :])
    tl.store(BC + target + STEPS, for_C.to(BC.dtype.element_ty), (j < n)[None, :])


@triton.jit(do_not_specialize=["slots", "sequences", "blocks"])
def scatter_projections(
    BC,  # (blocks, slots, g, n, 2, STEPS)
    B_out,  # (b, l, g, n)
    C_out,
    bounds,
    sequences,
    slots,
    length,
    blocks,
    groups,
    n,
    REVERSE: tl.constexpr,
    BLOCK: tl.constexpr,  # state indices
):
    """The inverse of `gather_projections`, over the sum of the blocks."""
    blocks_n = tl.cdiv(n, BLOCK)
    slot = tl.program_id(0) // (groups * blocks_n)
    row, start, stop, chunk = _chunk_of(slot, bounds, sequences, length)
    steps = tl.arange(0, STEPS)
    time = chunk * STEPS + steps
    j = (tl.program_id(0) % blocks_n * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    group = tl.program_id(0) // blocks_n % groups
    valid, place = _positions(time, start, stop, j < n, REVERSE)
    source = BC + ((slot.to(tl.int64) * groups + group) * n + j[None, :]) * (2 * STEPS) + steps[:, None]
    sum_B = tl.zeros((STEPS, BLOCK), BC.dtype.element_ty)
    sum_C = tl.zeros((STEPS, BLOCK), BC.dtype.element_ty)
    for _ in range(blocks):
        sum_B += tl.load(source, valid, 0)
        sum_C += tl.load(source + STEPS, valid, 0)
        source += _wide(slots) * groups * n * (2 * STEPS)
    target = ((row * length + place) * groups + group) * n + j[None, :]
    tl.store(B_out + target, sum_B.to(B_out.dtype.element_ty), valid)
    tl.store(C_out + target, sum_C.to(C_out.dtype.element_ty), valid)


@triton.jit
def scan_update(
    state,
    state_b,
    state_e,
    state_n,
    u,
    u_b,
    u_e,
    delta,
    delta_b,
    delta_e,
    A,
    A_e,
    A_n,
    B,
    B_b,
    B_g,
    B_n,
    C,
    C_b,
    C_g,
    C_n,
    D,
    D_e,
    z,
    z_b,
    z_e,
    bias,
    bias_e,
    out,  # (b, e)
    e,
    channels,  # of a group
    n,
    WIDE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    BLOCK: tl.constexpr,
    STATES: tl.constexpr,
):
    """One position: the state in place, and the output."""
    dtype: tl.constexpr = tl.float64 if WIDE else tl.float32
    row = (tl.program_id(0) // tl.cdiv(e, BLOCK)).to(tl.int64)
    channel = tl.program_id(0) % tl.cdiv(e, BLOCK) * BLOCK + tl.arange(0, BLOCK)
    held = channel < e
    group = (channel // channels).to(tl.int64)
    channel = channel.to(tl.int64)
    u_v = tl.load(u + row * u_b + channel * u_e, held, 0).to(dtype)
    raw = tl.load(delta + row * delta_b + channel * delta_e, held, 0).to(dtype)
    if bias is not None:
        raw += tl.load(bias + channel * bias_e, held, 0).to(dtype)
    step = _softplus(raw) if SOFTPLUS else raw
    y = tl.zeros((BLOCK,), dtype)
    for first in range(0, n, STATES):
        j = (first + tl.arange(0, STATES))[None, :].to(tl.int64)
        inside = held[:, None] & (j < n)
        place = state + row * state_b + channel[:, None] * state_e + j * state_n
        a = tl.load(A + channel[:, None] * A_e + j * A_n, inside, 0).to(dtype)
        b = tl.load(B + row * B_b + group[:, None] * B_g + j * B_n, inside, 0).to(dtype)
        c = tl.load(C + row * C_b + group[:, None] * C_g + j * C_n, inside, 0).to(dtype)
        h = tl.load(place, inside, 0).to(dtype)
        h = tl.exp2(step[:, None] * (a * LOG2E)) * h + (step * u_v)[:, None] * b
        tl.store(place, h.to(state.dtype.element_ty), inside)
        y += tl.sum(tl.where(inside, h * c, 0), 1)
    if D is not None:
        y += tl.load(D + channel * D_e, held, 0).to(dtype) * u_v
    if z is not None:
        y *= _silu(tl.load(z + row * z_b + channel * z_e, held, 0).to(dtype))
    tl.store(out + row * e + channel, y.to(out.dtype.element_ty), held)


@triton.jit
def _chunk_of(slot, bounds, sequences, length):
    """Row, start, stop and number within its sequence of the chunk in a slot; past its end where the slot is unused."""
    if bounds is None:
        s = slot // tl.cdiv(length, STEPS)
    else:  # the last sequence whose first slot is not behind this one
        s = tl.zeros((), tl.int32)
        above = s + sequences
        while above - s > 1:
            middle = (s + above) // 2
            right = tl.load(bounds + middle) // STEPS + middle <= slot
            s = tl.where(right, middle, s)
            above = tl.where(right, above, middle)
    row, start, stop, _chunks, first_slot = _span(s, bounds, length)
    return row, start, stop, slot - first_slot
