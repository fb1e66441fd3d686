// The launch, without a CUDA header: what goes wrong comes back as text.
#pragma once

#include <cstdint>
#include <string>

namespace fairkern {

// Empty if `device` can be used, otherwise why not.
std::string why_no_device(int device);

// `tasks` is in the device's memory. Throws std::runtime_error with CUDA's words.
void launch_gather(std::int64_t tasks, std::int64_t jobs, std::int64_t blocks, int device, std::int64_t stream);

}  // namespace fairkern
