"""Pictures: curves.png, predictions.png, predict.png and a grid of images.

Owns how they look. Must not know how the numbers came about, and uses neither JAX nor the global
state of pyplot. The colours are Okabe and Ito's, which colour-blind readers can tell apart
(https://jfly.uni-koeln.de/color/).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from mobilenets_jax import logs
from mobilenets_jax.errors import InputError

GAP = 2  # Pixels between the images of a grid.

_TEXT, _WRONG, _BAR = "#333333", "#c44e00", "#a6cee8"
# Split -> name, colour, line width, line style. The style tells them apart in print, too.
_SPLITS = {
    "train": ("train", "#7f7f7f", 1.0, "-"),
    "test": ("test", "#0072b2", 2.0, "-"),
    "test_ema": ("test, EMA", "#d55e00", 2.0, (0, (4, 1.5))),
}
_NOISY = 40  # Training points from which on a smoothed line is drawn through them.
MOST_SHOWN = 32  # Images in predictions.png and predict.png.


def curves(metrics_path: str | Path, out_png: str | Path, title: str) -> Figure:
    """Draws loss and accuracy against epochs, with the final value at the end of each curve.

    Of several replicas, the curve is their mean, and each has a thin line.

    Args:
        metrics_path: `metrics.jsonl`, as `logs.append_metrics` writes it.
        out_png: the picture.
        title: above both panels.

    Returns:
        The figure.

    Raises:
        InputError: the metrics cannot be read, or there are none.
    """
    metrics = logs.read_metrics(metrics_path)
    if not metrics:
        raise InputError(f"Metrics file {metrics_path} is empty: train before drawing curves.")
    figure = Figure(figsize=(10, 4), dpi=110, layout="constrained")
    figure.suptitle(title, color=_TEXT, parse_math=False)
    loss, accuracy = figure.subplots(1, 2)
    _panel(loss, metrics, "loss", scale=1, text="{} {:.3f}")
    _panel(accuracy, metrics, "accuracy", scale=100, text="{} {:.1f} %")
    accuracy.set_ylabel("accuracy (%)", color=_TEXT)
    _save(figure, out_png)
    return figure


def predictions(
    images: np.ndarray,
    labels: ArrayLike,
    predicted: ArrayLike,
    class_names: Sequence[str],
    out_png: str | Path,
    probabilities: ArrayLike | None = None,
) -> Figure:
    """Draws test images, each under its true class and, marked right or wrong, the predicted one.

    Args:
        images: uint8 [n, H, W, 3]; the first 32 are shown.
        labels: true classes [n].
        predicted: predicted classes [n].
        class_names: name of each class.
        out_png: the picture.
        probabilities: of the predicted classes [n], in [0, 1].

    Returns:
        The figure.
    """
    labels, predicted = np.asarray(labels)[:MOST_SHOWN], np.asarray(predicted)[:MOST_SHOWN]
    count = len(labels)
    wrong = int(np.sum(labels != predicted))
    # The number of columns, 5 to 8, that leaves the fewest places empty.
    columns = count if count <= 8 else min((8, 7, 6, 5), key=lambda c: -count % c)
    rows = -(-count // columns)
    height = 1.45 * images.shape[1] / images.shape[2] + 0.42
    figure = Figure(
        figsize=(max(3.8, 1.45 * columns), height * rows + 0.35), dpi=110, layout="constrained"
    )
    figure.suptitle(
        f"{count} test image{'s'[: count - 1]}, {wrong} wrong (true class above, prediction below)",
        color=_TEXT,
        fontsize=9,
    )
    for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        if i >= count:
            continue
        right = labels[i] == predicted[i]
        percent = "" if probabilities is None else f" ({100 * np.asarray(probabilities)[i]:.0f} %)"
        name = shorten(class_names[predicted[i]], 19 - len(percent))
        axes.imshow(images[i], interpolation="nearest")
        axes.set_title(
            f"{shorten(class_names[labels[i]], 20)}\n{'✓' if right else '✗'} {name}{percent}",
            color=_TEXT if right else _WRONG,
            fontsize=8,
            fontweight="normal" if right else "bold",
            parse_math=False,
        )
        if not right:
            axes.spines[:].set(visible=True, color=_WRONG, linewidth=3)
    _save(figure, out_png)
    return figure


class Panel(NamedTuple):
    """What is written of one classified image.

    Attributes:
        title: above it.
        bars: below it, from the top: class, probability in [0, 1] and the same as text.
    """

    title: str
    bars: tuple[tuple[str, float, str], ...]


def panel(file: str, top: Sequence[tuple[str, float]]) -> Panel:
    """Returns what is written of an image: its file's name, and its likeliest classes, shortened.

    Args:
        file: path of the image.
        top: classes with their probabilities, the likeliest first.
    """
    # The first is bold, so wider.
    bars = [(shorten(n, 28 if i else 24), p, f"{100 * p:.1f} %") for i, (n, p) in enumerate(top)]
    return Panel(_without_middle(Path(file).name, 30), tuple(bars))


def classified(
    images: np.ndarray, panels: Sequence[Panel], count: int, title: str, out_png: str | Path
) -> Figure:
    """Draws images as a network saw them, each above its likeliest classes.

    Args:
        images: uint8 [n, H, W, 3]; the first 32 are shown.
        panels: what is written of each.
        count: how many images there are, those that are not shown included.
        title: above all.
        out_png: the picture.

    Returns:
        The figure.
    """
    shown = min(len(images), MOST_SHOWN)
    # The number of columns, up to 6, that leaves the fewest places empty.
    columns = shown if shown <= 4 else min((6, 5, 4), key=lambda c: -shown % c)
    rows = -(-shown // columns)
    most = max(len(panel.bars) for panel in panels)
    width, image_height, bar_height = 2.1, 2.1, 0.17 * most + 0.12
    figure = Figure(
        figsize=(max(4.2, width * columns), (image_height + bar_height) * rows + 0.35),
        dpi=110,
        layout="constrained",
    )
    of_all = f" (the first {shown} of {count:,} images)" if shown < count else ""
    title = _without_middle(title, int(13 * figure.get_figwidth()) - len(of_all))
    figure.suptitle(f"{title}{of_all}", color=_TEXT, fontsize=9, parse_math=False)
    grid = figure.subplots(
        2 * rows,
        columns,
        squeeze=False,
        gridspec_kw={"height_ratios": [image_height, bar_height] * rows},
    )
    for axes in grid.flat:
        axes.set_axis_off()
    for i in range(shown):
        row, column = divmod(i, columns)
        above, below = grid[2 * row, column], grid[2 * row + 1, column]
        above.imshow(images[i], interpolation="nearest")
        above.set_title(panels[i].title, color=_TEXT, fontsize=8, parse_math=False)
        _bars(below, panels[i].bars, most)
    _save(figure, out_png)
    return figure


def _bars(axes: Axes, bars: Sequence[tuple[str, float, str]], most: int) -> None:
    """Draws classes from top to bottom: a bar as long as the probability, and both in words."""
    axes.set(xlim=(0, 1), ylim=(most - 0.5, -0.5))
    axes.barh(range(len(bars)), [p for _, p, _ in bars], height=0.86, color=_BAR)
    for i, (name, _, text) in enumerate(bars):
        for x, side, words in ((0.015, "left", name), (0.985, "right", text)):
            axes.text(
                *(x, i, words),
                ha=side,
                va="center_baseline",
                color=_TEXT,
                fontsize=7,
                fontweight="normal" if i else "bold",
                parse_math=False,
            )


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Returns images, uint8 [n, H, W, 3], side by side on white, as one uint8 [H', W', 3]."""
    count, height, width, channels = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    shape = (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, channels)
    grid = np.full(shape, 255, np.uint8)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        y, x = row * (height + GAP), column * (width + GAP)
        grid[y : y + height, x : x + width] = image
    return grid


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Returns the mean of up to `width` (odd) values around each of `values` [n].

    Near the ends the window shrinks and stays centred, so that a slope is not bent.
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    half = np.minimum(width // 2, np.minimum(index, index[::-1]))
    return (sums[index + half + 1] - sums[index - half]) / (2 * half + 1)


def shorten(name: str, length: int) -> str:
    """Returns `name` in at most `length` characters: its first synonym, or without its middle."""
    return _without_middle(name if len(name) <= length else name.split(",")[0], length)


def _without_middle(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    return text[: length // 2] + "…" + text[len(text) - (length - length // 2 - 1) :]


def _panel(axes: Axes, metrics: list[dict], field: str, scale: float, text: str) -> None:
    """Draws `field` of each split, and its last value as text."""
    ends = []
    for split, (name, color, width, style) in _SPLITS.items():
        points = [m for m in metrics if m["split"] == split and m[field] is not None]
        if not points:
            continue
        x = np.array([m["epoch"] for m in points])
        each = np.array([scale * np.atleast_1d(m[field]).astype(float) for m in points])
        noisy = split == "train" and len(x) >= _NOISY
        y = each.mean(1)
        if each.shape[1] > 1:
            for values in each.T:
                values = smooth(values, len(x) // 20 | 1) if noisy else values
                axes.plot(x, values, color=color, linewidth=0.7, alpha=0.3)
        elif noisy:
            axes.plot(x, y, color=color, linewidth=0.8, alpha=0.3)
        y = smooth(y, len(x) // 20 | 1) if noisy else y
        marker = "o" if len(x) == 1 else None
        axes.plot(x, y, color=color, linewidth=width, linestyle=style, marker=marker, label=name)
        ends.append((y[-1], text.format(name, y[-1]), color))
    axes.set_xlabel("epoch", color=_TEXT)
    axes.set_ylabel(field, color=_TEXT)
    axes.set_xlim(0, max(m["epoch"] for m in metrics) or 1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
    axes.grid(color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_TEXT)
    axes.spines[["top", "right"]].set_visible(False)
    if field == "loss":
        # The first tests of an average over an untrained network would flatten all the rest.
        known = [m for m in metrics if m["loss"] is not None]
        losses = [np.mean(np.array(m["loss"], float)) for m in known]
        train = [loss for m, loss in zip(known, losses, strict=True) if m["split"] == "train"]
        if train and max(losses) > 1.5 * max(train):
            top, bottom = 1.5 * max(train), min(losses)
            axes.set_ylim(bottom - 0.05 * (top - bottom), top)
    _label(axes, ends)


def _label(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Writes each text right of the axes at the height of its value, or as near as it can be."""
    low, high = axes.get_ylim()
    heights = spread([min((value - low) / (high - low), 1.0) for value, _, _ in ends], 0.07)
    lift = max(0.0, 0.04 - min(heights, default=1.0))  # Out of the way of the last tick's label.
    for height, (_, text, color) in zip(heights, ends, strict=True):
        axes.annotate(
            text,
            (1.0, height + lift),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            color=color,
            va="center",
            fontsize=9,
        )


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Returns heights near `wanted`, in the same order, of which no two are closer than `gap`.

    Those that are too close are spread evenly around their mean.
    """
    # Groups of touching heights: [mean of what they wanted, indices from low to high].
    groups: list[tuple[float, list[int]]] = []
    for index in sorted(range(len(wanted)), key=lambda i: wanted[i]):
        mean, members = wanted[index], [index]
        while groups and mean - groups[-1][0] < gap * (len(members) + len(groups[-1][1])) / 2:
            members = groups.pop()[1] + members
            mean = sum(wanted[i] for i in members) / len(members)
        groups.append((mean, members))
    heights = [0.0] * len(wanted)
    for mean, members in groups:
        for place, index in enumerate(members):
            heights[index] = mean + gap * (place - (len(members) - 1) / 2)
    return heights


def _save(figure: Figure, path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
