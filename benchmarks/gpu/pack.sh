#!/bin/bash
# Fills build/carry with what a lent GPU machine needs beside the checkout, checks it, and says what travels:
# bash benchmarks/gpu/pack.sh DATA
#
# DATA holds MNIST/raw and CIFAR10/cifar10-jpeg.npz. It needs `make install` and nvcc, and a network the first time.
# What takes minutes is kept in build/ for the next time. Status 0 only if all is well and little enough travels.
set -euo pipefail
if [[ ! -d ${1:-}/MNIST/raw || ! -e ${1:-}/CIFAR10/cifar10-jpeg.npz ]]; then
  echo "pack.sh DATA, a folder that holds MNIST/raw and CIFAR10/cifar10-jpeg.npz" >&2
  exit 2
fi
data=$(realpath "$1")
cd "$(dirname "$0")/../.."
python=.venv/bin/python carry=build/carry
rm -rf $carry
mkdir -p $carry/{wheels,endpoints} build/{wheels,endpoints}

# The libraries; ninja builds what is not of the present sources.
LLPF_CPP=1 LLPF_CUDA=1 $python setup.py -q build_ext --inplace

# The test program for H100 and H200, the CUDA runtime inside it (nvcc's default).
nvcc=${CUDA_HOME:+$CUDA_HOME/bin/}nvcc
flags="-std=c++20 -O2 -lineinfo -gencode=arch=compute_90,code=sm_90 --fmad=false -Xcompiler -ffp-contract=off"
program=build/gpu_test
of=$({ $nvcc --version && echo "$flags" && find csrc -type f -print0 | sort -z | xargs -0 sha256sum; } | sha256sum)
if [[ $(cat $program/of 2>/dev/null) != "$of" ]]; then
  rm -rf $program
  mkdir -p $program
  # shellcheck disable=SC2086 # the flags are words
  printf '%s\n' csrc/core/cuda/*.cu csrc/test/gpu_test.cpp |
    xargs -P "$(nproc)" -I {} sh -c "$nvcc $flags -c {} -o $program/\$(basename {}).o"
  $nvcc $flags $program/*.o -o $program/gpu_test
  echo "$of" >$program/of
fi
cp $program/gpu_test $carry

# pydantic, which checks settings, and all that it needs: the image has typing_extensions alone, of an unknown version.
# pydantic_core is a binary wheel for the image's CPython 3.12.
for name in pydantic pydantic_core annotated_types typing_extensions typing_inspection; do
  wheel=$name-$($python -c "from importlib.metadata import version; print(version('$name'))")
  [[ -e $(echo build/wheels/"$wheel"-*.whl) ]] ||
    $python -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
      --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d build/wheels "${wheel/-/==}"
  cp build/wheels/"$wheel"-*.whl $carry/wheels
done

tar czf $carry/mnist.tar.gz -C "$data" MNIST/raw
for end in a:1 b:2; do
  file=build/endpoints/${end%:*}.pt
  [[ -e $file ]] || $python -m llpf_fast.cli.main train --model lenet5 --data mnist --data-dir "$data" --seed "${end#*:}" \
    --epochs 10 --out "$file" --quiet
  cp "$file" $carry/endpoints
done

$python -m benchmarks.gpu.pack "$data" --carry $carry llpf_fast/_C.so llpf_fast/_C_cuda.so
