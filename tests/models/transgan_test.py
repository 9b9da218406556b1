"""The networks: wiring and options. Real arithmetic on small rows."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.networks import inputs, normal

from mpi_jax.models import transgan, variants

# Two stages, nothing large. Tests switch blocks off to save time to compile.
SMALL = dict(
    input_size=6,
    image_size=16,
    channels=(8, 4),
    depths=(1, 1),
    heads=(2, 2),
    windows=(4, 4),
    stem_hidden=5,
    split_at=8,
)


GUIDED = dict(SMALL, features=3, base=True, local_channels=4, local_blocks=2)


def drawn(module, *arguments, size=0.3):
    """Parameters drawn here: large enough to matter, none of them zero."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *arguments)
    generator = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: size * generator.standard_normal(leaf.shape, np.float32), shapes
    )


def built(**overrides):
    """Small generator with these fields, drawn parameters, inputs."""
    module = variants.generator("tg128_dual", **overrides)
    arguments = inputs(module.config)
    return module, drawn(module, *arguments), arguments


@functools.partial(jax.jit, static_argnums=0)
def run(module, variables, *arguments):
    return module.apply(variables, *arguments)


@functools.partial(jax.jit, static_argnums=0)
def start(module, key, *arguments):
    return module.init_with_output(key, *arguments)


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def peak(tree):
    return max(float(np.abs(leaf).max()) for leaf in leaves(tree))


def test_branches_share_the_early_part_and_nothing_else():
    module, variables, arguments = built(**GUIDED)

    @jax.jit
    def slopes(params):
        images, pull = jax.vjp(lambda p: run(module, {"params": p}, *arguments), params)
        dark = jax.tree.map(jnp.zeros_like, images)
        return [
            pull(dark._replace(reconstruction=images.reconstruction))[0],
            pull(dark._replace(segmentation=images.segmentation))[0],
        ]

    both = slopes(variables["params"])
    unused = jax.tree.map(lambda *slope: peak(slope) == 0, *both)
    assert not any(jax.tree.leaves(unused))
    recon, seg = (
        {name for name, tree in slope.items() if peak(tree) > 0} for slope in both
    )
    names = set(variables["params"])
    assert {"recon_16", "seg_16", "shared_8", "local_0", "stem"} <= names
    assert names - recon == {name for name in names if name.startswith("seg_")}
    assert names - seg == {name for name in names if name.startswith("recon_")}


@pytest.mark.parametrize("sizes", [SMALL, GUIDED])
def test_single_task_has_no_segmentation(sizes):
    module, dual, arguments = built(**sizes)
    single, variables, _ = built(**sizes, tasks=("recon",))
    expected = {n for n in dual["params"] if not n.startswith("seg_")}
    assert set(variables["params"]) == expected
    images = jax.eval_shape(single.apply, variables, *arguments)
    assert images.segmentation is None


def test_plain_form_starts_faint_with_the_mean_fill():
    module = variants.generator("tg128_dual", **SMALL | {"depths": (0, 0)})
    images, _ = start(module, jax.random.key(0), *inputs(module.config))
    assert images.reconstruction.shape == images.segmentation.shape == (2, 16, 16)
    assert 0 < peak(images.reconstruction) < 0.1
    np.testing.assert_allclose(images.segmentation, -2.8, atol=0.1)


def test_start_is_the_base_and_follows_the_key():
    module = variants.generator("tg128_dual", **GUIDED | {"depths": (1, 0)})
    arguments = inputs(module.config)
    images, variables = start(module, jax.random.key(0), *arguments)
    base = np.asarray(arguments[2])
    np.testing.assert_array_equal(images.reconstruction, base)
    np.testing.assert_allclose(images.segmentation, 8 * (base - 0.5), rtol=1e-6)

    _, again = start(module, jax.random.key(0), *arguments)
    chex.assert_trees_all_equal(variables, again)
    _, other = start(module, jax.random.key(1), *arguments)
    name = "shared_8"
    assert np.any(
        variables["params"][name]["position"] != other["params"][name]["position"]
    )


def test_features_alone_can_drive_the_network():
    module, variables, arguments = built(
        **GUIDED | {"stem_hidden": 0, "depths": (0, 0)}
    )
    assert not [name for name in variables["params"] if name.startswith("stem")]
    signal, features, base = arguments
    first = run(module, variables, signal, features, base)
    chex.assert_trees_all_equal(
        first, run(module, variables, 2 * signal, features, base)
    )
    second = run(module, variables, signal, 2 * features, base)
    assert peak(second.reconstruction - first.reconstruction) > 1e-3


def test_each_image_depends_on_its_own_inputs():
    module, variables, arguments = built(**GUIDED | {"depths": (1, 0)})
    first = run(module, variables, *arguments)
    changed = run(module, variables, *(x.at[0].multiply(2) for x in arguments))
    for before, after in zip(first, changed, strict=True):
        assert peak(after[0] - before[0]) > 1e-3
        np.testing.assert_array_equal(after[1], before[1])


@pytest.mark.parametrize("split_at", [8, 16])
def test_split_decides_what_is_shared(split_at):
    _, variables, _ = built(**GUIDED | {"split_at": split_at})
    assert ("shared_16" in variables["params"]) == (split_at == 16)
    assert ("seg_16" in variables["params"]) == (split_at == 8)


def test_remat_changes_neither_parameters_nor_gradients():
    sizes = SMALL | {"depths": (1, 0), "tasks": ("recon",)}
    module, variables, arguments = built(**sizes)
    remat, same, _ = built(**sizes, remat=True)
    chex.assert_trees_all_equal(variables, same)

    def slope(module):
        def loss(variables):
            return jnp.mean(jnp.square(module.apply(variables, *arguments)[0]))

        return jax.grad(loss)

    expected, result = (jax.jit(slope(m))(variables) for m in (module, remat))
    chex.assert_trees_all_close(result, expected, atol=1e-5, rtol=1e-4)
    assert "remat" not in str(jax.make_jaxpr(slope(module))(variables))
    assert "remat" in str(jax.make_jaxpr(slope(remat))(variables))


@pytest.mark.parametrize("norm", ["pixel", "layer"])
def test_bfloat16_keeps_float32_parameters_and_outputs(norm):
    sizes = GUIDED | {"depths": (1, 0), "norm": norm}
    module, variables, arguments = built(**sizes)
    half, same, _ = built(**sizes, dtype="bfloat16")
    chex.assert_trees_all_equal_shapes_and_dtypes(variables, same)
    exact = run(module, variables, *arguments)
    rough = run(half, variables, *arguments)
    for a, b in zip(exact, rough, strict=True):
        assert a.dtype == b.dtype == jnp.float32
        assert 0 < peak(a - b) < 0.05 * peak(a)

    def inside(variables):
        _, state = half.apply(variables, *arguments, capture_intermediates=True)
        return state["intermediates"]["shared_8"]["block_0"]

    for leaf in jax.tree.leaves(jax.eval_shape(inside, variables)):
        assert leaf.dtype == jnp.bfloat16


def test_discriminator_scores_each_image_alone():
    sizes = dict(width=32, depths=(1, 0, 0), inputs=2)
    module = variants.discriminator("df96_32", **sizes)
    half = variants.discriminator("df96_32", **sizes, remat=True, dtype="bfloat16")
    images = normal(0, 2, 32, 32, 2)
    variables = drawn(module, images)
    chex.assert_trees_all_equal(variables, drawn(half, images))
    scores = run(module, variables, images)
    assert scores.shape == (2,) and scores.dtype == jnp.float32
    changed = run(module, variables, images.at[0].multiply(2))
    assert changed[0] != scores[0] and changed[1] == scores[1]
    rough = run(half, variables, images)
    assert rough.dtype == jnp.float32
    np.testing.assert_allclose(rough, scores, atol=0.05 * peak(scores))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"image_size": 96}, "8 times a power of two, got 96"),
        ({"image_size": 4}, "8 times a power of two, got 4"),
        ({"depths": (1, 1, 1)}, "depths: expected 2 entries"),
        ({"heads": (3, 2)}, "divisor of 8 channels at 8, got 3"),
        ({"windows": (8, 6)}, "divisor of 16, got 6"),
        ({"split_at": 12}, r"one of \(8, 16\), got 12"),
        ({"tasks": ("seg",)}, "tasks: expected"),
        ({"dtype": "float16"}, "float16"),
        ({"norm": "batch"}, "batch"),
        ({"stem_hidden": 0}, "stem"),
        ({"local_blocks": 2}, "got 0, 2"),
        ({"local_blocks": 2, "local_channels": 4}, "features or base"),
    ],
)
def test_sizes_that_do_not_fit_are_named(overrides, message):
    # TypeError: the annotation, where calls are checked against annotations.
    with pytest.raises((ValueError, TypeError), match=message):
        variants.generator("tg128_dual", **{**SMALL, **overrides})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [({"image_size": 48}, "got 48"), ({"width": 40}, "got 40"), ({"inputs": 0}, "0")],
)
def test_discriminator_sizes_that_do_not_fit_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        variants.discriminator("df192", **overrides)


def test_inputs_that_do_not_fit_are_named():
    module, variables, (signal, features, base) = built(**GUIDED)
    with pytest.raises(ValueError, match=r"signal: expected \(2, 6\), got \(2, 5\)"):
        module.apply(variables, signal[:, :5], features, base)
    with pytest.raises(ValueError, match=r"features: expected .*, got None"):
        module.apply(variables, signal, None, base)
    with pytest.raises(ValueError, match=r"features: .* 3\), got \(2, 16, 16, 2\)"):
        module.apply(variables, signal, features[..., :2], base)
    with pytest.raises(ValueError, match=r"base: expected \(2, 16, 16\), got \(1,"):
        module.apply(variables, signal, features, base[:1])
    module, variables, (signal, _, _) = built(**SMALL)
    with pytest.raises(ValueError, match=r"base: expected None, got \(2, 16, 16\)"):
        module.apply(variables, signal, None, base)
    critic = variants.discriminator("df96_32")
    with pytest.raises(ValueError, match=r"32, 32, 1\), got \(2, 16, 16, 1\)"):
        critic.init(jax.random.key(0), base[..., None])


def decomposition(pixels, rank, seed=0):
    """s [k] falling from 1, orthonormal V [P, k]."""
    rng = np.random.default_rng(seed)
    V = np.linalg.qr(rng.normal(size=(pixels, rank)))[0]
    return jnp.asarray(np.geomspace(1, 0.01, rank)), jnp.asarray(V)


def test_consistency_step():
    """The minimiser over image + span V; what V doesn't see stays; the limits of nu."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        s, V = decomposition(64, 20)
        truth, image = jnp.asarray(rng.random((2, 3, 8, 8)))
        a = s[None] * (truth.reshape(3, -1) @ V)
        made = transgan.consistent(image, a, s, V, 1e-3)
        A = np.diag(s) @ V.T
        for z, x, right in zip(made, image, a, strict=True):
            normal = A.T @ A + 1e-3 * np.eye(64)
            best = np.linalg.solve(normal, A.T @ right + 1e-3 * x.reshape(-1))
            np.testing.assert_allclose(z.reshape(-1), best, atol=1e-12)
        moved = np.asarray(made - image).reshape(3, -1)
        np.testing.assert_allclose(moved @ V @ V.T, moved, atol=1e-12)
        exact = transgan.consistent(image, a, s, V, 0.0).reshape(3, -1)
        np.testing.assert_allclose(exact @ V, truth.reshape(3, -1) @ V, atol=1e-12)
        np.testing.assert_allclose(transgan.consistent(image, a, s, V, 1e12), image)


def test_unrolled_rounds_start_at_the_base_and_learn_from_the_signal():
    model = variants.generator("unrolled64_dual", stem_hidden=0)
    rng = np.random.default_rng(2)
    features = jnp.asarray(rng.random((1, 64, 64, 5)), jnp.float32)
    base, signal = features[..., -1], jnp.zeros((1, 3264))
    s, V = (a.astype(jnp.float32) for a in decomposition(4096, 6))
    measured = jnp.ones((1, 6)), s, V
    variables = jax.jit(model.init)(jax.random.key(0), signal, features, base, measured)
    apply = jax.jit(model.apply)
    out = apply(variables, signal, features, base, measured)
    np.testing.assert_array_equal(out.reconstruction, base)

    @jax.jit
    def slope(params):
        # Heads that start at zero hide what lies before them: give them something.
        params = jax.tree.map(lambda a: a + 0.01, params)
        f = lambda p, m: model.apply({"params": p}, signal, features, base, m)  # noqa: E731
        by_nu = jax.grad(lambda p: f(p, measured).reconstruction.sum())(params)
        by_signal = jax.grad(lambda a: f(params, (a, s, V)).segmentation.sum())(
            measured[0]
        )
        return by_nu, by_signal

    by_params, by_signal = slope(variables["params"])
    assert all(np.abs(by_params[f"log_nu_{n}"]) > 0 for n in (1, 2))
    assert np.all(np.abs(by_signal) > 0)
    with pytest.raises(ValueError, match="measured: expected it"):
        model.apply(variables, signal, features, base)
    with pytest.raises(ValueError, match="measured V: expected"):
        model.apply(variables, signal, features, base, (measured[0], s, V[:9]))
    with pytest.raises(ValueError, match="local_rounds: expected 1"):
        variants.generator("tg128_dual", local_rounds=2)
