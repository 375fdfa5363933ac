#pragma once

#include <cstdint>
#include <type_traits>

// The threads that an op may use are the caller's.
namespace llpf::cpu {

/// A reference to a callable void(begin, end).
class FunctionRef {
 public:
  template <class F>
    requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef>)
  FunctionRef(F&& f)
      : object_(const_cast<void*>(static_cast<const void*>(&f))), call_([](void* object, int64_t begin, int64_t end) {
          (*static_cast<std::remove_reference_t<F>*>(object))(begin, end);
        }) {}
  void operator()(int64_t begin, int64_t end) const { call_(object_, begin, end); }

 private:
  void* object_;
  void (*call_)(void*, int64_t, int64_t);
};

/// `run` covers [0, count) by disjoint calls of the body, each of at least `grain` (but the last). By default: one thread.
struct Threads {
  int count = 1;
  void (*run)(int64_t count, int64_t grain, const FunctionRef& body) = nullptr;
};

}  // namespace llpf::cpu
