#!/usr/bin/env bash
# A training on all hosts of a TPU slice of VMs, by gcloud.
#
#   launch/tpu_vm.sh create            queue for the slice, until it is there
#   launch/tpu_vm.sh install           this repository on every host, and the shared disk
#   launch/tpu_vm.sh run mpi-jax train ... --workdir /mnt/runs/NAME --resume
#   launch/tpu_vm.sh log | stop | delete
#
# Settings are variables: NAME, ZONE, TYPE (v5litepod-16), RUNTIME (v2-alpha-tpuv5-lite),
# SHARE (host:/path of an NFS share in the slice's network, e.g. Filestore; is /mnt/runs on
# every host), SPOT=1 for a slice that may be taken away.
set -euo pipefail

die() {
    printf 'tpu_vm.sh: %s\n' "$*" >&2
    exit 2
}

[[ ${1-} =~ ^(create|install|run|log|stop|delete)$ ]] ||
    die "expected create, install, run, log, stop or delete, got: $*"
[[ ${NAME-} && ${ZONE-} ]] || die "expected the variables NAME and ZONE of the slice"
verb=$1
shift
if [[ $verb == run ]]; then
    (($#)) || die "run: expected a command"
else
    (($# == 0)) || die "$verb: expected no more words, got: $*"
fi

queue=(gcloud compute tpus queued-resources)
on() { # WORKER COMMAND
    gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker="$1" --command="$2"
}

create() {
    local options=(--node-id="$NAME" --zone="$ZONE")
    options+=(--accelerator-type="${TYPE:-v5litepod-16}")
    options+=(--runtime-version="${RUNTIME:-v2-alpha-tpuv5-lite}")
    if [[ ${SPOT-} ]]; then options+=(--spot); fi
    "${queue[@]}" create "$NAME" "${options[@]}"
    local state
    while true; do
        state=$("${queue[@]}" describe "$NAME" --zone="$ZONE" --format='value(state.state)')
        case $state in
        ACTIVE) return ;;
        FAILED | SUSPENDING | SUSPENDED) die "$NAME: the queue says $state" ;;
        esac
        echo "$NAME: $state"
        sleep "${POLL_S:-30}"
    done
}

install() {
    [[ ${SHARE-} ]] || die "install: expected SHARE, host:/path of a disk for work folders"
    [[ -e setup.cfg ]] || die "install: expected the folder of the repository, got $PWD"
    local archive
    archive=$(mktemp -d)
    git archive --prefix=mpi_jax/ --output="$archive/mpi_jax.tar" HEAD
    gcloud compute tpus tpu-vm scp "$archive/mpi_jax.tar" "$NAME:" --zone="$ZONE" --worker=all
    rm -r "$archive"
    on all "set -e
tar -xf mpi_jax.tar
python3 -m venv .venv
. .venv/bin/activate
pip install --quiet './mpi_jax[tpu]'
sudo apt-get install -y -qq nfs-common
sudo mkdir -p /mnt/runs
mountpoint -q /mnt/runs || sudo mount -t nfs $(printf %q "$SHARE") /mnt/runs"
}

run() {
    local words
    words=$(printf '%q ' "$@")
    # It lives on when the connection ends; its first line tells `stop` who it is.
    on all ". .venv/bin/activate
export MPI_JAX_CLUSTER=tpu
nohup bash -c $(printf %q "echo \$\$ >mpi_jax.pid; exec $words") >mpi_jax.log 2>&1 </dev/null &"
}

log() { on 0 'tail -n 40 mpi_jax.log'; }
# shellcheck disable=SC2016  # the host's file, not one here
stop() { on all 'kill -TERM "$(cat mpi_jax.pid)"'; }
delete() { "${queue[@]}" delete "$NAME" --zone="$ZONE" --force --quiet; }

"$verb" "$@"
