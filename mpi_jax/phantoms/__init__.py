"""Phantoms: concentrations in [0, 1] on a grid, drawn from a key or by their index.

sample and sample_with_mask draw one; image, batch and mask are those of a split, by
index. `open_mpi` holds the phantoms of Open MPI Data, `unseen` shapes that no network is
trained on.
"""

from mpi_jax.phantoms import open_mpi, unseen
from mpi_jax.phantoms.digits import strokes
from mpi_jax.phantoms.items import (
    FAMILIES,
    FILL,
    MARGIN,
    SPLITS,
    Drawing,
    Ellipse,
    Glyph,
    Polygon,
    Proposal,
    Stroke,
    polygons,
)
from mpi_jax.phantoms.stream import (
    batch,
    image,
    indices,
    mask,
    sample,
    sample_with_mask,
)
from mpi_jax.phantoms.vessels import murray

__all__ = [
    "Drawing",
    "Ellipse",
    "FAMILIES",
    "FILL",
    "Glyph",
    "MARGIN",
    "Polygon",
    "Proposal",
    "SPLITS",
    "Stroke",
    "batch",
    "image",
    "indices",
    "mask",
    "murray",
    "open_mpi",
    "polygons",
    "sample",
    "sample_with_mask",
    "strokes",
    "unseen",
]
