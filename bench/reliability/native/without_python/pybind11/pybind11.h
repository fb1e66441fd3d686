// What csrc/bindings.cpp needs of pybind11, so that its checks are compiled, and tried, without an interpreter.
#pragma once

#include <cstdint>
#include <vector>

namespace pybind11 {

struct object {
  template <class T>
  object& operator=(const T&) {
    return *this;
  }
};

struct none {};

struct dict {
  object entry;
  object& operator[](const char*) { return entry; }
};

struct tuple {
  std::vector<std::int64_t> items;
};

template <class... Items>
tuple make_tuple(Items... items) {
  return {{static_cast<std::int64_t>(items)...}};
}

struct arg {
  explicit arg(const char*) {}
};

struct module_ {
  object entry;
  object& doc() { return entry; }
  object& attr(const char*) { return entry; }
  template <class... Parts>
  module_& def(const Parts&...) {
    return *this;
  }
};

struct gil_scoped_release {
  gil_scoped_release() {}
};

}  // namespace pybind11

#define PYBIND11_MODULE(name, module) [[maybe_unused]] void name(pybind11::module_& module)
