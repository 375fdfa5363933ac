// The bandwidths that times are compared with: two streams read, and an in-place triad, as plain loops for the compiler.
// Built by stream.py with OpenMP: loaded after torch it uses torch's threads, so the number of threads is the same.
#include <cstdint>

extern "C" float stream_read(const float* p, const float* d, int64_t n) {
  float sum_p = 0, sum_d = 0;
#pragma omp parallel for simd reduction(+ : sum_p, sum_d) schedule(static)
  for (int64_t i = 0; i < n; ++i) {
    sum_p += p[i];
    sum_d += d[i];
  }
  return sum_p + sum_d;
}

extern "C" void stream_triad(float* p, const float* d, int64_t n, float a, float b) {
#pragma omp parallel for simd schedule(static)
  for (int64_t i = 0; i < n; ++i) p[i] = a * p[i] + b * d[i];
}
