"""Artifacts of the champion's and the candidates' leased Trials, on the node's disk until nobody will ask for them.

Owns their folder, its bounds, and the answers about them, which stay in memory: a score on the holdout is written down
nowhere. It does not know of Claims, or why a Trial is asked about.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from node.scratch import remove
from swarm.codec import DecodeError, pack, unpack
from swarm.records import Outcome, TrialSpec

MOST_TRIALS, MOST_BYTES = 64, 2 * 2**30  # of one node; the oldest go first


class Asked(NamedTuple):
    """A kept Trial that is to be scored on the holdout."""

    spec: TrialSpec
    artifact: Path
    identity: str  # what the artifact has to be


class Kept:
    """The kept artifacts of one Node in one Study: `<trial>/artifact`, beside the spec that it came from."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._asked: dict[str, str] = {}
        self._answers: dict[str, Outcome] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for place in folder.iterdir():
            if not ((place / "artifact").exists() and _spec(place)):  # its trial was killed, or another version kept it
                remove(place)

    def place(self, spec: TrialSpec) -> Path:
        """Where the artifact of a Trial is to be moved to. Call `settle` when the Trial has ended."""
        place = self._folder / spec.id
        remove(place)
        place.mkdir()
        (place / "spec").write_bytes(pack(spec))
        return place / "artifact"

    def settle(self, spec: TrialSpec) -> None:
        """Keep what the Trial left, if it left anything; make room by what is oldest."""
        if not (self._folder / spec.id / "artifact").exists():
            self._drop(spec.id)
        trials, room = self._by_age(), MOST_BYTES
        for number, trial in enumerate(reversed(trials)):
            room -= _bytes(self._folder / trial / "artifact")
            if number >= MOST_TRIALS or room < 0:
                self._drop(trial)

    def trials(self) -> tuple[str, ...]:
        """Those that can be asked about."""
        return tuple(sorted(self._by_age()))

    def obey(self, asked: Mapping[str, str], release: Iterable[str]) -> None:
        """What the coordinator wants to know now (trial -> artifact), and what it will not want any more."""
        self._asked = dict(asked)
        for trial in release:
            self._drop(trial)

    def next(self) -> Asked | None:
        """A Trial that is asked about and has no answer yet."""
        for trial, identity in self._asked.items():
            place = self._folder / trial
            if trial not in self._answers and (place / "artifact").exists() and (spec := _spec(place)):
                return Asked(spec, place / "artifact", identity)
        return None

    def answer(self, trial: str, outcome: Outcome) -> None:
        """What the holdout says."""
        self._answers[trial] = outcome

    def answers(self) -> dict[str, Outcome]:
        """By Trial."""
        return dict(self._answers)

    def _by_age(self) -> list[str]:
        places = [place for place in self._folder.iterdir() if (place / "artifact").exists()]
        return [place.name for place in sorted(places, key=lambda place: (place / "spec").stat().st_mtime_ns)]

    def _drop(self, trial: str) -> None:
        self._answers.pop(trial, None)
        remove(self._folder / trial)


def _spec(place: Path) -> TrialSpec | None:
    """None where another version of the swarm wrote it, or nobody finished writing it."""
    try:
        return unpack((place / "spec").read_bytes(), TrialSpec)
    except (DecodeError, FileNotFoundError):
        return None


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
