"""The study's own repository: one commit per candidate that somebody may build on, one branch per researcher.

Owns which commit stands for which candidate, also after a restart, and what the commit of a promotion holds. Commits
are a pure function of facts, so whatever is killed half-way is repeated with the same result. It knows no forge.
"""

from collections.abc import Mapping
from pathlib import Path

from coordinator import demotions
from coordinator.forges import Request
from coordinator.promotion import (
    PromotionDossier,
    author_of,
    branch_name,
    record_json,
    request_body,
    title,
    words_of,
)
from swarm.records import Demotion, ExperimentAdmitted, Promotion, Screened, StudyOpened
from swarm.repo import Repo

AUTHOR = "swarm <swarm@localhost>"
COMMITS = "refs/swarm/candidates/"  # one ref per candidate that has a commit: nothing is committed again at a start


class Lineage:
    """Candidates as commits of one bare repository."""

    def __init__(self, path: Path, study: str) -> None:
        """Open the repository at `path`, or make it."""
        self.repo = Repo.create(path)
        self._study = study
        self._commits = {ref.removeprefix(COMMITS): sha for ref, sha in self.repo.refs(COMMITS).items()}
        self._baseline = self._first = ""

    @property
    def baseline(self) -> str:
        """The first commit of the study."""
        return self._first

    def open(self, opened: StudyOpened, task: Mapping[str, bytes]) -> None:
        """The baseline with the whole task folder beside it, as it was when the study was opened."""
        self._baseline = opened.baseline
        if opened.baseline not in self._commits:
            files: dict[str, str | bytes] = {**task, **opened.files}
            message = f"Baseline of {opened.study}"
            self._keep(
                opened.baseline, self.repo.commit(files, parents=[], message=message, author=AUTHOR, at=opened.at)
            )
        self._first = self._commits[opened.baseline]
        self.repo.set_ref(f"refs/heads/swarm/{self._study}/baseline", self.baseline)

    def advance(self, fact: Screened, admitted: ExperimentAdmitted) -> None:
        """One commit per kept idea on its researcher's branch."""
        if fact.candidate in self._commits:
            return
        words = admitted.proposal.hypothesis.replace("\0", "").strip() or "An idea"
        commit = self.repo.commit(
            admitted.proposal.files,
            parents=[self._commits.get(fact.tip) or self.baseline],
            message=f"{words.splitlines()[0][:100]}\n\nSwarm-Experiment: {fact.experiment}\n",
            author=AUTHOR,
            at=fact.at,
        )
        self.repo.set_ref(f"refs/heads/{admitted.branch}", commit)
        self._keep(fact.candidate, commit)

    def promoted(self, fact: Promotion) -> None:
        """The champion is the very commit that landed, not the one of its branch."""
        self._commits[fact.candidate] = fact.commit

    def demoted(self, fact: Demotion) -> None:
        """The restored champion is the commit that landed on top, not the one of its own promotion."""
        self._commits[fact.restored] = fact.commit

    def request(self, dossier: PromotionDossier) -> Request:
        """The commit and the branch of a promotion, and what people read of it.

        Several ideas are a commit each beside the line of champions, and the promotion is the merge of them: its tree
        is the one that was measured, and its first parent is the champion before, as of any other.
        """
        verdict, number = dossier.verdict, dossier.number
        record = {f"records/{self._study}/{number:04d}/record.json": record_json(dossier)}
        trailers = "".join(self._trailers(dossier, idea) for idea in dossier.ideas)
        message = (
            f"{title(dossier)}\n\n{trailers}"
            f"Swarm-Verdict: accepted, {verdict.pairs} pairs, evidence {verdict.likelihood_ratio:.3g}:1\n"
            f"Swarm-Kind: {verdict.claim_kind}\n"
        )
        base = self._commits[verdict.base]
        commit = self.repo.commit(
            {**dossier.files, **record},
            parents=[base, *self._absorbed(dossier, base)],
            message=message,
            author=AUTHOR,
            at=verdict.at,
        )
        branch = branch_name(self._study, number)
        self.repo.set_ref(f"refs/heads/{branch}", commit)
        return Request(branch, commit, title(dossier), request_body(dossier))

    def _absorbed(self, dossier: PromotionDossier, base: str) -> list[str]:
        """The last of one commit for each of several ideas; none where only one lands."""
        commit = base
        for idea in dossier.absorbed:
            message = f"{words_of(idea.experiment)}\n\n{self._trailers(dossier, idea.experiment)}"
            commit = self.repo.commit(
                idea.files, parents=[commit], message=message, author=AUTHOR, at=dossier.verdict.at
            )
        return [commit] if dossier.absorbed else []

    def _trailers(self, dossier: PromotionDossier, idea: ExperimentAdmitted) -> str:
        experiment = idea.proposal.idea if dossier.absorbed else dossier.verdict.experiment
        return f"Swarm-Experiment: {experiment}\nSwarm-Author: {author_of(dossier, idea)}\n"

    def demotion(self, told: demotions.Dossier) -> Request:
        """The commit and the branch by which an earlier champion's tree lands again; no history is written anew."""
        commit = self.repo.commit(
            {**told.files, demotions.record_path(told): demotions.record_json(told)},
            parents=[self._commits[told.champion]],
            message=f"{demotions.title(told)}\n\nSwarm-Kind: demotion\n",
            author=AUTHOR,
            at=told.found.at,
        )
        branch = demotions.branch_name(told)
        self.repo.set_ref(f"refs/heads/{branch}", commit)
        return Request(branch, commit, demotions.title(told), demotions.request_body(told))

    def _keep(self, candidate: str, commit: str) -> None:
        self._commits[candidate] = commit
        self.repo.set_ref(f"{COMMITS}{candidate}", commit)
