// Scratch for the kernels, and large pages for what they write.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "abi.h"

namespace mmm {

// Aligned memory for `count` numbers; null where there is none left.
template <class Real>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : data_(static_cast<Real*>(::operator new(size_t(count) * sizeof(Real), ALIGNMENT, std::nothrow))) {}
  ~Scratch() { ::operator delete(data_, ALIGNMENT); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  Real* data() const { return data_; }

 private:
  static constexpr std::align_val_t ALIGNMENT{64};
  Real* data_;
};

// Ask for large pages under a contiguous tensor of `count` numbers that is about to be written. A fresh tensor's memory
// is mapped when it is first touched, and in small pages that takes as long as a third of the backward.
inline void expect_writes(const Array& x, int64_t count) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t PAGE = 4096, LEAST = 1 << 22;
  uintptr_t bytes = uintptr_t(count * size_of(x.dtype));
  if (x.data == nullptr || bytes < LEAST) return;
  uintptr_t start = (reinterpret_cast<uintptr_t>(x.data) + PAGE - 1) / PAGE * PAGE;
  uintptr_t stop = (reinterpret_cast<uintptr_t>(x.data) + bytes) / PAGE * PAGE;
  madvise(reinterpret_cast<void*>(start), stop - start, MADV_HUGEPAGE);  // a wish: where it is refused, nothing changes
#else
  (void)x, (void)count;
#endif
}

}  // namespace mmm
