// One position of the selective scan, in place on its state: a tile of channels of one row at a time.
//
// Vectors run along the state: the n numbers of a channel, of the state and of A, are read where they stand, and
// nothing is laid out anew, which for a single position would take longer than the step. A call whose numbers stand
// otherwise, or are of another type than the arithmetic's, goes through the scan.

constexpr int UPDATE_TILE = 128;    // channels
constexpr int UPDATE_STATES = 256;  // the most n whose B and C have room on the stack

// A vector that stands anywhere.
template <class Real>
inline Vector<Real> load(const Real* at) {
  Vector<Real> x;
  std::memcpy(&x, at, sizeof x);
  return x;
}

template <class Real>
inline void store(Real* at, Vector<Real> x) {
  std::memcpy(at, &x, sizeof x);
}

// The position of one row, and a tile of the channels of one group.
struct UpdateTile {
  UpdateTile(const mmm::ScanCall& call, int64_t task) {
    const int64_t channels = call.e / call.groups, tile = task / call.sequences.rows % parts(call);
    row = task % call.sequences.rows;
    group = task / call.sequences.rows / parts(call);
    channel = group * channels + tile * UPDATE_TILE;
    width = int(std::min<int64_t>(UPDATE_TILE, channels - tile * UPDATE_TILE));
  }

  static int64_t parts(const mmm::ScanCall& call) { return (call.e / call.groups + UPDATE_TILE - 1) / UPDATE_TILE; }
  static int64_t tasks(const mmm::ScanCall& call) { return call.sequences.rows * call.groups * parts(call); }

  // The tile of a (b, 1, e) tensor, of an (e,) one, and its group's part of a (b, 1, g, n) one.
  Block token(const mmm::Array& x) const { return {row * x.stride[0] + channel * x.stride[2], 0, x.stride[2], 1, width}; }
  Block channels_of(const mmm::Array& x) const { return {channel * x.stride[0], 0, x.stride[0], 1, width}; }
  Block projection(const mmm::Array& x, int64_t n) const {
    return {row * x.stride[0] + group * x.stride[2], 0, x.stride[3], 1, int(n)};
  }

  int64_t row, group, channel;
  int width;
};

template <class Real>
void read_or_zero(Real* to, const mmm::Array& from, const Block& block) {
  if (from.data)
    read(to, UPDATE_TILE, from, block);
  else
    std::fill(to, to + UPDATE_TILE, Real(0));
}

template <class Real>
void update_tile(const mmm::ScanCall& call, const UpdateTile& tile) {
  alignas(64) Real input[UPDATE_TILE], delta[UPDATE_TILE], bias[UPDATE_TILE], y[UPDATE_TILE], z[UPDATE_TILE];
  alignas(64) Real B[UPDATE_STATES], C[UPDATE_STATES], totals[UPDATE_TILE * LANES<Real>];
  const int n = int(call.n);
  read(input, UPDATE_TILE, call.u, tile.token(call.u));
  read(delta, UPDATE_TILE, call.delta, tile.token(call.delta));
  read(B, n, call.B, tile.projection(call.B, n));
  read(C, n, call.C, tile.projection(call.C, n));
  read_or_zero(bias, call.delta_bias, tile.channels_of(call.delta_bias));
  read_or_zero(y, call.D, tile.channels_of(call.D));
  for (int v = 0; v < tile.width; v += LANES<Real>) {
    Vector<Real> step = vector_at(delta + v) + vector_at(bias + v);
    if (call.softplus) step = softplus<Real>(step).value;
    if (call.D.data) vector_at(y + v) *= vector_at(input + v);
    vector_at(input + v) *= step;
    vector_at(delta + v) = step * Constants<Real>::LOG2E;
  }
  const mmm::Array& state = call.final_state;
  Real* h = reinterpret_cast<Real*>(state.data) + tile.row * state.stride[0] + tile.channel * state.stride[1];
  const Real* A = reinterpret_cast<const Real*>(call.A.data) + tile.channel * call.A.stride[0];
  for (int i = 0; i < tile.width; ++i, h += state.stride[1], A += call.A.stride[0]) {
    Vector<Real> total = {};
    for (int v = 0; v < n; v += LANES<Real>) {
      const Vector<Real> next = exp2(load(A + v) * delta[i]) * load(h + v) + vector_at(B + v) * input[i];
      store(h + v, next);
      total += next * vector_at(C + v);
    }
    vector_at(totals + i * LANES<Real>) = total;
  }
  for (int v = 0; v < tile.width; v += LANES<Real>) vector_at(y + v) += sums<LANES<Real>, LANES<Real>>(totals + v * LANES<Real>);
  if (call.z.data) {
    read(z, UPDATE_TILE, call.z, tile.token(call.z));
    for (int v = 0; v < tile.width; v += LANES<Real>)
      vector_at(y + v) *= vector_at(z + v) * sigmoid<Real>(vector_at(z + v));
  }
  write(call.out, y, UPDATE_TILE, tile.token(call.out));
}

template <class Real>
int update_as(const mmm::ScanCall& call) {
  constexpr int64_t dtype = sizeof(Real) == 8 ? mmm::FLOAT64 : mmm::FLOAT32;
  const bool in_place = call.final_state.dtype == dtype && call.A.dtype == dtype && call.final_state.stride[2] == 1 &&
                        call.A.stride[1] == 1 && call.n % LANES<Real> == 0 && call.n <= UPDATE_STATES;
  if (!in_place) return scan_as<Real>(call);
  return mmm::for_each_piece(UpdateTile::tasks(call), call.n * UPDATE_TILE, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) update_tile<Real>(call, UpdateTile(call, task));
    return 0;
  });
}

// A scan of one position whose final state is its initial state.
int update(const mmm::ScanCall& call) { return call.wide ? update_as<double>(call) : update_as<float>(call); }
