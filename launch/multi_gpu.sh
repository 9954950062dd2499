#!/usr/bin/env bash
# Runs cai_jax on the GPUs of this machine: install → run in one process that drives all of them → start again.
#
#   launch/multi_gpu.sh [--gpus 0,1,2,3] [--cuda 12] [--restarts N] [--dry-run] -- --config=configs/NAME.py --workdir=runs/NAME
#
# Needs an NVIDIA driver. Everything after -- goes to `python -m cai_jax.main`. A run that is preempted (exit 75) or dies is
# started again and goes on from what was saved, N times at most (3); bad input (exit 2) is never retried. SIGTERM to this
# script saves, ends the run and exits 75.
set -euo pipefail

gpus="" cuda=12 restarts=3 dry=0
usage() { sed -n '2,8p' "$0" | sed 's/^# \{0,1\}//'; }
need() { [ $# -ge 2 ] || { echo "error: $1 needs a value" >&2; exit 2; }; }
while [ $# -gt 0 ]; do
  case "$1" in
    --gpus) need "$@"; gpus=$2; shift 2 ;;
    --cuda) need "$@"; cuda=$2; shift 2 ;;
    --restarts) need "$@"; restarts=$2; shift 2 ;;
    --dry-run) dry=1; shift ;;
    -h|--help) usage; exit 0 ;;
    --) shift; break ;;
    *) echo "error: unknown option '$1'; see launch/multi_gpu.sh --help" >&2; exit 2 ;;
  esac
done
case "$restarts$cuda" in *[!0-9]*) echo "error: --restarts and --cuda take whole numbers" >&2; exit 2 ;; esac
case "$gpus" in *[!0-9,]*) echo "error: --gpus takes numbers such as 0,1,2,3, not '$gpus'" >&2; exit 2 ;; esac
[ $# -gt 0 ] || { echo "error: nothing to run after --; see launch/multi_gpu.sh --help" >&2; exit 2; }
cd "$(dirname "$0")/.."

run() {
  if [ "$dry" -eq 1 ]; then printf '%q ' "$@"; echo; else "$@"; fi
}

python=${PYTHON:-.venv/bin/python}
if [ -z "${PYTHON:-}" ]; then
  [ -x .venv/bin/python ] || run python3 -m venv .venv
  "$python" -c "import jax_cuda${cuda}_plugin" 2>/dev/null || run "$python" -m pip install -q -r requirements.txt "jax[cuda$cuda]"
fi

stopped=0 child=""
trap 'stopped=1; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true' TERM INT
settings=(XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}")
[ -z "$gpus" ] || settings+=(CUDA_VISIBLE_DEVICES="$gpus")
for ((attempt = 0; ; attempt++)); do
  if [ "$dry" -eq 1 ]; then run env "${settings[@]}" "$python" -m cai_jax.main "$@"; exit 0; fi
  env "${settings[@]}" "$python" -m cai_jax.main "$@" &
  child=$! status=0
  wait "$child" || status=$?
  # The wait ends when the signal comes; the run still saves.
  while kill -0 "$child" 2>/dev/null; do status=0; wait "$child" || status=$?; done
  if [ "$status" -eq 0 ] || [ "$status" -eq 2 ] || [ "$status" -eq 3 ] || [ "$stopped" -eq 1 ] || [ "$attempt" -ge "$restarts" ]; then exit "$status"; fi
  echo "the run ended with code $status: starting it again ($((attempt + 1)) of $restarts)" >&2
done
