"""The networks of mpi_jax.models.transgan in PyTorch, as a peer to measure against.

The same layers with the same parameters, built from the same configs; `load` copies the
weights of the Flax modules, and complains where a name or a shape differs. Written as
one would for a CPU in PyTorch: maps [B, ny, nx, C] are its channels_last format, so that
a convolution takes them as they lie and so does a Linear layer. Attention with a learned
bias is products and a softmax, because scaled_dot_product_attention has no fast path on a
CPU for a mask that wants a gradient (it takes 1.2 to 1.7 times as long); the block
without bias uses it.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mpi_jax.models.layers import START
from mpi_jax.models.transgan import DiscriminatorConfig, GeneratorConfig


class PixelNorm(nn.Module):
    """x / sqrt(mean over channels of x^2 + 1e-8), without parameters."""

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], eps=1e-8)


def normalisation(kind: str, channels: int) -> nn.Module:
    return PixelNorm() if kind == "pixel" else nn.LayerNorm(channels, eps=1e-6)


class Convolution(nn.Conv2d):
    """A convolution of maps [B, ny, nx, C], by default 3 x 3 that keeps their size."""

    def __init__(self, inputs, outputs, kernel=3, stride=1, padding=1):
        super().__init__(inputs, outputs, kernel, stride, padding)
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def resize(x, size: int, mode: str):
    """Maps at size x size pixels; `antialias` is what makes bicubic that of JAX."""
    x = x.permute(0, 3, 1, 2)
    x = F.interpolate(x, (size, size), mode=mode, antialias=mode == "bicubic")
    return x.permute(0, 2, 3, 1)


def average_pool(x, size: int):
    return F.avg_pool2d(x.permute(0, 3, 1, 2), x.shape[1] // size).permute(0, 2, 3, 1)


def relative_bias(table):
    """Bias [heads, T, T] of a table [2w - 1, 2w - 1, heads] by offset key - query."""
    w = (len(table) + 1) // 2
    both = table.unfold(0, w, 1).unfold(1, w, 1).flip(0, 1)  # [qy, qx, heads, ky, kx]
    return both.permute(2, 0, 1, 3, 4).reshape(-1, w * w, w * w)


class Attention(nn.Module):
    """Multi-head self-attention within each cell of tokens [B, cells, T, C]."""

    def __init__(self, channels: int, heads: int, window: int | None):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.out = nn.Linear(channels, channels)
        side = None if window is None else 2 * window - 1
        table = None if side is None else nn.Parameter(torch.zeros(side, side, heads))
        self.register_parameter("relative", table)

    def forward(self, x):
        batch, cells, tokens, channels = x.shape
        width = channels // self.heads
        qkv = self.qkv(x).view(batch * cells, tokens, 3, self.heads, width)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if self.relative is None:
            mixed = F.scaled_dot_product_attention(query, key, value)
        else:
            scores = (query * width**-0.5) @ key.mT + relative_bias(self.relative)
            mixed = scores.softmax(-1) @ value
        return self.out(mixed.transpose(1, 2).reshape(x.shape))


class Mlp(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.widen = nn.Linear(channels, 4 * channels)
        self.narrow = nn.Linear(4 * channels, channels)

    def forward(self, x):
        return self.narrow(F.gelu(self.widen(x)))


class Block(nn.Module):
    """Pre-norm Transformer block."""

    def __init__(self, channels: int, heads: int, window: int | None, norm: str):
        super().__init__()
        self.norm_attention = normalisation(norm, channels)
        self.attention = Attention(channels, heads, window)
        self.norm_mlp = normalisation(norm, channels)
        self.mlp = Mlp(channels)

    def forward(self, x):
        x = x + self.attention(self.norm_attention(x))
        return x + self.mlp(self.norm_mlp(x))


class Stage(nn.Module):
    """Learned positions, then `depth` blocks in cells of side `window`, on one map."""

    def __init__(self, size, channels, depth, heads, window, norm):
        super().__init__()
        self.window, self.depth = window, depth
        self.position = nn.Parameter(torch.zeros(size, size, channels))
        for index in range(depth):
            block = Block(channels, heads, window, norm)
            self.add_module(f"block_{index}", block)

    def forward(self, x):
        batch, ny, nx, channels = x.shape
        w = self.window
        x = (x + self.position).view(batch, ny // w, w, nx // w, w, channels)
        x = x.transpose(2, 3).reshape(batch, -1, w * w, channels)
        for index in range(self.depth):
            x = self.get_submodule(f"block_{index}")(x)
        x = x.view(batch, ny // w, nx // w, w, w, channels).transpose(2, 3)
        return x.reshape(batch, ny, nx, channels)


class Upsample(nn.Module):
    """Twice the pixels per side: bicubic, or pixel shuffle of four times the channels."""

    def __init__(self, inputs: int, outputs: int, shuffle: bool):
        super().__init__()
        needed = 4 * outputs if shuffle else outputs
        self.shuffle = shuffle
        self.width = nn.Linear(inputs, needed) if inputs != needed else nn.Identity()

    def forward(self, x):
        x = self.width(x)
        if not self.shuffle:
            return resize(x, 2 * x.shape[1], "bicubic")
        return F.pixel_shuffle(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


def consistent(image, coefficients, s, V, nu):
    """The image nearest to the given one that explains the measured coefficients."""
    flat = image.flatten(1)
    misfit = coefficients - s * (flat @ V)
    return (flat + (s / (s * s + nu) * misfit) @ V.T).view(image.shape)


class Generator(nn.Module):
    """Signals [B, input_size] to a reconstruction and a segmentation logit (or None)."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = cfg = config
        # By the names of the Flax modules.
        self.parts, self.scalars = nn.ModuleDict(), nn.ParameterDict()
        self.early = [
            n for n, size in enumerate(cfg.resolutions) if size <= cfg.split_at
        ]
        self.late = [n for n, size in enumerate(cfg.resolutions) if size > cfg.split_at]
        first = START * START * cfg.channels[0]
        if cfg.stem_hidden:
            self.parts["stem_hidden"] = nn.Linear(cfg.input_size, cfg.stem_hidden)
        if cfg.stem_hidden != 0:
            self.parts["stem"] = nn.Linear(cfg.stem_hidden or cfg.input_size, first)
        self._build("shared", self.early)
        if cfg.local_blocks:
            self._build_local()
        self._build_enlarge("shared", self.early[-1])
        for task in cfg.tasks:
            self._build(task, self.late)
            channels = cfg.channels[-1]
            if cfg.local_blocks:
                self.parts[f"{task}_join"] = nn.Linear(channels, cfg.local_channels)
                channels = cfg.local_channels
            self.parts[f"{task}_head"] = nn.Linear(channels, 1)
        if cfg.base and "seg" in cfg.tasks:
            self.scalars["seg_gain"] = nn.Parameter(torch.zeros(()))

    def _build(self, owner, stages):
        cfg = self.config
        for index, n in enumerate(stages):
            if index:
                self._build_enlarge(owner, n - 1)
            size, channels = cfg.resolutions[n], cfg.channels[n]
            if cfg.features:
                conv = Convolution(cfg.features, channels)
                self.parts[f"{owner}_{size}_features"] = conv
            self.parts[f"{owner}_{size}"] = Stage(
                size, channels, cfg.depths[n], cfg.heads[n], cfg.windows[n], cfg.norm
            )

    def _build_enlarge(self, owner, n):
        cfg = self.config
        if n + 1 < len(cfg.resolutions):
            size = cfg.resolutions[n + 1]
            self.parts[f"{owner}_to_{size}"] = Upsample(
                cfg.channels[n], cfg.channels[n + 1], size >= cfg.shuffle_from
            )

    def _build_local(self):
        cfg, width = self.config, self.config.local_channels
        self.parts["local_context"] = nn.Linear(cfg.channels[self.early[-1]], width)
        self.parts["local_images"] = Convolution(cfg.features + cfg.base, width)
        for index in range(cfg.local_rounds * cfg.local_blocks):
            self.parts[f"local_{index}"] = Convolution(width, width)
        for number in range(1, cfg.local_rounds):
            self.parts[f"local_image_{number}"] = nn.Linear(width, 1)
            self.parts[f"local_return_{number}"] = Convolution(2, width)
            self.scalars[f"log_nu_{number}"] = nn.Parameter(torch.zeros(()))

    def forward(self, signal, features=None, base=None, measured=None):
        cfg, parts = self.config, self.parts
        x = self._run("shared", self.early, self._stem(signal), features)
        local = None
        if cfg.local_blocks:
            local, base = self._local(x, features, base, measured)
        entry = self._enlarge("shared", x)
        heads = {}
        for task in cfg.tasks:
            branch = self._run(task, self.late, entry, features)
            if local is not None:
                branch = F.relu(local + parts[f"{task}_join"](branch))
            heads[task] = parts[f"{task}_head"](branch)[..., 0]
        reconstruction, segmentation = heads["recon"], heads.get("seg")
        if base is None:
            return reconstruction, segmentation
        if segmentation is not None:
            segmentation = segmentation + self.scalars["seg_gain"] * (base - 0.5)
        return reconstruction + base, segmentation

    def _stem(self, signal):
        cfg, parts = self.config, self.parts
        shape = (len(signal), START, START, cfg.channels[0])
        if cfg.stem_hidden == 0:
            return signal.new_zeros(shape)
        if cfg.stem_hidden is not None:
            signal = F.gelu(parts["stem_hidden"](signal))
        return parts["stem"](signal).view(shape)

    def _run(self, owner, stages, x, features):
        for index, n in enumerate(stages):
            if index:
                x = self._enlarge(owner, x)
            size = self.config.resolutions[n]
            if features is not None:
                pooled = average_pool(features, size)
                x = x + self.parts[f"{owner}_{size}_features"](pooled)
            x = self.parts[f"{owner}_{size}"](x)
        return x

    def _enlarge(self, owner, x):
        name = f"{owner}_to_{2 * x.shape[1]}"
        return self.parts[name](x) if name in self.parts else x

    def _local(self, x, features, base, measured):
        cfg, parts = self.config, self.parts
        images = [] if features is None else [features]
        images += [] if base is None else [base[..., None]]
        context = resize(parts["local_context"](x), cfg.image_size, "bilinear")
        x = parts["local_images"](torch.cat(images, -1)) + context
        for index in range(cfg.local_rounds * cfg.local_blocks):
            if index and index % cfg.local_blocks == 0:
                number = index // cfg.local_blocks
                base = base + parts[f"local_image_{number}"](x)[..., 0]
                nu = self.scalars[f"log_nu_{number}"].exp()
                both = torch.stack([base, consistent(base, *measured, nu)], -1)
                x = x + parts[f"local_return_{number}"](both)
            x = x + parts[f"local_{index}"](F.relu(x))
        return x, base


class Discriminator(nn.Module):
    """Images [B, n, n, inputs] to one logit each."""

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        cfg, width = config, config.width
        # channels of the view and of the map, kernel, stride, padding
        views = (
            (width // 4, width // 4, 8, 4, 2),
            (width // 4, width // 2, 8, 8, 0),
            (width // 2, width, 16, 16, 0),
        )
        for scale, (channels, joined, kernel, stride, padding) in enumerate(views):
            view = Convolution(cfg.inputs, channels, kernel, stride, padding)
            self.add_module(f"view_{scale}", view)
            size = cfg.image_size // stride
            stage = Stage(
                size,
                joined,
                cfg.depths[scale],
                cfg.heads,
                min(cfg.max_window, size),
                cfg.norm,
            )
            self.add_module(f"scale_{scale}", stage)
        self.class_token = nn.Parameter(torch.zeros(width))
        self.class_block = Block(width, cfg.heads, None, cfg.norm)
        self.norm = normalisation(cfg.norm, width)
        self.head = nn.Linear(width, 1)

    def forward(self, images):
        x = self.scale_0(self.view_0(images))
        for view, stage in ((self.view_1, self.scale_1), (self.view_2, self.scale_2)):
            fresh = view(images)
            x = stage(torch.cat([average_pool(x, fresh.shape[1]), fresh], -1))
        tokens = x.flatten(1, 2)
        token = self.class_token.expand(len(x), 1, -1)
        tokens = self.class_block(torch.cat([token, tokens], 1)[:, None])
        return self.head(self.norm(tokens[:, 0, 0]))[:, 0]


def load(module: nn.Module, params: dict) -> None:
    """Copy the parameters of the Flax module of the same config.

    Raises ValueError where one has a parameter that the other hasn't, or another shape.
    """
    module.load_state_dict(
        {name: torch.from_numpy(value) for name, value in named(module, params).items()}
    )


def named(module: nn.Module, tree: dict) -> dict[str, np.ndarray]:
    """The leaves of a Flax tree of parameters or of their slopes, as PyTorch has them.

    Raises ValueError as `load` does.
    """
    found = {}
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    ours = {
        name.removeprefix("parts.").removeprefix("scalars."): name for name in shapes
    }

    def collect(path, value):
        if isinstance(value, dict):
            for name, inner in value.items():
                collect((*path, name), inner)
            return
        *owner, last = path
        value = np.array(value)
        if last == "kernel":  # [..., I, O] to [O, I, ...]
            value = np.moveaxis(value, (-1, -2), (0, 1))
        last = "weight" if last in ("kernel", "scale") else last
        path = ".".join((*owner, last))
        name = ours.get(path)
        if name is None or value.shape != shapes[name]:
            raise ValueError(
                f"{path}: expected {shapes.get(name, 'no such parameter')}, "
                f"got {value.shape}"
            )
        found[name] = np.ascontiguousarray(value)

    collect((), tree)
    if missing := sorted(shapes.keys() - found.keys()):
        raise ValueError(f"expected parameters {', '.join(missing)}, got none")
    return found


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(math.prod(p.shape) for p in module.parameters())
