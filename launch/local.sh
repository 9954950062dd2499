#!/usr/bin/env bash
# Runs one program as several processes on this machine, as a pod would: same command, jax.distributed between them.
#
#   launch/local.sh -n 2 [-d DEVICES_PER_PROCESS] [-r RESTARTS] [--dry-run] -- --config=configs/tiny.py --workdir=runs/two
#
# Everything after -- goes to `python -m cai_jax.main`. When a process dies or is preempted (exit 75) the others are ended
# and all start again, RESTARTS times at most (3); bad input (exit 2) is never retried. SIGTERM to this script saves, ends
# the run and exits 75. Exit code: that of the first process that failed, 0 when all finished.
set -euo pipefail

processes=2 devices=1 restarts=3 dry=0
usage() { sed -n '2,9p' "$0" | sed 's/^# \{0,1\}//'; }
while [ $# -gt 0 ]; do
  case "$1" in
    -n) processes=$2; shift 2 ;;
    -d) devices=$2; shift 2 ;;
    -r) restarts=$2; shift 2 ;;
    --dry-run) dry=1; shift ;;
    -h|--help) usage; exit 0 ;;
    --) shift; break ;;
    *) echo "error: unknown option '$1'; see launch/local.sh --help" >&2; exit 2 ;;
  esac
done
for number in "$processes" "$devices" "$restarts"; do
  case "$number" in ''|*[!0-9]*) echo "error: -n, -d and -r take whole numbers, not '$number'" >&2; exit 2 ;; esac
done
[ $# -gt 0 ] || { echo "error: nothing to run after --; see launch/local.sh --help" >&2; exit 2; }
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
if [ -x .venv/bin/python ] && [ -z "${PYTHON:-}" ]; then python=.venv/bin/python; fi

free_port() { "$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

stopped=0 caught=0
run_once() {
  local port pids=() status=0 code left=$processes
  port=$(free_port)
  for ((index = 0; index < processes; index++)); do
    CAI_JAX_COORDINATOR="127.0.0.1:$port" CAI_JAX_NUM_PROCESSES=$processes CAI_JAX_PROCESS_ID=$index \
      JAX_NUM_CPU_DEVICES=$devices "$python" -m cai_jax.main "$@" &
    pids+=($!)
  done
  trap 'stopped=1 caught=1; kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
  while [ "$left" -gt 0 ]; do
    code=0
    wait -n || code=$?
    # A signal ends the wait; the processes still save.
    if [ "$caught" -eq 1 ]; then caught=0; continue; fi
    left=$((left - 1))
    if [ "$code" -ne 0 ] && [ "$status" -eq 0 ]; then
      status=$code
      # The others would wait for the dead one until the heartbeat runs out. On preemption all stop by themselves.
      [ "$code" -eq 75 ] || kill -KILL "${pids[@]}" 2>/dev/null || true
    fi
  done
  trap - TERM INT
  return "$status"
}

if [ "$dry" -eq 1 ]; then
  for ((index = 0; index < processes; index++)); do
    echo "CAI_JAX_COORDINATOR=127.0.0.1:PORT CAI_JAX_NUM_PROCESSES=$processes CAI_JAX_PROCESS_ID=$index" \
      "JAX_NUM_CPU_DEVICES=$devices $python -m cai_jax.main $*"
  done
  exit 0
fi
for ((attempt = 0; ; attempt++)); do
  status=0
  run_once "$@" || status=$?
  if [ "$status" -eq 0 ] || [ "$status" -eq 2 ] || [ "$status" -eq 3 ] || [ "$stopped" -eq 1 ] || [ "$attempt" -ge "$restarts" ]; then exit "$status"; fi
  echo "a process ended with code $status: starting all again ($((attempt + 1)) of $restarts)" >&2
done
