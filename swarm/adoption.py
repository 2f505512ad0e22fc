"""How somebody else's folder becomes a Task: a commented `task.toml` is written for it, once. Nothing is run."""

import json
import re
from hashlib import sha256
from pathlib import Path

from swarm.errors import TaskError
from swarm.records import Direction
from swarm.task import PRINTED_PATTERN, TASK_FILE, load_task


def init_task(
    folder: Path, *, metric: str = "val_bpb", direction: Direction = "minimize", seconds: float = 300.0
) -> None:
    """Write a commented `task.toml` for a folder whose `train.py` prints its score.

    Raises:
        TaskError: there is no train.py, or a task.toml already.
    """
    path = folder / TASK_FILE
    if not (folder / "train.py").is_file():
        raise TaskError(
            f"{folder} has no train.py: put the script to improve there, then run `swarm init {folder}` again"
        )
    if path.exists():
        raise TaskError(f"{path} exists already; edit it, or remove it and run `swarm init {folder}` again")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-._") or "task"
    frozen = {"prepare.py": (folder / "prepare.py").read_bytes()} if (folder / "prepare.py").is_file() else {}
    hashes = "\n".join(f"{json.dumps(file)} = {json.dumps(sha256(data).hexdigest())}" for file, data in frozen.items())
    pattern = PRINTED_PATTERN.format(name=re.escape(metric))
    values = {"name": name, "hashes": hashes or "# (none yet)", "metric": json.dumps(metric), "pattern": pattern}
    path.write_text(_TEMPLATE.format(**values, direction=direction, seconds=seconds), "utf-8")
    load_task(folder)


_TEMPLATE = """\
# The Task: what is improved, what is out of bounds, how it is run and limited.
name = "{name}"
editable = ["train.py"]  # the files that researchers may change

[frozen]  # sha256 of files that nobody may edit; checked at every start
{hashes}

[commands]  # run by this machine's own Python, in a copy of this folder
train = "train.py"  # may use {{out}}, {{seed}}; the seed is in the environment as SWARM_SEED, too

[metric]
name = {metric}
direction = "{direction}"  # or "maximize"
score = "printed"  # what train.py prints is believed: such scores are marked self-reported
pattern = '{pattern}'  # the last line that matches; the group is the score

[budget]
seconds = {seconds:.1f}  # wall time of one training
cpu_limit = 2.0  # a trial is killed at this multiple of the baseline's CPU time
"""
