"""How one Study is to be run: sparse TOML in, one frozen Config out.

Unknown keys, wrong types and NaN are refused with the place and the valid choices. No environment variables are
read here; secrets never stand in a configuration.
"""

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticSerializationError

from swarm.errors import ConfigError

_SHOWN = 60  # characters of a refused value
_MOST = 10**15  # whole numbers have to fit into the bytes that nodes get


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        coerce_numbers_to_str=True,  # `--set proposer.options.attempts=2`, and a study that is called 2026
        use_attribute_docstrings=True,
    )


class Stop(_Section):
    """When a study ends. The first rule that holds ends it."""

    wall_minutes: float = Field(8.0, gt=0)
    """Time for the whole study, final comparison included; time spent switched off does not count."""
    final_minutes: float = Field(1.8, ge=0)
    """The part of it that is reserved for the final comparison."""
    promotions: int = Field(0, ge=0, le=_MOST)
    """End after so many promotions that were not undone; 0 = no such rule."""
    trials: int = Field(0, ge=0, le=_MOST)
    """End after so many finished trials; 0 = no such rule."""


class Caps(_Section):
    """What a study may cost. At a cap it stops cleanly and says so. 0 = no cap."""

    dollars: float = Field(0.0, ge=0)
    """Money spent on proposals."""
    tokens: int = Field(0, ge=0, le=_MOST)
    """Tokens read and written by proposers."""
    node_hours: float = Field(0.0, ge=0)
    """Hours that nodes spent inside trials, and at scoring on the holdout."""


class Nodes(_Section):
    """The machines."""

    local: int = Field(2, ge=0, le=64)
    """Nodes that `swarm run` starts on this machine, each for one trial at a time; `swarm coordinator` starts none."""
    threads: int = Field(1, ge=1, le=1024)
    """Threads of one trial on the CPU. One thread keeps runs bit-identical for a seed."""
    trial_wall_s: float = Field(120.0, gt=0)
    """A trial is killed after this time on the clock, whatever it does."""
    memory_mb: int = Field(4096, ge=64, le=_MOST)
    """A trial is killed above this much resident memory."""
    disk_mb: int = Field(4096, ge=64, le=_MOST)
    """A trial is killed above this much on the disk of its scratch folder."""
    poll_s: float = Field(0.5, gt=0)
    """Pause between two rounds of polling."""
    lost_after_s: float = Field(90.0, gt=0)
    """A silent node loses its lease after this time."""
    data: str = ""
    """A folder with prepared data, used on every machine that has it; empty = the Task prepares its own."""
    sandbox: str = "auto"
    """"auto" takes the best here; or "cgroup", "bwrap", "landlock", "bare", or your own as package.module:Class."""
    trust_code: bool = False
    """Let runs below the sandbox level that the code asks for decide; `--i-trust-this-code` sets it."""


class ProposerChoice(_Section):
    """Who thinks of the next idea."""

    use: str = "tuner"
    """"tuner", "claude", or your own as package.module:Class."""
    options: dict[str, str] = Field(default_factory=dict)
    """Passed to the proposer as they are."""


class Decision(_Section):
    """What counts as true."""

    dial: Literal["economy", "standard", "thorough"] = "standard"
    """How much evidence is bought before a verdict."""
    calibration_pairs: int = Field(4, ge=2, le=40)
    """Pairs of baseline trials that measure the noise before anything is claimed."""
    final_seeds: int = Field(5, ge=2, le=50)
    """Fresh seeds of the comparison of champion and baseline at the end, and of champions on the way."""
    cpu_ratio: float = Field(1.25, gt=0)
    """A candidate whose mean CPU time exceeds the baseline's by this factor is rejected."""
    sham_share: float = Field(0.03, ge=0, le=0.2)
    """Share of all claims that are sham edits: they change nothing but the random stream, and audit the chain."""
    recheck_every: int = Field(10, ge=0, le=_MOST)
    """Promotions after which the champion is compared with the one before them, and demoted if no better; 0 = never."""
    panel: Literal["auto", "on", "off"] = "auto"
    """Claims may be weighed on many runs of the champion, while a Platform's own checks hold. "auto": where tokens are
    the budget; "on": also where seconds are, whose drift on all nodes alike no check would notice; "off": never."""
    transfer_seeds: int = Field(2, ge=0, le=20)
    """Fresh seeds on which each promotion is checked at the larger scale that its Task names; 0 = no check."""
    transfer_required: bool = False
    """Check before a promotion rather than after it, and promote only what transfers."""


class ForgeChoice(_Section):
    """Where winners are shared."""

    use: str = "local"
    """"local" (a bare git repository), "github", or your own as package.module:Class."""
    path: str = ""
    """local: the bare repository; empty = the study's own."""
    repository: str = ""
    """github: owner/name. The token comes from GITHUB_TOKEN."""
    base_url: str = "https://api.github.com"
    """github: another address for GitHub Enterprise."""
    git_url: str = ""
    """github: where to push; empty = derived from the repository."""
    options: dict[str, str] = Field(default_factory=dict)
    """Passed to a forge of your own as they are."""


class Config(_Section):
    """One resolved configuration, frozen into the first fact of the ledger."""

    study: str = Field("study", pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    """Name of the study; a number is added for each new one."""
    task: str = "baseline"
    """Folder of the Task, or one of its files like task.toml; relative to the working directory."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Every seed of the study is derived from it."""
    folder: str = "studies"
    """Where studies are kept."""
    notes: str = ""
    """A sentence that is printed in the report."""
    stop: Stop = Stop()
    caps: Caps = Caps()
    nodes: Nodes = Nodes()
    proposer: ProposerChoice = ProposerChoice()
    decision: Decision = Decision()
    forge: ForgeChoice = ForgeChoice()

    def to_json(self) -> str:
        """The resolved configuration, every default written out."""
        return self.model_dump_json()


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file and apply `a.b=c` overrides.

    Raises:
        ConfigError: no such file, broken TOML, unknown key or a value out of range.
    """
    raw = _read_toml(path) if path else {}
    overridden = tuple(_override(raw, override) for override in overrides)
    return parse_config(raw, str(path or "--set"), overridden)


def parse_config(raw: Mapping[str, Any], where: str, overridden: Sequence[str] = ()) -> Config:
    """Validate a configuration that came as plain data: from `where`, some keys of it overridden by `--set`.

    Raises:
        ConfigError: what it says cannot be obeyed, or could not be written down.
    """
    try:
        config = Config.model_validate(dict(raw))
        config.to_json()
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(where, overridden, detail) for detail in error.errors())) from error
    except PydanticSerializationError as error:
        raise ConfigError(f"{where}: a text holds bytes that are no Unicode; write it again") from error
    if config.stop.final_minutes >= config.stop.wall_minutes:
        raise ConfigError(
            f"{where}: stop.final_minutes = {config.stop.final_minutes:g} must be smaller than stop.wall_minutes = "
            f"{config.stop.wall_minutes:g}; nothing would be explored"
        )
    return config


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"no configuration at {path}; the shipped ones are in configs/, e.g. configs/laptop.toml"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:  # ValueError: also a number of more than 4300 digits
        raise ConfigError(f"{path} is not valid TOML: {error}; correct it there") from error


def _override(raw: dict[str, Any], text: str) -> str:
    """Put it into the raw configuration; the name of the key."""
    name, equals, value = text.partition("=")
    *sections, key = name.strip().split(".")
    if not (equals and key and all(sections)):
        raise ConfigError(f"--set {_printable(text)!r}: write it as section.key=value")
    place = raw
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise ConfigError(
                f"--set {_printable(text)!r}: {_printable(section)} is a value, not a section; write section.key=value"
            )
    try:
        place[key] = json.loads(value)
    except (ValueError, RecursionError):  # no JSON: plain text
        place[key] = value
    return ".".join((*sections, key))


def _explain(where: str, overridden: Sequence[str], detail: Any) -> str:
    place = _printable(".".join(str(part) for part in detail["loc"]))
    if any(f"{place}.".startswith(f"{key}.") or f"{key}.".startswith(f"{place}.") for key in overridden):
        where = "--set"
    if detail["type"] == "extra_forbidden":
        valid = _keys(detail["loc"][:-1])
        close = difflib.get_close_matches(str(detail["loc"][-1]), valid, n=1)
        hint = f"did you mean {close[0]}?" if close else f"valid here: {', '.join(valid)}"
        return f"{where}: {place}: unknown key; {hint}"
    shown = _printable(repr(detail["input"]))
    if detail["type"] == "string_pattern_mismatch":
        return f"{where}: {place} = {shown}: use a-z, 0-9 and -, at most 41 characters, the first no -"
    if detail["type"] == "model_type":
        return f"{where}: {place} = {shown}: it is a section; set one of its keys: {', '.join(_keys(detail['loc']))}"
    return f"{where}: {place} = {shown}: {detail['msg']}"


def _printable(text: str) -> str:
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _keys(sections: Sequence[str | int]) -> list[str]:
    model: type[BaseModel] = Config
    for section in sections:
        inner = model.model_fields[str(section)].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)


def config_from_json(text: str) -> Config:
    """The configuration that a ledger froze.

    Raises:
        ConfigError: a version of the swarm wrote it that knows other keys.
    """
    try:
        return Config.model_validate_json(text)
    except ValidationError as error:
        told = "; ".join(_explain("the configuration in the ledger", (), detail) for detail in error.errors())
        raise ConfigError(f"{told}; another version of the swarm wrote it, so use that one") from error
