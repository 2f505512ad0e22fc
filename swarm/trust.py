"""Whose code runs where: the sandbox level that a study's code asks for, and the sentence for a machine below it.

A node asks before it runs anything, the coordinator before a run counts for a verdict. Reads the task folder, once in a
process, to tell whether its code is ours. Knows nothing of how a sandbox keeps what its level promises.
"""

from functools import cache
from pathlib import Path

from swarm.config import Config
from swarm.task import bundle, place_of

FLAG = "--i-trust-this-code"
SHIPPED = Path(__file__).resolve().parents[1] / "baseline"
OWN, STUDY = 0, 1  # other people's code asks for level 2: nodes.sandbox = "bwrap" runs with nothing less


def level_needed(config: Config) -> int:
    """The least sandbox level for code of this study.

    The tuner changes literals of a script that its people wrote: of the shipped one that is our own code, wherever its
    copy lies. A model, another task, or a forge that others read from may bring anything.
    """
    harmless = config.proposer.use == "tuner" and config.forge.use == "local"
    return OWN if harmless and _is_shipped(place_of(Path(config.task))[0].absolute()) else STUDY


@cache
def _is_shipped(folder: Path) -> bool:
    """Whether a task folder holds what came with this program, byte for byte."""
    return folder.is_dir() and SHIPPED.is_dir() and bundle(folder) == bundle(SHIPPED)


def too_open(sandbox: str, level: int, needed: int) -> str:
    """Why code that asks for a level may not run in this sandbox; empty when it may."""
    if level >= needed:
        return ""
    return (
        f"sandbox {sandbox} is level {level}, and this study's code asks for level {needed}: `swarm doctor` "
        f"there says what is missing; {FLAG} runs it all the same, and the record says so"
    )
