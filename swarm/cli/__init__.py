"""The command line: the only place in `swarm` that knows both sides, and that prints.

    swarm run | coordinator | join | leave          work
    swarm status | log | show | leaderboard         look
    swarm pull | reproduce | export                 use what was found
    swarm init | doctor                             begin

Exit codes: 0 done, 1 the answer is no (a result did not hold), 2 something you can mend, 130 interrupted.
"""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from swarm.errors import PrerequisiteError, SwarmError

STUDY = click.option(
    "--study", type=click.Path(path_type=Path), help="Folder or name of the study; default: the newest in studies/."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


class Commands(click.Group):
    """Shows commands in the order in which they were written, not by the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option("0.1.0", prog_name="swarm")
@click.option("-v", "--verbose", is_flag=True, help="Log what the machinery does to stderr.")
def cli(verbose: bool) -> None:
    """A swarm of research agents that improves one training script, and believes only what reproduces."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.ERROR, format="%(asctime)s %(name)s %(message)s", datefmt="%H:%M:%S"
    )


def _config(path: Path | None, overrides: tuple[str, ...]) -> Any:
    from swarm.config import load_config

    default = Path("configs/laptop.toml")
    return load_config(path or (default if default.exists() else None), overrides)


CONFIG = click.argument("config", required=False, type=click.Path(path_type=Path))
SET = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key, e.g. --set stop.wall_minutes=3."
)


@cli.command()
@CONFIG
@SET
@click.option("--plain", is_flag=True, help="Plain lines instead of the live view.")
def run(config: Path | None, overrides: tuple[str, ...], plain: bool) -> None:
    """Run a study on this machine, to its end. The same command again resumes it.

    CONFIG is a TOML file; the default is configs/laptop.toml.
    """
    from swarm.cli.run import run_study

    settings = _config(config, overrides)
    finished = run_study(settings, Console(), local=settings.nodes.local, plain=plain)
    sys.exit(_exit_code(finished))


@cli.command()
@CONFIG
@SET
@click.option("--host", default="", help="Address under which nodes reach this machine; default: this machine only.")
@click.option("--port", default=6379, show_default=True, help="Port of the head.")
@click.option("--plain", is_flag=True, help="Plain lines instead of the live view.")
def coordinator(config: Path | None, overrides: tuple[str, ...], host: str, port: int, plain: bool) -> None:
    """Run the coordinator of a study; nodes come by `swarm join`."""
    from swarm.cli.run import run_study

    finished = run_study(_config(config, overrides), Console(), local=0, port=port, host=host, plain=plain)
    sys.exit(_exit_code(finished))


def _exit_code(finished: Any) -> int:
    if finished is None:
        return 130
    return 2 if finished.reason.startswith("the baseline itself fails") else 0


@cli.command()
@click.argument("address")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    default=Path("token"),
    show_default=True,
    help="The cluster's token.",
)
@click.option("--home", type=click.Path(path_type=Path), help="Where this node keeps its identity and unsent results.")
@click.option("--name", default="", help="How people call this node; default: the host's name.")
@click.option(
    "--gpu/--cpu", "gpu", default=None, help="Lend the GPU, or one CPU slot; default: the GPU if there is one."
)
def join(address: str, token_file: Path, home: Path | None, name: str, gpu: bool | None) -> None:
    """Lend this machine to the cluster at ADDRESS (HOST:PORT) until Ctrl-C or `swarm leave`."""
    from swarm.cli import run as work

    logging.getLogger("swarm").setLevel(logging.INFO)
    work.join(
        address, (home or work.default_node_home()).absolute(), token_file, name or work.default_node_name(), gpu=gpu
    )


@cli.command()
@click.option("--home", type=click.Path(path_type=Path), help="The home given to `swarm join`.")
@STUDY
def leave(home: Path | None, study: Path | None) -> None:
    """End what runs here: a joined node, or with --study a coordinator and its processes."""
    from swarm.cli import run as work
    from swarm.cli.studies import find

    place = find(study) if study is not None else (home or work.default_node_home())
    for line in work.leave(place.absolute()):
        click.echo(line)


from swarm.cli import read, use  # noqa: E402  # they add their commands to the group above

for command in (
    read.status,
    read.log,
    read.show,
    read.leaderboard,
    use.pull,
    use.reproduce,
    read.export,
    use.init,
    use.doctor,
):
    cli.add_command(command)


def main(run_cli: Callable[..., Any] = cli) -> None:
    """Entry point. A user's mistake is one sentence and exit code 2, never a traceback."""
    try:
        run_cli(standalone_mode=False)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as mistake:
        mistake.show()
        sys.exit(2)
    except PrerequisiteError as mistake:
        click.echo(f"swarm: {mistake}", err=True)
        sys.exit(2)
    except SwarmError as error:
        click.echo(f"swarm: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        if error.errno is None:
            raise
        click.echo(f"swarm: {_os_words(error)}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _os_words(error: OSError) -> str:
    import errno

    where = f" ({error.filename})" if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"the disk is full{where}: free some space and run the same command again; nothing that finished is lost"
    return f"{error.strerror}{where}"
