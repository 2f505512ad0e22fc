"""The loop around the mind: polls the nodes, commits their facts, carries out what the mind decides.

Order matters: facts are committed before they are acknowledged, and acknowledged before a node may forget them.
Whatever is killed here, the next coordinator rebuilds the mind from the ledger and goes on.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Protocol

from coordinator.forges import Forge, Request
from coordinator.mind import Mind, Promote
from coordinator.press import LEADERBOARD, pages
from coordinator.promotion import PromotionDossier, branch_name, record_json, request_body, title
from coordinator.state import Claim
from swarm.cluster import Cluster, Silence
from swarm.codec import DecodeError, pack, unpack
from swarm.config import Config
from swarm.errors import ClusterError, ForgeError, TreeMismatch
from swarm.history import busy_share, history
from swarm.ledger import Ledger
from swarm.records import (
    ClaimRaised,
    CoordinatorStarted,
    ExperimentAdmitted,
    Fact,
    Files,
    Promotion,
    Report,
    Screened,
    Setup,
    Spent,
    StillAtWork,
    StudyFinished,
    StudyOpened,
    TrialDisturbed,
    TrialFinished,
    Trouble,
    candidate_id,
)
from swarm.repo import Repo
from swarm.task import Task, bundle, read_editable

log = logging.getLogger(__name__)

AUTHOR = "swarm <swarm@localhost>"
AGENT_FACTS = (TrialFinished, TrialDisturbed, Screened, ClaimRaised, ExperimentAdmitted, Spent, Trouble)
CALL_TIMEOUT_S = 5.0  # an agent answers in milliseconds; a silent one holds the others up for this long
MEMBERS_EVERY_S = 2.0
FIRST_WORD_S = 10.0  # an agent speaks 1 s after it was appointed, 5 s on a loaded machine; doubled at every attempt
LONGEST_PAUSE_S = 60.0  # between two attempts to start an agent that never speaks
PAGES_EVERY_S = 60.0  # drawing the picture takes up to half a second
FORGE_RETRY_S = 15.0
TROUBLE_EVERY_S = 60.0
AT_WORK_EVERY_S = 20.0  # at most so much working time is forgotten by a kill


class Watcher(Protocol):
    """Who looks on: the live view, or plain log lines."""

    def facts(self, facts: Iterable[Fact]) -> None:
        """New facts were committed."""

    def tick(self, mind: Mind, now: float) -> None:
        """A round of polling has ended."""


@dataclass(frozen=True)
class Study:
    """Where one study lives on the coordinator's disk."""

    folder: Path
    name: str
    config: Config
    task: Task
    task_folder: Path
    data: str = ""  # a folder with prepared data that nodes on this machine may use

    @property
    def ledger_path(self) -> Path:
        return self.folder / "ledger.sqlite"

    @property
    def repo_path(self) -> Path:
        return self.folder / "repo.git"


class Stillborn(NamedTuple):
    """How often in a row an agent died before it said anything, and when to try again."""

    times: int
    again_at: float


NEVER_FAILED = Stillborn(0, 0.0)


@dataclass
class Service:
    """One coordinator at work on one study."""

    study: Study
    ledger: Ledger
    cluster: Cluster
    forge: Forge
    watcher: Watcher
    heal: Callable[[], None] = lambda: None  # called every few seconds: whatever of ours died is started again
    clock: Callable[[], float] = time.time
    pause: Callable[[float], None] = time.sleep
    mind: Mind = field(init=False)
    repo: Repo = field(init=False)
    _members: dict[str, str] = field(init=False, default_factory=dict)  # Ray node id -> node uid, "" before it spoke
    _names: dict[str, str] = field(init=False, default_factory=dict)  # Ray node id -> name
    _heard_at: dict[str, float] = field(init=False, default_factory=dict)  # by Ray node id; at first: appointed at
    _stillborn: dict[str, Stillborn] = field(init=False, default_factory=dict)  # by Ray node id
    _acks: dict[str, tuple[str, ...]] = field(init=False, default_factory=dict)
    _commits: dict[str, str] = field(init=False, default_factory=dict)  # candidate -> commit
    _heads: dict[str, str] = field(init=False, default_factory=dict)  # branch -> commit
    _members_at: float = field(init=False, default=0.0)
    _pages_at: float = field(init=False, default=0.0)
    _facts: list[Fact] = field(init=False, default_factory=list)  # the ledger, as read; pages are made from it
    _told_at: dict[tuple[str, str], float] = field(init=False, default_factory=dict)
    _published: tuple[int, bool] = field(init=False, default=(0, False))
    _stop: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        config = self.study.config.model_copy(update={"study": self.study.name})
        self.mind = Mind(config, self.study.task.cpu_limit)
        self.repo = Repo.create(self.study.repo_path)

    # --- the loop ---

    def run(self) -> StudyFinished | None:
        """Work until the study has ended, or until `stop` is called; then None."""
        self._open()
        while self.mind.state.finished is None and not self._stop:
            self._round()
            self.watcher.tick(self.mind, self.clock())
            self.pause(self.study.config.nodes.poll_s)
        if self.mind.state.finished is not None:
            self._write_pages()
        return self.mind.state.finished

    def stop(self) -> None:
        """End after the round in progress."""
        self._stop = True

    def collect(self, seconds: float) -> None:
        """Before leaving: tell the nodes to stop and take over what they have spooled, for a few seconds at most."""
        deadline = self.clock() + seconds
        try:
            while (left := deadline - self.clock()) > 0:
                replies = self._exchange(drain=True, timeout_s=left)
                alive = [uid for uid in self._members.values() if uid and self.mind.presence[uid].alive]
                if not replies or all(self.mind.presence[uid].report.drained for uid in alive):
                    break
                self.pause(0.1)
        except ClusterError as error:  # nobody can be asked any more; what they finished is on their disks
            self._trouble("cluster", str(error))
        self._write_pages()

    def _open(self) -> None:
        now = self.clock()
        for row in self.ledger.rows():
            self._take(row.fact, row.at)
        if self.mind.state.opened is None:
            self._commit([self._opening(now)])
        self.mind.program = self._program()
        self._commit([CoordinatorStarted(self.mind.state.epoch + 1, now)])
        self._prepare_forge()

    def _opening(self, now: float) -> StudyOpened:
        files = read_editable(self.study.task_folder, self.study.task)
        return StudyOpened(
            study=self.study.name,
            seed=self.study.config.seed,
            metric=self.study.task.metric,
            direction=self.study.task.direction,
            baseline=candidate_id(files),
            files=files,
            config=self.study.config.to_json(),
            at=now,
        )

    def _round(self) -> None:
        try:
            self._meet_members()
            self._exchange()
            self._relieve()
        except ClusterError as error:
            self._trouble("cluster", str(error))
            self._members_at = 0.0  # heal in the next round
        self.mind.program = self._program()
        while self._act(self.mind.decide(self.clock())):
            pass
        if self.clock() - self.mind.state.last_at > AT_WORK_EVERY_S:
            self._commit([StillAtWork(self.mind.state.epoch, self.clock())])
        if self.clock() - self._pages_at > PAGES_EVERY_S:
            self._write_pages()

    def _act(self, actions: Iterable[Promote | Fact]) -> bool:
        """Commit decided facts, carry out promotions. True when there may be more to decide."""
        facts: list[Fact] = []
        for action in actions:
            if isinstance(action, Promote):
                facts += self._promote(action)
            elif isinstance(action, StudyFinished):
                facts.append(replace(action, busy=busy_share(self._facts)))
            else:
                facts.append(action)
        return bool(self._commit(facts))

    # --- facts ---

    def _commit(self, facts: Iterable[Fact]) -> list[Fact]:
        now = self.clock()
        fresh = self.ledger.append(facts, now)
        for fact in fresh:
            self._take(fact, now)
        if fresh:
            self.watcher.facts(fresh)
        return fresh

    def _take(self, fact: Fact, at: float) -> None:
        self.mind.absorb(fact, at)
        self._facts.append(fact)
        if isinstance(fact, StudyOpened):
            self._commits[fact.baseline] = self._commit_baseline(fact)
        elif isinstance(fact, Screened) and fact.kept:
            self._commit_kept(fact)
        elif isinstance(fact, Promotion):
            self._commits[fact.candidate] = fact.commit

    def _trouble(self, where: str, message: str) -> None:
        """Record what failed and was survived; the same words of the same place once a minute are enough."""
        now = self.clock()
        if now - self._told_at.get((where, message), -TROUBLE_EVERY_S) < TROUBLE_EVERY_S:
            return
        self._told_at[(where, message)] = now
        log.warning("where=%s %s", where, message)
        self._commit([Trouble(where, message[:2000], now)])

    # --- nodes ---

    def _meet_members(self) -> None:
        """Every node that joined the cluster, by whatever means, gets an agent."""
        now = self.clock()
        if now - self._members_at < MEMBERS_EVERY_S:
            return
        self.heal()
        self._members_at = now
        self._names = {member.id: member.name for member in self.cluster.nodes()}
        for member in [m for m in self._members if m not in self._names]:
            self._dismissed(member)
        for member in [m for m in self._stillborn if m not in self._names]:
            del self._stillborn[member]
        for member in self._names.keys() - self._members.keys():
            if now >= self._stillborn.get(member, NEVER_FAILED).again_at:
                self._appoint(member)

    def _appoint(self, member: str) -> None:
        """One node that cannot be appointed costs the others nothing."""
        try:
            self.cluster.appoint(member, self._setup())
            self._members[member] = ""
            self._heard_at[member] = self.clock()
        except ClusterError as error:
            self._failed_to_start(member, str(error))

    def _failed_to_start(self, member: str, reason: str) -> None:
        """Say so, and wait longer before every further attempt: most often a person has to mend that machine."""
        times = self._stillborn.get(member, NEVER_FAILED).times + 1
        pause = min(LONGEST_PAUSE_S, MEMBERS_EVERY_S * 2 ** (times - 1))
        self._stillborn[member] = Stillborn(times, self.clock() + pause)
        self._trouble(f"agent on {self._names.get(member, member)}", f"it does not start: {reason}")

    def _relieve(self) -> None:
        """End agents that are silent for too long, so that they are appointed anew: Ray does not always notice."""
        now = self.clock()
        for member, uid in list(self._members.items()):
            first_word_s = min(FIRST_WORD_S * 2 ** self._stillborn.get(member, NEVER_FAILED).times, LONGEST_PAUSE_S)
            patience_s = self.study.config.nodes.lost_after_s if uid else first_word_s
            if now - self._heard_at[member] > patience_s:
                self.cluster.dismiss(member)
                self._died(member, f"silent for {patience_s:g} s")

    def _dismissed(self, member: str) -> None:
        uid = self._members.pop(member)
        self._heard_at.pop(member, None)
        self._acks.pop(member, None)
        if uid not in self._members.values():  # else it is back already, under a new id
            self.mind.gone(uid)

    def _setup(self) -> bytes:
        config, task = self.study.config, self.study.task
        return pack(
            Setup(
                study=self.study.name,
                seed=config.seed,
                direction=task.direction,
                task_files=bundle(self.study.task_folder),
                proposer=config.proposer.use,
                proposer_options=config.proposer.options,
                sandbox=config.nodes.sandbox,
                data=self.study.data,
                threads=config.nodes.threads,
                wall_limit_s=config.nodes.trial_wall_s,
                memory_mb=config.nodes.memory_mb,
            )
        )

    def _exchange(self, *, drain: bool = False, timeout_s: float = CALL_TIMEOUT_S) -> Mapping[str, bytes | Silence]:
        now = self.clock()
        orders = {}
        for member, uid in self._members.items():
            order = self.mind.orders(uid, self._acks.get(member, ()), now)
            orders[member] = pack(replace(order, drain=True) if drain else order)
        replies = self.cluster.exchange(orders, timeout_s) if orders else {}
        facts: list[Fact] = []
        reports: list[Report] = []
        for member, reply in replies.items():
            report = self._parse(member, reply)
            if report is not None:
                reports.append(report)
                facts += self._believable(report)
        self._commit(facts)
        for report in reports:
            self.mind.observe(report, self.clock())
        return replies

    def _parse(self, member: str, reply: bytes | Silence) -> Report | None:
        if isinstance(reply, Silence):
            if reply.dead:
                self._died(member, reply.reason)
            return None
        try:
            report = unpack(reply, Report)
        except DecodeError as error:
            self._trouble(f"agent on {self._names.get(member, member)}", str(error))
            return None
        self._stillborn.pop(member, None)
        self._heard_at[member] = self.clock()
        self._members[member] = report.node.uid
        self._acks[member] = tuple(fact.key for fact in report.facts)
        return report

    def _died(self, member: str, reason: str) -> None:
        if self._members[member]:
            self._trouble(f"agent on {self._names.get(member, member)}", reason)
        else:
            self._failed_to_start(member, reason)
        self._dismissed(member)

    def _believable(self, report: Report) -> list[Fact]:
        """A node may speak of itself only, and only of what happens on nodes."""
        return [
            fact
            for fact in report.facts
            if isinstance(fact, AGENT_FACTS) and getattr(fact, "node", report.node.uid) == report.node.uid
        ]

    # --- code ---

    def _program(self) -> str:
        path = self.study.task_folder / "program.md"
        if not path.exists():
            path = self.study.task_folder.parent / "program.md"
        return path.read_text(errors="replace") if path.exists() else ""

    def _commit_baseline(self, opened: StudyOpened) -> str:
        files: dict[str, str | bytes] = {**bundle(self.study.task_folder), **opened.files}
        return self.repo.commit(files, parents=[], message=f"Baseline of {opened.study}", author=AUTHOR, at=opened.at)

    def _commit_kept(self, fact: Screened) -> None:
        """One commit per kept idea on the researcher's branch."""
        parent = self._commits.get(fact.tip) or self._commits[self.mind.state.baseline]
        experiment = self.mind.state.experiments[fact.experiment]
        hypothesis = experiment.admitted.proposal.hypothesis.strip() or "An idea"
        message = f"{hypothesis.splitlines()[0][:100]}\n\nSwarm-Experiment: {fact.experiment}\n"
        files: Files = self.mind.state.files[fact.candidate]
        commit = self.repo.commit(files, parents=[parent], message=message, author=AUTHOR, at=fact.at)
        self._commits[fact.candidate] = commit
        self.repo.set_ref(f"refs/heads/{fact.branch}", commit)

    # --- promotion ---

    def _prepare_forge(self) -> None:
        baseline = self._commits[self.mind.state.baseline]
        self.repo.set_ref(f"refs/heads/swarm/{self.study.name}/baseline", baseline)
        self.forge.prepare(self.study.repo_path, baseline)

    def _promote(self, action: Promote) -> list[Fact]:
        """Land a claim; every step may be repeated after a kill, names and commits are deterministic."""
        claim = self.mind.state.claims[action.claim]
        try:
            request = self._request(claim, action.number)
            opened = self.forge.open(self.study.repo_path, request)
            self.forge.merge(self.study.repo_path, request)
        except (ForgeError, TreeMismatch) as error:
            self.mind.postpone_promotion(self.clock() + FORGE_RETRY_S)
            return [Trouble("forge", str(error)[:2000], self.clock())]
        now = self.clock()
        return [
            Promotion(action.number, claim.experiment, claim.candidate, claim.base, request.commit, opened.name, now)
        ]

    def _request(self, claim: Claim, number: int) -> Request:
        dossier = self._dossier(claim, number)
        record = {f"records/{self.study.name}/{number:04d}/record.json": record_json(dossier)}
        assert claim.verdict is not None
        message = (
            f"{title(dossier)}\n\nSwarm-Experiment: {claim.experiment}\n"
            f"Swarm-Verdict: accepted, {claim.verdict.pairs} pairs, evidence {claim.verdict.likelihood_ratio:.3g}:1\n"
        )
        commit = self.repo.commit(
            {**self.mind.state.files[claim.candidate], **record},
            parents=[self._commits[claim.base]],
            message=message,
            author=AUTHOR,
            at=claim.verdict.at,
        )
        branch = branch_name(self.study.name, number)
        self.repo.set_ref(f"refs/heads/{branch}", commit)
        return Request(branch, commit, title(dossier), request_body(dossier))

    def _dossier(self, claim: Claim, number: int) -> PromotionDossier:
        state = self.mind.state
        assert state.opened is not None and claim.verdict is not None
        wanted = set(claim.verdict.evidence)
        trials = [f for f in self._facts if isinstance(f, TrialFinished) and f.trial in wanted]
        order = {trial: place for place, trial in enumerate(claim.verdict.evidence)}
        return PromotionDossier(
            study=state.opened,
            number=number,
            experiment=state.experiments[claim.experiment].admitted,
            verdict=claim.verdict,
            evidence=tuple(sorted(trials, key=lambda f: order[f.trial])),
            nodes=tuple(state.nodes.values()),
            frozen=self.study.task.frozen,
            base_files=state.files[claim.base],
            files=state.files[claim.candidate],
        )

    # --- pages ---

    def _write_pages(self) -> None:
        """Everything people look at, generated from the ledger; a page that cannot be written is a recorded trouble."""
        self._pages_at = self.clock()
        written = pages(history(self._facts), self.study.config.notes)
        for name, content in written.items():
            _write(self.study.folder / name, content)
        self._publish(str(written[LEADERBOARD]))

    def _publish(self, board: str) -> None:
        """The shared branch shows the leaderboard of the last promotion and of the end: no commit every minute."""
        state = self.mind.state
        news = (len(state.promotions), state.finished is not None)
        if news in ((0, False), self._published):
            return
        try:
            self.forge.publish({LEADERBOARD: board}, f"Leaderboard of {self.study.name}")
            self._published = news
        except ForgeError as error:
            self._trouble("forge", str(error))


def _write(path: Path, content: str | bytes) -> None:
    aside = path.with_name(f".{path.name}.new")
    aside.write_bytes(content.encode() if isinstance(content, str) else content)
    aside.replace(path)
