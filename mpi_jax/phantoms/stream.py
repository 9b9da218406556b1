"""Image i of a split: a function of split, index and grid."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from mpi_jax._checks import check_count, check_signal, expect, is_integer
from mpi_jax.phantoms.families import KIND_OF
from mpi_jax.phantoms.items import DRAWS, FAMILIES, SEEDS, SPLITS, TRIES
from mpi_jax.phantoms.render import picture


def _geometry(grid):
    """(shape, half the field of view [2] in units of its shorter side) of a grid."""
    shape = tuple(int(n) for n in grid.shape)
    plane = len(shape) == 2 and min(shape) >= 1
    expect(plane, "grid.shape", "(ny, nx)", grid.shape)
    sides = jnp.asarray(grid.field_of_view, jnp.float32)[:2]
    return shape, sides / jnp.min(sides) / 2


def _one_of(name: str, value, names: tuple[str, ...]):
    expect(value in names, name, f"one of {', '.join(names)}", repr(value))
    return value


def _family_number(family):
    return FAMILIES.index(_one_of("family", family, FAMILIES))


def _split_number(split):
    """The number of a split; a traced number stays as it is."""
    if isinstance(split, str):
        return SPLITS.index(_one_of("split", split, SPLITS))
    return split


def _by_number(number, key, grid, split):
    """Picture of the family FAMILIES[number]; number may be traced."""
    split = jnp.asarray(_split_number(split))
    shape, half = _geometry(grid)
    kinds = list(dict.fromkeys(KIND_OF.values()))
    values = _values(key)
    if is_integer(number):
        number = int(number)
        return picture(values, half, split, number, shape, KIND_OF[FAMILIES[number]])
    branch = jnp.asarray([kinds.index(KIND_OF[name]) for name in FAMILIES])[number]
    makers = [functools.partial(picture, shape=shape, kind=kind) for kind in kinds]
    return lax.switch(branch, makers, values, half, split, number)


def sample_with_mask(
    key: PRNGKeyArray, grid, family: str | None = None, split: str = "train"
) -> tuple[Float[Array, "ny nx"], Bool[Array, "ny nx"]]:
    """As `sample`, with the mask of the pixels that the phantom covers.

    Returns:
      concentration [ny, nx] in [0, 1], and boolean [ny, nx].

    Examples:
      >>> from mpi_jax.scanner import Grid
      >>> grid = Grid((8, 8), (12.8e-3, 12.8e-3, 1e-3))
      >>> image, mask = sample_with_mask(random.key(0), grid, "bars")
      >>> image.shape, mask.dtype
      ((8, 8), dtype('bool'))
    """
    if family is None:
        choice, key = random.split(key)
        return _by_number(random.randint(choice, (), 0, 6), key, grid, split)
    return _by_number(_family_number(family), key, grid, split)


def sample(
    key: PRNGKeyArray, grid, family: str | None = None, split: str = "train"
) -> Float[Array, "ny nx"]:
    """A random phantom, concentration in [0, 1].

    Sizes follow the field of view. Numbers and vessels are drawn another way in every
    split.

    Args:
      key: of jax.random.
      grid: an object with shape (ny, nx) and field_of_view (x, y, z) [m].
      family: one of FAMILIES; None: any.
      split: one of SPLITS, or its number.

    Returns:
      [ny, nx].

    Raises:
      ValueError: on an unknown family or split, and on grids that aren't images.

    Examples:
      >>> from mpi_jax.scanner import Grid
      >>> grid = Grid((8, 8), (12.8e-3, 12.8e-3, 1e-3))
      >>> sample(random.key(0), grid, "bars").shape
      (8, 8)
    """
    return sample_with_mask(key, grid, family, split)[0]


def _key(split, index):
    seed = jnp.asarray(list(SEEDS.values()))[split]
    return random.fold_in(random.key(seed, impl="threefry2x32"), index)


def _values(key):
    """Uniform random numbers of all proposals for a picture, [TRIES, DRAWS]."""
    keys = jax.vmap(functools.partial(random.fold_in, key))(jnp.arange(TRIES))
    return jax.vmap(lambda key: random.uniform(key, (DRAWS,)))(keys)


def image(split: str, index, grid) -> Float[Array, "ny nx"]:
    """Image `index` of a split: the same picture on every grid and for every seed.

    Args:
      split: one of SPLITS, or its number.
      index: an integer >= 0 of Python, NumPy or JAX; the family is FAMILIES[index % 6].
      grid: an object with shape (ny, nx) and field_of_view (x, y, z) [m].

    Returns:
      Concentration [ny, nx] in [0, 1].

    Raises:
      ValueError: on an unknown split, an index below 0, and grids that aren't images.

    Examples:
      >>> from mpi_jax.scanner import Grid
      >>> grid = Grid((8, 8), (12.8e-3, 12.8e-3, 1e-3))
      >>> image("test", 0, grid).shape
      (8, 8)
    """
    if not isinstance(index, jax.core.Tracer):
        index = check_count("index", index, 0)
    return _by_number(
        index % len(FAMILIES), _key(_split_number(split), index), grid, split
    )[0]


def indices(
    position: Int[Array | np.ndarray, "*n"],
    families: tuple[str, ...] = FAMILIES,
    images: int | None = None,
) -> Int[Array | np.ndarray, "*n"]:
    """Which images of a split stand at these positions of a stream.

    The stream takes the families in turn, by default all six: image i at position i.
    With fewer, the others' images are passed over.

    Args:
      position: integers, counted from 0, of any shape; the result is of the same library.
      families: names of FAMILIES.
      images: how many a split has; None: it never ends. Each family then starts again at
        its own first image, so that the stream stays balanced whatever the number.

    Raises:
      ValueError: for families that are unknown, repeated or none, and for fewer images
        than one of each family.

    Examples:
      >>> print(indices(jnp.arange(4), ("bars", "vessels")))
      [ 0  5  6 11]
    """
    for family in families:
        _family_number(family)
    distinct = families and len(set(families)) == len(families)
    expect(distinct, "families", "different names", families)
    stride = len(FAMILIES)
    if images is not None:
        images = check_count("images", images, stride)
    numbers = sorted(_family_number(family) for family in families)
    # Who reads files has NumPy's positions, and needn't wait for a device.
    xp = np if isinstance(position, np.ndarray) else jnp
    position = xp.asarray(position)
    place, turn = position % len(numbers), position // len(numbers)
    if images is not None:
        counts = [len(range(number, images, stride)) for number in numbers]
        turn = turn % xp.asarray(counts)[place]
    return stride * turn + xp.asarray(numbers)[place]


def _each(make, items):
    """make(item) for every item, with the same bits however many there are.

    One at a time on a CPU: what a picture is painted on then stays in the cache (up to
    four times the speed), and no bit depends on the size of the batch. Chosen by the
    default backend, for lax.platform_dependent traces every picture twice.
    """
    if jax.default_backend() == "cpu":
        return lax.map(make, items)
    return jax.vmap(make)(items)


def batch(
    split,
    start,
    size: int,
    grid,
    families: tuple[str, ...] = FAMILIES,
    images: int | None = None,
) -> tuple[Float[Array, "size ny nx"], Float[Array, "size ny nx"], Int[Array, " size"]]:
    """Images, masks (0 or 1) and family numbers of start ... start + size - 1.

    These are positions in the stream of `indices`, with its families and its length; by
    default images themselves. Every image is drawn by its own family only (a switch under
    vmap would draw all six for each image).

    Args:
      split: one of SPLITS, or its number, which may be traced: one compiled function then
        serves all three.
      start: first position, may be traced.
      size: how many, static.
      grid: an object with shape (ny, nx) and field_of_view (x, y, z) [m].
      families, images: as in `indices`.

    Returns:
      Concentrations [size, ny, nx] in [0, 1], masks [size, ny, nx], 0 or 1, and family
      numbers [size].

    Raises:
      ValueError: as `indices`, and on size < 1.

    Examples:
      >>> from mpi_jax.scanner import Grid
      >>> grid = Grid((8, 8), (12.8e-3, 12.8e-3, 1e-3))
      >>> images, masks, family = batch("train", 0, 2, grid, families=("bars",))
      >>> images.shape, family.tolist()
      ((2, 8, 8), [0, 0])
    """
    size = check_count("size", size)
    split = jnp.asarray(_split_number(split))
    shape, half = _geometry(grid)
    start = jnp.asarray(start, jnp.int32)
    place = np.arange(size)
    # Checked here, and sorted as they take turns.
    image_numbers = indices(start + place, families, images)
    chosen = [number for number, name in enumerate(FAMILIES) if name in families]
    stride = len(chosen)
    first = (np.arange(stride) - start) % stride  # place in the batch, per family
    turns = np.arange(-(-size // stride))
    numbers = indices(start + first[:, None] + stride * turns[None], families, images)
    values = jax.vmap(lambda index: _values(_key(split, index)))(numbers.reshape(-1))
    values = values.reshape(*numbers.shape, *values.shape[1:])
    by_slot: dict[int, list[Array]] = {}
    for kind in dict.fromkeys(KIND_OF[FAMILIES[number]] for number in chosen):
        slots = [i for i, n in enumerate(chosen) if KIND_OF[FAMILIES[n]] == kind]

        def make(item, kind=kind):
            return picture(item[0], half, split, item[1], shape, kind)

        items = values[np.asarray(slots)], numbers[np.asarray(slots)] % len(FAMILIES)
        items = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), items)
        parts = _each(make, items)
        parts = [part.reshape(len(slots), len(turns), *shape) for part in parts]
        by_slot |= {i: part for i, *part in zip(slots, *parts, strict=True)}
    pictures, masks = (
        jnp.stack(p) for p in zip(*(by_slot[i] for i in range(stride)), strict=True)
    )
    slot = (start + place) % stride
    turn = (place - first[slot]) // stride
    family = jnp.asarray(image_numbers) % len(FAMILIES)
    return pictures[slot, turn], masks[slot, turn].astype(jnp.float32), family


def mask(concentration: Float[Array, "*batch ny nx"]) -> Bool[Array, "*batch ny nx"]:
    """The mask that belongs to a concentration, from the image alone.

    A pixel belongs to the phantom if it holds at least half of the most in its 3 x 3
    neighbourhood, which for a flat object is a coverage of 1/2 whatever its level, and
    more than a tenth of the image's maximum, which takes the dim rest out.

    Args:
      concentration: [..., ny, nx], any unit.

    Returns:
      Boolean [..., ny, nx].

    Raises:
      ValueError: on numbers that are complex, NaN or infinite, where they are concrete.

    Examples:
      >>> print(mask(jnp.array([[1.0, 0.4], [0.6, 0.0]])))
      [[ True False]
       [ True False]]
    """
    check_signal("concentration", concentration)
    window = (1,) * (concentration.ndim - 2) + (3, 3)
    around = lax.reduce_window(
        concentration, -jnp.inf, lax.max, window, (1,) * concentration.ndim, "SAME"
    )
    most = jnp.max(concentration, axis=(-2, -1), keepdims=True)
    return (concentration >= 0.5 * around) & (concentration > 0.0999 * most)
