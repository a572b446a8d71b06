"""The command line: what each argument means, and how every mistake ends."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import v2, v3
from mobilenets_jax import config as config_lib
from mobilenets_jax import costs, datasets, evaluation, main, specs, steps, switches, train

ROOT = Path(__file__).parents[1]
V2 = f"--config={ROOT}/configs/v2.py"
V3 = f"--config={ROOT}/configs/v3.py"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Default workdirs fall into an empty directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cli(capsys):
    """Runs a command line in this process; returns its exit code, output and errors."""

    def run(*argv):
        code = main.main(["main.py", *argv])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def mistake(cli, tmp_path):
    """Runs a command line that must end in one sentence, and leave nothing behind."""

    def run(*argv):
        before = set(tmp_path.rglob("*"))
        code, out, err = cli(*argv)
        assert code == 2
        assert out == ""
        assert re.fullmatch(r"error: [^\n]+[.?]\n", err), err
        assert "Traceback" not in err
        assert set(tmp_path.rglob("*")) == before
        return err.removeprefix("error: ").removesuffix("\n")

    return run


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Where digits are prepared."""
    place = tmp_path_factory.mktemp("data")
    datasets.open_dataset("digits", data_dir=str(place))
    return str(place)


@pytest.fixture
def started(monkeypatch):
    """Replaces the training; holds what it was started with."""
    calls = []

    def fake(config, workdir):
        calls.append((config, workdir))
        return {"test_accuracy": 1.0}

    monkeypatch.setattr(train, "train", fake)
    return calls


# What the arguments mean --------------------------------------------------------------------------


def overridden(*argv):
    """The fields in which the parsed config differs from the file's."""
    parsed = main.parse(["main.py", V2, *argv])
    old, new = (dict(config_lib.flatten(c.to_dict())) for c in (v2.get_config(), parsed.config))
    return {name: value for name, value in new.items() if value != old[name]}, parsed.overrides


@pytest.mark.parametrize(
    ("argv", "fields"),
    [
        ([], {}),
        (["--config.model.alpha=0.75"], {"model.alpha": 0.75}),
        (["--config.model.alpha", "0.75"], {"model.alpha": 0.75}),
        (["--config.beta=0.714", "--config.seed", "3"], {"beta": 0.714, "seed": 3}),
        (["--config.epochs=3"], {"epochs": 3.0}),
        (["--config.augment.flip"], {"augment.flip": True}),
        (["--config.augment.flip=true"], {"augment.flip": True}),
        (["--config.optimizer.nesterov=false"], {"optimizer.nesterov": False}),
        (["--config.preprocess.mean=(1,2,3)"], {"preprocess.mean": (1.0, 2.0, 3.0)}),
        (["--config.preprocess.mean", "1,2,3"], {"preprocess.mean": (1.0, 2.0, 3.0)}),
        (["--config.model.activation=hswish"], {"model.activation": "hswish"}),
        (["--config.model.shortcut=none"], {"model.shortcut": "none"}),
        (["--config.model.se=True"], {"model.se": True}),
        (["--config.dataset.train_split=train[:90%]"], {"dataset.train_split": "train[:90%]"}),
        # The paper's own.
        (["--config.model.activation=None"], {}),
        (["--config.model.activation=none"], {}),
        (["--config.model.se=none"], {}),
        (["--config.model.shortcut=None"], {}),
        (["--config.model.bn_momentum=None"], {"model.bn_momentum": None}),
        (["--config.dataset.num_classes=None"], {"dataset.num_classes": None}),
    ],
)
def test_fields_are_set(argv, fields):
    found, overrides = overridden(*argv)
    assert found == fields
    names = [arg.partition("=")[0] for arg in argv if arg.startswith("--config.")]
    assert overrides == [name.removeprefix("--config.") for name in names]


def test_options():
    options = main.parse(["main.py", V2, "--workdir=~/a", "--mode", "eval"])
    assert options.mode == "eval"
    assert options.workdir == Path.home() / "a"
    assert options.config == v2.get_config()
    assert options.config.is_locked
    options = main.parse(["main.py", "--config", f"{ROOT}/configs/v3.py:variant=small"])
    assert options.mode == "train"
    assert options.workdir is None
    assert options.config == v3.get_config("variant=small")


def test_help(cli):
    for flag in ("--help", "-h"):
        code, out, err = cli(flag)
        assert (code, err) == (0, "")
        assert "--config=configs/v2.py" in out
        assert "--workdir" in out
        assert "--mode" in out


def test_training_gets_the_config_and_the_workdir(cli, started, tmp_path):
    assert cli(V2, f"--workdir={tmp_path}/w", "--config.epochs=2") == (0, "", "")
    assert cli(V2, "--config.epochs=2") == (0, "", "")
    (config, workdir), (_, default_workdir) = started
    assert config.epochs == 2.0
    assert workdir == tmp_path / "w"
    assert default_workdir == main.default_workdir(config)


def test_exit_codes_of_a_training(cli, monkeypatch):
    monkeypatch.setattr(train, "train", lambda config, workdir: None)
    assert cli(V2) == (143, "", "")

    def diverge(config, workdir):
        raise train.Diverged("Training stopped: the loss is nan at step 3.")

    monkeypatch.setattr(train, "train", diverge)
    assert cli(V2) == (1, "", "error: Training stopped: the loss is nan at step 3.\n")


def test_an_error_of_the_program_is_not_dressed_up_as_bad_input(cli, monkeypatch):
    def fail(config, workdir):
        return 1 // 0

    monkeypatch.setattr(train, "train", fail)
    with pytest.raises(ZeroDivisionError):
        cli(V2)


# Mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "No config was given: use e.g. --config=configs/v2.py."),
        (["--mode=summary"], "No config was given: use e.g. --config=configs/v2.py."),
        (["--mode=eval"], "No config was given: use e.g. --config=configs/v2.py."),
        (
            ["--config.seed=1"],
            "Fields are set, but no config is: give e.g. --config=configs/v2.py too.",
        ),
        *(
            (
                ["--mode=predict", "--images=a.png", "--config.init_from=a.npz", *workdir],
                "init_from is set, but the config of its network is not: give e.g. "
                "--config=configs/v2.py:dataset=imagenet2012 too.",
            )
            for workdir in ([], ["--workdir=/nowhere"], ["--workdir=/" + "a" * 300])
        ),
        (
            ["--mode=predict", "--images=a.png", "--config.beta=1", "--workdir=/nowhere"],
            "There is no /nowhere/config.json: give the --workdir of a training that was started.",
        ),
        (["configs/v2.py"], "Unknown argument 'configs/v2.py': give --config=FILE.py, or "
         "--config.field=value."),
        ([V2, "model.alpha=3"], "Unknown argument 'model.alpha=3': give --config=FILE.py, or "),
        ([V2, "--config.model.se", "true"], "Unknown argument 'true': give --config=FILE.py, or "),
        ([V2, "--confg=3"], "Unknown flag '--confg'. Did you mean '--config'? Choose one of: "
         "--config, --workdir, --mode, --checkpoint, --images, --json, --help, or "),
        ([V2, "--wrkdir=w"], "Unknown flag '--wrkdir'. Did you mean '--workdir'?"),
        ([V2, "--model.alpha=3"], "Unknown flag '--model.alpha'."),
        ([V2, "--mode"], "Missing value for flag --mode: give every flag as --flag=value."),
        ([V2, "--workdir"], "Missing value for flag --workdir: give every flag as --flag=value."),
        (["--config"], "Missing value for flag --config: give every flag as --flag=value."),
        ([V2, "--mode=evl"], "Unknown mode 'evl'. Did you mean 'eval'? Choose one of: train, eval, "
         "predict, summary."),
    ],
)  # fmt: skip
def test_bad_flags(argv, message, mistake):
    assert message in mistake(*argv)


@pytest.mark.parametrize("spelling", ["--config.{}=1", "--config.{} 1", "--noconfig.{}"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sed", "Unknown config field 'sed'. Did you mean 'seed'?"),
        ("model.alfa", "Unknown config field 'model.alfa'. Did you mean 'model.alpha'?"),
        ("modle.alpha", "Unknown config field 'modle.alpha'. Did you mean 'model.alpha'?"),
        ("alpha", "Unknown config field 'alpha'. Did you mean 'model.alpha'?"),
        ("seed.x", "Unknown config field 'seed.x'. Did you mean 'seed'?"),
        ("model.alpha.x", "Unknown config field 'model.alpha.x'. Did you mean 'model.alpha'?"),
        ("schedule", "Unknown config field 'schedule'. Did you mean 'schedule.name'?"),
        ("foo", "Unknown config field 'foo'. Choose one of those in configs/default.py."),
    ],
)
def test_an_unknown_field(name, message, spelling, mistake):
    argv = spelling.format(name).split(" ")
    assert mistake(V2, *argv) == message
    assert mistake(*argv, V2) == message


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("model.alpha=abc", "model.alpha must be a number above 0 and at most 100, not 'abc'."),
        ("model.alpha=", "model.alpha must be a number above 0 and at most 100, not ''."),
        ("model.alpha=None", "model.alpha must be a number above 0 and at most 100, not None."),
        ("model.alpha=0", "model.alpha must be a number above 0 and at most 100, not 0.0."),
        ("model.alpha=nan", "model.alpha must be a number above 0 and at most 100, not nan."),
        (
            "model.alpha",
            "Missing value for flag --config.model.alpha: give every flag as --flag=value.",
        ),
        ("seed=1.5", "seed must be an integer from 0 to 2147483647, not '1.5'."),
        ("seed=-1", "seed must be an integer from 0 to 2147483647, not -1."),
        ("seed=1=2", "seed must be an integer from 0 to 2147483647, not '1=2'."),
        ("augment.flip=maybe", "augment.flip must be true or false, not 'maybe'."),
        ("distributed=None", "distributed must be true or false, not None."),
        ("model.se=maybe", "model.se must be true or false, or None, not 'maybe'."),
        ("batch_size=None", "batch_size must be an integer from 1, not None."),
        ("batch_size=0", "batch_size must be an integer from 1, not 0."),
        ("epochs=inf", "epochs must be a number above 0 and at most 1000000, not inf."),
        ("epochs=0", "epochs must be a number above 0 and at most 1000000, not 0.0."),
        ("label_smoothing=1", "label_smoothing must be a number from 0 and below 1, not 1.0."),
        ("ema_decay=1", "ema_decay must be a number from 0 and below 1, not 1.0."),
        ("beta=0", "beta must be a number above 0 and at most 16, not 0.0."),
        ("beta=0.01", "beta = 0.01 leaves nothing of 32 pixels: choose at least 0.125."),
        ("augment.min_area=0", "augment.min_area must be a number above 0 and at most 1, not 0.0."),
        ("preprocess.mean=1", "such as (127.5, 127.5, 127.5), not (1,)."),
        ("preprocess.mean=(1,2)", "such as (127.5, 127.5, 127.5), not (1, 2)."),
        ("preprocess.mean=(1,2,x)", "such as (127.5, 127.5, 127.5), not ('(1,2,x)',)."),
        ("preprocess.mean=(1,", "such as (127.5, 127.5, 127.5), not '(1,'."),
        ("preprocess.std=(0,1,1)", "(127.5, 127.5, 127.5) above 0, not (0, 1, 1)."),
        ("optimizer.name=adam", "Unknown optimizer.name 'adam'. Did you mean 'adamw'?"),
        ("schedule.name=cosin", "Unknown schedule.name 'cosin'. Did you mean 'cosine'?"),
        ("preprocess.interpolation=cubic", "'cubic'. Did you mean 'bicubic'?"),
        ("augment.crop=random", "Unknown augment.crop 'random'. Did you mean 'random_resized'?"),
        # Networks.
        ("model.name=mobilenet_v5", "Unknown model 'mobilenet_v5'. Did you mean 'mobilenet_v"),
        ("model.activation=swish", "Unknown activation 'swish'. Did you mean 'hswish'?"),
        ("model.rule=kers", "Unknown rounding rule 'kers'. Did you mean 'keras'?"),
        ("model.padding=smae", "Unknown padding 'smae'. Did you mean 'same'?"),
        ("model.se_gate=sigmod", "Unknown SE gate 'sigmod'. Did you mean 'sigmoid'?"),
        ("model.residual=clasical", "Unknown residual 'clasical'. Did you mean 'classical'?"),
        ("model.shortcut=no", "Unknown shortcut 'no'. Did you mean 'none'?"),
        ("model.last_stage=short", "Unknown last_stage 'short'. Did you mean 'shortened'?"),
        ("model.hswish_from=15", "hswish_from must be one of 112, 56, 28, 14 and 7, not 15."),
        ("model.stem=24", "stem must be 16 or 32, not 24."),
        ("model.drop_strides=9", "drop_strides must be an integer from 0 to 5"),
        ("model.shallow=true", "shallow=True is V1's ablation: mobilenet_v2 has no such layers."),
        ("model.dropout=1", "dropout must be a number in [0.0, 1.0), not 1.0."),
        # Fields that nothing reads.
        ("optimizer.epsilon=1", "optimizer.epsilon is not used by optimizer.name=sgd."),
        ("schedule.decay_rate=1", "schedule.decay_rate is not used by schedule.name=cosine."),
        ("dataset.manual_dir=/x", "dataset.manual_dir is set but not used: it needs dataset.name="),
        ("augment.magnitude=3", "augment.magnitude is set but not used: it needs augment.randaug"),
        ("model.se_gate=sigmoid", "model.se_gate is set but not used: it needs squeeze-and-excite"),
    ],
)
def test_a_bad_value(field, message, mistake):
    assert message in mistake(V2, f"--config.{field}")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("v2.py:datset=digits", "Unknown config argument 'datset'. Did you mean 'dataset'?"),
        ("v2.py:digits", "The config argument 'digits' must be key=value."),
        ("v2.py:recipe=modrn", "Unknown recipe 'modrn'. Did you mean 'modern'?"),
        ("v3.py:variant=smal", "Unknown variant 'smal'. Did you mean 'small'?"),
        ("default.py:modle=mobilenet_v1", "Unknown config argument 'modle'. Did you mean 'model'?"),
        ("v9.py", "There is no config file '{}/v9.py'. Did you mean '{}/v"),
        ("v2.pyy:dataset=digits", "There is no config file '{}/v2.pyy'. Did you mean '{}/v2.py'?"),
        ("", "There is no config file '{}/'. Give e.g. --config=configs/v2.py."),
    ],
)
def test_a_bad_config_argument(argument, message, mistake):
    place = f"{ROOT}/configs"
    assert mistake(f"--config={place}/{argument}").startswith(message.replace("{}", place))


def test_an_empty_config(mistake):
    assert mistake("--config=") == ("There is no config file ''. Give e.g. --config=configs/v2.py.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:\n", "The config file {} failed (SyntaxError: invalid syntax (own.py, "
         "line 1)): correct it."),
        ("\nraise RuntimeError('boom\\nmore')\n", "The config file {} failed in line 2 "
         "(RuntimeError: boom): correct it."),
        ("def get_config(arg=''):\n    return {}['x']\n", "The config file {} failed in line 2 "
         "(KeyError: x): correct it."),
        ("def get_config(arg=''):\n    return int('x')\n", "The config file {} failed in line 2 "
         "(ValueError: invalid literal for int() with base 10: 'x'): correct it."),
        ("import no_such_module\n", "The config file {} failed in line 1 (ModuleNotFoundError: No "
         "module named 'no_such_module'): correct it."),
        ("open('nowhere')\n", "The config file {} failed (OSError: Failed loading config file "),
        ("def get_config():\n    open('/nowhere')\n", "The config file {} failed in line 2 "
         "(FileNotFoundError: [Errno 2] No such file or directory: '/nowhere'): correct it."),
        ("def get_config(): return {'seed': 1}\n", "The config file {} failed (TypeError: "
         "get_config returned a dict, not a ConfigDict): correct it."),
        ("x = 1\n", "The config file {} failed (AttributeError: module 'config_config' has no "
         "attribute 'get_config'): correct it."),
        # Recipes of one's own.
        ("from configs import v2\ndef get_config():\n    config = v2.get_config()\n"
         "    config.lable_smoothing = 0.1\n    return config\n",
         "The config file {} failed in line 4 (AttributeError: Key \"lable_smoothing\" does not "
         "exist and cannot be added since the config is locked): correct it."),
        ("from configs import default\ndef get_config():\n    config = default.base('a', 'b')\n"
         "    config.augment.fliip = True\n    return config\n",
         "The config file {} failed in line 4 (AttributeError: Key \"fliip\" does not exist"),
        ("from configs import v2\ndef get_config():\n    config = v2.get_config()\n"
         "    config.epochs = '5'\n    return config\n",
         "The config file {} failed in line 4 (TypeError: Could not override field 'epochs' "
         "(reference)"),
        ("from ml_collections import ConfigDict\n"
         "def get_config():\n    return ConfigDict({'seed': 1})\n",
         "The config has no field 'augment.brightness': build it on configs/default.py, "),
    ],
)  # fmt: skip
def test_a_broken_config_file(text, message, mistake, tmp_path, monkeypatch):
    path = tmp_path / "own.py"
    path.write_text(text)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # the file before
    assert mistake(f"--config={path}").startswith(message.format(path))


def test_a_config_file_that_takes_no_argument(mistake, tmp_path):
    path = tmp_path / "own.py"
    path.write_text("from configs import v2\ndef get_config():\n    return v2.get_config()\n")
    assert main.parse(["main.py", f"--config={path}"]).config == v2.get_config()
    assert mistake(f"--config={path}:dataset=digits").startswith(
        f"The config file {path} failed (TypeError: get_config() takes 0 positional arguments"
    )


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("dataset=cifar10", "Dataset 'cifar10' is not prepared in {}: prepare it by pip install"),
        ("dataset=digts", "Unknown dataset 'digts'. Did you mean 'digits'?"),
        ("dataset=", "Unknown dataset ''."),
        ("dataset=imagenet2012", "ImageNet's ILSVRC2012_img_train.tar is missing in manual_dir: "),
    ],
)
def test_a_data_set_that_is_not_there(argument, message, cli, tmp_path):
    workdir = tmp_path / "w"
    code, out, err = cli(
        f"{V2}:{argument}", f"--config.dataset.data_dir={tmp_path}/data", f"--workdir={workdir}"
    )
    assert (code, out) == (2, "")
    assert err.startswith("error: " + message.format(f"{tmp_path}/data"))
    assert err.count("\n") == 1
    assert err.endswith(".\n")
    assert not workdir.exists()  # the same workdir does once the mistake is mended


def test_a_folder_of_photos_that_is_not_there(cli):
    config = f"{V2}:dataset=image_folder"
    code, _, err = cli(config, "--workdir=a")
    assert code == 2
    assert err.startswith("error: Dataset 'image_folder' has no folder: name it by --config.data")
    code, _, err = cli(config, "--workdir=b", "--config.dataset.manual_dir=/nowhere")
    assert code == 2
    assert err.startswith("error: The image folder /nowhere has no directory 'train': ")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("dataset.train_split=tren", "Dataset 'digits' has no split 'tren' with examples in it: "),
        ("dataset.num_classes=5", "dataset.num_classes is 5, but digits has 10 classes: set it to"),
        ("batch_size=4096", "A batch size of 4096 is larger than the training split of 'digits': "),
        ("batch_size=63", "batch_size 63 cannot be shared by 8 devices: choose a multiple of 8."),
        ("schedule.warmup_epochs=999", "schedule.warmup_epochs is 999.0 ("),
        ("schedule.learning_rate=0", "schedule.learning_rate is 0.0 but must be a number above 0."),
        ("optimizer.momentum=0", "optimizer.nesterov needs an optimizer.momentum above 0."),
        ("model.dtype=float16", "Unknown dtype 'float16'. Did you mean 'bfloat16'?"),
    ],
)
def test_a_value_that_does_not_fit_the_data_set_or_the_machine(field, message, mistake, digits):
    place = f"--config.dataset.data_dir={digits}"
    assert mistake(V2, place, f"--config.{field}").startswith(message)


def test_the_sentence_is_one_line_whatever_was_typed(mistake):
    assert mistake(V2, "--config.model.activation=re\nlu").startswith("Unknown activation 're lu'.")


def test_distributed_without_a_cluster(mistake):
    assert mistake(V2, "--config.distributed=true").startswith("distributed=True ")


# Workdirs -----------------------------------------------------------------------------------------


def test_a_workdir_of_another_config(mistake, tmp_path):
    other = config_lib.plain(v2.get_config())
    other["batch_size"] += 1
    (tmp_path / "config.json").write_text(json.dumps(other))
    mine = v2.get_config().batch_size
    assert mistake(V2, f"--workdir={tmp_path}") == (
        f"The workdir {tmp_path} is of another config (batch_size is {mine + 1} there and "
        f"{mine} here): choose another --workdir or the same config."
    )


def test_a_workdir_that_is_a_file(mistake, tmp_path):
    (tmp_path / "file").touch()
    message = mistake(V2, f"--workdir={tmp_path}/file")
    assert message.startswith(f"The workdir {tmp_path}/file cannot be used (")


def test_evaluation_without_a_training(mistake, tmp_path):
    for argv in ([V2], []):
        assert mistake(*argv, f"--workdir={tmp_path}/nowhere", "--mode=eval") == (
            f"There is no {tmp_path}/nowhere/config.json: give the --workdir of a training that "
            "was started."
        )
    message = mistake(V2, "--mode=eval")
    assert re.match(r"There is no runs/mobilenet_v2-digits-\w{8}/config\.json: give", message)


def test_evaluation_of_a_training_without_a_checkpoint(cli, tmp_path, digits, monkeypatch):
    monkeypatch.setattr(evaluation, "initial_state", lambda experiment: None)  # half a minute
    config = v2.get_config()
    config.dataset.data_dir = digits
    (tmp_path / "config.json").write_text(json.dumps(config_lib.plain(config)))
    code, out, err = cli(f"--workdir={tmp_path}", "--mode=eval")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: [^\n]+checkpoint[^\n]+\.\n", err), err


@pytest.fixture
def evaluated(monkeypatch):
    """Replaces the evaluation; holds the configs that it was asked for."""
    configs = []

    def fake(config, workdir, best):
        config_lib.check(config)
        configs.append(config)
        return {"test_accuracy": 1.0}

    monkeypatch.setattr(evaluation, "evaluate_workdir", fake)
    return configs


def test_evaluation_takes_the_trainings_config_or_another(cli, mistake, evaluated, tmp_path):
    trained = v2.get_config("recipe=modern")
    trained.model.alpha = 0.5
    (tmp_path / "config.json").write_text(json.dumps(config_lib.plain(trained)))
    workdir = [f"--workdir={tmp_path}", "--mode=eval"]

    code, out, err = cli(*workdir)
    assert (code, json.loads(out), err) == (0, {"test_accuracy": 1.0}, "")
    assert config_lib.plain(evaluated[-1]) == config_lib.plain(trained)

    assert cli(*workdir, "--config.resolution=64", "--config.preprocess.interpolation=area")[0] == 0
    assert (evaluated[-1].resolution, evaluated[-1].preprocess.interpolation) == (64, "area")
    assert evaluated[-1].optimizer.name == "adamw"
    assert evaluated[-1].model.alpha == 0.5

    # Fields that JSON has as null and as a list.
    fields = ["--config.dataset.data_dir=/a", "--config.preprocess.mean=(1,2,3)"]
    assert cli(*workdir, *fields, "--config.dataset.num_classes=None")[0] == 0
    assert evaluated[-1].dataset.data_dir == "/a"
    assert evaluated[-1].dataset.num_classes is None
    assert evaluated[-1].preprocess.mean == (1, 2, 3)

    # The checkpoint has the state of the training's optimizer, whatever the config at hand says.
    assert cli(*workdir, V2, "--config.model.alpha=0.5", "--config.beta=0.5")[0] == 0
    assert evaluated[-1].optimizer.name == "adamw"
    assert evaluated[-1].beta == 0.5

    assert mistake(*workdir, "--config.batch_size=8") == (
        f"batch_size is set to 8, but the training had {trained.batch_size} and an evaluation does "
        "not read it. Did you mean 'eval_batch_size'?"
    )
    assert cli(*workdir, f"--config.epochs={trained.epochs}")[0] == 0


def test_evaluation_with_another_network(mistake, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_lib.plain(v2.get_config())))
    assert mistake(f"--workdir={tmp_path}", "--mode=eval", "--config.model.alpha=0.5") == (
        f"The workdir {tmp_path} is of another network (model.alpha is 1.0 there and 0.5 here): "
        "give its config."
    )


# The default workdir ------------------------------------------------------------------------------


def test_the_default_workdir_is_one_folder_for_each_config():
    configs = [v2.get_config(), v3.get_config(), v2.get_config("dataset=fashion_mnist")]
    for name in ("seed", "batch_size", "epochs", "beta"):
        config = v2.get_config()
        config[name] = 2
        configs.append(config)
    for name, value in (("alpha", 0.5), ("activation", "relu"), ("se", True)):
        config = v2.get_config()
        config.model[name] = value
        configs.append(config)
    folders = [main.default_workdir(config) for config in configs]
    assert len(set(folders)) == len(configs)
    for folder, config in zip(folders, configs, strict=True):
        pattern = rf"runs/{config.model.name}-{config.dataset.name}-[0-9a-f]{{8}}"
        assert re.fullmatch(pattern, str(folder))
        assert main.default_workdir(config) == folder
        # As it is read back from a workdir.
        assert main.default_workdir(ConfigDict(config_lib.plain(config))) == folder


def test_the_default_workdir_does_not_depend_on_how_a_config_is_typed():
    def folder(*argv):
        return main.default_workdir(main.parse(["main.py", V2, *argv]).config)

    assert folder() == folder("--config.model.alpha=1", "--config.model.activation=None")
    assert folder("--config.epochs=3") == folder("--config.epochs=3.0")


def test_the_default_workdir_overlooks_what_changes_no_number():
    config = v2.get_config("dataset=fashion_mnist")
    folder = main.default_workdir(config)
    config.log_every = 3
    config.distributed = True
    config.dataset.update(workers=2, data_dir="/a", manual_dir="/b")
    assert main.default_workdir(config) == folder


def test_another_folder_of_photos_has_another_workdir():
    cats, dogs = (v2.get_config("dataset=image_folder") for _ in range(2))
    cats.dataset.manual_dir, dogs.dataset.manual_dir = "/cats", "/dogs"
    assert main.default_workdir(cats) != main.default_workdir(dogs)


def test_the_default_workdir_stays_in_runs():
    config = v2.get_config("dataset=../mnist/plain:3.0.1")
    assert main.default_workdir(config).parent == Path("runs")


# Summary ------------------------------------------------------------------------------------------


def table(text):
    """The rows of a printed summary: cells by column, and the last row's totals."""
    header, rule, *rows, second_rule, total = text.splitlines()
    assert header.split() == ["layer", "operator", "input", "output", "parameters", "MACs"]
    assert set(rule) == set(second_rule) == {"-"}
    name, params, macs = total.split()
    assert name == "total"
    cells = [re.split(r" {2,}", row.strip()) for row in rows]
    return cells, (int(params.replace(",", "")), int(macs.replace(",", "")))


@pytest.fixture
def no_data(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a summary needs no data set")

    monkeypatch.setattr(steps, "open_dataset", refuse)
    monkeypatch.setattr(datasets, "open_dataset", refuse)


@pytest.mark.parametrize("name", specs.list_models())
def test_summary_prints_the_layers_and_what_they_cost(name, cli, no_data):
    config = f"--config={ROOT}/configs/default.py:model={name},dataset=imagenet2012"
    code, out, err = cli(config, "--mode=summary")
    assert (code, err) == (0, "")
    rows, totals = table(out)
    spec = switches.build_spec(name, dropout=0.2)
    layers = costs.layers(spec, 224)
    assert rows == [
        [
            layer.name,
            layer.operator,
            "x".join(map(str, layer.input)),
            "x".join(map(str, layer.output)),
            f"{layer.params:,}",
            f"{layer.macs:,}",
        ]
        for layer in layers
    ]
    assert totals == (costs.params(spec), costs.macs(spec, 224))
    assert totals == tuple(sum(int(row[i].replace(",", "")) for row in rows) for i in (4, 5))


@pytest.mark.parametrize(
    ("beta", "resolution"), [("1", 224), ("0.857", 192), ("0.714", 160), ("0.571", 128)]
)
@pytest.mark.parametrize("alpha", [1.0, 0.75, 0.35, 1.4])
def test_summary_at_every_size_has_the_recounts_totals(alpha, beta, resolution, cli, no_data):
    recount = json.loads((ROOT / "tests/data/recount.json").read_text())["v2"]
    found = [r for r in recount if (r["alpha"], r["resolution"]) == (alpha, resolution)]
    argv = [f"{V2}:dataset=imagenet2012", "--mode=summary"]
    code, out, err = cli(*argv, f"--config.model.alpha={alpha}", "--config.beta", beta)
    assert (code, err) == (0, "")
    rows, totals = table(out)
    assert rows[0][2] == f"{resolution}x{resolution}x3"
    spec = switches.build_spec("mobilenet_v2", alpha=alpha)
    assert totals == (costs.params(spec), costs.macs(spec, resolution))
    for row in found:  # α = 1.4 is published at 224 only
        assert totals == (row["trainable"], row["macs"])
    assert found or (alpha == 1.4 and resolution != 224)


def test_summary_of_mobilenet_v2_on_imagenet(cli, no_data):
    _, out, _ = cli(f"{V2}:dataset=imagenet2012", "--mode=summary")
    assert table(out)[1] == (3_504_872, 300_774_272)


def test_summary_of_a_small_data_set_drops_strides(cli, no_data):
    _, out, _ = cli(V2, "--mode=summary")
    rows, totals = table(out)
    config = v2.get_config()
    spec = switches.build_spec("mobilenet_v2", 10, drop_strides=config.model.drop_strides)
    assert rows[0][2] == "32x32x3"
    assert totals == (costs.params(spec), costs.macs(spec, 32))


def test_summary_needs_the_number_of_classes(cli, mistake, no_data):
    config = f"{V2}:dataset=image_folder"
    assert mistake(config, "--mode=summary") == (
        "How many classes image_folder has is not known before it is opened: give "
        "--config.dataset.num_classes."
    )
    code, out, _ = cli(config, "--mode=summary", "--config.dataset.num_classes=3")
    assert code == 0
    assert table(out)[0][-1][3] == "1x1x3"


def test_summary_refuses_what_has_no_network(mistake, no_data):
    assert mistake(V2, "--mode=summary", "--config.model.rule=kers").startswith("Unknown rounding")
    assert mistake(V2, "--mode=summary", "--config.model.stem=5").startswith("stem must be 16 or")


# As a program of its own --------------------------------------------------------------------------


def program(*argv, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "mobilenets_jax.main", *argv],
        cwd=cwd,
        # One device, unlike the tests' own eight.
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "error: No config was given: use e.g. --config=configs/v2.py.\n"),
        (
            ("--config=configs/v2.py", "--config.model.alfa=1"),
            "error: Unknown config field 'model.alfa'. Did you mean 'model.alpha'?\n",
        ),
        (
            ("--config=configs/v2.py:datset=digits",),
            "error: Unknown config argument 'datset'. Did you mean 'dataset'? Choose one of: "
            "dataset, recipe.\n",
        ),
        (
            ("--workdir=/nowhere", "--mode=eval"),
            "error: There is no /nowhere/config.json: give the --workdir of a training that was "
            "started.\n",
        ),
    ],
)
def test_the_program_ends_in_one_sentence(argv, message):
    result = program(*argv)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", message)


def test_the_program_prints_a_summary(tmp_path):
    result = program(
        f"--config={ROOT}/configs/v2.py:dataset=imagenet2012", "--mode=summary", cwd=tmp_path
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert table(result.stdout)[1] == (3_504_872, 300_774_272)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_program_trains_and_evaluates(tmp_path, digits):
    tiny = [
        f"--config={ROOT}/configs/v3.py:variant=small_minimalistic",
        "--config.model.alpha=0.35",
        "--config.epochs=1",
        "--config.schedule.warmup_epochs=0",
        "--config.batch_size=256",
        f"--config.dataset.data_dir={digits}",
        f"--workdir={tmp_path}/w",
    ]
    result = program(*tiny)
    assert result.returncode == 0, result.stderr
    stored = json.loads((tmp_path / "w/result.json").read_text())
    assert stored["steps"] == 5
    assert stored["test_examples"] == 360

    result = program(f"--workdir={tmp_path}/w", "--mode=eval")
    assert result.returncode == 0, result.stderr
    evaluated = json.loads(result.stdout)
    assert evaluated["test_accuracy"] == stored["test_accuracy"]
    assert evaluated["test_accuracy_ema"] == stored["test_accuracy_ema"]
    assert evaluated["config"] == stored["config"]

    result = program(*tiny, "--mode=eval", "--config.beta=0.5", "--config.eval_batch_size=100")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["resolution"] == 16
    assert json.loads(result.stdout)["test_examples"] == 360

    result = program(*tiny)
    assert result.returncode == 0
    assert "is finished" in result.stdout
    result = program(*tiny, "--config.seed=1")
    assert result.returncode == 2
    assert "is of another config (seed is 0 there and 1 here)" in result.stderr
