"""The command line: trains, evaluates, describes or uses the network of a config.

    python -m mobilenets_jax.main --config=configs/v2.py [--workdir=DIR] [--mode=train|eval|summary]
    python -m mobilenets_jax.main --mode=predict --images='photos/*.jpg' --workdir=DIR [--json]
    python -m mobilenets_jax.main --mode=predict --images='photos/*.jpg' --config=configs/v2.py:\
        dataset=imagenet2012 --config.init_from=FILE --config.init_source=timm [--json]

Any field of the config can be set: --config.model.alpha=0.75 --config.beta=0.714. A field that may
be None, as model.activation, takes None for the paper's own.

Owns flags, the workdir's default name and exit codes; the only place that touches flags. Exit
codes: 0 done, 1 the loss diverged, 2 bad input (of images to predict: some were skipped, the others
are predicted), 143 stopped by SIGTERM or ^C, state saved.
"""

from mobilenets_jax import runtime

if __name__ == "__main__":
    runtime.restart()  # before the imports that take time
    runtime.collect_garbage_seldom()

import hashlib
import json
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from mobilenets_jax import config as config_lib
from mobilenets_jax.errors import InputError, choose, nearest

MODES = ("train", "eval", "predict", "summary")
CHECKPOINTS = ("latest", "best")
CLUSTER = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
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
        checkpoint: one of `CHECKPOINTS`, to evaluate or predict with.
        images: files, directories and patterns of images to predict.
        json: predictions as JSON.
    """

    mode: str
    config: ConfigDict | None
    overrides: list[str]
    workdir: Path | None
    help: str
    checkpoint: str = "latest"
    images: Sequence[str] = ()
    json: bool = False


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
    flags.DEFINE_string(
        "checkpoint",
        "latest",
        "of --mode=eval and predict: latest, or best, by the averaged weights' test accuracy",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "images",
        [],
        "of --mode=predict: files, directories or patterns such as 'photos/*.jpg'; may be repeated",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "json", False, "of --mode=predict: print JSON instead of a table", flag_values=values
    )
    flags.DEFINE_bool("help", False, "print this", short_name="h", flag_values=values)
    return values


class _OrNone(flags.ArgumentParser):
    """Reads None, for fields that may be None, and anything else as its parser does."""

    def __init__(self, parser: flags.ArgumentParser):
        self.parser = parser

    def parse(self, argument: Any) -> Any:
        return None if argument in ("None", "none") else self.parser.parse(argument)


for _kind, _parser in (
    (bool, flags.BooleanParser()),
    (int, flags.IntegerParser()),
    (float, flags.FloatParser()),
):
    config_flags.register_flag_parser_for_type(_kind, _OrNone(_parser))


def parse(argv: Sequence[str]) -> Options:
    """Parses a command line.

    Raises:
        InputError: for an unknown flag, config argument, field or value.
    """
    values, fields = _define_flags(), flags.FlagValues()
    rest = _take_flags(values, argv, known_only=True)
    if values.help:
        return Options(values.mode, None, [], None, f"{__doc__}\n{values.main_module_help()}")
    choose("mode", values.mode, MODES)
    choose("checkpoint", values.checkpoint, CHECKPOINTS)
    if values.mode == "predict" and not values.images:
        raise InputError("Nothing to predict: give e.g. --images='photos/*.jpg'.")
    if values.mode != "predict" and (values.images or values.json):
        name = "images" if values.images else "json"
        raise InputError(f"--{name} is not used by --mode={values.mode}: give --mode=predict.")
    workdir = Path(values.workdir).expanduser() if values.workdir else None
    names = [m[1] for m in (re.match(r"--?(?:no)?config\.([^=]*)", arg) for arg in rest) if m]
    for name in names:
        config_lib.check_name(name)
    if values.config is not None:
        _load(values.config, fields, rest)
    elif values.mode == "predict" and "init_from" in names and not _is_training(workdir):
        raise InputError(
            "init_from is set, but the config of its network is not: give e.g. "
            "--config=configs/v2.py:dataset=imagenet2012 too."
        )
    elif values.mode in ("eval", "predict") and workdir is not None:
        config = config_lib.restore(config_lib.read(workdir))
        config_flags.DEFINE_config_dict("config", config, flag_values=fields, sys_argv=rest)
    elif names:
        raise InputError("Fields are set, but no config is: give e.g. --config=configs/v2.py too.")
    extra = _take_flags(fields, rest)[1:]
    # A shell puts files in the place of a pattern, of which the flag takes the first alone.
    images = [*values.images, *extra] if values.images else []
    if extra and not images:
        raise InputError(
            f"Unknown argument '{extra[0]}': give --config=FILE.py, or --config.field=value."
        )
    if "config" not in fields:
        return Options(values.mode, None, [], workdir, "")
    config, overrides = fields.config, config_flags.get_override_values(fields["config"])
    for name, value in overrides.items():
        # model.shortcut=none is a network without shortcuts, =None the paper's own.
        is_none = value == "None" or (value == "none" and name != "model.shortcut")
        if is_none and config_lib.FIELDS[name].optional:
            config.update_from_flattened_dict({name: None})
    given = (values.checkpoint, images, values.json)
    return Options(values.mode, config, list(overrides), workdir, "", *given)


def _is_training(workdir: Path | None) -> bool:
    return workdir is not None and os.path.exists(workdir / "config.json")


def _take_flags(
    values: flags.FlagValues, argv: Sequence[str], known_only: bool = False
) -> list[str]:
    """Sets `values` from a command line and returns what is left of it.

    Raises:
        InputError: for a bad value, or without `known_only` for an unknown flag.
    """
    values.set_gnu_getopt()  # flags may follow other arguments
    try:
        return values(list(argv), known_only)
    except flags.UnrecognizedFlagError as error:
        name = f"--{error.flagname}"
        known = ("--config", "--workdir", "--mode", "--checkpoint", "--images", "--json", "--help")
        raise InputError(
            f"Unknown flag '{name}'.{nearest(name, known)} Choose one of: {', '.join(known)}, or "
            "--config.field=value."
        ) from error
    except (flags.Error, ValueError) as error:
        if match := re.match(r"flag --config\.([^=]+)=(.*?): ", str(error), re.DOTALL):
            name, value = match.groups()
            raise InputError(f"{name} must be {config_lib.FIELDS[name]}, not '{value}'.") from error
        raise InputError(f"{_first_line(error)}: give every flag as --flag=value.") from error


def _load(file: str, fields: flags.FlagValues, argv: Sequence[str]) -> None:
    """Defines the flag "config", from a file path or path:argument, and those of the fields set.

    Raises:
        InputError: if there is no such file, or it fails, or what it returns is not a config.
    """
    path = file.partition(":")[0]
    if not Path(path).is_file():
        files = (str(file) for file in Path(path).parent.glob("*.py"))
        raise InputError(
            f"There is no config file '{path}'.{nearest(path, files)} Give e.g. "
            "--config=configs/v2.py."
        )

    # A config imports its neighbours as `configs.default`, from wherever the command is run.
    if (root := str(Path(path).resolve().parents[1])) not in sys.path:
        sys.path.append(root)

    def lines(error: BaseException) -> list[int | None]:
        frames = traceback.extract_tb(error.__traceback__)
        return [frame.lineno for frame in frames if frame.filename == path]

    try:
        config_flags.DEFINE_config_file("config", file, flag_values=fields, sys_argv=argv)
        config = fields["config"].value
        if not isinstance(config, ConfigDict):
            getattr(config, "keys", None)  # raises what kept the file from being read
            raise TypeError(f"get_config returned a {type(config).__name__}, not a ConfigDict")
    except Exception as error:
        chain: list[BaseException] = [error]
        while inner := chain[-1].__cause__ or chain[-1].__context__:
            chain.append(inner)
        # config_flags wraps what the file raises.
        raised = next((error for error in chain if lines(error)), chain[-1])
        if isinstance(raised, InputError):
            raise raised from None
        line = f" in line {lines(raised)[-1]}" if lines(raised) else ""
        raise InputError(
            f"The config file {path} failed{line} ({type(raised).__name__}: "
            f"{_first_line(raised)}): correct it."
        ) from error


def _first_line(error: BaseException) -> str:
    """What an error says, without the whole config that ml_collections adds to it."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    text, config, _ = str(text).partition(" Other fields present")
    return (text.removeprefix("'") if config else text).partition("\n")[0].rstrip(" .")


def default_workdir(config: ConfigDict) -> Path:
    """Returns runs/<model>-<dataset>-<hash>, one folder for each config."""
    fields = config_lib.identity(config_lib.plain(config))
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]
    dataset = config.dataset.name.replace("/", "_").replace(":", "_")
    return Path("runs") / f"{config.model.name}-{dataset}-{digest}"


def cluster(variables: Mapping[str, str]) -> dict[str, Any]:
    """Returns the arguments of `jax.distributed.initialize` that are in environment variables.

    JAX itself reads JAX_COORDINATOR_ADDRESS (host:port of process 0), and needs none of them where
    it knows the cluster: TPU pods, Slurm, Open MPI, Kubernetes.

    Raises:
        InputError: if one is not a whole number.
    """
    found: dict[str, Any] = {}
    for argument, name in CLUSTER.items():
        if name in variables:
            if not variables[name].isdecimal():
                raise InputError(f"{name} must be a whole number, not '{variables[name]}'.")
            found[argument] = int(variables[name])
    return found


def run(argv: Sequence[str]) -> int:
    """Does what the command line says and returns the exit code.

    Raises:
        InputError: for bad input.
    """
    mode, config, overrides, workdir, text, which, images, as_json = parse(argv)
    if text:
        print(text)
        return 0
    if config is None and mode == "predict":
        raise InputError("Nothing was given to predict with: use e.g. --workdir=runs/demo.")
    if config is None:
        raise InputError("No config was given: use e.g. --config=configs/v2.py.")
    config_lib.check(config, overrides)

    # Imported late: Grain, Orbax and TFDS take seconds, and bad flags need none of them.
    import jax

    runtime.configure_jax()
    from mobilenets_jax import costs, evaluation, logs, steps, train

    if mode == "summary":
        if config.dataset.num_classes is None:
            raise InputError(
                f"How many classes {config.dataset.name} has is not known before it is opened: "
                "give --config.dataset.num_classes."
            )
        model = steps.build_model(config, config.dataset.num_classes)
        resolution = config_lib.effective_resolution(config.resolution, config.beta)
        print(costs.summary(model.spec, resolution))
        return 0
    workdir = workdir or default_workdir(config)
    if mode == "predict":
        from mobilenets_jax import predict

        best = which == "best"
        done = predict.predict(images, config, overrides, workdir, best=best, as_json=as_json)
        return 0 if done else 2
    if mode == "eval":
        config = config_lib.for_evaluation(config_lib.read(workdir), config, overrides)
    if config.distributed:
        arguments = cluster(os.environ)
        try:
            jax.distributed.initialize(**arguments)
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"distributed=True finds no cluster ({_first_line(error)}): leave it out on one "
                f"machine, or set JAX_COORDINATOR_ADDRESS, {' and '.join(CLUSTER.values())}."
            ) from error
    if mode == "eval":
        logs.say(
            json.dumps(evaluation.evaluate_workdir(config, workdir, which == "best"), indent=2)
        )
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
