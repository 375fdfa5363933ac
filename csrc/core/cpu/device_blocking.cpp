// The moments as the CUDA kernels block them, on a CPU: tests hold both to the same bits.
#include "../reduction.h"
#include "contents.h"
#include "walk.h"

namespace llpf::cpu {
namespace {

constexpr int kBlock = DeviceBlocking::kLanes;

template <class P, class D>
void reduce_block(const P* p, const D* d, int64_t n, double* partial) {
  constexpr int kRun = DeviceBlocking::kVector<P>;
  const Shift shift = Shift::at(p, d);
  ShiftedSums lanes[kBlock];
  for (int lane = 0; lane < kBlock; ++lane) lanes[lane] = lane_sums<kBlock, kRun>(p, d, n, shift, lane);
  tree(lanes).finish(static_cast<double>(n), shift).store(partial);
}

using Reduce = void (*)(const void*, const void*, int64_t, double*);

template <class P, class D>
constexpr Reduce erased = [](const void* p, const void* d, int64_t n, double* partial) {
  reduce_block(static_cast<const P*>(p), static_cast<const D*>(d), n, partial);
};

constexpr Reduce kReduce[kPairs] = {erased<float, float>,     erased<double, double>,  erased<Bfloat16, Bfloat16>,
                                    erased<Float16, Float16>, erased<float, Bfloat16>, erased<float, Float16>};

}  // namespace

void moments_device_blocking(const MomentsArguments& arguments, double* out) {
  const Values& values = arguments.values;
  const Table& table = arguments.table;
  check_table("moments", table, values.numel);
  double* const partials = arguments.scratch;
  for (int64_t k = 0; k < values.paths; ++k) {
    const Row row(values, k);
    for (int64_t c = 0; c < table.chunk_count; ++c) {
      const Chunk& chunk = table.chunks[c];
      if (chunk.length == 0) continue;
      kReduce[row.pair](row.p_at(chunk.start), row.d_at(chunk.start), chunk.length, partials + c * kMomentColumns);
    }
    for (int64_t s = 0; s < table.segment_count; ++s, out += kMomentColumns) {
      Moments lanes[kBlock];
      if (!table.segments[s].has(kMasked))
        for (int lane = 0; lane < kBlock; ++lane)
          lanes[lane] = lane_moments<kBlock>(table, table.chunks_of(s), partials, lane);
      tree(lanes).store(out);
    }
  }
}

}  // namespace llpf::cpu
