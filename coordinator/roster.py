"""Who there is to talk to: every node of the cluster gets an agent, and is asked once a round.

Owns which cluster member is which node, what of its last report is to be acknowledged, and patience with agents that
do not start, fall silent, or say that they are somebody else. It believes nothing of what they say and commits nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from coordinator.belief import NAME_CHARS
from coordinator.mind import Mind
from swarm.cluster import Cluster, Silence
from swarm.codec import DecodeError, pack, unpack
from swarm.errors import ClusterError
from swarm.records import Piece, PieceWanted, Report

REPORT_BYTES = 16_000_000  # a node cuts its facts to 64 kB; its proposals carry whole files
MEMBERS_EVERY_S = 2.0
FIRST_WORD_S = 10.0  # an agent speaks 1 s after it was appointed, 5 s on a loaded machine; doubled at every attempt
PIECES_PER_ROUND = 4  # of prepared data, 1 MB each: reading and packing them takes about 0.1 s
LONGEST_PAUSE_S = 60.0  # between two attempts to start an agent that never speaks


class Stillborn(NamedTuple):
    """How often in a row an agent died before it said anything, and when to try again."""

    times: int
    again_at: float


NEVER_FAILED = Stillborn(0, 0.0)


@dataclass
class Roster:
    """The agents of one study."""

    cluster: Cluster
    mind: Mind
    setup: Callable[[], bytes]  # what an agent is born with
    trouble: Callable[[str, str], None]  # where, message
    heal: Callable[[], None]
    clock: Callable[[], float]
    lost_after_s: float
    piece: Callable[[PieceWanted], Piece]  # of the study's prepared data
    _members: dict[str, str] = field(init=False, default_factory=dict)  # Ray node id -> node uid, "" before it spoke
    _names: dict[str, str] = field(init=False, default_factory=dict)  # Ray node id -> name
    _heard_at: dict[str, float] = field(init=False, default_factory=dict)  # by Ray node id; at first: appointed at
    _stillborn: dict[str, Stillborn] = field(init=False, default_factory=dict)  # by Ray node id
    _acks: dict[str, tuple[str, ...]] = field(init=False, default_factory=dict)
    _wants: dict[str, PieceWanted] = field(init=False, default_factory=dict)  # who asked first is served first
    _met_at: float = field(init=False, default=0.0)

    def meet(self) -> None:
        """Every node that joined the cluster, by whatever means, gets an agent.

        Raises:
            ClusterError: the head does not answer.
        """
        now = self.clock()
        if now - self._met_at < MEMBERS_EVERY_S:
            return
        self.heal()
        self._met_at = now
        self._names = {member.id: member.name for member in self.cluster.nodes()}
        for member in [m for m in self._members if m not in self._names]:
            self._dismissed(member)
        for member in [m for m in self._stillborn if m not in self._names]:
            del self._stillborn[member]
        for member in [m for m in self._names if m not in self._members]:
            if now >= self._stillborn.get(member, NEVER_FAILED).again_at:
                self._appoint(member)

    def meet_soon(self) -> None:
        """Heal and look around in the next round, however short ago that was."""
        self._met_at = 0.0

    def exchange(self, timeout_s: float, *, drain: bool = False) -> list[Report]:
        """Tell every agent what it is to do; what they answer counts as acknowledged by the next call.

        Raises:
            ClusterError: the head does not answer.
        """
        now = self.clock()
        orders = {}
        served = list(self._wants)[:PIECES_PER_ROUND]
        for member, uid in self._members.items():
            order = self.mind.orders(uid, self._acks.get(member, ()), now)
            piece = self.piece(self._wants[member]) if member in served and not drain else None
            orders[member] = pack(replace(order, drain=drain or order.drain, piece=piece))
        replies = self.cluster.exchange(orders, timeout_s) if orders else {}
        reports: dict[str, Report] = {}
        for member, reply in replies.items():
            report = self._parse(member, reply)
            if report is not None and not self._is_clone(report, reports):
                reports[report.node.uid] = report
                self._members[member] = report.node.uid
                self._acks[member] = tuple(fact.key for fact in report.facts)
                self._note_wants(member, report.wants)
        return list(reports.values())

    def _note_wants(self, member: str, wants: PieceWanted | None) -> None:
        if wants is None:
            self._wants.pop(member, None)
        else:
            self._wants[member] = wants

    def relieve(self) -> None:
        """End agents that are silent for too long, so that they are appointed anew: Ray does not always notice.

        Raises:
            ClusterError: the head does not answer.
        """
        now = self.clock()
        for member, uid in list(self._members.items()):
            first_word_s = min(FIRST_WORD_S * 2 ** self._stillborn.get(member, NEVER_FAILED).times, LONGEST_PAUSE_S)
            patience_s = self.lost_after_s if uid else first_word_s
            if now - self._heard_at[member] > patience_s:
                self.cluster.dismiss(member)
                self._died(member, f"silent for {patience_s:g} s")

    def all_drained(self) -> bool:
        """Whether every agent that lives and has spoken has nothing left to tell."""
        spoke = [self.mind.presence[uid] for uid in self._members.values() if uid in self.mind.presence]
        return all(node.report.drained for node in spoke if node.alive)

    # --- coming and going ---

    def _appoint(self, member: str) -> None:
        """One node that cannot be appointed costs the others nothing."""
        try:
            self.cluster.appoint(member, self.setup())
            self._members[member] = ""
            self._heard_at[member] = self.clock()
        except ClusterError as error:
            self._failed_to_start(member, str(error))

    def _failed_to_start(self, member: str, reason: str) -> None:
        """Say so, and wait longer before every further attempt: most often a person has to mend that machine."""
        times = self._stillborn.get(member, NEVER_FAILED).times + 1
        pause = min(LONGEST_PAUSE_S, MEMBERS_EVERY_S * 2 ** (times - 1))
        self._stillborn[member] = Stillborn(times, self.clock() + pause)
        self.trouble(self._where(member), f"it does not start: {reason}")

    def _died(self, member: str, reason: str) -> None:
        if self._members[member]:
            self.trouble(self._where(member), reason)
        else:
            self._failed_to_start(member, reason)
        self._dismissed(member)

    def _dismissed(self, member: str) -> None:
        uid = self._members.pop(member)
        self._heard_at.pop(member, None)
        self._acks.pop(member, None)
        self._wants.pop(member, None)
        if uid not in self._members.values():  # else it is back already, under a new id
            self.mind.gone(uid)

    # --- reading ---

    def _parse(self, member: str, reply: bytes | Silence) -> Report | None:
        if isinstance(reply, Silence):
            if reply.dead:
                self._died(member, reply.reason)
            return None
        try:
            report = _read_report(reply)
        except DecodeError as error:
            self.trouble(self._where(member), str(error))
            return None
        self._stillborn.pop(member, None)
        self._heard_at[member] = self.clock()
        return report

    def _is_clone(self, report: Report, reports: Mapping[str, Report]) -> bool:
        """Two machines that say they are the same node: one of their home folders is a copy of the other."""
        if report.node.uid not in reports:
            return False
        twin = reports[report.node.uid].node
        self.trouble(
            f"node {report.node.name}",
            f"has the identity of {twin.name} on {twin.host}: remove the copied node folder on {report.node.host}",
        )
        return True

    def _where(self, member: str) -> str:
        return f"agent on {self._names.get(member, member)}"


def _read_report(reply: bytes) -> Report:
    """Raises DecodeError for what is no report that can be kept."""
    if len(reply) > REPORT_BYTES:
        raise DecodeError(f"its report has {len(reply)} bytes, at most {REPORT_BYTES} are read")
    report = unpack(reply, Report)
    if max(map(len, (report.node.uid, report.node.name, report.node.host))) > NAME_CHARS:
        raise DecodeError(f"its name is longer than {NAME_CHARS} characters: set SWARM_NODE_NAME to a shorter one")
    return report
