"""The agent of a Node: hosts its Researcher and runs its Trials, one at a time.

Two threads beside the one that answers the coordinator: the *worker* runs trials (blocks that the coordinator
leased before own exploration), the *thinker* asks the proposer while the worker is busy. What is finished goes to
the spool first and is offered in every Report until it is acknowledged, so the coordinator may come and go.

Knows nothing of Ray: whoever hosts it calls `exchange` with bytes.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from node import proposers
from node.hardware import node_uid, platform_of
from node.home import node_home, node_name, study_home, trusts_code
from node.kept import Asked, Kept
from node.receive import Inbox, data_for
from node.researcher import MAX_ATTEMPTS, Memory, Researcher
from node.sandbox.choice import tried_sandbox
from node.thinker import Thinker
from node.trial import TrialRun, Workshop, run_trial, score_on_holdout
from node.watch import Phase
from swarm.codec import DecodeError, pack, unpack
from swarm.errors import StaleEpoch
from swarm.ledger import Spool
from swarm.records import (
    Block,
    Fact,
    Failure,
    NodeInfo,
    Orders,
    Platform,
    Report,
    Running,
    Setup,
    Spent,
    TrialDisturbed,
    TrialSpec,
    Trouble,
    Usage,
    digest,
    researcher_branch,
)
from swarm.scrub import scrub
from swarm.task import load_task, read_frozen, unbundle

log = logging.getLogger(__name__)

FACTS_PER_REPORT, BYTES_PER_REPORT = 40, 64_000  # keeps a report below 100 kB, which Ray sends inline
IDLE_WAIT_S = 0.2
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # after the machinery failed twice in a row
THOUGHT_PATIENCE_S = 30.0  # how long draining waits for an answer that is paid for, so that its cost is told
TROUBLE_EVERY_S = 600.0  # the same words of the same place
UNKNOWN = Platform(device="", software="", data="", budget="")


class Lease(NamedTuple):
    """A block in hand: its trials' fact keys are held until all are acknowledged."""

    block: Block
    keys: frozenset[str]
    begun: bool = False
    done: bool = False


class Agent:
    """One Node's side of the study. Thread-safe; built once per actor."""

    def __init__(self, setup: bytes) -> None:
        self._setup = unpack(setup, Setup)
        self._home = study_home(self._setup)
        self.work = threading.Condition(threading.RLock())
        self._stop_trial = threading.Event()
        self._spool = Spool(self._home / "spool.sqlite")
        self._kept = Kept(self._home / "kept")
        self._leases: dict[str, Lease] = {}
        self._node = NodeInfo(node_uid(node_home()), node_name(), socket.gethostname(), UNKNOWN, 0, "")
        self._epoch = 0
        self._heard_at = time.monotonic()
        self._running: Running | None = None
        self._idle = "preparing"
        self._ready = self._draining = False
        self._at_work = False  # from the choice of what to run until its facts are on disk
        self._disturbed, self._rest_until = 0, 0.0  # trials in a row that the machinery failed
        self._last_log = ""
        self._told: dict[tuple[str, str], float] = {}
        self._inbox = Inbox(self.work)
        self._unsaved: tuple[Fact, ...] = ()  # while the disk is full
        self.researcher = self._restore()
        threading.Thread(target=self._worker, name="worker", daemon=True).start()
        self._draining_from = 0.0
        self._thinker = Thinker(self)
        threading.Thread(target=self._thinker.run, name="thinker", daemon=True).start()

    # --- the coordinator's call ---

    def exchange(self, orders: bytes) -> bytes:
        """Take Orders, answer with a Report.

        Raises:
            StaleEpoch: a newer coordinator has given orders already.
            DecodeError: not Orders.
        """
        with self.work:
            self._obey(unpack(orders, Orders))
            self.work.notify_all()
            return pack(self._report())

    def _obey(self, orders: Orders) -> None:
        if orders.epoch < self._epoch:
            raise StaleEpoch(orders.epoch, self._epoch)
        self._epoch, self._heard_at = orders.epoch, time.monotonic()
        self._forget(orders.acks)
        self._forget_finished_leases()
        if orders.drain and not self._draining:
            self._draining_from = time.monotonic()
        self._draining = orders.drain
        if orders.drain:
            self._stop_trial.set()
        self._kept.obey(orders.holdout, orders.release)
        self._inbox.deliver(orders.piece)
        for block in orders.blocks:
            keys = frozenset(f"trial:{spec.id}" for spec in block.trials)
            self._leases.setdefault(block.id, Lease(block, keys))
        facts = self.researcher.settle(orders.admissions, time.time())
        if orders.brief is not None:
            facts += self.researcher.hear(orders.brief, time.time())
        if orders.brief is not None or orders.admissions:
            self._put(facts)

    def _report(self) -> Report:
        running = self._running
        if running is not None:
            running = replace(running, elapsed_s=max(0.0, time.time() - running.started_at))
        if self._unsaved:
            self._put([])
        facts = tuple(self._spool.offered(FACTS_PER_REPORT, BYTES_PER_REPORT))
        brief = self.researcher.brief
        return Report(
            node=self._node,
            brief=brief.version if brief else "",
            facts=facts,
            proposals=self.researcher.memory.waiting,
            holding=tuple(self._leases),
            running=running,
            idle="" if running else self._inbox.words or self._idle,
            kept=self._kept.trials(),
            holdout=self._kept.answers(),
            ready=self._ready,
            wants=self._inbox.wants,
            drained=self._draining and not (self._at_work or self._unsaved or facts or self._awaits_thought()),
        )

    def _awaits_thought(self) -> bool:
        return self._thinker.asking and time.monotonic() - self._draining_from < THOUGHT_PATIENCE_S

    def _forget_finished_leases(self) -> None:
        """A lease is held until every fact of its trials is committed, so it can never look lost while it is not."""
        for block, lease in list(self._leases.items()):
            if lease.done and not self._unsaved and not any(self._spool.pending(key) for key in lease.keys):
                del self._leases[block]

    # --- the worker thread ---

    def _worker(self) -> None:
        pause = FIRST_PAUSE_S
        while True:
            try:
                workshop = self._prepare()
                self._run_forever(workshop)
            except Exception as error:  # noqa: BLE001  # the worker's entry: recorded as a fact, then tried again
                log.exception("the worker failed")
                self.trouble("worker", f"{type(error).__name__}: {error}")
                self._abandon(f"the worker failed: {type(error).__name__}")
                with self.work:
                    self.work.wait_for(lambda: False, pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)

    def _abandon(self, message: str) -> None:
        """What was being run when the worker failed: a block is given back, an own trial is run again."""
        with self.work:
            running, self._running, self._at_work = self._running, None, False
            for key, lease in self._leases.items():
                if lease.begun and not lease.done:
                    self._leases[key] = lease._replace(done=True)
                    lost = Failure("machinery", "lost", message)
                    self._put([TrialDisturbed(running.trial if running else key, self._node.uid, 1, lost, time.time())])

    def _prepare(self) -> Workshop:
        folder = self._home / "task"
        unbundle(self._setup.task_files, folder)
        task = load_task(folder)
        needed = self._setup.level_needed
        sandbox, found = tried_sandbox(self._setup.sandbox, 0 if trusts_code() else needed)
        if found.lacks:
            self.trouble("sandbox", found.lacks)
        say = partial(self.trouble, "data")
        data = data_for(task, folder, self._setup, node_home() / "data", self._inbox.fetch, say)
        platform = platform_of(task, data.fingerprint if data else "", self._setup.threads)
        with self.work:
            boxed = replace(self._node, sandbox_level=found.level, sandbox=sandbox.name)
            self._node = replace(boxed, platform=platform, trusting=found.level < needed)
            self._put(self.researcher.interrupted(time.time()))
            self._ready, self._idle = True, "waiting for the first brief"
        scratch, threads = self._home / "scratch", self._setup.threads
        return Workshop(task, folder, data, sandbox, scratch, threads)

    def _run_forever(self, workshop: Workshop) -> None:
        while True:
            with self.work:
                asked = None if self._draining else self._kept.next()
                lease = None if asked else self._next_lease()
                spec = None if asked or lease or self._draining else self._next_exploration()
                self._at_work = not (asked is None and lease is None and spec is None)
                if not self._at_work:
                    self.work.wait(IDLE_WAIT_S)
            if asked is not None:
                self._score_on_holdout(workshop, asked)
            elif lease is not None:
                self._run_block(workshop, lease)
            elif spec is not None:
                self._explore(workshop, spec)

    def _next_lease(self) -> Lease | None:
        if self._draining:
            return None
        return next((lease for lease in self._leases.values() if not lease.done), None)

    def _next_exploration(self) -> TrialSpec | None:
        memory = self.researcher.memory
        if memory.waiting and time.monotonic() - self._heard_at > self._setup.admission_grace_s:
            self._put(self.researcher.admit_alone(time.time()))
        if time.monotonic() < self._rest_until:
            return None
        spec = self.researcher.next_trial()
        if spec is None:
            self._idle = self._why_idle()
        else:
            self._put([])  # the memory that this trial was issued is on disk before it starts
        return spec

    def _why_idle(self) -> str:
        brief, memory = self.researcher.brief, self.researcher.memory
        if brief is None:
            return "waiting for the first brief"
        if not brief.explore:
            return "exploration is over"
        if memory.champion_failures >= MAX_ATTEMPTS:
            return "the champion fails on this node"
        return "waiting for admission" if memory.waiting else "waiting for an idea"

    def _run_block(self, workshop: Workshop, lease: Lease) -> None:
        """All trials of a block without a break; a disturbed one ends the block, the coordinator draws a new one."""
        with self.work:
            lease = self._leases[lease.block.id] = lease._replace(begun=True)
        for spec in lease.block.trials:
            keeps = spec.purpose in ("calibrate", "confirm") and workshop.task.score == "answers"
            run = self._run(spec, run_trial, workshop=workshop, keep=self._kept.place(spec) if keeps else None)
            self._last_log = run.log
            with self.work:
                if keeps:
                    self._kept.settle(spec)
                self._put([run.fact(spec, self._node, lease.block)])
                if self._was_disturbed(run):
                    break
        with self.work:
            self._leases[lease.block.id] = lease._replace(done=True)
            self._forget_finished_leases()
            self._at_work = False

    def _score_on_holdout(self, workshop: Workshop, asked: Asked) -> None:
        """Its answer goes into reports, never into a fact, a log or the spool."""
        score = partial(score_on_holdout, artifact=asked.artifact, identity=asked.identity)
        run = self._run(asked.spec, score, workshop=workshop)
        with self.work:
            self._at_work = False
            if not (isinstance(run.outcome, Failure) and run.outcome.reason == "stopped"):
                self._kept.answer(asked.spec.id, run.outcome)

    def _explore(self, workshop: Workshop, spec: TrialSpec) -> None:
        run = self._run(spec, run_trial, workshop=workshop)
        self._last_log = run.log
        with self.work:
            self._at_work = False
            disturbed = self._was_disturbed(run)
            if self._draining and isinstance(run.outcome, Failure) and run.outcome.reason == "stopped":
                return  # we ended it ourselves; the memory still says it was issued, so a resumed study runs it again
            facts = self.researcher.finished(spec, run, time.time())
            self._put(facts if disturbed else [run.fact(spec, self._node, None), *facts])

    def _was_disturbed(self, run: TrialRun) -> bool:
        """Whether the machinery failed; from the second time in a row the node rests before it tries its own again."""
        outcome = run.outcome
        if not isinstance(outcome, Failure) or outcome.blame != "machinery":
            self._disturbed = 0
            return False
        self._disturbed += outcome.reason != "stopped"
        if self._disturbed > 1:
            pause = min(FIRST_PAUSE_S * 2 ** (self._disturbed - 2), LONGEST_PAUSE_S)
            self._rest_until, self._idle = time.monotonic() + pause, f"resting {pause:.0f} s: {outcome.message}"
        return True

    def _run(self, spec: TrialSpec, make: Callable[..., TrialRun], **options: object) -> TrialRun:
        self._stop_trial.clear()
        if self._draining:
            self._stop_trial.set()
        self._running = Running(spec.id, spec.experiment, spec.purpose, "train", time.time(), 0.0, 0.0)
        log.info("trial=%s purpose=%s seed=%s started", spec.id[:8], spec.purpose, spec.seed)
        run = make(spec, stop=self._stop_trial, on_phase=self._phase, **options)
        self._running = None
        return run

    def _phase(self, phase: Phase, cpu_s: float) -> None:
        running = self._running
        if running is not None:
            self._running = replace(running, phase=phase, cpu_s=cpu_s)

    # --- what the thinker needs ---

    def load_proposer(self) -> proposers.Proposer:
        memory = self.researcher.memory
        seed = int(digest("proposer", self._setup.seed, self._node.uid, memory.sequence)[:8], 16)
        return proposers.load(self._setup.proposer, seed, self._setup.proposer_options)

    def ask(self) -> proposers.Ask | None:
        memory, brief = self.researcher.memory, self.researcher.brief
        if brief is None or self._draining or not self.researcher.wants_idea():
            return None
        task = load_task(self._home / "task")
        frozen = read_frozen(self._home / "task", task).items()
        readable = {path: data.decode(errors="replace") for path, data in frozen if path.endswith(".py")}
        return proposers.Ask(brief, memory.tip, memory.tip_files, readable, task.metric, task.direction, self._last_log)

    def remember(self) -> None:
        self._put([])

    def spend(self, usage: Usage) -> None:
        self._put([Spent(self._node.uid, time.time_ns(), usage, time.time())])

    def trouble(self, where: str, message: str) -> None:
        """Record what failed and was survived; the same words of the same place are not repeated for a while."""
        words = scrub(message)[:2000].encode(errors="replace").decode()
        now = time.monotonic()
        with self.work:
            self._idle = words
            if now - self._told.get((where, words), -TROUBLE_EVERY_S) < TROUBLE_EVERY_S:
                return
            self._told[(where, words)] = now
            self._put([Trouble(f"{where} on {self._node.name}", words, time.time())])

    # --- memory ---

    def _restore(self) -> Researcher:
        branch = researcher_branch(self._setup.study, self._node.name)
        memory = self._remembered() or Memory(
            # Ids of trials are made from this number: a memory that was lost must not give them out again.
            node=self._node.uid,
            branch=branch,
            sequence=int(time.time()),
        )
        return Researcher(
            memory,
            study_seed=self._setup.seed,
            direction=self._setup.direction,
            wall_s=self._setup.wall_limit_s,
            memory_mb=self._setup.memory_mb,
            disk_mb=self._setup.disk_mb,
        )

    def _remembered(self) -> Memory | None:
        stored = self._spool.memory()
        try:
            return unpack(stored, Memory) if stored else None
        except DecodeError:
            log.exception("the researcher's memory is of another version: it starts anew on the champion")
            return None

    def _put(self, facts: Iterable[Fact]) -> None:
        """Facts and memory to disk, together. On a full disk they wait here, and are written with what comes next."""
        with self.work:
            waiting = (*self._unsaved, *facts)
            try:
                self._spool.put(waiting, pack(self.researcher.memory))
            except OSError as error:
                self._unsaved, self._idle = waiting, f"results cannot be written, free some space: {error}"
                log.error("%s", self._idle)
            else:
                self._unsaved = ()

    def _forget(self, keys: Iterable[str]) -> None:
        """Drop what is committed. What a full disk keeps is offered and acknowledged again."""
        try:
            self._spool.forget(keys)
        except OSError as error:
            log.error("the spool cannot be written: %s", error)
