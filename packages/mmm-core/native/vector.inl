// The vectors that the kernels are written in: as wide as the instruction set, of float or double.
//
// They are GNU vector types, which GCC and Clang turn into the instructions of whatever set the file is compiled for.
// Intrinsics stand here alone, where one instruction does what takes several otherwise.

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define MMM_BYTES 64
#elif defined(__AVX2__)
#define MMM_BYTES 32
#else
#define MMM_BYTES 16
#endif

template <class Real>
struct VectorOf;

template <>
struct VectorOf<float> {
  typedef float Type __attribute__((vector_size(MMM_BYTES), may_alias));
  typedef int32_t Whole __attribute__((vector_size(MMM_BYTES), may_alias));
};

template <>
struct VectorOf<double> {
  typedef double Type __attribute__((vector_size(MMM_BYTES), may_alias));
  typedef int64_t Whole __attribute__((vector_size(MMM_BYTES), may_alias));
};

template <class Real>
using Vector = typename VectorOf<Real>::Type;

template <class Real>
constexpr int LANES = MMM_BYTES / sizeof(Real);

template <class Real>
inline Vector<Real>& vector_at(Real* aligned) {
  return *reinterpret_cast<Vector<Real>*>(aligned);
}

template <class Real>
inline const Vector<Real>& vector_at(const Real* aligned) {
  return *reinterpret_cast<const Vector<Real>*>(aligned);
}

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

// The sum of the lanes, in halves.
template <class V>
inline auto sum(V x) {
  typedef decltype(x[0] + x[0]) Real;
  Real total[sizeof(V) / sizeof(Real)];
  std::memcpy(total, &x, sizeof x);
#pragma GCC unroll 4
  for (int width = sizeof(V) / sizeof(Real) / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) total[i] += total[i + width];
  return total[0];
}

// x, no less than `low` and no more than `high`; NaN stays NaN, as the instructions return their second operand then.
template <class V, class Real>
inline V clamped(V x, Real low, Real high) {
  const V lows = V{} + low, highs = V{} + high;
#if defined(__AVX2__)
  if constexpr (sizeof(V) == 32 && sizeof(Real) == 4)
    return reinterpret_cast<V>(_mm256_min_ps(__m256(highs), _mm256_max_ps(__m256(lows), __m256(x))));
  else if constexpr (sizeof(V) == 32)
    return reinterpret_cast<V>(_mm256_min_pd(__m256d(highs), _mm256_max_pd(__m256d(lows), __m256d(x))));
#elif defined(__x86_64__)
  if constexpr (sizeof(V) == 16 && sizeof(Real) == 4)
    return reinterpret_cast<V>(_mm_min_ps(__m128(highs), _mm_max_ps(__m128(lows), __m128(x))));
  else if constexpr (sizeof(V) == 16)
    return reinterpret_cast<V>(_mm_min_pd(__m128d(highs), _mm_max_pd(__m128d(lows), __m128d(x))));
#endif
  x = x < lows ? lows : x;
  return x > highs ? highs : x;
}

// The first `count` lanes of x, and zeros.
template <class Real>
inline Vector<Real> only(Vector<Real> x, int count) {
  using Whole = typename VectorOf<Real>::Whole;
  Whole lane;
  for (int i = 0; i < LANES<Real>; ++i) lane[i] = i;
  return lane < Whole{} + count ? x : Vector<Real>{};
}

// Of the lanes of a and b in groups of 2 H: the first H of each group, or with OFFSET = H the others.
template <int H, int OFFSET, class V, int... I>
inline V halves(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (I / H * 2 * H + I % H + OFFSET)...);
}

// COUNT vectors that stand APART numbers behind each other, each summed over its lanes: the sums are the lanes of the
// result, each as often as there is room. A tree of pairs, all of whose shuffles are one instruction.
template <int COUNT, int APART, class Real>
inline Vector<Real> sums(const Real* at) {
  if constexpr (COUNT == 1) {
    return vector_at(at);
  } else {
    constexpr int H = LANES<Real> / COUNT;
    using Lanes = std::make_integer_sequence<int, LANES<Real>>;
    const auto a = sums<COUNT / 2, APART>(at), b = sums<COUNT / 2, APART>(at + COUNT / 2 * APART);
    return halves<H, 0>(a, b, Lanes{}) + halves<H, H>(a, b, Lanes{});
  }
}

// Swaps blocks of H lanes between vectors that are H apart: a stage of `transpose`.
template <int H, class V, int... I>
inline void swap_blocks(V& a, V& b, std::integer_sequence<int, I...>) {
  constexpr int W = sizeof...(I);
  const V low = __builtin_shufflevector(a, b, (I & H ? W + I - H : I)...);
  b = __builtin_shufflevector(a, b, (I & H ? W + I : I + H)...);
  a = low;
}

// Makes rows columns, in a square of as many vectors as each has lanes.
template <int H, class V>
inline void transpose(V* rows) {
  if constexpr (H > 0) {
    constexpr int W = sizeof(V) / sizeof(rows[0][0]);
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i)
      if ((i & H) == 0) swap_blocks<H>(rows[i], rows[i + H], std::make_integer_sequence<int, W>());
    transpose<H / 2>(rows);
  }
}

// Writes a vector past the caches, where the instruction set can; `finish_streams` before other threads read it.
inline void stream(float* aligned, Vector<float> x) {
#if defined(__AVX512F__)
  _mm512_stream_ps(aligned, reinterpret_cast<__m512>(x));
#elif defined(__AVX2__)
  _mm256_stream_ps(aligned, reinterpret_cast<__m256>(x));
#else
  vector_at(aligned) = x;
#endif
}

inline void finish_streams() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}
