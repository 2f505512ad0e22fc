"""One running tree, watched: its log, what it uses, and the moment it must end.

Owns the limits. Reads the clock that it is given and the process table; knows neither Task nor score. All waiting of a
trial happens in `Watch.step`, in the thread that started the tree: no second thread, no sleep, a log flood is stopped
at its limit because nobody reads on.
"""

import os
import re
import selectors
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from subprocess import Popen
from types import TracebackType
from typing import IO, Literal

from node.footprint import Footprints
from node.processes import Tree, Usage, has_ended
from node.sandbox import Box, Sandbox
from swarm.records import Failure, Limits
from swarm.scrub import scrub

FIRST_SAMPLE_S = 0.005  # what lives for a moment only is seen, too; later samples are as far apart as it is old
SAMPLE_S = 0.05  # so a limit is overrun by at most this, and a sample of a small tree costs 0.1 ms
CHUNK = 65_536  # what a pipe holds
TAIL_BYTES = 4096  # of the log, kept with the record
SCRUBBED_BYTES = 65_536  # before it is cut: half a credential has no shape by which it would be known

Phase = Literal["train", "score"]
Blame = Literal["candidate", "machinery"]
Reason = Literal["crash", "timeout", "nan", "rule", "log", "memory", "lost", "killed", "disk", "scoring", "stopped"]

# People and the kernel end processes with these, and so may a tree itself, whose seed is then drawn again: where the
# kernel did not run out of memory meanwhile, this is told apart as `killed`, which is forgiven once. SIGSEGV and the
# like are always its own.
_FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
# "loss is nan at step 3", not "nanobot" nor "info".
NOT_A_NUMBER = re.compile(r"(?<![a-z0-9_])(nan|inf|infinity)(?![a-z0-9_])", re.IGNORECASE)
# What is shown to people must not steer their terminal: control characters other than line ends and tabs go.
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class TrialFailed(Exception):
    """Ends a trial from wherever this is found out; never leaves `run_trial`."""

    def __init__(self, blame: Blame, reason: Reason, message: str) -> None:
        """Say who failed, why, and in words."""
        super().__init__(message)
        self.blame: Blame = blame
        self.reason: Reason = reason

    def failure(self, cpu_s: float) -> Failure:
        """As a record."""
        return Failure(blame=self.blame, reason=self.reason, message=scrub(str(self)), cpu_s=cpu_s)


class Log:
    """What a candidate printed, up to its limit."""

    def __init__(self, limit_bytes: int) -> None:
        """Empty."""
        self._limit = limit_bytes
        self._bytes = bytearray()

    def add(self, data: bytes) -> None:
        """Keep what was printed; fail the trial when it is too much."""
        self._bytes += data[: self._limit - len(self._bytes) + 1]
        if len(self._bytes) > self._limit:
            raise TrialFailed("candidate", "log", f"printed more than {self._limit} bytes")

    @property
    def text(self) -> str:
        """All of it, as plain lines."""
        return plain(bytes(self._bytes))

    @property
    def tail(self) -> str:
        """The last lines."""
        return plain(bytes(self._bytes[-SCRUBBED_BYTES:]))[-TAIL_BYTES:]

    @property
    def last_line(self) -> str:
        """The last line that says anything; of a traceback the error itself."""
        lines = [line.strip() for line in self.tail.splitlines() if line.strip()]
        return lines[-1] if lines else ""


class Watch:
    """Waits for a tree, within its limits. As a context it takes its pipes' descriptors and gives them back."""

    def __init__(
        self,
        process: Popen[bytes],
        log: IO[bytes],
        limits: Limits,
        *,
        mark: str,
        scratch: Path,
        phase: Phase,
        stop: threading.Event,
        monotonic: Callable[[], float],
        on_phase: Callable[[Phase, float], None],
        starved: Callable[[], bool],
        used_s: Callable[[], float],
    ) -> None:
        """Begin: the clock runs from here."""
        self.process = process
        self.log = Log(limits.log_bytes)
        self.peak_memory_mb = 0.0
        self.cpu_s = 0.0
        self._limits, self._phase, self._stop = limits, phase, stop
        self._late = "ran longer than"
        self._monotonic, self._on_phase, self._starved, self._used_s = monotonic, on_phase, starved, used_s
        self._tree = Tree(process.pid, mark)
        self._out_of_memory = _out_of_memory()
        self._footprints = Footprints(scratch, limits.disk_mb, limits.files)
        self._started = self._sample_at = monotonic()
        self._log_fd = log.fileno()
        os.set_blocking(self._log_fd, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._log_fd, selectors.EVENT_READ)
        self._pidfd = _pidfd(process.pid)
        if self._pidfd is not None:
            self._selector.register(self._pidfd, selectors.EVENT_READ)

    def __enter__(self) -> "Watch":
        """Nothing more to take."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give descriptors back; the tree is ended by its sandbox, not here."""
        self._selector.close()
        if self._pidfd is not None:
            os.close(self._pidfd)

    @property
    def elapsed_s(self) -> float:
        """Since its clock was started."""
        return self._monotonic() - self._started

    @property
    def memory_ran_out(self) -> bool:
        """Whether the kernel has killed for want of memory since this began, whomever."""
        return _out_of_memory() != self._out_of_memory

    def start_clock(self, wall_s: float, late: str) -> None:
        """From this moment it has `wall_s`; `late` says what it did when it needs more."""
        self._limits, self._late, self._started = replace(self._limits, wall_s=wall_s), late, self._monotonic()

    def until(self, happened: Callable[[], bool]) -> bool:
        """Wait until something has happened (True) or the first process has ended without it (False).

        Raises:
            TrialFailed: a limit was passed, or `stop` was set; the tree still runs.
        """
        while not has_ended(self.process.pid):
            if happened():
                return True
            self.step()
        return happened()

    def until_end(self) -> None:
        """Wait for the first process to end.

        Raises:
            TrialFailed: a limit was passed, or `stop` was set; the tree still runs.
        """
        while not has_ended(self.process.pid):
            self.step()
        self._sample()  # before anybody collects it: its CPU time is final, and still readable
        self.drain()

    def step(self, port: int | None = None, events: int = 0) -> bool:
        """Wait until something happens, at most SAMPLE_S; keep the log, the usage and the limits.

        Returns whether `port` is ready.
        """
        if self._monotonic() >= self._sample_at:
            self._sample()
        if port is not None:
            self._selector.register(port, events)
        try:
            ready = {key.fd for key, _ in self._selector.select(max(0.0, self._sample_at - self._monotonic()))}
        finally:
            if port is not None:
                self._selector.unregister(port)
        if self._pidfd is not None and self._pidfd in ready:
            self._selector.unregister(self._pidfd)  # seen: it would be ready for ever
        if self._log_fd in ready:
            self._read_log()
        return port in ready

    def drain(self) -> None:
        """Take what is left in the log's pipe, without waiting for more."""
        while self._log_fd in self._selector.get_map() and self._read_log():
            pass

    def _read_log(self) -> bool:
        try:
            data = os.read(self._log_fd, CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self._selector.unregister(self._log_fd)  # closed: it would be ready for ever
            return False
        self.log.add(data)
        return True

    def _sample(self) -> None:
        now = self._monotonic()
        self._sample_at = now + min(SAMPLE_S, max(FIRST_SAMPLE_S, now - self._started))
        usage = self._tree.usage()
        self.cpu_s = max(self.cpu_s, usage.cpu_s, self._used_s())  # the group's knows children that nobody collected
        self.peak_memory_mb = max(self.peak_memory_mb, usage.memory_mb)
        self._on_phase(self._phase, self.cpu_s)
        self._check(now, usage)

    def _check(self, now: float, usage: Usage) -> None:
        limits = self._limits
        if self._stop.is_set():
            raise TrialFailed("machinery", "stopped", "stopped on request")
        if self._starved():  # one process is dead, and the others may go on as if nothing was
            words = f"{self._phase}: held all of {limits.memory_mb} MB, and the kernel ended one of its processes"
            raise TrialFailed("candidate", "memory", words)
        if self.cpu_s > limits.cpu_s:
            raise TrialFailed("candidate", "timeout", f"{self._phase}: used more than {limits.cpu_s:.1f} s of CPU time")
        if now - self._started > limits.wall_s:
            raise TrialFailed("candidate", "timeout", f"{self._phase}: {self._late} {limits.wall_s:.1f} s")
        if usage.memory_mb > limits.memory_mb:
            raise TrialFailed(
                "candidate", "memory", f"{self._phase}: held {usage.memory_mb:.0f} of {limits.memory_mb} MB"
            )
        if usage.processes > limits.processes:
            words = f"{self._phase}: ran {usage.processes} processes and threads, {limits.processes} are allowed"
            raise TrialFailed("candidate", "rule", words)
        if excess := self._footprints.excess(now):
            raise TrialFailed("candidate", "disk", f"{self._phase}: {excess}")


def plain(data: bytes) -> str:
    """Bytes of a candidate as text that is safe to show: lines, tabs and printable characters, no credentials."""
    text = data.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    return scrub(_CONTROL.sub("", text))


def _out_of_memory() -> int:
    """How often the kernel has killed a process for want of memory; 0 where it does not say."""
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _pidfd(pid: int) -> int | None:
    """A descriptor that is readable once the process ended (Linux 5.3); without it the next sample sees the end."""
    if hasattr(os, "pidfd_open"):
        with suppress(OSError):
            return os.pidfd_open(pid)
    return None


@contextmanager
def running(
    sandbox: Sandbox,
    box: Box,
    *,
    mark: str,
    phase: Phase,
    stop: threading.Event,
    monotonic: Callable[[], float],
    on_phase: Callable[[Phase, float], None],
) -> Iterator[Watch]:
    """A started tree; on the way out, whichever way, the whole of it is dead and its log read to the end."""
    process = sandbox.start(box)
    log = process.stderr if box.answers else process.stdout
    assert log is not None, "a sandbox gives a log pipe"
    try:
        with Watch(
            process,
            log,
            box.limits,
            mark=mark,
            scratch=box.scratch,
            phase=phase,
            stop=stop,
            monotonic=monotonic,
            on_phase=on_phase,
            starved=partial(sandbox.starved, process),
            used_s=partial(sandbox.used_s, process),
        ) as watch:
            try:
                yield watch
            finally:
                sandbox.kill(process)
                with suppress(TrialFailed):  # what came after the limit does not change why it failed
                    watch.drain()
    finally:
        sandbox.kill(process)  # a second time, unless the watch could not even begin
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def check_exit(watch: Watch, reason: Literal["crash", "scoring"]) -> None:
    """Judge how an ended tree ended; 0 is fine.

    Raises:
        TrialFailed: it was killed (machinery, as far as can be known), or it failed by itself (candidate).
    """
    code = watch.process.wait()  # it has ended: returns at once
    if code == 0:
        return
    if -code in _FROM_OUTSIDE:
        name = signal.Signals(-code).name
        if watch.memory_ran_out:
            raise TrialFailed("machinery", "lost", f"{name} while this machine had no memory left: free some")
        raise TrialFailed("machinery", "killed", f"{name}, from outside or by itself; nobody here sent it")
    how = f"died of {_signal_name(-code)}" if code < 0 else f"exit code {code}"
    last = watch.log.last_line
    raise TrialFailed("candidate", "nan" if NOT_A_NUMBER.search(last) else reason, f"{how}: {last}" if last else how)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
