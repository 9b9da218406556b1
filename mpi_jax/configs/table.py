"""The learned rows of the paper's Table 1 as variations of one run.

Steps, batches, data, optimiser and seed are the base's in every row: what differs is the
network, what it is given of the physics, and the loss. `matched` has the
parameters and the arithmetic of the dual-task row (mpi_jax.models.transgan); the layers
of CNN, ResNet, DCGAN and U-Net are ours (mpi_jax.models.baselines), for the paper does
not give its own.
"""

import dataclasses

from mpi_jax.configs.names import LEARNED
from mpi_jax.configs.schema import Config, PhysicsConfig

TIKHONOV = (1e-3, 1e-4, 1e-5)  # the images of the U-Net


def rows(
    base: Config, plain: str, guided: str, physics: PhysicsConfig, side: int
) -> dict[str, Config]:
    """Name -> Config of all variations LEARNED of `base`, whose name begins theirs.

    plain, guided: rows of transgan.GENERATORS with {} for the tasks, without and with
    physics features; physics: what the latter get; side: of the baselines' images.
    """
    regression = dataclasses.replace(base.loss, adversarial=0.0)
    # Four as in TransGAN (Jiang et al. 2021): this critic is only useful near its optimum.
    wasserstein = dataclasses.replace(base.loss, kind="wgangp", critic_steps=4)
    tikhonov = dataclasses.replace(physics, lams=TIKHONOV, iterations=0, refine=0)
    dual = {"generator": plain.format("dual")}

    def weighted(weight):
        return dual | {"loss": dataclasses.replace(base.loss, adversarial=weight)}

    def physical(tasks):
        return {"generator": guided.format(tasks), "physics": physics}

    def baseline(name, **changes):
        # No Transformer blocks, nothing to recompute.
        return {"generator": f"{name}{side}", "loss": regression, "remat": False} | (
            changes
        )

    variations = {
        "dual": dual,
        "single": {"generator": plain.format("single")},
        "matched": {"generator": plain.format("single_matched")},
        "cnn": baseline("cnn"),
        "resnet": baseline("resnet"),
        "dcgan": baseline("dcgan", loss=base.loss, discriminator=f"dcgan{side}"),
        "no_gan": dual | {"loss": regression},
        "wgan": dual | {"loss": wasserstein},
        "gan_0.1": weighted(0.1),
        "gan_1": weighted(1.0),
        "unet": baseline("unet", physics=tikhonov),
        "physics": physical("dual"),
        "physics_single": physical("single"),
        "physics_matched": physical("single_matched"),
    }
    rows = {}
    for variation in LEARNED:
        name = f"{base.name}_{variation}"
        rows[name] = dataclasses.replace(base, name=name, **variations[variation])
    return rows
