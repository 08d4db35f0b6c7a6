"""Keys of a run: whatever they are given, a valid config or one clear message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkit.cli import grid as grids
from fedkit.cli.flags import QUICK, make
from fedkit.config import KEYS, make_config, read_config
from fedkit.core.errors import ConfigError

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-4, 12)
    | st.sampled_from([10**9, 10**12, 10**13, 2**63 - 1, 2**63, 10**400])
    | st.floats()
    | st.text(st.characters(), max_size=12)
    | st.text("0123456789.eE+-_ ", max_size=8)
    | st.binary(max_size=4)
    | st.sampled_from(["9" * 5000, "x" * 5000, "nan", "inf", "1e400", "auto", "fp32", "mean"])
)
VALUES = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.text(max_size=2), SCALARS)
SOME_KEYS = st.sampled_from([*KEYS, "densitty", ""]) | SCALARS


def check_message(error: ConfigError) -> None:
    assert str(error).isprintable() and 10 < len(str(error)) < 7000


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(SOME_KEYS, VALUES, max_size=4))
def test_any_values_make_a_config_or_one_clear_message(values: dict[Any, Any]) -> None:
    try:
        config = make_config(values)
    except ConfigError as error:
        check_message(error)
        return
    assert make_config(config.as_dict()) == config  # what a run folder holds reads back
    assert config.candidates >= 1 and config.adjustment_period >= 1
    assert config.last_adjustment >= 1 and isinstance(config.exempt_layers, tuple)
    tomli_w.dumps(config.as_dict()).encode()


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(list(KEYS)), st.text(max_size=12)))
def test_any_flags_make_a_config_or_one_clear_message(values: dict[str, str]) -> None:
    try:
        config = make(values, quick=True)
    except ConfigError as error:
        check_message(error)
    else:
        assert config.epochs == QUICK["epochs"] or "epochs" in values


BAD: list[tuple[str, Any, str]] = [
    ("devices", True, "devices is True: no key takes true or false"),
    ("devices", 2.5, "devices is 2.5: input should be a valid integer"),
    ("devices", "four", "devices is 'four'"),
    ("devices", 10**13, "a number other than 0 must be in 1e-12 .. 1000000000000"),
    ("seed", 2**63, "seed is 9223372036854775808: a number other than 0"),
    ("seed", -1, "greater than or equal to 0"),
    ("density", float("nan"), "density is nan"),
    ("density", 5e-324, "a number other than 0 must be in"),
    ("lr", float("inf"), "lr is inf: input should be a finite number"),
    ("lr", "1e400", "lr is '1e400'"),
    ("deadline", 1e10, "less than or equal to 1000000000"),
    ("exempt", "a\nb", r"exempt is 'a\nb': text must be one line of at most 1000"),
    ("exempt", "\ud800", r"exempt is '\ud800': text must be one line"),
    ("task", "x" * 1001, "xxx...: text must be one line of at most 1000 characters"),
    ("engine", ["auto"], "engine is ['auto']"),
    ("x" * 900, 1, "unknown key 'xxx"),
    ("task", b"digits", "task is b'digits': input should be a valid string"),
    ("train", "", "train is '': text should not be empty"),
    ("devices", "1e1", "devices is '1e1': input should be a valid integer"),
    ("devices", None, "devices is None: input should be a valid integer"),
    ("lr", 10**400, "input should be a valid number"),
    ("lr", "", "lr is '': input should be a valid number"),
    ("wire", 1, "wire is 1: input should be 'fp32' or 'fp16'"),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD)
def test_a_wrong_value_is_told_with_key_value_and_rule(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config({key: value})
    assert message in str(caught.value)
    check_message(caught.value)


@pytest.mark.parametrize(
    ("key", "given", "held"),
    [("devices", "4", 4), ("devices", 4.0, 4), ("lr", 1, 1.0), ("lr", "1e-3", 0.001)],
)
def test_a_value_has_the_type_of_its_key(key: str, given: Any, held: float) -> None:
    found = getattr(make_config({key: given}), key)
    assert (type(found), found) == (type(held), held)


def test_a_changed_config_is_checked_and_the_other_stays() -> None:
    config = make_config({"density": 0.2})
    assert config.changed(devices=3).as_dict() == {**config.as_dict(), "devices": 3}
    assert config.devices == 10 and hash(config.changed(devices="10")) == hash(config)
    with pytest.raises(ConfigError, match="density is 2: input should be less than or equal to 1"):
        config.changed(density=2)
    with pytest.raises(AttributeError, match="cannot assign"):
        config.density = 0.5  # type: ignore[misc]


def test_the_largest_seed_draws_weights_and_partitions() -> None:
    from sim.scenario import make_scenario

    made = make_scenario(make_config({"seed": 2**63 - 1, "devices": 2, "partition": "iid"}))
    made.check()
    assert len(made.devices) == 2


# Files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "not valid TOML"),
        (b"a = ", "not valid TOML"),
        (b"a = " + b"[" * 20_000, "not valid TOML"),
        (b"# " + b"x" * (1 << 20), "the limit is 1,048,576"),
    ],
)
def test_a_file_of_keys_that_is_none_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "own.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_config(path)


GRIDS: dict[str, tuple[dict[str, Any], str]] = {
    "no axes": ({"name": "own", "axes": {}}, "axes is {}"),
    "an empty axis": ({"name": "own", "axes": {"seed": []}}, "axes.seed is []"),
    "an axis that is not a list": ({"name": "own", "axes": {"seed": 1}}, "axes.seed is 1"),
    "a name that is not valid": ({"name": "../own", "axes": {"seed": [1]}}, "name is '../own'"),
    "no name": ({"axes": {"seed": [1]}}, "name is missing"),
    "axes that are none": ({"name": "own", "axes": 3}, "axes is 3"),
    "a run that is not a table": ({"name": "own", "run": [], "axes": {"seed": [1]}}, "run is []"),
    "a table as a value": ({"name": "own", "axes": {"seed": [{"a": 1}]}}, "seed is {'a': 1}"),
    "an unknown axis": ({"name": "own", "axes": {"sede": [1]}}, "unknown key 'sede'"),
    "an unknown key": ({"name": "own", "axis": {}, "axes": {"seed": [1]}}, "unknown key 'axis'"),
    "a giant": (
        {"name": "own", "axes": {f"k{i}": [1] * 100 for i in range(9)}},
        "make 1,000,000,000,000,000,000 cells",
    ),
}


@pytest.mark.parametrize("kind", GRIDS)
def test_a_wrong_grid_is_told_in_a_line(kind: str, tmp_path: Path) -> None:
    content, message = GRIDS[kind]
    path = tmp_path / "grid.toml"
    path.write_text(tomli_w.dumps(content))
    with pytest.raises(ConfigError) as caught:
        grids.read_grid(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from([*KEYS, "x"]), st.lists(SCALARS, max_size=2)))
def test_any_axes_make_cells_or_one_clear_message(
    tmp_path_factory: pytest.TempPathFactory, axes: dict[str, list[Any]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "grid.toml"
    try:
        path.write_text(tomli_w.dumps({"name": "own", "axes": axes}))
    except (TypeError, ValueError):  # no TOML holds None, bytes or half a character
        return
    try:
        assert len(grids.read_grid(path).cells) >= 1
    except ConfigError as error:
        check_message(error)
