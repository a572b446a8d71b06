"""Predictions of image files: which files, which numbers, how they are written, how errors end."""

import functools
import io
import json
import os
import zlib
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import tiny
from flax.traverse_util import unflatten_dict
from PIL import Image

from configs import default
from mobilenets_jax import (
    augment,
    checkpoint,
    data,
    imagenet,
    logs,
    main,
    plots,
    predict,
    predictors,
    steps,
    weights,
    weights_files,
)
from mobilenets_jax import config as config_lib
from mobilenets_jax.errors import InputError
from mobilenets_jax.model import create_model
from mobilenets_jax.published import Preprocessing
from mobilenets_jax.state import init_state

BEST, LATEST = 3, 5  # steps
CLASSES = [*list(imagenet.classes())[:9], "my cat"]
NAMES = [*list(imagenet.classes().values())[:9], "my cat"]


@pytest.fixture(scope="module", autouse=True)
def _small_model():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "build_model", tiny.small_model)
        yield


def state_of(model, resolution, seed):
    """A state whose weights and averages are random and differ, statistics too."""
    make = functools.partial(init_state, model, optax.sgd(0.1), resolution)
    shapes = jax.eval_shape(make, jax.random.key(0))
    rng = np.random.default_rng(seed)
    state = jax.tree.map(lambda s: abs(rng.normal(1, 0.3, s.shape)).astype(np.float32), shapes)
    return state.replace(step=np.int32(seed))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Of a training with two checkpoints, without a training."""
    path = tmp_path_factory.mktemp("run")
    config = tiny.config(preprocess__crop_fraction=0.8, preprocess__std=(60.0, 70.0, 80.0))
    logs.write_json(path / "config.json", config_lib.plain(config))
    model = tiny.small_model(config, 10)
    meta = {"class_names": CLASSES, "config": config_lib.plain(config)}
    with checkpoint.open_manager(path) as manager:
        for step, accuracy in ((BEST, 0.9), (LATEST, 0.5)):
            checkpoint.save(manager, step, state_of(model, 8, step), meta, {"accuracy": accuracy})
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Five images of different shapes and kinds, a.png to e.jpg."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, shape in (
        *(("a.png", (20, 30, 3)), ("b.jpg", (64, 40, 3)), ("c.bmp", (8, 8, 3))),
        *(("d.png", (7, 7)), ("e.jpg", (100, 10, 3))),
    ):
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def cli(workdir, capsys):
    """Runs --mode=predict on the workdir; returns exit code, output and errors."""

    def run(*argv):
        code = main.main(["main.py", "--mode=predict", f"--workdir={workdir}", *map(str, argv)])
        return code, *capsys.readouterr()

    return run


def expected(files, step=LATEST, **fields):
    """Probabilities [n, classes] by the plain network, one image at a time."""
    config = tiny.config(preprocess__crop_fraction=0.8, preprocess__std=(60.0, 70.0, 80.0))
    for name, value in fields.items():
        config.preprocess[name] = value
    model = tiny.small_model(config, 10)
    state = state_of(model, 8, step)
    variables = {"params": state.ema_params, "batch_stats": state.ema_batch_stats}
    rows = []
    for file in files:
        image = data.decode(file.read_bytes(), "")
        how = config.preprocess
        pixels = augment.evaluation_transform(image, 8, how.crop_fraction, how.interpolation)
        normal = (pixels.astype(np.float32) - np.float32(how.mean)) / np.float32(how.std)
        rows.append(jax.nn.softmax(model.apply(variables, normal[None]))[0])
    return np.asarray(rows)


def assert_predicted(images, files, probabilities):
    assert [image["file"] for image in images] == [str(file) for file in files]
    for image, row in zip(images, probabilities, strict=True):
        order = np.argsort(-row)[:5]
        assert [entry["index"] for entry in image["top"]] == order.tolist()
        assert [entry["class"] for entry in image["top"]] == [NAMES[i] for i in order]
        found = [entry["probability"] for entry in image["top"]]
        np.testing.assert_allclose(found, row[order], rtol=1e-4)


# Numbers ----------------------------------------------------------------------------------------


def test_probabilities_are_those_of_the_plain_network(cli, photos, workdir):
    code, out, err = cli(f"--images={photos}/*", "--json")
    files = sorted(photos.iterdir())
    probabilities = expected(files)
    assert probabilities.std() > 0.01
    assert code == 0
    result = json.loads(out)
    assert_predicted(result.pop("images"), files, probabilities)
    assert result == {
        "network": "mobilenet_v1",
        "workdir": str(workdir),
        "step": LATEST,
        "classes": 10,
        "resolution": 8,
        "model": {
            name: value
            for name, value in tiny.config().model.to_dict().items()
            if value is not None
        },
        "preprocess": {
            "mean": [127.5] * 3,
            "std": [60.0, 70.0, 80.0],
            "crop_fraction": 0.8,
            "interpolation": "bilinear",
        },
        "skipped": [],
        "picture": f"{workdir}/predict.png",
    }
    assert err == (
        f"mobilenet_v1 of {workdir}, step {LATEST}: 5 images.\nPicture: {workdir}/predict.png\n"
    )
    with Image.open(workdir / "predict.png") as picture:
        assert picture.format == "PNG"


def test_best_checkpoint_and_preprocessing_as_asked_for(cli, photos):
    options = ("--checkpoint=best", "--config.preprocess.interpolation=pillow_bicubic")
    code, out, _ = cli(f"--images={photos}/b.jpg", "--json", *options)
    assert code == 0
    result = json.loads(out)
    assert (result["step"], result["preprocess"]["interpolation"]) == (BEST, "pillow_bicubic")
    files = [photos / "b.jpg"]
    assert_predicted(result["images"], files, expected(files, BEST, interpolation="pillow_bicubic"))


@pytest.mark.parametrize("mode", ["predict", "eval"])
def test_no_best_checkpoint_without_an_accuracy(photos, tmp_path, capsys, mode):
    config = tiny.config()
    logs.write_json(tmp_path / "config.json", config_lib.plain(config))
    state = state_of(tiny.small_model(config, 10), 8, LATEST)
    meta = {"class_names": CLASSES, "config": config_lib.plain(config)}
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, LATEST, state, meta, None)
    images = [f"--images={photos}"] if mode == "predict" else []
    options = (f"--mode={mode}", f"--workdir={tmp_path}", "--checkpoint=best")
    assert main.main(["main.py", *options, *images]) == 2
    assert capsys.readouterr().err.endswith(
        f"error: No checkpoint in {tmp_path}/checkpoints has an accuracy: use "
        "--checkpoint=latest.\n"
    )


def test_batches_are_of_one_size_and_in_order(cli, photos, monkeypatch):
    shapes = []
    compiled = predict._compiled

    def spied(predictor):
        function = compiled(predictor)

        def call(variables, images):
            shapes.append(images.shape)
            return function(variables, images)

        return call

    monkeypatch.setattr(predict, "_compiled", spied)
    files = [photos / name for name in ("e.jpg", "a.png", "c.bmp", "a.png", "b.jpg")]
    code, out, _ = cli("--images", *files, "--json", "--config.eval_batch_size=2")
    assert code == 0
    assert_predicted(json.loads(out)["images"], files, expected(files))
    assert shapes == [(2, 8, 8, 3)] * 3
    del shapes[:]
    cli("--images", *files)
    assert shapes == [(8, 8, 8, 3)]


def test_a_network_that_gives_no_number_is_no_use(cli, photos, monkeypatch):
    monkeypatch.setattr(steps, "normalize", lambda images, config: images * np.float32(np.nan))
    code, out, err = cli(f"--images={photos}/a.png")
    assert (code, out) == (2, "")
    assert "error: The network gives no number for" in err


# Writing ----------------------------------------------------------------------------------------


def test_table_is_aligned(cli, photos):
    names = ("cat", "a longer name", "x")
    predictions = [
        predict.Prediction("p/one.jpg", [1, 0], [0.98765, 0.01]),
        predict.Prediction("p/2\n\udcff.jpg", [2], [1.0]),
    ]
    assert predict.table(predictions, names).splitlines() == [
        "image            class          probability",
        "p/one.jpg        a longer name      98.77 %",
        "                 cat                 1.00 %",
        r"p/2\n\udcff.jpg  x                 100.00 %",
    ]
    code, out, _ = cli(f"--images={photos}/a.png")
    assert code == 0
    assert len(out.splitlines()) == 1 + 5
    assert out.splitlines()[1].startswith(f"{photos}/a.png  ")


def test_picture_holds_what_was_seen_and_said(cli, photos, monkeypatch):
    calls = []
    monkeypatch.setattr(plots, "classified", lambda *arguments: calls.append(arguments))
    _, out, _ = cli(f"--images={photos}", "--json")
    ((images, panels, count, title, path),) = calls
    answers = json.loads(out)["images"]
    assert (count, path.name) == (5, "predict.png")
    assert title == f"mobilenet_v1 of {path.parent}, step {LATEST}"
    for image, panel, answer in zip(images, panels, answers, strict=True):
        file = answer["file"]
        decoded = data.decode(Path(file).read_bytes(), "")
        assert (image == augment.evaluation_transform(decoded, 8, 0.8)).all()
        assert panel.title == os.path.basename(file)
        assert panel.bars == tuple(
            (top["class"], top["probability"], f"{100 * top['probability']:.1f} %")
            for top in answer["top"]
        )


def test_answers_come_before_a_picture_that_cannot_be_written(cli, photos, workdir, monkeypatch):
    def fail(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(plots, "classified", fail)
    code, out, err = cli(f"--images={photos}/a.png", "--json")
    assert code == 2
    assert json.loads(out)["picture"] is None
    assert err.endswith(
        f"error: The picture {workdir}/predict.png cannot be written (Permission denied): choose "
        "another --workdir.\n"
    )


# Files ------------------------------------------------------------------------------------------


def test_files_are_found_as_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("b.jpg", "a.PNG", "c.txt", ".d.jpg", "x[1].jpg", "sub/e.jpg", "sub/deep/f.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def find(*patterns):
        return predict.find_images(patterns)

    assert find("*.jpg") == ["b.jpg", "x[1].jpg"]
    assert find("sub", "b.jpg", "*.jpg") == ["sub/e.jpg", "b.jpg", "b.jpg", "x[1].jpg"]
    assert find(".") == ["./a.PNG", "./b.jpg", "./x[1].jpg"]
    assert find("x[1].jpg") == ["x[1].jpg"]
    assert find("**/*.webp", "~/b.jpg") == ["sub/deep/f.webp", f"{tmp_path}/b.jpg"]
    assert find("c.txt", "s*") == ["c.txt", "sub"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("*.gif", "No file matches --images '*.gif': correct the path."),
        ("none.jpg", "No file matches --images 'none.jpg': correct the path."),
        ("empty", "There is no image in the directory 'empty': name another, or its files as in"),
    ],
)
def test_what_matches_nothing_is_an_error(tmp_path, monkeypatch, pattern, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.jpg").touch()
    with pytest.raises(InputError) as error:
        predict.find_images(["a.jpg", pattern])
    assert str(error.value).startswith(message)


@pytest.fixture
def bad(tmp_path, photos):
    """Files that are no images, by name, and why."""
    whole = (photos / "b.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "zero.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    bomb = io.BytesIO()
    Image.new("1", (8, 8)).save(bomb, "png")
    bomb = bytearray(bomb.getvalue())
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(bomb)
    (tmp_path / "dangling.jpg").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")
    return {
        "bomb.png": "Cannot decode the image {} (Image size (3600000000 pixels) exceeds limit",
        "dangling.jpg": "Cannot read the image {} (No such file or directory): leave it out.",
        "folder.jpg": "Cannot read the image {} (a directory): leave it out.",
        "pipe.jpg": "Cannot read the image {} (no regular file): leave it out.",
        "text.png": "Cannot decode the image {} (it is none of JPEG, PNG, ",
        "truncated.jpg": "Cannot decode the image {} (image file is truncated",
        "zero.jpg": "Cannot decode the image {} (it is none of JPEG, PNG, ",
    }


def test_bad_images_are_named_and_skipped(cli, photos, bad, tmp_path):
    good = [photos / "a.png", photos / "b.jpg"]
    arguments = ("--images", good[0], tmp_path / "*", good[1], "--json")
    code, out, err = cli(*arguments)
    assert code == 2
    result = json.loads(out)
    assert_predicted(result["images"], good, expected(good))
    assert [entry["file"] for entry in result["skipped"]] == [f"{tmp_path}/{name}" for name in bad]
    lines = err.splitlines()
    for entry, line, (name, reason) in zip(result["skipped"], lines[1:], bad.items(), strict=False):
        assert entry["reason"].startswith(reason.format(tmp_path / name))
        assert line == f"skipped: {entry['reason']}"
    assert lines[-1] == "7 of 9 images were skipped."


def test_nothing_but_bad_images(cli, bad, tmp_path, workdir):
    (workdir / "predict.png").unlink(missing_ok=True)
    code, out, err = cli(f"--images={tmp_path}/*", "--json")
    assert code == 2
    result = json.loads(out)
    assert (result["images"], result["picture"], len(result["skipped"])) == ([], None, 7)
    assert not (workdir / "predict.png").exists()
    code, out, err = cli(f"--images={tmp_path}/z*")
    assert (code, out, err.count("skipped: ")) == (2, "", 1)


def test_what_exif_says_is_said_and_not_done(cli, photos, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(photos / "a.png")
    image.save(tmp_path / "turned.png", exif=exif)
    code, out, err = cli("--images", photos / "a.png", tmp_path / "turned.png", "--json")
    assert code == 0
    first, second = json.loads(out)["images"]
    assert first["top"] == second["top"]
    assert (
        f"EXIF says to turn {tmp_path}/turned.png; predicted as stored, as in training and "
        "evaluation.\n" in err
    )


# Published weights ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file of the tiny network's weights."""
    model = tiny.small_model(tiny.config(), 10)
    state = state_of(model, 8, 7)
    path = tmp_path_factory.mktemp("weights") / "tiny.npz"
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    weights.save(variables, path, model, format="npz", naming="native")
    # The same without a word of what it is.
    weights_files.write(weights_files.read(path), path.with_name("old.npz"), "npz")
    return path


@pytest.fixture
def published(capsys, tmp_path, monkeypatch):
    """Runs --mode=predict on a config; returns exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(argument, *argv):
        config = f"--config={tiny.ROOT}/configs/default.py:{argument}"
        code = main.main(["main.py", "--mode=predict", config, *map(str, argv)])
        return code, *capsys.readouterr()

    return run


# The network of `file`.
TINY = ("--config.model.alpha=0.25", "--config.model.shallow=true", "--config.resolution=8")


def test_timms_network_and_preprocessing_without_being_told(
    published, photos, tmp_path, monkeypatch
):
    monkeypatch.setattr(steps, "build_model", tiny._build_model)
    model = weights.model_for("timm", "mobilenetv1_100")
    rng = np.random.default_rng(0)
    variables = {}
    for name, shape in weights.shapes(model).items():
        is_weight = name.endswith("kernel")
        deviation = (2 / np.prod(shape[:-1])) ** 0.5 if is_weight else 0.1
        value = rng.normal(0, deviation, shape).astype(np.float32)
        variables[name] = np.abs(value) + 0.8 if name.endswith(("/scale", "/var")) else value
    variables["params/classifier/kernel"] *= 3
    variables = unflatten_dict(variables, sep="/")
    weights.save(variables, tmp_path / "v1.npz", model, format="npz", naming="timm")
    files = [photos / "b.jpg", photos / "e.jpg"]
    code, out, err = published(
        "model=mobilenet_v1,dataset=imagenet2012",
        *("--config.init_from=v1.npz", "--config.init_source=timm", "--config.resolution=32"),
        *("--config.preprocess.crop_fraction=0.9", "--json", "--images", *files),
    )
    assert code == 0
    assert err.startswith("timm's mobilenetv1_100 of v1.npz: 2 images.\n")
    result = json.loads(out)
    assert (result["network"], result["weights"], result["source"]) == (
        *("mobilenet_v1", "v1.npz", "timm"),
    )
    assert (result["classes"], result["resolution"]) == (1000, 32)
    # All but the crop, which was set, are those of timm's weights.
    assert result["preprocess"] == {
        "mean": [127.5] * 3,
        "std": [127.5] * 3,
        "crop_fraction": 0.9,
        "interpolation": "pillow_bicubic",
    }
    assert result["picture"].startswith("runs/mobilenet_v1-imagenet2012-")
    assert (tmp_path / result["picture"]).exists()
    apply = jax.jit(lambda images: jax.nn.softmax(model.apply(variables, images)))
    pixels = [
        augment.evaluation_transform(data.decode(f.read_bytes(), ""), 32, 0.9, "pillow_bicubic")
        for f in files
    ]
    rows = np.asarray(apply((np.float32(pixels) - 127.5) / 127.5))
    names = list(imagenet.classes().values())
    for answer, row in zip(result["images"], rows, strict=True):
        order = np.argsort(-row)[:5]
        assert [top["index"] for top in answer["top"]] == order.tolist()
        assert [top["class"] for top in answer["top"]] == [names[i] for i in order]
        found = [top["probability"] for top in answer["top"]]
        np.testing.assert_allclose(found, row[order], rtol=1e-3)


@pytest.mark.parametrize(
    ("source", "model", "fields", "set_by_source"),
    [
        ("timm", "mobilenet_v2", {}, {"padding": "symmetric", "bn_epsilon": 1e-5}),
        ("timm", "mobilenet_v2", {"drop_strides": 1}, {"bn_epsilon": 1e-5}),
        ("timm", "mobilenet_v2", {"depth": 1.2, "alpha": 1.1}, {"bn_epsilon": 1e-5}),
        ("timm", "mobilenet_v3_large", {"timm_variant": "rw"}, {"bn_epsilon": 1e-3}),
        ("timm", "mobilenet_v3_large", {}, {"bn_epsilon": 1e-5, "timm_variant": None}),
        ("timm", "mobilenet_v3_large", {"padding": "same"}, {"bn_epsilon": 1e-3}),
        ("keras", "mobilenet_v1", {}, {"padding": "bottom_right", "bn_epsilon": 1e-3}),
    ],
)
def test_what_is_not_set_becomes_the_sources(source, model, fields, set_by_source, monkeypatch):
    monkeypatch.setattr(weights, "load", lambda *arguments, **options: {})
    monkeypatch.setattr(predictors, "fold_batch_norm", lambda model, variables: (model, variables))
    config = default.get_config(f"model={model},dataset=digits")
    assert config.model.drop_strides
    config.model.update(se=True, **fields)  # squeeze-and-excite is not asked for
    config.update(init_from="theirs", init_source=source, beta=0.5)
    found = predictors.published(config, [f"model.{name}" for name in fields]).config
    expected = {"drop_strides": 0, "se": None, **set_by_source, **fields}
    assert {name: found.model[name] for name in expected} == expected
    assert (found.resolution, found.beta) == (224, 1.0)


def test_a_file_of_our_own(published, photos, file):
    fields = (*TINY, f"--config.init_from={file}", "--config.preprocess.mean=(9.,8.,7.)")
    arguments = ("--images", photos / "a.png", "--json", "--workdir=new")
    code, out, err = published("model=mobilenet_v1,dataset=digits", *fields, *arguments)
    assert (code, err.splitlines()[0]) == (0, f"our mobilenet_v1 of {file}: 1 image.")
    result = json.loads(out)
    assert result["preprocess"]["mean"] == [9.0, 8.0, 7.0]
    assert (result["source"], result["picture"]) == ("native", "new/predict.png")
    assert {top["class"] for top in result["images"][0]["top"]} <= set("0123456789")


HOW = {
    "mean": (120.0, 110.0, 100.0),
    "std": (60.0, 70.0, 80.0),
    "crop_fraction": 0.75,
    "interpolation": "pillow_bicubic",
}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A file that says its network, unlike any config's, and its preprocessing; the variables."""
    fields = {"padding": "symmetric", "bn_epsilon": 0.1, "rule": "slim", "drop_strides": 2}
    model = create_model("mobilenet_v1", 5, 0.25, shallow=True, **fields)
    rng = np.random.default_rng(1)
    flat = {
        name: abs(rng.normal(0.1, 0.1, shape)).astype(np.float32)
        for name, shape in weights.shapes(model).items()
    }
    variables = unflatten_dict(flat, sep="/")
    path = tmp_path_factory.mktemp("weights") / "told.safetensors"
    how = Preprocessing(**HOW, resolution=24)
    weights.save(variables, path, model, naming="native", preprocessing=how)
    return path, model, variables


@pytest.mark.parametrize("dataset", ["image_folder", "digits"])
def test_a_file_of_our_own_says_network_and_preprocessing(
    published, photos, told, monkeypatch, dataset
):
    monkeypatch.setattr(steps, "build_model", tiny._build_model)
    path, model, variables = told
    classes = () if dataset == "image_folder" else ("--config.dataset.num_classes=5",)
    options = ("--config.model.shallow=true", f"--config.init_from={path}", "--json", *classes)
    files = [photos / "b.jpg", photos / "e.jpg"]
    for more, side, crop in (
        ((), 24, 0.75),
        (("--config.preprocess.crop_fraction=0.5", "--config.resolution=32"), 32, 0.5),
    ):
        argument = f"model=mobilenet_v1,dataset={dataset}"
        code, out, err = published(argument, *options, *more, "--images", *files)
        assert (code, err.splitlines()[0]) == (0, f"our mobilenet_v1 of {path}: 2 images.")
        result = json.loads(out)
        assert (result["resolution"], result["classes"]) == (side, 5)
        assert result["preprocess"] == {
            **{name: list(v) if isinstance(v, tuple) else v for name, v in HOW.items()},
            "crop_fraction": crop,
        }
        expected = {"alpha": 0.25, "padding": "symmetric", "bn_epsilon": 0.1, "rule": "slim"}
        expected |= {"drop_strides": 2, "name": "mobilenet_v1", "shallow": True}
        assert expected.items() <= result["model"].items()
        pixels = np.float32(
            [
                augment.evaluation_transform(
                    data.decode(file.read_bytes(), ""), side, crop, "pillow_bicubic"
                )
                for file in files
            ]
        )
        normal = (pixels - np.float32(HOW["mean"])) / np.float32(HOW["std"])
        rows = np.asarray(jax.nn.softmax(jax.jit(model.apply)(variables, normal)))
        for answer, row in zip(result["images"], rows, strict=True):
            found = {top["index"]: top["probability"] for top in answer["top"]}
            np.testing.assert_allclose([found[i] for i in range(5)], row, rtol=1e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            ["model.shallow=true", "model.padding=same"],
            "is of another network: set --config.model.padding=symmetric for its weights.",
        ),
        ([], "is of another network (blocks is 8 there and 13 here): give the name and switc"),
        (
            ["model.shallow=true", "dataset.num_classes=7"],
            ": its classifier has 5 classes and this network has 7: give",
        ),
    ],
)
def test_a_file_of_our_own_of_another_network(
    published, photos, told, monkeypatch, fields, message
):
    monkeypatch.setattr(steps, "build_model", tiny._build_model)
    fields = [f"--config.{field}" for field in fields]
    argument = "model=mobilenet_v1,dataset=image_folder"
    path, images = told[0], f"--images={photos}"
    code, out, err = published(argument, f"--config.init_from={path}", *fields, images)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {path}{' ' * (message[0] != ':')}{message}"), err
    assert err.count("\n") == 1


def test_a_workdir_with_a_training_comes_before_a_file(cli, photos, workdir, monkeypatch):
    monkeypatch.setattr(predictors, "published", None)
    stored = json.loads((workdir / "config.json").read_text())
    changed = {**stored, "init_from": "weights.npz"}
    monkeypatch.setattr(config_lib, "read", lambda path: changed)
    code, out, _ = cli(f"--images={photos}/a.png", "--json")
    assert (code, json.loads(out)["step"]) == (0, LATEST)


@pytest.mark.parametrize(
    ("argument", "fields", "message"),
    [
        (
            "dataset=digits",
            ["init_from={file}", "epochs=3"],
            "epochs is set but not used: a prediction does not read it.",
        ),
        (
            "dataset=imagenet2012",
            ["init_from={file}", "dataset.num_classes=5", "model.drop_strides=1"],
            "{file}: its classifier has 10 classes and this network has 5: give "
            "--config.dataset.num_classes=10.",
        ),
        (
            "dataset=image_folder",
            ["init_from={file.parent}/old.npz"],
            "How many classes the weights are of is not known: give --config.dataset.num_classes.",
        ),
        (
            "dataset=digits",
            ["init_from={file.parent}"],
            "init_from is a directory: give the training by --workdir={file.parent}.",
        ),
        (
            "dataset=digits",
            ["init_from={file}", "init_source=torchvision"],
            "torchvision has no mobilenet_v1",
        ),
        (
            "dataset=digits",
            ["init_from={file}", "init_source=timm", "model.padding=same"],
            "timm's mobilenet_v1 differs from this mobilenet_v1: set --config.model.padding=symm",
        ),
    ],
)
def test_weights_that_do_not_fit(published, photos, file, argument, fields, message):
    fields = [f"--config.{field}".format(file=file) for field in fields]
    tiny_unless_timms = TINY if "timm" not in str(fields) else TINY[::2]
    images = f"--images={photos}"
    code, out, err = published(
        f"model=mobilenet_v1,{argument}", *tiny_unless_timms, *fields, images
    )
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message.format(file=file)}"), err
    assert err.count("\n") == 1


def test_names_of_classes():
    assert predictors._class_names("imagenet2012", 1000)[281] == "tabby"
    assert predictors._class_names("fashion_mnist", 10)[9] == "Ankle boot"
    assert predictors._class_names("imagenet2012", 2) == ("class 0", "class 1")
    assert predictors._class_names("image_folder", 1) == ("class 0",)


# Arguments --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images=x"], "No file matches --images 'x': correct the path."),
        ([], "Nothing to predict: give e.g. --images='photos/*.jpg'."),
        (
            ["--images=x", "--mode=eval"],
            "--images is not used by --mode=eval: give --mode=predict.",
        ),
        (["--json", "--mode=train"], "--json is not used by --mode=train: give --mode=predict."),
        (
            ["--images=/dev/null", "--config.epochs=9"],
            "epochs is set but not used: a prediction does",
        ),
        (
            ["--images=/dev/null", "--config.dataset.workers=1"],
            "dataset.workers is set but not used",
        ),
        (["--images=x", "--workdir=none"], "There is no none/config.json: give the --workdir of"),
    ],
)
def test_mistakes_end_in_one_sentence(cli, arguments, message):
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_another_network_is_refused(cli, photos):
    code, out, err = cli(f"--images={photos}", "--config.model.alpha=0.5")
    assert (code, out) == (2, "")
    assert "is of another network (model.alpha is 0.25 there and 0.5 here)" in err


def test_nothing_to_predict_with(capsys):
    assert main.main(["main.py", "--mode=predict", "--images=x"]) == 2
    expected = "error: Nothing was given to predict with: use e.g. --workdir=runs/demo.\n"
    assert capsys.readouterr().err == expected
