// gather on the device: a batch of tensors in one launch, one block per stretch of one tensor.
#include "cuda/gather.h"

#include <cuda_runtime.h>

#include <stdexcept>

#include "gather_index.h"

namespace fairkern {
namespace {

template <int Bytes>
struct Unit;
template <>
struct Unit<1> { using type = unsigned char; };
template <>
struct Unit<2> { using type = unsigned short; };
template <>
struct Unit<4> { using type = unsigned int; };
template <>
struct Unit<8> { using type = unsigned long long; };
template <>
struct Unit<16> { using type = uint4; };

// Items of `Pack` units: that many reads and one write. Several reads are under way before the first write.
template <int Bytes, int Pack>
__device__ void move(const GatherTask& task) {
  using U = typename Unit<Bytes>::type;
  struct alignas(Bytes * Pack) Item { U unit[Pack]; };
  const char* source = reinterpret_cast<const char*>(task.source);
  Item* target = reinterpret_cast<Item*>(task.target);
  constexpr int kTogether = Pack > 1 ? 1 : 4;
  for (int begin = 0; begin < kGatherItems; begin += kTogether) {
    Item held[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const std::int64_t item = item_of(task, blockIdx.x, threadIdx.x, begin + i);
      if (item >= task.items) continue;
      const GatherRow row = row_of(task, item * Pack);
#pragma unroll
      for (int k = 0; k < Pack; ++k)
        held[i].unit[k] = __ldg(reinterpret_cast<const U*>(source + source_offset(task, row, k)));
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const std::int64_t item = item_of(task, blockIdx.x, threadIdx.x, begin + i);
      if (item < task.items) target[item] = held[i];
    }
  }
}

template <int Bytes>
__device__ void move(const GatherTask& task) {
  if (task.pack == 1)
    move<Bytes, 1>(task);
  else
    move<Bytes, 16 / Bytes>(task);
}

__global__ void __launch_bounds__(kGatherThreads) gather_kernel(const GatherTask* tasks, std::int64_t jobs) {
  __shared__ GatherTask task;
  const auto* from = reinterpret_cast<const std::int64_t*>(tasks + task_of(tasks, jobs, blockIdx.x));
  auto* to = reinterpret_cast<std::int64_t*>(&task);
  for (int word = threadIdx.x; word < static_cast<int>(sizeof(GatherTask) / sizeof(std::int64_t)); word += kGatherThreads)
    to[word] = from[word];
  __syncthreads();
  switch (task.unit) {
    case 1: return move<1>(task);
    case 2: return move<2>(task);
    case 4: return move<4>(task);
    case 8: return move<8>(task);
    default: return move<16, 1>(task);
  }
}

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")");
}

// Makes a device current and, on the way out, the one before.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device != before_) check(cudaSetDevice(device), "cudaSetDevice");
    changed_ = device != before_;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace

std::string why_no_device(int device) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
  }
  if (device < 0 || device >= count)
    return "device " + std::to_string(device) + " was asked for and " + std::to_string(count) + " are there";
  return "";
}

void launch_gather(std::int64_t tasks, std::int64_t jobs, std::int64_t blocks, int device, std::int64_t stream) {
  if (blocks == 0) return;
  const DeviceGuard guard(device);
  gather_kernel<<<static_cast<unsigned>(blocks), kGatherThreads, 0, reinterpret_cast<cudaStream_t>(stream)>>>(
      reinterpret_cast<const GatherTask*>(tasks), jobs);
  check(cudaGetLastError(), "gather");
}

}  // namespace fairkern
