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
  for (size_t i = COUNT - 1; i-- > 0;) y = y * x + coefficients[i];
  return y;
}

// 2^x; below the smallest normal number 0 (with AVX-512 the denormal), above the largest infinity.
template <class Real>
inline Vector<Real> exp2(Vector<Real> x) {
  using K = Constants<Real>;
#if defined(__AVX512DQ__)
  if constexpr (sizeof(Real) == 4) {
    __m512 whole_x = reinterpret_cast<__m512>(x);
    Vector<float> rest = reinterpret_cast<Vector<float>>(_mm512_reduce_ps(whole_x, _MM_FROUND_TO_NEAREST_INT));
    Vector<float> power = polynomial(rest, K::EXP2) * rest + 1.0f;
    return reinterpret_cast<Vector<float>>(
        _mm512_scalef_ps(reinterpret_cast<__m512>(power), reinterpret_cast<__m512>(x - rest)));
  } else {
    __m512d whole_x = reinterpret_cast<__m512d>(x);
    Vector<double> rest = reinterpret_cast<Vector<double>>(_mm512_reduce_pd(whole_x, _MM_FROUND_TO_NEAREST_INT));
    Vector<double> power = polynomial(rest, K::EXP2) * rest + 1.0;
    return reinterpret_cast<Vector<double>>(
        _mm512_scalef_pd(reinterpret_cast<__m512d>(power), reinterpret_cast<__m512d>(x - rest)));
  }
#else
  using Whole = typename VectorOf<Real>::Whole;
  x = x < K::LEAST ? all(K::LEAST) : x;
  x = x > K::MOST ? all(K::MOST) : x;
  Vector<Real> rounded = x + K::ROUND;
  Vector<Real> rest = x - (rounded - K::ROUND);
  Vector<Real> scale = reinterpret_cast<Vector<Real>>(reinterpret_cast<Whole>(rounded) << K::MANTISSA);
  return (polynomial(rest, K::EXP2) * rest + Real(1)) * scale;
#endif
}

// log(1 + exp(x)), the identity above 20 as in torch.
template <class Real>
inline Vector<Real> softplus(Vector<Real> x) {
  using K = Constants<Real>;
  Vector<Real> distance = x < 0 ? x : -x;
  Vector<Real> power = exp2<Real>(distance * K::LOG2E);
  Vector<Real> s = power / (power + Real(2));
  Vector<Real> y = (x > 0 ? x : all<Real>(0)) + s * polynomial<Real>(s * s, K::LOG);
  return x > 20 ? x : y;
}

template <class Real>
inline Vector<Real> sigmoid(Vector<Real> x) {
  return Real(1) / (Real(1) + exp2<Real>(x * -Constants<Real>::LOG2E));
}
