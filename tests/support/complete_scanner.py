"""A scanner with everything on."""

import numpy as np

from mpi_jax import scanner


def complete(shape=(3, 3), *, oversample=2):
    """A short 2D scan with everything that is off by default."""
    rng = np.random.default_rng(11)
    pixels = shape[0] * shape[1]
    coil = np.eye(2, 3)[..., None] + 0.2 * rng.standard_normal((2, 3, pixels))
    transfer = rng.standard_normal((2, 2, 41)) + 1
    return scanner.Scanner(
        scanner.Tracer(25e-9, diameter_spread=0.1, relaxation_time=2e-6),
        scanner.DriveField((12e-3, 9e-3, 0.0), (16, 5, 0), base_frequency=4e5),
        scanner.SelectionField(np.diag([-2.0, -2.0, 4.0])),
        scanner.Receiver(coil, "si", transfer[0] + 1j * transfer[1], oversample),
        scanner.Grid(shape, (12e-3, 9e-3, 1e-3)),
    )
