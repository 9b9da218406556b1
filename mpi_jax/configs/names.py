"""The names of all runs, and what weights ship for."""

import importlib

from mpi_jax._spelling import expect_one_of
from mpi_jax.configs.schema import Config

# The learned methods of the paper's Table 1: rows of every table of runs.
LEARNED = {
    "dual": "dual-task TransGAN",
    "single": "single-task TransGAN",
    "matched": "single-task with the parameters and arithmetic of dual",
    "cnn": "CNN",
    "resnet": "ResNet",
    "dcgan": "DCGAN",
    "no_gan": "dual without adversary",
    "wgan": "dual with WGAN-GP",
    "gan_0.1": "dual with an adversarial weight of 0.1",
    "gan_1": "dual with the paper's adversarial weight, 1",
    "unet": "U-Net on Tikhonov images",
    "physics": "dual-task with physics features",
    "physics_single": "single-task with physics features",
    "physics_matched": "the same, matched to physics",
}
TABLES = {
    "paper": "128 x 128, accelerator",
    "table64": "64 x 64, 40 dB, half a CPU hour each",
    "table32": "32 x 32, 40 dB, as many images as the paper's, a CPU hour or two each",
}
_TABLE_OF = {  # paper itself is its dual-task row
    f"{table}_{row}": table
    for table in TABLES
    for row in LEARNED
    if (table, row) != ("paper", "dual")
}
# name -> one line for `mpi-jax configs`; the settings stand in the module of the same name, those
# of a row in the module of its table.
CONFIGS = {
    "test": "seconds: 16 images of 32 x 32 a step, a few steps; for tests and CI",
    "small": "CPU minutes: 32 x 32, dual-task, physics features, 40 dB; the demo",
    "small_single": "the same with the reconstruction task alone",
    "small32": "half a CPU hour: 32 x 32, dual-task, physics features, 35 to 50 dB",
    "small64": "CPU hours: 64 x 64, dual-task, physics features, 35 to 50 dB",
    "paper": "128 x 128, 3264 inputs, TG-128 dual-task as the paper describes it",
    "open_mpi": "32 x 32 on the system matrix of an MDF file (--calibration.path), dual-task",
    "open_mpi_single": "the same with the reconstruction task alone",
    "open_mpi64": "the same at 64 x 64, dual-task",
    "open_mpi64_single": "the same at 64 x 64 with the reconstruction task alone",
} | {
    name: f"{TABLES[table]}: {LEARNED[name.removeprefix(f'{table}_')]}"
    for name, table in _TABLE_OF.items()
}

# Configs that weights ship for (mpi_jax/weights), the default first -> SHA-256 of the file.
SHIPPED = {
    "small64": "48366a3593e217f7e6b45286b50303d28beef7e9d62660c04e34750919a2279e",
    "small32": "9293ca7a3b272a33babcdbe6cc9174923dde8d566533f246f0444316191ce6be",
}


def get(name: str) -> Config:
    """The config of a name of CONFIGS; ValueError for any other."""
    expect_one_of("config", name, CONFIGS)
    if name in _TABLE_OF:
        return importlib.import_module(f"mpi_jax.configs.{_TABLE_OF[name]}").ROWS[name]
    return importlib.import_module(f"mpi_jax.configs.{name}").CONFIG
