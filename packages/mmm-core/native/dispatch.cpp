// The library's entry points: which instruction sets it holds, which one is in use, and every operation through it.

#include <cstring>

#include "abi.h"
#include "parallel.h"

#if defined(_WIN32)
#define MMM_EXPORT extern "C" __declspec(dllexport)
#else
#define MMM_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace mmm {

ParallelFor parallel_for = nullptr;

#if defined(__x86_64__) || defined(_M_X64)
extern const Kernels kernels_avx512, kernels_avx2, kernels_baseline;
#elif defined(__aarch64__) || defined(_M_ARM64)
extern const Kernels kernels_neon;
#else
extern const Kernels kernels_baseline;
#endif

namespace {

// The instruction sets that this CPU has, widest first, and a null at the end.
struct Available {
  const Kernels* kernels[4] = {};

  Available() {
    const Kernels** next = kernels;
#if defined(__x86_64__) || defined(_M_X64)
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx512 && avx2) *next++ = &kernels_avx512;
    if (avx2) *next++ = &kernels_avx2;
    *next++ = &kernels_baseline;
#elif defined(__aarch64__) || defined(_M_ARM64)
    *next++ = &kernels_neon;
#else
    *next++ = &kernels_baseline;
#endif
  }
};

const Available available;
const Kernels* chosen = available.kernels[0];

}  // namespace
}  // namespace mmm

MMM_EXPORT int mmm_core_abi(void) { return MMM_CORE_ABI; }

// Positions between two checkpoints of a scan, for which Python makes room.
MMM_EXPORT int mmm_core_scan_chunk(void) { return mmm::SCAN_CHUNK; }

// The name of an instruction set that this CPU has, widest first; null after the last.
MMM_EXPORT const char* mmm_core_available(int place) {
  const mmm::Kernels* kernels = mmm::available.kernels[place];
  return kernels ? kernels->isa : nullptr;
}

// Use an instruction set from now on. Returns 0, or 1 where this CPU has none of that name.
MMM_EXPORT int mmm_core_use(const char* isa) {
  for (const mmm::Kernels* kernels : mmm::available.kernels)
    if (kernels && std::strcmp(kernels->isa, isa) == 0) {
      mmm::chosen = kernels;
      return 0;
    }
  return 1;
}

// The instruction set in use, as the kernels themselves have it.
MMM_EXPORT const char* mmm_core_isa(void) { return mmm::chosen->isa; }

// The thread pool to run on, torch's `torch_parallel_for`; null for none.
MMM_EXPORT void mmm_core_set_parallel_for(mmm::ParallelFor parallel_for) { mmm::parallel_for = parallel_for; }

// The operations return 0, 1 where memory ran out, or 2 where the thread pool failed.
MMM_EXPORT int mmm_core_scan(const mmm::ScanCall* call) { return mmm::chosen->scan(*call); }
MMM_EXPORT int mmm_core_scan_backward(const mmm::ScanBackwardCall* call) { return mmm::chosen->scan_backward(*call); }
MMM_EXPORT int mmm_core_update(const mmm::ScanCall* call) { return mmm::chosen->update(*call); }
MMM_EXPORT int mmm_core_conv(const mmm::ConvCall* call) { return mmm::chosen->conv(*call); }
MMM_EXPORT int mmm_core_conv_backward(const mmm::ConvBackwardCall* call) { return mmm::chosen->conv_backward(*call); }
MMM_EXPORT int mmm_core_product(const mmm::ProductCall* call) { return mmm::chosen->product(*call); }
MMM_EXPORT int mmm_core_step(const mmm::StepCall* call) { return mmm::chosen->step(*call); }
MMM_EXPORT int mmm_core_stack(const mmm::StackCall* call) { return mmm::chosen->stack(*call); }

// For benchmarks: compute this many exponentials and nothing else, and return their sum.
MMM_EXPORT double mmm_core_exponentials(int64_t count) { return mmm::chosen->exponentials(count); }
