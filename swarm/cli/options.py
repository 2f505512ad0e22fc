"""Options that several commands share."""

from pathlib import Path

import click

from swarm.trust import FLAG

STUDY = click.option(
    "--study", type=click.Path(path_type=Path), help="Folder or name of the study; default: the newest in studies/."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
CONFIG = click.argument("config", required=False, type=click.Path(path_type=Path))
SET = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key, e.g. --set stop.wall_minutes=3."
)
PLAIN = click.option("--plain", is_flag=True, help="Plain lines instead of the live view.")
TRUST = click.option(
    FLAG,
    "trust",
    is_flag=True,
    help="Run code below the sandbox level that it asks for; it can read your files. The record says so.",
)
HOME = click.option(
    "--home", type=click.Path(path_type=Path), help="Where this node keeps its identity and unsent results."
)
