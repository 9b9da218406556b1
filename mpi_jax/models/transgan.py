"""Dual-task TransGAN: voltage signal to image and segmentation, and its critic.

| part      | what it does                                                        |
|-----------|---------------------------------------------------------------------|
| stem      | MLP from the signal to an 8 x 8 map                                 |
| stages    | Transformer blocks at 8^2, 16^2, ... up to the image's own pixels   |
| split     | stages up to `split_at` are shared, later ones exist once per task  |
| heads     | 1 x 1 convolution: reconstruction (linear), segmentation (logit)    |
| features  | optional: classical images added to every stage by 3 x 3 convs      |
| local     | optional: residual 3 x 3 convolutions at full resolution            |
| base      | optional: a classical image that the network only has to correct    |
| rounds    | optional: the local path made consistent with the signal in between |

The dual-task TransGAN paper fixes the stem (8 x 8 x 128), four up-samplings, two
branches and the outputs. What it leaves open follows TransGAN for 256^2 images (Jiang,
Chang, Wang 2021, arXiv 2102.07074): depths, bicubic then pixel shuffle, cells of 16
above 32^2. Features, base and local path are ours, and bring in the system matrix,
which the paper names as future work: what minutes on a CPU can learn is the correction
of a classical image, not the map from signals to images.

Variants are rows of GENERATORS and DISCRIMINATORS; every size is a field of the row.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

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
    Norm,
    Signals,
    expect,
)

Task = Literal["recon", "seg"]

MEAN_FILL_LOGIT = -2.8  # of a mean fill of 5.6 %
MASK_GAIN = 8.0  # the base image at 0 or 1 starts as a mask at 2 % or 98 %

# Of a consistency step: singular values below 1 % of the largest are left to the network.
_first_log_nu = nn.initializers.constant(math.log(1e-4))
# 1e-2 of the usual size: the first images are faint, but every layer gets a gradient.
faint_normal = nn.initializers.variance_scaling(1e-4, "fan_in", "truncated_normal")


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes of a generator; the defaults are the row "tg128_dual".

    `channels`, `depths`, `heads` and `windows` (cell side in tokens) have one entry per
    stage. Raises ValueError for sizes that do not fit together.
    """

    input_size: int = 3264  # receive channels x samples, 2 x 1632
    image_size: int = 128
    channels: tuple[int, ...] = (128, 128, 128, 32, 8)
    depths: tuple[int, ...] = (5, 4, 4, 4, 4)
    heads: tuple[int, ...] = (4, 4, 4, 4, 2)
    windows: tuple[int, ...] = (8, 16, 32, 16, 16)
    stem_hidden: int | None = 1024  # None: one linear layer; 0: no stem at all
    split_at: int = 16  # last shared resolution
    shuffle_from: int = 64  # pixel shuffle to this resolution and above, bicubic below
    tasks: tuple[Task, ...] = ("recon", "seg")
    norm: Norm = "pixel"
    features: int = 0  # number of classical images injected into the stages
    base: bool = False  # a classical image is given, and added to the output
    local_channels: int = 0  # width of the path at full resolution
    local_blocks: int = 0  # convolutions a round; 0: no such path
    local_rounds: int = 1  # of that path, a consistency step between two of them
    dtype: Dtype = "float32"  # of activations; parameters stay float32
    remat: bool = False  # recompute each block in the backward pass

    def __post_init__(self):
        sizes = self.resolutions
        if sizes[-1] != self.image_size or self.image_size < START:
            raise ValueError(
                f"image_size: expected {START} times a power of two, "
                f"got {self.image_size}"
            )
        for name in ("channels", "depths", "heads", "windows"):
            if len(getattr(self, name)) != len(sizes):
                raise ValueError(
                    f"{name}: expected {len(sizes)} entries for stages {sizes}, "
                    f"got {getattr(self, name)}"
                )
        for size, channels, heads, window in zip(
            sizes, self.channels, self.heads, self.windows, strict=True
        ):
            if channels % heads:
                raise ValueError(
                    f"heads: expected a divisor of {channels} channels at {size}, "
                    f"got {heads}"
                )
            if size % window:
                raise ValueError(f"windows: expected a divisor of {size}, got {window}")
        if self.split_at not in sizes:
            raise ValueError(f"split_at: expected one of {sizes}, got {self.split_at}")
        if self.tasks not in (("recon",), ("recon", "seg")):
            raise ValueError(
                f"tasks: expected ('recon',) or ('recon', 'seg'), got {self.tasks}"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(
                f"dtype: expected 'float32' or 'bfloat16', got {self.dtype!r}"
            )
        if self.norm not in ("pixel", "layer"):
            raise ValueError(f"norm: expected 'pixel' or 'layer', got {self.norm!r}")
        if self.stem_hidden == 0 and not self.features:
            raise ValueError("stem_hidden: expected a stem without features, got 0")
        if bool(self.local_channels) != bool(self.local_blocks):
            raise ValueError(
                "local_channels, local_blocks: expected both or neither, "
                f"got {self.local_channels}, {self.local_blocks}"
            )
        if self.local_blocks and not (self.features or self.base):
            raise ValueError("local_blocks: expected features or base to work on")
        unrolled = self.local_rounds > 1
        if self.local_rounds < 1 or (
            unrolled and not (self.local_blocks and self.base)
        ):
            raise ValueError(
                "local_rounds: expected 1, or more with local_blocks and a base, got "
                f"{self.local_rounds}"
            )

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Pixels per side of the stages, START first."""
        doublings = int(math.log2(max(self.image_size, START) / START))
        return tuple(START << step for step in range(doublings + 1))


def consistent(
    image: Float[Array, "B ny nx"],
    coefficients: Float[Array, "B k"],
    s: Float[Array, " k"],
    V: Float[Array, "P k"],
    nu: Float[Array, ""] | float,
) -> Float[Array, "B ny nx"]:
    """The image nearest to the given one that explains the measured coefficients.

    The minimiser z of |s V^T z - coefficients|^2 + nu |z - image|^2, for a truncated
    singular value decomposition with orthonormal V; what V doesn't see stays as it is.
    """
    flat = image.reshape(len(image), -1)
    s = s[None]
    misfit = coefficients - s * (flat @ V)
    return (flat + (s / (s * s + nu) * misfit) @ V.T).reshape(image.shape)


class Generator(nn.Module):
    """Signals [B, input_size] to `Images` [B, image_size, image_size]."""

    config: GeneratorConfig

    @nn.compact
    def __call__(
        self,
        signal: Signals,
        features: Features | None = None,
        base: Bases | None = None,
        measured: tuple[Array, Array, Array] | None = None,
    ) -> Images:
        """Run the network.

        features: classical images [B, ny, nx, F], F = config.features, None if 0.
        base: the image [B, ny, nx] to correct if config.base, else None. With it the
        heads start at zero, so that the first reconstruction is the base itself and the
        first logit is 8 (base - 1/2); the gain and a shift are learned.
        measured: (coefficients [B, k], s [k], V [P, k]), the signal in a truncated
        singular value decomposition of the system matrix: coefficients are s V^T image,
        with noise. Needed for config.local_rounds > 1, not looked at otherwise.

        Raises ValueError if an input is missing, not configured or of another shape.
        """
        cfg = self.config
        side = (cfg.image_size, cfg.image_size)
        batch = len(signal)
        expect("signal", signal, (batch, cfg.input_size))
        expect(
            "features", features, (batch, *side, cfg.features) if cfg.features else None
        )
        expect("base", base, (batch, *side) if cfg.base else None)
        if cfg.local_rounds > 1:
            if measured is None:
                raise ValueError("measured: expected it for local_rounds > 1, got None")
            coefficients, s, V = measured
            expect("measured coefficients", coefficients, (batch, len(s)))
            expect("measured V", V, (cfg.image_size**2, len(s)))

        early = [stage for stage in self._stages() if stage[0] <= cfg.split_at]
        late = [stage for stage in self._stages() if stage[0] > cfg.split_at]
        x = self._run("shared", early, self._stem(signal), features)
        base = None if base is None else jnp.asarray(base, jnp.float32)
        local = None
        if cfg.local_blocks:
            local, base = self._local(x, features, base, measured)
        entry = self._enlarge("shared", x)
        heads = {}
        for task in cfg.tasks:
            branch = self._run(task, late, entry, features)
            if local is not None:
                branch = self._dense(cfg.local_channels, f"{task}_join")(branch)
                branch = nn.relu(local + branch)
            heads[task] = self._head(task, branch)

        segmentation = heads.get("seg")
        if base is None:
            return Images(heads["recon"], segmentation)
        if segmentation is not None:
            gain = self.param("seg_gain", nn.initializers.constant(MASK_GAIN), ())
            segmentation = segmentation + gain * (base - 0.5)
        return Images(heads["recon"] + base, segmentation)

    def _stages(self):
        """Rows (resolution, channels, depth, heads, window)."""
        cfg = self.config
        return zip(
            cfg.resolutions,
            cfg.channels,
            cfg.depths,
            cfg.heads,
            cfg.windows,
            strict=True,
        )

    def _stem(self, signal) -> Maps:
        """The first map; all zeros, for positions and features to fill, if no stem."""
        cfg = self.config
        shape = (len(signal), START, START, cfg.channels[0])
        if cfg.stem_hidden == 0:
            return jnp.zeros(shape, cfg.dtype)
        x = jnp.asarray(signal)
        if cfg.stem_hidden is not None:
            x = self._dense(cfg.stem_hidden, "stem_hidden", layers.fan_in_normal)(x)
            x = nn.gelu(x, approximate=False)
        size = math.prod(shape[1:])
        return self._dense(size, "stem", layers.fan_in_normal)(x).reshape(shape)

    def _run(self, owner, stages, x, features) -> Maps:
        """Take x through consecutive stages, whose parameters `owner` has."""
        cfg = self.config
        for index, (size, channels, depth, heads, window) in enumerate(stages):
            if index:
                x = self._enlarge(owner, x)
            if features is not None:
                pooled = layers.average_pool(jnp.asarray(features), size)
                x = x + self._conv(channels, f"{owner}_{size}_features")(pooled)
            x = layers.Stage(
                depth,
                heads,
                window,
                cfg.norm,
                cfg.dtype,
                cfg.remat,
                name=f"{owner}_{size}",
            )(x)
        return x

    def _enlarge(self, owner, x) -> Maps:
        """x for the stage that follows; x itself after the last."""
        cfg = self.config
        size = 2 * x.shape[1]
        if size > cfg.image_size:
            return x
        channels = cfg.channels[cfg.resolutions.index(size)]
        return layers.Upsample(
            channels, size >= cfg.shuffle_from, cfg.dtype, name=f"{owner}_to_{size}"
        )(x)

    def _local(self, x, features, base, measured) -> tuple[Maps, Any]:
        """Full-resolution trunk of all tasks, and the image that is left to correct.

        It sees classical images and what x knows. After each round but the last the
        image is corrected, and its difference to the measurement goes into the next.
        """
        cfg = self.config
        images = [] if features is None else [jnp.asarray(features)]
        images += [] if base is None else [jnp.asarray(base)[..., None]]
        context = self._dense(cfg.local_channels, "local_context")(x)
        x = self._conv(cfg.local_channels, "local_images")(jnp.concatenate(images, -1))
        x = x + layers.resize(context, cfg.image_size, "bilinear")
        for index in range(cfg.local_rounds * cfg.local_blocks):
            if index and index % cfg.local_blocks == 0:
                number = index // cfg.local_blocks
                base = base + self._zero_dense(f"local_image_{number}")(x)[..., 0]
                log_nu = self.param(f"log_nu_{number}", _first_log_nu, ())
                coefficients, s, V = measured
                nearer = consistent(base, coefficients, s, V, jnp.exp(log_nu))
                both = jnp.stack([base, nearer], axis=-1)
                x = x + self._conv(cfg.local_channels, f"local_return_{number}")(both)
            conv = self._conv(cfg.local_channels, f"local_{index}")
            x = x + conv(nn.relu(x))
        return x, base

    def _head(self, task, x) -> Float[Array, "batch ny nx"]:
        """One channel, float32. With a base the head starts at zero."""
        if self.config.base:
            kernel_init, bias = nn.initializers.zeros, 0.0
        elif task == "recon":
            kernel_init, bias = faint_normal, 0.0
        else:
            kernel_init, bias = layers.small_normal, MEAN_FILL_LOGIT
        head = nn.Dense(
            1,
            kernel_init=kernel_init,
            bias_init=nn.initializers.constant(bias),
            name=f"{task}_head",
        )
        return head(x)[..., 0]

    def _zero_dense(self, name) -> nn.Dense:
        """Maps to one float32 channel that is 0 at first."""
        return nn.Dense(1, kernel_init=nn.initializers.zeros, name=name)

    def _dense(self, channels, name, kernel_init=layers.small_normal) -> nn.Dense:
        return layers.dense(
            channels, dtype=self.config.dtype, kernel_init=kernel_init, name=name
        )

    def _conv(self, channels, name) -> nn.Conv:
        return layers.conv3x3(channels, self.config.dtype, name)


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Sizes of a discriminator; the defaults are the row "df192".

    `depths` counts the blocks at image_size / 4, / 8 and / 16, whose channels are
    width / 4, width / 2 and width. Raises ValueError for sizes that do not fit.
    """

    image_size: int = 128
    inputs: int = 1  # image channels: reconstruction, and mask or classical image
    width: int = 192
    depths: tuple[int, int, int] = (3, 3, 4)
    heads: int = 4
    max_window: int = 16  # cells of this side, or the whole map where it is smaller
    norm: Norm = "pixel"
    dtype: Dtype = "float32"
    remat: bool = False

    def __post_init__(self):
        if self.image_size < 16 or self.image_size & (self.image_size - 1):
            raise ValueError(
                f"image_size: expected a power of two from 16 on, got {self.image_size}"
            )
        if self.width % (4 * self.heads):
            raise ValueError(
                f"width: expected a multiple of 4 x {self.heads} heads, "
                f"got {self.width}"
            )
        if self.inputs < 1:
            raise ValueError(f"inputs: expected 1 or more, got {self.inputs}")


class Discriminator(nn.Module):
    """Images to one logit each: large for true images, small for generated ones.

    Three scales. Each halves the map before it by averaging and joins a fresh, coarser
    view of the image; a class token then gathers the last map. No batch statistics, so
    an image's score does not depend on its batch nor on the number of devices.
    """

    config: DiscriminatorConfig

    @nn.compact
    def __call__(self, images: Critiqued) -> Float[Array, " batch"]:
        """images [B, n, n, inputs] to logits [B], float32.

        Raises ValueError for other shapes.
        """
        cfg = self.config
        side = (cfg.image_size, cfg.image_size)
        expect("images", images, (len(images), *side, cfg.inputs))
        images = jnp.asarray(images)
        quarter, half = cfg.width // 4, cfg.width // 2

        # channels, kernel, stride, padding: the finest view overlaps, 8 pixels every 4
        views = (quarter, 8, 4, 2), (quarter, 8, 8, 0), (half, 16, 16, 0)
        x = images  # what the scales before made of them
        for scale, (channels, kernel, stride, padding) in enumerate(views):
            view = layers.strided(
                channels, kernel, stride, padding, cfg.dtype, f"view_{scale}"
            )(images)
            size = view.shape[1]
            if scale:
                view = jnp.concatenate([layers.average_pool(x, size), view], axis=-1)
            x = layers.Stage(
                cfg.depths[scale],
                cfg.heads,
                min(cfg.max_window, size),
                cfg.norm,
                cfg.dtype,
                cfg.remat,
                name=f"scale_{scale}",
            )(view)

        tokens = x.reshape(len(x), 1, -1, cfg.width)
        token = self.param("class_token", layers.small_normal, (cfg.width,))
        token = jnp.broadcast_to(
            token.astype(x.dtype)[None, None, None], (len(x), 1, 1, cfg.width)
        )
        tokens = layers.block(
            cfg.remat,
            heads=cfg.heads,
            window=None,
            norm=cfg.norm,
            dtype=cfg.dtype,
            name="class_block",
        )(jnp.concatenate([token, tokens], axis=2))
        verdict = layers.normalisation(cfg.norm, "float32", "norm")(tokens[:, 0, 0])
        head = nn.Dense(1, kernel_init=layers.small_normal, name="head")
        return head(verdict)[:, 0]
