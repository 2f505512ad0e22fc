"""Sparse TOML and `--set` in, one frozen Config or one clear ConfigError out; and nothing else, whatever is written."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from swarm.config import Config, config_from_json, load_config, parse_config
from swarm.errors import ConfigError, PrerequisiteError

LAPTOP = Path(__file__).resolve().parents[1] / "configs" / "laptop.toml"


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, "utf-8")
    return path


def keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every key of the configuration, sections with a dot."""
    found = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        found.append(prefix + name)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += keys(inner, f"{prefix}{name}.")
    return found


def test_nothing_needs_to_be_written() -> None:
    assert load_config(None) == Config()


def test_the_shipped_configuration_is_sound_and_leaves_room_to_explore() -> None:
    config = load_config(LAPTOP)
    assert (config.study, config.task, config.proposer.use, config.forge.use) == (
        "laptop",
        "baseline",
        "tuner",
        "local",
    )
    assert config.stop.wall_minutes <= 10 and config.stop.final_minutes < config.stop.wall_minutes / 2
    assert "switched off" in config.notes


def test_what_is_written_counts_and_the_rest_keeps_its_default(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, 'study = "ünïcode"\n'.replace("ünïcode", "mine") + "[stop]\ntrials = 3\n"))
    assert (config.study, config.stop.trials) == ("mine", 3)
    assert config.stop.wall_minutes == Config().stop.wall_minutes


def test_a_file_is_utf_8_whatever_the_machine_speaks(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, 'notes = "größer ✓"')).notes == "größer ✓"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stop.wall_minutes=3.5", ("stop", "wall_minutes", 3.5)),
        ("stop.trials=7", ("stop", "trials", 7)),
        ("nodes.sandbox=bare", ("nodes", "sandbox", "bare")),
        ('nodes.sandbox="bare"', ("nodes", "sandbox", "bare")),
        ("forge.path=a=b", ("forge", "path", "a=b")),
        ("forge.path=", ("forge", "path", "")),
        ("proposer.options.attempts=2", ("proposer", "options", {"attempts": "2"})),
        ('proposer.options={"model": "m"}', ("proposer", "options", {"model": "m"})),
    ],
)
def test_an_override_sets_one_key(override: str, expected: tuple[str, str, object]) -> None:
    section, key, value = expected
    assert getattr(getattr(load_config(None, [override]), section), key) == value


def test_the_last_override_wins_over_earlier_ones_and_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "seed = 1\n")
    assert load_config(path, ["seed=2"]).seed == 2
    assert load_config(path, ["seed=2", "seed=3"]).seed == 3


def test_a_study_may_have_a_number_for_a_name() -> None:
    assert load_config(None, ["study=2026"]).study == "2026"


def test_a_mistake_is_told_where_it_was_made(tmp_path: Path) -> None:
    path = written(tmp_path, "[stop]\nwall_minutes = 0\n")
    with pytest.raises(ConfigError, match=rf"^{path}: stop\.wall_minutes = 0: "):
        load_config(path, ["seed=1"])
    with pytest.raises(ConfigError, match=r"^--set: seed = -1: "):
        load_config(LAPTOP, ["seed=-1"])


def test_every_mistake_has_its_own_line(tmp_path: Path) -> None:
    path = written(tmp_path, "seed = -1\nstduy = 'x'\n[nodes]\nlocal = 'two'\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert len(str(caught.value).splitlines()) == 3
    assert "did you mean study?" in str(caught.value)


@pytest.mark.parametrize("key", keys(Config))
def test_every_key_that_is_misspelt_is_refused_with_the_right_one(key: str) -> None:
    section, _, name = key.rpartition(".")
    typo = f"{section}{'.' if section else ''}{name}x"
    with pytest.raises(ConfigError, match=f"did you mean {name}"):
        load_config(None, [f"{typo}=1"])


def test_a_long_value_does_not_drown_the_sentence() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [f"study={'x' * 10_000}"])
    assert len(str(caught.value)) < 300


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError):
        Config().seed = 3  # type: ignore[misc]  # that it is refused at run time, too, is the point


def test_every_key_says_what_it_does() -> None:
    def undescribed(model: type[BaseModel]) -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                found += undescribed(inner)
                assert inner.__doc__
            elif not field.description:
                found.append(name)
        return found

    assert not undescribed(Config)


# --- whatever is written ---------------------------------------------------------------------------------

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
values = (
    st.text(st.characters(exclude_categories=[]), max_size=30)
    | st.builds(json.dumps, plain)
    | st.sampled_from(["1" * 5000, "[" * 100_000, "-" * 50, "1e400", "NaN", "\udc80", '"\\ud800"', "{}", "[]", "null"])
)
names = (
    st.sampled_from(keys(Config))
    | st.text(max_size=12)
    | st.just("proposer.options.x")
    | st.just("stop.wall_minutes.x")
)


@given(st.lists(st.builds("{}={}".format, names, values) | st.text(max_size=20), min_size=1, max_size=3))
def test_any_override_gives_a_configuration_or_a_config_error(overrides: list[str]) -> None:
    try:
        config = load_config(None, overrides)
    except ConfigError as error:
        assert isinstance(error, PrerequisiteError)
        assert str(error).isprintable() or "\n" in str(error)
        str(error).encode()
    else:
        assert config_from_json(config.to_json()) == config


@given(st.dictionaries(st.sampled_from(keys(Config)) | st.text(max_size=8), plain, max_size=4))
def test_any_plain_data_gives_a_configuration_or_a_config_error(raw: dict[str, Any]) -> None:
    try:
        config = parse_config(raw, "test")
    except ConfigError:
        return
    assert config_from_json(config.to_json()) == config


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_file_gives_a_configuration_or_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(data)
    try:
        load_config(path)
    except ConfigError as error:
        assert "any.toml" in str(error)


# --- what a ledger holds ---------------------------------------------------------------------------------


def test_the_resolved_configuration_stands_in_the_ledger_with_every_default() -> None:
    config = load_config(LAPTOP, ["seed=7", "proposer.options.pairs=0.2"])
    resolved = json.loads(config.to_json())
    assert set(keys(Config)) <= {
        *resolved,
        *(f"{s}.{k}" for s, v in resolved.items() if isinstance(v, dict) for k in v),
    }
    assert config_from_json(config.to_json()) == config


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"colour": "red"}', '{"seed": "many"}', '{"stop": 3}'])
def test_a_configuration_of_another_version_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="another version of the swarm"):
        config_from_json(text)
