#!/usr/bin/env bash
# Runs cai_jax on a TPU VM slice, one host or many: create → install → run on every worker → start again after preemption.
#
#   launch/tpu_vm.sh --name my-run --zone us-west4-a --type v5litepod-16 [--project P] [--runtime VERSION] [--spot]
#                    [--restarts N] [--keep] [--dry-run] -- --config=configs/NAME.py --workdir=gs://BUCKET/runs/my-run
#
# Needs gcloud, logged in. Each step may be repeated: a slice that exists is used, an installed one is updated. The workdir
# must be where every host can write (gs://). With --dry-run the commands are printed and nothing runs. The slice is deleted
# at the end unless --keep is given.
set -euo pipefail

name="" zone="" type="" project="" runtime="v2-alpha-tpuv5-lite" spot=0 restarts=20 keep=0 dry=0
usage() { sed -n '2,9p' "$0" | sed 's/^# \{0,1\}//'; }
need() { [ $# -ge 2 ] || { echo "error: $1 needs a value" >&2; exit 2; }; }
while [ $# -gt 0 ]; do
  case "$1" in
    --name) need "$@"; name=$2; shift 2 ;;
    --zone) need "$@"; zone=$2; shift 2 ;;
    --type) need "$@"; type=$2; shift 2 ;;
    --project) need "$@"; project=$2; shift 2 ;;
    --runtime) need "$@"; runtime=$2; shift 2 ;;
    --restarts) need "$@"; restarts=$2; shift 2 ;;
    --spot) spot=1; shift ;;
    --keep) keep=1; shift ;;
    --dry-run) dry=1; shift ;;
    -h|--help) usage; exit 0 ;;
    --) shift; break ;;
    *) echo "error: unknown option '$1'; see launch/tpu_vm.sh --help" >&2; exit 2 ;;
  esac
done
for field in name zone type; do
  [ -n "${!field}" ] || { echo "error: --$field is missing; see launch/tpu_vm.sh --help" >&2; exit 2; }
done
[ $# -gt 0 ] || { echo "error: nothing to run after --; see launch/tpu_vm.sh --help" >&2; exit 2; }
cd "$(dirname "$0")/.."

where=(--zone "$zone")
[ -z "$project" ] || where+=(--project "$project")
# A run is told from others by its arguments; quoting survives the remote shell.
arguments=$(printf ' %q' "$@")
archive=${TMPDIR:-/tmp}/cai_jax-$name.tar.gz

run() {
  if [ "$dry" -eq 1 ]; then printf '%q ' "$@"; echo; else "$@"; fi
}
tpu() { run gcloud compute tpus tpu-vm "$@"; }
exists() { [ "$dry" -eq 0 ] && gcloud compute tpus tpu-vm describe "$name" "${where[@]}" >/dev/null 2>&1; }
ready() { [ "$(gcloud compute tpus tpu-vm describe "$name" "${where[@]}" --format='value(state)' 2>/dev/null)" = READY ]; }

create() {
  if exists; then
    if ready; then return 0; fi
    tpu delete "$name" "${where[@]}" --quiet
  fi
  local extra=()
  [ "$spot" -eq 0 ] || extra=(--spot)
  tpu create "$name" "${where[@]}" --accelerator-type "$type" --version "$runtime" "${extra[@]}"
}

install() {
  run git archive --format=tar.gz --output "$archive" HEAD
  tpu scp "$archive" "$name:cai_jax.tar.gz" "${where[@]}" --worker=all
  tpu ssh "$name" "${where[@]}" --worker=all --command \
    'mkdir -p cai_jax && tar -xzf cai_jax.tar.gz -C cai_jax && cd cai_jax && python3 -m venv .venv && .venv/bin/pip install -q -U pip && .venv/bin/pip install -q -r requirements.txt "jax[tpu]" gcsfs'
}

start() {
  tpu ssh "$name" "${where[@]}" --worker=all --command \
    "cd cai_jax && CAI_JAX_DISTRIBUTED=auto .venv/bin/python -m cai_jax.main$arguments"
}

status=1
for ((attempt = 0; attempt <= restarts; attempt++)); do
  if create && install; then
    status=0
    start || status=$?
    # 2 is bad input: the same command would fail again; 3 waits for answers in files. Anything else on a slice is a preemption or a lost host.
    if [ "$status" -eq 0 ] || [ "$status" -eq 2 ] || [ "$status" -eq 3 ]; then break; fi
  else
    status=1
  fi
  [ "$dry" -eq 0 ] || break
  echo "attempt $((attempt + 1)) ended with code $status; going on in 60 s from what was saved" >&2
  sleep 60
done
[ "$keep" -eq 1 ] || tpu delete "$name" "${where[@]}" --quiet
exit "$status"
