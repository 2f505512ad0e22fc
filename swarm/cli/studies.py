"""Where studies live on disk, which one a command means, and how one is opened or resumed."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from swarm.config import Config, config_from_json
from swarm.errors import PrerequisiteError
from swarm.ledger import Ledger
from swarm.records import Fact, StudyFinished, StudyOpened


@dataclass(frozen=True)
class Found:
    """A study on disk."""

    folder: Path
    opened: StudyOpened | None
    finished: StudyFinished | None

    @property
    def name(self) -> str:
        return self.folder.name


def numbered(root: Path, name: str) -> list[Path]:
    """Folders `name-1`, `name-2` ... that hold a ledger, in their order."""
    pattern = re.compile(rf"{re.escape(name)}-(\d+)")
    found = [(int(m.group(1)), path) for path in root.glob(f"{name}-*") if (m := pattern.fullmatch(path.name))]
    return [path for _, path in sorted(found) if (path / "ledger.sqlite").exists()]


def look(folder: Path) -> Found:
    """The study in a folder, from its ledger."""
    with Ledger(folder / "ledger.sqlite", read_only=True) as ledger:
        facts = ledger.facts()
    opened = next((f for f in facts if isinstance(f, StudyOpened)), None)
    finished = next((f for f in facts if isinstance(f, StudyFinished)), None)
    return Found(folder, opened, finished)


def to_run(config: Config) -> tuple[Found, Found | None]:
    """The study that `swarm run` works on: the unfinished one, else a new number. And the finished one before it."""
    root = Path(config.folder)
    existing = numbered(root, config.study)
    if not existing:
        return Found(root / f"{config.study}-1", None, None), None
    last = look(existing[-1])
    if last.finished is None:
        return last, None
    number = int(last.name.rpartition("-")[2]) + 1
    return Found(root / f"{config.study}-{number}", None, None), last


def frozen_config(found: Found, asked: Config) -> Config:
    """A resumed study goes on under the configuration it was opened with."""
    return asked if found.opened is None else config_from_json(found.opened.config)


def find(study: Path | None, root: Path = Path("studies")) -> Path:
    """The folder a reading command means: the one named, else the one written to last.

    Raises:
        PrerequisiteError: there is none.
    """
    if study is not None:
        folder = study if (study / "ledger.sqlite").exists() else root / study
        if (folder / "ledger.sqlite").exists():
            return folder
        known = ", ".join(sorted(p.parent.name for p in root.glob("*/ledger.sqlite"))) or "none"
        raise PrerequisiteError(f"no study at {study}; studies in {root}/: {known}")
    ledgers = sorted(root.glob("*/ledger.sqlite"), key=lambda path: path.stat().st_mtime)
    if not ledgers:
        raise PrerequisiteError(f"no study in {root}/ yet; start one with `swarm run`, or name its folder with --study")
    return ledgers[-1].parent


def facts_of(folder: Path) -> tuple[Fact, ...]:
    """All facts of the study in a folder."""
    with Ledger(folder / "ledger.sqlite", read_only=True) as ledger:
        return ledger.facts()


def opened_in(folder: Path) -> StudyOpened:
    """How the study in a folder was opened.

    Raises:
        PrerequisiteError: its coordinator ended before that.
    """
    opened = next((fact for fact in facts_of(folder) if isinstance(fact, StudyOpened)), None)
    if opened is None:
        raise PrerequisiteError(f"{folder} has not begun: its coordinator ended before the first fact; run it again")
    return opened


def differences(asked: Config, frozen: Config) -> list[str]:
    """Keys in which the file differs from what the study was opened with."""
    old, new = _flat(json.loads(frozen.to_json())), _flat(json.loads(asked.to_json()))
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))


def _flat(plain: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in plain.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
