"""What people read of a demotion: the title and body of its request, and its record. Pure.

A champion that is no better than an earlier one steps down by a commit on top, never by taking commits away. Owns the
words and numbers of that request, all of them from facts. Must not know a forge, git, files or clocks: the same dossier
gives the same bytes, so that a demotion repeated after a crash is the same commit.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from coordinator import promotion
from coordinator.quoting import inline
from coordinator.wording import Numbers, count, numbers_at, table
from swarm.records import ChampionRechecked, Files, Measurement, Promotion, StudyOpened, TrialFinished

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Dossier:
    """Everything that a demotion is told from."""

    study: StudyOpened
    number: int
    found: ChampionRechecked
    champion: str
    """That steps down: the one that was compared, or one that landed on top of it since."""
    undone: tuple[Promotion, ...]
    """Oldest first."""
    evidence: tuple[TrialFinished, ...]
    """Earlier champion and champion alternating."""
    files: Files
    """The earlier champion's editable files, which land again."""


def branch_name(told: Dossier) -> str:
    """The branch of a demotion: the same for the same demotion."""
    folder = promotion.branch_name(told.study.study, told.number).rpartition("/")[0]
    return f"{folder}/demotion-{told.number}"


def record_path(told: Dossier) -> str:
    """Where its record stands in the tree, beside those of the promotions."""
    folder = promotion.record_path(told.study.study, told.number).rsplit("/", 2)[0]
    return f"{folder}/demotion-{told.number}.json"


def title(told: Dossier) -> str:
    """One line: which promotions fall, and what their champion gained on how many fresh seeds."""
    return f"[demotion] {which(told.undone)} undone: {_measured(told)}"


def which(undone: tuple[Promotion, ...]) -> str:
    """Promotion 3; promotions 3, 5, 6: between them may be some that were undone before."""
    numbers = ", ".join(str(p.number) for p in undone)
    return f"promotion{'s' if len(undone) > 1 else ''} {numbers}"


def request_body(told: Dossier) -> str:
    """Markdown, one screen: why, every run, the decision, what becomes of the ideas."""
    parts = (_why(told), _fallen(told), _table(told), _decision(told), _next())
    return "\n\n".join(parts) + "\n"


def record_json(told: Dossier) -> str:
    """The demotion for programs, with every run."""
    record = {
        "schema_version": SCHEMA_VERSION,
        "study": told.study.study,
        "number": told.number,
        "title": title(told),
        "rechecked": asdict(told.found),
        "champion": told.champion,
        "restored": told.found.ancestor,
        "undone": [promotion.number for promotion in told.undone],
        "runs": [asdict(replace(run, log="")) for run in told.evidence],
    }
    return json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _write(told: Dossier) -> Numbers:
    return numbers_at(told.found.noise)


def _measured(told: Dossier) -> str:
    write, found = _write(told), told.found
    gain = f"{write.gain(found.gain)} {write.interval(found.low, found.high)}".strip()
    return f"gain {gain} on {count(found.pairs, 'fresh seed')}, published {write.gain(found.published)}"


def _why(told: Dossier) -> str:
    found = told.found
    return (
        f"The champion of promotion {found.number} (`{found.champion[:8]}`) was compared with an earlier one "
        f"(`{found.ancestor[:8]}`) on seeds that nothing else has used, and is no better: {_measured(told)}. "
        "This request lands the earlier tree on top; no commit is taken away."
    )


def _fallen(told: Dossier) -> str:
    return "\n".join(
        f"- undone: promotion {p.number}, {inline(p.request, 60) or 'no request'}, {_named(p)}" for p in told.undone
    )


def _named(promotion: Promotion) -> str:
    many = "s" if len(promotion.landed) > 1 else ""
    return f"experiment{many} {', '.join(f'`{idea[:8]}`' for idea in promotion.landed)}"


def _table(told: Dossier) -> str:
    head = ("-seed", "node", "-earlier champion", "-champion", "-gain")
    return table(head, list(_rows(told)))


def _rows(told: Dossier) -> Iterator[tuple[str, ...]]:
    write, sign = _write(told), -1.0 if told.study.direction == "minimize" else 1.0
    for before, after in zip(told.evidence[::2], told.evidence[1::2], strict=True):
        if isinstance(before.outcome, Measurement) and isinstance(after.outcome, Measurement):
            old, new = before.outcome.score, after.outcome.score
            scores = write.score(old), write.score(new), write.gain(sign * (new - old))
            yield str(after.seed), f"`{after.node[:8]}`", *scores


def _decision(told: Dossier) -> str:
    ratio = f"{told.found.likelihood_ratio:.2g}:1 that there is a gain worth having"
    mine = any(isinstance(run.outcome, Measurement) and run.outcome.self_reported for run in told.evidence)
    warning = " Scores are SELF-REPORTED: the script's own word, as this task asks for." if mine else ""
    why = inline(told.found.reason, 200)
    why = f"{why[:1].upper()}{why[1:]}"
    return f"**Decision: demoted.** {why}; evidence {ratio}; noise s = {told.found.noise:.2g}.{warning}"


def _next() -> str:
    return (
        "Each idea that falls is carried onto the restored champion and has to be confirmed there anew, on fresh "
        "seeds; one that helps will land again by a promotion of its own."
    )
