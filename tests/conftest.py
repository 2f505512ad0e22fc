"""Settings of every test, and the nightly mode: `--nightly` calibrates with seeds that nobody has tried."""

import secrets

import luck
import pytest
from hypothesis import settings

from node.sandbox.groups import sweep

settings.register_profile("swarm", deadline=None)  # a busy machine is no fault of the code's
settings.load_profile("swarm")


def pytest_addoption(parser: pytest.Parser) -> None:
    what = "move the seeds of all simulations by N; without N by a number drawn now"
    parser.addoption(
        "--nightly", type=int, nargs="?", const=secrets.randbelow(10**9), default=0, metavar="N", help=what
    )


def pytest_configure(config: pytest.Config) -> None:
    luck.move(config.getoption("--nightly"))


def pytest_sessionfinish() -> None:
    """Remove the control groups of nodes that tests killed: there is no next start that would."""
    sweep()


def pytest_report_header(config: pytest.Config) -> str:
    by = config.getoption("--nightly")
    return f"simulations with seeds moved by {by}: again with --nightly {by}" if by else "simulations with fixed seeds"
