#!/usr/bin/env bash
# N processes on this machine that work together, as the machines of a pod do.
#
#   launch/local.sh N -- COMMAND...
#
# Each gets the variables of mpi_jax.cluster, and its share of the GPUs where there are
# any. TERM, INT and HUP go on to all of them. One that fails takes the others with it.
# Exit code: of the first failure; 75 where all stopped at a signal with everything saved.
set -uo pipefail

die() {
    printf 'local.sh: %s\n' "$*" >&2
    exit 2
}

[[ ${1-} =~ ^[1-9][0-9]*$ && ${2-} == -- && $# -ge 3 ]] ||
    die "expected N -- COMMAND..., N a number of processes, got: $*"
count=$1
shift 2

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])') ||
    die "python3: needed to find a free port"
export MPI_JAX_COORDINATOR=127.0.0.1:$port MPI_JAX_NUM_PROCESSES=$count
# Inside a step of SLURM: JAX would take one GPU alone for each process.
unset SLURM_LOCALID

gpus=()
if [[ ${JAX_PLATFORMS-} != cpu ]]; then
    names=${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | paste -sd,)}
    IFS=, read -ra gpus <<<"$names"
fi
((${#gpus[@]} % count == 0)) ||
    die "expected a number of processes that divides ${#gpus[@]} GPUs, got $count"
each=$((${#gpus[@]} / count))

# Every process leads a group of its own: a Ctrl-C comes to it once, from here.
set -m
declare -A running=()
for ((index = 0; index < count; index++)); do
    share=()
    if ((each)); then
        mine=$(IFS=,; printf '%s' "${gpus[*]:index * each:each}")
        share=(CUDA_VISIBLE_DEVICES="$mine")
    fi
    env "${share[@]}" MPI_JAX_PROCESS_ID="$index" "$@" </dev/null &
    running[$index]=$!
done

all() {
    for group in "${running[@]}"; do
        kill -s "$1" -- "-$group" 2>/dev/null
    done
}
trap 'all TERM' TERM HUP
trap 'all INT' INT

patience=10 # seconds that the others have to end with words of their own
code=0 over=
while ((${#running[@]})); do
    sleep 0.2 &
    wait $! # a trap doesn't wait for the end of a sleep that is waited for
    for index in "${!running[@]}"; do
        kill -0 "${running[$index]}" 2>/dev/null && continue
        wait "${running[$index]}"
        status=$?
        unset "running[$index]"
        if ((status == 75)); then
            ((code)) || code=75
        elif ((status)); then
            if ((code == 0 || code == 75)); then code=$status; fi
            if [[ -z $over ]]; then over=$((SECONDS + patience)); fi
        fi
    done
    if [[ -n $over ]] && ((SECONDS >= over)); then
        all KILL # TERM may be what it saves at, together with one that is gone
    fi
done 2>/dev/null # the shell's own words about processes that ended by a signal
exit "$code"
