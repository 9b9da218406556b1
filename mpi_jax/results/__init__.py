"""What is measured, and where it is kept: one dataclass for each kind of file.

    WORKDIR/config.json                    RunInfo
            metrics.jsonl                  LogLine, a line each
            samples/STEP.npz               Samples
            evaluation/info.json           Info
                       metrics.jsonl       Line, one for each (SNR, method, family)
                       summary.json        Summary: the main lines, small enough to commit
                       values.npz          Values: every number of every image
                       arrays.npz          Examples: one image of each family
            generalisation/metrics.jsonl   GeneralisationLine, one for each (case, method)
                           values.npz      GeneralisationValues
                           table.json      GeneralisationTable
            report/table.json              Tables
    FIGURE3/metrics.jsonl                  Figure3Line, one for each (phantom, method)
            arrays.npz                     Figure3Images

Every file (of lines: every line) says which `schema` it was written by; without, it is of
version 1. `read` raises FileNotFoundError, or ValueError in one line that names the file,
what was expected and what came. Files appear whole or not at all.

Signals are told apart by their power SNR [dB], inf without noise. PSNR is in dB, images
are [ny, nx] with row 0 at +y, pixel sizes are (x, y) in m.
"""

from mpi_jax.results.evaluation import Amounts, Examples, Info, Line, Summary, Values
from mpi_jax.results.figure3 import Figure3Images, Figure3Line
from mpi_jax.results.generalisation import (
    Change,
    GeneralisationCell,
    GeneralisationLine,
    GeneralisationRow,
    GeneralisationTable,
    GeneralisationValues,
)
from mpi_jax.results.method import GROUPS, Kind, MethodInfo, Network, in_groups
from mpi_jax.results.record import (
    SCHEMA,
    UNKNOWN,
    Setting,
    Statistics,
    read_lines,
    write_lines,
)
from mpi_jax.results.run import (
    InitialWeights,
    LogLine,
    RunInfo,
    Samples,
    Start,
    TestNumbers,
)
from mpi_jax.results.tables import Table, Tables

__all__ = [
    "GROUPS",
    "SCHEMA",
    "UNKNOWN",
    "Amounts",
    "Change",
    "Examples",
    "Figure3Images",
    "Figure3Line",
    "GeneralisationCell",
    "GeneralisationLine",
    "GeneralisationRow",
    "GeneralisationTable",
    "GeneralisationValues",
    "Info",
    "InitialWeights",
    "Kind",
    "Line",
    "LogLine",
    "MethodInfo",
    "Network",
    "RunInfo",
    "Samples",
    "Setting",
    "Start",
    "Statistics",
    "Summary",
    "Table",
    "Tables",
    "TestNumbers",
    "Values",
    "in_groups",
    "read_lines",
    "write_lines",
]
