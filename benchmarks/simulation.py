"""Simulation against named peers on the same work, in one process: JSON lines of ratios.

    python benchmarks/simulation.py

(i)  system matrix 3264 x 16384, tensor model: JAX against the same formula in NumPy,
     evaluated in the same blocks of samples, float32;
(ii) voltages of 64 phantoms of 128 x 128 from a cached matrix: system_matrix.forward
     against the bare matrix product of that size, in JAX and in NumPy.

Medians of 5 (NumPy's matrix: of 3), compilation excluded, peers in turns.
"""

import json
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from mpi_jax import physics, scanner, system_matrix


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


def tell(case: str, found: dict, ours: str, error: float) -> None:
    line = {"case": case, "seconds": {n: round(v, 4) for n, v in found.items()}}
    line["times faster than"] = {
        n: round(v / found[ours], 2) for n, v in found.items() if n != ours
    }
    line |= {"relative difference": error, "jax": jax.__version__}
    line["device"] = f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores"
    print(json.dumps(line), flush=True)


def main() -> None:
    s = scanner.paper()
    matrix = system_matrix.simulate(s)
    reference = numpy_matrix(s)
    error = np.linalg.norm(matrix - reference) / np.linalg.norm(reference)
    found = medians(
        {
            "mpi_jax": lambda: system_matrix.simulate(s),
            "numpy": lambda: numpy_matrix(s),
        },
        {"mpi_jax": 5, "numpy": 3},
    )
    tell("system matrix 3264 x 16384, tensor, float32", found, "mpi_jax", float(error))

    images = np.random.default_rng(0).random((64, 128, 128), np.float32)
    flat = jnp.asarray(images.reshape(64, -1).T)
    bare = jax.jit(lambda a, b: a @ b)
    table = matrix.reshape(-1, s.grid.size)
    host, host_flat = np.asarray(table), np.asarray(flat)
    peers = {
        "mpi_jax": lambda: system_matrix.forward(matrix, images),
        "bare JAX product": lambda: bare(table, flat),
        "bare NumPy product": lambda: host @ host_flat,
    }
    u, product = system_matrix.forward(matrix, images), (host @ host_flat).T
    error = np.linalg.norm(u.reshape(64, -1) - product) / np.linalg.norm(product)
    found = medians(peers, dict.fromkeys(peers, 5))
    tell("voltages of 64 phantoms from a cached matrix", found, "mpi_jax", float(error))

    single = {
        "mpi_jax, cached matrix": lambda: system_matrix.forward(matrix, images),
        "mpi_jax, matrix-free": lambda: physics.voltage(s, images),
    }
    found = medians(single, dict.fromkeys(single, 5))
    tell("the same without a matrix", found, "mpi_jax, cached matrix", 0.0)


if __name__ == "__main__":
    main()
