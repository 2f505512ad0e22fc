"""Whose code runs where: the sandbox level that a study's code asks for, and the sentence for a machine below it.

Pure. A node asks before it runs anything, the coordinator before a run counts for a verdict. It knows nothing of how a
sandbox keeps what its level promises.
"""

from pathlib import Path

from swarm.config import Config

FLAG = "--i-trust-this-code"
OWN, STUDY = 0, 1  # other people's code asks for level 2: nodes.sandbox = "bwrap" runs with nothing less


def level_needed(config: Config) -> int:
    """The least sandbox level for code of this study.

    The tuner changes literals of a script that its people wrote: of the shipped one that is our own code, wherever it
    stays. A model, another task, or a forge that others read from may bring anything.
    """
    shipped = Path(config.task).name == "baseline"
    return OWN if config.proposer.use == "tuner" and shipped and config.forge.use == "local" else STUDY


def too_open(sandbox: str, level: int, needed: int) -> str:
    """Why code that asks for a level may not run in this sandbox; empty when it may."""
    if level >= needed:
        return ""
    return (
        f"sandbox {sandbox} is level {level}, and this study's code asks for level {needed}: `swarm doctor` "
        f"there says what is missing; {FLAG} runs it all the same, and the record says so"
    )
