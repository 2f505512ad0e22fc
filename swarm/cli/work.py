"""`swarm run`, `coordinator`, `join` and `leave` as commands; `swarm.cli.run` does the work."""

import logging
import sys
from pathlib import Path

import click
from rich.console import Console

from coordinator.mind import NO_NODE
from swarm.cli import run as wiring
from swarm.cli.checks import check_host
from swarm.cli.options import CONFIG, HOME, PLAIN, SET, STUDY, TRUST
from swarm.cli.studies import find
from swarm.config import Config, load_config
from swarm.errors import ConfigError
from swarm.records import StudyFinished


@click.command()
@CONFIG
@SET
@PLAIN
@TRUST
def run(config: Path | None, overrides: tuple[str, ...], plain: bool, trust: bool) -> None:
    """Run a study on this machine, to its end. The same command again resumes it.

    CONFIG is a TOML file; the default is configs/laptop.toml.
    """
    settings = _config(config, overrides, trust)
    if settings.nodes.local == 0:
        raise ConfigError("nodes.local = 0: no node would run a trial; `swarm coordinator` is for nodes that join")
    sys.exit(_exit_code(wiring.run_study(settings, Console(), local=settings.nodes.local, plain=plain)))


@click.command()
@CONFIG
@SET
@PLAIN
@TRUST
@click.option("--host", default="", help="Address under which nodes reach this machine; default: this machine only.")
@click.option("--port", default=6379, show_default=True, type=click.IntRange(1, 65535), help="Port of the head.")
def coordinator(
    config: Path | None, overrides: tuple[str, ...], plain: bool, trust: bool, host: str, port: int
) -> None:
    """Run the coordinator of a study; nodes come by `swarm join`."""
    settings = _config(config, overrides, trust)
    if host:
        check_host(host)
    sys.exit(_exit_code(wiring.run_study(settings, Console(), local=0, port=port, host=host, plain=plain)))


def _config(path: Path | None, overrides: tuple[str, ...], trust: bool) -> Config:
    default = Path("configs/laptop.toml")
    overrides = (*overrides, "nodes.trust_code=true") if trust else overrides
    return load_config(path or (default if default.exists() else None), overrides)


def _exit_code(finished: StudyFinished | None) -> int:
    """0 also without a promotion: an honest no is a result. 2 when the Task or the nodes do not work at all."""
    if finished is None:
        return 130
    return 2 if finished.reason.startswith(("the baseline itself fails", NO_NODE)) else 0


@click.command()
@click.argument("address")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, readable=False),
    default=Path("token"),
    show_default=True,
    help="The cluster's token, copied from the coordinator's study folder.",
)
@HOME
@click.option("--name", default="", help="How people call this node; default: the host's name.")
@click.option("--gpu/--cpu", "gpu", default=None, help="Lend the GPU, or one CPU slot; default: the GPU if it has one.")
@TRUST
def join(address: str, token_file: Path, home: Path | None, name: str, gpu: bool | None, trust: bool) -> None:
    """Lend this machine to a cluster until Ctrl-C or `swarm leave`.

    ADDRESS is HOST:PORT, as `swarm coordinator` prints it.
    """
    logging.getLogger("swarm").setLevel(logging.INFO)
    place = (home or wiring.default_node_home()).absolute()
    wiring.join(address, place, token_file, name or wiring.default_node_name(), gpu=gpu, trust=trust)


@click.command()
@HOME
@STUDY
def leave(home: Path | None, study: Path | None) -> None:
    """End what runs here: a joined node, or a coordinator.

    Without --study the node that `swarm join` started; with it the coordinator and every process of that study.
    """
    place = find(study) if study is not None else (home or wiring.default_node_home())
    for line in wiring.leave(place.absolute()):
        click.echo(line)
