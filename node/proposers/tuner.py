"""The proposer that needs no key: searches the constants of the script itself with Optuna.

It owns what is known of every constant's values and the order in which they are tried. Each proposal changes one
constant, now and then two. Everything is in memory: after a restart it learns from the Brief what was tried by whom,
because it can read its own hypotheses. It knows nothing of models, trials or what a constant means.
"""

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import Trial, TrialState, create_trial

from node.proposers import Ask
from swarm.constants import LARGEST, Constant, Tier, Value, constants, rewrite, rounded
from swarm.errors import ConfigError, ProposalError
from swarm.records import Brief, Proposal, Usage, digest
from swarm.source import idea_hash

PAIRS = 0.15  # share of number proposals that change two at once; more would blur what caused a gain
FORGET_AFTER = 2  # moves of the branch tip after which a value may be tried again
RETRY_EVERY = 4  # once every switch had its turn, each 4th proposal tries an old one on the new tip
FIRST_STEP = 0.2  # of a number's range: the first two tries go this far down and up, then TPE takes over
SMALLEST_STEP = 0.05  # of a number's range; less can not be told from noise
UNDECLARED = 0.25  # weight of a number whose author gave no range, beside others that have one
SAMPLES = 60  # drawn per proposal at most; a small range may have nothing new left
COMMENT_LIMIT = 160  # characters of a constant's comment in a hypothesis
NUMBERS = ("int", "float")
Key = tuple[str, str]  # path, name


class Move(NamedTuple):
    """One constant takes another value."""

    path: str
    constant: Constant
    value: Value
    trial: Trial | None = None  # of a number: Optuna's, which waits for the gain

    @property
    def key(self) -> Key:
        return self.path, self.constant.name


@dataclass
class _Turn:
    """What is known of one value of one constant."""

    tip_moves: int  # of the branch tip when it was last tried
    gain: float | None = None
    ours: bool = False


@dataclass
class _Number:
    """One number under search. Levels are gains over the value it began with, so that a moving tip does not matter."""

    study: optuna.Study
    distribution: FloatDistribution | IntDistribution
    levels: dict[Value, float] = field(default_factory=dict)
    tries: int = 0
    wins: int = 0

    def learn(self, old: Value, new: Value, gain: float, trial: Trial | None) -> None:
        level = self.levels.get(old, 0.0) + gain
        self.levels[new] = level
        self.wins += gain > 0
        if trial is not None:
            self.study.tell(trial, level)
        elif self.distribution.low <= float(new) <= self.distribution.high:
            self.study.add_trial(create_trial(params={"x": new}, distributions={"x": self.distribution}, value=level))


class Tuner:
    """Tries switches, then choices, mixed with numbers, then numbers by TPE; keeps nothing that was just tried.

    Args:
        seed: decides every order and every sample.
        options: `pairs`, the share of number proposals that change two constants (default 0.15); `tier`, "cpu" (the
            default) or "gpu": which of a script's NAME and GPU_NAME is meant.
    """

    def __init__(self, seed: int, options: Mapping[str, str]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # else it logs every trial
        self._seed = seed
        self._pairs = _share(options)
        self._tier = _tier(options)
        self._random = random.Random(seed)
        self._numbers: dict[Key, _Number] = {}
        self._turns: dict[tuple[Key, Value], _Turn] = {}
        self._proposed: set[tuple[str, str]] = set()  # parent, idea
        self._said: set[str] = set()  # hypotheses, ours and those of others that we learned from
        self._waiting: dict[str, tuple[Move, ...]] = {}
        self._parent = ""
        self._tip_moves = 0
        self._asked = 0

    def propose(self, ask: Ask) -> Proposal:
        """Return the next edit of one or two constants of the branch tip."""
        space = _space(ask, self._tier)
        self._tip_moves += ask.parent != self._parent
        self._parent = ask.parent
        self._learn(space, ask.brief)
        moves, proposal = self._first_new(space, ask)
        self._asked += 1
        self._remember(moves, proposal)
        return proposal

    def tell(self, idea: str, gain: float | None) -> None:
        """Learn what an edit gained. Of an edit of two constants only its values are remembered, not who earned it."""
        moves = self._waiting.pop(idea, ())
        for move in moves:
            turn = self._turns[move.key, move.value]
            turn.gain = gain
            if gain is None or len(moves) > 1:
                _discard([move], self._numbers)
                continue
            if move.trial is not None:
                self._numbers[move.key].learn(move.constant.value, move.value, gain, move.trial)
            if gain > 0:  # the way back is known too
                self._turns[move.key, move.constant.value] = _Turn(self._tip_moves, -gain)

    def usage(self) -> Usage:
        """Nothing: it costs neither tokens nor money."""
        return Usage()

    # --- choosing ----------------------------------------------------------------------------------------

    def _first_new(self, space: list[Move], ask: Ask) -> tuple[tuple[Move, ...], Proposal]:
        """The first edit, in order of preference, that is new on this parent; one that others test now only at need."""
        tip, in_flight = idea_hash(ask.tip), set(ask.brief.in_flight)
        fallback: tuple[tuple[Move, ...], Proposal] | None = None
        for moves in self._edits(space):
            proposal = self._proposal(moves, ask)
            if proposal.idea == tip or (ask.parent, proposal.idea) in self._proposed:
                _discard(moves, self._numbers)
            elif proposal.hypothesis not in in_flight:
                return moves, proposal
            else:
                fallback = fallback or (moves, proposal)
        if fallback:
            return fallback
        raise ProposalError(
            f"every value of {', '.join(sorted({move.constant.name for move in space}))} was tried on this branch tip; "
            "give the constants more `# choices:` or a wider `# range:`, or use another proposer"
        )

    def _edits(self, space: list[Move]) -> Iterator[tuple[Move, ...]]:
        """All edits worth a look, best first."""
        fresh, old = self._discrete(space)
        singles = [(move,) for move in fresh]
        again = [(move,) for move in old]
        untried = any(self._number(move).tries == 0 for move in self._declared(space))
        if fresh and self._asked % 3 < 2:  # two switches or choices, then one number
            return chain(singles, self._number_edits(space), again)
        if not fresh and not untried and self._asked % RETRY_EVERY == 0:
            return chain(again, self._number_edits(space))
        return chain(self._number_edits(space), singles, again)

    def _discrete(self, space: list[Move]) -> tuple[list[Move], list[Move]]:
        """Other values of switches and choices: those to try now, and those that had their turn long enough ago."""
        fresh: list[tuple[tuple[int, int, int, str], Move]] = []
        old: list[tuple[float, Move]] = []
        every = [move._replace(value=value) for move in space for value in move.constant.choices]
        for move in (move for move in every if move.value != move.constant.value):
            turn = self._turns.get((move.key, move.value))
            if turn is None:
                fresh.append((self._rank(move), move))
            elif turn.ours and (turn.gain or 0) > 0 and turn.tip_moves < self._tip_moves:
                fresh.append(((0, 0, 0, ""), move))  # it won, and the new tip lacks it
            elif self._tip_moves - turn.tip_moves >= FORGET_AFTER:
                old.append((-turn.gain if turn.gain is not None else float("inf"), move))
        return [move for _, move in sorted(fresh, key=lambda pair: pair[0])], [
            move for _, move in sorted(old, key=lambda pair: pair[0])
        ]

    def _rank(self, move: Move) -> tuple[int, int, int, str]:
        """Switches first: one trial settles each. Then choices, the nearest value of each before the next."""
        order = move.constant.choices
        old = order.index(move.constant.value) if move.constant.value in order else 0
        near = 0 if move.constant.kind == "switch" else abs(order.index(move.value) - old)
        guessed = int(not move.constant.declared)
        return 1 + guessed, int(move.constant.kind == "choice"), near, digest(self._seed, *move.key, move.value)

    def _number_edits(self, space: list[Move]) -> Iterator[tuple[Move, ...]]:
        numbers = [move for move in space if move.constant.kind in NUMBERS]
        declared = self._declared(space)
        untried = [move for move in declared if self._number(move).tries == 0]
        for sample in range(SAMPLES):
            pool = untried if untried and sample < SAMPLES // 4 else numbers
            picked = self._pick(pool, declared, 2 if self._random.random() < self._pairs else 1)
            moves = tuple(move for number in picked if (move := self._sample(number)))
            if moves:
                yield moves

    def _declared(self, space: list[Move]) -> list[Move]:
        """The numbers whose author gave a range; all numbers where nobody did."""
        numbers = [move for move in space if move.constant.kind in NUMBERS]
        return [move for move in numbers if move.constant.declared] or numbers

    def _pick(self, pool: list[Move], declared: list[Move], count: int) -> list[Move]:
        """Draw numbers to change; those that gained often for how often they were tried come more often."""
        picked: list[Move] = []
        while pool and len(picked) < count:
            weights = [self._weight(move) * (1 if move in declared else UNDECLARED) for move in pool]
            picked += self._random.choices(pool, weights)
            pool = [move for move in pool if move != picked[-1]]
        return picked

    def _weight(self, move: Move) -> float:
        number = self._number(move)
        return (1 + number.wins) / (1 + number.tries)

    def _sample(self, move: Move) -> Move | None:
        """Ask Optuna for another value of one number; None when it names one that just had its turn."""
        number = self._number(move)
        trial = number.study.ask({"x": number.distribution})
        value: Value = int(trial.params["x"]) if move.constant.kind == "int" else rounded(trial.params["x"])
        moved = move._replace(value=value, trial=trial)
        turn = self._turns.get((move.key, value))
        small = abs(_position(number, value) - _position(number, move.constant.value)) < SMALLEST_STEP
        spent = turn is not None and self._tip_moves - turn.tip_moves < FORGET_AFTER
        if value == move.constant.value or spent or (small and move.constant.kind == "float"):
            _discard([moved], self._numbers)
            return None
        return moved

    def _number(self, move: Move) -> _Number:
        """The search of one number, begun at the value that it has when it is first seen."""
        if move.key not in self._numbers:
            number = _search(move.constant, int(digest(self._seed, *move.key)[:8], 16))
            self._numbers[move.key] = number
            number.learn(move.constant.value, move.constant.value, 0.0, None)
        return self._numbers[move.key]

    # --- remembering -------------------------------------------------------------------------------------

    def _proposal(self, moves: Sequence[Move], ask: Ask) -> Proposal:
        files = dict(ask.tip)
        for move in moves:
            files[move.path] = rewrite(files[move.path], {move.constant.name: move.value})
        hypothesis = "; ".join(_in_words(move) for move in moves)
        expected = f"{'lower' if ask.direction == 'minimize' else 'higher'} {ask.metric}; {self._grounds(moves)}"
        return Proposal(idea_hash(files), ask.parent, hypothesis, expected, files, "tuner")

    def _grounds(self, moves: Sequence[Move]) -> str:
        """What speaks for an edit, from memory."""
        if len(moves) > 1:
            return "two numbers at once"
        move = moves[0]
        if move.trial is None:
            turn = self._turns.get((move.key, move.value))
            return f"unexplored {move.constant.kind}" if turn is None else "tried before, on another branch tip"
        number = self._number(move)
        if not number.tries:
            return "unexplored number"
        best = max(number.levels, key=lambda value: number.levels[value])
        return f"{number.wins} of {number.tries} tries gained, best so far at {best}"

    def _remember(self, moves: tuple[Move, ...], proposal: Proposal) -> None:
        self._proposed.add((proposal.parent, proposal.idea))
        self._said.add(proposal.hypothesis)
        self._waiting[proposal.idea] = moves
        for move in moves:
            self._turns[move.key, move.value] = _Turn(self._tip_moves, ours=True)
            if move.trial is not None:
                self._number(move).tries += 1

    def _learn(self, space: list[Move], brief: Brief) -> None:
        """Take over what others tried and are trying, so that a swarm of tuners searches once."""
        for tried in brief.tried:
            for move, old in _read(tried.hypothesis, space):
                turn = self._turns.get((move.key, move.value))
                if turn is not None and turn.ours and tried.status.startswith("rejected"):
                    turn.gain = min(turn.gain or 0.0, 0.0)  # fresh seeds say that it was luck
                elif tried.hypothesis not in self._said:
                    self._take_over(move, old, tried.gain)
            if tried.status != "running":
                self._said.add(tried.hypothesis)
        for hypothesis in brief.in_flight:
            for move, _ in _read(hypothesis, space):
                self._turns.setdefault((move.key, move.value), _Turn(self._tip_moves))

    def _take_over(self, move: Move, old: Value, gain: float | None) -> None:
        self._turns[move.key, move.value] = _Turn(self._tip_moves, gain)
        if move.constant.kind in NUMBERS and gain is not None:
            self._number(move).tries += 1
            self._number(move).learn(old, move.value, gain, None)


def _share(options: Mapping[str, str]) -> float:
    if unknown := sorted(set(options) - {"pairs", "tier"}):
        raise ConfigError(
            f"proposer tuner knows no option {', '.join(unknown)}; it has pairs (0..1) and tier (cpu, gpu)"
        )
    try:
        share = float(options.get("pairs", PAIRS))
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(f"proposer tuner: pairs = {options['pairs']!r} must be a number from 0 to 1")
    return share


def _tier(options: Mapping[str, str]) -> Tier:
    match options.get("tier", "cpu"):
        case "cpu":
            return "cpu"
        case "gpu":
            return "gpu"
        case other:
            raise ConfigError(f"proposer tuner: tier = {other!r} is unknown; choose cpu or gpu")


def _space(ask: Ask, tier: Tier) -> list[Move]:
    """Every constant of the branch tip that can matter, at its value.

    Raises:
        ProposalError: there is none.
    """
    found: list[Move] = []
    for path in sorted(path for path in ask.tip if path.endswith(".py")):
        here = constants(ask.tip[path], tier)
        off = tuple(f"{constant.name}_" for constant in here if constant.value is False)
        # BIGRAM_ROWS does nothing while BIGRAM is off: trying it would measure noise.
        found += [Move(path, constant, constant.value) for constant in here if not constant.name.startswith(off)]
    if not found:
        raise ProposalError(
            f"nothing to tune in {', '.join(sorted(ask.tip))}: the tuner needs lines like `LEARNING_RATE = 0.01` or "
            "`USE_BIAS = False` at module level, in capitals; add some, or use another proposer"
        )
    return found


def _search(constant: Constant, seed: int) -> _Number:
    """A new search of one number: a step down and a step up in random order, then TPE."""
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=3)  # where it stands and those two steps
    study = optuna.create_study(direction="maximize", sampler=sampler)
    low, high, log = constant.low, constant.high, constant.log
    whole = constant.kind == "int"
    number = _Number(study, IntDistribution(int(low), int(high), log) if whole else FloatDistribution(low, high, log))
    steps = [-FIRST_STEP, FIRST_STEP]
    random.Random(seed).shuffle(steps)
    for step in steps:
        position = _position(number, constant.value) + step
        if 0 <= position <= 1:
            study.enqueue_trial({"x": _at(number, position)})
    return number


def _position(number: _Number, value: Value) -> float:
    """Where a value stands in its range: 0 at the low end, 1 at the high one."""
    low, high = float(number.distribution.low), float(number.distribution.high)
    if number.distribution.log:
        return math.log(max(float(value), low) / low) / math.log(high / low)
    return (float(value) - low) / (high - low)


def _at(number: _Number, position: float) -> float:
    low, high = float(number.distribution.low), float(number.distribution.high)
    value = low * (high / low) ** position if number.distribution.log else low + (high - low) * position
    return round(value) if isinstance(number.distribution, IntDistribution) else value


def _discard(moves: Sequence[Move], numbers: Mapping[Key, _Number]) -> None:
    """Tell Optuna that these samples bring no news."""
    for move in moves:
        if move.trial is not None:
            numbers[move.key].study.tell(move.trial, state=TrialState.FAIL)


def _in_words(move: Move) -> str:
    """The hypothesis of one change. `_read` is the way back."""
    constant = move.constant
    comment = constant.comment.partition(";")[0][:COMMENT_LIMIT]  # behind it stands what it is worth
    if constant.kind == "switch":
        return f"Switch {constant.name} {'on' if move.value else 'off'}{': ' + comment if comment else ''}"
    if isinstance(move.value, str) or isinstance(constant.value, str):
        return f"Change {constant.name} from {constant.value} to {move.value}"
    return (
        f"{'Raise' if move.value > constant.value else 'Lower'} {constant.name} from {constant.value} to {move.value}"
    )


_SWITCHED = re.compile(r"Switch (\w+) (on|off)(?:: .*)?")
_MOVED = re.compile(r"(?:Raise|Lower|Change) (\w+) from (\S+) to (\S+)")


def _read(hypothesis: str, space: list[Move]) -> Iterator[tuple[Move, Value]]:
    """What a tuner's hypothesis of one change means here: the move and the value it left."""
    switched, moved = _SWITCHED.fullmatch(hypothesis), _MOVED.fullmatch(hypothesis)
    for move in space:
        if switched and move.constant.name == switched[1] and move.constant.kind == "switch":
            yield move._replace(value=switched[2] == "on"), switched[2] != "on"
        elif moved and move.constant.name == moved[1] and move.constant.kind != "switch":
            old, new = _value(move.constant, moved[2]), _value(move.constant, moved[3])
            if old is not None and new is not None:
                yield move._replace(value=new), old


def _value(constant: Constant, text: str) -> Value | None:
    if constant.kind == "choice":
        return next((choice for choice in constant.choices if str(choice) == text), None)
    try:
        value = int(text) if constant.kind == "int" else float(text)
    except ValueError:
        return None
    return value if abs(value) <= LARGEST else None
