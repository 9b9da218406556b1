"""How fast TG-128 would train on many accelerators: a table in Markdown, on paper.

    python benchmarks/projection.py

Nothing here is measured. A step of data-parallel training is its arithmetic, then the mean
of all gradients over devices; no overlap of the two is assumed. The numbers below are the
makers' data sheets and the assumptions that docs/scaling.md discusses.
"""

from typing import NamedTuple

PARAMETERS = 16_222_342 + 2_778_889  # generator and discriminator of the config `paper`
BYTES = 4 * PARAMETERS  # of float32 gradients, a step
FLOP = 50e9  # of an image, both networks forward and backward (configs/paper.py)
IMAGES = 638_137  # an epoch of the paper
SHARE = 0.3  # of the peak arithmetic, assumed
LINK_SHARE = 0.5  # of a link's rate, assumed
LATENCY = 20e-6  # s of each stage of an all-reduce, assumed
REDUCTIONS = 2  # of a step: the generator's gradients, then the discriminator's


class Machine(NamedTuple):
    """peak: bfloat16 [FLOP/s] of a device. group: devices that the fast link joins, each
    sending `link` bytes/s; `network`: bytes/s of a device to other groups.
    """

    name: str
    peak: float
    group: int
    link: float
    network: float


MACHINES = (
    # 18 NVLinks of 25 GB/s a direction; a 400 Gb/s InfiniBand adapter for each GPU.
    Machine("H100 (DGX)", 989e12, 8, 450e9, 50e9),
    # Four links of 400 Gb/s a chip in a 2D torus; 6.4 Tb/s a pod between pods.
    Machine("TPU v5e", 197e12, 256, 200e9, 6.4e12 / 8 / 256),
)


def all_reduce_seconds(machine: Machine, devices: int, size: float) -> float:
    """A ring in each group, one across groups for each of its devices' shares.

    Each ring sends 2 (n - 1) / n of its bytes over every link: half to add, half to spread.
    """
    inside = min(devices, machine.group)
    groups = devices // inside

    def ring(count: int, size: float, rate: float) -> float:
        if count == 1:
            return 0.0
        stages = 2 * (count - 1).bit_length()
        sent = 2 * (count - 1) / count * size
        return sent / (LINK_SHARE * rate) + REDUCTIONS * stages * LATENCY

    across = ring(groups, size / inside, machine.network)
    return ring(inside, size, machine.link) + across


def row(machine: Machine, devices: int, each: int) -> list[str]:
    """Cells of a line: `each` images a device and step."""
    compute = each * FLOP / (SHARE * machine.peak)
    reduce = all_reduce_seconds(machine, devices, BYTES)
    batch, seconds = each * devices, compute + reduce
    return [
        f"{devices} x {machine.name}",
        f"{batch:,}",
        f"{1e3 * compute:.1f}",
        f"{1e3 * reduce:.2f}",
        f"{100 * compute / seconds:.0f} %",
        f"{float(f'{batch / seconds:.2g}'):,.0f}",  # two digits: it is a projection
        f"{IMAGES / batch:,.0f}",
    ]


HEAD = [
    "devices",
    "global batch",
    "arithmetic [ms]",
    "all-reduce [ms]",
    "efficiency",
    "images/s",
    "steps an epoch",
]


def table() -> str:
    """Weak scaling with 64 images a device, then 8 images a device."""
    lines = [HEAD, ["---"] + ["---:"] * (len(HEAD) - 1)]
    for each in (64, 8):
        for machine in MACHINES:
            lines += [row(machine, devices, each) for devices in (8, 64, 512)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    print(f"{BYTES / 1e6:.1f} MB of gradients a step\n\n{table()}", end="")
