// The causal depthwise convolution, forward and backward: a tile of channels of one sequence at a time, by chunks of
// its positions.
//
// Vectors run along the channels. A chunk stands in scratch behind the taps - 1 inputs before it, in the direction of
// the convolution, and its last taps - 1 inputs stay there for the next chunk; before the first stands the initial
// state, and what the last leaves is the final state. The backward walks the same way and recomputes the sums before
// the activation: the gradient of an input is complete, and written, taps - 1 positions behind.

constexpr int CONV_CHUNK = 32;  // positions
constexpr int CONV_TILE = 128;  // channels

// One sequence and one tile of its channels.
struct ConvTile {
  ConvTile(const mmm::ConvCall& call, int64_t task) : before(int(call.taps) - 1) {
    const mmm::Sequences& sequences = call.sequences;
    row = task % sequences.rows;
    channel = task / sequences.rows * CONV_TILE;
    width = int(std::min<int64_t>(CONV_TILE, call.e - channel));
    if (sequences.bounds == nullptr)
      batch = row, start = 0, stop = sequences.length;
    else
      batch = 0, start = sequences.bounds[row], stop = sequences.bounds[row + 1];
    length = stop - start;
    reverse = sequences.reverse != 0;
  }

  static int64_t parts(const mmm::ConvCall& call) { return (call.e + CONV_TILE - 1) / CONV_TILE; }
  static int64_t tasks(const mmm::ConvCall& call) { return call.sequences.rows * parts(call); }
  // In exponentials: the activation and about four products each; the states weigh as much as positions.
  static int64_t cost(const mmm::ConvCall& call) {
    return (call.sequences.mean_length() + call.taps) * (2 + call.taps / 4) * CONV_TILE;
  }

  int steps(int64_t first) const { return int(std::min<int64_t>(CONV_CHUNK, length - first)); }

  // `count` positions of a (b, l, e) tensor from the sequence's `first` on, in the direction of the convolution.
  Block positions(const mmm::Array& x, int64_t first, int count) const {
    int64_t position = reverse ? stop - 1 - first : start + first;
    int64_t offset = batch * x.stride[0] + position * x.stride[1] + channel * x.stride[2];
    return {offset, reverse ? -x.stride[1] : x.stride[1], x.stride[2], count, width};
  }

  // `count` inputs of a (rows, e, taps - 1) tensor from `first` on.
  Block states(const mmm::Array& x, int first, int count) const {
    int64_t offset = row * x.stride[0] + channel * x.stride[1] + first * x.stride[2];
    return {offset, x.stride[2], x.stride[1], count, width};
  }

  // The tile of an (e,) tensor, and of an (e, taps) one, tap by tap.
  Block channels_of(const mmm::Array& x) const { return {channel * x.stride[0], 0, x.stride[0], 1, width}; }
  Block taps_of(const mmm::Array& x) const {
    return {channel * x.stride[0], x.stride[1], x.stride[0], before + 1, width};
  }

  int64_t row, batch, channel, start, stop, length;
  int before, width;  // the inputs before a position that it sees, the channels
  bool reverse;
};

// A block that stands channel by channel with nothing between is read and written whole: loops over a fixed number of
// rows, which the compiler makes shuffles of. Decoding spends most of its time here.
template <int ROWS, class Real, class Stored>
void read_interleaved(Real* __restrict to, const Stored* __restrict from, int count) {
  for (int i = 0; i < count; ++i)
#pragma GCC unroll 4
    for (int row = 0; row < ROWS; ++row) to[row * CONV_TILE + i] = Real(widen(from[i * ROWS + row]));
}

template <int ROWS, class Real, class Stored>
void write_interleaved(Stored* __restrict to, const Real* __restrict from, int count) {
  for (int i = 0; i < count; ++i)
#pragma GCC unroll 4
    for (int row = 0; row < ROWS; ++row) narrow(from[row * CONV_TILE + i], to[i * ROWS + row]);
}

inline bool interleaved(const mmm::Array& x, const Block& block) {
  return x.dtype == mmm::FLOAT32 && block.row_stride == 1 && block.stride == block.rows &&
         (block.rows == 3 || block.rows == 4);
}

// As `read` and `write`, for a block of taps or of a state.
template <class Real>
void read_columns(Real* to, const mmm::Array& from, const Block& block) {
  if (!interleaved(from, block)) return read(to, CONV_TILE, from, block);
  const float* at = reinterpret_cast<const float*>(from.data) + block.offset;
  if (block.rows == 3)
    read_interleaved<3>(to, at, block.count);
  else
    read_interleaved<4>(to, at, block.count);
  for (int row = 0; row < block.rows; ++row)
    for (int i = block.count; i < CONV_TILE; ++i) to[row * CONV_TILE + i] = 0;
}

template <class Real>
void write_columns(const mmm::Array& to, const Real* from, const Block& block) {
  if (!interleaved(to, block)) return write(to, from, CONV_TILE, block);
  float* at = reinterpret_cast<float*>(to.data) + block.offset;
  if (block.rows == 3)
    write_interleaved<3>(at, from, block.count);
  else
    write_interleaved<4>(at, from, block.count);
}

// The scratch of one task, in the arithmetic's type, in rows of CONV_TILE.
template <class Real>
struct ConvWork {
  static int64_t size(int64_t taps) { return (taps + 1 + taps - 1 + CONV_CHUNK) * CONV_TILE; }

  ConvWork(Real* at, const mmm::ConvCall& call)
      : weight(at), bias(weight + call.taps * CONV_TILE), x(bias + CONV_TILE), taps(int(call.taps)),
        silu(call.silu != 0) {}

  void read_parameters(const mmm::ConvCall& call, const ConvTile& tile) const {
    read_columns(weight, call.weight, tile.taps_of(call.weight));
    read_or_zero(bias, CONV_TILE, call.bias, tile.channels_of(call.bias));
  }

  void read_initial_state(const mmm::ConvCall& call, const ConvTile& tile) const {
    if (tile.before == 0) return;
    if (call.initial_state.data)
      read_columns(x, call.initial_state, tile.states(call.initial_state, 0, tile.before));
    else
      std::fill(x, x + tile.before * CONV_TILE, Real(0));
  }

  // Keeps what the next chunk sees of a window of `steps` positions.
  void keep(Real* window, int steps) const {
    const Real* last = window + steps * CONV_TILE;
    std::memmove(window, last, size_t(taps - 1) * CONV_TILE * sizeof(Real));
  }

  Real *weight, *bias;  // [taps], [1]
  Real* x;              // [taps - 1 + CONV_CHUNK]: the window
  int taps;
  bool silu;
};

// The weights of one vector of channels: in registers where their number is known.
template <int TAPS, class Real>
struct Weights {
  Weights(const ConvWork<Real>& work, int v) {
    for (int j = 0; j < TAPS; ++j) kept[j] = vector_at(work.weight + j * CONV_TILE + v);
  }
  static int count(const ConvWork<Real>&) { return TAPS; }
  const Vector<Real>& operator[](int j) const { return kept[j]; }

  Vector<Real> kept[TAPS];
};

template <class Real>
struct Weights<0, Real> {
  Weights(const ConvWork<Real>& work, int v) : at(work.weight + v) {}
  static int count(const ConvWork<Real>& work) { return work.taps; }
  const Vector<Real>& operator[](int j) const { return vector_at(at + j * CONV_TILE); }

  const Real* at;
};

// The convolution before its activation, of the window that begins at `x`.
template <int TAPS, class Real>
inline Vector<Real> convolve(const Weights<TAPS, Real>& weights, int taps, const Real* x, Vector<Real> bias) {
  Vector<Real> y = bias;
#pragma GCC unroll 4
  for (int j = 0; j < taps; ++j) y += weights[j] * vector_at(x + j * CONV_TILE);
  return y;
}

// One vector of channels over a chunk. The output takes the place of the oldest input that it is made of.
template <int TAPS, class Real>
void convolve_chunk(const ConvWork<Real>& work, int v, int steps) {
  const Weights<TAPS, Real> weights(work, v);
  const int taps = weights.count(work);
  const Vector<Real> bias = vector_at(work.bias + v);
  Real* x = work.x + v;
  for (int t = 0; t < steps; ++t, x += CONV_TILE) {
    Vector<Real> y = convolve<TAPS, Real>(weights, taps, x, bias);
    vector_at(x) = work.silu ? y * sigmoid<Real>(y) : y;
  }
}

template <class Real>
void conv_tile(const mmm::ConvCall& call, const ConvTile& tile, const ConvWork<Real>& work) {
  work.read_initial_state(call, tile);
  for (int64_t first = 0; first < tile.length; first += CONV_CHUNK) {
    const int steps = tile.steps(first);
    read(work.x + tile.before * CONV_TILE, CONV_TILE, call.x, tile.positions(call.x, first, steps));
    for (int v = 0; v < tile.width; v += LANES<Real>)
      work.taps == 4 ? convolve_chunk<4>(work, v, steps) : convolve_chunk<0>(work, v, steps);
    write(call.out, work.x, CONV_TILE, tile.positions(call.out, first, steps));
    work.keep(work.x, steps);
  }
  // Written last: it may stand where the initial state does.
  if (tile.before > 0) write_columns(call.final_state, work.x, tile.states(call.final_state, 0, tile.before));
}

template <class Real>
int conv_as(const mmm::ConvCall& call) {
  mmm::expect_writes({&call.out}, call.sequences.positions() * call.e);
  return mmm::for_each_piece(ConvTile::tasks(call), ConvTile::cost(call), [&](int64_t begin, int64_t end) {
    mmm::Scratch<Real> scratch(ConvWork<Real>::size(call.taps));
    if (!scratch.data()) return 1;
    ConvWork<Real> work(scratch.data(), call);
    for (int64_t task = begin; task < end; ++task) {
      const ConvTile tile(call, task);
      if (task == begin || tile.row == 0) work.read_parameters(call, tile);
      conv_tile(call, tile, work);
    }
    return 0;
  });
}

int conv(const mmm::ConvCall& call) { return call.wide ? conv_as<double>(call) : conv_as<float>(call); }

// What the backward needs beside the forward's scratch.
template <class Real>
struct ConvBackwardWork : ConvWork<Real> {
  static int64_t size(int64_t taps) {
    return ConvWork<Real>::size(taps) + (taps - 1 + CONV_CHUNK + taps + 1) * CONV_TILE;
  }

  ConvBackwardWork(Real* at, const mmm::ConvCall& call)
      : ConvWork<Real>(at, call),
        grad(at + ConvWork<Real>::size(call.taps)),
        sums(grad + (call.taps - 1 + CONV_CHUNK) * CONV_TILE) {}

  Real* grad;  // [taps - 1 + CONV_CHUNK]: of the output, then of the sum before the activation; a window as x
  Real* sums;  // [taps + 1]: the gradients of the weights and the bias
};

// One vector of channels over a chunk. The gradient of the input taps - 1 positions behind takes the place of the
// oldest input. Sums over the chunk are added to the whole's at its end: fewer roundings stand in a row.
template <int TAPS, class Real>
void convolve_chunk_backward(const ConvBackwardWork<Real>& work, int v, int steps) {
  const Weights<TAPS, Real> weights(work, v);
  const int taps = weights.count(work);
  const Vector<Real> bias = vector_at(work.bias + v);
  Real *x = work.x + v, *sums = work.sums + v;
  Real* grad = work.grad + (taps - 1) * CONV_TILE + v;
  Vector<Real> grad_bias = {}, grad_weight[TAPS + 1] = {};
  for (int t = 0; t < steps * CONV_TILE; t += CONV_TILE) {
    Vector<Real> grad_y = vector_at(grad + t);
    if (work.silu) {
      const Vector<Real> y = convolve<TAPS, Real>(weights, taps, x + t, bias), gate = sigmoid<Real>(y);
      grad_y *= gate * (Real(1) + y * (Real(1) - gate));
      vector_at(grad + t) = grad_y;
    }
    grad_bias += grad_y;
    if constexpr (TAPS > 0) {
      Vector<Real> grad_x = {};
#pragma GCC unroll 4
      for (int j = 0; j < TAPS; ++j) {
        grad_weight[j] += grad_y * vector_at(x + t + j * CONV_TILE);
        grad_x += weights[j] * vector_at(grad + t - j * CONV_TILE);
      }
      vector_at(x + t) = grad_x;
    }
  }
  vector_at(sums + taps * CONV_TILE) += grad_bias;
  if constexpr (TAPS > 0) {
    for (int j = 0; j < TAPS; ++j) vector_at(sums + j * CONV_TILE) += grad_weight[j];
  } else {
    for (int j = 0; j < taps; ++j) {
      Vector<Real> total = {};
      for (int t = 0; t < steps; ++t)
        total += vector_at(grad + t * CONV_TILE) * vector_at(x + (t + j) * CONV_TILE);
      vector_at(sums + j * CONV_TILE) += total;
    }
    for (int t = 0; t < steps; ++t) {
      Vector<Real> grad_x = {};
      for (int j = 0; j < taps; ++j) grad_x += weights[j] * vector_at(grad + (t - j) * CONV_TILE);
      vector_at(x + t * CONV_TILE) = grad_x;
    }
  }
}

// The gradients of `count` inputs, from the sequence's position `first` on; those before it are the initial state.
template <class Real>
void write_inputs(const mmm::ConvBackwardCall& whole, const ConvTile& tile, const Real* from, int64_t first,
                  int count) {
  const int states = int(std::min<int64_t>(count, first < 0 ? -first : 0));
  const mmm::Array &grad_x = whole.grad_x, &grad_state = whole.grad_initial_state;
  if (states > 0 && grad_state.data)
    write_columns(grad_state, from, tile.states(grad_state, int(first) + tile.before, states));
  if (count > states)
    write(grad_x, from + states * CONV_TILE, CONV_TILE, tile.positions(grad_x, first + states, count - states));
}

template <class Real>
void conv_tile_backward(const mmm::ConvBackwardCall& whole, const ConvTile& tile, const ConvBackwardWork<Real>& work) {
  const mmm::ConvCall& call = whole.forward;
  const int before = tile.before;
  work.read_initial_state(call, tile);
  std::fill(work.grad, work.grad + before * CONV_TILE, Real(0));
  std::fill(work.sums, work.sums + (work.taps + 1) * CONV_TILE, Real(0));
  for (int64_t first = 0; first < tile.length; first += CONV_CHUNK) {
    const int steps = tile.steps(first);
    read(work.x + before * CONV_TILE, CONV_TILE, call.x, tile.positions(call.x, first, steps));
    read(work.grad + before * CONV_TILE, CONV_TILE, whole.grad_out, tile.positions(whole.grad_out, first, steps));
    for (int v = 0; v < tile.width; v += LANES<Real>)
      work.taps == 4 ? convolve_chunk_backward<4>(work, v, steps) : convolve_chunk_backward<0>(work, v, steps);
    write_inputs(whole, tile, work.x, first - before, steps);
    work.keep(work.x, steps);
    work.keep(work.grad, steps);
  }
  // The last inputs: no output follows them, but they are the final state.
  if (before == 0) return;
  if (whole.grad_final_state.data)
    read_columns(work.x, whole.grad_final_state, tile.states(whole.grad_final_state, 0, before));
  else
    std::fill(work.x, work.x + before * CONV_TILE, Real(0));
  for (int i = 0; i < before; ++i)
    for (int j = i + 1; j <= before; ++j)
      for (int v = 0; v < tile.width; v += LANES<Real>)
        vector_at(work.x + i * CONV_TILE + v) +=
            vector_at(work.weight + j * CONV_TILE + v) * vector_at(work.grad + (i - j + before) * CONV_TILE + v);
  write_inputs(whole, tile, work.x, tile.length - before, before);
}

// The gradients of weight and bias: each sequence writes its own sums, [rows][taps + 1][e], which are then added in
// order, whatever thread made them.
template <class Real>
int add_up_conv(const mmm::ConvBackwardCall& whole, const Real* parts) {
  const mmm::ConvCall& call = whole.forward;
  const int64_t rows = call.sequences.rows, apart = (call.taps + 1) * call.e;
  const int64_t cost = rows * (call.taps + 1) * CONV_TILE / 4;
  return mmm::for_each_piece(ConvTile::parts(call), cost, [&](int64_t begin, int64_t end) {
    alignas(64) Real total[CONV_TILE];
    for (int64_t channel = begin * CONV_TILE; channel < std::min(call.e, end * CONV_TILE); channel += CONV_TILE) {
      const int width = int(std::min<int64_t>(CONV_TILE, call.e - channel));
      for (int64_t j = 0; j <= call.taps; ++j) {
        const mmm::Array& grad = j < call.taps ? whole.grad_weight : whole.grad_bias;
        if (!grad.data) continue;
        add_up(total, parts + j * call.e + channel, rows, apart, width);
        const int64_t offset = channel * grad.stride[0] + (j < call.taps ? j * grad.stride[1] : 0);
        write(grad, total, CONV_TILE, {offset, 0, grad.stride[0], 1, width});
      }
    }
    return 0;
  });
}

template <class Real>
int conv_backward_as(const mmm::ConvBackwardCall& whole) {
  const mmm::ConvCall& call = whole.forward;
  mmm::Scratch<Real> parts(call.sequences.rows * (call.taps + 1) * call.e);
  if (!parts.data()) return 1;
  mmm::expect_writes({&whole.grad_x}, call.sequences.positions() * call.e);
  int failed = mmm::for_each_piece(ConvTile::tasks(call), 3 * ConvTile::cost(call), [&](int64_t begin, int64_t end) {
    mmm::Scratch<Real> scratch(ConvBackwardWork<Real>::size(call.taps));
    if (!scratch.data()) return 1;
    ConvBackwardWork<Real> work(scratch.data(), call);
    for (int64_t task = begin; task < end; ++task) {
      const ConvTile tile(call, task);
      if (task == begin || tile.row == 0) work.read_parameters(call, tile);
      conv_tile_backward(whole, tile, work);
      Real* sums = parts.data() + tile.row * (call.taps + 1) * call.e + tile.channel;
      for (int j = 0; j <= work.taps; ++j) std::copy_n(work.sums + j * CONV_TILE, tile.width, sums + j * call.e);
    }
    return 0;
  });
  return failed ? failed : add_up_conv<Real>(whole, parts.data());
}

int conv_backward(const mmm::ConvBackwardCall& call) {
  return call.forward.wide ? conv_backward_as<double>(call) : conv_backward_as<float>(call);
}
