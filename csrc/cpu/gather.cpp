// gather: several dimensions in one read. The innermost dimension is copied in runs where it can be, element by
// element where it cannot; all outer dimensions are walked through tables of byte offsets.
#include <algorithm>
#include <vector>

#include "cpu/kernels.h"

namespace fairkern {
namespace {

constexpr std::int64_t kPieceBytes = 1 << 18;      // a long run is split for the threads
constexpr std::int64_t kSerialBytes = 1 << 16;     // below this, starting threads costs more than copying
constexpr std::int64_t kMinimumRunBytes = 32;      // mean run length from which copying runs beats copying elements

struct Run {
  std::int64_t source, bytes;
};

template <std::size_t Size>
struct Bytes {
  unsigned char value[Size];
};

template <std::size_t Size>
void copy_elements(char* target, const char* source, const std::int64_t* offsets, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    Bytes<Size> element;
    std::memcpy(&element, source + offsets[i], Size);
    std::memcpy(target + i * Size, &element, Size);
  }
}

using CopyElements = void (*)(char*, const char*, const std::int64_t*, std::int64_t);

CopyElements copier(std::int64_t element_size) {
  switch (element_size) {
    case 1: return copy_elements<1>;
    case 2: return copy_elements<2>;
    case 4: return copy_elements<4>;
    case 8: return copy_elements<8>;
    case 16: return copy_elements<16>;
    default: require(false, "element size is ", element_size, "; expected 1, 2, 4, 8 or 16 bytes");
  }
  return nullptr;
}

std::vector<std::int64_t> byte_offsets(const GatherJob& job, std::int64_t dim) {
  std::vector<std::int64_t> offsets(job.shape[dim]);
  const std::int64_t* index = job.index[dim];
  for (std::int64_t i = 0; i < job.shape[dim]; ++i) offsets[i] = (index ? index[i] : i) * job.strides[dim];
  return offsets;
}

std::vector<Run> runs_of(const std::vector<std::int64_t>& offsets, std::int64_t element_size) {
  std::vector<Run> runs;
  for (const std::int64_t offset : offsets) {
    if (!runs.empty() && runs.back().source + runs.back().bytes == offset)
      runs.back().bytes += element_size;
    else
      runs.push_back({offset, element_size});
  }
  return runs;
}

std::vector<Run> split(const std::vector<Run>& runs) {
  std::vector<Run> pieces;
  for (const Run& run : runs)
    for (std::int64_t done = 0; done < run.bytes; done += kPieceBytes)
      pieces.push_back({run.source + done, std::min(kPieceBytes, run.bytes - done)});
  return pieces;
}

// Where an outer row begins in the source: mixed-radix digits of its number, last dimension fastest.
std::int64_t row_offset(std::int64_t row, const std::vector<std::vector<std::int64_t>>& tables) {
  std::int64_t offset = 0;
  for (std::size_t d = tables.size(); d-- > 0;) {
    const std::int64_t length = static_cast<std::int64_t>(tables[d].size());
    offset += tables[d][row % length];
    row /= length;
  }
  return offset;
}

}  // namespace

void gather(const GatherJob& job, int threads) {
  const CopyElements copy = copier(job.element_size);
  std::int64_t elements = 1;
  for (std::int64_t d = 0; d < job.dims; ++d) elements *= job.shape[d];
  if (elements == 0) return;

  const std::int64_t last = job.dims - 1;
  const std::vector<std::int64_t> inner = job.dims ? byte_offsets(job, last) : std::vector<std::int64_t>{0};
  std::vector<std::vector<std::int64_t>> outer;
  for (std::int64_t d = 0; d < last; ++d) outer.push_back(byte_offsets(job, d));

  const std::int64_t row_bytes = static_cast<std::int64_t>(inner.size()) * job.element_size;
  const std::int64_t rows = elements / static_cast<std::int64_t>(inner.size());
  const std::vector<Run> runs = runs_of(inner, job.element_size);
  const bool in_runs = row_bytes >= static_cast<std::int64_t>(runs.size()) * kMinimumRunBytes || runs.size() == 1;
  const bool serial = threads == 1 || elements * job.element_size < kSerialBytes;

  if (in_runs && rows < threads && !serial) {
    const std::vector<Run> pieces = split(runs);
    std::vector<std::int64_t> starts(pieces.size());
    for (std::size_t i = 1; i < pieces.size(); ++i) starts[i] = starts[i - 1] + pieces[i - 1].bytes;
    for (std::int64_t row = 0; row < rows; ++row) {
      const char* source = job.source + row_offset(row, outer);
      char* target = job.target + row * row_bytes;
#pragma omp parallel for schedule(static) num_threads(threads)
      for (std::size_t i = 0; i < pieces.size(); ++i)
        std::memcpy(target + starts[i], source + pieces[i].source, pieces[i].bytes);
    }
    return;
  }

#pragma omp parallel for schedule(static) num_threads(threads) if (!serial)
  for (std::int64_t row = 0; row < rows; ++row) {
    const char* source = job.source + row_offset(row, outer);
    char* target = job.target + row * row_bytes;
    if (in_runs) {
      for (const Run& run : runs) {
        std::memcpy(target, source + run.source, run.bytes);
        target += run.bytes;
      }
    } else {
      copy(target, source, inner.data(), static_cast<std::int64_t>(inner.size()));
    }
  }
}

}  // namespace fairkern
