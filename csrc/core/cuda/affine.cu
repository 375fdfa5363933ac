#include "affine.cuh"

namespace llpf::cuda {
namespace {

// In descending order: after a reduction pass over more than fits in the level-2 cache, the last chunks are still in it.
template <class P, class D>
__global__ void __launch_bounds__(kThreads) write_chunks(const Streams<P, D> streams, const Table table,
                                                         const Active active, const double* coefficients, P* waypoint) {
  const Chunk chunk = table.chunks[table.chunk_count - 1 - blockIdx.x];
  const bool masked = table.segments[chunk.segment].has(kMasked);
  if (masked && waypoint == nullptr) return;
  for (int64_t k = blockIdx.y; k < streams.paths; k += gridDim.y) {
    if (!active(k)) continue;
    const double* const row = coefficients + (k * table.segment_count + chunk.segment) * kCoefficientColumns;
    const ChunkMaps<P> maps = masked ? ChunkMaps<P>{} : ChunkMaps<P>::of(row, waypoint != nullptr);
    P* const p = streams.p_at(k, chunk.start);
    const PairReader<P, D> read{p, maps.tick.reads_destination() ? streams.d_at(k, chunk.start) : nullptr};
    write_chunk<P, D>(read, maps, row, chunk.length, p,
                      waypoint == nullptr ? nullptr : waypoint + k * streams.numel + chunk.start);
  }
}

}  // namespace

cudaError_t launch_write(const Values& values, const Table& table, const Active& active, const double* coefficients,
                         void* waypoint, cudaStream_t stream) {
  if (values.paths == 0 || table.chunk_count == 0) return cudaSuccess;
  return with_types(values, [&]<class P, class D>(const Streams<P, D>& streams) {
    write_chunks<<<grid(table.chunk_count, values.paths), kThreads, 0, stream>>>(streams, table, active, coefficients,
                                                                                static_cast<P*>(waypoint));
    return cudaGetLastError();
  });
}

Error affine(const AffineArguments& arguments, Stream stream) {
  return launch_write(arguments.values, arguments.table, Active{}, arguments.coefficients, nullptr, stream);
}

}  // namespace llpf::cuda
