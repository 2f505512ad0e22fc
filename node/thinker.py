"""Asks the proposer for the next idea while the worker is busy, in a thread of its own.

Owns patience: a proposer that has no idea, fails, or repeats itself is asked again later, with growing pauses. What it
returns is foreign: it is parsed here before the researcher sees it. It knows nothing of trials or the coordinator.
"""

import logging
import threading
import traceback
from typing import Protocol

from node.proposers import Ask, Proposer
from node.researcher import Researcher
from swarm.codec import pack, unpack
from swarm.errors import ProposalError, SwarmError
from swarm.lint import lint
from swarm.records import Files, Proposal, Usage
from swarm.scrub import HOLDS_ONE, credentials, scrub, scrubbed

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # after a proposer had no idea
IDLE_WAIT_S = 0.2
UNHEEDED = 5  # proposals in a row that were known or changed nothing; then the proposer gets a pause


class Desk(Protocol):
    """What a thinker needs of the agent that it thinks for."""

    work: threading.Condition  # guards the researcher; notified when there may be something to do
    researcher: Researcher

    def load_proposer(self) -> Proposer:
        """Build the proposer that the study names."""

    def ask(self) -> Ask | None:
        """What the proposer is to be asked now; None when nothing is wanted."""

    def remember(self) -> None:
        """Put the researcher's memory on disk."""

    def spend(self, usage: Usage) -> None:
        """Record what asking has cost."""

    def trouble(self, where: str, message: str) -> None:
        """Record what failed and was survived."""


class Thinker:
    """One proposer and the loop around it."""

    def __init__(self, desk: Desk) -> None:
        """Nothing is loaded yet: loading may fail, and is tried again like everything else."""
        self._desk = desk
        self._spent = Usage()
        self._unheeded = 0
        self.asking = False
        """Whether an answer is awaited, or not yet recorded. Guarded by the desk's `work`."""

    def run(self) -> None:
        """Think for ever."""
        pause = FIRST_PAUSE_S
        proposer: Proposer | None = None
        while True:
            try:
                proposer = proposer or self._desk.load_proposer()
                if self._think(proposer):
                    pause = FIRST_PAUSE_S
                continue
            except (ProposalError, SwarmError) as error:
                self._desk.trouble("proposer", str(error))
            except Exception as error:  # noqa: BLE001  # a proposer is foreign code: recorded, asked again later
                log.error("the proposer failed: %s", scrub(traceback.format_exc()))
                self._desk.trouble("proposer", f"{type(error).__name__}: {error}")
            with self._desk.work:
                self.asking = False
                self._desk.work.wait_for(lambda: False, pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _think(self, proposer: Proposer) -> bool:
        """Tell the proposer what it has not heard, and ask it when an idea is wanted. True when it gave one."""
        desk = self._desk
        with desk.work:
            heard = desk.researcher.take_heard()
            ask = desk.ask()
            self.asking = ask is not None
            if ask is None and not heard:
                desk.work.wait(IDLE_WAIT_S)
                return False
        for result in heard:
            proposer.tell(result.idea, result.gain)
        if ask is None:
            return False
        try:
            proposal = proposer.propose(ask)
        finally:
            self._account(proposer.usage())
        self._offer(proposer, unpack(pack(proposal, Proposal), Proposal), ask.tip)
        return True

    def _offer(self, proposer: Proposer, proposal: Proposal, parent: Files) -> None:
        proposal = scrubbed(proposal)
        if credentials(proposal.files.values()) - credentials(parent.values()):
            raise ProposalError(f"a proposal was not taken: {HOLDS_ONE}")
        with self._desk.work:
            heeded = self._desk.researcher.offer(proposal)
            self._desk.remember()
            self._desk.work.notify_all()
        self._unheeded = 0 if heeded else self._unheeded + 1
        if not heeded:
            proposer.tell(proposal.idea, None)
        for warning in lint(proposal.files, parent) if heeded else ():
            log.warning("idea=%s is run, though odd: %s", proposal.idea[:8], warning)
        if self._unheeded >= UNHEEDED:
            self._unheeded = 0
            raise ProposalError(f"{UNHEEDED} proposals in a row were known already or changed nothing")

    def _account(self, total: Usage) -> None:
        before = self._spent
        new = Usage(
            total.input_tokens - before.input_tokens,
            total.output_tokens - before.output_tokens,
            total.dollars - before.dollars,
        )
        if new != Usage():
            self._desk.spend(unpack(pack(new), Usage))
            self._spent = total
