#!/usr/bin/env bash
# SLURM for tests: a controller and two nodes of two processors, all on this machine.
#
#   export SLURM_CONF=$(launch/mini_slurm.sh start DIR)
#   sinfo; sbatch ...
#   launch/mini_slurm.sh stop DIR
#
# Needs Debian's slurm-wlm and munge (apt-get install --no-install-recommends slurm-wlm
# munge), and root. DIR holds everything: keys, sockets, logs. Nothing else is touched.
set -euo pipefail

die() {
    printf 'mini_slurm.sh: %s\n' "$*" >&2
    exit 2
}

[[ ${1-} =~ ^(start|stop)$ && $# -eq 2 ]] || die "expected start|stop DIR, got: $*"
PATH=$PATH:/usr/sbin:/sbin
for program in munged slurmctld slurmd; do
    command -v "$program" >/dev/null || die "$program: not found; apt-get install slurm-wlm munge"
done
mkdir -p "$2"
dir=$(cd "$2" && pwd)
export SLURM_CONF=$dir/slurm.conf
machine=$(hostname -s)
# JAX looks for the coordinator at a job's first node, so its name must be an address;
# the other node's name comes behind it, and its weight makes it the second choice.
nodes=("$machine" "$machine-2")

start() {
    [[ ! -e $SLURM_CONF ]] || die "$dir: expected a new folder, but a cluster was started in it"
    [[ $(id -u) == 0 ]] || die "expected root, got $(id -un)"
    local ports
    read -ra ports < <(python3 -c '
import socket
sockets = [socket.socket() for _ in range(3)]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))')

    mkdir "$dir"/{state,spool,log}
    (umask 077 && head -c 256 /dev/urandom >"$dir/munge.key")
    # --force: temporary folders may be open to others, which munged refuses.
    munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" \
        --pid-file="$dir/munged.pid" --seed-file="$dir/munge.seed" \
        --log-file="$dir/log/munged" 2>"$dir/log/munged.start" ||
        die "munged: $(tail -n 1 "$dir/log/munged.start")"

    {
        cat <<EOF
ClusterName=mini
SlurmctldHost=$machine(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
# A job that is queued again waits until its old credentials have ended.
AuthInfo=socket=$dir/munge.socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.%n.pid
SlurmctldLogFile=$dir/log/slurmctld
SlurmdLogFile=$dir/log/slurmd.%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
SchedulerParameters=sched_interval=1,bf_interval=1
EOF
        for n in 0 1; do
            echo "NodeName=${nodes[n]} NodeHostname=$machine NodeAddr=127.0.0.1 Port=${ports[n + 1]} CPUs=2 Weight=$((n + 1))"
        done
        echo "PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE"
    } >"$SLURM_CONF"

    slurmctld -i 2>"$dir/log/start" || :
    for node in "${nodes[@]}"; do
        slurmd -N "$node" 2>>"$dir/log/start" || :
    done
    for _ in {1..100}; do
        if [[ $(sinfo --noheader --states=idle --format=%D 2>/dev/null) == 2 ]]; then
            echo "$SLURM_CONF"
            return
        fi
        sleep 0.1
    done
    stop
    die "expected two idle nodes within 10 s; logs in $dir/log: $(head -n 1 "$dir/log/start")"
}

stop() {
    local pids=() pid files
    scancel --quiet --user="$(id -un)" 2>/dev/null || :
    for _ in {1..50}; do
        [[ -n $(squeue --noheader 2>/dev/null) ]] || break
        sleep 0.1
    done
    files=("$dir"/slurmd.*.pid "$dir/slurmctld.pid" "$dir/munged.pid")
    for file in "${files[@]}"; do
        if [[ -e $file ]] && read -r pid <"$file" && kill "$pid" 2>/dev/null; then
            pids+=("$pid")
        fi
    done
    for pid in "${pids[@]}"; do
        for _ in {1..100}; do
            kill -0 "$pid" 2>/dev/null || continue 2
            sleep 0.1
        done
        kill -KILL "$pid"
    done
}

"$1"
