"""Kaczmarz row by row, as the books have it: cyclic, random and greedy."""

import jax
import numpy as np


def row_loop(
    S, u, lam, iterations, real=True, nonnegative=True, order=None, unprojected=None
):
    """The definition, one frame, one row at a time; lam absolute.

    order(t, c, v) gives the rows of sweep t; one that looks at c and v sees them move.
    unprojected(c) is shown each sweep's c before its projection.
    """
    c, v = np.zeros(S.shape[1], S.dtype), np.zeros(len(S), S.dtype)
    for t in range(iterations):
        for i in range(len(S)) if order is None else order(t, c, v):
            energy = np.linalg.norm(S[i]) ** 2
            if energy > 0:
                alpha = (u[i] - S[i] @ c - np.sqrt(lam) * v[i]) / (energy + lam)
                c += alpha * S[i].conj()
                v[i] += np.sqrt(lam) * alpha
        if unprojected is not None:
            unprojected(c)
        if nonnegative:
            c[~(c.real > 0)] = 0
        if real:
            c[:] = c.real
    return c.real if real else c


def randomised_rows(S, key, count):
    """The `count` first of a race with speeds ||S_i||^2, for `row_loop`."""
    energy = np.linalg.norm(S, axis=1) ** 2

    def rows(t, c, v):
        noise = jax.random.exponential(jax.random.fold_in(key, t), energy.shape)
        return np.argsort(noise[energy > 0] / energy[energy > 0])[:count]

    used = np.flatnonzero(energy)
    return lambda t, c, v: used[rows(t, c, v)]


def greedy_rows(S, u, lam, key, count, theta):
    """At each step the first of a race with speeds |r_i|^2 among the distant rows."""
    energy = np.linalg.norm(S, axis=1) ** 2
    used = np.flatnonzero(energy)
    total = np.sum(energy[used] + lam)

    def rows(t, c, v):
        for step in range(count):
            power = np.abs(u - S @ c - np.sqrt(lam) * v)[used] ** 2
            distance = power / (energy[used] + lam)
            bound = theta * distance.max() + (1 - theta) * power.sum() / total
            step_key = jax.random.fold_in(jax.random.fold_in(key, t), step)
            noise = np.asarray(jax.random.exponential(step_key, energy.shape))[used]
            candidates = np.flatnonzero(distance >= bound)
            yield used[candidates[np.argmin(noise[candidates] / power[candidates])]]

    return rows
