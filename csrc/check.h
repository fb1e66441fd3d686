// Validation: every entry point checks what it was given and raises ValueError in Python.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>

namespace fairkern {

template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

inline void require_pointer(std::int64_t pointer, const char* name) {
  require(pointer != 0, name, " is a null pointer");
}

inline void require_threads(int threads) {
  require(threads >= 1, "threads is ", threads, "; at least 1 is needed");
}

}  // namespace fairkern
