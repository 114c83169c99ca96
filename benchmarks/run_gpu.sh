#!/usr/bin/env bash
# Builds LoRun for the GPU of this machine, runs the tests marked gpu and the benchmarks: under nine minutes in all.
#
#     benchmarks/run_gpu.sh OUT_DIR     JSON, tables, logs and the build report go to OUT_DIR
#
# It installs into the environment of `python3` (or of $PYTHON) without touching its other packages.
set -euo pipefail
out=$(mkdir -p "${1:?usage: benchmarks/run_gpu.sh OUT_DIR}" && cd "$1" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 LORUN_CUDA=1

"$python" -m pip install --no-build-isolation --no-deps -e . >"$out/build.log" 2>&1 || {
  tail -n 40 "$out/build.log"
  exit 1
}
"$python" - <<'PY' | tee "$out/environment.json"
import json, platform, torch, triton
import lorun_kernels as lk
gpu = torch.cuda.get_device_properties(0)
print(json.dumps({
    "gpu": gpu.name, "multiprocessors": gpu.multi_processor_count, "memory_bytes": gpu.total_memory,
    "python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__,
    "build": lk.build_info(), "backends": lk.available_backends(),
}, indent=2))
PY
# The report, and ending a part that is killed, take the rest of the nine minutes.
end=515
# share MOST RESERVED: the seconds of the next part, MOST at most, with RESERVED left for the parts after it.
share() {
  local left=$((end - SECONDS - $2))
  left=$((left < $1 ? left : $1))
  echo $((left > 60 ? left : 60))
}
# Only files with GPU tests: others import packages that a GPU machine may lack.
gpu_files() { grep -lr --include='test_*.py' 'mark\.gpu' "$1"; }
failed=0
run() {
  local name=$1 seconds=$2
  shift 2
  # No benchmark starts in the last seconds, and an interrupted run writes its results too.
  LORUN_BENCHMARK_SECONDS=$((seconds - 10)) timeout -s INT -k 10 "$seconds" \
    "$python" -m pytest -q "$@" 2>&1 | tee "$out/$name.log"
}
# Triton compiles the layers' kernels beside the tests: a hundred of them would not fit into the benchmark's time.
seconds=$(share 180 180)
warming=()
for part in 0 1 2 3; do
  timeout "$seconds" "$python" -m benchmarks.harness.warm_up "$part" 4 >"$out/warm_up_$part.log" 2>&1 &
  warming+=($!)
done
# Most of a test's time is Triton compiling on one core, so files and backends run side by side.
testing=()
for file in $(gpu_files tests); do
  for backend in triton "not triton"; do
    name=${file//\//_}
    name=${name%.py}_${backend// /_}
    run "$name" "$seconds" -m gpu -k "$backend" "$file" --junitxml="$out/$name.xml" &
    testing+=($!)
  done
done
for test in "${testing[@]}"; do wait "$test" || failed=1; done
wait "${warming[@]}" || echo "warming up has failed: see warm_up_*.log"
run table "$(share "$end" 0)" benchmarks/test_table.py --device cuda --benchmark-json="$out/table.json" || failed=1
"$python" -m benchmarks.report "$out/table.json" --out "$out" || failed=1
exit $failed
