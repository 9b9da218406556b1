"""Simulation against named peers on the same work, in one process: JSON lines of ratios.

    python benchmarks/simulation.py [--large]

(i)   system matrix 3264 x 16384, tensor model: JAX against the same formula in NumPy,
      float32, blocks of samples;
(ii)  the same in mpirf mode, whose kernel both channels share, against NumPy in blocks
      with the fastest form of the kernel, and as one would write it down;
(iii) voltages of 64 phantoms of 128 x 128: system_matrix.forward against the bare matrix
      product of that size in JAX and NumPy, without a matrix, and, for one phantom, from
      the formula in NumPy (mpirf mode, 64 times its time);
(iv)  with --large: 3000 rows x 37^3 voxels of a 3D calibration, chosen, simulated, and 10
      frames reconstructed: seconds and peak memory.

Medians of 5, compilation excluded, peers in turns.
"""

import json
import os
import resource
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mpi_jax import phantoms, physics, scanner, system_matrix
from mpi_jax.reconstruct import kaczmarz


def numpy_matrix(s: scanner.Scanner) -> np.ndarray:
    """m beta (f dB/dt + q xi (xi . dB/dt)) in NumPy, blocks of samples, float32."""
    field, rate = (np.asarray(a, np.float32) for a in s.drive_field.field())
    selection = np.asarray(s.grid.positions() @ s.selection_field.gradient, np.float32)
    beta, scale = np.float32(s.tracer.beta), np.float32(s.tracer.moment * s.tracer.beta)
    out = np.empty((2, s.samples, s.grid.size), np.float32)
    for i in range(0, s.samples, 64):
        xi = beta * (field[i : i + 64, None, :] + selection[None])
        z = np.sum(xi**2, axis=-1)
        # Clipped where the closed form cancels; that costs accuracy, not time.
        x = np.sqrt(np.maximum(z, np.float32(1e-2)))
        f = (1 / np.tanh(x) - 1 / x) / x
        q = (1 / x**2 - 1 / np.sinh(np.minimum(x, 40)) ** 2 - f) / x**2
        along = q * np.sum(xi * rate[i : i + 64, None, :], axis=-1)
        for c in range(2):
            out[c, i : i + 64] = scale * (
                f * rate[i : i + 64, None, c] + along * xi[..., c]
            )
    return out


def numpy_mpirf(s: scanner.Scanner, concentration=None) -> np.ndarray:
    """m beta L' dB/dt in NumPy: the matrix [2, V, P], or voltages [2, V] of an image.

    L'(x) = 1 / x^2 - 1 / sinh^2 x, with 1 / sinh^2 x = 4 e / (1 - e)^2, e = exp(-2 x),
    NumPy's fastest way to it. Two axes do: nothing drives z and the slice lies in z = 0.
    """
    field, rate = (np.asarray(a, np.float32) for a in s.drive_field.field())
    selection = np.asarray(s.grid.positions() @ s.selection_field.gradient, np.float32)
    beta, scale = np.float32(s.tracer.beta), np.float32(s.tracer.moment * s.tracer.beta)
    shape = (2, s.samples, s.grid.size)
    out = np.empty(shape if concentration is None else shape[:2], np.float32)
    for i in range(0, s.samples, 64):
        block = slice(i, i + 64)
        x = sum((beta * (field[block, None, k] + selection[:, k])) ** 2 for k in (0, 1))
        # Clipped where the closed form cancels; that costs accuracy, not time.
        x = np.sqrt(np.maximum(x, np.float32(1e-2)))
        e = np.exp(-2 * x)
        slope = scale * (1 / x**2 - 4 * e / (1 - e) ** 2)
        if concentration is not None:
            slope = slope @ concentration
        for c in range(2):
            part = rate[block, c] if slope.ndim == 1 else rate[block, c, None]
            np.multiply(slope, part, out=out[c, block])
    return out


def numpy_plain(s: scanner.Scanner) -> np.ndarray:
    """The same matrix as one would write the formula down, whole arrays, float32."""
    field, rate = (np.asarray(a, np.float32) for a in s.drive_field.field())
    selection = np.asarray(s.grid.positions() @ s.selection_field.gradient, np.float32)
    beta, scale = np.float32(s.tracer.beta), np.float32(s.tracer.moment * s.tracer.beta)
    x = beta * np.linalg.norm(field[:, None, :] + selection[None], axis=-1)
    x = np.clip(x, np.float32(0.1), np.float32(40))
    slope = 1 / x**2 - 1 / np.sinh(x) ** 2
    return scale * slope[None] * rate.T[:2, :, None]


def medians(peers: dict, repeat: dict) -> dict[str, float]:
    """Median seconds of each peer, taken in turns after a first call each."""
    seconds = {name: [] for name in peers}
    for peer in peers.values():
        jax.block_until_ready(peer())
    for n in range(max(repeat.values())):
        for name, peer in peers.items():
            if n < repeat[name]:
                start = time.perf_counter()
                jax.block_until_ready(peer())
                seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(times)) for name, times in seconds.items()}


def tell(case: str, seconds: dict, ours: str, error: float) -> None:
    line = {"case": case, "seconds": {n: round(v, 4) for n, v in seconds.items()}}
    line["times faster than"] = {
        n: round(v / seconds[ours], 2) for n, v in seconds.items() if n != ours
    }
    line |= {"relative difference": error, "jax": jax.__version__}
    line["device"] = f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores"
    print(json.dumps(line), flush=True)


def relative(a, b) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def large() -> None:
    """Rows of a 3D system matrix at Open MPI's size: select, simulate, reconstruct."""
    s = scanner.open_mpi_3d(37, field_of_view=(37e-3, 37e-3, 18.5e-3))
    start, work = time.perf_counter(), time.process_time()
    seconds = {}

    def lap(name, value):
        jax.block_until_ready(value)
        seconds[name] = round(time.perf_counter() - start - sum(seconds.values()), 1)
        return value

    band = system_matrix.frequency_selection(s, min_frequency=80e3)
    energies = lap("row energies", system_matrix.row_energies(s, stride=5))
    keep = system_matrix.strongest(energies, 3000, band)
    rows = lap("simulate rows", system_matrix.simulate_rows(s, keep))
    rows = rows / jnp.max(jnp.abs(rows))
    # Ten frames of the cone phantom, stronger and stronger, at 40 dB.
    truth = phantoms.open_mpi.phantom("shape", s.grid) / phantoms.open_mpi.FILLING
    truth = np.linspace(0.5, 1, 10)[:, None, None, None] * truth
    u = system_matrix.forward(rows, jnp.asarray(truth, jnp.float32))
    noise = jax.random.normal(jax.random.key(0), (2, *u.shape)) * jnp.sqrt(
        jnp.mean(jnp.abs(u) ** 2) / 2e4
    )
    u = u + jax.lax.complex(*noise)
    c = lap("Kaczmarz, 10 frames", kaczmarz.solve(rows, u, lam=1e-3, iterations=3))
    image = np.asarray(c).reshape(truth.shape)
    line = {
        "case": f"3D: rows {rows.shape} complex64, 10 frames, 3 sweeps, compilation "
        "included",
        "seconds": {**seconds, "in all": round(time.perf_counter() - start, 1)},
        "CPU seconds": round(time.process_time() - work, 1),
        "correlation with the phantom": round(
            float(np.corrcoef(image[-1].ravel(), truth[-1].ravel())[0, 1]), 3
        ),
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    line["peak memory of the process, GB"] = round(peak / 1e9, 2)
    line["rows, GB"] = round(rows.nbytes / 1e9, 2)
    print(json.dumps(line), flush=True)


def main() -> None:
    if sys.argv[1:] == ["--large"]:
        return large()
    s = scanner.paper()
    cases = {
        "tensor": {"numpy": numpy_matrix},
        "mpirf": {"numpy, tuned": numpy_mpirf, "numpy, as written down": numpy_plain},
    }
    for model, numpy in cases.items():
        matrix = system_matrix.simulate(s, model)
        error = relative(matrix, next(iter(numpy.values()))(s))
        peers = {"mpi_jax": lambda model=model: system_matrix.simulate(s, model)}
        peers |= {name: partial(peer, s) for name, peer in numpy.items()}
        seconds = medians(peers, dict.fromkeys(peers, 5))
        tell(f"system matrix 3264 x 16384, {model}, float32", seconds, "mpi_jax", error)

    images = np.random.default_rng(0).random((64, 128, 128), np.float32)
    flat = jnp.asarray(images.reshape(64, -1).T)
    bare = jax.jit(lambda a, b: a @ b)
    table = matrix.reshape(-1, s.grid.size)
    host, host_flat = np.asarray(table), np.asarray(flat)
    peers = {
        "mpi_jax": lambda: system_matrix.forward(matrix, images),
        "bare JAX product": lambda: bare(table, flat),
        "bare NumPy product": lambda: host @ host_flat,
        "mpi_jax, matrix-free": lambda: physics.voltage(s, images, "mpirf"),
        "formula in NumPy, 1 of 64": lambda: numpy_mpirf(s, host_flat[:, 0]),
    }
    u = np.asarray(system_matrix.forward(matrix, images))
    error = relative(u[0], numpy_mpirf(s, host_flat[:, 0]))
    seconds = medians(peers, dict.fromkeys(peers, 5))
    seconds["formula in NumPy, 64 times one"] = 64 * seconds.pop(
        "formula in NumPy, 1 of 64"
    )
    tell(
        "voltages of 64 phantoms from a cached matrix, mpirf", seconds, "mpi_jax", error
    )


if __name__ == "__main__":
    main()
