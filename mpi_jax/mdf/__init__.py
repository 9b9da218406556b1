"""MDF files (Magnetic Particle Imaging Data Format, 1 to 2.1) <-> NumPy arrays.

`read` returns the header and never the bulk data; `signals`, `spectra`, `system_matrix`
and `images` reopen the file and read only what is asked for, in pieces of bounded size.

Symbols (the format's own)

    N  frames, O foreground + E background      J  periods per frame
    C  receive channels                         V  samples per period
    K  frequencies V // 2 + 1, or the selected  M  selected rows
    D  drive channels, F frequencies of each    Y  partitions of the selection field
    A  tracers    B  coefficients of a compressed row
    Q, P, S  frames, voxels and tracers of a reconstruction
Units: SI, fields in tesla, phases in radians. Indices are 0-based here, 1-based in files.
Array order is NumPy's: the last axis is the fastest. Spectra are unnormalised rfft.

Source: MDF 2.1.0, T. Knopp et al. (2016), arXiv:1602.06072. Old and slightly deviating
files are accepted where their meaning is plain; `MDF.notes` and one warning say how.
"""

from mpi_jax.mdf.bulk import signals, spectra, system_matrix
from mpi_jax.mdf.calibration import (
    acquisition_order,
    correct_background,
    frequencies,
    grid,
    images,
    mixing_orders,
    snr,
    voxel_order,
)
from mpi_jax.mdf.matching import compatible
from mpi_jax.mdf.reader import check, read
from mpi_jax.mdf.schema import (
    MDF,
    AcquisitionInfo,
    CalibrationInfo,
    DataInfo,
    DriveFieldInfo,
    ExperimentInfo,
    MeasurementInfo,
    ReceiverInfo,
    ReconstructionInfo,
    ScannerInfo,
    StudyInfo,
    TracerInfo,
    need_acquisition,
    need_calibration,
    need_measurement,
)
from mpi_jax.mdf.write import (
    header,
    write_calibration,
    write_measurement,
    write_reconstruction,
)

__all__ = [
    "AcquisitionInfo",
    "CalibrationInfo",
    "DataInfo",
    "DriveFieldInfo",
    "ExperimentInfo",
    "MDF",
    "MeasurementInfo",
    "ReceiverInfo",
    "ReconstructionInfo",
    "ScannerInfo",
    "StudyInfo",
    "TracerInfo",
    "acquisition_order",
    "check",
    "compatible",
    "correct_background",
    "frequencies",
    "grid",
    "header",
    "images",
    "mixing_orders",
    "need_acquisition",
    "need_calibration",
    "need_measurement",
    "read",
    "signals",
    "snr",
    "spectra",
    "system_matrix",
    "voxel_order",
    "write_calibration",
    "write_measurement",
    "write_reconstruction",
]
