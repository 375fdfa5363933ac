#include <array>
#include <cstdlib>
#include <mutex>
#include <string_view>

#include <cooperative_groups.h>

#include "affine.cuh"
#include "coefficients.cuh"

namespace llpf::cuda {
namespace {

// ---- in stages: chunk moments, then this, then the elementwise pass; 5 words of traffic a parameter

/// Stage two for the rows linked to `first`: their moments from their chunks, then their coefficients. An inactive path
/// gets none, and the elementwise pass asks for none.
template <bool AHEAD>
__device__ __forceinline__ void chunks_to_coefficients(const Table& table, const RuleArguments& rule,
                                                    const Scratch& scratch, int64_t k, int64_t first, JoinStorage& storage) {
  if (!rule.active(k)) return;
  const Range rows = linked_rows(table, first);
  if (rows.begin == rows.end) return;
  const int64_t row = k * table.segment_count;
  join_chunks<AHEAD>(table, rows, scratch.partials + k * table.chunk_count * kMomentColumns,
                     scratch.moments + row * kMomentColumns, storage);
  const PathArguments path = rule.path(k, scratch.moments, table.segment_count);
  solve({table, rule.rule, path, scratch.coefficients + row * kCoefficientColumns}, table, rows);
}

__global__ void __launch_bounds__(kThreads)
    tick_coefficients(int64_t paths, const __grid_constant__ Table table, const __grid_constant__ RuleArguments rule,
                      const __grid_constant__ Scratch scratch) {
  __shared__ JoinStorage storage;
  for (int64_t k = blockIdx.y; k < paths; k += gridDim.y)
    chunks_to_coefficients<true>(table, rule, scratch, k, blockIdx.x, storage);
}

// ---- on the chip: one cooperative launch; p and d are read once, 3 words of traffic a parameter

/// Where a block stores the runs of one chunk between the two passes: bytes from the tile's beginning, negative: nowhere. A
/// thread reads back only what it stored itself, so no barrier is needed for it.
///
/// Offsets from the array itself: of a pointer that went through a structure the compiler no longer knows that it is one to
/// shared memory, and every access became a generic one (LD, ST), which asks at run time which memory is meant.
template <class P, class D>
struct SharedSlot {
  int p = -1, d = -1;

  __device__ bool given() const { return p >= 0; }
  __device__ Run<P, kVector<P>>& p_at(int64_t at) const { return run<P>(p, at); }
  __device__ Run<D, kVector<P>>& d_at(int64_t at) const { return run<D>(d, at); }

 private:
  template <class T>
  __device__ static Run<T, kVector<P>>& run(int from, int64_t at) {
    extern __shared__ uint4 tile_memory[];
    return reinterpret_cast<Run<T, kVector<P>>*>(tile_memory)[from / static_cast<int>(sizeof(Run<T, kVector<P>>)) +
                                                              static_cast<int>(at) / kVector<P>];
  }
};

/// Runs from the chip where they were stored, else from memory, most likely from the level-2 cache.
template <class P, class D>
struct SlotReader {
  SharedSlot<P, D> slot;
  PairReader<P, D> memory;
  const D* d;

  __device__ bool words() const { return memory.words(); }

  template <class Count>
  __device__ void operator()(Pair<P, D>& runs, int64_t at, Count count) const {
    if (!slot.given()) return memory(runs, at, count);
    runs.p = slot.p_at(at);
    if (d != nullptr) runs.d = slot.d_at(at);
  }
};

/// Shared memory of a block, dealt out chunk by chunk in the same order in both passes.
template <class P, class D>
class Tile {
 public:
  __device__ explicit Tile(int64_t bytes) : bytes_(bytes) {}

  __device__ SharedSlot<P, D> take(int64_t length, bool with_d) {
    const int64_t runs = (length + kVector<P> - 1) / kVector<P>;
    const int64_t p_bytes = runs * sizeof(Run<P, kVector<P>>);
    const int64_t d_bytes = with_d ? (runs * sizeof(Run<D, kVector<P>>) + 15) / 16 * 16 : 0;
    if (p_bytes + d_bytes > bytes_ - taken_) return {};
    const SharedSlot<P, D> slot{static_cast<int>(taken_), static_cast<int>(taken_ + p_bytes)};
    taken_ += p_bytes + d_bytes;
    return slot;
  }

 private:
  int64_t bytes_, taken_ = 0;
};

/// Calls `f(path, chunk index, chunk)` for this block's share of all active paths' chunks.
template <class F>
__device__ __forceinline__ void for_each_item(const Table& table, int64_t paths, const Active& active, F&& f) {
  for (int64_t item = blockIdx.x; item < table.chunk_count * paths; item += gridDim.x) {
    const int64_t k = item / table.chunk_count, c = item % table.chunk_count;
    if (active(k)) f(k, c, table.chunks[c]);
  }
}

template <class P, class D>
__global__ void __launch_bounds__(kThreads)
    tick_on_chip(const Streams<P, D> streams, const __grid_constant__ Table table,
                 const __grid_constant__ RuleArguments rule, P* waypoint, const __grid_constant__ Scratch scratch,
                 int64_t tile_bytes) {
  __shared__ JoinStorage join;
  const auto grid_barrier = cooperative_groups::this_grid();
  const bool with_d = streams.d != nullptr;

  Tile<P, D> filled(tile_bytes);
  for_each_item(table, streams.paths, rule.active, [&](int64_t k, int64_t c, const Chunk& chunk) {
    if (table.segments[chunk.segment].has(kMasked)) return;
    const PairReader<P, D> read{streams.p_at(k, chunk.start), streams.d_at(k, chunk.start)};
    const SharedSlot<P, D> slot = filled.take(chunk.length, with_d);
    LateShift<P, D> shift(read);
    ShiftedSums sums;
    const auto store_and_add = [&](const Pair<P, D>& runs, int64_t at, auto count) {
      if (slot.given()) {
        slot.p_at(at) = runs.p;
        if (with_d) slot.d_at(at) = runs.d;
      }
      add(sums, *shift, runs, count, with_d);
    };
    for_each_batch<kVector<P>, kBatch<P>, Pair<P, D>>(
        chunk.length, read.words(), read, [&] { shift.resolve(); }, store_and_add);
    store_chunk(sums, *shift, chunk.length, reinterpret_cast<ShiftedSums*>(join.values.get()),
                scratch.partials + (k * table.chunk_count + c) * kMomentColumns);
    __syncthreads();
  });
  grid_barrier.sync();

  for (int64_t i = blockIdx.x; i < table.segment_count * streams.paths; i += gridDim.x)
    // What fits on the chip has few chunks a lane, and looking ahead would take registers that this kernel does not have.
    chunks_to_coefficients<false>(table, rule, scratch, i / table.segment_count, i % table.segment_count, join);
  grid_barrier.sync();

  Tile<P, D> stored(tile_bytes);
  for_each_item(table, streams.paths, rule.active, [&](int64_t k, int64_t, const Chunk& chunk) {
    P* const p = streams.p_at(k, chunk.start);
    P* const record = waypoint == nullptr ? nullptr : waypoint + k * streams.numel + chunk.start;
    const bool masked = table.segments[chunk.segment].has(kMasked);
    const double* const row = scratch.coefficients + (k * table.segment_count + chunk.segment) * kCoefficientColumns;
    const ChunkMaps<P> maps = masked ? ChunkMaps<P>{} : ChunkMaps<P>::of(row, record != nullptr);
    const D* const d = maps.tick.reads_destination() ? streams.d_at(k, chunk.start) : nullptr;
    const SharedSlot<P, D> slot = masked ? SharedSlot<P, D>{} : stored.take(chunk.length, with_d);
    write_chunk<P, D>(SlotReader<P, D>{slot, {p, d}, d}, maps, row, chunk.length, p, record);
  });
}

constexpr int kMostDevices = 64;
/// More blocks a multiprocessor than this have too little shared memory each to hold a chunk of float32 p and d. (On sm_90
/// the registers of `tick_on_chip` allow two; the queries for more say so.)
constexpr int kMostBlocks = 6;
/// Elements of a chunk that the choice below counts on (CHUNK of llpf_fast/flat/table.py). A table with longer chunks is
/// ticked as correctly; some of its chunks are then read twice.
constexpr int64_t kChunk = 4096;

/// Shared memory of one device for one kernel: bytes of tile a block at 1, 2, ... resident blocks a multiprocessor.
struct DeviceLimits {
  int64_t multiprocessors = 0;
  std::array<int64_t, kMostBlocks + 1> tile{};
};

template <class Kernel>
cudaError_t measure(Kernel* kernel, int device, DeviceLimits& limits) {
  int cooperative = 0, multiprocessors = 0, per_multiprocessor = 0, per_block = 0, reserved = 0;
  cudaFuncAttributes attributes;
  for (const auto& [to, attribute] : {std::pair{&cooperative, cudaDevAttrCooperativeLaunch},
                                      std::pair{&multiprocessors, cudaDevAttrMultiProcessorCount},
                                      std::pair{&per_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor},
                                      std::pair{&per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin},
                                      std::pair{&reserved, cudaDevAttrReservedSharedMemoryPerBlock}}) {
    const cudaError_t error = cudaDeviceGetAttribute(to, attribute, device);
    if (error != cudaSuccess) return error;
  }
  if (cooperative == 0) return cudaSuccess;
  cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess) return error;
  const int64_t fixed = static_cast<int64_t>(attributes.sharedSizeBytes);
  const int64_t available = per_block - fixed;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(available));
  if (error != cudaSuccess) return error;
  for (int blocks = 1; blocks <= kMostBlocks; ++blocks) {
    const int64_t share = per_multiprocessor / blocks - reserved - fixed;
    const int64_t tile = (share < available ? share : available) / 1024 * 1024;
    int resident = 0;
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kThreads, static_cast<size_t>(tile));
    if (error != cudaSuccess) return error;
    if (resident >= blocks) limits.tile[blocks] = tile;
  }
  limits.multiprocessors = multiprocessors;
  return cudaSuccess;
}

/// `measure`, once a device and kernel. The queries do not touch a stream, so the first call may be inside a capture.
template <class P, class D>
cudaError_t limits_of_current_device(DeviceLimits& limits) {
  static std::array<DeviceLimits, kMostDevices> measured;
  static std::array<bool, kMostDevices> known{};
  static std::mutex mutex;
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess || device >= kMostDevices) return error;
  const std::lock_guard<std::mutex> lock(mutex);
  if (!known[device]) {
    const cudaError_t failed = measure(tick_on_chip<P, D>, device, measured[device]);
    if (failed != cudaSuccess) return failed;
    known[device] = true;
  }
  limits = measured[device];
  return cudaSuccess;
}

struct Launch {
  int64_t blocks = 0, tile = 0;
};

/// The launch with most blocks a multiprocessor, which hide each other's waits, whose shared memory is enough for the whole
/// call. Where there is none: no blocks, or, if `anyway`, a launch that stores a part.
template <class P, class D>
Launch fit(const DeviceLimits& limits, const Streams<P, D>& streams, const Table& table, bool anyway) {
  const int64_t items = table.chunk_count * streams.paths;
  const int64_t element = sizeof(P) + (streams.d == nullptr ? 0 : sizeof(D));
  for (int a_multiprocessor = kMostBlocks; a_multiprocessor > 0; --a_multiprocessor) {
    if (limits.tile[a_multiprocessor] == 0) continue;
    const int64_t resident = a_multiprocessor * limits.multiprocessors;
    const int64_t blocks = items < resident ? items : resident;
    const int64_t whole = (items + blocks - 1) / blocks * kChunk;
    const int64_t share = streams.numel * streams.paths / blocks + kChunk;
    const bool holds_all = (whole < share ? whole : share) * element <= limits.tile[a_multiprocessor];
    if (holds_all || (anyway && a_multiprocessor == 1))
      return {blocks, limits.tile[a_multiprocessor]};
  }
  return {};
}

template <class P, class D>
cudaError_t launch_on_chip(const Launch& launch, Streams<P, D> streams, Table table, RuleArguments rule, P* waypoint,
                           Scratch scratch, cudaStream_t stream) {
  int64_t tile = launch.tile;
  void* arguments[] = {&streams, &table, &rule, &waypoint, &scratch, &tile};
  return cudaLaunchCooperativeKernel(tick_on_chip<P, D>, dim3(static_cast<unsigned>(launch.blocks)), dim3(kThreads),
                                     arguments, static_cast<size_t>(tile), stream);
}

/// LLPF_CUDA_TICK=stages or chip, read once.
TickPlan plan_of_environment() {
  static const TickPlan plan = [] {
    const char* const named = std::getenv("LLPF_CUDA_TICK");
    if (named == nullptr || *named == '\0') return TickPlan::kChoose;
    if (std::string_view(named) == "stages") return TickPlan::kStages;
    LLPF_CHECK(std::string_view(named) == "chip", "LLPF_CUDA_TICK must be stages or chip, got ", named);
    return TickPlan::kOnChip;
  }();
  return plan;
}

}  // namespace

Error tick(const TickArguments& arguments, Stream stream, TickPlan plan) {
  const Values& values = arguments.values;
  const Table& table = arguments.table;
  const RuleArguments& rule = arguments.rule;
  if (plan == TickPlan::kChoose) plan = plan_of_environment();
  if (values.paths == 0 || table.chunk_count == 0 || table.segment_count == 0) return cudaSuccess;
  const Scratch parts = Scratch::of(arguments.scratch, table, values.paths);
  cudaError_t error = cudaSuccess;
  if (arguments.moments_in != nullptr) {
    error = launch_coefficients(arguments.moments_in, values.paths, table, rule, parts.coefficients, stream);
  } else {
    bool launched = false;
    error = with_types(values, [&]<class P, class D>(const Streams<P, D>& streams) {
      if (plan == TickPlan::kStages) return cudaSuccess;
      DeviceLimits limits;
      const cudaError_t failed = limits_of_current_device<P, D>(limits);
      if (failed != cudaSuccess) return failed;
      const Launch launch = fit(limits, streams, table, plan == TickPlan::kOnChip);
      if (launch.blocks == 0) return plan == TickPlan::kOnChip ? cudaErrorCooperativeLaunchTooLarge : cudaSuccess;
      launched = true;
      return launch_on_chip(launch, streams, table, rule, static_cast<P*>(arguments.waypoint), parts, stream);
    });
    if (error != cudaSuccess || launched) return error;
    error = launch_chunk_moments(values, table, rule.active, parts.partials, stream);
    if (error != cudaSuccess) return error;
    tick_coefficients<<<grid(table.segment_count, values.paths), kThreads, 0, stream>>>(values.paths, table, rule, parts);
    error = cudaGetLastError();
  }
  if (error != cudaSuccess) return error;
  return launch_write(values, table, rule.active, parts.coefficients, arguments.waypoint, stream);
}

}  // namespace llpf::cuda
