#!/usr/bin/env bash
# A training on TPU slices of a GKE cluster, by xpk (pip install xpk).
#
#   launch/xpk.sh [--dry-run] mpi-jax train ... --workdir /mnt/runs/NAME --resume
#
# Settings are variables: NAME, CLUSTER, PROJECT, ZONE, IMAGE (of kubernetes/Dockerfile with
# EXTRA=tpu), TYPE (v5litepod-16), SLICES (1), STORAGE (an xpk storage of the cluster that is
# mounted at /mnt/runs). --dry-run prints the command, and has xpk check it if it is there.
set -euo pipefail

die() {
    printf 'xpk.sh: %s\n' "$*" >&2
    exit 2
}

dry=
if [[ ${1-} == --dry-run ]]; then
    dry=1
    shift
fi
(($#)) || die "expected a command"
for setting in NAME CLUSTER PROJECT ZONE IMAGE STORAGE; do
    [[ ${!setting-} ]] || die "expected the variable $setting"
done

words=$(printf '%q ' "$@")
# shellcheck disable=SC2153  # checked above
command=(xpk workload create --workload="$NAME" --cluster="$CLUSTER")
command+=(--project="$PROJECT" --zone="$ZONE" --docker-image="$IMAGE")
command+=(--tpu-type="${TYPE:-v5litepod-16}" --num-slices="${SLICES:-1}")
command+=(--storage="$STORAGE" --env=MPI_JAX_CLUSTER=tpu)
# 75: stopped with everything saved, within two minutes of being told to.
command+=(--max-restarts=100 --restart-on-exit-codes=75)
command+=(--termination-grace-period-seconds=120 --command="${words% }")

if [[ -z $dry ]]; then
    exec "${command[@]}"
fi
printf '%q ' "${command[@]}"
echo
if command -v xpk >/dev/null; then
    exec "${command[@]}" --dry-run --skip-validation
fi
