"""Systems with known singular values and noisy frames, their ridge solution, a convolution."""

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from mpi_jax.reconstruct import operators


def system(complex_rows=False, rows=20, voxels=12, seed=0):
    """S with singular values from 1 to 1e-1 and two noisy frames."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        part = rng.normal(size=shape)
        return part + 1j * rng.normal(size=shape) if complex_rows else part

    U, _ = np.linalg.qr(normal(rows, min(rows, voxels)))
    V, _ = np.linalg.qr(normal(voxels, min(rows, voxels)))
    S = (U * np.geomspace(1, 1e-1, U.shape[1])) @ V.conj().T
    u = rng.normal(size=(2, voxels)) @ S.T
    return S, u + 0.1 * normal(*u.shape)


def stacked(S, u):
    """Real rows: real above imaginary parts."""
    return np.concatenate([S.real, S.imag]), np.concatenate([u.real, u.imag], -1)


def ridge(S, u, lam):
    gram = S.conj().T @ S + lam * np.eye(S.shape[1])
    return np.linalg.solve(gram, S.conj().T @ u.T).T


def circulant(kernel):
    """Convolution by FFT, and the matrix that it stands for."""
    size = len(kernel)

    def forward(spectrum, c):
        return jnp.fft.ifft(
            jnp.fft.fft(c) * spectrum.reshape((1,) * (c.ndim - 1) + (-1,))
        )

    def adjoint(spectrum, u):
        return forward(spectrum.conj(), u)

    spectrum = jnp.fft.fft(jnp.asarray(kernel))
    matrix = np.stack([np.roll(kernel, n) for n in range(size)], axis=1)
    functions = Partial(forward, spectrum), Partial(adjoint, spectrum)
    return operators.LinearOperator(*functions, (size, size)), matrix


def adjoint_holds(operator, seed=0, complex_rows=False):
    rng = np.random.default_rng(seed)
    c, u = (rng.normal(size=(3, n)) for n in operator.shape[::-1])
    if complex_rows:
        c, u = c + 1j * rng.normal(size=c.shape), u + 1j * rng.normal(size=u.shape)
    left = np.sum(operator.forward(c) * u.conj(), -1)
    right = np.sum(c * np.conj(operator.adjoint(u)), -1)
    np.testing.assert_allclose(left, right, rtol=1e-11)
