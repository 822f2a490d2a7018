"""The Triton kernels of the selective scan. Only `triton_gpu.py` imports this file, when a call runs on a GPU.

A program walks over a part of a sequence and a block of its channels, in chunks of `TIME` positions. In a chunk, a
thread holds `STEPS` consecutive positions of `ROWS` channels in registers, and `LANES` threads share the positions:

    time t = lane * STEPS + step,   channel = c * ROWS + row,   a tile is (STEPS, ROWS, CHANNELS, LANES, 1).

Triton gives the trailing axes to the threads of a warp, then to the warps, and keeps the leading ones in registers. The
last axis is new wherever a tile enters this form: over a new axis, the layout of a load does not spread.

Positions count in the direction of the scan. A padded position has a step size of zero: the state passes through it.
README.md has the maths, and says how lanes and chunks hand over the state.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _over_lanes(decay, h, lane, BACKWARD: tl.constexpr):
    """The recurrence over the lanes of (ROWS, CHANNELS, LANES, 1): the state that leaves each; log2(LANES) rounds."""
    LANES: tl.constexpr = h.shape[2]
    for i in tl.static_range(5):
        if 1 << i < LANES:
            other = lane + (1 << i) if BACKWARD else lane - (1 << i)
            inside = (other >= 0) & (other < LANES)
            source = tl.broadcast_to(tl.where(inside, other, lane), h.shape)
            h = tl.where(inside, decay * tl.gather(h, source, 2) + h, h)
            if 2 << i < LANES:
                decay = tl.where(inside, decay * tl.gather(decay, source, 2), decay)
    return h


@triton.jit
def _pick(x, which):
    """The one index of the first axis that `which` is true of; summed as integers, to which zeros add nothing."""
    BITS: tl.constexpr = tl.int64 if x.dtype == tl.float64 else tl.int32
    return tl.sum(tl.where(which, x.to(BITS, bitcast=True), 0), 0).to(x.dtype, bitcast=True)


@triton.jit
def _step(x, steps, i):
    """Step `i` of a tile; the compiler leaves no sum, for the steps are registers."""
    return _pick(x, (steps == i)[:, None, None, None, None])


@triton.jit
def _put(x, steps, i, values):
    """The tile with `values` as its step `i`."""
    return tl.where((steps == i)[:, None, None, None, None], values[None], x)


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
    return tl.where(x > 20, x, tl.maximum(x, 0) + _log1p(tl.exp(-tl.abs(x))))


@triton.jit
def _wide(size):
    """A size in 64 bits; one that is 1 is a constant to Triton, and no tensor."""
    return tl.zeros((), tl.int64) + size


@triton.jit
def _span(s, bounds, length, TIME: tl.constexpr):
    """Row, first position, the one behind the last, and first chunk slot of sequence `s`."""
    row, start, stop = s.to(tl.int64), tl.zeros((), tl.int64), _wide(length)
    slot = row * tl.cdiv(length, TIME)
    if bounds is not None:
        row, start, stop = row * 0, tl.load(bounds + s), tl.load(bounds + s + 1)
        slot = start // TIME + s
    return row, start, stop, slot


@triton.jit
def _to_scan(x, STEPS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, LANES: tl.constexpr):
    """A tile (TIME, channels) in the form of the scan."""
    x = tl.permute(tl.reshape(x, (LANES, STEPS, CHANNELS, ROWS)), (1, 3, 2, 0))
    return x[:, :, :, :, None]


@triton.jit
def _from_scan(x):
    """The inverse of `_to_scan`."""
    STEPS: tl.constexpr = x.shape[0]
    ROWS: tl.constexpr = x.shape[1]
    CHANNELS: tl.constexpr = x.shape[2]
    LANES: tl.constexpr = x.shape[3]
    x = tl.permute(tl.reshape(x, (STEPS, ROWS, CHANNELS, LANES)), (3, 0, 2, 1))
    return tl.reshape(x, (LANES * STEPS, ROWS * CHANNELS))


@triton.jit
def _step_size(delta, bias, valid, SOFTPLUS: tl.constexpr):
    """The step sizes of a tile, zero where padded, and what softplus was taken of."""
    raw = delta if bias is None else delta + bias[None, :]
    return tl.where(valid, _softplus(raw) if SOFTPLUS else raw, 0), raw


@triton.jit
def _place(step, lane, LANES: tl.constexpr):
    """Where a chunk's B and C stand: four steps side by side, so that the lanes read a line of memory together."""
    return step // 4 * (4 * LANES) + lane * 4 + step % 4


@triton.jit
def _over_time(pointer, steps, lanes):
    """B or C of one state index over a chunk, (STEPS, 1, 1, LANES, 1)."""
    return tl.load(pointer + _place(steps[:, None], lanes[None, :], lanes.shape[0]))[:, None, None, :, None]


@triton.jit
def _state(tile, j, numbers):
    """State `j` of each channel, (ROWS, CHANNELS, 1, 1), from the lane that holds it."""
    LANES: tl.constexpr = tile.shape[3]
    held = _pick(tile, (numbers ^ j) < LANES)  # the same multiple of LANES
    return tl.gather(held, (tl.full((tile.shape[1], tile.shape[2], 1, 1), 0, tl.int32) + j) % LANES, 2)


@triton.jit
def _over_channels(x, y, WARPS: tl.constexpr):
    """The sums of two tiles over the channels, (2 * TIME,): in each warp, then through shared memory over the warps."""
    STEPS: tl.constexpr = x.shape[0]
    LANES: tl.constexpr = x.shape[3]
    in_warp: tl.constexpr = (STEPS, WARPS, x.shape[2] // WARPS, LANES)
    x, y = tl.reshape(tl.sum(x, 1), in_warp), tl.reshape(tl.sum(y, 1), in_warp)
    both = tl.where(tl.arange(0, 2)[:, None, None, None, None] == 0, x[None], y[None])
    both = tl.permute(tl.sum(both, 3), (2, 0, 3, 1))  # (WARPS, 2, LANES, STEPS)
    return tl.sum(tl.reshape(both, (WARPS, 2 * LANES * STEPS))[:, :, None], 0).reshape(2 * LANES * STEPS)


@triton.jit
def _place_of_program(channels, groups, parts, BLOCK: tl.constexpr):
    """The sequence of this program, the part of it, the group, and the block of the group's channels."""
    blocks = tl.cdiv(channels, BLOCK) * groups
    part = tl.program_id(0) // blocks % parts
    s = tl.program_id(0) // blocks // parts
    group = tl.program_id(0) % blocks // tl.cdiv(channels, BLOCK)
    block = tl.program_id(0) % tl.cdiv(channels, BLOCK)
    return s, part, group, block


@triton.jit
def _channels_of_block(group, block, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """The channels of a block and which there are: flat, and in the form of the scan, (ROWS, CHANNELS, 1, 1)."""
    inside = block * (ROWS * CHANNELS) + tl.arange(0, ROWS * CHANNELS)
    inside_s = tl.arange(0, ROWS)[:, None] + tl.arange(0, CHANNELS)[None, :] * ROWS
    inside_s = (block * (ROWS * CHANNELS) + inside_s)[:, :, None, None]
    channel = (group * channels + inside).to(tl.int64)
    channel_s = (group * channels + inside_s).to(tl.int64)
    return channel, inside < channels, channel_s, inside_s < channels


@triton.jit
def _states_of_threads(channel_s, held_s, n, LANES: tl.constexpr, STATES: tl.constexpr):
    """The states of each channel over its `LANES` threads: their numbers, as tiles and as (STATES // LANES, ROWS,
    CHANNELS, LANES), and in that form their channels and which there are."""
    numbers_4 = (tl.arange(0, STATES // LANES)[:, None] * LANES + tl.arange(0, LANES)[None, :])[:, None, None, :]
    channel_4 = tl.reshape(channel_s, (1, channel_s.shape[0], channel_s.shape[1], 1))
    there = tl.reshape(held_s, channel_4.shape) & (numbers_4 < n)
    return numbers_4[:, :, :, :, None], numbers_4, channel_4, there


@triton.jit
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
    A,
    A_e,
    A_n,
    D,
    D_e,
    bias,
    bias_e,
    B,  # (slots, g, n, TIME), as `gather_projections` lays it out
    C,
    state,  # (sequences, parts, e, n): the state that enters each part; then that which leaves it
    decay,  # the same, for a summary: what a part multiplies the state by
    out,  # (b, l, e)
    checkpoints,  # (slots, n, e) or None
    bounds,
    length,
    channels,  # of a group
    groups,
    n,
    parts,
    part_chunks,  # of a part
    REVERSE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    LANES: tl.constexpr,
    STATES: tl.constexpr,  # n, at least LANES and a power of two
    SUMMARY: tl.constexpr,  # the states and the decays alone
):
    """A block of channels over a part of a sequence, from its first chunk to its last."""
    TIME: tl.constexpr = STEPS * LANES
    BLOCK: tl.constexpr = ROWS * CHANNELS
    dtype = state.dtype.element_ty
    s, part, group, block = _place_of_program(channels, groups, parts, BLOCK)
    row, start, stop, slot = _span(s, bounds, length, TIME)
    e = channels * groups

    channel, held, channel_s, held_s = _channels_of_block(group, block, channels, ROWS, CHANNELS)
    steps, lanes = tl.arange(0, STEPS), tl.arange(0, LANES)
    nothing = tl.full((ROWS, CHANNELS, LANES, 1), -0.0, dtype)
    lane = lanes[None, None, :, None]
    last_lane = tl.full((ROWS, CHANNELS, 1, 1), LANES - 1, tl.int32)
    before = tl.broadcast_to(tl.maximum(lane - 1, 0), (ROWS, CHANNELS, LANES, 1))

    # The states carried from chunk to chunk: `LANES` threads share those of a channel.
    numbers, numbers_4, channel_4, there = _states_of_threads(channel_s, held_s, n, LANES, STATES)
    state_4 = ((s.to(tl.int64) * parts + part) * e + channel_4) * n + numbers_4
    carried = tl.load(state + state_4, there, 0)[:, :, :, :, None]
    exponents = tl.load(A + channel_4 * A_e + numbers_4 * A_n, there, 0)[:, :, :, :, None].to(dtype) * LOG2E

    bias_v = None if bias is None else tl.load(bias + channel * bias_e, held, 0).to(dtype)
    u += row * u_b + channel * u_e
    delta += row * delta_b + channel * delta_e
    if z is not None:
        z += row * z_b + channel * z_e
    out += row * length * e + channel

    if SUMMARY:
        passed = tl.zeros((ROWS, CHANNELS, LANES, 1), dtype)
    first_chunk = tl.minimum(start * 0 + part * part_chunks, tl.cdiv(stop - start, TIME))
    begin = first_chunk * TIME
    slot += first_chunk
    for _ in range(tl.minimum(tl.cdiv(stop - start, TIME) - first_chunk, part_chunks)):
        if checkpoints is not None:
            tl.store(checkpoints + (slot * n + numbers_4) * e + channel_4, tl.reshape(carried, there.shape), there)
        projections = (slot * groups + group) * n * TIME
        b = _over_time(B + projections, steps, lanes)
        if not SUMMARY:
            c = _over_time(C + projections, steps, lanes)
        time = begin + tl.arange(0, TIME)
        valid = (time < stop - start)[:, None] & held[None, :]
        place = (stop - 1 - time if REVERSE else start + time)[:, None]
        u_t = tl.load(u[None, :] + place * u_l, valid, 0)
        delta_t = tl.load(delta[None, :] + place * delta_l, valid, 0).to(dtype)
        delta_t, _raw = _step_size(delta_t, bias_v, valid, SOFTPLUS)
        delta_s = _to_scan(delta_t, STEPS, ROWS, CHANNELS, LANES)
        x_s = _to_scan(u_t, STEPS, ROWS, CHANNELS, LANES).to(dtype) * delta_s
        delta_sum = tl.sum(delta_s, 0)
        if SUMMARY:
            passed += delta_sum
        y_s = tl.zeros((STEPS, ROWS, CHANNELS, LANES, 1), dtype)
        for j in range(n):
            following = projections + tl.minimum(j + 1, n - 1) * TIME
            exponent = _state(exponents, j, numbers)
            h_0 = _state(carried, j, numbers)
            a = tl.exp2(delta_s * exponent[None])
            a_all = tl.exp2(delta_sum * exponent)
            x = x_s * b
            b = _over_time(B + following, steps, lanes)  # a round ahead, so that nothing waits for it
            _kept, h, h_all = _recur(a, x, nothing, steps)
            h_all = _over_lanes(a_all, tl.where(lane == 0, a_all * h_0 + h_all, h_all), lane, False)
            carried = tl.where(numbers == j, tl.gather(h_all, last_lane, 2)[None], carried)
            if not SUMMARY:
                h_in = tl.where(lane == 0, h_0, tl.gather(h_all, before, 2))
                _kept, h, h_all = _recur(a, x, h_in, steps)
                y_s += h * c
                c = _over_time(C + following, steps, lanes)
        if not SUMMARY:
            y = _from_scan(y_s)
            if D is not None:
                u_t = tl.load(u[None, :] + place * u_l, valid, 0)
                y += tl.load(D + channel * D_e, held, 0).to(dtype)[None, :] * u_t.to(dtype)
            if z is not None:
                z_t = tl.load(z[None, :] + place * z_l, valid, 0).to(dtype)
                y *= z_t * tl.sigmoid(z_t)
            tl.store(out[None, :] + place * e, y.to(out.dtype.element_ty), valid)
        begin += TIME
        slot += 1
    tl.store(state + state_4, tl.reshape(carried, there.shape), there)
    if SUMMARY:
        decays = tl.exp2(tl.sum(passed, 2)[None, :, :, None, :] * exponents)
        tl.store(decay + state_4, tl.reshape(decays, there.shape), there)


@triton.jit
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
    A,
    A_e,
    A_n,
    D,
    D_e,
    bias,
    bias_e,
    B,  # (slots, g, n, TIME), as `gather_projections` lays it out
    C,
    checkpoints,  # (slots, n, e)
    bounds,
    grad_out,
    grad_out_b,
    grad_out_l,
    grad_out_e,
    grad_state,  # (sequences, parts, e, n): the gradient that enters each part; then that which leaves it
    decay,  # the same, for a summary: what a part multiplies the gradient by
    grad_u,  # (b, l, e), as those of delta and z
    grad_delta,
    grad_z,
    grad_A,  # (sequences, parts, e, n)
    grad_BC,  # (blocks, slots, g, n, 2, TIME)
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
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    LANES: tl.constexpr,
    STATES: tl.constexpr,  # n, at least LANES and a power of two
    WARPS: tl.constexpr,
    SUMMARY: tl.constexpr,  # the states' gradients and the decays alone
):
    """As `scan_forward`, from the last chunk to the first; each chunk's states come again from its checkpoint."""
    TIME: tl.constexpr = STEPS * LANES
    BLOCK: tl.constexpr = ROWS * CHANNELS
    dtype = grad_state.dtype.element_ty
    s, part, group, block = _place_of_program(channels, groups, parts, BLOCK)
    row, start, stop, slot = _span(s, bounds, length, TIME)
    e = channels * groups

    channel, held, channel_s, held_s = _channels_of_block(group, block, channels, ROWS, CHANNELS)
    steps, lanes = tl.arange(0, STEPS), tl.arange(0, LANES)
    nothing = tl.full((ROWS, CHANNELS, LANES, 1), -0.0, dtype)
    lane = lanes[None, None, :, None]
    first_lane = tl.full((ROWS, CHANNELS, 1, 1), 0, tl.int32)
    before = tl.broadcast_to(tl.maximum(lane - 1, 0), (ROWS, CHANNELS, LANES, 1))
    after = tl.broadcast_to(tl.minimum(lane + 1, LANES - 1), (ROWS, CHANNELS, LANES, 1))

    bias_v = None if bias is None else tl.load(bias + channel * bias_e, held, 0).to(dtype)
    u += row * u_b + channel * u_e
    delta += row * delta_b + channel * delta_e
    grad_out += row * grad_out_b + channel * grad_out_e
    grad_u += row * length * e + channel
    grad_delta += row * length * e + channel
    if z is not None:
        z += row * z_b + channel * z_e
        grad_z += row * length * e + channel
    # The gradients carried from chunk to chunk: `LANES` threads share those of a channel.
    numbers, numbers_4, channel_4, there = _states_of_threads(channel_s, held_s, n, LANES, STATES)
    state_4 = ((s.to(tl.int64) * parts + part) * e + channel_4) * n + numbers_4
    carried = tl.load(grad_state + state_4, there, 0)[:, :, :, :, None]
    A_s = tl.load(A + channel_4 * A_e + numbers_4 * A_n, there, 0)[:, :, :, :, None].to(dtype)
    sum_A = tl.zeros(A_s.shape, dtype)
    sum_D = tl.zeros((BLOCK,), dtype)
    sum_bias = tl.zeros((BLOCK,), dtype)

    if SUMMARY:
        passed = tl.zeros((ROWS, CHANNELS, LANES, 1), dtype)
    first_chunk = tl.minimum(start * 0 + part * part_chunks, tl.cdiv(stop - start, TIME))
    end_chunk = tl.minimum(first_chunk + part_chunks, tl.cdiv(stop - start, TIME))
    begin = end_chunk * TIME
    slot += end_chunk
    for _ in range(end_chunk - first_chunk):
        begin -= TIME
        slot -= 1
        projections = (slot * groups + group) * n * TIME
        time = begin + tl.arange(0, TIME)
        valid = (time < stop - start)[:, None] & held[None, :]
        place = (stop - 1 - time if REVERSE else start + time)[:, None]
        u_t = tl.load(u[None, :] + place * u_l, valid, 0)
        delta_t = tl.load(delta[None, :] + place * delta_l, valid, 0).to(dtype)
        delta_t, raw = _step_size(delta_t, bias_v, valid, SOFTPLUS)
        grad_y = tl.load(grad_out[None, :] + place * grad_out_l, valid, 0).to(dtype)
        if z is not None:
            z_t = tl.load(z[None, :] + place * z_l, valid, 0).to(dtype)
            grad_y *= z_t * tl.sigmoid(z_t)
        delta_s = _to_scan(delta_t, STEPS, ROWS, CHANNELS, LANES)
        x_s = _to_scan(u_t, STEPS, ROWS, CHANNELS, LANES).to(dtype) * delta_s
        grad_y_s = _to_scan(grad_y, STEPS, ROWS, CHANNELS, LANES)
        delta_sum = tl.sum(delta_s, 0)
        if SUMMARY:
            passed += delta_sum
        y_s = tl.zeros((STEPS, ROWS, CHANNELS, LANES, 1), dtype)
        grad_x_s = tl.zeros((STEPS, ROWS, CHANNELS, LANES, 1), dtype)
        grad_delta_s = tl.zeros((STEPS, ROWS, CHANNELS, LANES, 1), dtype)
        partial = ((block.to(tl.int64) * slots + slot) * groups + group) * n * (2 * TIME)
        if not SUMMARY:
            entering = tl.load(checkpoints + (slot * n + numbers_4) * e + channel_4, there, 0)[:, :, :, :, None]
        for j in range(n):
            c = _over_time(C + projections + j * TIME, steps, lanes)
            if not SUMMARY:
                b = _over_time(B + projections + j * TIME, steps, lanes)
            A_j = _state(A_s, j, numbers)
            carry = _state(carried, j, numbers)
            a = tl.exp2(delta_s * (A_j * LOG2E)[None])
            a_all = tl.exp2(delta_sum * (A_j * LOG2E))

            # The gradients of the states.
            grad_h = grad_y_s * c
            g, leaving = _recur_back(a, grad_h, nothing, steps)
            leaving = tl.where(lane == LANES - 1, a_all * carry + leaving, leaving)
            leaving = _over_lanes(a_all, leaving, lane, True)
            carried = tl.where(numbers == j, tl.gather(leaving, first_lane, 2)[None], carried)
            if not SUMMARY:
                g_in = tl.where(lane == LANES - 1, carry, tl.gather(leaving, after, 2))
                g, leaving = _recur_back(a, grad_h, g_in, steps)
                # The states, and what each keeps of the one before.
                h_0 = _state(entering, j, numbers)
                x = x_s * b
                kept, h, h_all = _recur(a, x, nothing, steps)
                h_all = _over_lanes(a_all, tl.where(lane == 0, a_all * h_0 + h_all, h_all), lane, False)
                h_in = tl.where(lane == 0, h_0, tl.gather(h_all, before, 2))
                kept, h, h_all = _recur(a, x, h_in, steps)
                # What they give to the inputs.
                exponent = g * kept
                y_s += h * c
                grad_x_s += g * b
                grad_delta_s += exponent * A_j[None]
                for_A = tl.sum(tl.sum(exponent * delta_s, 0), 2)[:, :, None, :]
                sum_A = tl.where(numbers == j, sum_A + for_A[None], sum_A)
                for_BC = _over_channels(g * x_s, grad_y_s * h, WARPS)
                tl.store(grad_BC + partial + j * (2 * TIME) + tl.arange(0, 2 * TIME), for_BC)
        if not SUMMARY:
            grad_x = _from_scan(grad_x_s)
            u_t = u_t.to(dtype)
            d_u = grad_x * delta_t
            d_delta = _from_scan(grad_delta_s) + grad_x * u_t
            if SOFTPLUS:
                d_delta = tl.where(raw > 20, d_delta, d_delta * tl.sigmoid(raw))
            if D is not None:
                D_v = tl.load(D + channel * D_e, held, 0).to(dtype)[None, :]
                d_u += grad_y * D_v
                sum_D += tl.sum(grad_y * u_t, 0)
            if z is not None:
                y = _from_scan(y_s)
                if D is not None:
                    y += D_v * u_t
                sigmoid = tl.sigmoid(z_t)
                g_t = tl.load(grad_out[None, :] + place * grad_out_l, valid, 0).to(dtype)
                d_z = g_t * y * sigmoid * (1 + z_t * (1 - sigmoid))
                tl.store(grad_z[None, :] + place * e, d_z.to(grad_z.dtype.element_ty), valid)
            if bias is not None:
                sum_bias += tl.sum(tl.where(valid, d_delta, 0), 0)
            tl.store(grad_u[None, :] + place * e, d_u.to(grad_u.dtype.element_ty), valid)
            tl.store(grad_delta[None, :] + place * e, d_delta.to(grad_delta.dtype.element_ty), valid)
    tl.store(grad_state + state_4, tl.reshape(carried, there.shape), there)
    if SUMMARY:
        decays = tl.exp2(tl.sum(passed, 2)[None, :, :, None, :] * (A_s * LOG2E))
        tl.store(decay + state_4, tl.reshape(decays, there.shape), there)
    else:
        tl.store(grad_A + state_4, tl.reshape(sum_A, there.shape), there)
        if D is not None:
            tl.store(grad_D + (s.to(tl.int64) * parts + part) * e + channel, sum_D, held)
        if bias is not None:
            tl.store(grad_bias + (s.to(tl.int64) * parts + part) * e + channel, sum_bias, held)


@triton.jit
def join_parts(
    state,  # (sequences, e * n): that which enters the first part; then that which leaves the last
    through,  # (sequences, parts, e * n): what leaves each part where nothing enters it; then what enters it
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
        h = tl.load(decay + place, i < size) * h + leaves
    tl.store(state + s * size + i, h, i < size)


@triton.jit
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
    B_out,  # (slots, g, n, TIME)
    C_out,
    bounds,
    sequences,
    length,
    groups,
    n,
    REVERSE: tl.constexpr,
    STEPS: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,  # state indices
):
    """B and C chunk by chunk in the direction of the scan, time innermost by `_place`, zero where padded."""
    TIME: tl.constexpr = STEPS * LANES
    blocks_n = tl.cdiv(n, BLOCK)
    slot = tl.program_id(0) // (groups * blocks_n)
    row, start, stop, chunk = _chunk_of(slot, bounds, sequences, length, TIME)
    time = chunk * TIME + tl.arange(0, TIME)
    j = tl.program_id(0) % blocks_n * BLOCK + tl.arange(0, BLOCK)
    group = tl.program_id(0) // blocks_n % groups
    place = (stop - 1 - time if REVERSE else start + time)[:, None]
    valid = (time < stop - start)[:, None] & (j < n)[None, :]
    in_chunk = _place(tl.arange(0, TIME) % STEPS, tl.arange(0, TIME) // STEPS, LANES)
    target = ((slot.to(tl.int64) * groups + group) * n + j[None, :]) * TIME + in_chunk[:, None]
    for_B = tl.load(B + row * B_b + place * B_l + group.to(tl.int64) * B_g + j[None, :] * B_n, valid, 0)
    for_C = tl.load(C + row * C_b + place * C_l + group.to(tl.int64) * C_g + j[None, :] * C_n, valid, 0)
    tl.store(B_out + target, for_B.to(B_out.dtype.element_ty), (j < n)[None, :])
    tl.store(C_out + target, for_C.to(C_out.dtype.element_ty), (j < n)[None, :])


@triton.jit
def scatter_projections(
    BC,  # (blocks, slots, g, n, 2, TIME)
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
    TIME: tl.constexpr,
    BLOCK: tl.constexpr,  # state indices
):
    """The inverse of `gather_projections`, over the sum of the blocks."""
    blocks_n = tl.cdiv(n, BLOCK)
    slot = tl.program_id(0) // (groups * blocks_n)
    row, start, stop, chunk = _chunk_of(slot, bounds, sequences, length, TIME)
    time = chunk * TIME + tl.arange(0, TIME)
    j = tl.program_id(0) % blocks_n * BLOCK + tl.arange(0, BLOCK)
    group = tl.program_id(0) // blocks_n % groups
    place = (stop - 1 - time if REVERSE else start + time)[:, None]
    valid = (time < stop - start)[:, None] & (j < n)[None, :]
    source = BC + ((slot.to(tl.int64) * groups + group) * n + j[None, :]) * (2 * TIME) + tl.arange(0, TIME)[:, None]
    sum_B = tl.zeros((TIME, BLOCK), BC.dtype.element_ty)
    sum_C = tl.zeros((TIME, BLOCK), BC.dtype.element_ty)
    for _ in range(blocks):
        sum_B += tl.load(source, valid, 0)
        sum_C += tl.load(source + TIME, valid, 0)
        source += _wide(slots) * groups * n * (2 * TIME)
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
    CHANNELS: tl.constexpr,
    STATES: tl.constexpr,
):
    """One position: the state in place, and the output."""
    dtype: tl.constexpr = tl.float64 if WIDE else tl.float32
    row = (tl.program_id(0) // tl.cdiv(e, CHANNELS)).to(tl.int64)
    channel = tl.program_id(0) % tl.cdiv(e, CHANNELS) * CHANNELS + tl.arange(0, CHANNELS)
    held = channel < e
    group = (channel // channels).to(tl.int64)
    channel = channel.to(tl.int64)
    u_v = tl.load(u + row * u_b + channel * u_e, held, 0).to(dtype)
    raw = tl.load(delta + row * delta_b + channel * delta_e, held, 0).to(dtype)
    if bias is not None:
        raw += tl.load(bias + channel * bias_e, held, 0).to(dtype)
    step = _softplus(raw) if SOFTPLUS else raw
    y = tl.zeros((CHANNELS,), dtype)
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
        z_v = tl.load(z + row * z_b + channel * z_e, held, 0).to(dtype)
        y *= z_v * tl.sigmoid(z_v)
    tl.store(out + row * e + channel, y.to(out.dtype.element_ty), held)


@triton.jit
def _chunk_of(slot, bounds, sequences, length, TIME: tl.constexpr):
    """Row, start, stop and number within its sequence of the chunk in a slot; past its end where the slot is unused."""
    if bounds is None:
        s = slot // tl.cdiv(length, TIME)
    else:  # the last sequence whose first slot is not behind this one
        s = tl.zeros((), tl.int32)
        above = s + sequences
        while above - s > 1:
            middle = (s + above) // 2
            right = tl.load(bounds + middle) // TIME + middle <= slot
            s = tl.where(right, middle, s)
            above = tl.where(right, above, middle)
    row, start, stop, first_slot = _span(s, bounds, length, TIME)
    return row, start, stop, slot - first_slot
