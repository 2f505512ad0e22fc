"""The loop around the mind: polls the nodes, commits their facts, carries out what the mind decides.

Order matters: facts are committed before they are acknowledged, and acknowledged before a node may forget them.
Whatever is killed here, the next coordinator rebuilds the mind from the ledger and goes on.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from coordinator.belief import Border
from coordinator.dossiers import checks_at_scale, demotion_dossier, promotion_dossier
from coordinator.forges import Forge, Opened, Request
from coordinator.handout import piece_of
from coordinator.lineage import Lineage
from coordinator.mind import Action, Demote, Mind, Promote
from coordinator.press import LEADERBOARD, pages
from coordinator.rechecks import undone_by
from coordinator.roster import Roster
from swarm.cluster import Cluster
from swarm.codec import pack
from swarm.config import Config
from swarm.errors import ClusterError, ForgeError, PrerequisiteError, RequestClosed, TreeMismatch
from swarm.history import busy_share, history
from swarm.ledger import Ledger
from swarm.records import (
    CoordinatorStarted,
    Demotion,
    DemotionVetoed,
    Fact,
    Promotion,
    PromotionVetoed,
    Screened,
    Setup,
    StillAtWork,
    StudyFinished,
    StudyOpened,
    Trouble,
    candidate_id,
)
from swarm.repo import Repo
from swarm.scrub import scrub
from swarm.task import TASK_FILE, Task, bundle, read_editable
from swarm.trust import level_needed

log = logging.getLogger(__name__)

PROGRAM = "program.md"
CALL_TIMEOUT_S = 5.0  # an agent answers in milliseconds; a silent one holds the others up for this long
PAGES_EVERY_S = 60.0  # drawing the picture takes up to half a second
PAGES_SHARE = 0.02  # of the time, at most, however long the history
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
    fingerprint: str = ""  # of that data
    task_file: str = TASK_FILE  # which Task of that folder

    @property
    def ledger_path(self) -> Path:
        return self.folder / "ledger.sqlite"

    @property
    def repo_path(self) -> Path:
        return self.folder / "repo.git"


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
    pages_every_s: float = PAGES_EVERY_S
    mind: Mind = field(init=False)
    lineage: Lineage = field(init=False)
    roster: Roster = field(init=False)
    _pages_at: float = field(init=False, default=0.0)  # when the next ones are due
    _facts: list[Fact] = field(init=False, default_factory=list)  # the ledger, as read; pages are made from it
    _told_at: dict[tuple[str, str], float] = field(init=False, default_factory=dict)
    _published: tuple[int, int, int, bool] = field(init=False, default=(0, 0, 1, False))
    _forge_is_ready: bool = field(init=False, default=False)
    _stop: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        config = self.study.config.model_copy(update={"study": self.study.name})
        task = self.study.task
        self.mind = Mind(config, task.cpu_limit, task.scale, paced=task.paced)
        self.lineage = Lineage(self.study.repo_path, self.study.name)
        self.roster = Roster(
            cluster=self.cluster,
            mind=self.mind,
            setup=self._setup,
            trouble=self._trouble,
            heal=self.heal,
            clock=self.clock,
            lost_after_s=config.nodes.lost_after_s,
            piece=partial(piece_of, self.study.data),
        )

    @property
    def repo(self) -> Repo:
        """The study's own repository."""
        return self.lineage.repo

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
                self._exchange(drain=True, timeout_s=left)
                if self.roster.all_drained():
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
        self._pages_at = now + self.pages_every_s
        self._commit([CoordinatorStarted(self.mind.state.epoch + 1, now)])
        try:
            self._prepare_forge()
        except ForgeError as error:  # the study can begin without it
            self._trouble("forge", str(error))

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
            self.roster.meet()
            self._exchange()
            self.roster.relieve()
        except ClusterError as error:
            self._trouble("cluster", str(error))
            self.roster.meet_soon()
        self.mind.program = self._program()
        while self._act(self.mind.decide(self.clock())):
            pass
        if self.clock() - self.mind.state.last_at > AT_WORK_EVERY_S:
            self._commit([StillAtWork(self.mind.state.epoch, self.clock())])
        if self.clock() > self._pages_at:
            self._write_pages()

    def _act(self, actions: Iterable[Action]) -> bool:
        """Commit decided facts, carry out promotions and demotions. True when there may be more to decide."""
        facts: list[Fact] = []
        for action in actions:
            if isinstance(action, Promote):
                facts += self._promote(action)
            elif isinstance(action, Demote):
                facts += self._demote(action)
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
            self.lineage.open(fact, bundle(self.study.task_folder, self.study.task_file))
        elif isinstance(fact, Screened) and fact.kept:
            self.lineage.advance(fact, self.mind.state.experiments[fact.experiment].admitted)
        elif isinstance(fact, Promotion):
            self.lineage.promoted(fact)
        elif isinstance(fact, Demotion):
            self.lineage.demoted(fact)

    def _trouble(self, where: str, message: str) -> None:
        """Record what failed and was survived; the same words of the same place once a minute are enough."""
        now, message = self.clock(), scrub(message)
        if now - self._told_at.get((where, message), -TROUBLE_EVERY_S) < TROUBLE_EVERY_S:
            return
        self._told_at[(where, message)] = now
        log.warning("where=%s %s", where, message)
        self._commit([Trouble(where, message[:2000], now)])

    # --- nodes ---

    def _setup(self) -> bytes:
        config, task, opened = self.study.config, self.study.task, self.mind.state.opened
        assert opened is not None  # _open() comes first
        files = bundle(self.study.task_folder, self.study.task_file)
        if PROGRAM not in {*task.frozen, *task.editable}:
            files.pop(PROGRAM, None)  # it travels in the Brief: an edit must not make other agents of these
        return pack(
            Setup(
                study=self.study.name,
                seed=config.seed,
                direction=task.direction,
                opened_at=opened.at,
                task_files=files,
                proposer=config.proposer.use,
                proposer_options=config.proposer.options,
                sandbox=config.nodes.sandbox,
                level_needed=level_needed(config),
                data=self.study.data,
                fingerprint=self.study.fingerprint,
                threads=config.nodes.threads,
                wall_limit_s=config.nodes.trial_wall_s,
                memory_mb=config.nodes.memory_mb,
                disk_mb=config.nodes.disk_mb,
            )
        )

    def _exchange(self, *, drain: bool = False, timeout_s: float = CALL_TIMEOUT_S) -> None:
        """One round of talk. What is not believed is acknowledged, too: the node would only say it again."""
        reports = self.roster.exchange(timeout_s, drain=drain)
        printed = self.study.task.score == "printed"
        border = Border(self.mind.state, self.study.config.nodes.trial_wall_s, printed)
        facts: list[Fact] = []
        for report in reports:
            heard = border.hear(report)
            facts += heard.facts
            for words in heard.refused:
                self._trouble(f"report of {report.node.name}", words)
        self._commit(facts)
        for report in reports:
            self.mind.observe(report, self.clock())

    # --- code ---

    def _program(self) -> str:
        path = self.study.task_folder / PROGRAM
        if not path.exists():
            path = self.study.task_folder.parent / PROGRAM
        return path.read_text(errors="replace") if path.exists() else ""

    # --- promotion ---

    def _prepare_forge(self) -> None:
        if not self._forge_is_ready:
            self.forge.prepare(self.study.repo_path, self.lineage.baseline)
            self._forge_is_ready = True

    def _promote(self, action: Promote) -> list[Fact]:
        """Land a claim; every step may be repeated after a kill, names and commits are deterministic."""
        claim = self.mind.state.claims[action.claim]
        request = self.lineage.request(promotion_dossier(self.mind.state, claim, action.number, self.study.task.frozen))
        try:
            opened = self._land(request)
        except RequestClosed as veto:
            return [PromotionVetoed(action.number, claim.experiment, claim.base, str(veto), self.clock())]
        if opened is None:
            return []
        now, number, commit = self.clock(), action.number, request.commit
        claimed = claim.experiment, claim.candidate, claim.base
        return [Promotion(number, *claimed, commit, opened.name, now, claim.kind, claim.ideas)]

    def _demote(self, action: Demote) -> list[Fact]:
        """Land the tree of an earlier champion; likewise."""
        found, undone = action.found, undone_by(self.mind.state, action.found)
        request = self.lineage.demotion(demotion_dossier(self.mind.state, found, action.number))
        try:
            opened = self._land(request)
        except RequestClosed as veto:
            return [DemotionVetoed(action.number, found.number, str(veto), self.clock())]
        if opened is None:
            return []
        numbers, champion = tuple(promotion.number for promotion in undone), self.mind.state.champion
        demoted = found.number, champion, found.ancestor, numbers
        return [Demotion(action.number, *demoted, request.commit, opened.name, self.clock())]

    def _land(self, request: Request) -> Opened | None:
        """Open and merge a request; None where the forge did not.

        Raises:
            RequestClosed: a person does not want it.
        """
        try:
            self._prepare_forge()
            opened = self.forge.open(self.study.repo_path, request)
            self.forge.merge(self.study.repo_path, request)
        except RequestClosed:
            raise
        except (ForgeError, TreeMismatch, PrerequisiteError) as error:  # a person can mend it while the study goes on
            self.mind.postpone_promotion(self.clock() + FORGE_RETRY_S)
            self._trouble("forge", str(error))
            return None
        return opened

    # --- pages ---

    def _write_pages(self) -> None:
        """Everything people look at, generated from the ledger; a page that cannot be written is a recorded trouble."""
        began = self.clock()
        written = pages(history(self._facts), self.study.config.notes)
        for name, content in written.items():
            _write(self.study.folder / name, content)
        self._publish({LEADERBOARD: str(written[LEADERBOARD]), **checks_at_scale(self.mind.state, self.study.name)})
        self._pages_at = self.clock() + max(self.pages_every_s, (self.clock() - began) / PAGES_SHARE)

    def _publish(self, files: Mapping[str, str]) -> None:
        """The shared branch shows what was known at the last promotion or check, and at the end; not every minute."""
        state = self.mind.state
        news = (
            len(state.promotions),
            len(state.rechecked) + len(state.demotions),
            len(files),
            state.finished is not None,
        )
        if news in ((0, 0, 1, False), self._published):
            return
        try:
            self.forge.publish(files, f"Leaderboard of {self.study.name}")
            self._published = news
        except ForgeError as error:
            self._trouble("forge", str(error))


def _write(path: Path, content: str | bytes) -> None:
    aside = path.with_name(f".{path.name}.new")
    aside.write_bytes(content.encode() if isinstance(content, str) else content)
    aside.replace(path)
