// The selective scan backward: tiles and chunks as in the forward, from the last chunk to the first. Each is recomputed
// from the state that enters it, with what the way back needs left in the first cache.

// What is worked on at once, so that it stays in registers: states, and vectors of channels.
constexpr int BACKWARD_BLOCK = 4;
constexpr int BACKWARD_VECTORS = MMM_BYTES == 64 ? 2 : 1;
constexpr int64_t STREAMED = 1 << 23;  // bytes of a gradient

// What the backward needs beside the forward's scratch.
template <class Real>
struct ScanBackwardWork : ScanWork<Real> {
  // Of each position and each state of a block: V decays, V states before it, and the products that B's and C's
  // gradients are sums of. One stream through the cache, where several would collide.
  static constexpr int SLOT = (2 * BACKWARD_VECTORS + 2) * LANES<Real>;
  static constexpr int HISTORY = SCAN_CHUNK * BACKWARD_BLOCK * SLOT;

  static int64_t size(int64_t n) {
    return ScanWork<Real>::size(n) + HISTORY + 2 * n * SCAN_TILE + 2 * SCAN_TILE +
           2 * SCAN_CHUNK * ScanWork<Real>::padded(n);
  }

  ScanBackwardWork(Real* at, int64_t n) : ScanWork<Real>(at, n) {
    at += ScanWork<Real>::size(n);
    history = at, at += HISTORY;
    for (Real** array : {&grad_h, &grad_A}) *array = at, at += n * SCAN_TILE;
    for (Real** array : {&grad_D, &grad_bias}) *array = at, at += SCAN_TILE;
    for (Real** array : {&sums_B, &sums_C}) *array = at, at += SCAN_CHUNK * this->projected;
  }

  Real *history, *grad_h, *grad_A, *grad_D, *grad_bias;
  Real *sums_B, *sums_C;  // over the tile's channels: [n / N][SCAN_CHUNK][N] for blocks of N states
};

// N states of V vectors of channels, forward over a chunk and back. Adds to y and to the gradients of the input, of
// delta, A, B and C; `grad_h` goes from the gradient of the leaving state to that of the entering one.
// PARTIAL: only `count` of their channels are there. The others are zeros, but for what an infinity makes of them.
template <int N, int V, bool PARTIAL, class Real>
void retreat(const ScanBackwardWork<Real>& work, int64_t first, int strip, int v, int count, int steps, Ahead ahead) {
  constexpr int W = LANES<Real>, SLOT = (2 * V + 2) * W;
  const Real* A = work.A + first * SCAN_TILE + strip + v;
  Real* const history = work.history;
  const int64_t states = first * SCAN_TILE + strip + v;
  {
    Vector<Real> state[N][V];
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
      for (int k = 0; k < V; ++k) state[n][k] = vector_at(work.h + states + n * SCAN_TILE + k * W);
    for (int t = 0; t < steps; ++t) {
      const Real *B = work.B + t * work.projected + first, *C = work.C + t * work.projected + first;
      Vector<Real> delta[V], input[V], grad_y[V], y[V];
#pragma GCC unroll 4
      for (int k = 0; k < V; ++k) {
        delta[k] = work.at(t, DELTA, v + k * W), input[k] = work.at(t, INPUT, v + k * W);
        grad_y[k] = work.at(t, GRAD_Y, v + k * W), y[k] = work.at(t, Y, v + k * W);
      }
      ahead.fetch_row();
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) {
        Real* slot = history + (t * N + n) * SLOT;
        Vector<Real> sum = {};
#pragma GCC unroll 4
        for (int k = 0; k < V; ++k) {
          const Vector<Real> decay = exp2(delta[k] * vector_at(A + n * SCAN_TILE + k * W));
          vector_at(slot + k * W) = decay;
          vector_at(slot + (V + k) * W) = state[n][k];
          state[n][k] = decay * state[n][k] + input[k] * B[n];
          y[k] += state[n][k] * C[n];
          if (PARTIAL)
            sum += only<Real>(grad_y[k] * state[n][k], count - k * W);
          else
            sum = k == 0 ? grad_y[k] * state[n][k] : sum + grad_y[k] * state[n][k];
        }
        vector_at(slot + 2 * V * W) = sum;
      }
#pragma GCC unroll 4
      for (int k = 0; k < V; ++k) work.at(t, Y, v + k * W) = y[k];
    }
  }
  Vector<Real> grad[N][V], grad_A[N][V];
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
    for (int k = 0; k < V; ++k) {
      grad[n][k] = vector_at(work.grad_h + states + n * SCAN_TILE + k * W);
      grad_A[n][k] = Vector<Real>{};  // a chunk's sum is added to the whole's at its end: fewer roundings in a row
    }
  for (int t = steps - 1; t >= 0; --t) {
    const Real *B = work.B + t * work.projected + first, *C = work.C + t * work.projected + first;
    Vector<Real> delta[V], input[V], grad_y[V], grad_input[V], grad_delta[V];
#pragma GCC unroll 4
    for (int k = 0; k < V; ++k) {
      delta[k] = work.at(t, DELTA, v + k * W), input[k] = work.at(t, INPUT, v + k * W);
      grad_y[k] = work.at(t, GRAD_Y, v + k * W);
      grad_input[k] = work.at(t, GRAD_INPUT, v + k * W), grad_delta[k] = work.at(t, GRAD_DELTA, v + k * W);
    }
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
      Real* slot = history + (t * N + n) * SLOT;
      Vector<Real> sum = {};
#pragma GCC unroll 4
      for (int k = 0; k < V; ++k) {
        grad[n][k] += grad_y[k] * C[n];
        if (PARTIAL)
          sum += only<Real>(grad[n][k] * input[k], count - k * W);
        else
          sum = k == 0 ? grad[n][k] * input[k] : sum + grad[n][k] * input[k];
        grad_input[k] += grad[n][k] * B[n];
        grad[n][k] *= vector_at(slot + k * W);
        const Vector<Real> exponent = grad[n][k] * vector_at(slot + (V + k) * W);
        grad_A[n][k] += exponent * delta[k];
        grad_delta[k] += exponent * vector_at(A + n * SCAN_TILE + k * W);
      }
      vector_at(slot + (2 * V + 1) * W) = sum;
    }
#pragma GCC unroll 4
    for (int k = 0; k < V; ++k) {
      work.at(t, GRAD_INPUT, v + k * W) = grad_input[k];
      work.at(t, GRAD_DELTA, v + k * W) = grad_delta[k];
    }
  }
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
    for (int k = 0; k < V; ++k) {
      vector_at(work.grad_h + states + n * SCAN_TILE + k * W) = grad[n][k];
      vector_at(work.grad_A + states + n * SCAN_TILE + k * W) += grad_A[n][k];
    }
  // The sums over the channels: W positions and states at a time.
  Real *sums_C = work.sums_C + first * SCAN_CHUNK, *sums_B = work.sums_B + first * SCAN_CHUNK;
  for (int i = 0; i < steps * N; i += W) {
    const Real* slot = history + i * SLOT + 2 * V * W;
    vector_at(sums_C + i) += sums<W, SLOT>(slot);
    vector_at(sums_B + i) += sums<W, SLOT>(slot + W);
  }
}

template <bool PARTIAL, class Real>
void retreat_vectors(const ScanBackwardWork<Real>& work, int strip, int v, int count, int steps, const Ahead& ahead) {
  constexpr int N = BACKWARD_BLOCK, V = BACKWARD_VECTORS;
  const int blocks = int(std::max<int64_t>(1, work.n / N)), pass = v / (V * LANES<Real>) * blocks;
  const int passes = STRIP<Real> / LANES<Real> / V * blocks;
  int64_t first = 0;
  for (; first + N <= work.n; first += N)
    retreat<N, V, PARTIAL>(work, first, strip, v, count, steps, ahead.share(pass + int(first / N), passes));
  for (; first < work.n; ++first) retreat<1, V, PARTIAL>(work, first, strip, v, count, steps, Ahead());
}

template <class Real>
void retreat_all(const ScanBackwardWork<Real>& work, int strip, int width, int steps, const Ahead& ahead) {
  constexpr int TOGETHER = BACKWARD_VECTORS * LANES<Real>;
  for (int v = 0; v < width; v += TOGETHER)
    if (v + TOGETHER <= width)
      retreat_vectors<false>(work, strip, v, TOGETHER, steps, ahead);
    else
      retreat_vectors<true>(work, strip, v, width - v, steps, ahead);
}

// Sums that several tasks have a part in: each writes its own, then they are added in order, whatever thread made them.
template <class Real>
struct ScanParts {
  static int64_t block_size(const mmm::ScanCall& call) { return call.e * (call.n + 2); }
  static int64_t part_size(const mmm::ScanCall& call) { return call.sequences.positions() * call.groups * call.n; }
  static int64_t size(const mmm::ScanCall& call) {
    return ScanTile::row_blocks(call) * block_size(call) + 2 * ScanTile::parts(call) * part_size(call);
  }

  ScanParts(Real* at, const mmm::ScanCall& call) : call(call), row_blocks(at) {
    B = at + ScanTile::row_blocks(call) * block_size(call);
    C = B + ScanTile::parts(call) * part_size(call);
  }

  // The sums over the positions of a block of rows: A's gradient state by state, then D's and delta_bias's.
  Real* of_rows(int64_t block, int64_t which, int64_t channel) const {
    return row_blocks + block * block_size(call) + which * call.e + channel;
  }
  // A tile's sums over its channels, as a tensor (b, l, g, n).
  mmm::Array of_tile(Real* sums, int64_t part) const {
    int64_t row = call.groups * call.n;
    return {reinterpret_cast<char*>(sums + part * part_size(call)), sizeof(Real) == 8 ? mmm::FLOAT64 : mmm::FLOAT32,
            {call.sequences.length * row, row, call.n, 1}};
  }

  const mmm::ScanCall& call;
  Real *row_blocks, *B, *C;
};

// A strip of a chunk, whose states enter in `h` and whose leaving states' gradients stand in `grad_h`.
template <class Real>
void scan_strip_backward(const mmm::ScanBackwardCall& whole, const ScanTile& tile, int64_t chunk, int strip,
                         ScanBackwardWork<Real>& work) {
  const mmm::ScanCall& call = whole.forward;
  constexpr int TOGETHER = BACKWARD_VECTORS * LANES<Real>;
  const int steps = tile.steps(chunk), channels = std::min(STRIP<Real>, tile.width - strip);
  const int width = (channels + TOGETHER - 1) / TOGETHER * TOGETHER;  // zeros fill the last vectors
  work.read_field(U, call.u, tile, chunk, strip);
  work.read_field(DELTA, call.delta, tile, chunk, strip);
  work.read_field(GRAD_Y, whole.grad_out, tile, chunk, strip);
  if (call.z.data) work.read_field(Z, call.z, tile, chunk, strip);
  for (int v = 0; v < width; v += LANES<Real>) {
    const Vector<Real> D = vector_at(work.D + strip + v), bias = vector_at(work.bias + strip + v);
    Vector<Real> grad_D = {};
    for (int t = 0; t < steps; ++t) {
      const Vector<Real> u = work.at(t, U, v);
      Vector<Real> delta = work.at(t, DELTA, v) + bias, grad_y = work.at(t, GRAD_Y, v);
      if (call.softplus) {
        const Softplus<Real> step = softplus<Real>(delta);
        delta = step.value, work.at(t, SLOPE, v) = step.slope;
      }
      if (call.z.data) {
        const Vector<Real> z = work.at(t, Z, v), gate = sigmoid<Real>(z);
        work.at(t, Z, v) = grad_y * gate * (Real(1) + z * (Real(1) - gate));  // to be multiplied by y
        grad_y *= z * gate;
      }
      grad_D += grad_y * u;
      work.at(t, DELTA, v) = delta;
      work.at(t, INPUT, v) = delta * u;
      work.at(t, Y, v) = call.D.data ? D * u : Vector<Real>{};
      work.at(t, GRAD_Y, v) = grad_y;
      work.at(t, GRAD_INPUT, v) = work.at(t, GRAD_DELTA, v) = Vector<Real>{};
    }
    vector_at(work.grad_D + strip + v) += grad_D;
  }
  Ahead ahead;
  if (chunk > 0) {
    for (const mmm::Array* x : {&call.u, &call.delta, &call.z, &whole.grad_out})
      ahead.add(*x, tile.positions(*x, chunk - 1, strip, STRIP<Real>));
    Block entering = tile.checkpoint_of(call, chunk - 1);
    entering.offset += strip;
    ahead.add(call.checkpoints, entering);
  }
  if (!work.streams)
    for (const mmm::Array* x : {&whole.grad_u, &whole.grad_delta, &whole.grad_z})
      ahead.add(*x, tile.positions(*x, chunk, strip, STRIP<Real>));
  retreat_all(work, strip, channels, steps, ahead);
  for (int v = 0; v < width; v += LANES<Real>) {
    const Vector<Real> D = vector_at(work.D + strip + v);
    Vector<Real> grad_bias = {};
    for (int t = 0; t < steps; ++t) {
      const Vector<Real> grad_input = work.at(t, GRAD_INPUT, v);
      Vector<Real> grad_delta = work.at(t, GRAD_DELTA, v) * Constants<Real>::LN2 + grad_input * work.at(t, U, v);
      if (call.softplus) grad_delta *= work.at(t, SLOPE, v);
      grad_bias += grad_delta;
      work.at(t, GRAD_DELTA, v) = grad_delta;
      Vector<Real> grad_u = grad_input * work.at(t, DELTA, v);
      if (call.D.data) grad_u += work.at(t, GRAD_Y, v) * D;
      work.at(t, GRAD_INPUT, v) = grad_u;
      work.at(t, Z, v) *= work.at(t, Y, v);
    }
    vector_at(work.grad_bias + strip + v) += grad_bias;
  }
  work.write_field(GRAD_INPUT, whole.grad_u, tile, chunk, strip);
  work.write_field(GRAD_DELTA, whole.grad_delta, tile, chunk, strip);
  if (call.z.data) work.write_field(Z, whole.grad_z, tile, chunk, strip);
}

// Writes the tile's sums over its channels, which stand block by block, into its part.
template <int N, class Real>
void write_block(Real* to, const Real* sums, const Block& block) {
  for (int t = 0; t < block.rows; ++t, to += block.row_stride) std::copy_n(sums + t * N, N, to);
}

template <class Real>
void write_sums(const mmm::Array& part, const Real* sums, const ScanTile& tile, int64_t chunk, int64_t n) {
  const Block block = tile.projections(part, chunk, n);
  Real* to = reinterpret_cast<Real*>(part.data) + block.offset;
  int64_t first = 0;
  for (; first + BACKWARD_BLOCK <= n; first += BACKWARD_BLOCK)
    write_block<BACKWARD_BLOCK>(to + first, sums + first * SCAN_CHUNK, block);
  for (; first < n; ++first) write_block<1>(to + first, sums + first * SCAN_CHUNK, block);
}

template <class Real>
void scan_tile_backward(const mmm::ScanBackwardCall& whole, const ScanTile& tile, ScanBackwardWork<Real>& work,
                        const ScanParts<Real>& parts) {
  const mmm::ScanCall& call = whole.forward;
  if (whole.grad_final_state.data)
    read_states(work.grad_h, SCAN_TILE, whole.grad_final_state, tile.row_states_of(whole.grad_final_state, call.n));
  else
    std::fill(work.grad_h, work.grad_h + call.n * SCAN_TILE, Real(0));
  const mmm::Array parts_B = parts.of_tile(parts.B, tile.part), parts_C = parts.of_tile(parts.C, tile.part);
  for (int64_t chunk = tile.chunks - 1; chunk >= 0; --chunk) {
    read_rows<SCAN_TILE>(work.h, SCAN_TILE, call.checkpoints, tile.checkpoint_of(call, chunk));
    work.read_projections(call, tile, chunk);
    for (Real* sums : {work.sums_B, work.sums_C}) std::fill(sums, sums + SCAN_CHUNK * work.projected, Real(0));
    for (int strip = 0; strip < tile.width; strip += STRIP<Real>)
      scan_strip_backward(whole, tile, chunk, strip, work);
    write_sums(parts_B, work.sums_B, tile, chunk, call.n);
    write_sums(parts_C, work.sums_C, tile, chunk, call.n);
  }
  if (whole.grad_initial_state.data)
    write_states(whole.grad_initial_state, work.grad_h, SCAN_TILE, tile.row_states_of(whole.grad_initial_state, call.n));
}

// A tile of the channels of a block of rows, whose sums over positions are added up as they come.
template <class Real>
void scan_rows_backward(const mmm::ScanBackwardCall& whole, int64_t task, ScanBackwardWork<Real>& work,
                        const ScanParts<Real>& parts) {
  const mmm::ScanCall& call = whole.forward;
  const int64_t rows = call.sequences.rows, blocks = ScanTile::row_blocks(call), block = task % blocks;
  const int64_t first = block * ScanTile::together(call), last = std::min(rows, first + ScanTile::together(call)) - 1;
  const ScanTile any(call, task / blocks * rows + first);
  work.read_parameters(call, any);
  std::fill(work.grad_A, work.grad_A + call.n * SCAN_TILE, Real(0));
  std::fill(work.grad_D, work.grad_D + SCAN_TILE, Real(0));
  std::fill(work.grad_bias, work.grad_bias + SCAN_TILE, Real(0));
  for (int64_t row = first; row <= last; ++row)
    scan_tile_backward(whole, ScanTile(call, task / blocks * rows + row), work, parts);
  for (int64_t n = 0; n < call.n; ++n)
    std::copy_n(work.grad_A + n * SCAN_TILE, any.width, parts.of_rows(block, n, any.channel));
  std::copy_n(work.grad_D, any.width, parts.of_rows(block, call.n, any.channel));
  std::copy_n(work.grad_bias, any.width, parts.of_rows(block, call.n + 1, any.channel));
}

// The sum of `count` rows of at most SCAN_TILE numbers that stand `apart` numbers behind each other, in their order:
// by groups, so that fewer roundings stand in a row.
template <class Real>
void add_up(Real* to, const Real* from, int64_t count, int64_t apart, int width) {
  constexpr int64_t GROUP = 64;
  std::fill(to, to + width, Real(0));
  for (int64_t first = 0; first < count; first += GROUP) {
    alignas(64) Real group[SCAN_TILE];
    std::fill(group, group + width, Real(0));
    for (int64_t k = first; k < std::min(count, first + GROUP); ++k)
      for (int i = 0; i < width; ++i) group[i] += from[k * apart + i];
    for (int i = 0; i < width; ++i) to[i] += group[i];
  }
}

// The gradients of B and C: over the tiles of each group.
template <class Real>
int add_up_tiles(const mmm::ScanBackwardCall& whole, const ScanParts<Real>& parts) {
  const mmm::ScanCall& call = whole.forward;
  const int64_t count = ScanTile::parts(call), row = call.groups * call.n, apart = parts.part_size(call);
  constexpr int WIDTH = 64;
  return mmm::for_each_piece(call.sequences.positions(), 2 * count * row, [&](int64_t begin, int64_t end) {
    alignas(64) Real total[WIDTH];
    for (int64_t position = begin; position < end; ++position)
      for (int64_t group = 0; group < call.groups; ++group)
        for (int64_t n = 0; n < call.n; n += WIDTH) {
          const int width = int(std::min<int64_t>(WIDTH, call.n - n));
          const int64_t from = position * row + group * call.n + n;
          const int64_t length = std::max<int64_t>(1, call.sequences.length);
          const int64_t batch = position / length, l = position % length;
          add_up(total, parts.B + from, count, apart, width);
          for (const auto* grad : {&whole.grad_B, &whole.grad_C}) {
            if (grad == &whole.grad_C) add_up(total, parts.C + from, count, apart, width);
            const int64_t* stride = grad->stride;
            write(*grad, total, WIDTH,
                  {batch * stride[0] + l * stride[1] + group * stride[2] + n * stride[3], 0, stride[3], 1, width});
          }
        }
    return 0;
  });
}

// The gradients of A, D and delta_bias: over the blocks of rows.
template <class Real>
int add_up_rows(const mmm::ScanBackwardCall& whole, const ScanParts<Real>& parts) {
  const mmm::ScanCall& call = whole.forward;
  const int64_t tiles = (call.e + SCAN_TILE - 1) / SCAN_TILE, blocks = ScanTile::row_blocks(call);
  return mmm::for_each_piece(tiles, blocks * call.n * SCAN_TILE, [&](int64_t begin, int64_t end) {
    alignas(64) Real total[SCAN_TILE];
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t channel = tile * SCAN_TILE;
      const int width = int(std::min<int64_t>(SCAN_TILE, call.e - channel));
      for (int64_t n = 0; n < call.n + 2; ++n) {
        add_up(total, parts.of_rows(0, n, channel), blocks, parts.block_size(call), width);
        const mmm::Array& grad = n < call.n ? whole.grad_A : n == call.n ? whole.grad_D : whole.grad_delta_bias;
        if (!grad.data) continue;
        int64_t offset = channel * grad.stride[0] + (n < call.n ? n * grad.stride[1] : 0);
        write(grad, total, SCAN_TILE, {offset, 0, grad.stride[0], 1, width});
      }
    }
    return 0;
  });
}

template <class Real>
int scan_backward_as(const mmm::ScanBackwardCall& whole) {
  const mmm::ScanCall& call = whole.forward;
  mmm::Scratch<Real> shared(ScanParts<Real>::size(call));
  if (!shared.data()) return 1;
  const ScanParts<Real> parts(shared.data(), call);
  mmm::expect_writes({&whole.grad_u, &whole.grad_delta, &whole.grad_z}, call.sequences.positions() * call.e);
  // Three gradients of this size push each other out of the caches; written past them, their lines need no reading.
  const bool streams = call.sequences.positions() * call.e * mmm::size_of(whole.grad_u.dtype) >= STREAMED;
  const int64_t tasks = ScanTile::row_blocks(call) * call.groups * ScanTile::parts(call);
  const int64_t cost = 3 * ScanTile::together(call) * ScanTile::cost(call);
  int failed = mmm::for_each_piece(tasks, cost, [&](int64_t begin, int64_t end) {
    mmm::Scratch<Real> scratch(ScanBackwardWork<Real>::size(call.n));
    if (!scratch.data()) return 1;
    ScanBackwardWork<Real> work(scratch.data(), call.n);
    work.streams = streams;
    for (int64_t task = begin; task < end; ++task) scan_rows_backward(whole, task, work, parts);
    if (streams) finish_streams();
    return 0;
  });
  if (failed == 0) failed = add_up_tiles(whole, parts);
  return failed ? failed : add_up_rows(whole, parts);
}

int scan_backward(const mmm::ScanBackwardCall& call) {
  return call.forward.wide ? scan_backward_as<double>(call) : scan_backward_as<float>(call);
}
