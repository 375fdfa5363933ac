#!/bin/bash
# One call of the first session on a lent GPU machine: bash benchmarks/gpu/session.sh checks|times|search. Each ends within
# ten minutes and leaves its files under $OUT. DEVICE=cpu goes through the same steps without a GPU.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${OUT:?a folder for the results} device=${DEVICE:-cuda}
export PYTHONUNBUFFERED=1 PYTHONPATH=/tmp/llpf-site:$PWD OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
# The package is not installed there: a link puts the Triton kernels where the wheel has them.
ln -sfn ../kernels llpf_fast/kernels
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/llpf-site \
  build/carry/wheels/*.whl 2>&1 | grep -v WARNING
llpf=(python3 -c 'import sys; from llpf_fast.cli.main import main; sys.exit(main())')

case ${1:-} in
  checks)
    nvidia-smi 2>/dev/null | sed -n 3,4p
    python3 benchmarks/gpu_check.py --stages checks --budget 420 --device "$device" --out "$out"
    timeout 150 python3 -m pytest -q -m gpu --tb=line tests/correct tests/gpu/test_stacked_gpu.py 2>&1 | tail -25
    ;;
  times)
    python3 benchmarks/gpu_check.py --stages timing,sanitizer --budget 330 --device "$device" --out "$out"
    for only in correction "many_paths LeNet5"; do
      timeout 110 "${llpf[@]}" bench --device "$device" --large --seconds 2 --only "$only" --out "$out/${only%% *}" 2>&1 |
        tail -20
    done
    ;;
  search)
    mkdir -p /tmp/llpf-data /tmp/llpf-runs
    tar xzf build/carry/mnist.tar.gz -C /tmp/llpf-data
    for seed in 1 2; do
      "${llpf[@]}" train --model lenet5 --data mnist --data-dir /tmp/llpf-data --seed $seed --epochs "${EPOCHS:-10}" \
        --device "$device" --out /tmp/llpf-runs/$seed.pt --overwrite --quiet
    done
    for capture in auto while; do
      rm -rf /tmp/llpf-runs/$capture
      echo "== correction.capture: $capture"
      time timeout 100 "${llpf[@]}" find /tmp/llpf-runs/1.pt /tmp/llpf-runs/2.pt --recipe lenet5-mnist-m2m-quick \
        --data /tmp/llpf-data --device "$device" --set correction.capture=$capture --out /tmp/llpf-runs/$capture --quiet
      time timeout 100 "${llpf[@]}" verify /tmp/llpf-runs/$capture --device "$device" --quiet
      mkdir -p "$out/$capture"
      cp /tmp/llpf-runs/$capture/{certificate.json,metrics.jsonl,run.yaml} "$out/$capture/"
    done
    ;;
  *)
    echo "session.sh checks|times|search" >&2
    exit 2
    ;;
esac
