// The whole tick as one would write it in C++ without a library: per layer five sums, a few scalars, one map.
// Built by plain.py with -O3 -march=native -ffast-math; one thread.
#include <algorithm>
#include <cmath>
#include <cstdint>

extern "C" void plain_tick(float* p, const float* d, const int64_t* offsets, const int64_t* lengths, int64_t count,
                           double variance, double fixed, double relative) {
  for (int64_t s = 0; s < count; ++s) {
    float* x = p + offsets[s];
    const float* to = d + offsets[s];
    const int64_t n = lengths[s];
    double p1 = 0, d1 = 0, pp = 0, pd = 0, dd = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double a = x[i], b = to[i];
      p1 += a;
      d1 += b;
      pp += a * a;
      pd += a * b;
      dd += b * b;
    }
    const double count_of = static_cast<double>(n), mean = p1 / count_of, mean_d = d1 / count_of;
    const double var_p = pp - p1 * mean, cov = pd - p1 * mean_d, var_d = dd - d1 * mean_d;  // each times n
    const double wanted = variance * (count_of - 1);

    // q = scale p + shift lies on the sphere; x = (1 - t) q + t d; and again onto the sphere.
    const double scale = n > 1 ? std::sqrt(wanted / var_p) : 1, shift = (1 - scale) * mean;
    const double apart = mean_d - mean;
    const double squared = var_d - 2 * scale * cov + scale * scale * var_p + count_of * apart * apart;
    const double distance = std::sqrt(std::max(squared, 0.0));
    const double t = distance > 0 ? std::min(1.0, (fixed + relative * distance) / distance) : 0;
    const double kept = (1 - t) * scale, mean_x = (1 - t) * mean + t * mean_d;
    const double again = n > 1 ? std::sqrt(wanted / (kept * kept * var_p + 2 * kept * t * cov + t * t * var_d)) : 1;

    const auto a = static_cast<float>(again * kept), b = static_cast<float>(again * t);
    const auto c = static_cast<float>(again * (1 - t) * shift + (1 - again) * mean_x);
    for (int64_t i = 0; i < n; ++i) x[i] = a * x[i] + b * to[i] + c;
  }
}
