"""Everything that people look at, generated from the facts in one place. Pure."""

from coordinator.leaderboard import leaderboard_md, results_tsv
from coordinator.plot import progress_png
from coordinator.report import report_md
from swarm.history import History
from swarm.scrub import scrub

LEADERBOARD = "LEADERBOARD.md"


def pages(told: History, notes: str) -> dict[str, str | bytes]:
    """File name -> content."""
    return {
        LEADERBOARD: leaderboard_md(told),
        "results.tsv": results_tsv(told),
        "report.md": report_md(told, notes=scrub(notes)),
        "progress.png": progress_png(told),
    }
