// One token of a whole Mamba layer, each operation by its own kernel: called one by one from Python they wait for it
// longer than they run. What passes between them has the dtype of x, as it has there.

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
