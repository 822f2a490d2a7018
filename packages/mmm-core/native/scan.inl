// The selective scan, forward and backward: a tile of channels of one sequence at a time, by chunks of its positions.
//
// Vectors run along the channels. A chunk's inputs are read into scratch once, in the arithmetic's type; the recurrence
// then runs over blocks of the state that stay in registers. The forward keeps the state that enters each chunk; the
// backward recomputes a chunk from it. ../src/mmm_core/scan/README.md has the maths.

constexpr int SCAN_CHUNK = 32;    // positions; mmm_core/scan/native.py knows it too
constexpr int SCAN_TILE = 128;    // channels
constexpr int SCAN_ROW = SCAN_TILE + 16;  // numbers between two rows of scratch: not a power of two, which caches hash badly
constexpr int FORWARD_BLOCK = MMM_BYTES == 64 ? 16 : 4;  // states in registers
constexpr int BACKWARD_BLOCK = MMM_BYTES == 64 ? 8 : 4;

// One sequence and one tile of its channels.
struct ScanTile {
  ScanTile(const mmm::ScanCall& call, int64_t task) {
    const mmm::Sequences& sequences = call.sequences;
    int64_t channels = call.e / call.groups, tiles = (channels + SCAN_TILE - 1) / SCAN_TILE;
    row = task % sequences.rows;
    part = task / sequences.rows % tiles;
    group = task / sequences.rows / tiles;
    channel = group * channels + part * SCAN_TILE;
    width = int(std::min<int64_t>(SCAN_TILE, channels - part * SCAN_TILE));
    vectors = width;
    if (sequences.bounds == nullptr) {
      batch = row, start = 0, stop = sequences.length;
      slot = row * ((sequences.length + SCAN_CHUNK - 1) / SCAN_CHUNK);
    } else {
      batch = 0, start = sequences.bounds[row], stop = sequences.bounds[row + 1];
      slot = start / SCAN_CHUNK + row;
    }
    chunks = (stop - start + SCAN_CHUNK - 1) / SCAN_CHUNK;
    reverse = sequences.reverse != 0;
  }

  static int64_t parts(const mmm::ScanCall& call) { return (call.e / call.groups + SCAN_TILE - 1) / SCAN_TILE; }
  static int64_t tasks(const mmm::ScanCall& call) { return call.sequences.rows * call.groups * parts(call); }
  static int64_t cost(const mmm::ScanCall& call) {
    const mmm::Sequences& sequences = call.sequences;
    int64_t positions = sequences.bounds ? sequences.length / std::max<int64_t>(1, sequences.rows) : sequences.length;
    return (positions + 1) * call.n * SCAN_TILE;
  }

  int steps(int64_t chunk) const { return int(std::min<int64_t>(SCAN_CHUNK, stop - start - chunk * SCAN_CHUNK)); }

  // The chunk of a (b, l, e) tensor, in the direction of the scan.
  Block positions(const mmm::Array& x, int64_t chunk) const {
    int64_t first = chunk * SCAN_CHUNK, position = reverse ? stop - 1 - first : start + first;
    int64_t offset = batch * x.stride[0] + position * x.stride[1] + channel * x.stride[2];
    return {offset, reverse ? -x.stride[1] : x.stride[1], x.stride[2], steps(chunk), width};
  }

  // The chunk of a (b, l, g, n) tensor.
  Block projections(const mmm::Array& x, int64_t chunk, int64_t n) const {
    int64_t first = chunk * SCAN_CHUNK, position = reverse ? stop - 1 - first : start + first;
    int64_t offset = batch * x.stride[0] + position * x.stride[1] + group * x.stride[2];
    return {offset, reverse ? -x.stride[1] : x.stride[1], x.stride[3], steps(chunk), int(n)};
  }

  // The tile of an (e,) tensor.
  Block channels_of(const mmm::Array& x) const { return {channel * x.stride[0], 0, x.stride[0], 1, width}; }

  // The tile of an (e, n) tensor or of a row of (rows, e, n), state by state.
  Block states_of(const mmm::Array& x, int64_t n) const {
    return {channel * x.stride[0], x.stride[1], x.stride[0], int(n), width};
  }
  Block row_states_of(const mmm::Array& x, int64_t n) const {
    return {row * x.stride[0] + channel * x.stride[1], x.stride[2], x.stride[1], int(n), width};
  }

  int64_t row, part, group, channel, batch, start, stop, slot, chunks;
  int width, vectors;
  bool reverse;
};

// The scratch of one task, in the arithmetic's type. Arrays of positions are [SCAN_CHUNK][SCAN_ROW], of states
// [n][SCAN_ROW], of B and C [SCAN_CHUNK][n].
template <class Real>
struct ScanWork {
  static int64_t size(int64_t n) { return 7 * POSITIONS + 2 * n * SCAN_ROW + 2 * SCAN_CHUNK * padded(n) + 2 * SCAN_ROW; }
  static int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }

  ScanWork(Real* at, int64_t n) : n(int(n)), projected(int(padded(n))) {
    for (Real** array : {&u, &raw, &delta, &input, &y, &z, &spare}) *array = at, at += POSITIONS;
    for (Real** array : {&A, &h}) *array = at, at += n * SCAN_ROW;
    for (Real** array : {&B, &C}) *array = at, at += SCAN_CHUNK * padded(n);
    for (Real** array : {&D, &bias}) *array = at, at += SCAN_ROW;
  }

  // What stays the same for all chunks: A in units of log2, D and delta's bias.
  void read_parameters(const mmm::ScanCall& call, const ScanTile& tile) {
    read(A, SCAN_ROW, call.A, tile.states_of(call.A, n));
    for (int i = 0; i < n * SCAN_ROW; ++i) A[i] *= Constants<Real>::LOG2E;
    read_vector(D, call.D, tile);
    read_vector(bias, call.delta_bias, tile);
  }

  // delta with its bias and softplus, and the input of the state, delta u.
  void read_positions(const mmm::ScanCall& call, const ScanTile& tile, int64_t chunk) {
    read(u, SCAN_ROW, call.u, tile.positions(call.u, chunk));
    read(raw, SCAN_ROW, call.delta, tile.positions(call.delta, chunk));
    read(B, projected, call.B, tile.projections(call.B, chunk, n));
    read(C, projected, call.C, tile.projections(call.C, chunk, n));
    for (int t = 0; t < tile.steps(chunk); ++t)
      for (int v = 0; v < tile.width; v += LANES<Real>) {
        int i = t * SCAN_ROW + v;
        Vector<Real> step = vector_at(raw + i) + vector_at(bias + v);
        vector_at(raw + i) = step;
        if (call.softplus) step = softplus<Real>(step);
        vector_at(delta + i) = step;
        vector_at(input + i) = step * vector_at(u + i);
        vector_at(y + i) = vector_at(D + v) * vector_at(u + i);
      }
  }

  static constexpr int POSITIONS = SCAN_CHUNK * SCAN_ROW;
  Real *u, *raw, *delta, *input, *y, *z, *spare, *A, *h, *B, *C, *D, *bias;
  int n, projected;

 private:
  static void read_vector(Real* to, const mmm::Array& from, const ScanTile& tile) {
    if (from.data)
      read(to, SCAN_ROW, from, tile.channels_of(from));
    else
      std::fill(to, to + SCAN_ROW, Real(0));
  }
};

// N states of one vector of channels over a chunk: `state` goes from the entering to the leaving one, y is added to.
template <int N, class Real>
void advance(const ScanWork<Real>& work, int first, int v, int steps) {
  Vector<Real> state[N];
  const Real* A = work.A + first * SCAN_ROW + v;
  Real* h = work.h + first * SCAN_ROW + v;
  for (int n = 0; n < N; ++n) state[n] = vector_at(h + n * SCAN_ROW);
  for (int t = 0; t < steps; ++t) {
    const Real *B = work.B + t * work.projected + first, *C = work.C + t * work.projected + first;
    const Vector<Real> delta = vector_at(work.delta + t * SCAN_ROW + v);
    const Vector<Real> input = vector_at(work.input + t * SCAN_ROW + v);
    Vector<Real> y = vector_at(work.y + t * SCAN_ROW + v);
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
      state[n] = exp2<Real>(delta * vector_at(A + n * SCAN_ROW)) * state[n] + input * B[n];
      y += state[n] * C[n];
    }
    vector_at(work.y + t * SCAN_ROW + v) = y;
  }
  for (int n = 0; n < N; ++n) vector_at(h + n * SCAN_ROW) = state[n];
}

template <class Real>
void advance_all(const ScanWork<Real>& work, int width, int steps) {
  int first = 0;
  for (; first + FORWARD_BLOCK <= work.n; first += FORWARD_BLOCK)
    for (int v = 0; v < width; v += LANES<Real>) advance<FORWARD_BLOCK>(work, first, v, steps);
  for (; first + 4 <= work.n; first += 4)
    for (int v = 0; v < width; v += LANES<Real>) advance<4>(work, first, v, steps);
  for (; first < work.n; ++first)
    for (int v = 0; v < width; v += LANES<Real>) advance<1>(work, first, v, steps);
}

// The checkpoints are [slot][n][e], in the arithmetic's type.
template <class Real>
Real* checkpoint(const mmm::ScanCall& call, const ScanTile& tile, int64_t chunk) {
  return reinterpret_cast<Real*>(call.checkpoints.data) + (tile.slot + chunk) * call.n * call.e + tile.channel;
}

template <class Real>
void scan_tile(const mmm::ScanCall& call, const ScanTile& tile, ScanWork<Real>& work) {
  work.read_parameters(call, tile);
  if (call.initial_state.data)
    read(work.h, SCAN_ROW, call.initial_state, tile.row_states_of(call.initial_state, call.n));
  else
    std::fill(work.h, work.h + call.n * SCAN_ROW, Real(0));
  for (int64_t chunk = 0; chunk < tile.chunks; ++chunk) {
    if (call.checkpoints.data) {
      Real* kept = checkpoint<Real>(call, tile, chunk);
      for (int n = 0; n < call.n; ++n) std::copy_n(work.h + n * SCAN_ROW, tile.width, kept + n * call.e);
    }
    work.read_positions(call, tile, chunk);
    advance_all(work, tile.width, tile.steps(chunk));
    if (call.z.data) {
      read(work.z, SCAN_ROW, call.z, tile.positions(call.z, chunk));
      for (int t = 0; t < tile.steps(chunk); ++t)
        for (int i = t * SCAN_ROW; i < t * SCAN_ROW + tile.width; i += LANES<Real>) {
          Vector<Real> z = vector_at(work.z + i);
          vector_at(work.y + i) *= z * sigmoid<Real>(z);
        }
    }
    write(call.out, work.y, SCAN_ROW, tile.positions(call.out, chunk));
  }
  write(call.final_state, work.h, SCAN_ROW, tile.row_states_of(call.final_state, call.n));
}

// What the backward needs beside the forward's scratch. Accumulators are [SCAN_CHUNK][BACKWARD_BLOCK] vectors.
template <class Real>
struct ScanBackwardWork : ScanWork<Real> {
  static constexpr int HISTORY = SCAN_CHUNK * BACKWARD_BLOCK * LANES<Real>;
  static constexpr int POSITIONS = ScanWork<Real>::POSITIONS;

  static int64_t size(int64_t n) {
    return ScanWork<Real>::size(n) + 4 * HISTORY + BACKWARD_BLOCK * LANES<Real> + 4 * POSITIONS + 2 * n * SCAN_ROW +
           2 * SCAN_ROW + 2 * SCAN_CHUNK * ScanWork<Real>::padded(n);
  }

  ScanBackwardWork(Real* at, int64_t n) : ScanWork<Real>(at, n) {
    at += ScanWork<Real>::size(n);
    for (Real** array : {&decay, &grad_B, &grad_C}) *array = at, at += HISTORY;
    states = at, at += HISTORY + BACKWARD_BLOCK * LANES<Real>;
    for (Real** array : {&grad_out, &grad_y, &grad_input, &grad_delta}) *array = at, at += POSITIONS;
    for (Real** array : {&grad_h, &grad_A}) *array = at, at += n * SCAN_ROW;
    for (Real** array : {&grad_D, &grad_bias}) *array = at, at += SCAN_ROW;
    for (Real** array : {&sums_B, &sums_C}) *array = at, at += SCAN_CHUNK * ScanWork<Real>::padded(n);
  }

  Real *decay, *states, *grad_B, *grad_C;  // one block of the state, one vector of channels
  Real *grad_out, *grad_y, *grad_input, *grad_delta, *grad_h, *grad_A, *grad_D, *grad_bias;
  Real *sums_B, *sums_C;  // over the tile's channels, as B and C
};

// N states of one vector of channels, forward over a chunk and back. Adds to y and to the gradients of the input, of
// delta, A, B and C; `grad_h` goes from the gradient of the leaving state to that of the entering one. FIRST: the
// vector is the tile's first, and the sums over channels begin with it.
template <int N, bool FIRST, class Real>
void retreat(const ScanBackwardWork<Real>& work, int first, int v, int steps) {
  constexpr int W = LANES<Real>;
  const Real* A = work.A + first * SCAN_ROW + v;
  Real *decays = work.decay, *states = work.states, *sums_B = work.grad_B, *sums_C = work.grad_C;
  {
    Vector<Real> state[N];
    for (int n = 0; n < N; ++n) {
      state[n] = vector_at(work.h + (first + n) * SCAN_ROW + v);
      vector_at(states + n * W) = state[n];
    }
    for (int t = 0; t < steps; ++t) {
      const Real *B = work.B + t * work.projected + first, *C = work.C + t * work.projected + first;
      const Vector<Real> delta = vector_at(work.delta + t * SCAN_ROW + v);
      const Vector<Real> input = vector_at(work.input + t * SCAN_ROW + v);
      const Vector<Real> grad_y = vector_at(work.grad_y + t * SCAN_ROW + v);
      Vector<Real> y = vector_at(work.y + t * SCAN_ROW + v);
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) {
        const Vector<Real> decay = exp2<Real>(delta * vector_at(A + n * SCAN_ROW));
        state[n] = decay * state[n] + input * B[n];
        y += state[n] * C[n];
        vector_at(decays + (t * N + n) * W) = decay;
        vector_at(states + ((t + 1) * N + n) * W) = state[n];
        Vector<Real>& sum_C = vector_at(sums_C + (t * N + n) * W);
        sum_C = FIRST ? grad_y * state[n] : sum_C + grad_y * state[n];
      }
      vector_at(work.y + t * SCAN_ROW + v) = y;
    }
  }
  Vector<Real> grad[N], grad_A[N];
  for (int n = 0; n < N; ++n) {
    grad[n] = vector_at(work.grad_h + (first + n) * SCAN_ROW + v);
    grad_A[n] = vector_at(work.grad_A + (first + n) * SCAN_ROW + v);
  }
  for (int t = steps - 1; t >= 0; --t) {
    const Real *B = work.B + t * work.projected + first, *C = work.C + t * work.projected + first;
    const Vector<Real> delta = vector_at(work.delta + t * SCAN_ROW + v);
    const Vector<Real> input = vector_at(work.input + t * SCAN_ROW + v);
    const Vector<Real> grad_y = vector_at(work.grad_y + t * SCAN_ROW + v);
    Vector<Real> grad_input = vector_at(work.grad_input + t * SCAN_ROW + v);
    Vector<Real> grad_delta = vector_at(work.grad_delta + t * SCAN_ROW + v);
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
      grad[n] += grad_y * C[n];
      Vector<Real>& sum_B = vector_at(sums_B + (t * N + n) * W);
      sum_B = FIRST ? grad[n] * input : sum_B + grad[n] * input;
      grad_input += grad[n] * B[n];
      grad[n] *= vector_at(decays + (t * N + n) * W);
      const Vector<Real> exponent = grad[n] * vector_at(states + (t * N + n) * W);
      grad_A[n] += exponent * delta;
      grad_delta += exponent * vector_at(A + n * SCAN_ROW);
    }
    vector_at(work.grad_input + t * SCAN_ROW + v) = grad_input;
    vector_at(work.grad_delta + t * SCAN_ROW + v) = grad_delta;
  }
  for (int n = 0; n < N; ++n) {
    vector_at(work.grad_h + (first + n) * SCAN_ROW + v) = grad[n];
    vector_at(work.grad_A + (first + n) * SCAN_ROW + v) = grad_A[n];
  }
}

template <int N, class Real>
void retreat_block(const ScanBackwardWork<Real>& work, int first, int width, int steps) {
  retreat<N, true>(work, first, 0, steps);
  for (int v = LANES<Real>; v < width; v += LANES<Real>) retreat<N, false>(work, first, v, steps);
  for (int t = 0; t < steps; ++t)
    for (int n = 0; n < N; ++n) {
      work.sums_B[t * work.projected + first + n] = sum(vector_at(work.grad_B + (t * N + n) * LANES<Real>));
      work.sums_C[t * work.projected + first + n] = sum(vector_at(work.grad_C + (t * N + n) * LANES<Real>));
    }
}

template <class Real>
void retreat_all(const ScanBackwardWork<Real>& work, int width, int steps) {
  int first = 0;
  for (; first + BACKWARD_BLOCK <= work.n; first += BACKWARD_BLOCK) retreat_block<BACKWARD_BLOCK>(work, first, width, steps);
  for (; first < work.n; ++first) retreat_block<1>(work, first, width, steps);
}

// Sums that several tasks have a part in: each writes its own, then they are added in order, whatever thread made them.
template <class Real>
struct ScanParts {
  static int64_t sequence_size(const mmm::ScanCall& call) { return call.e * (call.n + 2); }
  static int64_t positions(const mmm::ScanCall& call) {
    const mmm::Sequences& sequences = call.sequences;
    return sequences.bounds ? sequences.length : sequences.rows * sequences.length;
  }
  static int64_t part_size(const mmm::ScanCall& call) { return positions(call) * call.groups * call.n; }
  static int64_t size(const mmm::ScanCall& call) {
    return call.sequences.rows * sequence_size(call) + 2 * ScanTile::parts(call) * part_size(call);
  }

  ScanParts(Real* at, const mmm::ScanCall& call) : call(call), sequences(at) {
    B = at + call.sequences.rows * sequence_size(call);
    C = B + ScanTile::parts(call) * part_size(call);
  }

  // A sequence's sums over its positions: A's gradient state by state, then D's and delta_bias's.
  Real* of_sequence(int64_t row, int64_t which, int64_t channel) const {
    return sequences + row * sequence_size(call) + which * call.e + channel;
  }
  // A tile's sums over its channels, as a tensor (b, l, g, n).
  mmm::Array of_tile(Real* sums, int64_t part) const {
    int64_t row = call.groups * call.n;
    return {reinterpret_cast<char*>(sums + part * part_size(call)), sizeof(Real) == 8 ? mmm::FLOAT64 : mmm::FLOAT32,
            {call.sequences.length * row, row, call.n, 1}};
  }

  const mmm::ScanCall& call;
  Real *sequences, *B, *C;
};

template <class Real>
void scan_tile_backward(const mmm::ScanBackwardCall& whole, const ScanTile& tile, ScanBackwardWork<Real>& work,
                        const ScanParts<Real>& parts) {
  const mmm::ScanCall& call = whole.forward;
  work.read_parameters(call, tile);
  if (whole.grad_final_state.data)
    read(work.grad_h, SCAN_ROW, whole.grad_final_state, tile.row_states_of(whole.grad_final_state, call.n));
  else
    std::fill(work.grad_h, work.grad_h + call.n * SCAN_ROW, Real(0));
  std::fill(work.grad_A, work.grad_A + call.n * SCAN_ROW, Real(0));
  std::fill(work.grad_D, work.grad_D + SCAN_TILE, Real(0));
  std::fill(work.grad_bias, work.grad_bias + SCAN_TILE, Real(0));
  const mmm::Array parts_B = parts.of_tile(parts.B, tile.part), parts_C = parts.of_tile(parts.C, tile.part);
  for (int64_t chunk = tile.chunks - 1; chunk >= 0; --chunk) {
    const int steps = tile.steps(chunk);
    const Real* kept = checkpoint<Real>(call, tile, chunk);
    for (int n = 0; n < call.n; ++n) {
      std::copy_n(kept + n * call.e, tile.width, work.h + n * SCAN_ROW);
      std::fill(work.h + n * SCAN_ROW + tile.width, work.h + (n + 1) * SCAN_ROW, Real(0));
    }
    work.read_positions(call, tile, chunk);
    read(work.grad_out, SCAN_ROW, whole.grad_out, tile.positions(whole.grad_out, chunk));
    if (call.z.data) read(work.z, SCAN_ROW, call.z, tile.positions(call.z, chunk));
    for (int t = 0; t < steps; ++t)
      for (int v = 0; v < tile.width; v += LANES<Real>) {
        int i = t * SCAN_ROW + v;
        Vector<Real> grad_y = vector_at(work.grad_out + i);
        if (call.z.data) {
          Vector<Real> z = vector_at(work.z + i), gate = sigmoid<Real>(z);
          grad_y *= z * gate;
          vector_at(work.z + i) = gate * (Real(1) + z * (Real(1) - gate));  // silu's derivative
        }
        vector_at(work.grad_y + i) = grad_y;
        vector_at(work.grad_D + v) += grad_y * vector_at(work.u + i);
        vector_at(work.grad_input + i) = vector_at(work.grad_delta + i) = Vector<Real>{};
      }
    retreat_all(work, tile.width, steps);
    for (int t = 0; t < steps; ++t)
      for (int v = 0; v < tile.width; v += LANES<Real>) {
        int i = t * SCAN_ROW + v;
        Vector<Real> grad_input = vector_at(work.grad_input + i);
        Vector<Real> grad_delta =
            vector_at(work.grad_delta + i) * Constants<Real>::LN2 + grad_input * vector_at(work.u + i);
        if (call.softplus) {
          Vector<Real> raw = vector_at(work.raw + i);
          grad_delta = raw > 20 ? grad_delta : grad_delta * sigmoid<Real>(raw);
        }
        vector_at(work.grad_delta + i) = grad_delta;
        vector_at(work.grad_bias + v) += grad_delta;
        vector_at(work.grad_input + i) =
            grad_input * vector_at(work.delta + i) + vector_at(work.grad_y + i) * vector_at(work.D + v);
        vector_at(work.z + i) *= vector_at(work.grad_out + i) * vector_at(work.y + i);
      }
    write(whole.grad_u, work.grad_input, SCAN_ROW, tile.positions(whole.grad_u, chunk));
    write(whole.grad_delta, work.grad_delta, SCAN_ROW, tile.positions(whole.grad_delta, chunk));
    if (call.z.data) write(whole.grad_z, work.z, SCAN_ROW, tile.positions(whole.grad_z, chunk));
    write(parts_B, work.sums_B, work.projected, tile.projections(parts_B, chunk, call.n));
    write(parts_C, work.sums_C, work.projected, tile.projections(parts_C, chunk, call.n));
  }
  for (int n = 0; n < call.n; ++n)
    std::copy_n(work.grad_A + n * SCAN_ROW, tile.width, parts.of_sequence(tile.row, n, tile.channel));
  std::copy_n(work.grad_D, tile.width, parts.of_sequence(tile.row, call.n, tile.channel));
  std::copy_n(work.grad_bias, tile.width, parts.of_sequence(tile.row, call.n + 1, tile.channel));
  if (whole.grad_initial_state.data)
    write(whole.grad_initial_state, work.grad_h, SCAN_ROW, tile.row_states_of(whole.grad_initial_state, call.n));
}

// The sum of `count` rows that stand `apart` numbers behind each other, in their order.
template <class Real>
void add_up(Real* to, const Real* from, int64_t count, int64_t apart, int width) {
  std::fill(to, to + width, Real(0));
  for (int64_t k = 0; k < count; ++k)
    for (int i = 0; i < width; ++i) to[i] += from[k * apart + i];
}

// The gradients of B and C: over the tiles of each group.
template <class Real>
int add_up_tiles(const mmm::ScanBackwardCall& whole, const ScanParts<Real>& parts) {
  const mmm::ScanCall& call = whole.forward;
  const int64_t count = ScanTile::parts(call), row = call.groups * call.n, apart = parts.part_size(call);
  constexpr int WIDTH = 64;
  return mmm::for_each_piece(parts.positions(call), 2 * count * row, [&](int64_t begin, int64_t end) {
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

// The gradients of A, D and delta_bias: over the sequences.
template <class Real>
int add_up_sequences(const mmm::ScanBackwardCall& whole, const ScanParts<Real>& parts) {
  const mmm::ScanCall& call = whole.forward;
  const int64_t tiles = (call.e + SCAN_TILE - 1) / SCAN_TILE, rows = call.sequences.rows;
  return mmm::for_each_piece(tiles, rows * call.n * SCAN_TILE, [&](int64_t begin, int64_t end) {
    alignas(64) Real total[SCAN_TILE];
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t channel = tile * SCAN_TILE;
      const int width = int(std::min<int64_t>(SCAN_TILE, call.e - channel));
      for (int64_t n = 0; n < call.n + 2; ++n) {
        add_up(total, parts.of_sequence(0, n, channel), rows, parts.sequence_size(call), width);
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
int scan_as(const mmm::ScanCall& call) {
  mmm::expect_writes(call.out, ScanParts<Real>::positions(call) * call.e);
  return mmm::for_each_piece(ScanTile::tasks(call), ScanTile::cost(call), [&](int64_t begin, int64_t end) {
    mmm::Scratch<Real> scratch(ScanWork<Real>::size(call.n));
    if (!scratch.data()) return 1;
    ScanWork<Real> work(scratch.data(), call.n);
    for (int64_t task = begin; task < end; ++task) scan_tile(call, ScanTile(call, task), work);
    return 0;
  });
}

int scan(const mmm::ScanCall& call) { return call.wide ? scan_as<double>(call) : scan_as<float>(call); }

template <class Real>
int scan_backward_as(const mmm::ScanBackwardCall& whole) {
  const mmm::ScanCall& call = whole.forward;
  mmm::Scratch<Real> shared(ScanParts<Real>::size(call));
  if (!shared.data()) return 1;
  const ScanParts<Real> parts(shared.data(), call);
  for (const mmm::Array* grad : {&whole.grad_u, &whole.grad_delta, &whole.grad_z})
    mmm::expect_writes(*grad, parts.positions(call) * call.e);
  int failed = mmm::for_each_piece(ScanTile::tasks(call), 3 * ScanTile::cost(call), [&](int64_t begin, int64_t end) {
    mmm::Scratch<Real> scratch(ScanBackwardWork<Real>::size(call.n));
    if (!scratch.data()) return 1;
    ScanBackwardWork<Real> work(scratch.data(), call.n);
    for (int64_t task = begin; task < end; ++task) scan_tile_backward(whole, ScanTile(call, task), work, parts);
    return 0;
  });
  return failed || add_up_tiles(whole, parts) || add_up_sequences(whole, parts);
}

int scan_backward(const mmm::ScanBackwardCall& call) {
  return call.forward.wide ? scan_backward_as<double>(call) : scan_backward_as<float>(call);
}

// Time `count` exponentials: what the scan's other work is measured against. Returns their sum, so that none is left out.
double exponentials(int64_t count) {
  constexpr int64_t TASK = 1 << 16;
  std::atomic<int64_t> whole{0};
  mmm::for_each_piece((count + TASK - 1) / TASK, TASK, [&](int64_t begin, int64_t end) {
    alignas(64) float exponents[1024];
    for (int i = 0; i < 1024; ++i) exponents[i] = float(i % 64) * -0.05f;
    Vector<float> total[4] = {};
    for (int64_t repeat = begin * (TASK / 1024); repeat < end * (TASK / 1024); ++repeat) {
      __asm__ volatile("" ::: "memory");
      for (int i = 0; i < 1024; i += 4 * LANES<float>)
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) total[k] += exp2<float>(vector_at(exponents + i + k * LANES<float>));
    }
    whole += int64_t(sum(total[0] + total[1] + total[2] + total[3]));
    return 0;
  });
  return double(whole);
}
