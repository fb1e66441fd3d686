// forked: said by the process itself, as it is made.
#include "cpu/team.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace fairkern {
namespace {

bool child = false;  // a process that has just been forked has one thread, which writes this before any other is there

#if defined(__unix__) || defined(__APPLE__)
[[maybe_unused]] const int watched = pthread_atfork(nullptr, nullptr, [] { child = true; });
#endif

}  // namespace

bool forked() { return child; }

}  // namespace fairkern
