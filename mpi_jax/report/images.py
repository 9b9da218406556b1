"""Images as pictures: panels, outlines, scale bars."""

import io
import math
import textwrap
from pathlib import Path

import numpy as np

from mpi_jax._files import replace
from mpi_jax.report.tables import DPI, MASK_COLOUR, TRUTH_COLOUR


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
    figure, canvas = _canvas(gap + bar + 0.75, gap + rows * (height + top))
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
    replace(Path(path), _file(figure))


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
    shown = np.linspace(0, len(lams) - 1, min(6, len(lams))).round().astype(int)
    shown[np.abs(shown - index).argmin()] = index
    figure = Figure(figsize=(9, 3.6), dpi=DPI, layout="constrained", facecolor="white")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.15))
    curve = left.subplots()
    curve.loglog(residual, solution, ".-", color="0.5", lw=0.8)
    curve.loglog(residual[shown], solution[shown], "o", color="0.25", ms=4)
    curve.loglog(residual[index], solution[index], "o", color=MASK_COLOUR, ms=8)
    for n in shown:
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
    for axes, n in zip(panels.flat, shown, strict=False):
        axes.imshow(images[n], cmap="gray", vmin=0, vmax=images[n].max() or 1.0)
        colour = MASK_COLOUR if n == index else "black"
        axes.set_title(f"λ = {lams[n]:.0e}", fontsize=9, color=colour)
    replace(Path(path), _file(figure))


# --- figures -------------------------------------------------------------------------
# Drawn on one canvas in inches with y downward: exact places, and far quicker than an
# axes for each of a hundred panels.


def _canvas(width: float, height: float):
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    canvas = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    canvas.axis("off")
    canvas.set_autoscale_on(False)
    return figure, canvas


def panel(canvas, image, box, **scale):
    x, y, width, height = box
    return canvas.imshow(
        image,
        extent=(x, x + width, y + height, y),
        aspect="auto",
        interpolation="nearest",
        **scale,
    )


def outline(canvas, mask, box, colour) -> None:
    x, y, width, height = box
    ny, nx = mask.shape
    if not mask.any():
        return
    # One pixel of padding closes the outline of an object that touches the border.
    xs = x + (np.arange(-1, nx + 1) + 0.5) * width / nx
    ys = y + (np.arange(-1, ny + 1) + 0.5) * height / ny
    padded = np.pad(mask.astype(float), 1)
    canvas.contour(xs, ys, padded, levels=[0.5], colors=colour, linewidths=0.9)


def scale_bar(canvas, box, width_mm: float) -> None:
    x, y, width, height = box
    power = 10.0 ** math.floor(math.log10(0.4 * width_mm))
    length = max(n * power for n in (1, 2, 5) if n * power <= 0.4 * width_mm)
    end, base = x + 0.06 * width + length / width_mm * width, y + 0.93 * height
    canvas.plot([x + 0.06 * width, end], [base, base], color="white", linewidth=2)
    write_on(canvas, x + 0.06 * width, base - 0.05, f"{length:g} mm", va="bottom")


def write_on(canvas, x: float, y: float, text: str, va: str = "top") -> None:
    from matplotlib.patheffects import withStroke  # readable on bright pixels as well

    rim = [withStroke(linewidth=1.8, foreground="black")]
    canvas.text(x, y, text, color="white", fontsize=8, va=va, path_effects=rim)


def colour_bar(figure, picture, box, label: str, extend: str = "neither") -> None:
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


def aspect(images: np.ndarray, pixel) -> float:
    """Height over width of a panel; pixel is (x, y)."""
    return images.shape[-2] * pixel[1] / (images.shape[-1] * pixel[0])


def example_figure(arrays: dict[str, np.ndarray]):
    """Truth and methods by family: each image with its masks, and its error."""
    truth, mask = arrays["truth"], arrays["mask"]
    names = [str(family) for family in arrays["family"]]
    examples = [names.index(family) for family in dict.fromkeys(names)]
    methods = [str(method) for method in arrays["methods"]]
    errors = {m: np.abs(arrays[f"image_{m}"] - truth) for m in methods}
    shown = [errors[m][e] for m in methods for e in examples]
    # Round and a little below the largest: one hot pixel must not dim all the others.
    top = math.ceil(10 * np.percentile(shown, 99.5)) / 10 if shown else 0
    grey = {"cmap": "gray", "vmin": 0, "vmax": 1}
    heat = {"cmap": "magma", "vmin": 0, "vmax": max(top, 0.1)}

    # Few methods are columns, errors below the images; many are rows, errors beside.
    tall = len(methods) > 7
    size, gap = (0.74 if tall else 1.05), 0.04
    left, head = (1.4, 0.5) if tall else (0.32, 0.72)
    height = size * aspect(truth, arrays["pixel_size"].astype(float))
    if tall:
        across, down = 2 * size + gap + 0.12, height + gap
        shape = len(examples), 1 + len(methods)
    else:
        across, down = size + gap, 2 * height + gap + 0.12
        shape = 1 + len(methods), len(examples)

    def places(method: int, example: int):
        """Boxes of an image and its error."""
        column, row = (example, method) if tall else (method, example)
        x, y = left + column * across, head + row * down
        other = (x + size + gap, y) if tall else (x, y + height + gap)
        return (x, y, size, height), (*other, size, height)

    bar = left + shape[0] * across + 0.06
    figure, canvas = _canvas(bar + 0.72, head + shape[1] * down)
    for m, label in enumerate(["Ground truth", *map(str, arrays["labels"])]):
        (x, y, _, _), _ = places(m, 0)
        if tall:
            text = textwrap.fill(label, 20, break_long_words=False)
            style = {"ha": "right", "va": "center", "fontsize": 8}
            canvas.text(left - 0.08, y + height / 2, text, **style)
        else:
            text = textwrap.fill(label, 15, break_long_words=False)
            style = {"ha": "center", "va": "bottom", "fontsize": 8.5}
            canvas.text(x + size / 2, head - 0.07, text, **style)
    for row, e in enumerate(examples):
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
    for row, e in enumerate(examples):
        box, other = places(0, row)
        picture = panel(canvas, truth[e], box, **grey)
        outline(canvas, mask[e], box, TRUTH_COLOUR)
        panel(canvas, mask[e], other, **grey)
        write_on(canvas, other[0] + 0.05, other[1] + 0.05, "mask")
        for m, method in enumerate(methods, start=1):
            box, other = places(m, row)
            panel(canvas, arrays[f"image_{method}"][e], box, **grey)
            outline(canvas, mask[e], box, TRUTH_COLOUR)
            outline(canvas, arrays[f"mask_{method}"][e], box, MASK_COLOUR)
            error = errors[method][e]
            error_picture = panel(canvas, error, other, **heat)
            psnr = -10 * math.log10(max(float(np.mean(error**2)), 1e-12))
            write_on(canvas, other[0] + 0.05, other[1] + 0.05, f"{psnr:.1f} dB")
    width_mm = 1e3 * float(arrays["pixel_size"][0]) * truth.shape[-1]
    scale_bar(canvas, (left, head, size, height), width_mm)
    long = (2 * height if tall else height) - 0.1
    colour_bar(figure, picture, (bar, head + 0.05, 0.13, long), "image")
    if error_picture is not None:
        place = (bar, head + long + gap + 0.15, 0.13, long)
        colour_bar(figure, error_picture, place, "|error|", extend="max")
    return figure


def samples_figure(samples: list[dict[str, np.ndarray]]):
    """Rows: validation images. Columns: the truth, then what the network made of them."""
    newest = samples[-1]
    size, gap, left, head = 1.05, 0.04, 0.32, 0.3
    height = size * aspect(newest["truth"], (1, 1))
    width = left + (1 + len(samples)) * (size + gap)
    figure, canvas = _canvas(width, head + len(newest["truth"]) * (height + gap))
    columns = [("Ground truth", "truth", "true_mask", newest)]
    columns += [(f"step {int(s['step']):,}", "image", "mask", s) for s in samples]
    for column, (title, image, mask, found) in enumerate(columns):
        x = left + column * (size + gap)
        canvas.text(x + size / 2, head - 0.07, title, ha="center", fontsize=8.5)
        for row, family in enumerate(found["family"]):
            box = (x, head + row * (height + gap), size, height)
            middle = box[1] + height / 2
            if not column:
                style = {"rotation": 90, "ha": "center", "va": "center", "fontsize": 9}
                canvas.text(left / 2, middle, str(family), **style)
            panel(canvas, found[image][row], box, cmap="gray", vmin=0, vmax=1)
            outline(
                canvas, found[mask][row], box, MASK_COLOUR if column else TRUTH_COLOUR
            )
    return figure


# --- files ---------------------------------------------------------------------------


def _file(figure, kind: str = "png") -> bytes:
    buffer = io.BytesIO()
    # Without a date a PDF is the same every time.
    about = {"CreationDate": None} if kind == "pdf" else None
    figure.savefig(buffer, format=kind, dpi=DPI, metadata=about)
    return buffer.getvalue()
