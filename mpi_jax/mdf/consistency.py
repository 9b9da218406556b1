"""What in an MDF file contradicts the format or itself."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from mpi_jax._linalg import TRANSFORMS
from mpi_jax.mdf.schema import GROUPS, MDF, SUBGROUPS, CalibrationInfo
from mpi_jax.mdf.source import COUNT, ORDERS


def _expectations():
    problems = []

    def expect(is_so, where, expected, got):
        if not is_so:
            problems.append(f"{where}: expected {expected}, found {got}")

    return problems, expect


def walk(file):
    """(group, class, place) of all groups that are there."""
    yield file, MDF, ""
    for owner, groups in ((file, GROUPS), (file.acquisition, SUBGROUPS)):
        for name, (cls, where, *_) in groups.items() if owner is not None else ():
            if getattr(owner, name) is not None:
                yield getattr(owner, name), cls, where


def contradictions(file) -> list[str]:
    """What doesn't fit together in a header whose fields have the right types."""
    problems, expect = _expectations()
    a, measurement, calibration = file.acquisition, file.measurement, file.calibration
    image = file.reconstruction
    sizes = {"3": 3, "2": 2}
    full = 0
    # Counts first: whatever is measured by a wrong one would look wrong too.
    for group, cls, where in walk(file):
        for field in dataclasses.fields(cls):
            value, meta = getattr(group, field.name), field.metadata
            if meta and value is None and not meta["optional"]:
                expect(False, f"{where}/{meta['name']}", "a value", "none")
            elif meta.get("count"):
                path = f"{where}/{meta['name']}"
                expect(1 <= value <= COUNT, path, f"a count from 1 to {COUNT}", value)
    if problems:
        return problems
    if a is not None:
        receiver, drive = a.receiver, a.drive_field
        full = receiver.samples // 2 + 1
        sizes |= dict(J=a.periods, N=a.frames, D=drive.channels, C=receiver.channels)
        sizes |= dict(V=receiver.samples, K=full)
    if measurement is None and file.data is not None:
        data = file.data  # of version 1, whose header follows from the data
        axes = f"shape [{', '.join(data.axes)}{', 2' * data.is_pairs}]"
        expect(False, data.dataset, axes, list(data.shape))
        return problems
    if measurement is not None:
        selection = measurement.frequency_selection
        sizes["K"] = full if selection is None else np.size(selection)
    if file.image_data is not None and len(file.image_data.shape) == 3:
        sizes["P"] = file.image_data.shape[1]

    for group, cls, where in walk(file):
        for field in dataclasses.fields(cls):
            value, meta = getattr(group, field.name), field.metadata
            if not meta or value is None:
                continue
            path, letters = f"{where}/{meta['name']}", meta["shape"]
            if meta.get("positive"):
                positive = np.all(np.asarray(value) > 0)
                expect(positive, path, "positive numbers", np.ravel(value)[:4].tolist())
            if letters:
                shape = np.shape(value)
                if len(shape) == len(letters):
                    for letter, n in zip(letters, shape, strict=True):
                        sizes.setdefault(letter, n)
                known = [sizes.get(letter, letter) for letter in letters]
                fits = list(shape) == known
                if field.name == "transfer_function" and letters[-1:] == ["K"]:
                    fits = fits or list(shape) == [known[0], full]
                expect(fits, path, f"[{', '.join(letters)}] = {known}", list(shape))
    if problems:
        return problems

    if a is not None:
        samples = drive.cycle * 2 * receiver.bandwidth
        agree = abs(samples - receiver.samples) < 0.01
        where = "/acquisition/receiver/numSamplingPoints"
        expect(agree, where, f"cycle * 2 * bandwidth = {samples:g}", receiver.samples)
        where = "/acquisition/drivefield/waveform"
        for wave in {wave for row in drive.waveform for wave in row}:
            known_wave = wave in ("sine", "triangle", "custom")
            expect(known_wave, where, "sine, triangle or custom", repr(wave))
    if measurement is not None and a is not None:
        problems += _measurement_contradictions(file, sizes, full)
    for group, where in ((calibration, "/calibration"), (image, "/reconstruction")):
        if group is not None and group.order is not None:
            orders = f"one of {', '.join(ORDERS)}"
            expect(group.order in ORDERS, f"{where}/order", orders, group.order)
    if calibration is not None and measurement is not None and a is not None:
        count = a.frames - int(np.sum(measurement.is_background_frame))
        for name in ("size", "positions", "offset_fields"):
            value = getattr(calibration, name)
            if value is not None:
                n = math.prod(map(int, value)) if name == "size" else len(value)
                label = CalibrationInfo.__dataclass_fields__[name].metadata["name"]
                where = f"/calibration/{label}"
                expect(n == count, where, f"{count} foreground frames in all", n)
    if image is not None and file.image_data is not None:
        data = file.image_data
        expect(len(data.shape) == 3, data.dataset, "shape [Q, P, S]", list(data.shape))
        expect(data.dtype.kind in "iufc", data.dataset, "numbers", data.dtype)
        if image.size is not None and len(data.shape) == 3:
            n = math.prod(map(int, image.size))
            where = "/reconstruction/size"
            expect(n == data.shape[1], where, f"{data.shape[1]} voxels in all", n)
    return problems


def _measurement_contradictions(file, sizes, full) -> list[str]:
    problems, expect = _expectations()
    m, data = file.measurement, file.data
    selection, order, kind = (
        m.frequency_selection,
        m.frame_permutation,
        m.sparsity_transformation,
    )
    if selection is not None:
        distinct = len(np.unique(selection)) == len(selection) > 0
        inside = distinct and selection.min() >= 0 and selection.max() < full
        where = "/measurement/frequencySelection"
        expect(inside, where, f"distinct indices within 1 to {full}", "others")
        where = "/measurement/isFourierTransformed"
        expect(m.is_fourier_transformed, where, "1 with a selection", 0)
    if order is not None:
        permutes = np.array_equal(np.sort(order), np.arange(len(order)))
        where = "/measurement/framePermutation"
        expect(permutes, where, f"a permutation of 1 to {len(order)}", "none")
    if data is None:
        return problems
    kinds = "fiu" if data.is_pairs or not m.is_fourier_transformed else "c"
    name = "real numbers" if kinds == "fiu" else "complex numbers"
    expect(data.dtype.kind in kinds, data.dataset, name, data.dtype)
    if problems:
        return problems
    full_shape = [sizes[axis] for axis in data.axes] + [2] * data.is_pairs
    if kind is None:
        shape = f"[{', '.join(data.axes)}] = {full_shape}"
        expect(list(data.shape) == full_shape, data.dataset, shape, list(data.shape))
        return problems
    where = "/measurement/sparsityTransformation"
    expect(kind in TRANSFORMS, where, f"one of {', '.join(TRANSFORMS)}", repr(kind))
    where = "/measurement/isFastFrameAxis"
    expect(data.axes == "JCKN", where, "1 for compressed Fourier rows", 0)
    size = getattr(file.calibration, "size", None)
    expect(size is not None, "/calibration/size", "three counts to decompress", "none")
    where, background = "/measurement/isBackgroundFrame", m.is_background_frame
    last = not np.any(background[:-1] > background[1:])
    expect(last, where, "background frames last in a compressed file", "others")
    coefficients = data.shape[-1] - int(np.sum(background)) if data.shape else 0
    rows = full_shape[:-1]
    fits = list(data.shape[:-1]) == rows and coefficients >= 1
    words = f"[J, C, K, B + E] = {[*rows, 'B + E']}"
    expect(fits, data.dataset, words, list(data.shape))
    indices = data.indices_shape
    where = "/measurement/subsamplingIndices"
    expect(
        indices is not None and list(indices) == [*rows, coefficients],
        where,
        f"[J, C, K, B] = {[*rows, coefficients]}",
        "no dataset" if indices is None else list(indices),
    )
    return problems
