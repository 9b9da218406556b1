"""Whether a measurement belongs to a calibration."""

from __future__ import annotations

import math

import numpy as np

from mpi_jax.mdf.bulk import stored_frequencies
from mpi_jax.mdf.schema import MDF, need_measurement


def compatible(system_matrix: MDF, measurement: MDF, grouping: int = 1) -> list[str]:
    """What keeps a system matrix from fitting a measurement, in words; empty if it fits.

    grouping: how many periods of the measurement make one of the system matrix.

    Examples:
      >>> from mpi_jax import mdf, scanner
      >>> calibration = mdf.header(scanner.paper(2), calibration=True)
      >>> mdf.compatible(calibration, mdf.header(scanner.paper(2)))
      []
      >>> other = mdf.header(scanner.paper(2, amplitude=10e-3))
      >>> "strength" in mdf.compatible(calibration, other)[0]
      True
    """
    both = (system_matrix, measurement)
    for file, name in zip(both, ("system_matrix", "measurement"), strict=True):
        if file.acquisition is None or file.measurement is None:
            return [f"{name}: expected a file with measured data, got {file.path}"]
    problems = []

    def compare(what, get, unit="", angle=False):
        values = [get(file.acquisition) for file in both]
        arrays = [v for v in values if isinstance(v, np.ndarray)]
        if len(arrays) == 2:
            # A calibration of one period serves measurements of many equal ones.
            values = [v[:1] if v.ndim > 2 and np.all(v == v[:1]) else v for v in arrays]
            same = values[0].shape == values[1].shape
            one, two = (np.exp(1j * v) if angle else v for v in values)
            # Strengths and phases of two runs are known to three digits or so.
            same = same and np.allclose(one, two, rtol=1e-3, atol=1e-3 * angle)
            values = [v.tolist() for v in values]
        elif arrays:
            same = False
            values = [v.tolist() if v is arrays[0] else "unknown" for v in values]
        elif isinstance(values[0], float):
            same = math.isclose(*values, rel_tol=1e-6)
        else:
            same = values[0] == values[1]
        if not same:
            one, two = (f"{_short(v)}{unit}" for v in values)
            problems.append(f"{what}: system matrix {one}, measurement {two}")

    compare("receive channels", lambda a: a.receiver.channels)
    joined = {id(measurement.acquisition): grouping}
    joint = f"{grouping} periods" if grouping > 1 else "period"
    compare(f"samples per {joint}", lambda a: a.receiver.samples * joined.get(id(a), 1))
    compare("bandwidth", lambda a: a.receiver.bandwidth, " Hz")
    compare("unit", lambda a: a.receiver.unit)
    compare("drive channels", lambda a: a.drive_field.channels)
    compare("base frequency", lambda a: a.drive_field.base_frequency, " Hz")
    compare("dividers", lambda a: a.drive_field.divider.tolist())
    compare("waveform", lambda a: a.drive_field.waveform)
    compare("drive field strength", lambda a: a.drive_field.strength, " T")
    compare("drive field phase", lambda a: a.drive_field.phase, " rad", angle=True)
    compare("gradient", lambda a: a.gradient, " T/m")
    one, two = (need_measurement(f).is_transfer_function_corrected for f in both)
    if one != two:
        words = [("un" * (not state)) + "corrected" for state in (one, two)]
        problems.append(
            f"transfer function: system matrix {words[0]}, measurement {words[1]}"
        )
    missing = np.setdiff1d(
        stored_frequencies(system_matrix), stored_frequencies(measurement)
    )
    selection = need_measurement(measurement).frequency_selection
    if selection is not None and len(missing):
        problems.append(
            f"frequency selection: measurement lacks {len(missing)} frequencies of the "
            f"system matrix, first index {missing[0]}"
        )
    return problems


def _short(value):
    text = str(value)
    return text if len(text) < 80 else f"{text[:76]} ..."
