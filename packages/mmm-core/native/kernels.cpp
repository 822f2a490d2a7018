// All kernels, for one instruction set: compiled once for each, as MMM_ISA, with that set's flags.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <type_traits>
#include <utility>

#include "abi.h"
#include "memory.h"
#include "parallel.h"

// Everything stands in an anonymous namespace, so that the linker never mixes one set's code into another's.
namespace {
#include "vector.inl"
#include "maths.inl"
#include "rows.inl"
#include "scan.inl"
#include "scan_backward.inl"
#include "exponentials.inl"
#include "update.inl"
#include "conv.inl"
#include "product.inl"
#include "step.inl"
}  // namespace

#define MMM_PASTE(a, b) a##b
#define MMM_TABLE(isa) MMM_PASTE(kernels_, isa)
#define MMM_QUOTE(isa) #isa
#define MMM_STRING(isa) MMM_QUOTE(isa)

namespace mmm {
extern const Kernels MMM_TABLE(MMM_ISA);
const Kernels MMM_TABLE(MMM_ISA) = {
    MMM_STRING(MMM_ISA), scan, scan_backward, update, conv, conv_backward, product, step, stack, exponentials};
}  // namespace mmm
