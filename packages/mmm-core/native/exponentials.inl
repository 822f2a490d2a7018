// `count` exponentials and nothing else: what the benchmarks measure a scan against. Returns their sum, so that none is
// left out.

double exponentials(int64_t count) {
  constexpr int64_t TASK = 1 << 16;
  std::atomic<int64_t> whole{0};
  mmm::for_each_piece((count + TASK - 1) / TASK, TASK, [&](int64_t begin, int64_t end) {
    alignas(64) float exponents[1024];
    for (int i = 0; i < 1024; ++i) exponents[i] = float(i % 64) * -0.05f;
    Vector<float> total[4] = {};
    for (int64_t repeat = begin * (TASK / 1024); repeat < end * (TASK / 1024); ++repeat) {
      __asm__ volatile("" ::: "memory");
      for (int i = 0; i < 1024; i += 4 * LANES<float>)
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) total[k] += exp2(vector_at(exponents + i + k * LANES<float>));
    }
    whole += int64_t(sum(total[0] + total[1] + total[2] + total[3]));
    return 0;
  });
  return double(whole);
}
