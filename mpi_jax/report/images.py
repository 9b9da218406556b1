"""Images as pictures: panels, outlines, scale bars."""

import io
import math
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mpi_jax._files import write_atomically
from mpi_jax.results import Examples, MethodInfo, Samples

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

TRUTH_COLOUR, MASK_COLOUR = "#35c3ff", "#ff9d2e"  # blue, orange: for colour-blind eyes
DPI = 160
Box = tuple[float, float, float, float]  # left, top, width, height [inch]


def save_images(
    path: Path,
    images: np.ndarray,
    titles: list[str] | None = None,
    pixel_size_mm: float | tuple[float, float] | None = None,
) -> None:
    """Writes images [N, ny, nx] (or one, [ny, nx]) side by side to a PNG file.

    All share one colour scale, from the smallest value or 0 to the largest, and a bar.
    pixel_size_mm: (x, y) or both at once [mm]; draws a scale bar.
    Raises ValueError if the shape, the titles or the pixel size do not fit, or if a
    value is not finite.
    """
    images = np.asarray(images, float)
    images = images[None] if images.ndim == 2 else images
    if images.ndim != 3 or images.size == 0:
        raise ValueError(f"images: expected shape [N, ny, nx], got {images.shape}")
    if not np.isfinite(images).all():
        raise ValueError("images: expected finite values, got NaN or infinity")
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"titles: expected {len(images)}, got {len(titles)}")
    pixel = np.broadcast_to(1.0 if pixel_size_mm is None else pixel_size_mm, 2)
    if not (pixel > 0).all():
        raise ValueError(f"pixel_size_mm: expected > 0, got {pixel_size_mm}")
    columns = min(len(images), max(4, math.ceil(math.sqrt(len(images)))))
    rows = math.ceil(len(images) / columns)
    width, gap, top = 1.8, 0.1, 0.1 if titles is None else 0.32
    height = width * aspect(images, pixel)
    bar = columns * (width + gap)
    figure, canvas = new_canvas(gap + bar + 0.75, gap + rows * (height + top))
    scale = {"vmin": min(0.0, images.min()), "vmax": images.max() or 1.0}
    for i, image in enumerate(images):
        x = gap + i % columns * (width + gap)
        y = top + i // columns * (height + top)
        picture = panel(canvas, image, (x, y, width, height), cmap="gray", **scale)
        if titles is not None:
            canvas.text(x, y - 0.06, titles[i], fontsize=9)
        if pixel_size_mm is not None:
            scale_bar(canvas, (x, y, width, height), pixel[0] * image.shape[1])
    colour_bar(figure, picture, (gap + bar, top, 0.12, height), "")
    write_atomically(Path(path), encoded(figure))


def save_l_curve(
    path: Path,
    lams: np.ndarray,
    residual: np.ndarray,
    solution: np.ndarray,
    index: int,
    images: np.ndarray,
) -> None:
    """Writes an L-curve and six of the images along it to a PNG file.

    lams [L], falling; residual, solution [L]: norms of the data misfit and of the image;
    index: of the chosen lam, which is marked; images [L, ny, nx], each shown on a scale
    of its own. Raises ValueError if the shapes do not fit.
    """
    from matplotlib.figure import Figure

    lams, residual, solution = (
        np.asarray(a, float) for a in (lams, residual, solution)
    )
    images = np.asarray(images, float)
    shapes = [a.shape for a in (lams, residual, solution)] + [images.shape[:1]]
    if len(set(shapes)) > 1 or images.ndim != 3 or not 0 <= index < len(lams):
        raise ValueError(
            "lams, residual, solution, images: expected one entry of each for every lam "
            f"and the index of one; got {shapes} and {index}"
        )
    selected = np.linspace(0, len(lams) - 1, min(6, len(lams))).round().astype(int)
    selected[np.abs(selected - index).argmin()] = index
    figure = Figure(figsize=(9, 3.6), dpi=DPI, layout="constrained", facecolor="white")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.15))[0]
    curve = left.subplots()
    curve.loglog(residual, solution, ".-", color="0.5", lw=0.8)
    curve.loglog(residual[selected], solution[selected], "o", color="0.25", ms=4)
    curve.loglog(residual[index], solution[index], "o", color=MASK_COLOUR, ms=8)
    for n in selected:
        place = {"textcoords": "offset points", "xytext": (5, 5), "fontsize": 7}
        curve.annotate(
            f"{lams[n]:.0e}", (residual[n], solution[n]), **place, clip_on=False
        )
    curve.set_xlabel("norm of the data misfit (arb. unit)", fontsize=9)
    curve.set_ylabel("norm of the image (arb. unit)", fontsize=9)
    curve.tick_params(labelsize=8, which="both")
    curve.spines[["top", "right"]].set_visible(False)
    panels = right.subplots(2, 3)
    for axes in panels.flat:
        axes.axis("off")
    for axes, n in zip(panels.flat, selected, strict=False):
        axes.imshow(images[n], cmap="gray", vmin=0, vmax=images[n].max() or 1.0)
        colour = MASK_COLOUR if n == index else "black"
        axes.set_title(f"λ = {lams[n]:.0e}", fontsize=9, color=colour)
    write_atomically(Path(path), encoded(figure))


# --- figures -------------------------------------------------------------------------
# Drawn on one canvas in inches with y downward: exact places, and far quicker than an
# axes for each of a hundred panels.


def new_canvas(width: float, height: float) -> "tuple[Figure, Axes]":
    """A figure of one canvas [inch], y downward, without axes."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    canvas = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    canvas.axis("off")
    canvas.set_autoscale_on(False)
    return figure, canvas


def quiet(axes: "Axes", axis: Literal["x", "both"] = "both") -> None:
    """Small ticks, a pale grid, no box: the data come first."""
    axes.tick_params(axis=axis, labelsize=8)
    axes.grid(axis=axis, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def panel(canvas: "Axes", image: np.ndarray, box: Box, **scale: Any) -> "AxesImage":
    """An image in a box of the canvas."""
    x, y, width, height = box
    return canvas.imshow(
        image,
        extent=(x, x + width, y + height, y),
        aspect="auto",
        interpolation="nearest",
        **scale,
    )


def outline(canvas: "Axes", mask: np.ndarray, box: Box, colour: str) -> None:
    """The outline of a mask over an image."""
    x, y, width, height = box
    ny, nx = mask.shape
    if not mask.any():
        return
    # One pixel of padding closes the outline of an object that touches the border.
    xs = x + (np.arange(-1, nx + 1) + 0.5) * width / nx
    ys = y + (np.arange(-1, ny + 1) + 0.5) * height / ny
    padded = np.pad(mask.astype(float), 1)
    canvas.contour(xs, ys, padded, levels=[0.5], colors=colour, linewidths=0.9)


def scale_bar(canvas: "Axes", box: Box, width_mm: float) -> None:
    """A bar of a round length in an image that is so wide."""
    x, y, width, height = box
    power = 10.0 ** math.floor(math.log10(0.4 * width_mm))
    length = max(n * power for n in (1, 2, 5) if n * power <= 0.4 * width_mm)
    end, base = x + 0.06 * width + length / width_mm * width, y + 0.93 * height
    canvas.plot([x + 0.06 * width, end], [base, base], color="white", linewidth=2)
    write_on(canvas, x + 0.06 * width, base - 0.05, f"{length:g} mm", va="bottom")


def write_on(canvas: "Axes", x: float, y: float, text: str, va: str = "top") -> None:
    """White words with a rim, on top of an image."""
    from matplotlib.patheffects import withStroke  # readable on bright pixels as well

    rim = [withStroke(linewidth=1.8, foreground="black")]
    canvas.text(x, y, text, color="white", fontsize=8, va=va, path_effects=rim)


def write_psnr(canvas: "Axes", box: Box, error: np.ndarray) -> None:
    """The PSNR at peak 1 of an image with this error, in a box of the canvas."""
    psnr = -10 * math.log10(max(float(np.mean(error**2)), 1e-12))
    write_on(canvas, box[0] + 0.05, box[1] + 0.05, f"{psnr:.1f} dB")


def colour_bar(
    figure: "Figure",
    picture: "AxesImage",
    box: Box,
    label: str,
    extend: str = "neither",
) -> None:
    """The colours of a picture in a box of the canvas."""
    total_width, total_height = figure.get_size_inches()
    x, y, width, height = box
    place = (
        x / total_width,
        1 - (y + height) / total_height,
        width / total_width,
        height / total_height,
    )
    bar = figure.colorbar(picture, cax=figure.add_axes(place), extend=extend)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)


def aspect(images: np.ndarray, pixel: np.ndarray | tuple[float, float]) -> float:
    """Height over width of a panel; pixel is (x, y)."""
    return images.shape[-2] * pixel[1] / (images.shape[-1] * pixel[0])


def example_figure(examples: Examples, methods: Iterable[MethodInfo] = ()) -> "Figure":
    """Truth and methods by family: each image with its masks, and its error.

    methods: gives the order, and networks the words for what they are given.
    """
    truth, mask = examples.truth, examples.mask
    names = list(examples.family)
    rows = [names.index(family) for family in dict.fromkeys(names)]
    given = {m.method: m.group for m in methods if m.kind == "learned"}
    order = [m.method for m in methods if m.method in examples.labels]
    order += [m for m in examples.labels if m not in order]
    errors = {m: np.abs(examples.images[m] - truth) for m in order}
    drawn_errors = [errors[m][e] for m in order for e in rows]
    # Round and a little below the largest: one hot pixel must not dim all the others.
    top = math.ceil(10 * np.percentile(drawn_errors, 99.5)) / 10 if drawn_errors else 0
    grey = {"cmap": "gray", "vmin": 0, "vmax": 1}
    heat = {"cmap": "magma", "vmin": 0, "vmax": max(top, 0.1)}

    # Few methods are columns, errors below the images; many are rows, errors beside.
    tall = len(order) > 7
    size, gap = (0.74 if tall else 1.05), 0.04
    left, head = (1.4, 0.5) if tall else (0.32, 0.86)
    height = size * aspect(truth, examples.pixel_size)
    if tall:
        across, down = 2 * size + gap + 0.12, height + gap
        shape = len(rows), 1 + len(order)
    else:
        across, down = size + gap, 2 * height + gap + 0.12
        shape = 1 + len(order), len(rows)

    def places(method: int, example: int) -> tuple[Box, Box]:
        """Boxes of an image and its error."""
        column, row = (example, method) if tall else (method, example)
        x, y = left + column * across, head + row * down
        right, below = (size + gap, 0.0) if tall else (0.0, height + gap)
        return (x, y, size, height), (x + right, y + below, size, height)

    bar = left + shape[0] * across + 0.06
    figure, canvas = new_canvas(bar + 0.72, head + shape[1] * down)
    labels = [(examples.labels[m], given.get(m)) for m in order]
    style: dict[str, Any]
    for m, (label, words) in enumerate([("Ground truth", None), *labels]):
        (x, y, _, _), _ = places(m, 0)
        more = f"\n({words})" if words else ""
        if tall:
            text = textwrap.fill(label, 20, break_long_words=False) + more
            style = {"ha": "right", "va": "center", "fontsize": 8}
            canvas.text(left - 0.08, y + height / 2, text, **style)
        else:
            text = textwrap.fill(label, 15, break_long_words=False) + more
            style = {"ha": "center", "va": "bottom", "fontsize": 8.5}
            canvas.text(x + size / 2, head - 0.07, text, **style)
    for row, e in enumerate(rows):
        (x, y, _, _), _ = places(0, row)
        style = {"ha": "center", "fontsize": 9.5}
        if tall:
            canvas.text(x + size + gap / 2, head - 0.07, names[e], va="bottom", **style)
        else:
            style |= {"va": "center", "rotation": 90}
            canvas.text(left / 2, y + height, names[e], **style)
    style = {"fontsize": 8, "va": "top"}
    canvas.text(left, 0.06, "Outlines:", **style)
    canvas.text(left + 0.56, 0.06, "true mask", color="#0077b6", **style)
    canvas.text(left + 1.3, 0.06, "mask of the method", color="#c05a00", **style)
    error_picture = None
    for row, e in enumerate(rows):
        box, error_box = places(0, row)
        picture = panel(canvas, truth[e], box, **grey)
        outline(canvas, mask[e], box, TRUTH_COLOUR)
        panel(canvas, mask[e], error_box, **grey)
        write_on(canvas, error_box[0] + 0.05, error_box[1] + 0.05, "mask")
        for m, method in enumerate(order, start=1):
            box, error_box = places(m, row)
            panel(canvas, examples.images[method][e], box, **grey)
            outline(canvas, mask[e], box, TRUTH_COLOUR)
            outline(canvas, examples.masks[method][e], box, MASK_COLOUR)
            error = errors[method][e]
            error_picture = panel(canvas, error, error_box, **heat)
            write_psnr(canvas, error_box, error)
    width_mm = 1e3 * examples.pixel_size[0] * truth.shape[-1]
    scale_bar(canvas, (left, head, size, height), width_mm)
    long = (2 * height if tall else height) - 0.1
    colour_bar(figure, picture, (bar, head + 0.05, 0.13, long), "image")
    if error_picture is not None:
        place = (bar, head + long + gap + 0.15, 0.13, long)
        colour_bar(figure, error_picture, place, "|error|", extend="max")
    return figure


def samples_figure(samples: list[Samples]) -> "Figure":
    """Rows: validation images. Columns: the truth, then what the network made of them."""
    newest = samples[-1]
    size, gap, left, head = 1.05, 0.04, 0.32, 0.3
    height = size * aspect(newest.truth, (1.0, 1.0))
    width = left + (1 + len(samples)) * (size + gap)
    figure, canvas = new_canvas(width, head + len(newest.truth) * (height + gap))
    columns = [("Ground truth", newest.truth, newest.true_mask, TRUTH_COLOUR)]
    columns += [(f"step {s.step:,}", s.image, s.mask, MASK_COLOUR) for s in samples]
    for column, (title, images, masks, colour) in enumerate(columns):
        x = left + column * (size + gap)
        canvas.text(x + size / 2, head - 0.07, title, ha="center", fontsize=8.5)
        for row, (image, mask) in enumerate(zip(images, masks, strict=True)):
            box = (x, head + row * (height + gap), size, height)
            panel(canvas, image, box, cmap="gray", vmin=0, vmax=1)
            outline(canvas, mask, box, colour)
    for row, family in enumerate(newest.family):
        middle = head + row * (height + gap) + height / 2
        place: dict[str, Any] = {"ha": "center", "va": "center"}
        canvas.text(left / 2, middle, str(family), rotation=90, fontsize=9, **place)
    return figure


# --- files ---------------------------------------------------------------------------


def encoded(figure: "Figure", kind: str = "png") -> bytes:
    """A figure as the bytes of a file."""
    buffer = io.BytesIO()
    # Without a date a PDF is the same every time.
    about = {"CreationDate": None} if kind == "pdf" else None
    figure.savefig(buffer, format=kind, dpi=DPI, metadata=about)
    return buffer.getvalue()
