#!/usr/bin/env bash
# Runs cai_jax on GPU nodes of a Slurm cluster: install → submit → one process a GPU on every node → requeue when preempted.
#
#   launch/slurm.sh --name my-run --nodes 2 [--gpus 8] [--time 24:00:00] [--partition P] [--account A] [--cuda 12]
#                   [--restarts N] [--dry-run] -- --config=configs/NAME.py --workdir=/shared/runs/my-run
#
# Run it on a login node, in a checkout that all nodes see. A run of that name which is queued or running is left alone, so
# the command may be repeated. Two minutes before the time limit, and on preemption, the run saves and exits 75; the job is
# queued again and goes on, N times at most (20). Bad input (exit 2) is never retried. Output: NAME-JOBID.out.
set -euo pipefail

name="" nodes="" gpus=8 time=24:00:00 partition="" account="" cuda=12 restarts=20 dry=0
usage() { sed -n '2,9p' "$0" | sed 's/^# \{0,1\}//'; }
need() { [ $# -ge 2 ] || { echo "error: $1 needs a value" >&2; exit 2; }; }
while [ $# -gt 0 ]; do
  case "$1" in
    --name) need "$@"; name=$2; shift 2 ;;
    --nodes) need "$@"; nodes=$2; shift 2 ;;
    --gpus) need "$@"; gpus=$2; shift 2 ;;
    --time) need "$@"; time=$2; shift 2 ;;
    --partition) need "$@"; partition=$2; shift 2 ;;
    --account) need "$@"; account=$2; shift 2 ;;
    --cuda) need "$@"; cuda=$2; shift 2 ;;
    --restarts) need "$@"; restarts=$2; shift 2 ;;
    --dry-run) dry=1; shift ;;
    -h|--help) usage; exit 0 ;;
    --) shift; break ;;
    *) echo "error: unknown option '$1'; see launch/slurm.sh --help" >&2; exit 2 ;;
  esac
done
for field in name nodes; do
  [ -n "${!field}" ] || { echo "error: --$field is missing; see launch/slurm.sh --help" >&2; exit 2; }
done
case "$nodes$gpus$cuda$restarts" in *[!0-9]*) echo "error: --nodes, --gpus, --cuda and --restarts take whole numbers" >&2; exit 2 ;; esac
[ $# -gt 0 ] || { echo "error: nothing to run after --; see launch/slurm.sh --help" >&2; exit 2; }
cd "$(dirname "$0")/.."

run() {
  if [ "$dry" -eq 1 ]; then printf '%q ' "$@"; echo; else "$@"; fi
}

python=${PYTHON:-.venv/bin/python}
if [ -z "${PYTHON:-}" ]; then
  [ -x .venv/bin/python ] || run python3 -m venv .venv
  "$python" -c "import jax_cuda${cuda}_plugin" 2>/dev/null || run "$python" -m pip install -q -r requirements.txt "jax[cuda$cuda]"
fi

if [ "$dry" -eq 0 ] && [ -n "$(squeue --noheader --me --name "$name")" ]; then
  echo "a job named $name is queued or running already:"
  squeue --me --name "$name"
  exit 0
fi

options=(--job-name "$name" --nodes "$nodes" --ntasks-per-node "$gpus" --gpus-per-node "$gpus" --time "$time"
         --requeue --open-mode append --signal TERM@120 --output "$name-%j.out")
[ -z "$partition" ] || options+=(--partition "$partition")
[ -z "$account" ] || options+=(--account "$account")
arguments=$(printf ' %q' "$@")
# jax.distributed finds Slurm's variables by itself: one task is one process and has one GPU.
batch="#!/usr/bin/env bash
status=0
srun --kill-on-bad-exit=1 env CAI_JAX_DISTRIBUTED=auto $python -m cai_jax.main$arguments || status=\$?
if [ \"\$status\" -ne 0 ] && [ \"\$status\" -ne 2 ] && [ \"\${SLURM_RESTART_COUNT:-0}\" -lt $restarts ]; then
  scontrol requeue \"\$SLURM_JOB_ID\"
fi
exit \"\$status\""
if [ "$dry" -eq 1 ]; then
  run sbatch --parsable "${options[@]}"
  echo "$batch"
else
  echo "$batch" | sbatch --parsable "${options[@]}"
fi
