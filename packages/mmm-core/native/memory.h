// Scratch for the kernels, and large pages for what they write.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "abi.h"
#include "parallel.h"

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

// Makes contiguous tensors of `count` numbers, which are about to be written, ready for it. Fresh memory is mapped and
// cleared by the system where it is first touched: in small pages that takes as long as a third of the backward; in
// large ones less, but threads that write neighbouring channels would wait for each other at each, so that they share
// them out here. What stands in the memory stays.
inline void expect_writes(std::initializer_list<const Array*> tensors, int64_t count) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t PAGE = 1 << 12, LARGE = 1 << 21;
  for (const Array* x : tensors) {
    const uintptr_t bytes = uintptr_t(count * size_of(x->dtype)), at = reinterpret_cast<uintptr_t>(x->data);
    if (x->data == nullptr || bytes < 2 * LARGE) continue;
    const uintptr_t start = (at + PAGE - 1) / PAGE * PAGE, stop = (at + bytes) / PAGE * PAGE;
    madvise(reinterpret_cast<void*>(start), stop - start, MADV_HUGEPAGE);  // a wish: where it is refused, nothing changes
    const uintptr_t first = (start + LARGE - 1) / LARGE;
    for_each_piece(int64_t(stop / LARGE - first), LARGE, [=](int64_t begin, int64_t end) {
      for (int64_t page = begin; page < end; ++page)
        __atomic_fetch_or(reinterpret_cast<char*>((first + uintptr_t(page)) * LARGE), 0, __ATOMIC_RELAXED);
      return 0;
    });
  }
#else
  (void)tensors, (void)count;
#endif
}

}  // namespace mmm
