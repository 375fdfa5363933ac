/// For `llpf_fast.ops.info`: what this library was built with. setup.py links it into _C and _C_cuda.
extern "C" __attribute__((visibility("default"))) const char* llpf_build() { return LLPF_BUILD; }
