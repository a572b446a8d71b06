import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from mobilenets_jax import logs, plots
from mobilenets_jax.errors import InputError


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def texts(axes):
    return [text.get_text() for text in axes.texts]


def write_metrics(path, epochs=10, train_per_epoch=1, splits=("test", "test_ema")):
    """Falling loss and rising accuracy; final accuracies 0.9 (train), 0.8 (test), 0.85 (EMA)."""
    for i in range(1, epochs * train_per_epoch + 1):
        epoch = i / train_per_epoch
        logs.append_metrics(
            path,
            step=i,
            epoch=epoch,
            split="train",
            loss=2 / (1 + epoch),
            accuracy=0.9 * epoch / epochs,
        )
    for epoch in range(1, epochs + 1):
        for split, final in zip(splits, (0.8, 0.85), strict=False):
            logs.append_metrics(
                path,
                step=epoch,
                epoch=epoch,
                split=split,
                loss=3 / (1 + epoch),
                accuracy=final * epoch / epochs,
            )


def test_curves_show_loss_and_accuracy_against_epochs(tmp_path):
    write_metrics(tmp_path / "metrics.jsonl")
    figure = plots.curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png", "MobileNetV2")
    loss, accuracy = figure.axes
    assert loss.get_xlabel() == accuracy.get_xlabel() == "epoch"
    assert loss.get_ylabel() == "loss"
    assert accuracy.get_ylabel() == "accuracy (%)"
    assert figure.get_suptitle() == "MobileNetV2"
    lines = {line.get_label(): line for line in accuracy.lines}
    assert list(lines) == ["train", "test", "test, EMA"]
    np.testing.assert_allclose(lines["test"].get_xdata(), np.arange(1, 11))
    np.testing.assert_allclose(lines["test"].get_ydata(), 8.0 * np.arange(1, 11))
    assert texts(accuracy) == ["train 90.0 %", "test 80.0 %", "test, EMA 85.0 %"]
    assert texts(loss) == ["train 0.182", "test 0.273", "test, EMA 0.273"]
    height, width, _ = pixels(tmp_path / "curves.png").shape
    assert width > height > 300


def test_final_values_do_not_overlap(tmp_path):
    for split in ("train", "test", "test_ema"):
        for epoch in (1, 2):
            logs.append_metrics(
                tmp_path / "m.jsonl", step=1, epoch=epoch, split=split, loss=1 / epoch, accuracy=0.5
            )
    figure = plots.curves(tmp_path / "m.jsonl", tmp_path / "c.png", "t")
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert len(boxes) == 3
        for i, box in enumerate(boxes):
            assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
            assert not any(box.overlaps(other) for other in boxes[i + 1 :])


def test_a_noisy_training_curve_is_drawn_faint_and_smoothed(tmp_path):
    write_metrics(tmp_path / "m.jsonl", train_per_epoch=20, splits=("test",))
    figure = plots.curves(tmp_path / "m.jsonl", tmp_path / "c.png", "t")
    raw, smooth, test = figure.axes[0].lines
    assert len(raw.get_xdata()) == len(smooth.get_xdata()) == 200
    assert raw.get_alpha() < 0.5
    assert smooth.get_label() == "train"
    assert test.get_linewidth() > smooth.get_linewidth()


def test_smoothing_is_a_centred_mean_that_shrinks_at_the_ends():
    values = np.array([0.0, 3.0, 6.0, 3.0, 0.0])
    np.testing.assert_allclose(plots.smooth(values, 3), [0.0, 3.0, 4.0, 3.0, 0.0])
    np.testing.assert_allclose(plots.smooth(np.arange(9.0), 5), np.arange(9.0))
    np.testing.assert_allclose(plots.smooth(values, 1), values)


def test_curves_of_one_point_and_without_some_values(tmp_path):
    path = tmp_path / "m.jsonl"
    logs.append_metrics(path, step=1, epoch=1, split="train", loss=np.nan)
    logs.append_metrics(path, step=1, epoch=1, split="test", loss=1.0, accuracy=0.5)
    loss, accuracy = plots.curves(path, tmp_path / "c.png", "t").axes
    assert texts(loss) == ["test 1.000"]
    assert texts(accuracy) == ["test 50.0 %"]


def test_curves_of_an_empty_file(tmp_path):
    (tmp_path / "m.jsonl").write_text("")
    with pytest.raises(InputError, match=r"m\.jsonl"):
        plots.curves(tmp_path / "m.jsonl", tmp_path / "c.png", "t")


def test_a_title_is_shown_as_it_is(tmp_path):
    write_metrics(tmp_path / "m.jsonl")
    figure = plots.curves(tmp_path / "m.jsonl", tmp_path / "c.png", "a $^ b_{")
    assert figure.get_suptitle() == "a $^ b_{"


def images_of(count, size=32):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, size, size, 3), np.uint8)


def test_predictions_name_both_classes_and_mark_the_wrong(tmp_path):
    figure = plots.predictions(
        images_of(3),
        labels=np.array([0, 1, 2]),
        predicted=np.array([0, 2, 2]),
        class_names=["cat", "dog", "cow $x"],
        out_png=tmp_path / "p.png",
        probabilities=np.array([0.5, 0.994, 1.0]),
    )
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in shown] == [
        "cat\n✓ cat (50 %)",
        "dog\n✗ cow $x (99 %)",
        "cow $x\n✓ cow $x (100 %)",
    ]
    colours = [axes.title.get_color() for axes in shown]
    assert colours[0] == colours[2] != colours[1]
    framed = [any(spine.get_visible() for spine in axes.spines.values()) for axes in shown]
    assert framed == [False, True, False]
    np.testing.assert_array_equal(shown[1].images[0].get_array(), images_of(3)[1])
    assert figure.get_suptitle().startswith("3 test images, 1 wrong")
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_predictions_show_at_most_32_and_without_probabilities(tmp_path):
    labels = np.arange(40) % 10
    names = [str(i) for i in range(10)]
    figure = plots.predictions(images_of(40), labels, labels, names, tmp_path / "p.png")
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 32
    assert shown[-1].get_title() == "1\n✓ 1"


def test_predictions_of_one_image(tmp_path):
    figure = plots.predictions(images_of(1), [0], [0], ["a"], tmp_path / "p.png")
    assert len([axes for axes in figure.axes if axes.images]) == 1


def test_titles_do_not_overlap(tmp_path):
    names = ["Staffordshire bullterrier, Staffordshire bull terrier", "West Highland white terrier"]
    figure = plots.predictions(
        images_of(32, 24), [0] * 32, [1] * 32, names, tmp_path / "p.png", [1.0] * 32
    )
    figure.canvas.draw()
    shown = [axes for axes in figure.axes if axes.images]
    assert "…" in shown[0].get_title()
    boxes = [axes.title.get_window_extent() for axes in shown]
    boxes += [axes.get_window_extent() for axes in shown]
    for i, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])


@pytest.mark.parametrize(
    ("count", "rows", "columns"),
    [(1, 1, 1), (7, 1, 7), (9, 2, 5), (16, 2, 8), (25, 5, 5), (30, 5, 6), (32, 4, 8)],
)
def test_predictions_fill_their_grid(tmp_path, count, rows, columns):
    zeros = [0] * count
    figure = plots.predictions(images_of(count, 2), zeros, zeros, ["a"], tmp_path / "p.png")
    assert figure.axes[0].get_gridspec().get_geometry() == (rows, columns)


def test_long_names_are_shortened_in_the_middle():
    assert plots.shorten("tench", 12) == "tench"
    assert plots.shorten("exactly12chr", 12) == "exactly12chr"
    short = plots.shorten("Staffordshire bullterrier", 12)
    assert short == "Staffo…rrier"
    assert len(short) == 12
    assert plots.shorten("tench, Tinca tinca", 12) == "tench"


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([], []),
        ([0.5], [0.5]),
        ([0.9, 0.1], [0.9, 0.1]),
        ([0.5, 0.5, 0.5], [0.4, 0.5, 0.6]),
        ([0.52, 0.48, 0.9], [0.55, 0.45, 0.9]),
        # The middle two push each other, and then against the first.
        ([0.4, 0.5, 0.5], [0.366667, 0.466667, 0.566667]),
    ],
)
def test_labels_are_spread_around_what_they_wanted(wanted, expected):
    np.testing.assert_allclose(plots.spread(wanted, 0.1), expected, atol=1e-6)


def test_an_average_of_an_untrained_network_does_not_flatten_the_loss(tmp_path):
    write_metrics(tmp_path / "m.jsonl")
    logs.append_metrics(tmp_path / "m.jsonl", step=1, epoch=0.5, split="test_ema", loss=1000)
    loss, _ = plots.curves(tmp_path / "m.jsonl", tmp_path / "c.png", "t").axes
    assert loss.get_ylim()[1] == 1.5  # 1.5 times the highest training loss


def test_image_grid():
    images = np.stack([np.full((2, 3, 3), i, np.uint8) for i in range(1, 6)])
    grid = plots.image_grid(images, columns=3)
    gap = plots.GAP
    assert grid.dtype == np.uint8
    assert grid.shape == (2 * 2 + gap, 3 * 3 + 2 * gap, 3)
    for i in range(5):
        row, column = divmod(i, 3)
        y, x = row * (2 + gap), column * (3 + gap)
        assert np.all(grid[y : y + 2, x : x + 3] == i + 1)
    # Gaps and the missing sixth image are white.
    assert np.all(grid[2 : 2 + gap] == 255)
    assert np.all(grid[:, 3 : 3 + gap] == 255)
    assert np.all(grid[2 + gap :, 6 + 2 * gap :] == 255)


def test_image_grid_of_fewer_images_than_columns():
    images = images_of(2, 4)
    grid = plots.image_grid(images, columns=8)
    assert grid.shape == (4, 8 + plots.GAP, 3)
    np.testing.assert_array_equal(grid[:, :4], images[0])
    np.testing.assert_array_equal(grid[:, -4:], images[1])


def test_pictures_are_the_same_each_time(tmp_path):
    write_metrics(tmp_path / "m.jsonl")
    for name in ("a", "b"):
        plots.curves(tmp_path / "m.jsonl", tmp_path / f"{name}.png", "t")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_panel_shortens_what_would_not_fit():
    top = [
        ("n" * 40, 0.5),
        ("black and gold garden spider", 0.25),
        ("cat, house cat" + "x" * 30, 0.0),
    ]
    panel = plots.panel("photos/" + "a" * 40 + ".jpg", top)
    assert panel.title == "a" * 15 + "…" + "a" * 10 + ".jpg"
    assert panel.bars == (
        ("n" * 12 + "…" + "n" * 11, 0.5, "50.0 %"),
        ("black and gold garden spider", 0.25, "25.0 %"),
        ("cat", 0.0, "0.0 %"),
    )
    assert plots.panel("a, b.jpg", []) == ("a, b.jpg", ())


def test_classified_draws_each_image_above_its_classes(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    panels = [plots.panel(f"{i}.jpg", [("cat", 0.5 + i / 10), ("$dog$", 0.1)]) for i in range(3)]
    figure = plots.classified(images, panels, 40, "net, " + "x" * 200, tmp_path / "predict.png")
    drawn = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in drawn] == ["0.jpg", "1.jpg", "2.jpg"]
    for axes, image in zip(drawn, images, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), image)
    below = [axes for axes in figure.axes if axes.patches]
    assert [[bar.get_width() for bar in axes.patches] for axes in below] == [
        [0.5, 0.1],
        [0.6, 0.1],
        [0.7, 0.1],
    ]
    assert texts(below[1]) == ["cat", "60.0 %", "$dog$", "10.0 %"]
    title = figure.get_suptitle()
    assert title.startswith("net, xxx")
    assert title.endswith("x (the first 3 of 40 images)")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, (width, _) = canvas.get_renderer(), canvas.get_width_height()
    everything = [figure._suptitle, *(axes.title for axes in drawn)]
    for text in [*everything, *(text for axes in below for text in axes.texts)]:
        box = text.get_window_extent(renderer)
        assert 0 <= box.x0 < box.x1 <= width, text
    for axes in below:  # the name ends before the number starts
        for name, number in zip(axes.texts[::2], axes.texts[1::2], strict=True):
            assert name.get_window_extent(renderer).x1 < number.get_window_extent(renderer).x0


def test_classified_shows_no_more_than_32(tmp_path):
    images = np.zeros((40, 4, 4, 3), np.uint8)
    panels = [plots.panel(f"{i}.jpg", [("W" * 30, 1.0)]) for i in range(40)]
    figure = plots.classified(images, panels, 40, "net", tmp_path / "predict.png")
    assert len([axes for axes in figure.axes if axes.images]) == 32
    assert figure.get_suptitle() == "net (the first 32 of 40 images)"
