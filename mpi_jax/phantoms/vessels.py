"""Vessel trees after Murray's law."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from mpi_jax.phantoms.digits import strokes
from mpi_jax.phantoms.items import (
    BRANCHES,
    DRAWS,
    SPLITS,
    STEPS,
    Draws,
    Proposal,
    mm,
    turned,
)


def murray(share: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Radius and angle [rad] of a branch that carries `share` of its parent's flow.

    Relative to the parent's radius. Murray's law (PNAS 12, 207, 1926): flow goes with
    r^3, so r_p^3 = r_1^3 + r_2^3, and least work gives the angle to the parent,
    cos a_1 = (r_p^4 + r_1^4 - r_2^4) / (2 r_p^2 r_1^2).

    Examples:
      >>> radius, angle = murray(jnp.array(0.5))
      >>> f"{radius:.3f}, {math.degrees(angle):.1f} degrees"
      '0.794, 37.5 degrees'
    """
    radius = jnp.cbrt(share)
    sibling = jnp.cbrt(1 - share)
    cosine = (1 + radius**4 - sibling**4) / (2 * radius**2)
    return radius, jnp.arccos(jnp.clip(cosine, -1, 1))


class _Branch(NamedTuple):
    """How branches leave their parents; all have a leading axis [BRANCHES]."""

    parent: Array  # earlier branch; itself: a root
    node: Array  # of the parent at which it leaves
    turn: Array  # angle to the parent [rad]; absolute for a root
    origin: Array  # [2] of a root
    ratio: Array  # of the radius to the parent's; absolute for a root
    length: Array
    bend: Array  # [STEPS] heading relative to the first
    taper: Array  # relative loss of radius from start to end


def _grow(branches: _Branch):
    """Nodes [BRANCHES, STEPS + 1, 2] and radii there [BRANCHES, STEPS + 1]."""

    def grow(tree, item):
        number, branch = item
        root = branch.parent == number
        x, y, heading, radius = tree[branch.parent, branch.node]
        heading = jnp.where(root, 0, heading) + branch.turn
        radius = jnp.where(root, 1, radius) * branch.ratio
        radius = radius * (1 - branch.taper * jnp.linspace(0, 1, STEPS + 1))
        headings = heading + branch.bend
        step = branch.length / STEPS * turned(jnp.array([[1.0, 0.0]]), headings)
        origin = jnp.where(root, branch.origin, jnp.stack([x, y]))
        nodes = jnp.concatenate([jnp.zeros((1, 2)), jnp.cumsum(step, axis=0)])
        nodes = nodes + origin[None]
        headings = jnp.append(headings[:1], headings)
        state = jnp.concatenate([nodes, headings[:, None], radius[:, None]], axis=-1)
        return tree.at[number].set(state), None

    tree = jnp.zeros((BRANCHES, STEPS + 1, 4))
    tree, _ = lax.scan(grow, tree, (jnp.arange(BRANCHES), branches))
    return tree[..., :2], tree[..., 3]


def _forks(draw):
    """One or two roots that fork by Murray's law; headings are Ornstein-Uhlenbeck."""
    number = jnp.arange(BRANCHES)
    roots = draw.integer(1, 3)
    root = number < roots
    parent = jnp.where(root, number, (number - roots) // 2)  # breadth first
    depth = (
        (number >= roots).astype(int) + (number >= 3 * roots) + (number >= 7 * roots)
    )
    # Twins share their parent's numbers: one takes `share` to one side, one the rest.
    twin = (number - roots) % 2
    share = draw.uniform(0.5, 0.9, (BRANCHES,))[parent]
    side = jnp.where(draw.chance(0.5, (BRANCHES,))[parent], 1, -1)
    ratio, angle = murray(jnp.where(twin == 0, share, 1 - share))
    toward = draw.uniform(-math.pi, math.pi) + jnp.where(number == 1, 2.2, 0.0)
    heading = toward + 0.4 * draw.normal((BRANCHES,))
    start = -0.35 * jnp.stack([jnp.cos(toward), jnp.sin(toward)], axis=-1)
    widest = draw.log_uniform(mm(0.2), mm(0.8), (BRANCHES,))
    length = 0.34 * 0.82**depth * draw.uniform(0.65, 1.25, (BRANCHES,))
    # d theta = -kappa theta ds + sigma dW, exactly, on the nodes of a branch.
    decay = draw.uniform(0.75, 0.97)
    lag = np.arange(STEPS)[:, None] - np.arange(STEPS)[None]
    kernel = jnp.where(lag >= 0, decay ** np.maximum(lag, 0), 0)
    noise = draw.uniform(0.08, 0.32) * draw.normal((BRANCHES, STEPS))
    branches = _Branch(
        parent=parent,
        node=jnp.full(BRANCHES, STEPS),
        turn=jnp.where(root, heading, jnp.where(twin == 0, 1, -1) * side * angle),
        origin=start + 0.1 * draw.normal((BRANCHES, 2)),
        ratio=jnp.where(root, widest, ratio),
        length=length,
        bend=noise @ kernel.T,
        taper=draw.uniform(0.0, 0.2, (BRANCHES,)),
    )
    family = jnp.where(roots == 1, 0, number)
    for _ in range(3):  # down to the root
        family = family[jnp.minimum(parent, family)]
    return branches, family, 3 * roots


def _laterals(draw):
    """A bowed stem with side branches in turn left and right, twigs on those.

    The other generator: no law of radii, wide angles, smooth arcs instead of noise.
    """
    parent = np.array([0, 0, 0, 0, 1, 1, 2, 2, 3])
    depth = np.array([0, 1, 1, 1, 2, 2, 2, 2, 2])
    node = np.array([0, 2, 4, 6, 3, 6, 3, 6, 4])
    side = np.array([0, 1, -1, 1, -1, 1, 1, -1, -1])
    flip = jnp.where(draw.chance(), 1, -1)
    angle = draw.uniform(math.radians(35), math.radians(75), (BRANCHES,))
    heading = draw.uniform(-math.pi, math.pi)
    s = np.linspace(0, 1, STEPS, dtype=np.float32)[None]
    arc = draw.uniform(-0.9, 0.9, (BRANCHES, 1)) * s
    sway = jnp.sin(draw.uniform(2, 6) * s + draw.uniform(0, 6.28))
    ratio = draw.uniform(0.5, 0.8, (BRANCHES,))
    branches = _Branch(
        parent=jnp.asarray(parent),
        node=jnp.asarray(node) - draw.integer(0, 2, (BRANCHES,)) * (depth > 0),
        turn=jnp.where(depth == 0, heading, flip * side * angle),
        origin=jnp.zeros((BRANCHES, 2)),
        ratio=jnp.where(depth == 0, mm(0.25) + mm(0.7) * (ratio - 0.5), ratio),
        length=0.7 * 0.62**depth * draw.uniform(0.75, 1.2, (BRANCHES,)),
        bend=arc + 0.3 * (sway - sway[:, :1]),
        taper=draw.uniform(0.25, 0.5, (BRANCHES,)),
    )
    return branches, jnp.zeros(BRANCHES, int), jnp.int32(4)


def vessels(draw, split) -> Proposal:
    """Trees of vessels, flat or with the chord of a round tube as brightness."""
    branches, family, fewest = lax.cond(
        split == SPLITS.index("test"),
        lambda values: _laterals(Draws(values)),
        lambda values: _forks(Draws(values)),
        draw.unit((DRAWS - 96,)),
    )
    nodes, radius = _grow(branches)
    # Thinner than .1 mm is not drawn, nor what hangs on it (radii fall downstream);
    # trees stop early.
    drawn = jnp.arange(BRANCHES) < draw.integer(fewest, BRANCHES + 1)
    drawn &= radius[:, 0] >= mm(0.1)
    # One image in five: a stenosis or an aneurysm in one of the first branches.
    lesion = jnp.where(draw.chance(), -0.65, 0.9)
    lesion *= draw.chance(0.2)
    at = draw.uniform(2, STEPS - 2)
    bump = jnp.exp(-0.5 * ((np.arange(STEPS + 1) - at) / 0.9) ** 2)
    sick = jnp.arange(BRANCHES) == draw.integer(0, 3)
    radius = radius * (1 + lesion * sick[:, None] * bump[None])
    thickest = jnp.max(jnp.where(drawn[:, None], radius, 0))
    return strokes(
        nodes[:, :-1].reshape(-1, 2),
        nodes[:, 1:].reshape(-1, 2),
        jnp.stack([radius[:, :-1], radius[:, 1:]], axis=-1).reshape(-1, 2),
        jnp.repeat(family, STEPS, total_repeat_length=BRANCHES * STEPS),
        jnp.repeat(drawn, STEPS, total_repeat_length=BRANCHES * STEPS),
        jnp.where(draw.chance(), thickest, 0),
    )
