"""One program over several processes: joining, agreeing, and stopping together.

Every process runs the same command. `join` finds out from the environment who they are;
process 0 is the lead, which alone writes files and prints. With one process all of this
costs nothing and changes nothing.

    variables of ours   MPI_JAX_COORDINATOR (host:port of process 0),
                        MPI_JAX_NUM_PROCESSES, MPI_JAX_PROCESS_ID
    SLURM               a step of several tasks, as srun starts it
    Open MPI            mpirun; over several hosts with MPI_JAX_COORDINATOR
    Kubernetes          JOB_COMPLETION_INDEX is the process; the rest by our variables
    TPU                 the workers of a slice; MPI_JAX_CLUSTER=tpu where no variable of
                        the machine tells of them

Source: the cluster detection of jax.distributed, which finds SLURM's and a TPU's processes.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
import re
import signal
import socket
import sys
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from mpi_jax._progress import Stopped

# No sign of life for so long: gone. A long read may keep all threads of a process still.
SILENT_S = 30.0
_SUSPECT_S = 5.0  # likewise, where a computation with it has failed
_BEAT_S = 1.0
_HEARTBEAT_S = 60  # JAX's own: where the lead is beyond judging
_RESOLVE_S = 60.0  # the names of a cluster's hosts come with their machines
_PATIENCE_MS = 24 * 3600 * 1000  # what ends waiting is the watch, not the clock
_SHARED_S = 5.0  # a network file system may take that long to show a new file
_GRACE_S = 2.0  # for a process that fails of the same to say so itself
_ERROR = "mpi_jax/error"
_ALIVE = "mpi_jax/alive/"
_SUSPICION = "suspicion"
_OURS = ("MPI_JAX_COORDINATOR", "MPI_JAX_NUM_PROCESSES", "MPI_JAX_PROCESS_ID")
# What XLA says, in errors of several types, where a process it computes with is gone.
_LOST = re.compile("[A-Z_]+: .*(?i:gloo|nccl|connection|peer|coordination)")
_RANKS = ("JOB_COMPLETION_INDEX", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")


@dataclasses.dataclass(frozen=True)
class Place:
    """This process among all; None where JAX finds it out itself."""

    count: int | None = None
    index: int | None = None
    coordinator: str | None = None


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """Who this process is, by its environment; count 1: nothing to join.

    Raises ValueError that says which variables are there and which are missing.

    Examples:
      >>> place({"MPI_JAX_NUM_PROCESSES": "2", "MPI_JAX_PROCESS_ID": "1",
      ...        "MPI_JAX_COORDINATOR": "10.0.0.1:9000"})
      Place(count=2, index=1, coordinator='10.0.0.1:9000')
      >>> place({})
      Place(count=1, index=0, coordinator=None)
    """
    coordinator = environment.get(_OURS[0])
    count = _number(environment, _OURS[1], 1)
    if count is not None:
        index = None
        for name in (_OURS[2], *_RANKS):
            index = _number(environment, name, 0) if index is None else index
        if count == 1:
            return Place(1, 0, None)
        return _complete(count, index, coordinator)
    if (tasks := _number(environment, "SLURM_NTASKS", 1) or 1) > 1:
        return _of_slurm(environment, tasks)
    if (size := _number(environment, "OMPI_COMM_WORLD_SIZE", 1) or 1) > 1:
        index = _number(environment, "OMPI_COMM_WORLD_RANK", 0)
        local = _number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE", 1)
        if coordinator is None and local == size:
            # One host: a port of this job alone, the same in all its processes.
            job = environment.get("PMIX_NAMESPACE") or environment.get(
                "OMPI_MCA_orte_hnp_uri", ""
            )
            coordinator = f"127.0.0.1:{20000 + zlib.crc32(job.encode()) % 10000}"
        return _complete(size, index, coordinator)
    hosts = environment.get("TPU_WORKER_HOSTNAMES") or ""
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or hosts
    cluster = environment.get("MPI_JAX_CLUSTER", "")
    if cluster not in ("", "tpu"):
        raise ValueError(f"MPI_JAX_CLUSTER: expected tpu or nothing, got {cluster}")
    if "," in hosts or cluster == "tpu":
        return Place()
    if coordinator is not None or environment.get(_OURS[2]) is not None:
        return _complete(None, _number(environment, _OURS[2], 0), coordinator)
    return Place(1, 0, None)


def local_places(count: int) -> list[dict[str, str]]:
    """Variables of each of some processes on this machine, which meet at a free port.

    Examples:
      >>> [place(one).index for one in local_places(3)]
      [0, 1, 2]
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        dict(zip(_OURS, (f"127.0.0.1:{port}", str(count), str(index)), strict=True))
        for index in range(count)
    ]


def _number(environment: Mapping[str, str], name: str, least: int) -> int | None:
    text = environment.get(name)
    if text is None:
        return None
    if not text.strip().isdecimal() or int(text) < least:
        raise ValueError(f"{name}: expected a whole number >= {least}, got {text!r}")
    return int(text)


def _complete(
    count: int | None,
    index: int | None,
    coordinator: str | None,
) -> Place:
    """The place, or one line that says what was found and what is missing."""
    values = {
        "MPI_JAX_NUM_PROCESSES": count,
        "MPI_JAX_PROCESS_ID": index,
        "MPI_JAX_COORDINATOR (host:port of process 0)": coordinator,
    }
    missing = [name for name, value in values.items() if value is None]
    if missing:
        there = [f"{n.split()[0]} = {v}" for n, v in values.items() if v is not None]
        raise ValueError(
            f"processes of a cluster: found {', '.join(there)}; missing "
            f"{', '.join(missing)}"
        )
    host, _, port = str(coordinator).rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(
            f"MPI_JAX_COORDINATOR: expected host:port of process 0, got {coordinator}"
        )
    if index is not None and count is not None and index >= count:
        raise ValueError(
            f"MPI_JAX_PROCESS_ID: expected 0 to {count - 1} of "
            f"{count} processes, got {index}"
        )
    return Place(count, index, coordinator)


def _of_slurm(environment: Mapping[str, str], tasks: int) -> Place:
    names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    missing = [name for name in names if name not in environment]
    if missing:
        raise ValueError(
            f"processes of a cluster: found SLURM_NTASKS = {tasks}; missing "
            f"{', '.join(missing)}, which srun sets: start with srun, or set "
            "MPI_JAX_NUM_PROCESSES=1 to use one process alone"
        )
    return Place()


def _local_devices(environment: Mapping[str, str]) -> list[int] | None:
    """All GPUs of a SLURM task that is the only one of its node; JAX takes one alone."""
    each = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    if each.partition("(")[0] == "1" and visible:
        return list(range(len(visible.split(","))))
    return None


@contextlib.contextmanager
def join(*, stops: bool = False) -> Iterator[None]:
    """Be one of the processes of a command, before JAX is used for anything else.

    stops: SIGTERM, SIGINT and a preemption are left to `stop_requested`; a second SIGINT
    interrupts. Otherwise they end the process as usual. An error inside ends all other
    processes within seconds, with this one's words. Raises ValueError where the
    environment tells of some processes, but not enough.
    """
    here = place()
    if here.count == 1:
        with _signals(stops):
            yield
        return
    jax.config.update("jax_enable_preemption_service", stops)
    _initialize(here)
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(over,), daemon=True)
    watch.start()
    try:
        with _signals(stops):
            yield
    except Stopped:  # all of them, after the same step
        _end(over, watch)
        raise
    except BaseException as error:
        if _LOST.match(str(error)):
            # The watch knows better who is gone, or what he said, and ends this process.
            with contextlib.suppress(Exception):  # the store may be gone with the lead
                _beat(_client(), _SUSPICION)
            watch.join(SILENT_S + 2 * _GRACE_S)
        over.set()
        _tell(error)
        raise
    _end(over, watch)


def _end(over: threading.Event, watch: threading.Thread) -> None:
    barrier()
    over.set()
    watch.join()  # the interpreter can't end while it waits in the store
    jax.distributed.shutdown()


def _initialize(here: Place) -> None:
    devices = None if here.count else _local_devices(os.environ)
    if here.coordinator is not None:
        _resolve(here.coordinator)
    try:
        jax.distributed.initialize(
            here.coordinator,
            here.count,
            here.index,
            local_device_ids=devices,
            # Else variables of SLURM would choose the devices of a place of ours.
            cluster_detection_method="deactivate" if here.count else None,
            heartbeat_timeout_seconds=_HEARTBEAT_S,
            shutdown_timeout_seconds=_HEARTBEAT_S,
        )
    except (ValueError, RuntimeError) as error:
        words = " ".join(str(error).split())[:200]
        raise ValueError(f"processes of a cluster: can't be joined: {words}") from None


def _resolve(coordinator: str) -> None:
    """Wait until the coordinator's host has an address. ValueError if it gets none."""
    host = coordinator.rpartition(":")[0].strip("[]")
    until = time.monotonic() + _RESOLVE_S
    while True:
        try:
            socket.getaddrinfo(host, None)
            return
        except OSError as error:
            if time.monotonic() > until:
                raise ValueError(
                    f"MPI_JAX_COORDINATOR: expected host:port of process 0, but {host} "
                    f"has no address after {_RESOLVE_S:g} s: {error.strerror}"
                ) from None
            time.sleep(_BEAT_S)


def _client() -> Any:
    """The key-value store of all processes; JAX has no public name for it."""
    from jax._src import distributed

    return distributed.global_state.client


def _tell(error: BaseException) -> None:
    """The error to all other processes; then this one leaves without waiting for them."""
    code = 2 if isinstance(error, (ValueError, OSError)) else 1
    words = " ".join(str(error).split()) or type(error).__name__
    with contextlib.suppress(Exception):  # the first to tell is heard
        _client().key_value_set(
            _ERROR, f"{code} process {jax.process_index()}: {words}"
        )
    if is_lead():
        time.sleep(_GRACE_S)  # the store ends with its process
    # At exit JAX waits for the others, who may never come, and then aborts.
    atexit.register(_leave, code)


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _watch(over: threading.Event) -> None:
    """Ends this process when another has told an error, or one of them is gone."""
    client, lives = _client(), _Lives()
    while not over.is_set():
        try:
            _beat(client, str(jax.process_index()))
            if is_lead() and (words := lives.missing(client)):
                client.key_value_set(_ERROR, words)
            told = client.blocking_key_value_get(_ERROR, int(1000 * _BEAT_S))
        except Exception as error:
            if "DEADLINE_EXCEEDED" in str(error) or "ALREADY_EXISTS" in str(error):
                continue
            told = "1 the lead process is gone"
        if over.wait(_GRACE_S):
            return
        code, _, words = told.partition(" ")
        print(f"mpi-jax: {words}", file=sys.stderr)
        _leave(int(code))


def _beat(client: Any, name: str) -> None:
    """A sign of life, or of doubt."""
    value = f"{time.monotonic()} {socket.gethostname()}"
    client.key_value_set(_ALIVE + name, value, allow_overwrite=True)


class _Lives:
    """When the lead last heard from each process."""

    def __init__(self) -> None:
        self.heard: dict[str, tuple[str, float]] = {}

    def missing(self, client: Any) -> str:
        """Exit code and words about a process that is gone; "" if none is."""
        signs, now = dict(client.key_value_dir_get(_ALIVE)), time.monotonic()
        patience = (
            SILENT_S if signs.pop(_ALIVE + _SUSPICION, None) is None else _SUSPECT_S
        )
        for name, sign in signs.items():
            if self.heard.get(name, ("", now))[0] != sign:
                self.heard[name] = sign, now
            silent = now - self.heard[name][1]
            if silent > patience:
                index, host = name.removeprefix(_ALIVE), sign.partition(" ")[2]
                return (
                    f"1 process {index} on {host} is gone: no sign of life for "
                    f"{silent:.0f} s"
                )
        return ""


# --- Signals

_stop = threading.Event()


@contextlib.contextmanager
def _signals(stops: bool) -> Iterator[None]:
    if not stops or threading.current_thread() is not threading.main_thread():
        yield
        return
    _stop.clear()
    several = _client() is not None

    def heard(number: int, frame: FrameType | None) -> None:
        if _stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        _stop.set()
        if several and number == signal.SIGINT:
            os.kill(os.getpid(), signal.SIGTERM)  # which JAX tells the others

    # With several processes SIGTERM is JAX's: it makes them agree on a step.
    numbers = [signal.SIGINT] if several else [signal.SIGINT, signal.SIGTERM]
    before = {number: signal.signal(number, heard) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_requested(step: int) -> bool:
    """Whether to save and stop after this step: the same answer in all processes.

    To be asked after every step by all of them.
    """
    if jax.process_count() == 1:
        return _stop.is_set()
    return multihost_utils.reached_preemption_sync_point(step)


# --- Agreeing


def is_lead() -> bool:
    """Whether this process writes files and prints."""
    return jax.process_index() == 0


_turns = iter(range(sys.maxsize))  # all processes take the same turns


def barrier() -> None:
    """Wait until all processes are here."""
    gather("")


def gather(words: str) -> list[str]:
    """The words of every process, by its index. All must call this, in the same order."""
    if jax.process_count() == 1:
        return [words]
    client, turn = _client(), next(_turns)
    client.key_value_set(f"mpi_jax/{turn}/{jax.process_index()}", words)
    return [
        client.blocking_key_value_get(f"mpi_jax/{turn}/{index}", _PATIENCE_MS)
        for index in range(jax.process_count())
    ]


def on_lead(action: Callable[[], None]) -> None:
    """The lead does it while the others wait; its ValueError or OSError is everybody's."""
    error: Exception | None = None
    if is_lead():
        try:
            action()
        except (ValueError, OSError) as raised:
            error = raised
    told = gather(str(error or ""))[0]
    if error is not None:
        raise error
    if told:
        raise ValueError(told)


def check_shared(folder: Path) -> None:
    """ValueError on all processes unless they see one and the same folder."""
    if jax.process_count() == 1:
        return
    mark = Path(folder) / gather(f".{uuid.uuid4().hex}.part")[0]
    on_lead(mark.touch)
    until = time.monotonic() + _SHARED_S
    while not mark.exists() and time.monotonic() < until:
        time.sleep(0.1)
    seen = gather(f"{int(mark.exists())} {socket.gethostname()}")
    on_lead(mark.unlink)
    blind = [n for n, words in enumerate(seen) if words[0] == "0"]
    if blind:
        lead, other = (seen[n][2:] for n in (0, blind[0]))
        raise ValueError(
            f"{folder}: expected a folder that all processes share, but process "
            f"{blind[0]} on {other} doesn't see what process 0 on {lead} writes there; "
            "name one on a shared disk"
        )


def check_equal(name: str, value: str) -> None:
    """ValueError on all processes unless it is the same on each of them."""
    values = gather(value)
    others = [n for n, other in enumerate(values) if other != values[0]]
    if others:
        raise ValueError(
            f"{name}: expected the same on all {len(values)} processes; process 0 has "
            f"{values[0]}, process {others[0]} has {values[others[0]]}"
        )
