"""The Triton kernels of the selective scan. Only `triton_gpu.py` imports this file, when a call runs on a GPU.

A program walks over a part of a sequence and a block of its channels. A thread holds `STEPS` consecutive positions in
registers, in a tile whose form is

    forward    (STEPS, CHANNELS, LANES, 1)    one state index at a time; `LANES` threads share a chunk's positions
    backward   (STEPS, WARPS, CHANNELS, 1)    a state index in each warp; a chunk has no more than `STEPS` positions

for Triton gives the trailing axes to the threads of a warp, then to the warps, and keeps the leading ones in registers.
So it is where a warp has 32 threads; elsewhere the results are the same, and the layout another.
The last axis is new wherever a tile enters this form: over a new axis, the layout of a load does not spread.

Positions count in the direction of the scan. A padded position has a step size of zero: the state passes through it.
README.md has the maths, and says how threads and chunks hand over the state.

Counts that vary from batch to batch are not specialized: Triton would compile anew where one is 1 or a multiple of 16.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
STEPS = tl.constexpr(16)  # between the states that the forward keeps


@triton.jit
def _over_lanes(decay, h, lane):
    """The recurrence over the lanes of (CHANNELS, LANES, 1): the state that leaves each; log2(LANES) rounds."""
    LANES: tl.constexpr = h.shape[1]
    for i in tl.static_range(5):
        if 1 << i < LANES:
            inside = lane >= 1 << i
            source = tl.broadcast_to(tl.where(inside, lane - (1 << i), lane), h.shape)
            h = tl.where(inside, decay * tl.gather(h, source, 1) + h, h)
            if 2 << i < LANES:
                decay = tl.where(inside, decay * tl.gather(decay, source, 1), decay)
    return h


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
def _to_lanes(x, LANES: tl.constexpr):
    """A tile (TIME, CHANNELS) in the form of the forward."""
    x = tl.permute(tl.reshape(x, (LANES, STEPS, x.shape[1])), (1, 2, 0))
    return x[:, :, :, None]


@triton.jit
def _from_lanes(x):
    """The inverse of `_to_lanes`."""
    CHANNELS: tl.constexpr = x.shape[1]
    LANES: tl.constexpr = x.shape[2]
    return tl.reshape(tl.permute(tl.reshape(x, (STEPS, CHANNELS, LANES)), (2, 0, 1)), (LANES * STEPS, CHANNELS))


@triton.jit
def _to_warps(x, y):
    """Two tiles (STEPS, CHANNELS) in the form of the backward, each warp with all of them.

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
    """The two halves of (WARPS, 2 * STEPS, 1), tiles of the backward that are the same in each of its 32 channels."""
    x = tl.permute(x, (1, 0, 2))[:, :, :, None]
    x = tl.broadcast_to(x, (x.shape[0], x.shape[1], 32, 1))
    x = tl.reshape(x, (2, STEPS, x.shape[1], 32, 1))
    half = tl.arange(0, 2)[:, None, None, None, None]
    return _pick(x, half == 0), _pick(x, half == 1)


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
def _over_time(pointer, lanes):
    """B or C of one state index over a chunk, a tile of the forward for one channel.

    In loads of few elements: Triton lets every thread load what it needs by itself where a load has fewer than there
    are threads, and else takes them through shared memory.
    """
    numbers, piece = tl.arange(0, STEPS // 4), tl.arange(0, 4)
    tile = tl.zeros((STEPS // 4, 4, lanes.shape[0]), pointer.dtype.element_ty)
    for i in tl.static_range(STEPS // 4):
        values = tl.load(pointer + _place(i * 4 + piece[:, None], lanes[None, :], lanes.shape[0]))
        tile = tl.where((numbers == i)[:, None, None], values[None], tile)
    return tl.reshape(tile, (STEPS, lanes.shape[0]))[:, None, :, None]


@triton.jit
def _state(tile, j, numbers):
    """State `j` of each channel, (CHANNELS, 1, 1), from the lane that holds it."""
    LANES: tl.constexpr = tile.shape[2]
    held = _pick(tile, (numbers ^ j) < LANES)  # the same multiple of LANES
    return tl.gather(held, (tl.full((tile.shape[1], 1, 1), 0, tl.int32) + j) % LANES, 1)


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
def _channels_of_block(group, block, channels, CHANNELS: tl.constexpr):
    """The channels of a block, and which there are."""
    inside = block * CHANNELS + tl.arange(0, CHANNELS)
    return (group * channels + inside).to(tl.int64), inside < channels


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
    grad_y = grad_f if z is None else grad_f * (z_f * _sigmoid(z_f))
    return step, raw, u_t.to(dtype), grad_f, grad_y, z_f


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
    checkpoints,  # (slots of STEPS positions / TOGETHER, n, e, TOGETHER) or None
    bounds,
    length,
    channels,  # of a group
    groups,
    n,
    parts,
    part_chunks,  # of a part
    REVERSE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    CHANNELS: tl.constexpr,
    LANES: tl.constexpr,
    STATES: tl.constexpr,  # n, at least LANES and a power of two
    TOGETHER: tl.constexpr,  # kept states of a channel that lie side by side
    SUMMARY: tl.constexpr,  # the states and the decays alone
):
    """A block of channels over a part of a sequence, from its first chunk to its last."""
    TIME: tl.constexpr = STEPS * LANES
    dtype = state.dtype.element_ty
    s, part, group, block = _place_of_program(channels, groups, parts, CHANNELS)
    row, start, stop, slot = _span(s, bounds, length, TIME)
    e = channels * groups

    channel, held = _channels_of_block(group, block, channels, CHANNELS)
    steps, lanes = tl.arange(0, STEPS), tl.arange(0, LANES)
    nothing = tl.full((CHANNELS, LANES, 1), -0.0, dtype)  # x is x + -0.0, even where it is 0.0
    lane = lanes[None, :, None]
    last_lane = tl.full((CHANNELS, 1, 1), LANES - 1, tl.int32)
    before = tl.broadcast_to(tl.maximum(lane - 1, 0), (CHANNELS, LANES, 1))

    # The states carried from chunk to chunk: `LANES` threads share those of a channel.
    numbers_3 = (tl.arange(0, STATES // LANES)[:, None] * LANES + lanes[None, :])[:, None, :]
    numbers = numbers_3[:, :, :, None]
    there = held[None, :, None] & (numbers_3 < n)
    state_3 = ((s.to(tl.int64) * parts + part) * e + channel[None, :, None]) * n + numbers_3
    carried = tl.load(state + state_3, there, 0)[:, :, :, None]
    A_3 = A + channel[None, :, None] * A_e + numbers_3.to(tl.int64) * A_n
    exponents = tl.load(A_3, there, 0)[:, :, :, None].to(dtype) * LOG2E

    bias_v = None if bias is None else tl.load(bias + channel * bias_e, held, 0).to(dtype)
    u += row * u_b + channel * u_e
    delta += row * delta_b + channel * delta_e
    if z is not None:
        z += row * z_b + channel * z_e
    out += row * length * e + channel
    _row, _start, _stop, stretch = _span(s, bounds, length, STEPS)

    if SUMMARY:
        passed = tl.zeros((CHANNELS, LANES, 1), dtype)
    first_chunk = tl.minimum(start * 0 + part * part_chunks, tl.cdiv(stop - start, TIME))
    begin = first_chunk * TIME
    slot += first_chunk
    time = begin + tl.arange(0, TIME)
    valid, place = _positions(time, start, stop, held, REVERSE)
    u_t = _tile(u, place, u_l, valid)
    delta_t = _tile(delta, place, delta_l, valid)
    for _ in range(tl.minimum(tl.cdiv(stop - start, TIME) - first_chunk, part_chunks)):
        projections = (slot * groups + group) * n * TIME
        b = _over_time(B + projections, lanes)
        if not SUMMARY:
            c = _over_time(C + projections, lanes)
        if checkpoints is not None:
            keep = (begin + lanes * STEPS < stop - start)[:, None] & held[None, :]
            kept = stretch + begin // STEPS + lanes
            kept_at = (kept // TOGETHER * n * e * TOGETHER + kept % TOGETHER)[:, None] + channel[None, :] * TOGETHER
            # As if they were scattered: else Triton moves the states through shared memory, to store them in order.
            kept_at = tl.max_contiguous(checkpoints + kept_at, (1, 1))
        step, _raw = _step_size(delta_t.to(dtype), bias_v, valid, SOFTPLUS)
        delta_s = _to_lanes(step, LANES)
        x_s = _to_lanes(u_t, LANES).to(dtype) * delta_s
        delta_sum = tl.sum(delta_s, 0)
        if SUMMARY:
            passed += delta_sum
        y_s = tl.zeros((STEPS, CHANNELS, LANES, 1), dtype)
        for j in range(n):
            following = projections + tl.minimum(j + 1, n - 1) * TIME
            exponent = _state(exponents, j, numbers)
            h_0 = _state(carried, j, numbers)
            a = tl.exp2(delta_s * exponent[None])
            a_all = tl.exp2(delta_sum * exponent)
            x = x_s * b
            b = _over_time(B + following, lanes)  # a round ahead, so that nothing waits for it
            _keeps, h, h_all = _recur(a, x, nothing, steps)
            h_all = _over_lanes(a_all, tl.where(lane == 0, a_all * h_0 + h_all, h_all), lane)
            carried = tl.where(numbers == j, tl.gather(h_all, last_lane, 1)[None], carried)
            if not SUMMARY:
                h_in = tl.where(lane == 0, h_0, tl.gather(h_all, before, 1))
                if checkpoints is not None:
                    tl.store(kept_at, tl.permute(tl.reshape(h_in, (CHANNELS, LANES)), (1, 0)), keep)
                    kept_at = tl.max_contiguous(kept_at + e * TOGETHER, (1, 1))
                _keeps, h, h_all = _recur(a, x, h_in, steps)
                y_s += h * c
                c = _over_time(C + following, lanes)
        # What the next chunk needs, and this one again, are loaded together.
        now, now_valid = place, valid
        if D is not None:
            u_now = _tile(u, now, u_l, now_valid)
        if z is not None:
            z_now = _tile(z, now, z_l, now_valid)
        begin += TIME
        time = begin + tl.arange(0, TIME)
        valid, place = _positions(time, start, stop, held, REVERSE)
        u_t = _tile(u, place, u_l, valid)
        delta_t = _tile(delta, place, delta_l, valid)
        if not SUMMARY:
            y = _from_lanes(y_s)
            if D is not None:
                y += tl.load(D + channel * D_e, held, 0).to(dtype)[None, :] * u_now.to(dtype)
            if z is not None:
                z_f = z_now.to(dtype)
                y *= z_f * _sigmoid(z_f)
            tl.store(out[None, :] + now * e, y.to(out.dtype.element_ty), now_valid)
        slot += 1
    tl.store(state + state_3, tl.reshape(carried, there.shape), there)
    if SUMMARY:
        decays = tl.exp2(tl.sum(passed, 1)[None, :, None, :] * exponents)
        tl.store(decay + state_3, tl.reshape(decays, there.shape), there)


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
    BC,  # (slots, g, n, 2, STEPS), as `gather_projections` lays it out, n a multiple of WARPS
    checkpoints,  # (slots of STEPS positions / TOGETHER, n, e, TOGETHER)
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
    WARPS: tl.constexpr,
    TOGETHER: tl.constexpr,  # kept states of a channel that lie side by side
    SUMMARY: tl.constexpr,  # the states' gradients and the decays alone
):
    """A block of 32 channels over a part of a sequence, from its last chunk to its first.

    The states within a chunk come again from the one that the forward kept before it. What is carried from chunk to
    chunk, a number for each channel and state, stands in memory, so that n has no limit.

    Registers are what this kernel lacks. So a round of the states loads what the next one needs where its own is used
    for the last time, and what a chunk needs is loaded and computed again behind its rounds, not kept through them.
    """
    CHANNELS: tl.constexpr = 32  # the threads of a warp
    dtype = grad_state.dtype.element_ty
    s, part, group, block = _place_of_program(channels, groups, parts, CHANNELS)
    row, start, stop, slot = _span(s, bounds, length, STEPS)
    e = channels * groups
    states = _wide(n) * e
    rounds = tl.cdiv(n, WARPS)

    channel, held = _channels_of_block(group, block, channels, CHANNELS)
    steps, warps = tl.arange(0, STEPS), tl.arange(0, WARPS)[:, None, None]
    channel_3, held_3 = channel[None, :, None], held[None, :, None]
    item = tl.arange(0, 2 * STEPS)[None, :, None]
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
    # Of the first round of the states.
    in_round = warps * e + channel_3
    A_w = A + in_round
    grad_state_w = grad_state + program * states + in_round
    grad_A_w = grad_A + program * states + in_round
    checkpoints_w = checkpoints + in_round * TOGETHER
    BC_w = BC + warps * (2 * STEPS) + item
    grad_BC_w = grad_BC + warps * (2 * STEPS) + item
    sum_D = tl.zeros((STEPS, CHANNELS), dtype)
    sum_bias = tl.zeros((STEPS, CHANNELS), dtype)
    if SUMMARY:
        passed = tl.zeros((STEPS, CHANNELS), dtype)

    first_chunk = tl.minimum(start * 0 + part * part_chunks, tl.cdiv(stop - start, STEPS))
    end_chunk = tl.minimum(first_chunk + part_chunks, tl.cdiv(stop - start, STEPS))
    slot += end_chunk
    time = (end_chunk - 1) * STEPS + steps
    valid, place = _positions(time, start, stop, held, REVERSE)
    valid &= (time >= first_chunk * STEPS)[:, None]
    u_t, delta_t, grad_t, z_t = _load_chunk(u, u_l, delta, delta_l, grad_out, grad_out_l, z, z_l, place, valid)
    for _ in range(end_chunk - first_chunk):
        slot -= 1
        A_r, grad_state_r, grad_A_r = A_w, grad_state_w, grad_A_w
        # As if they stood side by side: else Triton loads them in another layout than all else.
        checkpoints_r = checkpoints_w + (slot // TOGETHER * states * TOGETHER + slot % TOGETHER)
        checkpoints_r = tl.max_contiguous(checkpoints_r, (1, CHANNELS, 1))
        BC_r = BC_w + (slot * groups + group) * rounds * (WARPS * 2 * STEPS)
        grad_BC_r = grad_BC_w + ((block.to(tl.int64) * slots + slot) * groups + group) * n * (2 * STEPS)
        there = (warps < n) & held_3
        both = tl.load(BC_r)
        A_j = tl.load(A_r, there, 0)
        carried = tl.load(grad_state_r, there, 0)
        if not SUMMARY:
            h_0 = tl.load(checkpoints_r, there, 0)
            sum_A = tl.load(grad_A_r, there, 0)
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
                checkpoints_r = tl.max_contiguous(checkpoints_r + more * e * TOGETHER, (1, CHANNELS, 1))
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
            grad_state_r += WARPS * e
            grad_A_r += WARPS * e
            A_j, there = next_A, next_there
        now, now_valid = place, valid
        if not SUMMARY:
            u_n, delta_n, grad_n, z_n = _load_chunk(
                u, u_l, delta, delta_l, grad_out, grad_out_l, z, z_l, now, now_valid
            )
        time -= STEPS
        valid, place = _positions(time, start, stop, held, REVERSE)
        valid &= (time >= first_chunk * STEPS)[:, None]
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
        passed_by = tl.sum(passed, 0)
        A += channel
        decay += program * states + channel
        for _ in range(n):
            tl.store(decay, tl.exp2(passed_by * (tl.load(A, held, 0) * LOG2E)), held)
            A += e
            decay += e
    else:
        if D is not None:
            tl.store(grad_D + program * e + channel, tl.sum(sum_D, 0), held)
        if bias is not None:
            tl.store(grad_bias + program * e + channel, tl.sum(sum_bias, 0), held)


@triton.jit(do_not_specialize=["parts"])
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
    B_out,  # (slots, g, states, TIME), its states `spacing` apart
    C_out,
    bounds,
    sequences,
    length,
    groups,
    n,
    states,  # n, or more of them: those are zero
    spacing,
    REVERSE: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,  # state indices
):
    """B and C chunk by chunk in the direction of the scan, time innermost by `_place`, zero where padded."""
    TIME: tl.constexpr = STEPS * LANES
    blocks_n = tl.cdiv(states, BLOCK)
    slot = tl.program_id(0) // (groups * blocks_n)
    row, start, stop, chunk = _chunk_of(slot, bounds, sequences, length, TIME)
    time = chunk * TIME + tl.arange(0, TIME)
    j = (tl.program_id(0) % blocks_n * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    group = tl.program_id(0) // blocks_n % groups
    valid, place = _positions(time, start, stop, j < n, REVERSE)
    in_chunk = _place(tl.arange(0, TIME) % STEPS, tl.arange(0, TIME) // STEPS, LANES)
    target = ((slot.to(tl.int64) * groups + group) * states + j[None, :]) * spacing + in_chunk[:, None]
    for_B = tl.load(B + row * B_b + place * B_l + group.to(tl.int64) * B_g + j[None, :] * B_n, valid, 0)
    for_C = tl.load(C + row * C_b + place * C_l + group.to(tl.int64) * C_g + j[None, :] * C_n, valid, 0)
    tl.store(B_out + target, for_B.to(B_out.dtype.element_ty), (j < states)[None, :])
    tl.store(C_out + target, for_C.to(C_out.dtype.element_ty), (j < states)[None, :])


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
    row, start, stop, chunk = _chunk_of(slot, bounds, sequences, length, STEPS)
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
        y *= z_v * _sigmoid(z_v)
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
