"""The tables of docs/weights.md, from what experiments.parity stored.

Owns columns and text. Measures nothing: the same results give the same text.
"""

from collections.abc import Sequence
from typing import Any


def table(
    cases: Sequence[Any], stored: dict[str, Any], resolutions: Sequence[int], limit: float
) -> str:
    """Returns the tables as Markdown.

    Args:
        cases: a row each, see `parity.Case`.
        stored: results by the cases' keys, versions and device.
        resolutions: of the images in pixels, a column each.
        limit: of a gradient's relative difference.
    """
    lines = [
        "| source | network | α | parameters | MACs | published top-1 "
        f"| {' | '.join(map(str, resolutions))} | float64 |",
        f"| --- | --- | ---: | ---: | ---: | --- |{' ---: |' * len(resolutions)} ---: |",
    ]
    for case in cases:
        result = stored["cases"][case.key]
        top1 = "; ".join(
            f"{each.top1:.2f} %" + f" ({each.tag})" * bool(each.tag)
            for each in case.network.weights
            if each.top1 is not None
        )
        differences = [f"{result['float32'][str(resolution)]:.1e}" for resolution in resolutions]
        double = result.get("float64")
        differences.append(f"{max(double[str(r)] for r in resolutions):.1e}" if double else "")
        untrained = [weights.tag for weights in case.network.weights] == ["untrained"]
        top1 = top1 or ("untrained" if untrained else "none found")
        lines.append(
            f"| {case.source} | `{case.name}` | {case.network.alpha:g} | {result['params']:,} "
            f"| {result['macs']:,} | {top1} | {' | '.join(differences)} |"
        )
    keys = (
        *("loss_float64", "gradient_float64", "array_float64", "loss_float32", "gradient_float32"),
        *("our_error_float32", "their_error_float32"),
    )
    wrong = {
        field: min(r["float32"].get(f"wrong_{field}", 1.0) for r in stored["cases"].values())
        for field in ("padding", "bn_epsilon")
    }
    steps = [
        f"| `{result['name']}` | " + " | ".join(f"{result['step'][key]:.1e}" for key in keys) + " |"
        for result in stored["cases"].values()
        if "step" in result
    ]
    versions = ", ".join(f"{name} {version}" for name, version in stored["versions"].items())
    lines += [
        "",
        "For scale: with a wrong padding (at 200 pixels) or ε the same figure is at least "
        f"{wrong['padding']:.1e} and {wrong['bn_epsilon']:.1e} in the rows with float64.",
        "",
        "One training step of torchvision's (BatchNorm in training mode, no dropout, 16 images of "
        "128 pixels), relative differences:",
        "",
        "| network | loss, float64 | whole gradient, float64 | worst array's gradient, float64 "
        "| loss, float32 | whole gradient, float32 | ours, float32 against float64 "
        "| PyTorch's, float32 against float64 |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *steps,
        "",
        gradients(stored, limit),
        "",
        f"Measured with {versions}, on an {stored['device']}. What reads and writes a `.pth` is "
        "tested where PyTorch is installed, as by `make parity`, and not in CI.",
    ]
    return "\n".join(lines)


def gradients(stored: dict[str, Any], limit: float) -> str:
    """Returns in words which networks' whole gradients are within a limit of PyTorch's."""
    steps = {r["name"]: r["step"] for r in stored["cases"].values() if "step" in r}

    def within(dtype: str) -> str:
        names = [f"`{name}`" for name, step in steps.items() if step[f"gradient_{dtype}"] <= limit]
        return " and ".join(names) or "none"

    rounded = [
        f" `{name}` is limited by rounding in float32, where PyTorch's own gradient differs by "
        f"{step['their_error_float32']:.1e} from its own in float64."
        for name, step in steps.items()
        if step["gradient_float64"] <= limit < step["gradient_float32"]
    ]
    return (
        f"The gradient's limit of {limit:g} is met in float64 by {within('float64')}, and in "
        f"float32 by {within('float32')}.{''.join(rounded)}"
    )
