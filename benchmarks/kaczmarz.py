"""Blocked Kaczmarz in JAX against row loops, in one process; prints JSON lines.

    python benchmarks/kaczmarz.py [--rows 2500] [--voxels 1369] [--iterations 20]

Peers: `numpy`, the row loop with one BLAS product per row; with Numba, if it is there,
`numba`, the strict row loop, and `numba_fastmath`, the fastest row loop we know: real
and imaginary parts apart, so that both products of a row are vector instructions, sums
in any order. Peers take frames one by one, JAX as one batch;
a peer's cost per frame does not depend on the number of frames, so it runs one frame.
Counted: everything from arrays in memory to the result, with row energies, argument
checks, Gram matrices and triangles. Not counted: compilation and a first call.
Repetitions alternate. `times_faster_per_frame` is the median of the ratios of each
repetition, so that a load which lasts longer than one repetition cancels; the ratio of
processor time (all threads) is given beside it, for a machine with other work.
"""

import argparse
import json
import os
import time

import jax
import numpy as np

from mpi_jax.reconstruct import kaczmarz

try:
    import numba
except ImportError:
    numba = None


def numpy_rows(S, u, lam, iterations):
    """The textbook row loop, real and non-negative after each sweep."""
    conjugate = S.conj()
    energy = np.sum(np.abs(S) ** 2, axis=1)
    root = np.sqrt(lam)
    c, v = np.zeros(S.shape[1], S.dtype), np.zeros(len(S), S.dtype)
    for _ in range(iterations):
        for i in range(len(S)):
            alpha = (u[i] - S[i] @ c - root * v[i]) / (energy[i] + lam)
            c += alpha * conjugate[i]
            v[i] += root * alpha
        c = np.maximum(c.real, 0).astype(S.dtype)
    return c.real


def scalar_rows(S, u, lam, iterations):
    """The same with scalar loops, for Numba."""
    root = np.float32(np.sqrt(lam))
    c, v = np.zeros(S.shape[1], np.complex64), np.zeros(len(S), np.complex64)
    energy = np.zeros(len(S), np.float32)
    for i in range(S.shape[0]):
        for n in range(S.shape[1]):
            energy[i] += S[i, n].real ** 2 + S[i, n].imag ** 2
    for _ in range(iterations):
        for i in range(S.shape[0]):
            product = np.complex64(0)
            for n in range(S.shape[1]):
                product += S[i, n] * c[n]
            alpha = (u[i] - product - root * v[i]) / (energy[i] + lam)
            for n in range(S.shape[1]):
                c[n] += alpha * np.conj(S[i, n])
            v[i] += root * alpha
        for n in range(S.shape[1]):
            c[n] = max(c[n].real, np.float32(0))
    return c.real


def split_rows(rows, u, lam, iterations):
    """The same on (Re, Im) of the rows, for Numba with fastmath."""
    re, im = rows
    voxels = re.shape[1]
    root = np.float32(np.sqrt(lam))
    energy = np.zeros(len(re), np.float32)
    for i in range(len(re)):
        for n in range(voxels):
            energy[i] += re[i, n] * re[i, n] + im[i, n] * im[i, n]
    c_re, c_im = np.zeros(voxels, np.float32), np.zeros(voxels, np.float32)
    v = np.zeros(len(re), np.complex64)
    for _ in range(iterations):
        for i in range(len(re)):
            row_re, row_im = re[i], im[i]
            real = imaginary = np.float32(0)
            for n in range(voxels):
                real += row_re[n] * c_re[n] - row_im[n] * c_im[n]
                imaginary += row_re[n] * c_im[n] + row_im[n] * c_re[n]
            r = u[i] - np.complex64(complex(real, imaginary)) - root * v[i]
            alpha = r / (energy[i] + lam)
            a, b = alpha.real, alpha.imag
            for n in range(voxels):
                c_re[n] += a * row_re[n] + b * row_im[n]
                c_im[n] += b * row_re[n] - a * row_im[n]
            v[i] += root * alpha
        for n in range(voxels):
            c_re[n] = max(c_re[n], np.float32(0))
            c_im[n] = np.float32(0)
    return c_re


def interleaved(functions, repeats):
    """Seconds {name: [repeats, 2]}, wall and processor, and results, taken in turns."""
    results = {name: np.asarray(f()) for name, f in functions.items()}
    seconds = {name: np.zeros((repeats, 2)) for name in functions}
    for row in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter(), time.process_time()
            jax.block_until_ready(function())
            seconds[name][row] = time.perf_counter(), time.process_time()
            seconds[name][row] -= start
    return seconds, results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2500)
    parser.add_argument("--voxels", type=int, default=1369)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    shape = (args.rows, args.voxels)
    S = (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)
    truth = np.maximum(rng.normal(size=(max(args.frames), args.voxels)), 0)
    u = truth @ S.T
    u += rng.normal(size=u.shape) + 1j * rng.normal(size=u.shape)
    u = u.astype(np.complex64)
    lam = np.float32(1e-2 * np.sum(np.abs(S) ** 2) / args.voxels)

    matrix = jax.numpy.asarray(S)
    peers = {"numpy": (numpy_rows, S)}
    if numba is not None:
        apart = np.ascontiguousarray(S.real), np.ascontiguousarray(S.imag)
        peers["numba"] = numba.njit(scalar_rows), S
        peers["numba_fastmath"] = numba.njit(fastmath=True)(split_rows), apart
    for frames in args.frames:
        batch = jax.numpy.asarray(u[:frames])
        functions = {
            "jax": lambda batch=batch: kaczmarz.solve(
                matrix, batch, lam=1e-2, iterations=args.iterations
            )
        }
        for name, (peer, rows) in peers.items():
            functions[name] = lambda peer=peer, rows=rows: peer(
                rows, u[0], lam, args.iterations
            )
        seconds, results = interleaved(functions, args.repeats)
        for name in peers:
            error = np.linalg.norm(results["jax"][0] - results[name])
            error = float(error / np.linalg.norm(results[name]))
            if not error < 1e-4:
                raise SystemExit(f"{name} and JAX disagree: {error:.1e}")
            ratio = np.median(seconds[name] * frames / seconds["jax"], axis=0)
            record = {
                "benchmark": "kaczmarz",
                "rows": args.rows,
                "voxels": args.voxels,
                "iterations": args.iterations,
                "dtype": "complex64",
                "frames": frames,
                "peer": name,
                "times_faster_per_frame": float(ratio[0]),
                "times_faster_in_processor_time": float(ratio[1]),
                "jax_seconds_per_frame": float(np.median(seconds["jax"][:, 0]))
                / frames,
                "peer_seconds_per_frame": float(np.median(seconds[name][:, 0])),
                "relative_difference": error,
                "repeats": args.repeats,
                "jax": jax.__version__,
                "device": jax.devices()[0].device_kind,
                "cores": os.cpu_count(),
            }
            print(
                json.dumps(
                    {
                        key: float(f"{value:.3g}")
                        if isinstance(value, float)
                        else value
                        for key, value in record.items()
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
