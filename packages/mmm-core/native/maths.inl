// exp2, softplus and sigmoid on vectors. Polynomials are minimax fits of the relative error; NaN gives NaN.

template <class Real>
struct Constants;

template <>
struct Constants<float> {
  static constexpr float LOG2E = 1.44269504f, LN2 = 0.693147181f;
  static constexpr float ROUND = 0x1.8p23f + 127;  // adding it rounds to a whole number and adds the exponent's bias
  static constexpr float LEAST = -127, MOST = 128;
  static constexpr int MANTISSA = 23;
  // 2^x = 1 + x P(x) for |x| <= 1/2, to 1e-7
  static constexpr float EXP2[] = {0.693146986011f, 0.240222481281f, 0.0555072847669f, 0.00967123170888f,
                                   0.00132652264934f};
  // log((1 + s) / (1 - s)) = s P(s^2) for 0 <= s <= 1/3, to 4e-9
  static constexpr float LOG[] = {2.00000000792f, 0.666663146819f, 0.400249102855f, 0.279606027088f, 0.281783351048f};
};

template <>
struct Constants<double> {
  static constexpr double LOG2E = 1.4426950408889634, LN2 = 0.69314718055994531;
  static constexpr double ROUND = 0x1.8p52 + 1023;
  static constexpr double LEAST = -1023, MOST = 1024;
  static constexpr int MANTISSA = 52;
  // to 4e-18
  static constexpr double EXP2[] = {0.693147180559945324,    0.240226506959101276,    0.0555041086648201692,
                                    0.00961812910759535481,  0.0013333558146763294,   0.000154035304557422074,
                                    0.0000152527334989242276, 1.32154358971576261e-6, 1.01781985159946001e-7,
                                    7.07368662654314534e-9,  4.43478965939159734e-10};
  // to 2e-18
  static constexpr double LOG[] = {2.0,
                                   0.666666666666661342,
                                   0.400000000001903263,
                                   0.285714285449250525,
                                   0.222222241117766032,
                                   0.181817397876470191,
                                   0.153866354551528595,
                                   0.133001025065035928,
                                   0.121122489772306679,
                                   0.0831568443443016891,
                                   0.170600620529063671};
};

template <class Real>
inline Vector<Real> all(Real x) {
  return Vector<Real>{} + x;
}

// Horner's rule, unrolled by the compiler.
template <class Real, size_t COUNT>
inline Vector<Real> polynomial(Vector<Real> x, const Real (&coefficients)[COUNT]) {
  Vector<Real> y = all(coefficients[COUNT - 1]);
#pragma GCC unroll 16
  for (int i = int(COUNT) - 2; i >= 0; --i) y = y * x + coefficients[i];
  return y;
}

#if defined(__AVX512F__)
// 2^(j / 32)
alignas(64) constexpr float POWERS[32] = {
    1.0f,        1.02189715f, 1.04427378f, 1.0671404f,  1.09050773f, 1.11438674f, 1.13878863f, 1.16372486f,
    1.18920712f, 1.21524736f, 1.24185781f, 1.26905096f, 1.29683955f, 1.32523664f, 1.35425555f, 1.38390988f,
    1.41421356f, 1.44518081f, 1.47682615f, 1.50916443f, 1.54221083f, 1.57598085f, 1.61049033f, 1.64575548f,
    1.68179283f, 1.7186193f,  1.75625216f, 1.79470908f, 1.83400809f, 1.87416763f, 1.91520656f, 1.95714412f};

// 2^x, of a table that two registers hold and the first three terms of the series for |rest| <= 1/64: four products
// instead of the polynomial's five, which share the execution units with the recurrence. It must be the series: what a
// fit is off near 0 adds up over the steps of a state that hardly decays. Where x has no fraction the scaling by its
// whole part gives infinity or 0, and NaN for NaN.
inline Vector<float> exp2(Vector<float> x) {
  constexpr float ROUND = 0x1.8p23f / 32;  // adding it rounds to 1/32; the place in the table is in the last five bits
  __asm__("" : "+v"(x));  // else the compiler folds the product that x is into both sums, where units are scarcer
  const Vector<float> rounded = x + ROUND, whole = rounded - ROUND, rest = x - whole;
  const __m512i place = reinterpret_cast<__m512i>(rounded);
  const auto power = reinterpret_cast<Vector<float>>(
      _mm512_permutex2var_ps(_mm512_load_ps(POWERS), place, _mm512_load_ps(POWERS + 16)));
  const Vector<float> slope = (rest * 0.0555041087f + 0.240226507f) * rest + 0.693147181f, step = power * rest;
  const Vector<float> y = step * slope + power;
  return reinterpret_cast<Vector<float>>(_mm512_scalef_ps(reinterpret_cast<__m512>(y), reinterpret_cast<__m512>(whole)));
}

inline Vector<double> exp2(Vector<double> x) {
  using K = Constants<double>;
  const __m512d whole = _mm512_roundscale_pd(reinterpret_cast<__m512d>(x), _MM_FROUND_TO_NEAREST_INT);
  const Vector<double> rest = x - reinterpret_cast<Vector<double>>(whole);
  const Vector<double> y = polynomial(rest, K::EXP2) * rest + 1.0;
  return reinterpret_cast<Vector<double>>(_mm512_scalef_pd(reinterpret_cast<__m512d>(y), whole));
}
#else
// 2^x; below the smallest normal number 0, from 2^127.5 on (in double 2^1023.5) infinity.
template <class V>
inline V exp2(V x) {
  using Real = std::decay_t<decltype(x[0])>;
  using K = Constants<Real>;
  using Whole = typename VectorOf<Real>::Whole;
  x = clamped(x, K::LEAST, K::MOST);
  const V rounded = x + K::ROUND;
  const V rest = x - (rounded - K::ROUND);
  const V scale = reinterpret_cast<V>(reinterpret_cast<Whole>(rounded) << K::MANTISSA);
  return (polynomial(rest, K::EXP2) * rest + Real(1)) * scale;
}
#endif

// log(1 + exp(x)), the identity above 20 as in torch, and its derivative.
template <class Real>
struct Softplus {
  Vector<Real> value, slope;
};

template <class Real>
inline Softplus<Real> softplus(Vector<Real> x) {
  using K = Constants<Real>;
  const Vector<Real> power = exp2((x < 0 ? x : -x) * K::LOG2E);
  const Vector<Real> s = power / (power + Real(2)), inverse = Real(1) / (Real(1) + power);
  const Vector<Real> y = (x > 0 ? x : all<Real>(0)) + s * polynomial<Real>(s * s, K::LOG);
  const Vector<Real> slope = x < 0 ? power * inverse : inverse;
  return {x > 20 ? x : y, x > 20 ? all<Real>(1) : slope};
}

template <class Real>
inline Vector<Real> sigmoid(Vector<Real> x) {
  return Real(1) / (Real(1) + exp2(x * -Constants<Real>::LOG2E));
}

// A from log(-A).
template <class Real>
inline Vector<Real> decay(Vector<Real> x) {
  return -exp2(x * Constants<Real>::LOG2E);
}
