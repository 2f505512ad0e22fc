"""Proposers for tests of the agent, and a process that hosts one agent and can be killed.

Named in a Setup as `standins.agents:Class`.
"""

import os
import re
from collections.abc import Mapping
from multiprocessing.connection import Connection

from node.agent import Agent
from node.proposers import Ask
from swarm.errors import ProposalError
from swarm.records import Proposal, Usage
from swarm.source import idea_hash


class Counter:
    """Its next idea is always the constant STEP, one more."""

    def __init__(self, seed: int, options: Mapping[str, str]) -> None:
        self.step = seed % 1000 * 1000

    def propose(self, ask: Ask) -> Proposal:
        self.step += 1
        files = {"train.py": re.sub(r"STEP = \d+", f"STEP = {self.step}", ask.tip["train.py"])}
        return Proposal(idea_hash(files), ask.parent, f"STEP = {self.step}", "better", files, "counter")

    def tell(self, idea: str, gain: float | None) -> None: ...

    def usage(self) -> Usage:
        return Usage(input_tokens=self.step)


class Moody(Counter):
    """Fails twice, each time in another way, before it has an idea."""

    moods = 0

    def propose(self, ask: Ask) -> Proposal:
        self.moods += 1
        if self.moods == 1:
            raise ProposalError("no idea today")
        if self.moods == 2:
            raise ZeroDivisionError("a bug of its own \ud800")
        return super().propose(ask)


class Babbler(Counter):
    """What it returns is no Proposal, and what it says it costs is no number."""

    def propose(self, ask: Ask) -> Proposal:
        honest = super().propose(ask)
        return Proposal(honest.idea, honest.parent, "\ud800", "", {"train.py": b"\0"}, "")  # type: ignore[dict-item]


class Parrot(Counter):
    """Has one idea for ever."""

    def propose(self, ask: Ask) -> Proposal:
        return Proposal("known", ask.parent, "nothing", "", ask.tip, "parrot")


def host(connection: Connection, setup: bytes, environment: Mapping[str, str]) -> None:
    """Answer orders for ever: one agent in a process of its own."""
    os.environ.update(environment)
    agent = Agent(setup)
    while True:
        connection.send_bytes(agent.exchange(connection.recv_bytes()))
