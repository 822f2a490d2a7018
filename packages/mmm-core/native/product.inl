// A few rows times a weight matrix, x W^T + bias: what decoding waits for, since each weight is fetched from memory and
// used once a row.
//
// The weight is read as one stream, row by row, and asked for well ahead of its use; vectors run along the inputs. x is
// widened once into scratch, padded with zeros. An output is summed in the same order whatever rows, outputs and
// threads are beside it.

constexpr int PRODUCT_ROWS = 8;         // of x that a row of the weight is multiplied with before the next is read
constexpr int PRODUCT_SUMS = 2;         // partial sums of an output, so that one addition does not wait for the last
constexpr int PRODUCT_AHEAD = 6 << 10;  // bytes

// One row of the weight times ROWS rows of x, which stand `apart`: for each a vector whose lanes are still to be summed.
template <int ROWS, class Real, class Stored>
inline void multiply(Real* totals, const Stored* weight, const Real* x, int64_t apart, int64_t inputs) {
  constexpr int W = LANES<Real>, STEP = 4 * W, LINE = 64;
  Vector<Real> total[ROWS][PRODUCT_SUMS] = {};
  const auto add = [&](int part, int64_t i, Vector<Real> w) {
#pragma GCC unroll 4
    for (int row = 0; row < ROWS; ++row) total[row][part % PRODUCT_SUMS] += w * vector_at(x + row * apart + i);
  };
  int64_t i = 0;
  for (; i + STEP <= inputs; i += STEP) {
    const char* ahead = reinterpret_cast<const char*>(weight + i) + PRODUCT_AHEAD;
#pragma GCC unroll 4
    for (int byte = 0; byte < STEP * int(sizeof(Stored)); byte += LINE) __builtin_prefetch(ahead + byte);
#pragma GCC unroll 4
    for (int part = 0; part < 4; ++part) add(part, i + part * W, load_as<Real>(weight + i + part * W));
  }
  for (; i + W <= inputs; i += W) add(0, i, load_as<Real>(weight + i));
  if (i < inputs) add(0, i, load_first<Real>(weight + i, inputs - i));
#pragma GCC unroll 4
  for (int row = 0; row < ROWS; ++row) vector_at(totals + row * W * W) = total[row][0] + total[row][1];
}

// A tile of LANES outputs, or of the last ones, for `rows` rows of x from `row` on; the first of them stands at `x`.
template <class Real, class Stored>
void product_tile(const mmm::ProductCall& call, int64_t first, const Real* x, int64_t apart, int64_t row, int rows) {
  constexpr int W = LANES<Real>;
  alignas(64) Real totals[PRODUCT_ROWS * W * W], bias[W], y[W];  // totals: [row][output][lane]
  const mmm::Array& out = call.out;
  const int count = int(std::min<int64_t>(W, call.outputs - first));
  const Stored* weight = reinterpret_cast<const Stored*>(call.weight.data) + first * call.weight.stride[0];
  for (int output = 0; output < count; ++output, weight += call.weight.stride[0]) {
    int i = 0;
    for (; i + 4 <= rows; i += 4) multiply<4>(totals + (i * W + output) * W, weight, x + i * apart, apart, call.inputs);
    for (; i + 2 <= rows; i += 2) multiply<2>(totals + (i * W + output) * W, weight, x + i * apart, apart, call.inputs);
    if (i < rows) multiply<1>(totals + (i * W + output) * W, weight, x + i * apart, apart, call.inputs);
  }
  read_or_zero(bias, W, call.bias, {first * call.bias.stride[0], 0, call.bias.stride[0], 1, count});
  for (int i = 0; i < rows; ++i) {
    std::fill(totals + (i * W + count) * W, totals + (i + 1) * W * W, Real(0));
    vector_at(y) = sums<W, W>(totals + i * W * W) + vector_at(bias);
    write(out, y, W, {(row + i) * out.stride[0] + first * out.stride[1], 0, out.stride[1], 1, count});
  }
}

template <class Real>
int product_as(const mmm::ProductCall& call) {
  constexpr int W = LANES<Real>;
  const int64_t padded = (call.inputs + W - 1) / W * W;
  // One thread may be all that the memory can serve: another is woken for a megabyte.
  const int64_t cost = W * call.inputs * mmm::size_of(call.weight.dtype) / 16;
  return mmm::for_each_piece((call.outputs + W - 1) / W, cost, [&](int64_t begin, int64_t end) {
    mmm::Scratch<Real> scratch(call.rows * padded);
    if (!scratch.data()) return 1;
    read(scratch.data(), int(padded), call.x, {0, call.x.stride[0], call.x.stride[1], int(call.rows), int(call.inputs)});
    with_type(call.weight, [&](const auto* weight) {
      using Stored = std::decay_t<decltype(*weight)>;
      for (int64_t tile = begin; tile < end; ++tile)
        for (int64_t row = 0; row < call.rows; row += PRODUCT_ROWS) {
          const int rows = int(std::min<int64_t>(PRODUCT_ROWS, call.rows - row));
          product_tile<Real, Stored>(call, tile * W, scratch.data() + row * padded, padded, row, rows);
        }
    });
    return 0;
  });
}

int product(const mmm::ProductCall& call) { return call.wide ? product_as<double>(call) : product_as<float>(call); }
