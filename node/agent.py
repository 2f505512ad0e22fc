"""The agent of a Node: hosts its Researcher and runs its Trials, one at a time.

Two threads beside the one that answers the coordinator: the *worker* runs trials (blocks that the coordinator
leased before own exploration), the *thinker* asks the proposer while the worker is busy. What is finished goes to
the spool first and is offered in every Report until it is acknowledged, so the coordinator may come and go.

Knows nothing of Ray: whoever hosts it calls `exchange` with bytes.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from node import proposers
from node.data import prepare_data
from node.hardware import node_uid, platform_of
from node.researcher import MAX_ATTEMPTS, Memory, Researcher
from node.sandbox.choice import choose_sandbox
from node.trial import TrialRun, Workshop, run_trial
from node.watch import Phase
from swarm.codec import pack, unpack
from swarm.errors import ProposalError, StaleEpoch, SwarmError
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
    TrialFinished,
    TrialSpec,
    Trouble,
    Usage,
    digest,
)
from swarm.task import Task, load_task, read_frozen, unbundle

log = logging.getLogger(__name__)

FACTS_PER_REPORT = 40  # keeps a report below 100 kB, which Ray sends inline
IDLE_WAIT_S = 0.2
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # after a proposer had no idea
UNKNOWN = Platform(device="", software="", data="", budget="")


class Lease(NamedTuple):
    """A block in hand: its trials' fact keys are held until all are acknowledged."""

    block: Block
    keys: frozenset[str]
    done: bool


class Agent:
    """One Node's side of the study. Thread-safe; built once per actor."""

    def __init__(self, setup: bytes) -> None:
        self._setup = unpack(setup, Setup)
        self._home = node_home() / self._setup.study
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)
        self._stop_trial = threading.Event()
        self._spool = Spool(self._home / "spool.sqlite")
        self._leases: dict[str, Lease] = {}
        self._node = NodeInfo(node_uid(node_home()), node_name(), socket.gethostname(), UNKNOWN, 0, "")
        self._epoch = 0
        self._heard_at = time.monotonic()
        self._running: Running | None = None
        self._idle = "preparing"
        self._ready = self._draining = False
        self._last_log = ""
        self._spent = Usage()
        self._unsaved: tuple[Fact, ...] = ()  # while the disk is full
        self._researcher = self._restore()
        threading.Thread(target=self._worker, name="worker", daemon=True).start()
        threading.Thread(target=self._thinker, name="thinker", daemon=True).start()

    # --- the coordinator's call ---

    def exchange(self, orders: bytes) -> bytes:
        """Take Orders, answer with a Report.

        Raises:
            StaleEpoch: a newer coordinator has given orders already.
            DecodeError: not Orders.
        """
        with self._work:
            self._obey(unpack(orders, Orders))
            self._work.notify_all()
            return pack(self._report())

    def _obey(self, orders: Orders) -> None:
        if orders.epoch < self._epoch:
            raise StaleEpoch(orders.epoch, self._epoch)
        self._epoch, self._heard_at = orders.epoch, time.monotonic()
        self._forget(orders.acks)
        self._forget_finished_leases()
        self._draining = orders.drain
        if orders.drain:
            self._stop_trial.set()
        for block in orders.blocks:
            keys = frozenset(f"trial:{spec.id}" for spec in block.trials)
            self._leases.setdefault(block.id, Lease(block, keys, done=False))
        self._researcher.settle(orders.admissions)
        if orders.brief is not None:
            self._put(self._researcher.hear(orders.brief, time.time()))

    def _report(self) -> Report:
        running = self._running
        if running is not None:
            running = replace(running, elapsed_s=max(0.0, time.time() - running.started_at))
        if self._unsaved:
            self._put([])
        facts = tuple(self._spool.offered(FACTS_PER_REPORT))
        brief = self._researcher.brief
        return Report(
            node=self._node,
            brief=brief.version if brief else "",
            facts=facts,
            proposals=self._researcher.memory.waiting,
            holding=tuple(self._leases),
            running=running,
            idle="" if running else self._idle,
            ready=self._ready,
            drained=self._draining and running is None and not facts,
        )

    def _forget_finished_leases(self) -> None:
        """A lease is held until every fact of its trials is committed, so it can never look lost while it is not."""
        for block, lease in list(self._leases.items()):
            if lease.done and not any(self._spool.pending(key) for key in lease.keys):
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
                self._trouble("worker", f"{type(error).__name__}: {error}")
                with self._work:
                    self._work.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)

    def _prepare(self) -> Workshop:
        folder = self._home / "task"
        unbundle(self._setup.task_files, folder)
        task = load_task(folder)
        sandbox = choose_sandbox(self._setup.sandbox)
        data = prepare_data(task, folder, self._setup.data, node_home() / "data")
        platform = platform_of(task, data.fingerprint if data else "", self._setup.threads)
        with self._work:
            self._node = replace(self._node, platform=platform, sandbox_level=sandbox.level, sandbox=sandbox.name)
            self._put(self._researcher.interrupted(time.time()))
            self._ready, self._idle = True, "waiting for the first brief"
        return Workshop(
            task=task,
            folder=folder,
            data=data,
            sandbox=sandbox,
            scratch=self._home / "scratch",
            threads=self._setup.threads,
        )

    def _run_forever(self, workshop: Workshop) -> None:
        while True:
            with self._work:
                lease = self._next_lease()
                spec = None if lease or self._draining else self._next_exploration()
                if lease is None and spec is None:
                    self._work.wait(IDLE_WAIT_S)
                    continue
            if lease is not None:
                self._run_block(workshop, lease)
            elif spec is not None:
                self._explore(workshop, spec)

    def _next_lease(self) -> Lease | None:
        if self._draining:
            return None
        return next((lease for lease in self._leases.values() if not lease.done), None)

    def _next_exploration(self) -> TrialSpec | None:
        memory = self._researcher.memory
        if memory.waiting and time.monotonic() - self._heard_at > self._setup.admission_grace_s:
            self._put(self._researcher.admit_alone(time.time()))
        spec = self._researcher.next_trial()
        if spec is None:
            self._idle = self._why_idle()
        else:
            self._put([])  # the memory that this trial was issued is on disk before it starts
        return spec

    def _why_idle(self) -> str:
        brief, memory = self._researcher.brief, self._researcher.memory
        if brief is None:
            return "waiting for the first brief"
        if not brief.explore:
            return "exploration is over"
        if memory.champion_failures >= MAX_ATTEMPTS:
            return "the champion fails on this node"
        return "waiting for admission" if memory.waiting else "waiting for an idea"

    def _run_block(self, workshop: Workshop, lease: Lease) -> None:
        """All trials of a block without a break; a disturbed one ends the block, the coordinator draws a new one."""
        for spec in lease.block.trials:
            run = self._run(workshop, spec)
            with self._work:
                disturbed = isinstance(run.outcome, Failure) and run.outcome.blame == "machinery"
                self._put([self._fact_of(spec, run, lease.block)])
                if disturbed:
                    break
        with self._work:
            self._leases[lease.block.id] = lease._replace(done=True)
            self._forget_finished_leases()

    def _explore(self, workshop: Workshop, spec: TrialSpec) -> None:
        run = self._run(workshop, spec)
        with self._work:
            if self._draining and isinstance(run.outcome, Failure) and run.outcome.reason == "stopped":
                return  # we ended it ourselves; the memory still says it was issued, so a resumed study runs it again
            facts = self._researcher.finished(spec, run, time.time())
            disturbed = isinstance(run.outcome, Failure) and run.outcome.blame == "machinery"
            self._put(facts if disturbed else [self._fact_of(spec, run, None), *facts])

    def _run(self, workshop: Workshop, spec: TrialSpec) -> TrialRun:
        self._stop_trial.clear()
        if self._draining:
            self._stop_trial.set()
        started = time.time()
        self._running = Running(spec.id, spec.experiment, spec.purpose, "train", started, 0.0, 0.0)
        log.info("trial=%s purpose=%s seed=%s started", spec.id[:8], spec.purpose, spec.seed)
        try:
            run = run_trial(spec, workshop=workshop, stop=self._stop_trial, on_phase=self._phase)
        finally:
            self._running = None
        self._last_log = run.log
        return run

    def _phase(self, phase: Phase, cpu_s: float) -> None:
        running = self._running
        if running is not None:
            self._running = replace(running, phase=phase, cpu_s=cpu_s)

    def _fact_of(self, spec: TrialSpec, run: TrialRun, block: Block | None) -> Fact:
        if isinstance(run.outcome, Failure) and run.outcome.blame == "machinery":
            return TrialDisturbed(spec.id, self._node.uid, 1, run.outcome, time.time())
        return TrialFinished(
            trial=spec.id,
            candidate=spec.candidate,
            experiment=spec.experiment,
            seed=spec.seed,
            purpose=spec.purpose,
            node=self._node.uid,
            platform=self._node.platform.id,
            sandbox_level=self._node.sandbox_level,
            block=block.id if block else "",
            fence=block.fence if block else 0,
            started_at=run.started_at,
            ended_at=run.ended_at,
            outcome=run.outcome,
            log=run.log,
        )

    # --- the thinker thread ---

    def _thinker(self) -> None:
        pause = FIRST_PAUSE_S
        proposer: proposers.Proposer | None = None
        while True:
            try:
                proposer = proposer or self._load_proposer()
                if self._think(proposer):
                    pause = FIRST_PAUSE_S
                continue
            except (ProposalError, SwarmError) as error:
                self._trouble("proposer", str(error))
            except Exception as error:  # noqa: BLE001  # a proposer is foreign code: recorded, asked again later
                log.exception("the proposer failed")
                self._trouble("proposer", f"{type(error).__name__}: {error}")
            with self._work:
                self._work.wait_for(lambda: False, pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _load_proposer(self) -> proposers.Proposer:
        memory = self._researcher.memory
        seed = int(digest("proposer", self._setup.seed, self._node.uid, memory.sequence)[:8], 16)
        return proposers.load(self._setup.proposer, seed, self._setup.proposer_options)

    def _think(self, proposer: proposers.Proposer) -> bool:
        with self._work:
            heard = self._researcher.take_heard()
            ask = self._ask() if self._researcher.wants_idea() and not self._draining else None
            if ask is None and not heard:
                self._work.wait(IDLE_WAIT_S)
                return False
        for result in heard:
            proposer.tell(result.idea, result.gain)
        if ask is None:
            return False
        try:
            proposal = proposer.propose(ask)
        finally:
            self._account(proposer.usage())
        with self._work:
            if not self._researcher.offer(proposal):
                proposer.tell(proposal.idea, None)
            self._put([])
            self._work.notify_all()
        return True

    def _ask(self) -> proposers.Ask:
        memory, brief = self._researcher.memory, self._researcher.brief
        assert brief is not None  # wants_idea() says so
        task = self._task()
        frozen = {path: data.decode(errors="replace") for path, data in self._frozen(task).items()}
        return proposers.Ask(brief, memory.tip, memory.tip_files, frozen, task.metric, task.direction, self._last_log)

    def _task(self) -> Task:
        return load_task(self._home / "task")

    def _frozen(self, task: Task) -> dict[str, bytes]:
        return {path: text for path, text in read_frozen(self._home / "task", task).items() if path.endswith(".py")}

    def _account(self, total: Usage) -> None:
        before = self._spent
        new = Usage(
            total.input_tokens - before.input_tokens,
            total.output_tokens - before.output_tokens,
            total.dollars - before.dollars,
        )
        if new != Usage():
            self._spent = total
            now = time.time()
            self._put([Spent(self._node.uid, time.time_ns(), new, now)])

    # --- memory ---

    def _restore(self) -> Researcher:
        stored = self._spool.memory()
        branch = f"swarm/{self._setup.study}/{self._node.name}"
        memory = unpack(stored, Memory) if stored else Memory(node=self._node.uid, branch=branch)
        return Researcher(
            memory,
            study_seed=self._setup.seed,
            direction=self._setup.direction,
            wall_s=self._setup.wall_limit_s,
            memory_mb=self._setup.memory_mb,
        )

    def _put(self, facts: Iterable[Fact]) -> None:
        """Facts and memory to disk, together. On a full disk they wait here, and are written with what comes next."""
        with self._lock:
            waiting = (*self._unsaved, *facts)
            try:
                self._spool.put(waiting, pack(self._researcher.memory))
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

    def _trouble(self, where: str, message: str) -> None:
        with self._lock:
            self._idle = message
        self._put([Trouble(f"{where} on {self._node.name}", message[:2000], time.time())])


def node_home() -> Path:
    """Where this node keeps its identity, spool and data."""
    return Path(os.environ.get("SWARM_NODE_HOME") or Path.home() / ".cache" / "swarm" / "node")


def node_name() -> str:
    """How people call this node."""
    return os.environ.get("SWARM_NODE_NAME") or socket.gethostname().split(".")[0].lower()
