#!/usr/bin/env bash
# Runs cai_jax on TPU slices of a GKE cluster as a JobSet (what XPK creates too): build → push → apply → restarts by itself.
#
#   launch/gke_jobset.sh --name my-run --image REGION-docker.pkg.dev/P/R/cai_jax:1 --tpu tpu-v5-lite-podslice --topology 8x8
#                        [--chips-per-host 4] [--slices N] [--restarts N] [--namespace NS] [--no-build] [--delete] [--dry-run]
#                        -- --config=configs/NAME.py --workdir=gs://BUCKET/runs/my-run
#
# Needs kubectl that points at the cluster, with the JobSet controller in it, and docker unless --no-build. A JobSet of that
# name which exists is left alone: --delete removes it first. When a host is lost or preempted all pods start again and the
# run goes on, N times at most (20); bad input (exit 2) fails the whole set at once.
set -euo pipefail

name="" image="" tpu="" topology="" chips=4 slices=1 restarts=20 namespace=default build=1 delete=0 dry=0
usage() { sed -n '2,11p' "$0" | sed 's/^# \{0,1\}//'; }
need() { [ $# -ge 2 ] || { echo "error: $1 needs a value" >&2; exit 2; }; }
while [ $# -gt 0 ]; do
  case "$1" in
    --name) need "$@"; name=$2; shift 2 ;;
    --image) need "$@"; image=$2; shift 2 ;;
    --tpu) need "$@"; tpu=$2; shift 2 ;;
    --topology) need "$@"; topology=$2; shift 2 ;;
    --chips-per-host) need "$@"; chips=$2; shift 2 ;;
    --slices) need "$@"; slices=$2; shift 2 ;;
    --restarts) need "$@"; restarts=$2; shift 2 ;;
    --namespace) need "$@"; namespace=$2; shift 2 ;;
    --no-build) build=0; shift ;;
    --delete) delete=1; shift ;;
    --dry-run) dry=1; shift ;;
    -h|--help) usage; exit 0 ;;
    --) shift; break ;;
    *) echo "error: unknown option '$1'; see launch/gke_jobset.sh --help" >&2; exit 2 ;;
  esac
done
for field in name image tpu topology; do
  [ -n "${!field}" ] || { echo "error: --$field is missing; see launch/gke_jobset.sh --help" >&2; exit 2; }
done
case "$chips$slices$restarts" in *[!0-9]*) echo "error: --chips-per-host, --slices and --restarts take whole numbers" >&2; exit 2 ;; esac
case "$topology" in *[!0-9x]*|x*|*x|"") echo "error: --topology takes a shape such as 8x8 or 4x4x4, not '$topology'" >&2; exit 2 ;; esac
[ $# -gt 0 ] || { echo "error: nothing to run after --; see launch/gke_jobset.sh --help" >&2; exit 2; }
cd "$(dirname "$0")/.."

total=$((${topology//x/*}))
hosts=$(((total + chips - 1) / chips))
[ "$total" -ge "$chips" ] || chips=$total

run() {
  if [ "$dry" -eq 1 ]; then printf '%q ' "$@"; echo; else "$@"; fi
}
k() { run kubectl --namespace "$namespace" "$@"; }

dockerfile='FROM python:3.11-slim
WORKDIR /cai_jax
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt "jax[tpu]" gcsfs
COPY cai_jax cai_jax
COPY configs configs
ENTRYPOINT ["python", "-m", "cai_jax.main"]'

# JSON strings are YAML strings: quotes and spaces in an argument stay what they are.
yaml_list() {
  local item
  for item in "$@"; do
    item=${item//\\/\\\\}
    printf '                - "%s"\n' "${item//\"/\\\"}"
  done
}

manifest() {
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $restarts
    rules:
      - action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: $slices
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  operator: In
                  values: [2]
          template:
            spec:
              restartPolicy: Never
              hostNetwork: true
              dnsPolicy: ClusterFirstWithHostNet
              terminationGracePeriodSeconds: 120
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $tpu
                cloud.google.com/gke-tpu-topology: $topology
              containers:
              - name: cai-jax
                image: $image
                env:
                - {name: CAI_JAX_DISTRIBUTED, value: auto}
                ports:
                - {containerPort: 8471}
                - {containerPort: 8080}
                resources:
                  limits: {google.com/tpu: $chips}
                args:
$(yaml_list "$@")
YAML
}

if [ "$delete" -eq 1 ]; then k delete jobset "$name" --ignore-not-found --wait; fi
if [ "$dry" -eq 0 ] && kubectl --namespace "$namespace" get jobset "$name" >/dev/null 2>&1; then
  echo "the JobSet $name exists already; watch it, or remove it with --delete:"
  kubectl --namespace "$namespace" get jobset "$name"
  exit 0
fi
if [ "$build" -eq 1 ]; then
  if [ "$dry" -eq 1 ]; then
    run docker build --tag "$image" --file - .
    echo "$dockerfile"
  else
    printf '%s\n' "$dockerfile" | docker build --tag "$image" --file - .
  fi
  run docker push "$image"
fi
if [ "$dry" -eq 1 ]; then
  k apply --filename -
  manifest "$@"
else
  manifest "$@" | kubectl --namespace "$namespace" apply --filename -
fi
echo "follow it: kubectl --namespace $namespace logs --follow --selector jobset.sigs.k8s.io/jobset-name=$name" >&2
