"""When a study ends, and why: the rule that held first, and how long what is then left may keep it from its end. Pure.

After a stop two things may wait for somebody who does not come: what is to land, for a forge that is away or does not
let it merge; and the final comparison, for nodes of its Platform. Each is given the time that is reserved for
the comparison, and is then left out. It does not know what is landed or compared, nor how.
"""

from collections.abc import Hashable, Iterator
from typing import NamedTuple

from coordinator.state import State
from swarm.config import Config

LEAST_PATIENCE_S = 60.0  # a few tries of the forge, one every 15 s, also where nothing is reserved for the comparison


class Wait(NamedTuple):
    """Something that does not go on."""

    on: Hashable  # changes when it does
    since_s: float  # of the study's working time


class Ending:
    """Reads the State; what it remembers itself is found anew after a restart."""

    def __init__(self, state: State, config: Config) -> None:
        """Nothing has held yet."""
        self._state, self._config = state, config
        self._first = ""
        self._landing: Wait | None = None
        self._comparison: Wait | None = None

    def reason(self, now: float) -> str:
        """Why exploration is over: the rule that held first, as long as it holds; empty while none does."""
        holding = [*self._holding(now)]
        return self._first if self._first in holding else next(iter(holding), "")

    def look(self, now: float, *, landing: bool, comparable: bool) -> None:
        """Remember what holds: whether something waits for the forge, and the comparison could find a node."""
        self._first, state = self.reason(now), self._state
        landed = (state.next_promotion, state.next_demotion) if self._first and landing else None
        compared = (len(state.final), state.final_failures) if self._first and not comparable else None
        elapsed_s = state.elapsed_s(now)
        self._landing = _waited(self._landing, landed, elapsed_s)
        self._comparison = _waited(self._comparison, compared, elapsed_s)

    def lands_no_more(self, now: float) -> bool:
        """Whether what the forge did not take by now is left out."""
        return self._is_over(self._landing, now)

    def compares_no_more(self, now: float) -> bool:
        """Whether no node came to compare champion and baseline."""
        return self._is_over(self._comparison, now)

    def _is_over(self, wait: Wait | None, now: float) -> bool:
        patience_s = max(LEAST_PATIENCE_S, 60 * self._config.stop.final_minutes)
        return wait is not None and self._state.elapsed_s(now) - wait.since_s > patience_s

    def _holding(self, now: float) -> Iterator[str]:
        stop, caps, state = self._config.stop, self._config.caps, self._state
        if failure := self._baseline_failure():
            yield f"the baseline itself fails: {failure}"
        tokens = state.spent.input_tokens + state.spent.output_tokens
        rules = (
            (0 < stop.promotions <= len(state.line), f"{stop.promotions} promotions"),
            (0 < stop.trials <= state.trials, f"{stop.trials} trials"),
            (0 < caps.dollars <= state.spent.dollars, f"cap of {caps.dollars:g} dollars"),
            (0 < caps.tokens <= tokens, f"cap of {caps.tokens} tokens"),
            (0 < caps.node_hours <= state.trial_s / 3600, f"cap of {caps.node_hours:g} node-hours"),
            (  # last, as it will hold some day, also after another one and a restart
                state.elapsed_s(now) >= 60 * (stop.wall_minutes - stop.final_minutes),
                f"wall time of {stop.wall_minutes:g} minutes, {stop.final_minutes:g} of them for the last comparison",
            ),
        )
        yield from (text for holds, text in rules if holds)

    def _baseline_failure(self) -> str:
        """Why no Platform can ever be calibrated; empty while one may be."""
        state = self._state
        if state.noise or not state.baseline_failures:
            return ""
        failures = [state.baseline_fails(platform) for platform in {n.platform.id for n in state.nodes.values()}]
        return failures[0] if all(failures) else ""


def _waited(before: Wait | None, on: Hashable, now_s: float) -> Wait | None:
    if on is None:
        return None
    return before if before is not None and before.on == on else Wait(on, now_s)
