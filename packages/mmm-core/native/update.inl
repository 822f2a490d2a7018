// One position of the selective scan, in place on its state: a tile of channels of one row at a time.
//
// Vectors run along the state: the n numbers of a channel, of the state and of A, are read where they stand, and
// nothing is laid out anew, which for a single position would take longer than the step. A call whose numbers stand
// otherwise, or whose state is of another type than the arithmetic's, goes through the scan.

constexpr int UPDATE_STATES = 256;  // the most n whose B and C have room on the stack

template <class Real, class Stored>
void update_tile(const mmm::ScanCall& call, const Stored* A, const ScanTile& tile) {
  alignas(64) Real input[SCAN_TILE], delta[SCAN_TILE], bias[SCAN_TILE], y[SCAN_TILE], z[SCAN_TILE];
  alignas(64) Real B[UPDATE_STATES], C[UPDATE_STATES], totals[SCAN_TILE * LANES<Real>];
  const int n = int(call.n);
  read(input, SCAN_TILE, call.u, tile.positions(call.u, 0, 0, SCAN_TILE));
  read(delta, SCAN_TILE, call.delta, tile.positions(call.delta, 0, 0, SCAN_TILE));
  read(B, n, call.B, tile.projections(call.B, 0, n));
  read(C, n, call.C, tile.projections(call.C, 0, n));
  read_or_zero(bias, SCAN_TILE, call.delta_bias, tile.channels_of(call.delta_bias));
  read_or_zero(y, SCAN_TILE, call.D, tile.channels_of(call.D));
  for (int v = 0; v < tile.width; v += LANES<Real>) {
    Vector<Real> step = vector_at(delta + v) + vector_at(bias + v);
    if (call.softplus) step = softplus<Real>(step).value;
    if (call.D.data) vector_at(y + v) *= vector_at(input + v);
    vector_at(input + v) *= step;
    vector_at(delta + v) = step * Constants<Real>::LOG2E;
  }
  const mmm::Array& state = call.final_state;
  Real* h = reinterpret_cast<Real*>(state.data) + tile.row * state.stride[0] + tile.channel * state.stride[1];
  A += tile.channel * call.A.stride[0];
  for (int i = 0; i < tile.width; ++i, h += state.stride[1], A += call.A.stride[0]) {
    Vector<Real> total = {};
    for (int v = 0; v < n; v += LANES<Real>) {
      const Vector<Real> rate = call.log_A ? decay<Real>(load_as<Real>(A + v)) : load_as<Real>(A + v);
      const Vector<Real> next = exp2(rate * delta[i]) * load(h + v) + vector_at(B + v) * input[i];
      store(h + v, next);
      total += next * vector_at(C + v);
    }
    vector_at(totals + i * LANES<Real>) = total;
  }
  for (int v = 0; v < tile.width; v += LANES<Real>) vector_at(y + v) += sums<LANES<Real>, LANES<Real>>(totals + v * LANES<Real>);
  if (call.z.data) {
    read(z, SCAN_TILE, call.z, tile.positions(call.z, 0, 0, SCAN_TILE));
    for (int v = 0; v < tile.width; v += LANES<Real>)
      vector_at(y + v) *= vector_at(z + v) * sigmoid<Real>(vector_at(z + v));
  }
  write(call.out, y, SCAN_TILE, tile.positions(call.out, 0, 0, SCAN_TILE));
}

template <class Real>
int update_as(const mmm::ScanCall& call) {
  constexpr int64_t dtype = sizeof(Real) == 8 ? mmm::FLOAT64 : mmm::FLOAT32;
  const bool in_place = call.final_state.dtype == dtype && call.final_state.stride[2] == 1 && call.A.stride[1] == 1 &&
                        call.n % LANES<Real> == 0 && call.n <= UPDATE_STATES;
  if (!in_place) return scan_as<Real>(call);
  return mmm::for_each_piece(ScanTile::tasks(call), call.n * SCAN_TILE, [&](int64_t begin, int64_t end) {
    with_type(call.A, [&](const auto* A) {
      for (int64_t task = begin; task < end; ++task) update_tile<Real>(call, A, ScanTile(call, task));
    });
    return 0;
  });
}

// A scan of one position whose final state is its initial state.
int update(const mmm::ScanCall& call) { return call.wide ? update_as<double>(call) : update_as<float>(call); }
