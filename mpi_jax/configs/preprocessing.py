"""What is done to a calibration and a measurement before they meet a solver."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

MatrixBackground = Literal["none", "mean", "interpolated"]
Background = Literal["none", "mean", "interpolated", "external"]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What is done to a calibration and a measurement before they meet a solver."""

    min_frequency: float = 0.0
    """Lowest frequency in use [Hz]; above the drive frequencies to leave these out."""
    max_frequency: float = math.inf
    """Highest frequency in use [Hz]."""
    stop_bands: tuple[tuple[float, float], ...] = ()
    """Bands that are left out, (from, to) [Hz]."""
    channels: tuple[int, ...] = ()
    """Receive channels in use, counted from 0; none named: all."""
    snr_threshold: float = 0.0
    """Lowest signal-to-noise ratio of a row of the calibration, as stored in the file or
    computed from its background frames; 0: off."""
    num_rows: int = 0
    """Only that many rows, those of the highest ratio; 0: off. Not with snr_threshold."""
    max_mixing_order: int = 0
    """Only frequencies that mix the drive frequencies with sum |m| up to this; 0: off."""
    matrix_background: MatrixBackground = "none"
    """What the system matrix loses: nothing, the mean of its background frames, or these
    interpolated in time."""
    plane: int | None = None
    """Reconstruct one z plane of a 3D calibration (from 0) as an image. A model error
    where there is tracer outside of it."""
    slab: int = 0
    """Planes on either side of `plane` that are taken to hold its tracer too: their
    columns are added to its own."""
    shape: tuple[int, ...] = ()
    """(nz, ny, nx) or (ny, nx) voxels to interpolate the matrix to; none: the file's."""
    field_of_view: tuple[float, float, float] | None = None
    """Of that grid, (x, y, z) [m] about the file's centre; larger ones extrapolate."""
    sparse_reduction: float = 0.0
    """Share of each row's coefficients in a discrete cosine transform over the grid that
    is left, the largest ones; 0: off."""
    sparse_threshold: float = 0.0
    """Or those from that share of each row's largest on; 0: off. The images are those of
    a solver that works with the sparse rows; memory and time aren't saved."""
    frames: tuple[int, ...] = ()
    """Frames of the measurement, counted from 0 among its foreground; none named: all."""
    frame_average: int = 1
    """Frames averaged to one."""
    periods: tuple[int, int] | None = None
    """Periods of each frame in use, (first, behind the last); None: all."""
    period_average: int = 0
    """Successive periods averaged to one; 0: all periods of a patch, that is of one
    offset field. Means of different offset fields are patches of one image, others are
    frames."""
    period_grouping: int = 1
    """Successive periods of one offset field joined to one long period, which is what the
    calibration has; period_average then counts long periods."""
    sidebands: int | None = None
    """With period_grouping g, only the frequency indices that are at most that far from a
    multiple of g, the harmonics of the short period; None: all."""
    allow_short: bool = False
    """Let the last average have fewer frames or periods."""
    background: Background = "none"
    """What the measurement loses: nothing, the mean of its background frames, these
    interpolated in time, or the mean of all frames of another file."""
    joint_background: int = 0
    """Reconstruct a background together with the image, out of that many singular
    vectors of the background frames; 0: off. Not with another background."""
    background_penalty: float = 0.0
    """Penalty of that background, relative to its strongest vector; 0: it is free."""
    spectral_leakage: bool = False
    """Window neighbouring frames (or periods of a frame) before the Fourier transform."""
    transfer_function: bool | None = None
    """Divide by it, or leave it in. Has to be chosen where a file has one."""
    row_norm: bool = False
    """Weight rows by the inverse of their norm."""
    whitening: bool = False
    """Weight rows by the inverse of their noise in the background frames, or in the
    periods of the one such frame."""
    channel_weights: tuple[float, ...] = ()
    """A weight for each receive channel; none named: 1."""
    tolerate: tuple[str, ...] = ()
    """Differences of the two files that are accepted, by their names in the complaint."""

    def __post_init__(self):
        def expect(is_so, name, expected):
            if not is_so:
                raise ValueError(
                    f"{name}: expected {expected}, got {getattr(self, name)!r}"
                )

        low, high = self.min_frequency, self.max_frequency
        expect(0 <= low <= high, "min_frequency", f"0 to max_frequency {high:g} Hz")
        for band in self.stop_bands:
            is_band = len(band) == 2 and band[0] <= band[1]
            expect(is_band, "stop_bands", "(from, to) Hz")
        for name in ("snr_threshold", "background_penalty"):
            is_finite = 0 <= getattr(self, name) < math.inf
            expect(is_finite, name, "a finite number >= 0")
        for name in (
            "num_rows",
            "max_mixing_order",
            "period_average",
            "joint_background",
        ):
            expect(getattr(self, name) >= 0, name, "a number >= 0")
        for name in ("sparse_reduction", "sparse_threshold"):
            expect(0 <= getattr(self, name) <= 1, name, "0 to 1")
        one = not (self.sparse_reduction and self.sparse_threshold)
        expect(one, "sparse_threshold", "0 where sparse_reduction is in use")
        expect(self.period_grouping >= 1, "period_grouping", "a number >= 1")
        long = self.period_grouping > 1
        beside = self.sidebands is None or (long and self.sidebands >= 0)
        expect(beside, "sidebands", "None, or with period_grouping a number >= 0")
        leaking = long and self.spectral_leakage
        expect(not leaking, "spectral_leakage", "False with period_grouping")
        one = not (self.num_rows and self.snr_threshold)
        expect(one, "num_rows", "0 where snr_threshold is in use")
        for name in ("matrix_background", "background"):
            expect(getattr(self, name) in _BACKGROUNDS[name], name, _BACKGROUNDS[name])
        alone = not self.joint_background or self.background == "none"
        expect(alone, "joint_background", "0 where another background is in use")
        joint = not self.background_penalty or self.joint_background
        expect(joint, "background_penalty", "0 without joint_background")
        expect(self.frame_average >= 1, "frame_average", "a number >= 1")
        expect(self.plane is None or self.plane >= 0, "plane", "None or a number >= 0")
        around = self.slab == 0 or (self.slab > 0 and self.plane is not None)
        expect(around, "slab", "0, or with a plane a number >= 0")
        expect(all(n >= 0 for n in self.channels), "channels", "numbers >= 0")
        expect(all(n >= 0 for n in self.frames), "frames", "numbers >= 0")
        ordered = self.periods is None or 0 <= self.periods[0] < self.periods[1]
        expect(ordered, "periods", "(first, behind the last)")
        is_shape = all(n >= 1 for n in self.shape) and len(self.shape) in (0, 2, 3)
        expect(is_shape, "shape", "(nz, ny, nx) or (ny, nx)")
        if (extent := self.field_of_view) is not None:
            expect(bool(self.shape), "field_of_view", "None where no shape is given")
            lengths = len(extent) == 3 and all(0 < n < math.inf for n in extent)
            expect(lengths, "field_of_view", "(x, y, z), lengths > 0 m")
        weights = all(math.isfinite(w) and w >= 0 for w in self.channel_weights)
        expect(weights, "channel_weights", "numbers >= 0")


_BACKGROUNDS = {
    "matrix_background": ("none", "mean", "interpolated"),
    "background": ("none", "mean", "interpolated", "external"),
}
