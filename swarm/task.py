"""What a Task is: `task.toml` parsed and checked, and the task folder as files that can travel.

Owns the format of `task.toml` and the promise that frozen files are the ones whose hashes stand there. Knows nothing
of nodes, trials or scores: it says which command trains, never runs it. A hash protects against edits by mistake
and by proposals; who may write to the folder itself may also write new hashes.
"""

import difflib
import re
import shlex
import string
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from swarm.errors import TaskError
from swarm.records import Direction, Files
from swarm.scale import Scale, parse_scale

TASK_FILE = "task.toml"
BUNDLE_BYTES = 16_000_000  # travels in one message to every node; code is small, data is prepared on the node
CACHES = frozenset({"__pycache__", "node_modules", "venv"})  # and everything whose name begins with a dot
PRINTED_PATTERN = r"^{name}:\s*([0-9.eE+-]+)"

PLACEHOLDERS: Mapping[str, frozenset[str]] = {
    "prepare": frozenset({"data"}),
    "train": frozenset({"data", "out", "seed", "budget"}),
    "score": frozenset({"code", "artifact"}),
}


class Commands(NamedTuple):
    """Templates of command lines: a script of the folder, then its arguments with `{placeholders}`. Empty: none."""

    prepare: str
    train: str
    score: str


@dataclass(frozen=True)
class Task:
    """What is improved, what is out of bounds, how it is trained, scored and limited."""

    name: str
    editable: tuple[str, ...]
    frozen: Mapping[str, str]  # path -> sha256
    commands: Commands
    metric: str
    direction: Direction
    score: Literal["answers", "printed"]  # printed: the candidate's own word, marked self-reported everywhere
    pattern: str  # printed: the score is its one group, in the last line that matches
    tokens: int  # length of the stream that the runner writes for each trial; 0 = no stream
    seconds: float  # wall time of one training: held by the runner (answers) or told only (printed); 0 = not the budget
    compile_seconds: float  # answers with `seconds`: wall time from process start until it is ready for its tokens
    cpu_limit: float  # a trial is killed at this multiple of the study's baseline CPU time; 0 = seconds are the budget
    window: int  # tokens of context when scoring
    val_tokens: int  # tokens scored
    tolerance_bits: float  # of what a token cost, as claimed, from what the audit finds; 0: no claims, but all logits
    scale: Scale | None = None  # at which promotions are checked again

    @property
    def train_script(self) -> str:
        """The file that both trains and, when scoring, turns tokens into predictions."""
        return shlex.split(self.commands.train)[0]

    @property
    def timed(self) -> bool:
        """Whether wall seconds, held by the runner, are the budget; `tokens` then are only more than anybody needs."""
        return self.score == "answers" and self.seconds > 0

    @property
    def paced(self) -> bool:
        """Whether a busy machine may score worse: seconds are the budget, or the script says what it trained for."""
        return self.seconds > 0 or self.score == "printed"

    @property
    def has_data(self) -> bool:
        """Whether a prepared data folder belongs to the Task."""
        return bool(self.commands.prepare)


# --- the file --------------------------------------------------------------------------------------------


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Commands(_Section):
    prepare: str = ""
    train: str = Field(min_length=1)
    score: str = ""


class _Metric(_Section):
    name: str = Field(min_length=1)
    direction: Direction = "minimize"
    score: Literal["answers", "printed"]
    pattern: str = ""


class _Budget(_Section):
    tokens: int = Field(default=0, ge=0)
    seconds: float = Field(default=0.0, ge=0)
    compile_seconds: float = Field(default=0.0, ge=0)
    cpu_limit: float = Field(default=2.0, ge=1)
    window: int = Field(default=256, ge=2)
    val_tokens: int = Field(default=65_536, ge=2)
    tolerance_bits: float = Field(default=0.0, ge=0)


class _Transfer(_Section):
    scale: str = ""


class _TaskFile(_Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    editable: tuple[str, ...] = Field(min_length=1)
    frozen: dict[str, str] = Field(default_factory=dict)
    commands: _Commands
    metric: _Metric
    budget: _Budget = _Budget()
    transfer: _Transfer = _Transfer()


def place_of(named: Path) -> tuple[Path, str]:
    """Folder and file of a Task: named by its folder (then it is `task.toml`), or by one of several files in it."""
    return (named.parent, named.name) if named.suffix == ".toml" else (named, TASK_FILE)


def load_task(named: Path) -> Task:
    """Read and check a task folder, by its own name or by that of a file like `task.toml` in it.

    Raises:
        TaskError: something is missing, misspelt, contradictory, or a frozen file was edited; says how to mend it.
    """
    folder, file = place_of(named)
    path = folder / file
    task = parse_task(_read_toml(folder, file), str(path))
    read_editable(folder, task)
    read_frozen(folder, task)
    for kind, template in task.commands._asdict().items():
        script = shlex.split(template)[:1]
        if script and not (folder / script[0]).is_file():
            _refuse(path, f"commands.{kind} runs {script[0]}, which is not in {folder}; add it or correct the command")
    return task


def parse_task(text: str, where: str) -> Task:
    """The Task that the text of a `task.toml` describes; looks at no other file."""
    try:
        raw = _TaskFile.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise TaskError(f"{where} is not valid TOML: {error}") from error
    except ValidationError as error:
        raise TaskError("\n".join(_explain(where, detail) for detail in error.errors())) from error
    _check_paths(raw, where)
    _check_commands(raw, where)
    _check_metric(raw, where)
    _check_seconds(raw, where)
    budget = raw.budget.model_dump()
    if raw.budget.compile_seconds:
        budget["cpu_limit"] = 0.0  # a GPU's work is not in the CPU's time
    return Task(
        name=raw.name,
        editable=raw.editable,
        frozen=raw.frozen,
        commands=Commands(**raw.commands.model_dump()),
        metric=raw.metric.name,
        direction=raw.metric.direction,
        score=raw.metric.score,
        pattern=raw.metric.pattern,
        **budget,
        scale=_scale(raw, where),
    )


def _scale(raw: _TaskFile, where: str) -> Scale | None:
    try:
        scale = parse_scale(raw.transfer.scale)
    except ValueError as error:
        raise TaskError(f"{where}: transfer.scale: {error}") from error
    if scale is not None and raw.budget.compile_seconds:
        _refuse(where, "transfer.scale needs a budget of tokens; with seconds that the runner holds, leave it out")
    if scale is not None and scale.tokens > 1 and not raw.budget.tokens:
        _refuse(where, f"transfer.scale = {str(scale)!r} needs budget.tokens: it is that stream which gets longer")
    return scale


def _read_toml(folder: Path, file: str) -> str:
    path = folder / file
    if not folder.is_dir():
        raise TaskError(
            f"no task folder at {folder} (from {Path.cwd()}): name yours with --set task=FOLDER; the shipped one is "
            "`baseline` in the swarm's own folder"
        )
    try:
        return path.read_text("utf-8")
    except FileNotFoundError as error:
        if file != TASK_FILE:
            others = ", ".join(sorted(other.name for other in folder.glob("*.toml"))) or "none"
            raise TaskError(f"no task file at {path}; there: {others}") from error
        if (folder / "train.py").is_file():
            raise TaskError(
                f"{folder} has a train.py but no {TASK_FILE}: run `swarm init {folder}` to write one"
            ) from error
        raise TaskError(
            f"{folder} is no task: it has neither {TASK_FILE} nor train.py; see `baseline` for one"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path} cannot be read: {error}") from error


def _explain(where: str, detail: Any) -> str:
    place = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "missing":
        return f"{where}: {place} is missing; see baseline/{TASK_FILE} for an example"
    if detail["type"] != "extra_forbidden":
        return f"{where}: {place} = {detail['input']!r}: {detail['msg']}"
    valid = _keys(detail["loc"][:-1])
    close = difflib.get_close_matches(str(detail["loc"][-1]), valid, n=1)
    hint = f"did you mean {close[0]}?" if close else f"valid here: {', '.join(valid)}"
    return f"{where}: {place}: unknown key; {hint}"


def _keys(sections: Sequence[str | int]) -> list[str]:
    model: type[BaseModel] = _TaskFile
    for section in sections:
        inner = model.model_fields[str(section)].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)


def _check_paths(raw: _TaskFile, where: str) -> None:
    for path in (*raw.editable, *raw.frozen):
        if not is_inside(path):
            _refuse(where, f"{path!r} is not a path inside the task folder; write it like train.py or lib/model.py")
    both = set(raw.editable) & set(raw.frozen)
    if both:
        _refuse(where, f"{', '.join(sorted(both))} is both editable and frozen; take it out of one list")


def _check_commands(raw: _TaskFile, where: str) -> None:
    for kind, template in raw.commands:
        given = _placeholders(template, f"{where}: commands.{kind}")
        unknown = given - PLACEHOLDERS[kind]
        if unknown:
            valid = ", ".join(f"{{{name}}}" for name in sorted(PLACEHOLDERS[kind]))
            _refuse(where, f"commands.{kind}: unknown placeholder {{{unknown.pop()}}}; valid here: {valid}")
    used = _placeholders(raw.commands.train, where)
    if "data" in used and not raw.commands.prepare:
        _refuse(where, "commands.train uses {data}, but no commands.prepare makes any; add it or drop {data}")
    if "budget" in used and not raw.budget.tokens:
        _refuse(where, "commands.train uses {budget}, but budget.tokens is 0; set it or drop {budget}")
    if raw.budget.tokens and not raw.commands.prepare:
        _refuse(where, "budget.tokens needs commands.prepare: the stream is drawn from the prepared data")


def _placeholders(template: str, where: str) -> set[str]:
    try:
        words = shlex.split(template)
        names = [name for word in words for _, name, _, _ in string.Formatter().parse(word) if name is not None]
    except ValueError as error:
        raise TaskError(f"{where} = {template!r} cannot be read as a command: {error}") from error
    if words and not is_inside(words[0]):
        _refuse(
            where,
            f"{words[0]!r} is not a script inside the task folder; write the command like `train.py --out {{out}}`",
        )
    return set(names)


def _check_metric(raw: _TaskFile, where: str) -> None:
    if raw.metric.score == "answers":
        if not (raw.commands.score and raw.commands.prepare and raw.budget.tokens):
            _refuse(where, 'metric.score = "answers" needs commands.score, commands.prepare and budget.tokens')
        window, scored = raw.budget.window, raw.budget.val_tokens
        if window > scored:
            _refuse(where, f"budget.window = {window} is more than budget.val_tokens = {scored}; lower it")
        return
    try:
        groups = re.compile(raw.metric.pattern, re.MULTILINE).groups
    except re.error as error:
        raise TaskError(f"{where}: metric.pattern = {raw.metric.pattern!r}: {error}") from error
    if groups != 1:
        example = PRINTED_PATTERN.format(name=raw.metric.name)
        _refuse(where, f'metric.score = "printed" needs metric.pattern with exactly one group, e.g. {example!r}')


def _check_seconds(raw: _TaskFile, where: str) -> None:
    timed = raw.metric.score == "answers" and raw.budget.seconds > 0
    if timed and not raw.budget.compile_seconds:
        _refuse(where, "budget.seconds needs budget.compile_seconds, the time to get ready before the clock starts")
    if timed and "budget" not in _placeholders(raw.commands.train, where):
        _refuse(where, "budget.seconds needs {budget} in commands.train: the clock starts when that file appears")
    if raw.budget.compile_seconds and not timed:
        _refuse(where, 'budget.compile_seconds belongs to budget.seconds with metric.score = "answers"; drop it')


def _refuse(where: object, message: str) -> NoReturn:
    raise TaskError(f"{where}: {message}")


# --- the folder ------------------------------------------------------------------------------------------


def read_editable(folder: Path, task: Task) -> dict[str, str]:
    """The editable files as text, byte for byte (line ends are kept)."""
    return {path: _read_text(folder, path) for path in task.editable}


def _read_text(folder: Path, path: str) -> str:
    try:
        return (folder / path).read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise TaskError(
            f"{folder}: the editable file {path} is missing; add it or correct `editable` in {TASK_FILE}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{folder / path} cannot be read as UTF-8 text: {error}") from error


def editable_only(files: Files, task: Task) -> None:
    """Refuse files that a Candidate may not bring.

    Raises:
        TaskError: a file that is not editable, or an editable one that is missing.
    """
    foreign, missing = set(files) - set(task.editable), set(task.editable) - set(files)
    if foreign:
        raise TaskError(f"{', '.join(sorted(foreign))} may not be edited; editable: {', '.join(task.editable)}")
    if missing:
        raise TaskError(f"{', '.join(sorted(missing))} is missing from the candidate's files")


def read_frozen(folder: Path, task: Task) -> dict[str, bytes]:
    """The frozen files, each with the hash that `task.toml` gives it."""
    files = {}
    for path, expected in task.frozen.items():
        try:
            files[path] = (folder / path).read_bytes()
        except OSError as error:
            raise TaskError(f"{folder}: the frozen file {path} cannot be read: {error.strerror}; restore it") from error
        found = sha256(files[path]).hexdigest()
        if found != expected:
            raise TaskError(
                f"{folder / path} has sha256 {found}, but {TASK_FILE} says {expected}: "
                "frozen files may not be edited; restore it (or, for a new Task, write the new hash)"
            )
    return files


def bundle(folder: Path, file: str = TASK_FILE) -> dict[str, bytes]:
    """Every regular file of a task folder, caches and hidden files aside, so that it can travel.

    Of several Tasks in one folder the one in `file` is meant: there it is called `task.toml`.

    Raises:
        TaskError: together they are larger than BUNDLE_BYTES.
    """
    sizes = {path: path.stat().st_size for path in _regular_files(folder)}
    if sum(sizes.values()) > BUNDLE_BYTES:
        largest = max(sizes, key=lambda path: sizes[path])
        megabytes = f"{sum(sizes.values()) / 1e6:.0f} MB"
        raise TaskError(
            f"{folder} holds {megabytes}, and at most {BUNDLE_BYTES / 1e6:.0f} MB travel to a node (largest: "
            f"{largest.relative_to(folder)}, {sizes[largest] / 1e6:.0f} MB); keep data outside the task folder"
        )
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sizes}
    return files if file == TASK_FILE else {**files, TASK_FILE: files[file]}


def _regular_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in CACHES or path.is_symlink():
            continue
        if path.is_dir():
            yield from _regular_files(path)
        elif path.is_file():
            yield path


def unbundle(files: Mapping[str, bytes], folder: Path) -> None:
    """Write a bundle into `folder`; nothing is written when any path leads out of it."""
    for path in files:
        if not is_inside(path):
            raise TaskError(f"{path!r} leads out of the task folder; nothing was written")
    for path, data in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def is_inside(path: str) -> bool:
    """Whether a path, as text, names a file below the folder it is relative to."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and not set(path) & set("\\\0\n:")


def command(template: str, code: Path, values: Mapping[str, object]) -> tuple[str, ...]:
    """A template as the command line that this Python runs, its script found in `code`."""
    script, *words = shlex.split(template)
    return (sys.executable, str(code / script), *(word.format_map(values) for word in words))
