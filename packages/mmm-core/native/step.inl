// One token of a whole Mamba layer, and of a stack of them, each operation by its own kernel: called one by one from
// Python they wait for it longer than they run. What passes between them has the dtype that it has there.

int step(const mmm::StepCall& call) {
  using mmm::Array;
  const int64_t e = call.e, n = call.n, selected = call.rank + 2 * n, dtype = call.x.dtype;
  const int64_t columns = 5 * e + selected;
  mmm::Scratch<char> scratch(call.rows * columns * mmm::size_of(dtype));
  if (!scratch.data()) return 1;
  // A (rows, 1, size) tensor of `columns`, which stand side by side.
  const auto between = [&](int64_t column) -> Array {
    return {scratch.data() + column * mmm::size_of(dtype), dtype, {columns, 0, 1, 0}};
  };
  const auto matrix = [](Array x) -> Array { return {x.data, x.dtype, {x.stride[0], x.stride[2], 0, 0}}; };
  const auto grouped = [](Array x) -> Array { return {x.data, x.dtype, {x.stride[0], 0, 0, x.stride[2]}}; };
  const Array x = between(0), z = between(e), u = between(2 * e), delta = between(3 * e), y = between(4 * e);
  const Array dt = between(5 * e), B = between(5 * e + call.rank), C = between(5 * e + call.rank + n);
  const mmm::Sequences sequences = {call.rows, 1, nullptr, 0};
  const Array none{};

  int failed = product({call.wide, call.rows, call.dim, 2 * e, call.x, call.in_weight, call.in_bias, matrix(x)});
  if (!failed)
    failed = conv({call.wide, sequences, e, call.taps, 1, x, matrix(call.conv_weight), call.conv_bias, call.conv_state,
                   u, call.conv_state});
  if (!failed) failed = product({call.wide, call.rows, e, selected, matrix(u), call.x_weight, call.x_bias, matrix(dt)});
  if (!failed) failed = product({call.wide, call.rows, call.rank, e, matrix(dt), call.dt_weight, none, matrix(delta)});
  if (!failed)
    failed = update({call.wide, sequences, e, 1, n, 1, 1, u, delta, call.A_log, grouped(B), grouped(C), call.D, z,
                     call.dt_bias, call.ssm_state, y, call.ssm_state, none});
  if (!failed) failed = product({call.wide, call.rows, e, call.dim, matrix(y), call.out_weight, call.out_bias, call.out});
  return failed;
}

// One row of x, normed and weighted as `rms_norm` does, into the layer's input; `row` and `weight` are scratch.
template <class Real>
void norm_row(const mmm::StackCall& call, const mmm::LayerCall& layer, const mmm::Array& to, int64_t at, Real* row,
              const Real* weight, int padded) {
  const Block block = {at, 0, 1, 1, int(call.dim)};
  read(row, padded, call.x, block);
  Vector<Real> squares = {};
  for (int v = 0; v < padded; v += LANES<Real>) squares += vector_at(row + v) * vector_at(row + v);
  const Real scale = 1 / Real(__builtin_sqrt(sum(squares) / Real(call.dim) + Real(layer.eps)));
  for (int v = 0; v < padded; v += LANES<Real>) vector_at(row + v) *= vector_at(weight + v) * scale;
  write(to, row, padded, block);
}

template <class Real>
int stack_as(const mmm::StackCall& call) {
  const auto* layers = reinterpret_cast<const mmm::LayerCall*>(&call + 1);
  const int64_t size = call.rows * call.dim;
  const int padded = int((call.dim + LANES<Real> - 1) / LANES<Real> * LANES<Real>);
  mmm::Scratch<Real> scratch(2 * padded);
  mmm::Scratch<double> between(2 * size);
  if (!scratch.data() || !between.data()) return 1;
  Real *row = scratch.data(), *weight = row + padded, *x = reinterpret_cast<Real*>(call.x.data);
  for (const mmm::LayerCall* layer = layers; layer < layers + call.count; ++layer) {
    mmm::StepCall one = layer->step;
    one.x = {reinterpret_cast<char*>(between.data()), one.in_weight.dtype, {call.dim, 1, 0, 0}};
    one.out = {reinterpret_cast<char*>(between.data() + size), one.in_weight.dtype, {call.dim, 1, 0, 0}};
    read(weight, padded, layer->norm_weight, {0, 0, layer->norm_weight.stride[0], 1, int(call.dim)});
    for (int64_t at = 0; at < size; at += call.dim) norm_row(call, *layer, one.x, at, row, weight, padded);
    if (const int failed = step(one)) return failed;
    for (int64_t at = 0; at < size; at += call.dim) {
      read(row, padded, one.out, {at, 0, 1, 1, int(call.dim)});
      for (int64_t i = 0; i < call.dim; ++i) x[at + i] += row[i];
    }
  }
  return 0;
}

int stack(const mmm::StackCall& call) { return call.wide ? stack_as<double>(call) : stack_as<float>(call); }
