// The selective scan forward: a tile of channels of one sequence at a time, by chunks of its positions.
//
// Vectors run along the channels. A chunk is worked on strip by strip: what a strip reads is widened into scratch that
// the first cache holds, and the recurrence then runs over blocks of the state that stay in registers. The state
// that enters each chunk is kept for the backward.
// ../src/mmm_core/scan/README.md has the maths.

using mmm::SCAN_CHUNK;          // positions
constexpr int SCAN_TILE = 128;  // channels
// States that are worked on at once, so that they stay in registers.
constexpr int FORWARD_BLOCK = MMM_BYTES == 64 ? 16 : 4;
template <class Real>
constexpr int STRIP = 2 * LANES<Real>;  // channels

// What a strip has at each position. The forward uses those before GRAD_Y.
enum Field { U, SLOPE, DELTA, INPUT, Y, Z, GRAD_Y, GRAD_INPUT, GRAD_DELTA, FIELDS };

// One sequence and one tile of its channels.
struct ScanTile {
  ScanTile(const mmm::ScanCall& call, int64_t task) {
    const mmm::Sequences& sequences = call.sequences;
    int64_t channels = call.e / call.groups, tiles = parts(call);
    row = task % sequences.rows;
    part = task / sequences.rows % tiles;
    group = task / sequences.rows / tiles;
    channel = group * channels + part * SCAN_TILE;
    width = int(std::min<int64_t>(SCAN_TILE, channels - part * SCAN_TILE));
    if (sequences.bounds == nullptr) {
      batch = row, start = 0, stop = sequences.length;
      slot = row * chunks_of(sequences.length);
    } else {
      batch = 0, start = sequences.bounds[row], stop = sequences.bounds[row + 1];
      slot = start / SCAN_CHUNK + row;
    }
    chunks = chunks_of(stop - start);
    reverse = sequences.reverse != 0;
  }

  static int64_t chunks_of(int64_t length) { return (length + SCAN_CHUNK - 1) / SCAN_CHUNK; }
  // Places for checkpoints; packed sequences leave some unused.
  static int64_t slots(const mmm::ScanCall& call) {
    const mmm::Sequences& sequences = call.sequences;
    const int64_t chunks = chunks_of(sequences.length);
    return sequences.bounds ? chunks + sequences.rows : sequences.rows * chunks;
  }

  static int64_t parts(const mmm::ScanCall& call) { return (call.e / call.groups + SCAN_TILE - 1) / SCAN_TILE; }
  static int64_t tasks(const mmm::ScanCall& call) { return call.sequences.rows * call.groups * parts(call); }
  // Short sequences that a task of the backward takes together: they share sums.
  static int64_t together(const mmm::ScanCall& call) {
    return std::min<int64_t>(8, std::max<int64_t>(1, 64 / std::max<int64_t>(1, call.sequences.mean_length())));
  }
  static int64_t row_blocks(const mmm::ScanCall& call) {
    return (call.sequences.rows + together(call) - 1) / together(call);
  }
  static int64_t cost(const mmm::ScanCall& call) { return (call.sequences.mean_length() + 1) * call.n * SCAN_TILE; }

  int steps(int64_t chunk) const { return int(std::min<int64_t>(SCAN_CHUNK, stop - start - chunk * SCAN_CHUNK)); }

  // A chunk of a (b, l, e) tensor, in the direction of the scan: `count` channels from the tile's channel v on.
  Block positions(const mmm::Array& x, int64_t chunk, int v, int count) const {
    int64_t first = chunk * SCAN_CHUNK, position = reverse ? stop - 1 - first : start + first;
    int64_t offset = batch * x.stride[0] + position * x.stride[1] + (channel + v) * x.stride[2];
    return {offset, reverse ? -x.stride[1] : x.stride[1], x.stride[2], steps(chunk), std::min(count, width - v)};
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

  // The state that enters a chunk. The checkpoints are [slot][n][e], in the arithmetic's type.
  Block checkpoint_of(const mmm::ScanCall& call, int64_t chunk) const {
    return {(slot + chunk) * call.n * call.e + channel, call.e, 1, int(call.n), width};
  }

  int64_t row, part, group, channel, batch, start, stop, slot, chunks;
  int width;
  bool reverse;
};

// Asks for the memory that comes next, a row of a tensor or two a step, all the while the recurrence runs: more at once
// would fill the queue to memory.
class Ahead {
 public:
  void add(const mmm::Array& x, const Block& block) {
    if (x.data == nullptr || block.stride != 1) return;
    const int64_t size = mmm::size_of(x.dtype);
    data[count] = x.data + block.offset * size, stride[count++] = block.row_stride * size;
  }
  // Every `passes`-th tensor, for one of so many passes over the positions.
  Ahead share(int pass, int passes) const {
    Ahead part;
    for (int i = pass; i < count; i += passes) part.data[part.count] = data[i], part.stride[part.count++] = stride[i];
    return part;
  }
  void fetch_row() {
    for (int i = 0; i < count; data[i] += stride[i], ++i) {
      __builtin_prefetch(data[i], 0, 2);
      __builtin_prefetch(data[i] + 64, 0, 2);  // a strip is two lines wide at most
    }
  }

 private:
  const char* data[8] = {};
  int64_t stride[8] = {};
  int count = 0;
};

// The scratch of one task, in the arithmetic's type. A position has FIELDS rows of STRIP channels, a state one of
// SCAN_TILE; B and C are [SCAN_CHUNK][n].
template <class Real>
struct ScanWork {
  static constexpr int ROW = FIELDS * STRIP<Real>;

  static int64_t size(int64_t n) {
    return SCAN_CHUNK * ROW + 2 * n * SCAN_TILE + 2 * SCAN_CHUNK * padded(n) + 2 * SCAN_TILE;
  }
  static int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }

  ScanWork(Real* at, int64_t n) : positions(at), n(n), projected(padded(n)) {
    at += SCAN_CHUNK * ROW;
    for (Real** array : {&A, &h}) *array = at, at += n * SCAN_TILE;
    for (Real** array : {&B, &C}) *array = at, at += SCAN_CHUNK * projected;
    for (Real** array : {&D, &bias}) *array = at, at += SCAN_TILE;
  }

  Vector<Real>& at(int t, Field field, int v) const {
    return vector_at(positions + t * ROW + field * STRIP<Real> + v);
  }

  // What stays the same for all chunks: A in units of log2, D and delta's bias.
  void read_parameters(const mmm::ScanCall& call, const ScanTile& tile) {
    read_states(A, SCAN_TILE, call.A, tile.states_of(call.A, n));
    for (int64_t i = 0; i < n * SCAN_TILE; i += LANES<Real>) {
      const Vector<Real> rate = call.log_A ? decay<Real>(vector_at(A + i)) : vector_at(A + i);
      vector_at(A + i) = rate * Constants<Real>::LOG2E;
    }
    read_or_zero(D, SCAN_TILE, call.D, tile.channels_of(call.D));
    read_or_zero(bias, SCAN_TILE, call.delta_bias, tile.channels_of(call.delta_bias));
  }

  void read_projections(const mmm::ScanCall& call, const ScanTile& tile, int64_t chunk) {
    read(B, projected, call.B, tile.projections(call.B, chunk, n));
    read(C, projected, call.C, tile.projections(call.C, chunk, n));
  }

  void read_field(Field field, const mmm::Array& from, const ScanTile& tile, int64_t chunk, int strip) {
    read_rows<STRIP<Real>>(positions + field * STRIP<Real>, ROW, from, tile.positions(from, chunk, strip, STRIP<Real>));
  }
  void write_field(Field field, const mmm::Array& to, const ScanTile& tile, int64_t chunk, int strip) {
    const Block block = tile.positions(to, chunk, strip, STRIP<Real>);
    write_rows<STRIP<Real>>(to, positions + field * STRIP<Real>, ROW, block, streams);
  }

  Real *positions, *A, *h, *B, *C, *D, *bias;
  int64_t n, projected;
  bool streams = false;  // writes past the caches
};

// N states of one vector of channels over a chunk: `state` goes from the entering to the leaving one, y is added to.
template <int N, class Real>
void advance(const ScanWork<Real>& work, int64_t first, int strip, int v, int steps, Ahead ahead) {
  Vector<Real> state[N];
  const Real* A = work.A + first * SCAN_TILE + strip + v;
  Real* h = work.h + first * SCAN_TILE + strip + v;
  for (int n = 0; n < N; ++n) state[n] = vector_at(h + n * SCAN_TILE);
  for (int t = 0; t < steps; ++t) {
    const Real *B = work.B + t * work.projected + first, *C = work.C + t * work.projected + first;
    const Vector<Real> delta = work.at(t, DELTA, v), input = work.at(t, INPUT, v);
    Vector<Real> y = work.at(t, Y, v);
    ahead.fetch_row();
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
      state[n] = exp2(delta * vector_at(A + n * SCAN_TILE)) * state[n] + input * B[n];
      y += state[n] * C[n];
    }
    work.at(t, Y, v) = y;
  }
  for (int n = 0; n < N; ++n) vector_at(h + n * SCAN_TILE) = state[n];
}

template <class Real>
void advance_all(const ScanWork<Real>& work, int strip, int width, int steps, const Ahead& ahead) {
  int pass = 0;
  const int passes = STRIP<Real> / LANES<Real> * int(std::max<int64_t>(1, work.n / FORWARD_BLOCK));
  for (int v = 0; v < width; v += LANES<Real>) {
    int64_t first = 0;
    for (; first + FORWARD_BLOCK <= work.n; first += FORWARD_BLOCK)
      advance<FORWARD_BLOCK>(work, first, strip, v, steps, ahead.share(pass++, passes));
    for (; first + 4 <= work.n; first += 4) advance<4>(work, first, strip, v, steps, Ahead());
    for (; first < work.n; ++first) advance<1>(work, first, strip, v, steps, Ahead());
  }
}

// A strip of a chunk: its output written, its states led to the end of the chunk.
template <class Real>
void scan_strip(const mmm::ScanCall& call, const ScanTile& tile, int64_t chunk, int strip, ScanWork<Real>& work) {
  const int steps = tile.steps(chunk), width = std::min(STRIP<Real>, tile.width - strip);
  work.read_field(U, call.u, tile, chunk, strip);
  work.read_field(DELTA, call.delta, tile, chunk, strip);
  for (int t = 0; t < steps; ++t)
    for (int v = 0; v < width; v += LANES<Real>) {
      const Vector<Real> u = work.at(t, U, v);
      Vector<Real> delta = work.at(t, DELTA, v) + vector_at(work.bias + strip + v);
      if (call.softplus) delta = softplus<Real>(delta).value;
      work.at(t, DELTA, v) = delta;
      work.at(t, INPUT, v) = delta * u;
      work.at(t, Y, v) = call.D.data ? vector_at(work.D + strip + v) * u : Vector<Real>{};  // 0 times infinity is NaN
    }
  Ahead ahead;
  if (chunk + 1 < tile.chunks && tile.steps(chunk + 1) == steps)
    for (const mmm::Array* x : {&call.u, &call.delta, &call.z})
      ahead.add(*x, tile.positions(*x, chunk + 1, strip, STRIP<Real>));
  ahead.add(call.out, tile.positions(call.out, chunk, strip, STRIP<Real>));
  advance_all(work, strip, width, steps, ahead);
  if (call.z.data) {
    work.read_field(Z, call.z, tile, chunk, strip);
    for (int t = 0; t < steps; ++t)
      for (int v = 0; v < width; v += LANES<Real>) {
        const Vector<Real> z = work.at(t, Z, v);
        work.at(t, Y, v) *= z * sigmoid<Real>(z);
      }
  }
  work.write_field(Y, call.out, tile, chunk, strip);
}

template <class Real>
void scan_tile(const mmm::ScanCall& call, const ScanTile& tile, ScanWork<Real>& work) {
  if (call.initial_state.data)
    read_states(work.h, SCAN_TILE, call.initial_state, tile.row_states_of(call.initial_state, call.n));
  else
    std::fill(work.h, work.h + call.n * SCAN_TILE, Real(0));
  for (int64_t chunk = 0; chunk < tile.chunks; ++chunk) {
    if (call.checkpoints.data)  // nobody reads them soon
      write_rows<SCAN_TILE>(call.checkpoints, work.h, SCAN_TILE, tile.checkpoint_of(call, chunk), true);
    work.read_projections(call, tile, chunk);
    for (int strip = 0; strip < tile.width; strip += STRIP<Real>) scan_strip(call, tile, chunk, strip, work);
  }
  write_states(call.final_state, work.h, SCAN_TILE, tile.row_states_of(call.final_state, call.n));
}

template <class Real>
int scan_as(const mmm::ScanCall& call) {
  mmm::expect_writes({&call.out}, call.sequences.positions() * call.e);
  mmm::expect_writes({&call.checkpoints}, ScanTile::slots(call) * call.n * call.e);
  return mmm::for_each_piece(ScanTile::tasks(call), ScanTile::cost(call), [&](int64_t begin, int64_t end) {
    mmm::Scratch<Real> scratch(ScanWork<Real>::size(call.n));
    if (!scratch.data()) return 1;
    ScanWork<Real> work(scratch.data(), call.n);
    for (int64_t task = begin; task < end; ++task) {
      const ScanTile tile(call, task);
      if (task == begin || tile.row == 0) work.read_parameters(call, tile);
      scan_tile(call, tile, work);
    }
    if (call.checkpoints.data) finish_streams();
    return 0;
  });
}

int scan(const mmm::ScanCall& call) { return call.wide ? scan_as<double>(call) : scan_as<float>(call); }
