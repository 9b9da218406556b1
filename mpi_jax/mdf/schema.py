"""The header of an MDF file: its groups and fields, their names, types and shapes.

Letters and units are those of `mpi_jax.mdf`.
"""

from __future__ import annotations

import dataclasses
import datetime
import uuid as uuids
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import numpy as np

VERSION = "2.1.0"


Class = TypeVar("Class")


def _field(
    name,
    kind,
    shape="",
    *,
    default=dataclasses.MISSING,
    default_factory=dataclasses.MISSING,
    **extra,
):
    """A header field: its name, type and shape in the file; it may be None if `default` is."""
    meta = dict(name=name, kind=kind, shape=shape.split(), optional=default is None)
    return dataclasses.field(
        default=default, default_factory=default_factory, metadata=meta | extra
    )


def _text(name, default: str | None = "n.a.", **extra):
    return _field(name, str, default=default, **extra)


def new_uuid() -> str:
    return str(uuids.uuid4())


def time_now() -> str:
    """UTC in ISO 8601 without a zone, as the format wants it."""
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    return now.isoformat(timespec="milliseconds")


@dataclass_transform(
    eq_default=False,
    frozen_default=True,
    kw_only_default=True,
    field_specifiers=(_field, dataclasses.field),
)
def _header(cls: type[Class]) -> type[Class]:
    """The decorator of a group of the header."""
    return dataclasses.dataclass(frozen=True, eq=False, kw_only=True)(cls)


@_header
class StudyInfo:
    name: str = _text("name")
    number: int = _field("number", int, default=0)
    uuid: str = _field("uuid", str, default_factory=new_uuid)
    description: str = _text("description")
    time: str | None = _text("time", default=None)


@_header
class ExperimentInfo:
    name: str = _text("name")
    number: int = _field("number", int, default=0)
    uuid: str = _field("uuid", str, default_factory=new_uuid)
    description: str = _text("description")
    subject: str = _text("subject")
    is_simulation: bool = _field("isSimulation", bool, default=False)


@_header
class TracerInfo:
    """Each field has one entry per tracer; concentration [mol(solute)/L], volume [L]."""

    name: tuple[str, ...] = _field("name", str, "A")
    batch: tuple[str, ...] = _field("batch", str, "A")
    vendor: tuple[str, ...] = _field("vendor", str, "A")
    solute: tuple[str, ...] = _field("solute", str, "A")
    concentration: np.ndarray = _field("concentration", float, "A", free=True)
    volume: np.ndarray = _field("volume", float, "A", free=True)
    injection_time: tuple[str, ...] | None = _field(
        "injectionTime", str, "A", default=None
    )


@_header
class ScannerInfo:
    """bore_size [m]; topology FFP, FFL or MPS."""

    facility: str = _text("facility")
    manufacturer: str = _text("manufacturer")
    name: str = _text("name")
    operator: str = _text("operator")
    topology: str = _text("topology", "FFP")
    bore_size: float | None = _field("boreSize", float, default=None, free=True)


@_header
class DriveFieldInfo:
    """H_d(t) = sum_l strength[j, d, l] wave(2 pi f t + phase[j, d, l]), f = base / divider.

    base_frequency [Hz], cycle [s], divider [D, F], strength [J, D, F] T, phase
    [J, D, F] rad, waveform: F words for each of D channels, sine, triangle or custom.
    """

    base_frequency: float = _field("baseFrequency", float, positive=True)
    cycle: float = _field("cycle", float, positive=True)
    channels: int = _field("numChannels", int, count=True)
    divider: np.ndarray = _field("divider", int, "D F", positive=True)
    strength: np.ndarray = _field("strength", float, "J D F")
    phase: np.ndarray = _field("phase", float, "J D F")
    waveform: tuple[tuple[str, ...], ...] = _field("waveform", str, "D F")


@_header
class ReceiverInfo:
    """bandwidth [Hz], half the sampling rate; channels C; samples V per period.

    data_conversion_factor [C, 2]: value [unit] = a * stored + b; applied when reading.
    transfer_function [C, K or all K] (divide a spectrum by it) and induction_factor [C] in
    unit/(A m^2) are given as stored and never applied here.
    """

    bandwidth: float = _field("bandwidth", float, positive=True)
    channels: int = _field("numChannels", int, count=True)
    samples: int = _field("numSamplingPoints", int, count=True)
    unit: str = _text("unit", "V")
    data_conversion_factor: np.ndarray | None = _field(
        "dataConversionFactor", float, "C 2", default=None
    )
    transfer_function: np.ndarray | None = _field(
        "transferFunction", complex, "C K", default=None, free=True
    )
    induction_factor: np.ndarray | None = _field(
        "inductionFactor", float, "C", default=None, free=True
    )


@_header
class AcquisitionInfo:
    """averages, frames N, periods J; gradient [J, Y, 3, 3] T/m, offset_field [J, Y, 3] T."""

    averages: int = _field("numAverages", int, default=1, count=True)
    frames: int = _field("numFrames", int, default=1, count=True)
    periods: int = _field("numPeriodsPerFrame", int, default=1, count=True)
    start_time: str = _field("startTime", str, default_factory=time_now)
    gradient: np.ndarray | None = _field("gradient", float, "J Y 3 3", default=None)
    offset_field: np.ndarray | None = _field(
        "offsetField", float, "J Y 3", default=None
    )
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

    is_background_frame: np.ndarray = _field("isBackgroundFrame", bool, "N")
    is_background_corrected: bool = _field("isBackgroundCorrected", bool, default=False)
    is_fast_frame_axis: bool = _field("isFastFrameAxis", bool, default=False)
    is_fourier_transformed: bool = _field("isFourierTransformed", bool, default=False)
    is_spectral_leakage_corrected: bool = _field(
        "isSpectralLeakageCorrected", bool, default=False
    )
    is_transfer_function_corrected: bool = _field(
        "isTransferFunctionCorrected", bool, default=False
    )
    # Each of these is present exactly where its flag is 1.
    frequency_selection: np.ndarray | None = _field(
        "frequencySelection",
        int,
        "K",
        default=None,
        base=1,
        flag="isFrequencySelection",
    )
    frame_permutation: np.ndarray | None = _field(
        "framePermutation", int, "N", default=None, base=1, flag="isFramePermutation"
    )
    sparsity_transformation: str | None = _text(
        "sparsityTransformation", default=None, flag="isSparsityTransformed"
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
    size: np.ndarray | None = _field("size", int, "3", default=None, positive=True)
    field_of_view: np.ndarray | None = _field("fieldOfView", float, "3", default=None)
    field_of_view_centre: np.ndarray | None = _field(
        "fieldOfViewCenter", float, "3", default=None
    )
    delta_sample_size: np.ndarray | None = _field(
        "deltaSampleSize", float, "3", default=None, free=True
    )
    order: str | None = _text("order", default=None)
    snr: np.ndarray | None = _field("snr", float, "J C K", default=None, free=True)
    positions: np.ndarray | None = _field("positions", float, "O 3", default=None)
    offset_fields: np.ndarray | None = _field(
        "offsetFields", float, "O 3", default=None
    )
    # Not in the specification, but written by MPIFiles.
    is_meandering_grid: bool | None = _field("isMeanderingGrid", bool, default=None)


@_header
class ReconstructionInfo:
    """Grid of the stored images as in Calibration; parameters: how they were made."""

    size: np.ndarray | None = _field("size", int, "3", default=None, positive=True)
    field_of_view: np.ndarray | None = _field("fieldOfView", float, "3", default=None)
    field_of_view_centre: np.ndarray | None = _field(
        "fieldOfViewCenter", float, "3", default=None
    )
    order: str | None = _text("order", default=None)
    positions: np.ndarray | None = _field("positions", float, "P 3", default=None)
    is_overscan_region: np.ndarray | None = _field(
        "isOverscanRegion", bool, "P", default=None
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
    uuid: str = _field("uuid", str, default_factory=new_uuid)
    time: str = _field("time", str, default_factory=time_now)
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


def need_acquisition(file: MDF) -> AcquisitionInfo:
    """How a file's data were acquired; ValueError where it does not say."""
    if file.acquisition is None:
        raise ValueError(f"{file.path}: expected /acquisition, found none")
    return file.acquisition


def need_measurement(file: MDF) -> MeasurementInfo:
    """What was done to a file's data; ValueError where there are none."""
    if file.measurement is None:
        raise ValueError(f"{file.path}: expected /measurement, found none")
    return file.measurement


def need_calibration(file: MDF) -> CalibrationInfo:
    """Where the delta sample was; ValueError where the file is no calibration."""
    if file.calibration is None:
        raise ValueError(f"{file.path}: expected a calibration, found no /calibration")
    return file.calibration


def stored_axes(info) -> str:
    """Letters of the axes of /measurement/data."""
    axis = "K" if info.is_fourier_transformed else "V"
    return f"JC{axis}N" if info.is_fast_frame_axis else f"NJC{axis}"


def stored_shape(grid: CalibrationInfo | ReconstructionInfo) -> list[int]:
    """Voxels along each axis of a regular grid as it is stored, the slowest axis first."""
    if grid.size is None:
        raise ValueError("grid: expected a regular one, found no size")
    size = dict(zip("xyz", map(int, grid.size), strict=True))
    return [size[axis] for axis in reversed(grid.order or "xyz")]


# Attribute -> class, group in the file, whether it must be there.
GROUPS: dict[str, tuple[type, str, bool]] = {
    "study": (StudyInfo, "/study", True),
    "experiment": (ExperimentInfo, "/experiment", True),
    "scanner": (ScannerInfo, "/scanner", True),
    "tracer": (TracerInfo, "/tracer", False),
    "acquisition": (AcquisitionInfo, "/acquisition", True),
    "measurement": (MeasurementInfo, "/measurement", False),
    "calibration": (CalibrationInfo, "/calibration", False),
    "reconstruction": (ReconstructionInfo, "/reconstruction", False),
}
SUBGROUPS: dict[str, tuple[type, str]] = {
    "drive_field": (DriveFieldInfo, "/acquisition/drivefield"),
    "receiver": (ReceiverInfo, "/acquisition/receiver"),
}
