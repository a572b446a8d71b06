"""The command line: trains, evaluates or describes the network of a config.

    python -m mobilenets_jax.main --config=configs/v2.py [--workdir=DIR] [--mode=train|eval|summary]

Any field of the config can be set: --config.model.alpha=0.75 --config.beta=0.714. A field that may
be None, as model.activation, takes None for the paper's own.

Owns flags, config files, the workdir's default name and exit codes; the only place that touches
flags. Exit codes: 0 done, 1 the loss diverged, 2 bad input, 143 stopped by SIGTERM with the state
saved.
"""

import hashlib
import importlib.machinery
import importlib.util
import json
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict

from mobilenets_jax import config as config_lib
from mobilenets_jax.errors import InputError, choose, nearest

MODES = ("train", "eval", "summary")
STOPPED = 143  # 128 + SIGTERM, as a shell reports it


class Options(NamedTuple):
    """What a command line says.

    Attributes:
        mode: one of `MODES`.
        config: the experiment, with the fields set: from --config, or to evaluate, from the
            workdir; None if there is neither.
        overrides: dotted names of the fields that were set.
        workdir: as given, None if not.
        help: text to print instead of doing anything, or "".
    """

    mode: str
    config: ConfigDict | None
    overrides: list[str]
    workdir: Path | None
    help: str


def _define_flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string(
        "config",
        None,
        "the experiment, e.g. configs/v2.py or configs/v2.py:dataset=fashion_mnist",
        flag_values=values,
    )
    flags.DEFINE_string(
        "workdir",
        None,
        "where results go (default: runs/, with a name made from the config)",
        flag_values=values,
    )
    flags.DEFINE_string("mode", "train", f"one of {', '.join(MODES)}", flag_values=values)
    flags.DEFINE_bool("help", False, "print this", short_name="h", flag_values=values)
    return values


def _take_fields(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Takes `--config.field=value`, `--config.field value` and booleans' short forms from `argv`.

    Returns:
        The other arguments, and the last text given for each field.

    Raises:
        InputError: for an unknown field, or one without a value.
    """
    rest: list[str] = []
    texts: dict[str, str] = {}
    waiting = list(argv)
    while waiting:
        arg = waiting.pop(0)
        match = re.fullmatch(r"--?(no)?config\.([^=]*)(?:=(.*))?", arg, re.DOTALL)
        if arg == "--" or match is None:
            rest.append(arg)
            if arg == "--":
                return rest + waiting, texts
            continue
        negated, name, text = match.groups()
        config_lib.check_name(name)
        is_switch = config_lib.FIELDS[name].kind is bool
        if negated and (text is not None or not is_switch):
            raise InputError(f"Unknown flag '{arg}': set the field by --config.{name}=value.")
        if negated:
            text = "false"
        elif text is None and waiting and not waiting[0].startswith("--"):
            text = waiting.pop(0)
        elif text is None and is_switch:
            text = "true"
        elif text is None:
            raise InputError(f"--config.{name} has no value: give --config.{name}=value.")
        texts[name] = text
    return rest, texts


def parse(argv: Sequence[str]) -> Options:
    """Parses a command line.

    Raises:
        InputError: for an unknown flag, config argument, field or value.
    """
    rest, texts = _take_fields(argv)
    values = _define_flags()
    try:
        extra = values(rest)[1:]
    except flags.UnrecognizedFlagError as error:
        name, known = f"--{error.flagname}", ("--config", "--workdir", "--mode", "--help")
        raise InputError(
            f"Unknown flag '{name}'.{nearest(name, known)} Choose one of: {', '.join(known)}, or "
            "--config.field=value."
        ) from error
    except flags.Error as error:
        raise InputError(
            f"{_first_line(error).removeprefix('ERROR:: ')}: give every flag as --flag=value."
        ) from error
    if extra:
        name = extra[0].lstrip("-").partition("=")[0]
        is_file = name.partition(":")[0].endswith(".py")
        mend = f"--config={extra[0]}" if is_file else "--flag=value"
        if name.removeprefix("config.") in config_lib.FIELDS:
            mend = f"--config.{name.removeprefix('config.')}=value"
        raise InputError(f"Unknown argument '{extra[0]}': give {mend}.")
    if values.help:
        return Options(values.mode, None, [], None, f"{__doc__}\n{values.main_module_help()}")
    choose("mode", values.mode, MODES)
    workdir = Path(values.workdir).expanduser() if values.workdir else None
    if values.config is not None:
        config = load(values.config)
    elif values.mode == "eval" and workdir is not None:
        config = ConfigDict(config_lib.read(workdir))
        config_lib.check(config)
    elif texts:
        raise InputError("Fields are set, but no config is: give e.g. --config=configs/v2.py too.")
    else:
        return Options(values.mode, None, [], workdir, "")
    for name, text in texts.items():
        section, _, leaf = name.rpartition(".")
        (config[section] if section else config)[leaf] = config_lib.parse_value(name, text)
    return Options(values.mode, config, list(texts), workdir, "")


def load(text: str) -> ConfigDict:
    """Runs a config file's `get_config`.

    Args:
        text: path to the file, or path:argument.

    Returns:
        The config, locked, with every field that there is.

    Raises:
        InputError: if there is no such file, or it fails, or what it returns is not a config.
    """
    path, colon, argument = text.partition(":")
    if not Path(path).is_file():
        files = (str(file) for file in Path(path).parent.glob("*.py"))
        raise InputError(
            f"There is no config file '{path}'.{nearest(path, files)} Give e.g. "
            "--config=configs/v2.py."
        )
    loader = importlib.machinery.SourceFileLoader("config_file", path)
    spec = importlib.util.spec_from_loader("config_file", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise InputError(f"The config file {path} has no function get_config: define it.")
        config = module.get_config(argument) if colon else module.get_config()
    except InputError:
        raise
    except SyntaxError as error:
        raise InputError(
            f"The config file {error.filename or path} has a syntax error in line {error.lineno} "
            f"({error.msg}): correct it."
        ) from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f" in line {frame.lineno}" for frame in frames if frame.filename == path]
        raise InputError(
            f"The config file {path} failed{lines[-1] if lines else ''} ({type(error).__name__}: "
            f"{_first_line(error)}): correct it."
        ) from error
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"get_config in {path} must return a ConfigDict, not {type(config).__name__}."
        )
    config_lib.check_names(config)
    return config.lock()


def _first_line(error: BaseException) -> str:
    """What an error says, without the whole config that ml_collections adds to it."""
    text, config, _ = (str(error.args[0]) if error.args else "").partition(" Other fields present")
    return (text.removeprefix("'") if config else text).partition("\n")[0].rstrip(" .")


def default_workdir(config: ConfigDict) -> Path:
    """Returns runs/<model>-<dataset>-<hash>, one folder for each config."""
    fields = config_lib.identity(config_lib.plain(config))
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]
    dataset = config.dataset.name.replace("/", "_").replace(":", "_")
    return Path("runs") / f"{config.model.name}-{dataset}-{digest}"


def run(argv: Sequence[str]) -> int:
    """Does what the command line says and returns the exit code.

    Raises:
        InputError: for bad input.
    """
    mode, config, overrides, workdir, text = parse(argv)
    if text:
        print(text)
        return 0
    if config is None:
        raise InputError("No config was given: use e.g. --config=configs/v2.py.")
    config_lib.check(config, overrides)

    # Imported late, so that bad flags are answered at once.
    import jax

    from mobilenets_jax import costs, train

    if mode == "summary":
        if config.dataset.num_classes is None:
            raise InputError(
                f"How many classes {config.dataset.name} has is not known before it is opened: "
                "give --config.dataset.num_classes."
            )
        model = train.build_model(config, config.dataset.num_classes)
        resolution = config_lib.effective_resolution(config.resolution, config.beta)
        print(costs.summary(model.spec, resolution))
        return 0
    workdir = workdir or default_workdir(config)
    if mode == "eval":
        config = config_lib.for_evaluation(config_lib.read(workdir), config, overrides)
    if config.distributed:
        try:
            jax.distributed.initialize()
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"distributed=True finds no cluster ({_first_line(error)}): leave it out on one "
                "machine."
            ) from error
    if mode == "eval":
        train.say(json.dumps(train.evaluate_workdir(config, workdir), indent=2))
        return 0
    try:
        return 0 if train.train(config, workdir) else STOPPED
    except train.Diverged as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs, turning bad input into one sentence and an exit code."""
    try:
        return run(sys.argv if argv is None else argv)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
