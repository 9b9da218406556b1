"""Rows of networks: sizes, costs, names."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import pytest
from support.networks import count, inputs
from support.programs import load

from mpi_jax.models import transgan, variants
from mpi_jax.models.variants import DISCRIMINATORS, GENERATORS

multiply_adds = load("counting").multiply_adds

GENERATOR_COUNTS = {
    "tg128_dual": 16_222_342,
    "tg128_single": 14_899_861,
    "tg128_single_matched": 16_218_655,
    "tg128_dual_split8": 17_059_990,
    "tg128_dual_split32": 15_238_262,
    "tg128_dual_split64": 15_041_894,
    "tg128_dual_linear_stem": 31_229_062,
    "tg128_dual_layernorm": 16_232_326,
    "budget128_dual": 14_247_690,
    "budget128_single": 13_413_901,
    "budget128_single_matched": 14_244_003,
    "tiny128_dual": 4_642_962,
    "tiny128_single": 4_322_001,
    "tiny64_dual": 4_377_214,
}


# Of our own design; the rows matched to them have to be near.
OUR_COUNTS = {
    "tg128_dual_physics": 16_293_079,
    "tg128_single_matched_physics": 16_292_808,
    "tiny64_single_matched": 4_378_623,
    "demo64_dual": 287_639,
    "demo64_single_matched": 286_963,
    "plain32_dual": 12_260_158,
    "plain32_single_matched": 12_255_214,
    "plain64_dual": 12_328_848,
    "plain64_single_matched": 12_302_057,
    "tiny32_dual": 645_746,
    "tiny32_single_matched": 642_389,
    "demo32_dual": 146_387,
}


DISCRIMINATOR_COUNTS = [
    ("df192", {}, 2_778_889),
    ("df384", {}, 10_784_233),
    ("df96", {}, 746_137),
    ("df192", {"inputs": 2}, 2_809_609),
    ("df192", {"norm": "layer"}, 2_784_841),
    ("df192_64", {}, 2_702_729),
]


@pytest.mark.parametrize("row", GENERATORS)
def test_generator_parameters(row):
    module = variants.generator(row)
    arguments = inputs(module.config, batch=1)
    images, variables = jax.eval_shape(
        module.init_with_output, jax.random.key(0), *arguments
    )
    size = module.config.image_size
    chex.assert_shape(jax.tree.leaves(images), (1, size, size))
    assert (images.segmentation is None) == ("_single" in row)
    if row in GENERATOR_COUNTS:
        assert count(variables) == GENERATOR_COUNTS[row]
    elif row in OUR_COUNTS:
        assert count(variables) == OUR_COUNTS[row]
    else:
        # Rows of our own, without a count from elsewhere.
        own = (
            "demo32",
            "demo64",
            "unrolled",
            "tiny64",
            "tiny32",
            "plain32",
            "plain64",
            "tg128_single",
        )
        assert row.startswith(own)


@pytest.mark.parametrize(("row", "overrides", "expected"), DISCRIMINATOR_COUNTS)
def test_discriminator_parameters(row, overrides, expected):
    module = variants.discriminator(row, **overrides)
    cfg = module.config
    images = jnp.zeros((1, cfg.image_size, cfg.image_size, cfg.inputs))
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    assert count(variables) == expected


def test_matched_row_is_within_a_thousandth_of_dual():
    for family in ("tg128", "budget128"):
        dual = GENERATOR_COUNTS[f"{family}_dual"]
        matched = GENERATOR_COUNTS[f"{family}_single_matched"]
        assert abs(matched / dual - 1) < 1e-3


@pytest.mark.parametrize(
    "name",
    [
        "tg128_{}",
        "tg128_{}_physics",
        "budget128_{}",
        "tiny64_{}",
        "demo64_{}",
        "tiny32_{}",
        "plain32_{}",
        "plain64_{}",
        "demo32_{}",
    ],
)
def test_matched_rows_cost_what_dual_costs(name):
    """Parameters and multiply-adds of the control within 1 % of the dual-task row's."""
    found = []
    for tasks in ("dual", "single_matched"):
        module = variants.generator(name.format(tasks))
        arguments = inputs(module.config, batch=1)
        shapes = jax.eval_shape(module.init, jax.random.key(0), *arguments)
        program = jax.make_jaxpr(module.apply)(shapes, *arguments)
        found.append((count(shapes), multiply_adds(program.jaxpr)))
    (parameters, products), (own_parameters, own_products) = found
    assert abs(own_parameters / parameters - 1) < 0.01
    assert abs(own_products / products - 1) < 0.01
    if name == "tg128_{}":
        assert abs(products / 1e9 - 5.68) < 0.01


def test_rows_round_trip_as_plain_data():
    for config in GENERATORS.values():
        assert transgan.GeneratorConfig(**dataclasses.asdict(config)) == config


def test_unknown_rows_are_named():
    with pytest.raises(ValueError, match="tiny128_dual.*got 'huge'"):
        variants.generator("huge")
    with pytest.raises(ValueError, match="df192.*got 'huge'"):
        variants.discriminator("huge")
    assert set(DISCRIMINATORS) >= {"df96", "df192", "df384"}
