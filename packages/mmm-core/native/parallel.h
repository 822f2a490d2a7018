// Runs tasks on torch's threads, or one after the other where torch has no pool to lend.
#pragma once

#include <atomic>
#include <cstdint>

#include "abi.h"

namespace mmm {

extern ParallelFor parallel_for;  // null: no pool; set once, when the library is loaded

// Calls `run(begin, end)` on pieces of [0, tasks), each of which returns 0, or 1 where memory ran out. Returns that, or 2
// where the pool failed. `cost` is the rough number of exponentials or products in a task. What a task does must not
// depend on the piece it falls into.
template <class Run>
int for_each_piece(int64_t tasks, int64_t cost, const Run& run) {
  constexpr int64_t LEAST = 1 << 16;  // below it waking a thread costs more than it saves
  struct Context {
    const Run& run;
    std::atomic<int> failed{0};
  } context{run};
  if (tasks == 0) return 0;
  int64_t grain = cost >= LEAST ? 1 : LEAST / (cost > 0 ? cost : 1);
  if (parallel_for == nullptr || tasks <= grain) return run(0, tasks);
  Work work = [](int64_t begin, int64_t end, void* opaque) {
    auto& shared = *static_cast<Context*>(opaque);
    if (shared.run(begin, end) != 0) shared.failed = 1;
  };
  if (parallel_for(0, tasks, grain, work, &context) != 0) return 2;
  return context.failed;
}

}  // namespace mmm
