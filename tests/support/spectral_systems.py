"""Small systems with known singular values, and their exact non-negative images."""

import numpy as np
import pytest

SCALE = 3e-10  # voltages of real scanners are about this small


def system(rows=40, voxels=24, seed=0):
    """A matrix with singular values from 1 to 1e-2 times SCALE, and two frames."""
    rng = np.random.default_rng(seed)
    U, _ = np.linalg.qr(rng.normal(size=(rows, min(rows, voxels))))
    V, _ = np.linalg.qr(rng.normal(size=(voxels, min(rows, voxels))))
    S = SCALE * (U * np.geomspace(1, 1e-2, U.shape[1])) @ V.T
    u = rng.normal(size=(2, voxels)) @ S.T
    return S, u + 0.05 * SCALE * rng.normal(size=u.shape)


def nnls(S, u):
    """Exact active-set solution, frame by frame."""
    optimize = pytest.importorskip("scipy.optimize")
    norm = np.linalg.norm(S, 2)
    return np.stack([optimize.nnls(S / norm, frame / norm)[0] for frame in u])
