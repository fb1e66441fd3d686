// Work of many short rounds, in pieces, on threads that are started once for all of it.
//
// One thread leads: it says which round is on, and goes on once the pieces of that round are done. It waits for no other
// thread, only for pieces that others have begun: where they do not run (other programs have the cores, or there are
// more threads than cores), it does all pieces itself, as if it were alone.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "cpu/lines.h"

namespace fairkern {

// Whether this process was forked since the extension was loaded: OpenMP's threads stayed behind, and to start work on
// them would be to wait for ever.
bool forked();

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

constexpr int kLooks = 4096;  // that a thread takes before it gives its core to another: some tens of microseconds

// Pieces that are to be done once in every round; rounds count from 1.
class Pieces {
 public:
  explicit Pieces(std::int64_t count) : begun_(count) {}

  // Calls `work(piece)` for those that nobody has begun, those of this thread first: they are in its cache. In a round
  // that is over there are none.
  template <class Work>
  void take(int round, int number, int threads, const Work& work) {
    const std::int64_t count = static_cast<std::int64_t>(begun_.size());
    std::int64_t taken = 0;
    for (int t = 0; t < threads; ++t)
      for (std::int64_t piece = (number + t) % threads; piece < count; piece += threads) {
        int before = round - 1;
        if (begun_[piece].round.load(std::memory_order_relaxed) != before ||
            !begun_[piece].round.compare_exchange_strong(before, round, std::memory_order_acq_rel))
          continue;
        work(piece);
        ++taken;
      }
    if (taken > 0) done_.fetch_add(taken, std::memory_order_acq_rel);
  }

  void wait(int round) const {
    const std::int64_t all = round * static_cast<std::int64_t>(begun_.size());
    for (int look = 0; done_.load(std::memory_order_acquire) < all; ++look) look < kLooks ? relax() : std::this_thread::yield();
  }

 private:
  struct alignas(kLineBytes) Begun {
    std::atomic<int> round{0};
  };
  std::vector<Begun> begun_;
  alignas(kLineBytes) std::atomic<std::int64_t> done_{0};
};

// Which round is on: the leader's to say.
class Rounds {
 public:
  static constexpr int kNone = 0, kOver = -1;

  void open(int round) { now_.store(round, std::memory_order_release); }

  // Calls `work(round)` for every round that this thread comes to see, until they are over, or it has looked in vain for
  // long: the leader does not need it.
  template <class Work>
  void follow(const Work& work) const {
    int seen = kNone;
    for (int look = 0; look < kLooks; ++look) {
      const int now = now_.load(std::memory_order_acquire);
      if (now == kOver) return;
      if (now == seen) {
        relax();
        continue;
      }
      work(seen = now);
      look = 0;
    }
  }

 private:
  alignas(kLineBytes) std::atomic<int> now_{kNone};
};

// Calls `lead()` on this thread and `follow(number)` on others, numbers from 1 to `threads` − 1, at the same time; neither
// may throw. They are OpenMP's, as those of every other operator: fewer where it gives fewer, none in a process that was
// forked.
template <class Lead, class Follow>
void together(int threads, const Lead& lead, const Follow& follow) {
  if (threads == 1 || forked()) return lead();
#pragma omp parallel num_threads(threads)
  {
    if (const int number = thread_number(); number == 0)
      lead();
    else
      follow(number);
  }
}

}  // namespace fairkern
