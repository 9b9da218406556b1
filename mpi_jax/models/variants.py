"""Rows of networks: sizes and switches of the TransGAN by name."""

from dataclasses import replace

from mpi_jax.models import layers
from mpi_jax.models.transgan import (
    Discriminator,
    DiscriminatorConfig,
    Generator,
    GeneratorConfig,
)


def generator(name: str, **overrides) -> Generator:
    """The generator of a row of GENERATORS, with fields of its config replaced.

    Raises ValueError for an unknown row or sizes that do not fit together.
    """
    return Generator(layers.row(GENERATORS, name, overrides))


def discriminator(name: str, **overrides) -> Discriminator:
    """The discriminator of a row of DISCRIMINATORS, likewise."""
    return Discriminator(layers.row(DISCRIMINATORS, name, overrides))


_dual = GeneratorConfig()
_single = replace(_dual, tasks=("recon",))
_budget = replace(_dual, depths=(2,) * 5, windows=(8, 16, 16, 16, 16))
_tiny = GeneratorConfig(
    channels=(64, 64, 64, 16, 8),
    depths=(2, 2, 1, 1, 1),
    heads=(4, 4, 4, 2, 2),
    windows=(8, 16, 16, 8, 8),
    stem_hidden=512,
)
_tiny64 = replace(
    _tiny,
    image_size=64,
    channels=(64, 64, 64, 16),
    depths=(2, 2, 1, 1),
    heads=(4, 4, 4, 2),
    windows=(8, 16, 16, 8),
)
_tiny32 = GeneratorConfig(  # seconds: for tests
    image_size=32,
    channels=(64, 32, 32),
    depths=(1, 1, 1),
    heads=(4, 4, 4),
    windows=(8, 8, 8),
    stem_hidden=64,
)
# The signal alone at 32 x 32, some 638,000 images in an hour or two of two CPU cores: most
# parameters are the stem's, which has to learn what a system matrix knows, and little of
# the time goes to blocks at full resolution.
_plain32 = GeneratorConfig(
    image_size=32,
    channels=(128, 64, 16),
    depths=(2, 1, 1),
    heads=(4, 2, 1),
    windows=(8, 8, 8),
    stem_hidden=1024,
)
_plain64 = replace(
    _plain32,
    image_size=64,
    channels=(128, 64, 16, 8),
    depths=(2, 1, 1, 1),
    heads=(4, 2, 1, 1),
    windows=(8, 8, 8, 8),
)
# Physics does the work of the stem; minutes on two CPU cores train these.
_demo32 = GeneratorConfig(
    image_size=32,
    channels=(64, 32, 16),
    depths=(1, 1, 0),
    heads=(4, 4, 2),
    windows=(8, 8, 4),
    stem_hidden=0,
    features=5,
    base=True,
    local_channels=24,
    local_blocks=5,
)
_demo64 = replace(
    _demo32,
    image_size=64,
    channels=(64, 32, 16, 16),
    depths=(1, 1, 1, 0),
    heads=(4, 4, 2, 2),
    windows=(8, 8, 4, 4),
)
# CPU hours: three rounds of convolutions, the measurement asked in between.
_unrolled64 = replace(_demo64, local_channels=32, local_blocks=3, local_rounds=3)
_unrolled32 = replace(_demo32, local_channels=32, local_blocks=3, local_rounds=3)

_physics = replace(_dual, features=5, base=True, local_channels=32, local_blocks=4)

# "matched": one branch with the parameters and the arithmetic of the dual-task row, by
# deeper stages in place of the second branch's and a wider stem in place of its positions.
#
# |                  | dual: parameters, GMAC | matched             |
# |------------------|------------------------|---------------------|
# | tg128            | 16,222,342  5.69       | 16,218,655  5.69    |
# | tg128 physics    | 16,293,079  6.38       | 16,292,808  6.35    |
# | tiny64           | 4,377,214   .265       | 4,378,623   .265    |
# | plain32          | 12,260,158  .066       | 12,255,214  .066    |
# | plain64          | 12,328,848  .081       | 12,302,057  .081    |
# | demo64 (physics) | 287,639     .143       | 286,963     .144    |
# | unrolled64       | 347,107     .404       | 350,382     .403    |
GENERATORS: dict[str, GeneratorConfig] = {
    "tg128_dual": _dual,
    "tg128_single": _single,
    "tg128_single_matched": replace(_single, depths=(5, 4, 8, 8, 8), stem_hidden=1058),
    "tg128_dual_split8": replace(_dual, split_at=8),
    "tg128_dual_split32": replace(_dual, split_at=32),
    "tg128_dual_split64": replace(_dual, split_at=64),
    "tg128_dual_linear_stem": replace(_dual, stem_hidden=None),
    "tg128_dual_layernorm": replace(_dual, norm="layer"),
    "tg128_dual_physics": _physics,
    "tg128_single_physics": replace(_physics, tasks=("recon",)),
    "tg128_single_matched_physics": replace(
        _physics, tasks=("recon",), depths=(5, 4, 8, 8, 8), stem_hidden=1059
    ),
    "budget128_dual": _budget,
    "budget128_single": replace(_budget, tasks=("recon",)),
    "budget128_single_matched": replace(
        _budget, tasks=("recon",), depths=(2, 2, 4, 4, 4), stem_hidden=1058
    ),
    "tiny128_dual": _tiny,
    "tiny128_single": replace(_tiny, tasks=("recon",)),
    "tiny64_dual": _tiny64,
    "tiny64_single": replace(_tiny64, tasks=("recon",)),
    "tiny64_single_matched": replace(
        _tiny64, tasks=("recon",), depths=(2, 2, 2, 2), stem_hidden=530
    ),
    "tiny32_dual": _tiny32,
    "tiny32_single": replace(_tiny32, tasks=("recon",)),
    "tiny32_single_matched": replace(
        _tiny32, tasks=("recon",), depths=(1, 1, 2), stem_hidden=68
    ),
    "plain32_dual": _plain32,
    "plain32_single": replace(_plain32, tasks=("recon",)),
    "plain32_single_matched": replace(
        _plain32, tasks=("recon",), depths=(2, 1, 2), stem_hidden=1025
    ),
    "plain64_dual": _plain64,
    "plain64_single": replace(_plain64, tasks=("recon",)),
    "plain64_single_matched": replace(
        _plain64, tasks=("recon",), depths=(2, 1, 2, 2), stem_hidden=1026
    ),
    "demo32_dual": _demo32,
    "demo32_single": replace(_demo32, tasks=("recon",)),
    # Nothing is deep here: a wider last stage.
    "demo32_single_matched": replace(
        _demo32, tasks=("recon",), channels=(64, 32, 31), heads=(4, 4, 1)
    ),
    "unrolled32_dual": _unrolled32,
    "unrolled32_single": replace(_unrolled32, tasks=("recon",)),
    "demo64_dual": _demo64,
    "demo64_single": replace(_demo64, tasks=("recon",)),
    "unrolled64_dual": _unrolled64,
    "unrolled64_single": replace(_unrolled64, tasks=("recon",)),
    "unrolled64_single_matched": replace(
        _unrolled64, tasks=("recon",), depths=(1, 1, 3, 0), stem_hidden=11
    ),
    "demo64_single_matched": replace(
        _demo64, tasks=("recon",), depths=(1, 1, 4, 0), stem_hidden=10
    ),
}

DISCRIMINATORS: dict[str, DiscriminatorConfig] = {
    "df192": DiscriminatorConfig(),
    "df384": DiscriminatorConfig(width=384),
    "df96": DiscriminatorConfig(width=96),
    "df192_64": DiscriminatorConfig(image_size=64),
    "df96_32": DiscriminatorConfig(image_size=32, width=96),
    "df48_32": DiscriminatorConfig(image_size=32, width=48, depths=(0, 0, 1)),
    "df48_64": DiscriminatorConfig(image_size=64, width=48, depths=(0, 0, 1)),
}
