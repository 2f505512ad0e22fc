"""What people read of a Promotion: the title and body of its request, and its record.json. Pure.

Owns the words and numbers of a promotion, all of them computed from facts. Must not know a forge, git, files or clocks:
the same dossier gives the same bytes, so that a promotion repeated after a crash is the same commit.

Protective: a hypothesis comes from a model or a stranger; wherever it is shown, coordinator/quoting.py makes it inert.
"""

import difflib
import json
import math
import re
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import NamedTuple

from coordinator.quoting import inline, quote
from coordinator.wording import count, holdout
from swarm.records import (
    Direction,
    ExperimentAdmitted,
    Files,
    HoldoutAnswered,
    Interaction,
    Measurement,
    NodeInfo,
    Platform,
    StudyOpened,
    TransferChecked,
    TrialFinished,
    Verdict,
)

SCHEMA_VERSION = 1
FRESH = "fresh seeds, drawn after the claim"
FRESH_TO_IT = "seeds fresh to the candidate, drawn after the claim; the champion's runs there may be older"
SHORT_CHANGE = 60  # characters of the hypothesis in a title; GitHub shows about 70 of a title in its lists
_RESERVED_STUDIES = ("best", "requests")  # `swarm/best/...` could not stand beside the branch `swarm/best`


class Absorbed(NamedTuple):
    """One of several ideas that land together, and the champion's files with it and those before it."""

    experiment: ExperimentAdmitted
    files: Files


@dataclass(frozen=True)
class PromotionDossier:
    """Everything that a promotion is told from."""

    study: StudyOpened
    number: int
    experiment: ExperimentAdmitted
    verdict: Verdict
    evidence: tuple[TrialFinished, ...]
    """Every run of the confirmation, the bad ones included; the verdict says which belong together."""
    nodes: tuple[NodeInfo, ...]
    frozen: Mapping[str, str]
    """Frozen file -> sha256, as checked when the study was opened."""
    base_files: Files
    """The champion's editable files."""
    files: Files
    """The editable files that will land."""
    transfer: TransferChecked | None = None
    """Its check at a larger scale, where the study requires one before the promotion."""
    holdout: HoldoutAnswered | None = None
    together: tuple[Interaction, ...] = ()
    """What sets of ideas gained on the champion that it replaces."""
    absorbed: tuple[Absorbed, ...] = ()
    """Where several ideas land together: all of them, in that order; `experiment` is the first."""

    @property
    def ideas(self) -> tuple[ExperimentAdmitted, ...]:
        """That it brings."""
        return tuple(idea.experiment for idea in self.absorbed) or (self.experiment,)

    @property
    def name(self) -> str:
        """The experiment that people find it by."""
        return self.experiment.proposal.idea if self.absorbed else self.verdict.experiment


class PairedRuns(NamedTuple):
    """The champion's and the candidate's run of one Pair; None where a run never finished."""

    champion: TrialFinished | None
    candidate: TrialFinished | None

    @property
    def scores(self) -> tuple[float, float] | None:
        """Champion's and candidate's score, when both have one."""
        champion, candidate = _measurement(self.champion), _measurement(self.candidate)
        return (champion.score, candidate.score) if champion and candidate else None

    @property
    def cpu_ratio(self) -> float | None:
        champion, candidate = _measurement(self.champion), _measurement(self.candidate)
        return candidate.cpu_s / champion.cpu_s if champion and candidate and champion.cpu_s > 0 else None


class Means(NamedTuple):
    """Mean scores over the Pairs in which both runs were measured."""

    champion: float
    candidate: float
    pairs: int


@dataclass(frozen=True)
class RecordedPair:
    """One Pair in record.json; the runs are found by their trial ids."""

    champion: str
    candidate: str
    gain: float | None


@dataclass(frozen=True)
class RecordedIdea:
    """One of several ideas that landed together."""

    experiment: str
    hypothesis: str
    proposer: str
    proposed_by: str


@dataclass(frozen=True)
class Record:
    """The content of record.json."""

    schema_version: int
    study: str
    number: int
    title: str
    metric: str
    direction: Direction
    hypothesis: str
    proposer: str
    proposed_by: str
    editable: Mapping[str, str]
    frozen: Mapping[str, str]
    lines_added: int
    lines_removed: int
    mean_champion: float
    mean_candidate: float
    verdict: Verdict
    holdout: HoldoutAnswered | None
    pairs: tuple[RecordedPair, ...]
    runs: tuple[TrialFinished, ...]
    transfer: TransferChecked | None
    platforms: tuple[Platform, ...]
    ideas: tuple[RecordedIdea, ...]
    together: tuple[Interaction, ...]


# --- names -----------------------------------------------------------------------------------------------


def branch_name(study: str, number: int) -> str:
    """The branch of a promotion: the same for the same promotion, always a name that git takes."""
    slug = _slug(study)
    return f"swarm/{slug}-study/promotion-{number}" if slug in _RESERVED_STUDIES else f"swarm/{slug}/promotion-{number}"


def record_path(study: str, number: int) -> str:
    """Where a promotion's record stands in the tree; studies that share a forge do not meet there."""
    return f"records/{_slug(study)}/{number:04d}/record.json"


def transfer_path(study: str, number: int) -> str:
    """Where the check of a promotion at a larger scale is told when it came after the promotion."""
    return record_path(study, number).replace("record.json", "transfer.json")


def transfer_json(checked: TransferChecked) -> str:
    """The check for programs."""
    return json.dumps(asdict(checked), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _slug(study: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", study).strip("-") or "study"


# --- the request -----------------------------------------------------------------------------------------


def title(dossier: PromotionDossier) -> str:
    """One line: the change, the mean score, the champion's on the same seeds, and on how many Pairs."""
    number, means = _decimal(dossier), _means(dossier)
    change = words_of(dossier.experiment)
    change += f" and {count(len(dossier.ideas) - 1, 'more idea')}" if len(dossier.ideas) > 1 else ""
    difference = f"{means.candidate - means.champion:+{number}}"
    scores = f"{means.candidate:{number}} (parent {means.champion:{number}}, {difference}, n={means.pairs})"
    mark = "simplification" if dossier.verdict.claim_kind == "simplification" else "record"
    return f"[{mark}] {change}: {scores}"


def words_of(experiment: ExperimentAdmitted) -> str:
    """An idea in one short line."""
    return inline(experiment.proposal.hypothesis, SHORT_CHANGE) or "an idea without words"


def author_of(dossier: PromotionDossier, experiment: ExperimentAdmitted) -> str:
    """Who thought of it, and where; one line, as a trailer wants it."""
    return f"{inline(experiment.proposal.proposer)} on {_node_name(dossier, experiment.node)}"


def request_body(dossier: PromotionDossier) -> str:
    """Markdown, one screen: why, every run, the decision, what was checked, how to reproduce."""
    parts = (_why(dossier), _together(dossier), _table(dossier), _decision(dossier), _checks(dossier))
    return "\n\n".join(part for part in (*parts, _reproduce(dossier)) if part) + "\n"


def _why(dossier: PromotionDossier) -> str:
    told = [_origin(dossier, experiment) for experiment in dossier.ideas]
    if dossier.absorbed:
        told.insert(0, f"{len(told)} ideas that were accepted one by one, joined and confirmed as one tree.")
    return "\n\n".join(told)


def _together(dossier: PromotionDossier) -> str:
    """What was measured before the ideas landed together, also of sets that did not; two pairs each."""
    number = _decimal(dossier)
    rows = [
        f"| {' '.join(f'`{idea[:8]}`' for idea in told.ideas)} | {f'{told.gain:+{number}}' if told.pairs else '-'} | "
        f"{told.expected:+{number}} | {told.pairs} | {'' if told.pairs else inline(told.reason, 120)} |"
        for told in dossier.together
    ]
    head = "| experiments | gain together | gains alone, in all | pairs | |\n|---|---:|---:|---:|---|"
    return "\n".join([head, *rows]) if rows else ""


def _origin(dossier: PromotionDossier, admitted: ExperimentAdmitted) -> str:
    proposal = admitted.proposal
    experiment = proposal.idea if dossier.absorbed else dossier.verdict.experiment
    origin = f"Experiment `{experiment[:8]}` of study {inline(dossier.study.study)}"
    expected = f" Expected: {inline(proposal.expected, 120)}." if proposal.expected.strip() else ""
    author = f"proposed by {author_of(dossier, admitted)}"
    return f"{origin}, {author}.{expected} Its hypothesis, quoted as data:\n\n{quote(proposal.hypothesis)}"


def _table(dossier: PromotionDossier) -> str:
    rows = [_row(dossier, pair) for pair in _pairs(dossier)]
    return "\n".join(
        ["| seed | node | candidate | champion | gain | cpu ratio |", "|---:|---|---:|---:|---:|---:|", *rows]
    )


def _row(dossier: PromotionDossier, pair: PairedRuns) -> str:
    run, number = pair.candidate or pair.champion, _decimal(dossier)
    gain = f"{_gain(dossier, *pair.scores):+{number}}" if pair.scores else "-"
    cells = (
        str(run.seed) if run else "-",
        _node_name(dossier, run.node) if run else "-",
        _score(pair.candidate, number),
        _score(pair.champion, number),
        gain,
        f"{pair.cpu_ratio:.2f}" if pair.cpu_ratio is not None else "-",
    )
    return f"| {' | '.join(cells)} |"


def _decision(dossier: PromotionDossier) -> str:
    verdict, number = dossier.verdict, _decimal(dossier)
    effect = f"effect {verdict.effect:+{number}} (interval {verdict.low:+{number}} to {verdict.high:+{number}})"
    evidence = f"evidence {verdict.likelihood_ratio:.3g}:1 against a bar of {verdict.bar:.3g}:1"
    size = f"noise s = {verdict.noise:.2g}, {count(verdict.pairs, 'pair')} on {count(verdict.nodes, 'node')}"
    word = "accepted" if verdict.accepted else "rejected"
    word += " as a simplification: less code, and not worse by the margin" * (verdict.claim_kind == "simplification")
    return f"**Decision: {word}.** {effect}; {evidence}; {size}. {inline(verdict.reason, 300)}".rstrip()


def _checks(dossier: PromotionDossier) -> str:
    changed, nodes = _changed(dossier), count(dossier.verdict.nodes, "node")
    level = min((run.sandbox_level for run in dossier.evidence), default=0)
    alone = dossier.verdict.nodes < 2
    checks = (
        (not set(changed) & set(dossier.frozen), _what_changes(dossier)),
        (True, f"frozen files by sha256: {_frozen(dossier)}"),
        (not _self_reported(dossier), _scored_by(dossier)),
        (dossier.holdout is not None, _holdout(dossier)),
        (level > 0, f"sandbox level of every run: {level}" + ("" if level else ", which isolates nothing")),
        (True, f"{FRESH if not dossier.verdict.panel else FRESH_TO_IT}; every run is listed, failed ones too"),
        *_transfer_check(dossier),
        (not alone, f"confirmed on {nodes}" + (", as no other was there" if alone else "")),
    )
    lines = [f"- [{'x' if passed else ' '}] {text}" for passed, text in checks]
    return "\n".join(["**Validity**", "", *lines, f"- platform: {_platform_names(dossier)}"])


def _transfer_check(dossier: PromotionDossier) -> Iterator[tuple[bool, str]]:
    if dossier.transfer is not None:
        yield dossier.transfer.mark == "transfers", f"at a larger scale: {inline(dossier.transfer.reason, 200)}"


def _what_changes(dossier: PromotionDossier) -> str:
    added, removed = _lines_changed(dossier)
    return f"changes {', '.join(map(inline, _changed(dossier))) or 'nothing'} (+{added} -{removed} lines) and no more"


def _frozen(dossier: PromotionDossier) -> str:
    return ", ".join(f"{inline(path)} `{value[:12]}`" for path, value in sorted(dossier.frozen.items())) or "none"


def _platform_names(dossier: PromotionDossier) -> str:
    names = (inline(f"{p.device}, {p.software}, {p.budget}", 120) for p in _platforms(dossier))
    return "; ".join(names) or "unknown"


def _scored_by(dossier: PromotionDossier) -> str:
    if _self_reported(dossier):
        return "scores are SELF-REPORTED: the script's own word, as this task asks for"
    return "scored by us from predictions; what the script prints is not believed"


def _holdout(dossier: PromotionDossier) -> str:
    told = holdout(dossier.holdout)
    return f"{told}, as no score here is ours" if _self_reported(dossier) else inline(told, 200)


def _reproduce(dossier: PromotionDossier) -> str:
    return f"**Reproduce:** `swarm reproduce {dossier.name[:8]} --seeds 3`"


# --- the record ------------------------------------------------------------------------------------------


def record_json(dossier: PromotionDossier) -> str:
    """The promotion for programs: JSON, numbers as numbers, every run."""
    return json.dumps(asdict(_record(dossier)), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _record(dossier: PromotionDossier) -> Record:
    added, removed = _lines_changed(dossier)
    proposal, means = dossier.experiment.proposal, _means(dossier)
    return Record(
        schema_version=SCHEMA_VERSION,
        study=dossier.study.study,
        number=dossier.number,
        title=title(dossier),
        metric=dossier.study.metric,
        direction=dossier.study.direction,
        hypothesis=proposal.hypothesis,
        proposer=proposal.proposer,
        proposed_by=dossier.experiment.node,
        editable={path: sha256(text.encode()).hexdigest() for path, text in sorted(dossier.files.items())},
        frozen=dict(sorted(dossier.frozen.items())),
        lines_added=added,
        lines_removed=removed,
        mean_champion=means.champion,
        mean_candidate=means.candidate,
        verdict=dossier.verdict,
        holdout=dossier.holdout,
        pairs=tuple(_recorded_pairs(dossier)),
        runs=tuple(replace(run, log="") for run in dossier.evidence),  # logs are files of their own
        transfer=dossier.transfer,
        platforms=_platforms(dossier),
        ideas=tuple(
            RecordedIdea(e.proposal.idea, e.proposal.hypothesis, e.proposal.proposer, e.node) for e in dossier.ideas
        ),
        together=dossier.together,
    )


def _recorded_pairs(dossier: PromotionDossier) -> Iterator[RecordedPair]:
    for (champion, candidate), pair in zip(_pair_ids(dossier), _pairs(dossier), strict=True):
        yield RecordedPair(champion, candidate, _gain(dossier, *pair.scores) if pair.scores else None)


# --- facts and numbers -----------------------------------------------------------------------------------


def _pairs(dossier: PromotionDossier) -> list[PairedRuns]:
    runs = {run.trial: run for run in dossier.evidence}
    return [PairedRuns(runs.get(champion), runs.get(candidate)) for champion, candidate in _pair_ids(dossier)]


def _pair_ids(dossier: PromotionDossier) -> list[tuple[str, str]]:
    ids = dossier.verdict.evidence  # champion and candidate alternating
    return list(zip(ids[::2], ids[1::2], strict=True))


def _means(dossier: PromotionDossier) -> Means:
    scores = [pair.scores for pair in _pairs(dossier) if pair.scores]
    if not scores:
        raise ValueError(f"verdict on experiment {dossier.verdict.experiment} holds no measured pair")
    champion, candidate = zip(*scores, strict=True)
    return Means(statistics.fmean(champion), statistics.fmean(candidate), len(scores))


def _measurement(run: TrialFinished | None) -> Measurement | None:
    return run.outcome if run and isinstance(run.outcome, Measurement) else None


def _failure(run: TrialFinished) -> str:
    return "" if isinstance(run.outcome, Measurement) else f"{run.outcome.reason} ({run.outcome.blame})"


def _score(run: TrialFinished | None, number: str) -> str:
    measured = _measurement(run)
    if measured:
        return f"{measured.score:{number}}"
    return f"failed: {_failure(run)}" if run else "not finished"


def _gain(dossier: PromotionDossier, champion: float, candidate: float) -> float:
    return champion - candidate if dossier.study.direction == "minimize" else candidate - champion


def _decimal(dossier: PromotionDossier) -> str:
    """A number format that shows two digits of the noise; more would be made up, fewer would hide the gain."""
    noise = dossier.verdict.noise
    decimals = 1 - math.floor(math.log10(noise)) if noise > 0 else 4
    return f".{min(max(decimals, 0), 8)}f"


def _self_reported(dossier: PromotionDossier) -> bool:
    return any(measured.self_reported for run in dossier.evidence if (measured := _measurement(run)))


def _platforms(dossier: PromotionDossier) -> tuple[Platform, ...]:
    used = {run.platform for run in dossier.evidence}
    known = {node.platform.id: node.platform for node in dossier.nodes if node.platform.id in used}
    return tuple(known[key] for key in sorted(known))


def _node_name(dossier: PromotionDossier, uid: str) -> str:
    names = {node.uid: node.name for node in dossier.nodes}
    return inline(names.get(uid, uid[:8]), 40)


def _changed(dossier: PromotionDossier) -> list[str]:
    paths = dossier.files.keys() | dossier.base_files.keys()
    return sorted(path for path in paths if dossier.files.get(path) != dossier.base_files.get(path))


def _lines_changed(dossier: PromotionDossier) -> tuple[int, int]:
    added = removed = 0
    for path in _changed(dossier):
        old, new = dossier.base_files.get(path, ""), dossier.files.get(path, "")
        for line in list(difflib.unified_diff(old.splitlines(), new.splitlines(), n=0))[2:]:
            added, removed = added + line.startswith("+"), removed + line.startswith("-")
    return added, removed
