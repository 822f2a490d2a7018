// What Python passes and calls. A plain C ABI: no torch and no Python headers, so that one library fits every torch.
//
// A call is one block of 64-bit words, filled by mmm_core/native_library.py in the order of the fields below.
// Raise MMM_CORE_ABI there and here whenever a field or a signature changes.
#pragma once

#include <cstdint>

#define MMM_CORE_ABI 6

namespace mmm {

enum Dtype : int64_t { FLOAT32 = 0, FLOAT64 = 1, BFLOAT16 = 2, FLOAT16 = 3 };

// The bytes of a number.
inline int64_t size_of(int64_t dtype) { return dtype == FLOAT64 ? 8 : dtype == FLOAT32 ? 4 : 2; }

// A tensor: strides in elements, zero where there are fewer axes; `data` is null where the tensor is absent.
struct Array {
  char* data;
  int64_t dtype;
  int64_t stride[4];
};

// Positions between two checkpoints of a scan.
constexpr int SCAN_CHUNK = 16;

// The sequences of a call: batch rows of one length, or, where `bounds` is given, pieces of one row.
struct Sequences {
  int64_t rows;           // batch rows, or packed sequences
  int64_t length;         // positions in a batch row
  const int64_t* bounds;  // rows + 1 cumulative lengths, or null
  int64_t reverse;

  int64_t positions() const { return bounds ? length : rows * length; }
  int64_t mean_length() const { return bounds ? length / (rows > 0 ? rows : 1) : length; }
};

struct ScanCall {
  int64_t wide;  // compute in double
  Sequences sequences;
  int64_t e, groups, n, softplus;
  int64_t log_A;  // A is given as log(-A); never to the backward
  Array u, delta, A, B, C, D, z, delta_bias, initial_state;
  Array out, final_state, checkpoints;
};

struct ScanBackwardCall {
  ScanCall forward;
  Array grad_out, grad_final_state;
  Array grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_delta_bias, grad_initial_state;
};

struct ConvCall {
  int64_t wide;
  Sequences sequences;
  int64_t e, taps, silu;
  Array x, weight, bias, initial_state;
  Array out, final_state;
};

struct ConvBackwardCall {
  ConvCall forward;
  Array grad_out, grad_final_state;
  Array grad_x, grad_weight, grad_bias, grad_initial_state;
};

// x (rows, inputs) times a weight (outputs, inputs), whose last stride is 1, to out (rows, outputs).
struct ProductCall {
  int64_t wide, rows, inputs, outputs;
  Array x, weight, bias, out;
};

// One token of a Mamba layer: its projections, its convolution and its scan, in this order. x and out are (rows, dim), the
// parameters are as the layer has them, conv_weight (e, 1, taps); the states (rows, e, ...) are written in place.
struct StepCall {
  int64_t wide, rows, dim, e, n, taps, rank;
  Array x, out, in_weight, in_bias, conv_weight, conv_bias, x_weight, x_bias, dt_weight, dt_bias, A_log, D;
  Array out_weight, out_bias, conv_state, ssm_state;
};

// A layer of a stack. `step` lacks x and out, which are made of the dtype of its weights.
struct LayerCall {
  double eps;
  Array norm_weight;
  StepCall step;
};

// One token of layers one behind the other, x + step(rms_norm(x)) each. x (rows, dim) is contiguous, float64 where the call
// is wide and else float32, and is written in place. The `count` layers stand behind this in memory.
struct StackCall {
  int64_t wide, rows, dim, count;
  Array x;
};

// torch's `torch_parallel_for`: calls `work` on pieces of [begin, end), each at least `grain` long, on its threads.
using Work = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, Work work, void* context);

// What each instruction set's translation unit exports. A function returns 0, 1 where memory ran out, or 2 where
// the thread pool failed.
struct Kernels {
  const char* isa;
  int (*scan)(const ScanCall&);
  int (*scan_backward)(const ScanBackwardCall&);
  int (*update)(const ScanCall&);
  int (*conv)(const ConvCall&);
  int (*conv_backward)(const ConvBackwardCall&);
  int (*product)(const ProductCall&);
  int (*step)(const StepCall&);
  int (*stack)(const StackCall&);
  double (*exponentials)(int64_t count);
};

}  // namespace mmm
