"""From two files to one system: joint background, and what can't be."""

import dataclasses

import numpy as np
import pytest
from support.two_files import (
    EMPTY,
    FLAT,
    C,
    K,
    S,
    U,
    calibration,
    measurement,
    same,
    spectra,
)

from mpi_jax import preprocess, scanner
from mpi_jax.configs import Preprocessing

pytestmark = pytest.mark.usefixtures("x64")


def test_joint_background_is_the_joint_minimiser(plain):
    """Normal equations of c alone equal those of c and d with d eliminated."""
    for penalty, weigh in ((0.0, False), (0.3, True)):
        settings = Preprocessing(
            joint_background=3, background_penalty=penalty, row_norm=weigh
        )
        system = preprocess.prepare(*plain, settings)
        rows, data = S.reshape(C * K, -1) / 1e-9, spectra(U[~EMPTY].mean(1)) / 1e-9
        empty = spectra(U[EMPTY].mean(1))
        if weigh:
            w = 1 / np.linalg.norm(rows, axis=1)
            rows, data, empty = w[:, None] * rows, w * data, w * empty
        left, s, _ = np.linalg.svd(empty.T, full_matrices=False)
        B = left[:, :3] * np.sqrt(s[:3] / s[0])
        # The Schur complement of d in the normal equations of [S, B].
        inner = np.linalg.inv(B.conj().T @ B + penalty * np.eye(3))
        project = np.eye(C * K) - B @ inner @ B.conj().T
        made = system.system_matrix.conj().T @ np.asarray(system.measurement).T
        gram = system.system_matrix.conj().T @ system.system_matrix
        wanted = rows.conj().T @ project @ rows
        ratio = np.linalg.norm(gram) / np.linalg.norm(wanted)
        np.testing.assert_allclose(
            gram, wanted * ratio, atol=1e-10 * np.abs(gram).max()
        )
        right = rows.conj().T @ project @ data.T * ratio
        np.testing.assert_allclose(made, right, atol=1e-10 * np.abs(right).max())
        assert system.weights is None


# --- What can't be


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"min_frequency": 2e6},
            "min_frequency|the frequency selection leaves no rows",
        ),
        ({"stop_bands": ((0.0, 2e6),)}, "the frequency selection leaves no rows"),
        ({"channels": (2,)}, "channels: expected numbers from 0 to 1"),
        ({"snr_threshold": 2.0}, "expected an SNR or background frames, found none"),
        ({"num_rows": 2}, "expected an SNR or background frames, found none"),
        ({"plane": 1}, "plane: expected 0 to 0, got 1"),
        ({"shape": (2, 2, 2)}, "shape: expected 2 numbers"),
        (
            {"matrix_background": "mean"},
            "c.mdf: expected background frames, found none",
        ),
        (
            {"matrix_background": "interpolated"},
            "expected background frames, found none",
        ),
        ({"frames": (6,)}, "frames: expected numbers from 0 to 5"),
        ({"frame_average": 4}, "frame_average: expected a divisor of 6 frames, got 4"),
        ({"periods": (0, 7)}, r"periods: expected .* up to 6"),
        ({"period_average": 4}, "period_average: expected a divisor of 6 periods"),
        ({"transfer_function": True}, "transfer_function: expected one in"),
        ({"channel_weights": (1.0,)}, "channel_weights: expected 2 numbers"),
        (
            {"channel_weights": (0.0, 1.0), "channels": (0,)},
            "channel_weights: expected one > 0",
        ),
        ({"background": "external"}, "background: expected a file"),
        ({"joint_background": 5}, "joint_background: expected at most 4"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_refusals(plain, settings, message):
    with pytest.raises(ValueError, match=message):
        preprocess.prepare(*plain, Preprocessing(**settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"background": "mean"},
        {"background": "interpolated"},
        {"whitening": True},
        {"joint_background": 1},
    ],
)
def test_background_needs_background_frames(tmp_path, plain, settings):
    b = measurement(tmp_path / "n.mdf", U)
    with pytest.raises(ValueError, match="background frames, found"):
        preprocess.prepare(plain[0], b, Preprocessing(**settings))


def test_files_that_do_not_go_together(tmp_path, plain):
    a, b = plain
    with pytest.raises(ValueError, match="background: expected a file with"):
        preprocess.prepare(a, b, background=b)
    scan = dataclasses.replace(
        FLAT, selection_field=scanner.SelectionField(np.diag([-2.0, -2.0, 4.0]))
    )
    other = measurement(tmp_path / "g.mdf", U[:1], scan=scan)
    with pytest.raises(ValueError, match="doesn't fit .*gradient: system matrix"):
        preprocess.prepare(a, other)
    for name in ("", "grad", "bandwidth"):
        with pytest.raises(ValueError, match="gradient"):
            preprocess.prepare(a, other, Preprocessing(tolerate=(name,)))
    system = preprocess.prepare(a, other, Preprocessing(tolerate=("gradient",)))
    same(system, S.reshape(C * K, -1), spectra(U[:1].mean(1)))
    external = measurement(tmp_path / "g.mdf", U[:1], scan=scan)
    with pytest.raises(ValueError, match=r"doesn't fit .*g\.mdf: gradient"):
        preprocess.prepare(a, b, Preprocessing(background="external"), external)
    only = measurement(tmp_path / "o.mdf", U[:2], [True, True])
    with pytest.raises(ValueError, match="expected foreground frames, found none"):
        preprocess.prepare(a, only)
    with pytest.raises(ValueError, match="rows: expected finite numbers"):
        preprocess.prepare(calibration(tmp_path / "z.mdf", 0 * S), b)
    quiet = U.copy()
    quiet[EMPTY] = quiet[0]
    still = measurement(tmp_path / "q.mdf", quiet, EMPTY)
    with pytest.raises(ValueError, match="whitening: expected noise in every row"):
        preprocess.prepare(a, still, Preprocessing(whitening=True))
