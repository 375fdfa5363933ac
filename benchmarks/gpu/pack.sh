#!/bin/bash
# Puts into build/carry what a lent GPU machine needs beside the checkout: wheels that its image lacks, and MNIST where
# DATA has it. bash benchmarks/gpu/pack.sh [DATA]; docs/gpu.md says how it is used.
set -euo pipefail
cd "$(dirname "$0")/../.."
rm -rf build/carry
mkdir -p build/carry/wheels
# The image has the other dependencies (docs/gpu.md). All four are pure Python.
python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 -d build/carry/wheels \
  jsonargparse docstring-parser typeshed-client plotly
if [ -n "${1:-}" ]; then
  tar czf build/carry/mnist.tar.gz -C "$1" MNIST
fi
du -sh build/carry llpf_fast/_C.so llpf_fast/_C_cuda.so
# 64 MiB may travel: what git tracks or does not ignore, and what is carried.
git ls-files -co --exclude-standard -z | du -ch --files0-from=- | tail -1
