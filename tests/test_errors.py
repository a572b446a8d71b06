"""InputError, and the search for the name that was meant."""

import pytest

from mobilenets_jax.errors import InputError, choose, nearest, shown


def test_input_error_is_a_value_error():
    assert issubclass(InputError, ValueError)


@pytest.mark.parametrize(
    ("name", "choices", "hint"),
    [
        ("mobilenetv2", ["mobilenet_v1", "mobilenet_v2"], " Did you mean 'mobilenet_v2'?"),
        ("rleu", ("relu", "elu", "mish"), " Did you mean 'relu'?"),
        ("zzz", ["relu", "elu"], ""),
        ("", ["relu"], ""),
        (None, ["relu", "None_"], " Did you mean 'None_'?"),
        (33, (16, 32), ""),
        ("relu", [], ""),
    ],
)
def test_nearest(name, choices, hint):
    assert nearest(name, choices) == hint


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("conv1/kernel", "conv1/kernel"),
        ("größe", "größe"),
        ("x" * 80, "x" * 80),
        ("x" * 81, "x" * 79 + "…"),
        ("\x1b[2J\n", r"'\x1b[2J\n'"),
        ("\udc80", r"'\udc80'"),
        ("\x00" * 10**6, "'" + r"\x00" * 19 + r"\x…"),
    ],
)
def test_shown(name, text):
    assert shown(name) == text
    assert len(text) <= 80


def test_nearest_takes_any_iterable_once():
    assert nearest("alpah", (name for name in ("alpha", "beta"))) == " Did you mean 'alpha'?"


def test_choose_accepts_a_choice():
    choose("rule", "slim", iter(("keras", "slim")))
    choose("model", "v2", {"v1": 1, "v2": 2})


@pytest.mark.parametrize("name", ["slimm", "", None, True, 3, ["slim"]])
def test_choose_names_the_value_and_every_choice(name):
    with pytest.raises(InputError) as caught:
        choose("rule", name, ("keras", "slim"))
    message = str(caught.value)
    assert message.startswith(f"Unknown rule '{name}'.")
    assert message.endswith("Choose one of: keras, slim.")
    assert "\n" not in message


def test_choose_gives_the_hint():
    with pytest.raises(InputError, match=r"^Unknown rule 'slimm'\. Did you mean 'slim'\? Choose"):
        choose("rule", "slimm", ("keras", "slim"))
