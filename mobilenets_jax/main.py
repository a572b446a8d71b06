"""The command line: trains, evaluates or describes the network of a config.

    python -m mobilenets_jax.main --config=configs/v2.py [--workdir=DIR] [--mode=train|eval|summary]

Any field of the config can be set: --config.model.alpha=0.75 --config.beta=0.714.

Owns flags, the workdir's default name and exit codes; the only place that touches flags. Exit
codes: 0 done, 1 the loss diverged, 2 bad input, 143 stopped by SIGTERM with the state saved.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from mobilenets_jax import config as config_lib
from mobilenets_jax.errors import InputError, choose, nearest

MODES = ("train", "eval", "summary")
STOPPED = 143  # 128 + SIGTERM, as a shell reports it


class Options(NamedTuple):
    """What a command line says.

    Attributes:
        mode: one of `MODES`.
        config: the experiment; None if no --config was given.
        overrides: dotted names of the fields that were set.
        workdir: as given, None if not.
        help: text to print instead of doing anything, or "".
    """

    mode: str
    config: ConfigDict | None
    overrides: list[str]
    workdir: Path | None
    help: str


def _define_flags(argv: Sequence[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        None,
        "the experiment, e.g. configs/v2.py or configs/v2.py:dataset=fashion_mnist",
        flag_values=values,
        sys_argv=list(argv),
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


def parse(argv: Sequence[str]) -> Options:
    """Parses a command line.

    Raises:
        InputError: for an unknown flag, config argument, field or value.
    """
    values = _define_flags(argv)
    names = [arg.lstrip("-").partition("=")[0] for arg in argv[1:] if arg.startswith("-")]
    config, overrides = None, []
    if "config" not in names and any(name.startswith("config.") for name in names):
        raise InputError("Fields are set, but no config is: give e.g. --config=configs/v2.py too.")
    try:
        rest = values(list(argv))
        if "config" in names:
            config = values.config
            config.items()  # a config file that could not be read fails here
            overrides = list(config_flags.get_override_values(values["config"]))
    except (AttributeError, KeyError) as error:
        raise InputError(_unknown_field(argv) or _sentence(error)) from error
    except Exception as error:
        raise InputError(_sentence(error)) from error
    if rest[1:]:
        raise InputError(
            f"Unknown argument '{rest[1]}': fields are set as --config.{rest[1].lstrip('-')}=value."
        )
    choose("mode", values.mode, MODES)
    workdir = Path(values.workdir).expanduser() if values.workdir else None
    text = f"{__doc__}\n{values.main_module_help()}" if values.help else ""
    return Options(values.mode, config, overrides, workdir, text)


def _unknown_field(argv: Sequence[str]) -> str:
    """Names the first --config.field that the config does not have, and the nearest that it has."""
    at = next(i for i, arg in enumerate(argv) if arg.lstrip("-").partition("=")[0] == "config")
    file = [argv[0], *argv[at : at + (1 if "=" in argv[at] else 2)]]
    values = _define_flags(file)
    values(file)
    known = [key for key, _ in config_lib.flatten(values.config)]
    for arg in argv[1:]:
        name = arg.lstrip("-").partition("=")[0].removeprefix("config.")
        if arg.lstrip("-").startswith("config.") and name not in known:
            return f"Unknown config field '{name}'.{nearest(name, known)}"
    return ""


def _sentence(error: BaseException) -> str:
    """What a failure to parse flags means to the user, in one line."""
    innermost = ""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            innermost = str(cause)
        cause = cause.__cause__ or cause.__context__
    if innermost:
        return innermost
    text = " ".join(str(error).split())
    if isinstance(error, OSError):
        reason = text.partition("Attempted ")[2] or text
        return f"The config file cannot be loaded ({reason}): give e.g. --config=configs/v2.py."
    if isinstance(error, flags.IllegalFlagValueError):
        return f"{text.removeprefix('flag ').rstrip('.')}; give a value of the field's type."
    return text


def default_workdir(config: ConfigDict) -> Path:
    """Returns runs/<model>-<dataset>-<hash>, one folder for each config."""
    plain = dict(config_lib.flatten(config_lib.plain(config)))
    for key in config_lib.WITHOUT_EFFECT:
        plain.pop(key)
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]
    dataset = config.dataset.name.replace("/", "_").replace(":", "_")
    return Path("runs") / f"{config.model.name}-{dataset}-{digest}"


def run(argv: Sequence[str]) -> int:
    """Does what the command line says and returns the exit code.

    Raises:
        InputError: for bad input.
        ArithmeticError: if the loss diverged.
    """
    mode, config, overrides, workdir, text = parse(argv)
    if text:
        print(text)
        return 0
    if config is None and mode == "eval" and workdir is not None:
        config = ConfigDict(config_lib.read(workdir))
    if config is None:
        raise InputError("No config was given: use e.g. --config=configs/v2.py.")
    config_lib.check(config, overrides)

    # Imported late, so that bad flags are answered at once.
    import jax

    from mobilenets_jax import costs, train

    if mode == "summary":
        model = train.build_model(config, config.dataset.num_classes or 1000)
        resolution = config_lib.effective_resolution(config.resolution, config.beta)
        print(costs.summary(model.spec, resolution))
        return 0
    if config.distributed:
        jax.distributed.initialize()
    workdir = workdir or default_workdir(config)
    if mode == "eval":
        train.say(json.dumps(train.evaluate_workdir(config, workdir), indent=2))
        return 0
    return 0 if train.train(config, workdir) else STOPPED


def main(argv: Sequence[str] | None = None) -> int:
    """Runs, turning bad input and divergence into one sentence and an exit code."""
    try:
        return run(sys.argv if argv is None else argv)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ArithmeticError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
