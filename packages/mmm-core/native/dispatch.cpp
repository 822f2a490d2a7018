// What the library is, and which instruction set this CPU has. A plain C ABI: no torch and no Python headers.

#if defined(_WIN32)
#define MMM_CORE_EXPORT extern "C" __declspec(dllexport)
#else
#define MMM_CORE_EXPORT extern "C" __attribute__((visibility("default")))
#endif

// Raised whenever a signature below changes; mmm_core/native_library.py refuses another one.
MMM_CORE_EXPORT int mmm_core_abi(void) { return 1; }

// The widest instruction set of this CPU: "avx512", "avx2", "neon" or "baseline".
MMM_CORE_EXPORT const char* mmm_core_isa(void) {
#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    return "avx512";
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "avx2";
#elif defined(__aarch64__) || defined(_M_ARM64)
  return "neon";
#endif
  return "baseline";
}
