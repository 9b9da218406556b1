"""Convolutional networks to compare the TransGAN with: CNN, ResNet, DCGAN, U-Net.

| row    | from                   | to the image by                                   |
|--------|------------------------|---------------------------------------------------|
| cnn    | signal, two-layer stem | two 3 x 3 convolutions a scale, bilinear x 2      |
| resnet | signal, two-layer stem | two residual blocks of two such convolutions      |
| dcgan  | signal, one layer      | transposed 4 x 4 convolutions; trained by a critic |
| unet   | three Tikhonov images  | the usual U, skips concatenated, bilinear x 2     |

Stand-ins of our own design: the dual-task TransGAN paper names a CNN, a ResNet and a
DCGAN but not their layers. All are called as transgan.Generator is and return
layers.Images without segmentation. GroupNorm and ReLU but in the DCGAN (Radford, Metz,
Chintala 2016, arXiv 1511.06434), which has batch statistics; the U-Net is after
Ronneberger, Fischer, Brox 2015 (arXiv 1505.04597).

Variants are rows of GENERATORS and DISCRIMINATORS. A smaller image drops the last
stages of the 128 x 128 network, whose parameters and multiply-adds an image are

| 128 x 128        | parameters without norms | GMAC |
|------------------|--------------------------|------|
| cnn              | 12,644,513               | 1.14 |
| resnet           | 13,513,953               | 2.08 |
| dcgan            | 29,533,153               | .16  |
| its critic       | 6,957,505                | .47  |
| unet             | 1,946,881                | 2.66 |
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mpi_jax.models import layers
from mpi_jax.models.layers import (
    START,
    Bases,
    Critiqued,
    Dtype,
    Features,
    Images,
    Maps,
    NewMaps,
    Signals,
    expect,
)

SLOPE = 0.2  # of LeakyReLU below zero


@dataclass(frozen=True)
class ConvConfig:
    """Sizes of a CNN or a ResNet; the defaults are the row "cnn128".

    `channels` has one entry per stage, at 8^2, 16^2, ... up to the image. Raises
    ValueError for sizes that do not fit together.
    """

    tasks: ClassVar[tuple[str, ...]] = ("recon",)
    features: ClassVar[int] = 0
    base: ClassVar[bool] = False

    input_size: int = 3264  # receive channels x samples, 2 x 1632
    image_size: int = 128
    channels: tuple[int, ...] = (128, 128, 96, 64, 32)
    stem_hidden: int = 1024
    blocks: int = 2  # per stage: convolutions, or residual blocks of two
    residual: bool = False
    groups: int = 8  # of GroupNorm
    dtype: Dtype = "float32"  # of activations; parameters stay float32

    def __post_init__(self):
        _check_stages(self, START, len(self.channels) - 1)
        _check_groups(self)

    @property
    def label(self) -> str:
        """Name in tables."""
        return "ResNet" if self.residual else "CNN"


@dataclass(frozen=True)
class DcganConfig:
    """Sizes of a DCGAN generator; the defaults are the row "dcgan128".

    `channels` has one entry per map, from 4^2 up to half the image; the last transposed
    convolution makes the image. Raises ValueError for sizes that do not fit together.
    """

    label: ClassVar[str] = "DCGAN"
    tasks: ClassVar[tuple[str, ...]] = ("recon",)
    features: ClassVar[int] = 0
    base: ClassVar[bool] = False

    input_size: int = 3264
    image_size: int = 128
    start: int = 4  # pixels per side of the first map
    channels: tuple[int, ...] = (512, 256, 128, 64, 32)
    dtype: Dtype = "float32"

    def __post_init__(self):
        _check_stages(self, self.start, len(self.channels))


@dataclass(frozen=True)
class UnetConfig:
    """Sizes of a U-Net; the defaults are the row "unet128".

    `channels` has one entry per level, from the image down, halving its side each time.
    The signal is taken but not looked at: `features` classical images hold it. Raises
    ValueError for sizes that do not fit together.
    """

    label: ClassVar[str] = "U-Net on Tikhonov images"
    tasks: ClassVar[tuple[str, ...]] = ("recon",)
    base: ClassVar[bool] = False

    input_size: int = 3264
    image_size: int = 128
    features: int = 3
    channels: tuple[int, ...] = (32, 64, 128, 256)
    groups: int = 8
    dtype: Dtype = "float32"

    def __post_init__(self):
        if self.features < 1:
            raise ValueError(f"features: expected 1 or more, got {self.features}")
        if not self.channels or self.image_size % 2 ** (len(self.channels) - 1):
            raise ValueError(
                f"image_size: expected a side to be halved {len(self.channels) - 1} "
                f"times, got {self.image_size}"
            )
        _check_groups(self)


@dataclass(frozen=True)
class DcganCriticConfig:
    """Sizes of a DCGAN discriminator; the defaults are the row "dcgan128".

    Each entry of `channels` halves the image. Raises ValueError if that can't be.
    """

    image_size: int = 128
    channels: tuple[int, ...] = (64, 128, 256, 512, 512)
    dtype: Dtype = "float32"

    def __post_init__(self):
        if not self.channels or self.image_size % 2 ** len(self.channels):
            raise ValueError(
                f"image_size: expected a side to be halved {len(self.channels)} times, "
                f"got {self.image_size}"
            )


def _check_stages(config, start, doublings):
    if not config.channels or config.image_size != start << doublings:
        raise ValueError(
            f"channels: expected as many as {start} x {start} pixels need to become "
            f"{config.image_size} x {config.image_size}, got {config.channels}"
        )


def _check_groups(config):
    if any(channels % config.groups for channels in config.channels):
        raise ValueError(
            f"groups: expected a divisor of all of {config.channels}, "
            f"got {config.groups}"
        )


def _check_inputs(config, signal, features, base):
    """ValueError if an input is missing, of another shape, or not configured."""
    side = (config.image_size, config.image_size)
    expect("signal", signal, (len(signal), config.input_size))
    shape = (len(signal), *side, config.features) if config.features else None
    expect("features", features, shape)
    expect("base", base, None)


def _image(x: Maps) -> Images:
    return Images(x[..., 0].astype(jnp.float32), None)


class ConvUnit(nn.Module):
    """3 x 3 convolution, GroupNorm, and ReLU unless it is the last of a residual."""

    channels: int
    groups: int
    dtype: Dtype
    active: bool = True

    @nn.compact
    def __call__(self, x: Maps) -> NewMaps:
        x = layers.conv3x3(self.channels, self.dtype, "conv")(x)
        x = nn.GroupNorm(self.groups, dtype=self.dtype, name="norm")(x)
        return nn.relu(x) if self.active else x


class ResidualBlock(nn.Module):
    """relu(skip x + two convolutions of x); skip: 1 x 1 where the width changes."""

    channels: int
    groups: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Maps) -> NewMaps:
        sizes = (self.channels, self.groups, self.dtype)
        new = ConvUnit(*sizes, name="first")(x)
        new = ConvUnit(*sizes, active=False, name="second")(new)
        if x.shape[-1] != self.channels:
            x = nn.Conv(self.channels, (1, 1), dtype=self.dtype, name="skip")(x)
        return nn.relu(x + new)


class ConvGenerator(nn.Module):
    """Signals [B, input_size] to `Images` [B, image_size, image_size]: CNN or ResNet."""

    config: ConvConfig

    @nn.compact
    def __call__(
        self,
        signal: Signals,
        features: Features | None = None,
        base: Bases | None = None,
        measured: tuple | None = None,
    ) -> Images:
        """features, base must be None; measured isn't looked at. Raises ValueError for wrong inputs."""
        cfg = self.config
        _check_inputs(cfg, signal, features, base)
        shape = (len(signal), START, START, cfg.channels[0])
        x = nn.Dense(cfg.stem_hidden, dtype=cfg.dtype, name="stem_hidden")(
            jnp.asarray(signal)
        )
        x = nn.Dense(math.prod(shape[1:]), dtype=cfg.dtype, name="stem")(nn.relu(x))
        x = nn.relu(x).reshape(shape)
        block = ResidualBlock if cfg.residual else ConvUnit
        for stage, channels in enumerate(cfg.channels):
            if stage:
                x = layers.resize(x, 2 * x.shape[1], "bilinear")
            for index in range(cfg.blocks):
                name = f"block_{x.shape[1]}_{index}"
                x = block(channels, cfg.groups, cfg.dtype, name=name)(x)
        return _image(nn.Conv(1, (3, 3), name="head")(x))


def batch_norm(module: nn.Module, name: str) -> nn.BatchNorm:
    """A norm by the statistics of the batch, or of many batches before it.

    Of the batch where the collection "batch_stats" is mutable, which then holds them
    after the call: averaging is up to whoever trains. Else by what the collection holds.
    module.axis_name: devices whose batches count as one.
    """
    return nn.BatchNorm(
        use_running_average=not module.is_mutable_collection("batch_stats"),
        momentum=0.0,
        axis_name=module.axis_name,
        dtype=module.config.dtype,
        scale_init=_around_one,
        name=name,
    )


def _around_one(key, shape, dtype=jnp.float32):
    return 1 + 0.02 * nn.initializers.normal(1.0)(key, shape, dtype)


_small = nn.initializers.normal(0.02)


class Dcgan(nn.Module):
    """Signals [B, input_size] to `Images` [B, image_size, image_size], linear output.

    See batch_norm for axis_name and for what makes it use batch statistics.
    """

    config: DcganConfig
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self,
        signal: Signals,
        features: Features | None = None,
        base: Bases | None = None,
        measured: tuple | None = None,
    ) -> Images:
        """features, base must be None; measured isn't looked at. Raises ValueError for wrong inputs."""
        cfg = self.config
        _check_inputs(cfg, signal, features, base)
        shape = (len(signal), cfg.start, cfg.start, cfg.channels[0])
        x = nn.Dense(math.prod(shape[1:]), dtype=cfg.dtype, name="stem")(
            jnp.asarray(signal)
        )
        x = x.reshape(shape)
        for channels in (*cfg.channels[1:], 1):
            x = nn.relu(batch_norm(self, f"norm_{x.shape[1]}")(x))
            x = nn.ConvTranspose(
                channels,
                (4, 4),
                strides=(2, 2),
                padding="SAME",
                use_bias=channels == 1,  # a norm follows, which has its own
                dtype=cfg.dtype,
                kernel_init=_small,
                name=f"to_{2 * x.shape[1]}",
            )(x)
        return _image(x)


class DcganCritic(nn.Module):
    """Images to one logit each. Call it with "batch_stats" mutable, see batch_norm:
    its scores depend on the batch.
    """

    config: DcganCriticConfig
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: Critiqued) -> Float[Array, " batch"]:
        """images [B, n, n, 1] to logits [B], float32. ValueError for other shapes."""
        cfg = self.config
        side = (cfg.image_size, cfg.image_size)
        expect("images", images, (len(images), *side, 1))
        x = jnp.asarray(images)
        for index, channels in enumerate(cfg.channels):
            x = nn.Conv(
                channels,
                (4, 4),
                strides=2,
                padding=1,
                use_bias=index == 0,
                dtype=cfg.dtype,
                kernel_init=_small,
                name=f"conv_{index}",
            )(x)
            if index:
                x = batch_norm(self, f"norm_{index}")(x)
            x = nn.leaky_relu(x, SLOPE)
        return nn.Dense(1, kernel_init=_small, name="head")(x.reshape(len(x), -1))[:, 0]


class Unet(nn.Module):
    """Classical images to `Images` [B, image_size, image_size]."""

    config: UnetConfig

    @nn.compact
    def __call__(
        self,
        signal: Signals,
        features: Features | None = None,
        base: Bases | None = None,
        measured: tuple | None = None,
    ) -> Images:
        """features [B, ny, nx, F]; base must be None; measured isn't looked at.

        Raises ValueError for wrong inputs.
        """
        cfg = self.config
        _check_inputs(cfg, signal, features, base)

        def level(name, channels, x):
            for index in range(2):
                unit = ConvUnit(channels, cfg.groups, cfg.dtype, name=f"{name}_{index}")
                x = unit(x)
            return x

        x, skips = jnp.asarray(features, cfg.dtype), []
        for index, channels in enumerate(cfg.channels):
            if index:
                skips.append(x)
                x = layers.average_pool(x, x.shape[1] // 2)
            x = level(f"down_{x.shape[1]}", channels, x)
        for skip in reversed(skips):
            x = layers.resize(x, skip.shape[1], "bilinear")
            x = jnp.concatenate([x, skip], axis=-1)
            x = level(f"up_{x.shape[1]}", skip.shape[-1], x)
        return _image(nn.Conv(1, (1, 1), name="head")(x))


def generator(name: str, **overrides) -> ConvGenerator | Dcgan | Unet:
    """The generator of a row of GENERATORS, with fields of its config replaced.

    Raises ValueError for an unknown row or sizes that do not fit together.
    """
    config = layers.row(GENERATORS, name, overrides)
    modules = {ConvConfig: ConvGenerator, DcganConfig: Dcgan, UnetConfig: Unet}
    return modules[type(config)](config)


def discriminator(name: str, **overrides) -> DcganCritic:
    """The discriminator of a row of DISCRIMINATORS, likewise."""
    return DcganCritic(layers.row(DISCRIMINATORS, name, overrides))


def _sizes(name, config, dropped=0):
    """Rows of a network for 128, 64 and 32 pixels; dropped: stages a halving costs."""
    rows = {}
    for halvings, side in enumerate((128, 64, 32)):
        channels = config.channels[: len(config.channels) - dropped * halvings]
        rows[f"{name}{side}"] = replace(config, image_size=side, channels=channels)
    return rows


GENERATORS: dict[str, ConvConfig | DcganConfig | UnetConfig] = (
    _sizes("cnn", ConvConfig(), 1)
    | _sizes("resnet", ConvConfig(residual=True), 1)
    | _sizes("dcgan", DcganConfig(), 1)
    | _sizes("unet", UnetConfig())
)
DISCRIMINATORS: dict[str, DcganCriticConfig] = _sizes("dcgan", DcganCriticConfig(), 1)
