"""The header of an MDF file: its groups and fields, their names, types and shapes.

Letters and units are those of `mpi_jax.mdf`.
"""

from __future__ import annotations

import dataclasses
import datetime
import uuid as uuids
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

VERSION = "2.1.0"


def _at(name, kind, shape="", default=dataclasses.MISSING, *, optional=False, **extra):
    """A header field: its name, type and shape in the file; optional ones may be None."""
    if optional:
        default = None
    how = {"default_factory" if callable(default) else "default": default}
    meta = dict(name=name, kind=kind, shape=shape.split(), optional=optional, **extra)
    return dataclasses.field(metadata=meta, **how)


def _text(name, default="n.a.", **extra):
    return _at(name, str, "", default, **extra)


def _uuid():
    return str(uuids.uuid4())


def _now():
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    return now.isoformat(timespec="milliseconds")


_header = dataclasses.dataclass(frozen=True, eq=False, kw_only=True)


@_header
class StudyInfo:
    name: str = _text("name")
    number: int = _at("number", int, "", 0)
    uuid: str = _text("uuid", _uuid)
    description: str = _text("description")
    time: str | None = _text("time", optional=True)


@_header
class ExperimentInfo:
    name: str = _text("name")
    number: int = _at("number", int, "", 0)
    uuid: str = _text("uuid", _uuid)
    description: str = _text("description")
    subject: str = _text("subject")
    is_simulation: bool = _at("isSimulation", bool, "", False)


@_header
class TracerInfo:
    """Each field has one entry per tracer; concentration [mol(solute)/L], volume [L]."""

    name: tuple[str, ...] = _at("name", str, "A")
    batch: tuple[str, ...] = _at("batch", str, "A")
    vendor: tuple[str, ...] = _at("vendor", str, "A")
    solute: tuple[str, ...] = _at("solute", str, "A")
    concentration: np.ndarray = _at("concentration", float, "A", free=True)
    volume: np.ndarray = _at("volume", float, "A", free=True)
    injection_time: tuple[str, ...] | None = _at(
        "injectionTime", str, "A", optional=True
    )


@_header
class ScannerInfo:
    """bore_size [m]; topology FFP, FFL or MPS."""

    facility: str = _text("facility")
    manufacturer: str = _text("manufacturer")
    name: str = _text("name")
    operator: str = _text("operator")
    topology: str = _text("topology", "FFP")
    bore_size: float | None = _at("boreSize", float, optional=True, free=True)


@_header
class DriveFieldInfo:
    """H_d(t) = sum_l strength[j, d, l] wave(2 pi f t + phase[j, d, l]), f = base / divider.

    base_frequency [Hz], cycle [s], divider [D, F], strength [J, D, F] T, phase
    [J, D, F] rad, waveform: F words for each of D channels, sine, triangle or custom.
    """

    base_frequency: float = _at("baseFrequency", float, positive=True)
    cycle: float = _at("cycle", float, positive=True)
    channels: int = _at("numChannels", int, count=True)
    divider: np.ndarray = _at("divider", int, "D F", positive=True)
    strength: np.ndarray = _at("strength", float, "J D F")
    phase: np.ndarray = _at("phase", float, "J D F")
    waveform: tuple[tuple[str, ...], ...] = _at("waveform", str, "D F")


@_header
class ReceiverInfo:
    """bandwidth [Hz], half the sampling rate; channels C; samples V per period.

    data_conversion_factor [C, 2]: value [unit] = a * stored + b; applied when reading.
    transfer_function [C, K or all K] (divide a spectrum by it) and induction_factor [C] in
    unit/(A m^2) are given as stored and never applied here.
    """

    bandwidth: float = _at("bandwidth", float, positive=True)
    channels: int = _at("numChannels", int, count=True)
    samples: int = _at("numSamplingPoints", int, count=True)
    unit: str = _text("unit", "V")
    data_conversion_factor: np.ndarray | None = _at(
        "dataConversionFactor", float, "C 2", optional=True
    )
    transfer_function: np.ndarray | None = _at(
        "transferFunction", complex, "C K", optional=True, free=True
    )
    induction_factor: np.ndarray | None = _at(
        "inductionFactor", float, "C", optional=True, free=True
    )


@_header
class AcquisitionInfo:
    """averages, frames N, periods J; gradient [J, Y, 3, 3] T/m, offset_field [J, Y, 3] T."""

    averages: int = _at("numAverages", int, "", 1, count=True)
    frames: int = _at("numFrames", int, "", 1, count=True)
    periods: int = _at("numPeriodsPerFrame", int, "", 1, count=True)
    start_time: str = _text("startTime", _now)
    gradient: np.ndarray | None = _at("gradient", float, "J Y 3 3", optional=True)
    offset_field: np.ndarray | None = _at("offsetField", float, "J Y 3", optional=True)
    drive_field: DriveFieldInfo
    receiver: ReceiverInfo


@_header
class MeasurementInfo:
    """What has been done to the data, and how they lie in the file.

    is_background_frame [N]; frequency_selection [K], frequency index of each stored
    column, or None for all; frame_permutation [N]: stored frame n was acquired as frame
    frame_permutation[n], None for stored as acquired; sparsity_transformation: DCT-I to
    DCT-IV of each foreground row, None for uncompressed.
    """

    is_background_frame: np.ndarray = _at("isBackgroundFrame", bool, "N")
    is_background_corrected: bool = _at("isBackgroundCorrected", bool, "", False)
    is_fast_frame_axis: bool = _at("isFastFrameAxis", bool, "", False)
    is_fourier_transformed: bool = _at("isFourierTransformed", bool, "", False)
    is_spectral_leakage_corrected: bool = _at(
        "isSpectralLeakageCorrected", bool, "", False
    )
    is_transfer_function_corrected: bool = _at(
        "isTransferFunctionCorrected", bool, "", False
    )
    # Each of these is present exactly where its flag is 1.
    frequency_selection: np.ndarray | None = _at(
        "frequencySelection",
        int,
        "K",
        optional=True,
        base=1,
        flag="isFrequencySelection",
    )
    frame_permutation: np.ndarray | None = _at(
        "framePermutation", int, "N", optional=True, base=1, flag="isFramePermutation"
    )
    sparsity_transformation: str | None = _text(
        "sparsityTransformation", optional=True, flag="isSparsityTransformed"
    )

    @property
    def foreground(self) -> np.ndarray:
        """Stored indices of the O foreground frames."""
        return np.flatnonzero(~self.is_background_frame)

    @property
    def background(self) -> np.ndarray:
        """Stored indices of the E background frames."""
        return np.flatnonzero(self.is_background_frame)


@_header
class CalibrationInfo:
    """Where the delta sample was, frame by frame.

    size [3] voxels along x, y, z, field_of_view, field_of_view_centre and
    delta_sample_size [3] m; order: axes from the fastest to the slowest; snr [J, C, K];
    positions [O, 3] m and offset_fields [O, 3] T of other than regular grids.
    """

    method: str = _text("method", "simulation")
    size: np.ndarray | None = _at("size", int, "3", optional=True, positive=True)
    field_of_view: np.ndarray | None = _at("fieldOfView", float, "3", optional=True)
    field_of_view_centre: np.ndarray | None = _at(
        "fieldOfViewCenter", float, "3", optional=True
    )
    delta_sample_size: np.ndarray | None = _at(
        "deltaSampleSize", float, "3", optional=True, free=True
    )
    order: str | None = _text("order", optional=True)
    snr: np.ndarray | None = _at("snr", float, "J C K", optional=True, free=True)
    positions: np.ndarray | None = _at("positions", float, "O 3", optional=True)
    offset_fields: np.ndarray | None = _at("offsetFields", float, "O 3", optional=True)
    # Not in the specification, but written by MPIFiles.
    is_meandering_grid: bool | None = _at("isMeanderingGrid", bool, optional=True)


@_header
class ReconstructionInfo:
    """Grid of the stored images as in Calibration; parameters: how they were made."""

    size: np.ndarray | None = _at("size", int, "3", optional=True, positive=True)
    field_of_view: np.ndarray | None = _at("fieldOfView", float, "3", optional=True)
    field_of_view_centre: np.ndarray | None = _at(
        "fieldOfViewCenter", float, "3", optional=True
    )
    order: str | None = _text("order", optional=True)
    positions: np.ndarray | None = _at("positions", float, "P 3", optional=True)
    is_overscan_region: np.ndarray | None = _at(
        "isOverscanRegion", bool, "P", optional=True
    )
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@_header
class DataInfo:
    """A stored array: dataset, its shape and type, and what its axes are, e.g. NJCV.

    is_pairs: real and imaginary part along one more axis (version 1).
    """

    dataset: str
    axes: str
    shape: tuple[int, ...]
    dtype: np.dtype
    is_pairs: bool = False
    # Of the places of compressed coefficients [J, C, K, B].
    indices_shape: tuple[int, ...] | None = None


@_header
class MDF:
    """Header of a file. A group that the file hasn't got is None.

    data: where the measurement or system matrix lies, image_data: the reconstruction;
    None where there are none. notes: what was accepted although it deviates.
    """

    version: str = _text("version", VERSION)
    uuid: str = _text("uuid", _uuid)
    time: str = _text("time", _now)
    study: StudyInfo | None = None
    experiment: ExperimentInfo | None = None
    tracer: TracerInfo | None = None
    scanner: ScannerInfo | None = None
    acquisition: AcquisitionInfo | None = None
    measurement: MeasurementInfo | None = None
    calibration: CalibrationInfo | None = None
    reconstruction: ReconstructionInfo | None = None
    data: DataInfo | None = None
    image_data: DataInfo | None = None
    path: Path | None = None
    notes: tuple[str, ...] = ()


# Attribute -> class, group in the file, whether it must be there.
GROUPS = {
    "study": (StudyInfo, "/study", True),
    "experiment": (ExperimentInfo, "/experiment", True),
    "scanner": (ScannerInfo, "/scanner", True),
    "tracer": (TracerInfo, "/tracer", False),
    "acquisition": (AcquisitionInfo, "/acquisition", True),
    "measurement": (MeasurementInfo, "/measurement", False),
    "calibration": (CalibrationInfo, "/calibration", False),
    "reconstruction": (ReconstructionInfo, "/reconstruction", False),
}
SUBGROUPS = {
    "drive_field": (DriveFieldInfo, "/acquisition/drivefield"),
    "receiver": (ReceiverInfo, "/acquisition/receiver"),
}
