// Entry points of the CPU extension as Python's arguments reach them, given what libFuzzer finds: `--operator=NAME`.
// What is valid is computed and compared with a plain definition; what is not must raise.
#include "bindings.cpp"

#include "gather.h"
#include "project.h"
#include "taylor.h"
#include "tod_curves.h"
#include "wasserstein.h"

namespace {

using Try = void (*)(fuzz::Given&);

struct Named {
  const char* name;
  Try run;
};

constexpr Named kOperators[] = {{"gather", fuzz::try_gather},
                                {"tod_curves", fuzz::try_tod_curves},
                                {"taylor", fuzz::try_taylor},
                                {"project", fuzz::try_project},
                                {"wasserstein_1d", fuzz::try_wasserstein_1d},
                                {"class_wasserstein", fuzz::try_class_wasserstein}};

Try chosen = nullptr;

}  // namespace

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  for (int i = 1; i < *argc; ++i)
    for (const Named& named : kOperators)
      if (std::string("--operator=") + named.name == (*argv)[i]) chosen = named.run;
  if (!chosen) {
    std::fprintf(stderr, "--operator= with one of the operators' names is needed\n");
    std::exit(2);
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Given given(data, size);
  chosen(given);
  return 0;
}
