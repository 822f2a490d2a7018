// Calls the library's C functions as Python does, on many kinds of call, for the sanitizers to watch: no Python, no
// torch. `nox -s sanitize` builds and runs it; the argument is the number of calls for each instruction set.
//
// Every tensor has a block of memory of its own, exactly as large as its sizes and strides need. What is to be written
// and all scratch begins as NaN, so that a place that nobody wrote shows; so does a write between a tensor's elements.
// Each call runs on one thread, then on several in pieces: both must write the same bytes.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../abi.h"

extern "C" {
const char* mmm_core_available(int place);
int mmm_core_use(const char* isa);
const char* mmm_core_isa(void);
void mmm_core_set_parallel_for(mmm::ParallelFor parallel_for);
int mmm_core_scan(const mmm::ScanCall* call);
int mmm_core_update(const mmm::ScanCall* call);
int mmm_core_scan_backward(const mmm::ScanBackwardCall* call);
int mmm_core_conv(const mmm::ConvCall* call);
int mmm_core_conv_backward(const mmm::ConvBackwardCall* call);
int mmm_core_product(const mmm::ProductCall* call);
int mmm_core_step(const mmm::StepCall* call);
int mmm_core_stack(const mmm::StackCall* call);
}

constexpr unsigned char UNWRITTEN = 0xff;  // a NaN in every dtype

// The kernels' scratch, as `memory.h` asks for it.
void* operator new(size_t size, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  size_t whole = (size + size_t(alignment) - 1) / size_t(alignment) * size_t(alignment);
  void* data = std::aligned_alloc(size_t(alignment), whole);
  if (data) std::memset(data, UNWRITTEN, whole);
  return data;
}
void operator delete(void* data, std::align_val_t) noexcept { std::free(data); }

namespace {

using mmm::Array;
using Sizes = std::vector<int64_t>;

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "%s: %s\n", mmm_core_isa(), what.c_str());
  std::exit(1);
}

void expect(bool holds, const char* what) {
  if (!holds) fail(what);
}

int shared_out = 0;  // calls of the pool

// Three threads take the pieces in turn, from the last to the first.
int32_t run_on_threads(int64_t begin, int64_t end, int64_t grain, mmm::Work work, void* context) {
  constexpr int64_t THREADS = 3;
  const int64_t pieces = (end - begin + grain - 1) / grain;
  ++shared_out;
  std::vector<std::thread> threads;
  for (int64_t thread = 0; thread < THREADS; ++thread)
    threads.emplace_back([=] {
      for (int64_t piece = pieces - 1 - thread; piece >= 0; piece -= THREADS)
        work(begin + piece * grain, std::min(end, begin + (piece + 1) * grain), context);
    });
  for (std::thread& thread : threads) thread.join();
  return 0;
}

struct Random {
  int64_t below(int64_t bound) { return int64_t(engine() % uint64_t(bound)); }
  bool coin() { return below(2) == 1; }
  double between(double least, double most) { return least + (most - least) * double(below(1 << 20)) / (1 << 20); }
  int64_t one_of(std::initializer_list<int64_t> choices) { return choices.begin()[below(int64_t(choices.size()))]; }

  std::mt19937_64 engine;
};


void store(char* at, int64_t dtype, double value) {
  const float single = float(value);
  uint32_t bits;
  std::memcpy(&bits, &single, 4);
  const uint16_t upper = uint16_t(bits >> 16);
  // A float16 between 2^-14 and 2^15, its fraction cut off; smaller ones are zero.
  const int exponent = int(bits >> 23 & 0xff) - 112;
  const uint16_t half = exponent < 1 ? 0 : uint16_t((bits >> 16 & 0x8000) | exponent << 10 | (bits >> 13 & 0x3ff));
  switch (dtype) {
    case mmm::FLOAT64: std::memcpy(at, &value, 8); return;
    case mmm::FLOAT32: std::memcpy(at, &single, 4); return;
    case mmm::BFLOAT16: std::memcpy(at, &upper, 2); return;
    default: std::memcpy(at, &half, 2);
  }
}

// A tensor in memory of its own.
class Tensor {
 public:
  Tensor(Random& random, int64_t dtype, const Sizes& sizes, int layouts) : sizes_(sizes) {
    array = {nullptr, dtype, {0, 0, 0, 0}};
    const int rank = int(sizes.size()), layout = int(random.below(layouts));  // 0: contiguous
    int64_t stride = layout == 1 ? 2 : 1, reach = 0;  // 1: gaps between the elements
    for (int i = 0; i < rank; ++i) {
      const int axis = layout == 2 ? i : rank - 1 - i;  // 2: the first axis is the innermost
      count *= sizes[axis];
      if (layout == 3 && i == rank - 1) continue;  // 3: the outermost axis is expanded
      array.stride[axis] = stride;
      stride *= sizes[axis];
      reach += (sizes[axis] - 1) * array.stride[axis];
    }
    if (count == 0) return;  // as torch has it: no memory
    size = (reach + 1) * mmm::size_of(dtype);
    data.reset(static_cast<char*>(std::malloc(size_t(size))));
    array.data = data.get();
    std::memset(array.data, UNWRITTEN, size_t(size));
  }

  void fill(Random& random, double least, double most) {
    each([&](char* at) { store(at, array.dtype, random.between(least, most)); });
  }

  // Every element was written, and nothing between them.
  void expect_written() const {
    std::vector<bool> element(size_t(size), false);
    each([&](const char* at) {
      bool unwritten = true;
      for (int64_t i = 0; i < mmm::size_of(array.dtype); ++i) {
        unwritten = unwritten && static_cast<unsigned char>(at[i]) == UNWRITTEN;
        element[size_t(at - array.data + i)] = true;
      }
      expect(!unwritten && !is_nan(at), "a result is NaN, or was not written");
    });
    for (int64_t i = 0; i < size; ++i)
      expect(element[size_t(i)] || static_cast<unsigned char>(array.data[i]) == UNWRITTEN, "a gap was written");
  }

  std::vector<char> take() {
    std::vector<char> bytes(array.data, array.data + size);
    if (size) std::memset(array.data, UNWRITTEN, size_t(size));
    return bytes;
  }

  Array array;
  int64_t count = 1, size = 0;

 private:
  template <class Run>
  void each(const Run& run) const {
    for (int64_t place = 0; place < count; ++place) {
      int64_t offset = 0, rest = place;
      for (size_t axis = sizes_.size(); axis-- > 0; rest /= sizes_[axis])
        offset += rest % sizes_[axis] * array.stride[axis];
      run(array.data + offset * mmm::size_of(array.dtype));
    }
  }

  bool is_nan(const char* at) const {
    double wide;
    float single;
    uint16_t half;
    switch (array.dtype) {
      case mmm::FLOAT64: std::memcpy(&wide, at, 8); return wide != wide;
      case mmm::FLOAT32: std::memcpy(&single, at, 4); return single != single;
      case mmm::BFLOAT16: std::memcpy(&half, at, 2); return (half & 0x7fff) > 0x7f80;
      default: std::memcpy(&half, at, 2); return (half & 0x7fff) > 0x7c00;
    }
  }

  struct Free {
    void operator()(char* at) const { std::free(at); }
  };
  Sizes sizes_;
  std::unique_ptr<char, Free> data;
};

// The tensors of one call: inputs are filled, results are compared.
class Tensors {
 public:
  explicit Tensors(Random& random) : random(random), mixed(random.below(4) == 0), dtype(random.below(4)) {}

  Array input(const Sizes& sizes, double least = -1, double most = 1, int layouts = 4) {
    inputs.emplace_back(new Tensor(random, mixed ? random.below(4) : dtype, sizes, layouts));
    inputs.back()->fill(random, least, most);
    return inputs.back()->array;
  }
  // Contiguous, and small enough that the products of products stay finite in float16.
  Array weight(int64_t outputs, int64_t inputs) {
    const double most = 1 / std::sqrt(double(inputs));
    return input({outputs, inputs}, -most, most, 1);
  }
  Array maybe(const Sizes& sizes) { return random.coin() ? input(sizes) : Array{}; }
  Array result(const Sizes& sizes, int64_t of) {
    results.emplace_back(new Tensor(random, of, sizes, 3));
    return results.back()->array;
  }
  // The gradient of an input; absent where that is.
  Array gradient(const Sizes& sizes, const Array& of) { return of.data ? result(sizes, of.dtype) : Array{}; }

  bool wide() const {
    bool any = false;
    for (const auto& tensor : inputs) any = any || tensor->array.dtype == mmm::FLOAT64;
    return any;
  }

  template <class Run>
  void run(const Run& run_call) {
    mmm_core_set_parallel_for(nullptr);
    expect(run_call() == 0, "no memory");
    std::vector<std::vector<char>> alone;
    for (const auto& tensor : results) {
      tensor->expect_written();
      alone.push_back(tensor->take());
    }
    mmm_core_set_parallel_for(run_on_threads);
    expect(run_call() == 0, "no memory");
    for (size_t i = 0; i < results.size(); ++i) expect(results[i]->take() == alone[i], "threads change the result");
  }

  Random& random;
  const bool mixed;
  const int64_t dtype;
  std::vector<std::unique_ptr<Tensor>> inputs, results;
};

// How a call's sequences stand: batch rows, or packed ones, in memory of exactly their size.
struct Layout {
  Layout(Random& random, int64_t most) {
    length = std::min(most, random.one_of({0, 1, 2, 3, 15, 16, 17, 32, 33, 65}));
    batch = random.below(4);
    sequences = {batch, length, nullptr, random.coin()};
    if (random.coin()) return;
    batch = 1;
    sequences.rows = random.below(5);
    bounds.reset(new int64_t[size_t(sequences.rows + 1)]);
    bounds[0] = length = 0;
    for (int64_t row = 0; row < sequences.rows; ++row)
      bounds[row + 1] = length += std::min(most, random.one_of({0, 0, 1, 5, 15, 16, 17, 33}));
    sequences.length = length;
    sequences.bounds = bounds.get();
  }

  int64_t batch, length;
  mmm::Sequences sequences;
  std::unique_ptr<int64_t[]> bounds;
};

// As mmm_core/scan/native.py has it: the states that enter the chunks.
int64_t checkpoint_count(const Layout& layout) {
  const int64_t chunks = (layout.length + mmm::SCAN_CHUNK - 1) / mmm::SCAN_CHUNK;
  return layout.sequences.bounds ? chunks + layout.sequences.rows + 1 : layout.batch * chunks;
}

void exercise_scan(Random& random) {
  const int64_t e = random.one_of({0, 1, 2, 5, 17, 64, 127, 128, 129, 300}), n = random.one_of({1, 3, 4, 5, 8, 16, 17, 33});
  const int64_t groups = e % 3 == 0 && e > 0 ? random.one_of({1, 3, e}) : 1;
  const Layout layout(random, 40000 / std::max<int64_t>(1, e * n));
  const int64_t b = layout.batch, l = layout.length, rows = layout.sequences.rows;
  const Sizes whole{b, l, e}, projection{b, l, groups, n}, states{rows, e, n};
  Tensors forward(random);
  mmm::ScanBackwardCall backward{};
  mmm::ScanCall& call = backward.forward;
  call.sequences = layout.sequences;
  call.e = e, call.groups = groups, call.n = n, call.softplus = random.coin();
  call.u = forward.input(whole), call.delta = forward.input(whole, 0, 1), call.A = forward.input({e, n}, -2, -0.1);
  call.B = forward.input(projection), call.C = forward.input(projection);
  call.D = forward.maybe({e}), call.z = forward.maybe(whole), call.initial_state = forward.maybe(states);
  if (random.coin()) call.delta_bias = forward.input({e}, 0, 1);
  call.wide = forward.wide();
  const int64_t arithmetic = call.wide ? mmm::FLOAT64 : mmm::FLOAT32;
  call.out = forward.result(whole, call.u.dtype), call.final_state = forward.result(states, arithmetic);
  forward.run([&] { return mmm_core_scan(&call); });

  // Packed sequences leave some of it unwritten; it is contiguous.
  const size_t size = size_t(checkpoint_count(layout) * e * n * mmm::size_of(arithmetic));
  std::unique_ptr<char[]> checkpoints(new char[size]);
  std::memset(checkpoints.get(), UNWRITTEN, size);
  call.checkpoints = {checkpoints.get(), arithmetic, {0, 1, 0, 0}};
  expect(mmm_core_scan(&call) == 0, "no memory");

  Tensors second(random);
  call.out = call.final_state = {};
  backward.grad_out = forward.input(whole);
  backward.grad_final_state = forward.maybe(states);
  backward.grad_u = second.gradient(whole, call.u), backward.grad_delta = second.gradient(whole, call.delta);
  backward.grad_A = second.gradient({e, n}, call.A), backward.grad_B = second.gradient(projection, call.B);
  backward.grad_C = second.gradient(projection, call.C), backward.grad_D = second.gradient({e}, call.D);
  backward.grad_z = second.gradient(whole, call.z), backward.grad_delta_bias = second.gradient({e}, call.delta_bias);
  backward.grad_initial_state = second.gradient(states, call.initial_state);
  second.run([&] { return mmm_core_scan_backward(&backward); });
}

void exercise_conv(Random& random) {
  const int64_t e = random.one_of({0, 1, 2, 5, 17, 64, 127, 128, 129, 300}), taps = random.one_of({1, 2, 3, 4, 5, 8, 40});
  const Layout layout(random, 300);
  const int64_t b = layout.batch, l = layout.length;
  const Sizes whole{b, l, e}, states{layout.sequences.rows, e, taps - 1};
  Tensors forward(random), second(random);
  mmm::ConvBackwardCall backward{};
  mmm::ConvCall& call = backward.forward;
  call.sequences = layout.sequences;
  call.e = e, call.taps = taps, call.silu = random.coin();
  call.x = forward.input(whole), call.weight = forward.input({e, taps}), call.bias = forward.maybe({e});
  call.initial_state = forward.maybe(states);
  call.wide = forward.wide();
  call.out = forward.result(whole, call.x.dtype), call.final_state = forward.result(states, call.x.dtype);
  forward.run([&] { return mmm_core_conv(&call); });

  call.out = call.final_state = {};
  backward.grad_out = forward.input(whole), backward.grad_final_state = forward.maybe(states);
  backward.grad_x = second.gradient(whole, call.x), backward.grad_weight = second.gradient({e, taps}, call.weight);
  backward.grad_bias = second.gradient({e}, call.bias);
  backward.grad_initial_state = second.gradient(states, call.initial_state);
  second.run([&] { return mmm_core_conv_backward(&backward); });
}

// One token, the new state in the place of the old.
void exercise_step(Random& random) {
  const int64_t e = random.one_of({1, 5, 16, 129, 300}), n = random.one_of({1, 4, 16, 17}), b = random.below(4), taps = 4;
  const Sizes whole{b, 1, e};
  Tensors tensors(random);
  mmm::ScanCall scan{};
  scan.sequences = {b, 1, nullptr, 0};
  scan.e = e, scan.groups = 1, scan.n = n, scan.softplus = random.coin();
  scan.u = tensors.input(whole), scan.delta = tensors.input(whole, 0, 1), scan.A = tensors.input({e, n}, -2, -0.1);
  scan.B = tensors.input({b, 1, 1, n}), scan.C = tensors.input({b, 1, 1, n});
  scan.D = tensors.maybe({e}), scan.z = tensors.maybe(whole), scan.delta_bias = tensors.maybe({e});
  mmm::ConvCall conv{};
  conv.sequences = scan.sequences;
  conv.e = e, conv.taps = taps, conv.silu = random.coin();
  conv.x = tensors.input(whole), conv.weight = tensors.input({e, taps}), conv.bias = tensors.maybe({e});
  scan.wide = conv.wide = tensors.wide();
  scan.out = tensors.result(whole, scan.u.dtype), conv.out = tensors.result(whole, conv.x.dtype);
  scan.initial_state = scan.final_state = tensors.result({b, e, n}, scan.wide ? mmm::FLOAT64 : mmm::FLOAT32);
  conv.initial_state = conv.final_state = tensors.result({b, e, taps - 1}, conv.x.dtype);
  tensors.run([&] {
    for (size_t i = 2; i < 4; ++i) {
      Random start;
      tensors.results[i]->fill(start, -1, 1);
    }
    return mmm_core_update(&scan) || mmm_core_conv(&conv);
  });
}

void exercise_product(Random& random) {
  mmm::ProductCall call{};
  call.rows = random.one_of({1, 2, 3, 4, 7, 8, 9, 18});
  call.inputs = random.one_of({1, 3, 16, 17, 48, 63, 64, 65, 300});
  call.outputs = random.one_of({1, 2, 15, 16, 17, 80, 2000});
  Tensors tensors(random);
  call.x = tensors.input({call.rows, call.inputs}), call.weight = tensors.weight(call.outputs, call.inputs);
  call.bias = tensors.maybe({call.outputs});
  call.wide = tensors.wide();
  call.out = tensors.result({call.rows, call.outputs}, call.x.dtype);
  tensors.run([&] { return mmm_core_product(&call); });
}

mmm::StepCall make_layer(Tensors& tensors, int64_t rows, int64_t dim) {
  Random& random = tensors.random;
  mmm::StepCall call{};
  const int64_t e = random.one_of({1, 10, 129, 400}), n = random.one_of({1, 5, 16, 32});
  const int64_t taps = 1 + random.below(5), rank = random.one_of({1, 4, 13});
  call.rows = rows, call.dim = dim, call.e = e, call.n = n, call.taps = taps, call.rank = rank;
  call.in_weight = tensors.weight(2 * e, dim), call.in_bias = tensors.maybe({2 * e});
  call.conv_weight = tensors.input({e, 1, taps}), call.conv_bias = tensors.maybe({e});
  call.x_weight = tensors.weight(rank + 2 * n, e), call.x_bias = tensors.maybe({rank + 2 * n});
  call.dt_weight = tensors.weight(e, rank), call.dt_bias = tensors.maybe({e});
  call.A_log = tensors.input({e, n}), call.D = tensors.input({e});
  call.out_weight = tensors.weight(dim, e), call.out_bias = tensors.maybe({dim});
  return call;
}

void make_states(Tensors& tensors, mmm::StepCall& call, bool wide) {
  call.wide = wide;
  call.conv_state = tensors.result({call.rows, call.e, call.taps - 1}, call.in_weight.dtype);
  call.ssm_state = tensors.result({call.rows, call.e, call.n}, wide ? mmm::FLOAT64 : mmm::FLOAT32);
}

// Runs a call whose results, from the `first` on, begin as what the call reads there.
template <class Run>
void run_from_states(Tensors& tensors, size_t first, const Run& run_call) {
  tensors.run([&] {
    for (size_t i = first; i < tensors.results.size(); ++i) {
      Random start;
      tensors.results[i]->fill(start, -1, 1);
    }
    return run_call();
  });
}

// One token of a layer.
void exercise_layer(Random& random) {
  const int64_t rows = 1 + random.below(4), dim = random.one_of({1, 7, 64, 200});
  Tensors tensors(random);
  mmm::StepCall call = make_layer(tensors, rows, dim);
  call.x = tensors.input({rows, dim});
  const bool wide = tensors.wide();
  call.out = tensors.result({rows, dim}, call.x.dtype);
  make_states(tensors, call, wide);
  run_from_states(tensors, 1, [&] { return mmm_core_step(&call); });
}

// One token of a few layers.
void exercise_stack(Random& random) {
  constexpr int MOST = 3;
  struct {
    mmm::StackCall call;
    mmm::LayerCall layers[MOST];
  } stack{};
  const int64_t rows = 1 + random.below(4), dim = random.one_of({1, 7, 64, 200});
  Tensors tensors(random);
  stack.call.rows = rows, stack.call.dim = dim, stack.call.count = random.below(MOST + 1);
  for (int i = 0; i < stack.call.count; ++i)
    stack.layers[i] = {1e-5, tensors.input({dim}), make_layer(tensors, rows, dim)};
  const bool wide = tensors.wide();
  stack.call.wide = wide;
  tensors.results.emplace_back(new Tensor(random, wide ? mmm::FLOAT64 : mmm::FLOAT32, {rows, dim}, 1));
  stack.call.x = tensors.results[0]->array;
  for (int i = 0; i < stack.call.count; ++i) make_states(tensors, stack.layers[i].step, wide);
  run_from_states(tensors, 0, [&] { return mmm_core_stack(&stack.call); });
}

}  // namespace

int main(int count, char** arguments) {
  const int calls = count > 1 ? std::atoi(arguments[1]) : 400;
  for (int place = 0; const char* isa = mmm_core_available(place); ++place) {
    expect(mmm_core_use(isa) == 0 && std::strcmp(mmm_core_isa(), isa) == 0, "not in use");
    Random random;
    shared_out = 0;
    for (int i = 0; i < calls; ++i) {
      exercise_scan(random), exercise_conv(random), exercise_step(random);
      exercise_product(random), exercise_layer(random), exercise_stack(random);
    }
    expect(shared_out >= calls / 10, "hardly a call was large enough for threads");
    std::printf("%s: %d calls of each operation, %d times on threads\n", isa, calls, shared_out);
  }
}
