"""The one process of the coordinator that talks to Ray: `python -m swarm.cluster.bridge`.

Ray ends the process of a driver when the head stays away, so this one holds nothing: no ledger, no state that can not
be asked again. It reads calls on stdin, writes answers on stdout, and ends with its parent (end of stdin).
The only module that imports ray.
"""

import logging
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, BinaryIO

import ray
from ray.exceptions import (
    ActorUnavailableError,
    ActorUnschedulableError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.util import list_named_actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from swarm.cluster import frames
from swarm.cluster.host import Host
from swarm.cluster.port import Member, Silence

NAMESPACE = "swarm"
SLOT = "swarm_slot"
_END_AGENT_S = 10.0  # an actor that was killed gives its name back within 0.1 s, measured
_REASON_CHARS = 500
_ANSI = re.compile(r"\x1b\[[0-9;]*m")

log = logging.getLogger(__name__)


def agent_name(node_id: str, setup_digest: str = "") -> str:
    """The name of a node's agent in Ray; it tells which setup it was born with, so nobody has to ask it."""
    return f"agent-{node_id}-{setup_digest[:16]}"


class Bridge:
    """Carries out calls. Handles and unfinished calls are caches: a new bridge finds everything again by name."""

    def __init__(self) -> None:
        self._handles: dict[str, Any] = {}
        self._unfinished: dict[str, Any] = {}  # actor name -> its call that was not answered in time

    def carry_out(self, call: frames.Call) -> frames.Answer:
        match call:
            case frames.ListNodes():
                return frames.Nodes(tuple(_member(node) for node in _living()))
            case frames.Exchange(orders=orders, timeout_s=timeout_s):
                return self._exchange(orders, timeout_s)
            case frames.Appoint():
                return self._appoint(call)
            case frames.Dismiss(node_id=node_id):
                self._end_agents(node_id, except_for="")
                return frames.Done()

    def _exchange(self, orders: Mapping[str, bytes], timeout_s: float) -> frames.Replies:
        asked = {name: self._ask(name, data) for name, data in orders.items()}
        calls = [call for call in asked.values() if not isinstance(call, Silence)]
        # One wait for all: a silent agent costs the others nothing.
        ready = set(ray.wait(calls, num_returns=len(calls), timeout=timeout_s)[0]) if calls else set()
        answers: dict[str, bytes] = {}
        silent: dict[str, Silence] = {}
        for name, call in asked.items():
            match self._collect(name, call, call in ready, timeout_s):
                case Silence() as silence:
                    silent[name] = silence
                case reply:
                    answers[name] = reply
        return frames.Replies(answers, silent)

    def _ask(self, name: str, data: bytes) -> Any:
        """The reference of a new call, or Silence. An agent that still owes an answer is not asked again."""
        if owed := self._unfinished.get(name):
            if not ray.wait([owed], timeout=0)[0]:
                return Silence("still busy with the last call", dead=False)
            del self._unfinished[name]  # a late answer: facts in it are offered again, so it may be dropped
        try:
            handle = self._handles.get(name) or ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            return Silence("there is no such agent in the cluster", dead=True)
        self._handles[name] = handle
        return handle.exchange.remote(data)

    def _collect(self, name: str, call: Any, ready: bool, timeout_s: float) -> bytes | Silence:
        if isinstance(call, Silence):
            return call
        if not ready:
            self._unfinished[name] = call
            return Silence(f"no answer within {timeout_s:g} s", dead=False)
        try:
            reply: bytes = ray.get(call)
            return reply
        except ActorUnavailableError as error:  # a kind of RayActorError: maybe alive, maybe executed
            return Silence(_reason(error), dead=False)
        except (RayActorError, ActorUnschedulableError) as error:  # it died, or its node is gone
            self._handles.pop(name, None)
            return Silence(_reason(error), dead=True)
        except RayTaskError as error:  # the agent itself raised
            return Silence(f"the agent raised {_reason(error)}", dead=False)
        except RayError as error:  # the answer was lost on its way
            return Silence(_reason(error), dead=False)

    def _appoint(self, call: frames.Appoint) -> frames.Answer:
        node = next((node for node in _living() if node["NodeID"] == call.node_id), None)
        if node is None:
            return frames.Failed(f"node {call.node_id[:8]} is not a member of the cluster")
        self._end_agents(call.node_id, except_for=call.name)
        on_gpu = node["Resources"].get("GPU", 0) >= 1
        handle: Any = (
            ray.remote(Host)
            .options(
                name=call.name,
                namespace=NAMESPACE,
                get_if_exists=True,
                lifetime="detached",
                scheduling_strategy=NodeAffinitySchedulingStrategy(call.node_id, soft=False),
                num_cpus=0,
                num_gpus=1 if on_gpu else 0,
                resources=None if on_gpu else {SLOT: 1},
                max_restarts=0,  # no hidden retries: the coordinator sees a death and appoints again
                max_task_retries=0,
                max_concurrency=4,
            )
            .remote(call.agent, call.setup)
        )
        self._handles[call.name] = handle
        return frames.Done()

    def _end_agents(self, node_id: str, except_for: str) -> None:
        prefix, deadline = agent_name(node_id), time.monotonic() + _END_AGENT_S
        while others := [n for n in list_named_actors() if n.startswith(prefix) and n != except_for]:
            for name in others:
                self._handles.pop(name, None)
                _kill(name)
            if time.monotonic() > deadline:
                raise RayError(f"agent {others[0]} did not end within {_END_AGENT_S:g} s")
            time.sleep(0.02)


def _kill(name: str) -> None:
    try:
        ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=True)
    except ValueError:  # it ended meanwhile
        return


def _living() -> list[dict[str, Any]]:
    """Nodes that lend something. A head without GPU and slot is none of them."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # ray annotates no return type
    return [n for n in nodes if n["Alive"] and (n["Resources"].get("GPU") or n["Resources"].get(SLOT))]


def _member(node: dict[str, Any]) -> Member:
    name = node["Labels"].get("swarm/name") or node["NodeManagerHostname"]
    return Member(id=node["NodeID"], name=name, address=node["NodeManagerAddress"])


def _reason(error: RayError) -> str:
    """One line for people. Ray puts the cause of an exception last, and everything else into the log."""
    text = _ANSI.sub("", str(error)).strip()
    log.warning("%s: %s", type(error).__name__, text)
    line = text.splitlines()[-1].strip() if text else ""
    return f"{type(error).__name__}: {line[:_REASON_CHARS]}"


def _private_stdout() -> BinaryIO:
    """The pipe to the proxy; whatever else prints to stdout goes to the log on stderr."""
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return pipe


def _read_calls(pipe: BinaryIO, calls: "queue.Queue[frames.Call]") -> None:
    """Own thread: sees the end of the pipe at once, also while Ray keeps the main thread waiting."""
    while (call := frames.read_call(pipe)) is not None:
        calls.put(call)
    os._exit(0)  # the parent is gone; there is nothing to save


def _send(pipe: BinaryIO, answer: frames.Answer) -> None:
    pipe.write(frames.frame(answer))
    pipe.flush()


def main() -> None:
    """Connect to the head named on the command line, then answer calls until the parent goes away."""
    address, ip = sys.argv[1:3]
    pipe = _private_stdout()
    calls: queue.Queue[frames.Call] = queue.Queue()
    stdin = os.fdopen(os.dup(0), "rb")  # not sys.stdin, which Python can not close while a thread waits in it
    threading.Thread(target=_read_calls, args=(stdin, calls), daemon=True).start()
    here: dict[str, Any] = {"_node_ip_address": ip} if ip else {}
    ray.init(
        address=address,
        namespace=NAMESPACE,
        log_to_driver=False,
        logging_level=logging.WARNING,
        **here,
    )
    _send(pipe, frames.Done())
    bridge = Bridge()
    while True:
        call = calls.get()
        try:
            answer = bridge.carry_out(call)
        except RayError as error:
            answer = frames.Failed(_reason(error))
        _send(pipe, answer)


if __name__ == "__main__":
    main()
