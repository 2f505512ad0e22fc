"""What is refused before anything starts: names that lead nowhere, keys that are missing, tokens that do not fit.

Every refusal is one sentence that ends with the fix. Looks only; nothing here starts or writes anything.
"""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from node import proposers
from node.sandbox import choice as sandboxes
from swarm.config import Config
from swarm.corpus import MANIFEST
from swarm.errors import ConfigError, PrerequisiteError
from swarm.scrub import credentials
from swarm.task import Task, bundle
from swarm.trust import level_needed

_TOKEN_CHARACTERS = 64  # `ensure_token` writes so many hexadecimal digits


def check_choices(config: Config, task: Task, *, local: int) -> None:
    """Refuse a proposer, a sandbox or a time limit with which no trial could run.

    With local nodes everything is built once, as each node will build it; else only names can be looked at.

    Raises:
        PrerequisiteError: something is unknown, misspelt or missing.
    """
    if local:
        proposers.load(config.proposer.use, 0, config.proposer.options)
        sandboxes.tried_sandbox(config.nodes.sandbox, 0 if config.nodes.trust_code else level_needed(config))
    else:
        proposers.check_name(config.proposer.use)
        sandboxes.check_name(config.nodes.sandbox)
    if config.nodes.data and not (Path(config.nodes.data) / MANIFEST).is_file():
        raise ConfigError(
            f"nodes.data = {config.nodes.data!r} holds no prepared data (no {MANIFEST}): name a folder that the task's "
            "prepare command made, or leave it empty"
        )
    if config.decision.transfer_required and (task.scale is None or not config.decision.transfer_seeds):
        raise ConfigError(
            f"decision.transfer_required promotes only what was checked at a larger scale, and nothing would be: "
            f'name one in {task.name}\'s task.toml ([transfer] scale = "depth=2") and set decision.transfer_seeds'
        )
    limit = config.nodes.trial_wall_s
    longest = task.seconds + task.compile_seconds
    if longest > limit:
        raise ConfigError(
            f"{task.name} trains for {longest:g} s (budget.seconds), but nodes.trial_wall_s = {limit:g} kills "
            f"every trial before; set it to {2 * longest:g} or so, and stop.wall_minutes to hundreds of trainings"
        )


def check_credentials(config: Config, folder: Path, task_file: str) -> None:
    """Refuse to begin with a credential in what every node, the ledger and requests will hold.

    Raises:
        ConfigError: where one stands; not what it is.
    """
    if credentials([config.to_json()]):
        raise ConfigError(
            "the configuration holds what looks like a credential, and all of it is kept in the ledger: take it out, "
            "and put it into the environment of whoever needs it"
        )
    for path, content in bundle(folder, task_file).items():
        text = content.decode(errors="replace")
        if found := credentials([text]):
            line = 1 + text[: min(map(text.index, found))].count("\n")
            raise ConfigError(
                f"{folder / path}, line {line} holds what looks like a credential, and the task's folder goes to every "
                "node and into every request: take it out"
            )


def check_text(folder: Path, task: Task) -> None:
    """Refuse data with less text than is scored and, for the audit, one window that is not.

    Raises:
        ConfigError: which split it is, and what would fit.
    """
    if task.score != "answers":
        return
    for split in ("val", "holdout"):
        tokens = folder / split / "tokens.bin"
        there = tokens.stat().st_size // 2 if tokens.is_file() else 0  # uint16
        if there <= task.val_tokens + task.window:
            fits = there // 2 // task.window * task.window
            mend = f"set budget.val_tokens to {fits} or less in {task.name}'s task.toml, or " if fits else ""
            raise ConfigError(
                f"{folder}: the {split} split has {there} tokens, too few to score {task.val_tokens} of them and audit "
                f"with {task.window} more: {mend}give the source more text"
            )


def sandbox_words(use: str) -> Iterator[str]:
    """Lines: which sandbox the nodes of this machine use, why it is no better one, and what it was seen to keep."""
    sandbox, found = sandboxes.tried_sandbox(use)
    lacks = sandboxes.best().lacks if use == sandboxes.AUTO else ""
    if sandbox.level == 0:
        why = f": NO WALLS, run only code that you trust ({lacks})" if lacks else ": NO WALLS, as you chose"
    else:
        why = f" ({lacks})" if lacks else ""
    yield f"sandbox {sandbox.name}, level {found.level}{why}"
    if found.lacks:
        yield found.lacks
    cells = [f"  {'yes' if held else 'NO '}  {promise:<33}" for promise, held in found.held.items()]
    for start in range(0, len(cells), 2):
        yield "".join(cells[start : start + 2]).rstrip()


def check_host(host: str) -> None:
    """Refuse to wait for nodes at an address that is not this machine's.

    Raises:
        PrerequisiteError: it is another machine's, none at all, or one under which no other machine finds this one.
    """
    try:
        with socket.socket() as one:
            one.bind((host, 0))
            if one.getsockname()[0] != "0.0.0.0":
                return
        why = "it means all of them at once"
    except (OSError, UnicodeError) as error:
        why = str(error)
    raise PrerequisiteError(f"--host {host!r} is not one address of this machine ({why}); `hostname -I` lists them")


def check_address(address: str) -> None:
    """Refuse what cannot be the address of a head.

    Raises:
        PrerequisiteError: it is not HOST:PORT.
    """
    host, _, port = address.rpartition(":")
    if not host or ":" in host or "/" in host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise PrerequisiteError(f"{address!r} is no address; write it as HOST:PORT, as `swarm coordinator` prints it")


def check_token(path: Path) -> None:
    """Refuse a token that is missing, open to others, or no token.

    Raises:
        PrerequisiteError: which of these, and how to mend it.
    """
    copy = "copy run/token from the coordinator's study folder"
    if not path.is_file():
        raise PrerequisiteError(f"no token at {path}: {copy}, mode 600, or name it with --token-file")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise PrerequisiteError(
            f"{path} may be read by others (mode {mode:03o}), and whoever has it can run anything on every node: "
            f"chmod 600 {path}"
        )
    if not os.access(path, os.R_OK):
        raise PrerequisiteError(f"{path} cannot be read by you (mode {mode:03o}): chmod 600 {path}")
    text = path.read_bytes().strip()
    if len(text) != _TOKEN_CHARACTERS or not set(text) <= set(b"0123456789abcdef"):
        raise PrerequisiteError(f"{path} holds no token ({_TOKEN_CHARACTERS} hexadecimal digits): {copy} again")
