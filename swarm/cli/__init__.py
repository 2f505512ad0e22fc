"""The command line: the only place in `swarm` that knows both sides, and that prints.

    swarm run | coordinator | join | leave          work
    swarm status | log | show | leaderboard         look
    swarm pull | reproduce | export                 use what was found
    swarm simulate | verdict                        judge the judge, and a table of your own
    swarm init | doctor                             begin

Exit codes: 0 done, 1 the answer is no (a result did not hold), 2 something you can mend, 130 interrupted.
"""

import errno
import io
import logging
import sys

import click

from swarm.cli.believe import simulate, verdict
from swarm.cli.read import export, leaderboard, log, show, status
from swarm.cli.use import doctor, init, pull, reproduce
from swarm.cli.work import coordinator, join, leave, run
from swarm.errors import PrerequisiteError, SwarmError

COMMANDS = (
    *(run, coordinator, join, leave),
    *(status, log, show, leaderboard),
    *(pull, reproduce, export),
    *(simulate, verdict),
    *(init, doctor),
)


class InOrder(click.Group):
    """Shows commands in the order of COMMANDS, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="swarm-research", prog_name="swarm")
@click.option("-v", "--verbose", is_flag=True, help="Log what the machinery does to stderr.")
def cli(verbose: bool) -> None:
    """A swarm of research agents that improves one training script, and believes only what reproduces."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.ERROR,
        format="%(asctime)s %(name)s %(message)s",
        datefmt="%H:%M:%S",
    )


for command in COMMANDS:
    cli.add_command(command)


def main() -> None:
    """Entry point. A user's mistake is one sentence and exit code 2, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter gets a question mark
    try:
        code = cli(prog_name="swarm", standalone_mode=False)
    except click.Abort:
        code = 130
    except click.ClickException as mistake:
        mistake.show()
        code = 2
    except PrerequisiteError as mistake:
        code = _say(mistake, 2)
    except SwarmError as error:
        code = _say(error, 1)
    except OSError as error:
        if error.errno not in _OS_WORDS:
            raise
        code = _say(f"{_OS_WORDS[error.errno]}{f' ({error.filename})' if error.filename else ''}", 2)
    sys.exit(code)


_OS_WORDS = {
    errno.ENOSPC: "the disk is full: free some space and give the same command again; nothing that finished is lost",
    errno.EDQUOT: "the disk quota is used up: free some space and give the same command again; nothing is lost",
    errno.EROFS: "this folder is read-only: run the swarm where it may write",
    errno.EACCES: "permission denied: run the swarm where it may write",
    errno.EPERM: "permission denied: run the swarm where it may write",
    errno.EEXIST: "something else has this name: choose another",
    errno.ENOTDIR: "this is no folder: name another",
    errno.EISDIR: "this is a folder: name a file",
    errno.ENAMETOOLONG: "this name is too long: choose a shorter one",
}


def _say(error: object, code: int) -> int:
    click.echo(f"swarm: {error}", err=True)
    return code
