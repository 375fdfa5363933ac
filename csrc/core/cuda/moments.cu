// moments on a GPU: a block a chunk, then a block a segment that joins its chunks.
#include "moments.cuh"

namespace llpf::cuda {
namespace {

template <class P, class D>
__global__ void __launch_bounds__(kThreads)
    chunk_moments(const Streams<P, D> streams, const Table table, const Active active, double* partials) {
  __shared__ WarpValues<ShiftedSums> shared;
  const int64_t c = blockIdx.x;
  const Chunk chunk = table.chunks[c];
  if (table.segments[chunk.segment].has(kMasked)) return;
  for (int64_t k = blockIdx.y; k < streams.paths; k += gridDim.y) {
    if (!active(k)) continue;
    const PairReader<P, D> read{streams.p_at(k, chunk.start), streams.d_at(k, chunk.start)};
    LateShift<P, D> shift(read);
    ShiftedSums sums;
    for_each_batch<kVector<P>, kBatch<P>, Pair<P, D>>(
        chunk.length, read.words(), read, [&] { shift.resolve(); },
        [&](const Pair<P, D>& runs, int64_t, auto count) { add(sums, *shift, runs, count, read.d != nullptr); });
    store_chunk(sums, *shift, chunk.length, shared.get(), partials + (k * table.chunk_count + c) * kMomentColumns);
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kThreads)
    segment_moments(int64_t paths, const Table table, const double* partials, double* out) {
  __shared__ JoinStorage storage;
  const int64_t s = blockIdx.x;
  for (int64_t k = blockIdx.y; k < paths; k += gridDim.y)
    join_chunks<true>(table, {s, s + 1}, partials + k * table.chunk_count * kMomentColumns,
                      out + k * table.segment_count * kMomentColumns, storage);
}

}  // namespace

cudaError_t launch_chunk_moments(const Values& values, const Table& table, const Active& active, double* partials,
                                 cudaStream_t stream) {
  if (values.paths == 0 || table.chunk_count == 0) return cudaSuccess;
  return with_types(values, [&](const auto& streams) {
    chunk_moments<<<grid(table.chunk_count, values.paths), kThreads, 0, stream>>>(streams, table, active, partials);
    return cudaGetLastError();
  });
}

Error moments(const MomentsArguments& arguments, double* out, Stream stream) {
  const Values& values = arguments.values;
  const Table& table = arguments.table;
  const Scratch parts = Scratch::of(arguments.scratch, table, values.paths);
  const cudaError_t error = launch_chunk_moments(values, table, Active{}, parts.partials, stream);
  if (error != cudaSuccess || values.paths == 0 || table.segment_count == 0) return error;
  segment_moments<<<grid(table.segment_count, values.paths), kThreads, 0, stream>>>(values.paths, table, parts.partials, out);
  return cudaGetLastError();
}

}  // namespace llpf::cuda
