"""Runs, their commands and costs, the papers' points, and experiment files that are none."""

from pathlib import Path

import pytest

from experiments import ablation
from experiments.ablation import PaperPoint, Run
from mobilenets_jax import config as config_lib
from mobilenets_jax import costs, main
from mobilenets_jax.errors import InputError
from mobilenets_jax.switches import build_spec

V2, LARGE = "mobilenet_v2", "mobilenet_v3_large"


def test_a_run_says_what_varies():
    run = ablation.network("smoke", V2, 0.5, 0.714, activation="relu", shortcut="paper")
    assert run.name == "mobilenet_v2,alpha=0.5,beta=0.714,activation=relu,shortcut=paper"
    assert run.config == "configs/v2.py:dataset=digits"
    assert run.factors == {
        **{"model": V2, "alpha": 0.5, "beta": 0.714},
        **{"activation": "relu", "shortcut": "paper"},
    }
    assert run.overrides == {
        **ablation.BUDGETS["smoke"],
        **{"beta": 0.714, "model.alpha": 0.5, "model.activation": "relu"},
    }


def test_a_variant_stands_for_its_switches():
    run = ablation.network("full", LARGE, variant="thin", stem=32, se=False)
    assert run.name == "mobilenet_v3_large,alpha=1,beta=1,variant=thin"
    assert run.factors == {"model": LARGE, "alpha": 1.0, "beta": 1.0, "variant": "thin"}
    assert run.overrides == {"model.alpha": 1.0, "model.stem": 32, "model.se": False}


def test_a_scale_has_its_data_set_width_and_epochs():
    runs = {scale: ablation.network(scale, V2) for scale in ablation.SCALES}
    configs = {scale: ablation.config(run) for scale, run in runs.items()}
    assert [c.dataset.name for c in configs.values()] == ["digits", "fashion_mnist", "imagenet2012"]
    assert [c.model.alpha for c in configs.values()] == [0.25, 0.5, 1.0]
    assert [c.epochs for c in configs.values()] == [4.0, 0.4, 300.0]
    with pytest.raises(InputError, match=r"Unknown scale 'smal'\. Did you mean 'small'"):
        ablation.network("smal", V2)
    with pytest.raises(InputError, match="Unknown model 'mobilenet_v4'"):
        ablation.network("small", "mobilenet_v4")


def test_config_is_the_command_lines():
    run = ablation.network("smoke", V2, shortcut="none", se=True, expansion=3)
    config = ablation.config(run)
    assert (config.model.shortcut, config.model.se, config.model.expansion) == ("none", True, 3)
    assert config.schedule.warmup_epochs == 0.25
    refused = Run("x", run.config, {"model.alfa": 1.0}, {})
    with pytest.raises(InputError, match=r"Did you mean 'model.alpha'\?"):
        ablation.config(refused)
    unread = Run("x", run.config, {"augment.min_area": 0.5}, {})
    with pytest.raises(InputError, match=r"augment.min_area is set but not used"):
        ablation.config(unread)


def test_command():
    run = Run("x", "configs/v2.py", {"model.se": None, "preprocess.mean": (1.0, 2.0, 3.0)}, {})
    _, *command = ablation.command(run, Path("w"), [4])
    assert command == [
        *("-m", "mobilenets_jax.main", "--config=configs/v2.py", "--config.model.se=None"),
        *("--config.preprocess.mean=(1.0,2.0,3.0)", "--config.seed=4", "--workdir=w"),
    ]
    seeds = {(0, 1, 2): ["--config.seed=0", "--config.replicas=3"]}
    seeds[5, 7] = ["--config.replicas=2", "--config.replica.seeds=(5,7)"]
    for given, expected in seeds.items():
        assert ablation.command(run, Path("w"), given)[-1 - len(expected) : -1] == expected


def test_main_reads_the_command_of_several_seeds():
    run = ablation.network("smoke", V2, shortcut="none")
    command = ablation.command(run, Path("w"), [5, 7])
    command = [arg.replace("=configs", f"={ablation.ROOT}/configs") for arg in command]
    options = main.parse(["main", *command[3:]])
    config_lib.check(options.config, options.overrides)
    assert [replica.seed for replica in config_lib.replicas(options.config)] == [5, 7]
    assert options.workdir == Path("w")


def test_cost():
    run = ablation.network("smoke", V2)
    spec = build_spec(V2, 10, 0.25, drop_strides=1, bn_momentum=0.9)
    assert ablation.spec(run) == spec
    cost = ablation.cost(run)
    assert (cost.params, cost.macs) == (costs.params(spec), costs.macs(spec, 32))
    assert (cost.resolution, cost.steps) == (32, 176)  # 4 epochs of 44 whole batches
    # Seeds share the start and the compilation, not the work.
    one, two, three = (ablation.cost(run, seeds).seconds for seeds in (1, 2, 3))
    assert three - two == pytest.approx(two - one)
    assert 10 < one < two
    thin = ablation.cost(ablation.network("smoke", V2, beta=0.571))
    assert thin.resolution == 20
    assert thin.macs < cost.macs


def test_cost_needs_the_number_of_images():
    run = ablation.Run("a", "configs/v2.py:dataset=cifar10", {}, {})
    with pytest.raises(InputError, match="How many images 'cifar10' has is not known: put it"):
        ablation.cost(run)


@pytest.mark.parametrize("model", list(ablation.CONFIGS))
def test_alpha_for_finds_the_nearest_network(model):
    macs = 5_000_000
    alpha = ablation.alpha_for("small", model, macs)

    def distance(alpha):
        return abs(ablation.cost(ablation.network("small", model, alpha)).macs - macs)

    assert distance(alpha) <= min(distance(alpha + step / 100) for step in (-3, -2, -1, 1, 2, 3))
    assert distance(round(alpha - 0.01, 2)) > distance(alpha)  # the smallest of equal ones
    assert ablation.alpha_for("small", model, 1) == 0.05


def test_difference_is_of_one_table():
    points = [
        PaperPoint({"shortcut": "none", "alpha": 1.0}, 0.7, None, None, "one"),
        PaperPoint({"shortcut": "bottleneck", "alpha": 1.0}, 0.72, None, None, "two"),
        PaperPoint({"shortcut": "none", "alpha": 1.0}, 0.69, None, None, "two"),
        PaperPoint({"shortcut": "expansion"}, None, None, None, "two"),
    ]
    none, bottleneck = {"shortcut": "none"}, {"shortcut": "bottleneck"}
    assert ablation.difference(points, none, bottleneck) == -3.0
    assert ablation.difference(points, {"shortcut": "expansion"}, bottleneck) is None
    assert ablation.difference(points[:1], none, bottleneck) is None


def test_neighbours_credit_the_table_of_their_difference():
    runs = [ablation.network("small", V2, beta=beta) for beta in (1.0, 0.714, 0.571)]
    points = [
        PaperPoint({"alpha": 0.5, "beta": 1.0}, 0.7, None, None, "one"),
        PaperPoint({"alpha": 0.5, "beta": 1.0}, 0.71, None, None, "two"),
        PaperPoint({"alpha": 0.5, "beta": 0.714}, 0.69, None, None, "two"),
    ]
    first, second = ablation.neighbours("beta", runs, points, ("alpha", "beta"))
    assert (first.paper, first.source) == (2.0, "two")
    assert (second.paper, second.source) == (None, "one")


def test_points_are_as_printed_or_say_that_they_are_counted():
    printed, counted = (
        ablation.points("v1", name, model="mobilenet_v1") for name in ("table6", "fig4")
    )
    assert printed[1] == PaperPoint(
        {"alpha": 0.75, "beta": 1.0, "model": "mobilenet_v1"},
        *(0.684, 325_000_000, 2_600_000, "MobileNetV1 (arXiv:1704.04861v1), Table 6"),
    )
    point = next(p for p in counted if (p.factors["alpha"], p.factors["beta"]) == (0.5, 0.714))
    assert point.macs == costs.macs(build_spec("mobilenet_v1", alpha=0.5), 160)
    assert point.source.endswith("(MACs and parameters counted)")


def test_load(tmp_path):
    by_name, by_file = ablation.load("v2_shortcut"), ablation.load("experiments/v2_shortcut.py")
    assert by_name.runs("smoke") == by_file.runs("smoke")
    own = tmp_path / "mine.py"
    own.write_text("def measure(scale, directory): return {}")
    assert ablation.load(own).measure("smoke", tmp_path) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "There is no experiment"),
        ("PAPER = []", "is no experiment: it needs runs"),
        ("1 / 0", "failed \\(ZeroDivisionError: division by zero\\): correct it"),
        ("def runs(", "failed \\(SyntaxError"),
    ],
)
def test_load_refuses_what_is_no_experiment(tmp_path, text, message):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        ablation.load(path)


def test_load_names_the_nearest():
    with pytest.raises(InputError, match=r"Did you mean 'v1_width'\? Choose one of: alpha_beta"):
        ablation.load("v1_widths")
    assert "ablation" not in ablation.names()
    assert len(ablation.names()) == 13
