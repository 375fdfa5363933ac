#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

// Counts checks, prints the ones that fail.
namespace llpf::test {

class Report {
 public:
  void expect(bool good, const std::string& what) {
    ++checks_;
    if (good) return;
    ++failures_;
    if (failures_ <= 20) std::printf("FAILED %s\n", what.c_str());
  }

  void near(double got, double want, double scale, const std::string& what) {
    const bool good = std::abs(got - want) <= scale;
    expect(good, good ? what : what + ": got " + std::to_string(got) + ", want " + std::to_string(want));
  }

  /// NaN payloads and the sign of zero included.
  template <class T>
  void same_bits(const std::vector<T>& got, const std::vector<T>& want, const std::string& what) {
    if (got.size() != want.size()) return expect(false, what + ": sizes differ");
    for (size_t i = 0; i < got.size(); ++i)
      if (std::memcmp(&got[i], &want[i], sizeof(T)) != 0)
        return expect(false, what + ": first difference at element " + std::to_string(i));
    expect(true, what);
  }

  /// Prints the count; the exit status of the program.
  int finish() const {
    std::printf("%ld checks, %ld failed\n", checks_, failures_);
    return failures_ == 0 && checks_ > 0 ? 0 : 1;
  }

 private:
  long checks_ = 0, failures_ = 0;
};

/// Calls `f(p, d, name)` with a value of each storage type that may hold p and d.
template <class F>
void for_each_pair(F&& f) {
  f(float{}, float{}, "float32");
  f(double{}, double{}, "float64");
  f(Bfloat16{}, Bfloat16{}, "bfloat16");
  f(Float16{}, Float16{}, "float16");
  f(float{}, Bfloat16{}, "float32 and bfloat16");
  f(float{}, Float16{}, "float32 and float16");
}

}  // namespace llpf::test
