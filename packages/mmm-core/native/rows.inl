// Rows of tensors of any dtype and stride, read into and written from aligned scratch in the arithmetic's type.

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }

inline float widen(BFloat16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

inline float widen(Float16 x) {
  constexpr uint32_t LEAST = 0x38800000;  // the smallest normal half, as a float
  uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = uint32_t(x.bits & 0x7fff) << 13;
  // Below it, the fraction is put behind it and it is taken away again: that works where denormal floats are flushed.
  uint32_t small_bits = rest + LEAST;
  float small, least;
  std::memcpy(&small, &small_bits, sizeof small);
  std::memcpy(&least, &LEAST, sizeof least);
  small -= least;
  std::memcpy(&small_bits, &small, sizeof small);
  uint32_t bits = rest + (112u << 23);
  bits = rest >= 0x7c00u << 13 ? rest | 0x7f800000 : bits;  // infinity and NaN
  bits = (rest < 0x400u << 13 ? small_bits : bits) | sign;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

inline void narrow(float x, float& y) { y = x; }
inline void narrow(double x, double& y) { y = x; }
inline void narrow(double x, float& y) { y = float(x); }
inline void narrow(float x, double& y) { y = x; }

// Rounds to nearest, ties to even.
inline void narrow(float x, BFloat16& y) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof x);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  y.bits = uint16_t((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded);
}

inline void narrow(float x, Float16& y) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof x);
  uint32_t sign = (bits >> 16) & 0x8000, rest = bits & 0x7fffffff;
  // Below the smallest normal half, adding 1/2 shifts the fraction into place and rounds it.
  float small;
  std::memcpy(&small, &rest, sizeof small);
  small += 0.5f;
  uint32_t small_bits;
  std::memcpy(&small_bits, &small, sizeof small);
  uint32_t normal = (rest - (112u << 23) + 0xfff + ((rest >> 13) & 1)) >> 13;
  uint32_t half = rest < 113u << 23 ? small_bits - 0x3f000000 : normal;
  half = rest >= 143u << 23 ? (rest > 0x7f800000 ? 0x7e00 : 0x7c00) : half;
  y.bits = uint16_t(half | sign);
}

inline void narrow(double x, BFloat16& y) { narrow(float(x), y); }
inline void narrow(double x, Float16& y) { narrow(float(x), y); }

// A vector of stored numbers, wherever they stand, in the arithmetic's type.
template <class Real, class Stored>
inline Vector<Real> load_as(const Stored* at) {
  alignas(64) Real wide[LANES<Real>];
  for (int i = 0; i < LANES<Real>; ++i) wide[i] = Real(widen(at[i]));
  return vector_at(wide);
}

#if defined(__AVX512F__)
template <>
inline Vector<float> load_as<float, Float16>(const Float16* at) {
  return reinterpret_cast<Vector<float>>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))));
}
#elif defined(__F16C__)
template <>
inline Vector<float> load_as<float, Float16>(const Float16* at) {
  return reinterpret_cast<Vector<float>>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
}
#endif

// The first `count` of a vector, and zeros; nothing behind them is read.
template <class Real, class Stored>
inline Vector<Real> load_first(const Stored* at, int64_t count) {
  alignas(64) Real wide[LANES<Real>] = {};
  for (int64_t i = 0; i < count; ++i) wide[i] = Real(widen(at[i]));
  return vector_at(wide);
}

// A block of a tensor: `rows` rows of `count` numbers, at `offset`; all in elements.
struct Block {
  int64_t offset, row_stride, stride;
  int rows, count;
};

// Calls `use` with the data of a tensor as what it is.
template <class Use>
void with_type(const mmm::Array& x, const Use& use) {
  switch (x.dtype) {
    case mmm::FLOAT32: return use(reinterpret_cast<float*>(x.data));
    case mmm::FLOAT64: return use(reinterpret_cast<double*>(x.data));
    case mmm::BFLOAT16: return use(reinterpret_cast<BFloat16*>(x.data));
    default: return use(reinterpret_cast<Float16*>(x.data));
  }
}

template <class Real, class Stored>
void read_as(Real* to, int width, int apart, const Stored* from, const Block& block) {
  for (int row = 0; row < block.rows; ++row, to += apart) {
    const Stored* at = from + block.offset + row * block.row_stride;
    if (block.stride == 1)
      for (int i = 0; i < block.count; ++i) to[i] = Real(widen(at[i]));
    else
      for (int i = 0; i < block.count; ++i) to[i] = Real(widen(at[i * block.stride]));
    for (int i = block.count; i < width; ++i) to[i] = 0;
  }
}

template <class Real, class Stored>
void write_as(Stored* to, const Real* from, int apart, const Block& block) {
  for (int row = 0; row < block.rows; ++row, from += apart) {
    Stored* at = to + block.offset + row * block.row_stride;
    if (block.stride == 1)
      for (int i = 0; i < block.count; ++i) narrow(from[i], at[i]);
    else
      for (int i = 0; i < block.count; ++i) narrow(from[i], at[i * block.stride]);
  }
}

// A block into rows of `width` numbers, padded with zeros.
template <class Real>
void read(Real* to, int width, const mmm::Array& from, const Block& block) {
  with_type(from, [&](const auto* data) { read_as(to, width, width, data, block); });
}

// As `read`; of a tensor that is absent, zeros.
template <class Real>
void read_or_zero(Real* to, int width, const mmm::Array& from, const Block& block) {
  if (from.data)
    read(to, width, from, block);
  else
    std::fill(to, to + width, Real(0));
}

// The inverse of `read`; what stands in the padding stays behind.
template <class Real>
void write(const mmm::Array& to, const Real* from, int width, const Block& block) {
  with_type(to, [&](auto* data) { write_as(data, from, width, block); });
}

// As `read` and `write`, for rows of WIDTH numbers that stand `apart`: what is whole and contiguous takes a few vectors.
template <int WIDTH, class Real, class Stored>
void read_rows_as(Real* to, int apart, const Stored* from, const Block& block) {
  if (block.stride != 1 || block.count != WIDTH) return read_as(to, WIDTH, apart, from, block);
  const Stored* at = from + block.offset;
  for (int row = 0; row < block.rows; ++row, at += block.row_stride, to += apart)
    for (int i = 0; i < WIDTH; ++i) to[i] = Real(widen(at[i]));
}

template <int WIDTH, class Real, class Stored>
void write_rows_as(Stored* to, const Real* from, int apart, const Block& block) {
  if (block.stride != 1 || block.count != WIDTH) return write_as(to, from, apart, block);
  Stored* at = to + block.offset;
  for (int row = 0; row < block.rows; ++row, at += block.row_stride, from += apart)
    for (int i = 0; i < WIDTH; ++i) narrow(from[i], at[i]);
}

template <int WIDTH, class Real>
void read_rows(Real* to, int apart, const mmm::Array& from, const Block& block) {
  with_type(from, [&](const auto* data) { read_rows_as<WIDTH>(to, apart, data, block); });
}

// With `streams`, past the caches where rows are whole lines of floats.
template <int WIDTH, class Real>
void write_rows(const mmm::Array& to, const Real* from, int apart, const Block& block, bool streams) {
  if constexpr (sizeof(Real) == 4) {
    float* at = reinterpret_cast<float*>(to.data + block.offset * mmm::size_of(to.dtype));
    const uintptr_t line = reinterpret_cast<uintptr_t>(at) | uintptr_t(block.row_stride) * 4;
    if (streams && to.dtype == mmm::FLOAT32 && block.stride == 1 && block.count == WIDTH && line % 64 == 0) {
      for (int row = 0; row < block.rows; ++row, at += block.row_stride, from += apart)
        for (int i = 0; i < WIDTH; i += LANES<Real>) stream(at + i, vector_at(from + i));
      return;
    }
  }
  with_type(to, [&](auto* data) { write_rows_as<WIDTH>(data, from, apart, block); });
}

// As `read` and `write`, for the states of a tile, which stand channel by channel in memory: squares of them are
// transposed in registers where they are of the arithmetic's type.
template <class Real>
bool in_squares(const mmm::Array& x, const Block& block) {
  return mmm::size_of(x.dtype) == sizeof(Real) && block.row_stride == 1 && block.rows % LANES<Real> == 0;
}

template <class Real>
void read_states(Real* to, int width, const mmm::Array& from, const Block& block) {
  constexpr int W = LANES<Real>;
  if (!in_squares<Real>(from, block)) return read(to, width, from, block);
  const Real* at = reinterpret_cast<const Real*>(from.data) + block.offset;
  const int whole = block.count / W * W;
  for (int c = 0; c < whole; c += W)
    for (int n = 0; n < block.rows; n += W) {
      Vector<Real> square[W];
      for (int i = 0; i < W; ++i) square[i] = load(at + (c + i) * block.stride + n);
      transpose<W / 2>(square);
      for (int i = 0; i < W; ++i) vector_at(to + int64_t(n + i) * width + c) = square[i];
    }
  for (int n = 0; n < block.rows; ++n)
    for (int c = whole; c < width; ++c) to[int64_t(n) * width + c] = c < block.count ? at[c * block.stride + n] : 0;
}

template <class Real>
void write_states(const mmm::Array& to, const Real* from, int width, const Block& block) {
  constexpr int W = LANES<Real>;
  if (!in_squares<Real>(to, block)) return write(to, from, width, block);
  Real* at = reinterpret_cast<Real*>(to.data) + block.offset;
  const int whole = block.count / W * W;
  for (int c = 0; c < whole; c += W)
    for (int n = 0; n < block.rows; n += W) {
      Vector<Real> square[W];
      for (int i = 0; i < W; ++i) square[i] = vector_at(from + int64_t(n + i) * width + c);
      transpose<W / 2>(square);
      for (int i = 0; i < W; ++i) store<Real>(at + (c + i) * block.stride + n, square[i]);
    }
  for (int c = whole; c < block.count; ++c)
    for (int n = 0; n < block.rows; ++n) at[c * block.stride + n] = from[int64_t(n) * width + c];
}
