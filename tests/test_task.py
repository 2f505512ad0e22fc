"""What a task folder may say, and the sentence with which everything else is refused."""

import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import toy_task as toy

from swarm.adoption import init_task
from swarm.errors import PrerequisiteError, TaskError
from swarm.task import bundle, command, editable_only, load_task, read_editable, read_frozen, unbundle

BASELINE = Path(__file__).resolve().parent.parent / "baseline"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return toy.answers_task(tmp_path / "task")


def edit(folder: Path, old: str, new: str) -> None:
    path = folder / "task.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def refusal(folder: Path) -> str:
    with pytest.raises(TaskError) as caught:
        load_task(folder)
    assert isinstance(caught.value, PrerequisiteError)
    return str(caught.value)


def test_the_shipped_task_is_sound() -> None:
    task = load_task(BASELINE)
    assert (task.metric, task.direction, task.score, task.editable) == ("val_bpb", "minimize", "answers", ("train.py",))
    assert task.train_script == "train.py"
    assert set(task.frozen) >= {"prepare.py", "score.py"}
    assert "train.py" not in task.frozen


# --- refusals ---


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            'name = "val_bpb"',
            'name = "val_bpb"\ndirecton = "minimize"',
            "metric.directon: unknown key; did you mean direction?",
        ),
        ("[budget]", "[budget]\nzzz = 1", "budget.zzz: unknown key; valid here: tokens, seconds"),
        ('score = "answers"', 'score = "guessed"', "metric.score = 'guessed'"),
        ("tokens = 1300", "tokens = nan", "budget.tokens = nan"),
        ("window = 8", "window = 401", "budget.window = 401 is more than budget.val_tokens = 400"),
        ('scale = ""', 'scale = "depth=1"', "transfer.scale: 'depth=1' is no scale: write it as depth=2 or tokens=3"),
        ('scale = ""', 'scale = "twice"', "transfer.scale: 'twice' is no scale"),
        ("tokens = 1300", "tokens = 0", "uses {budget}, but budget.tokens is 0"),
        ('prepare = "prepare.py --out {data}"', "", "no commands.prepare makes any"),
        ('score = "score.py --code {code} --artifact {artifact}"', "", "needs commands.score"),
        ("--seed {seed}", "--seed {sed}", "unknown placeholder {sed}; valid here: {budget}, {data}, {out}, {seed}"),
        ("--seed {seed}", "--seed {", "cannot be read as a command"),
        ("--seed {seed}", "--seed '{seed}", "cannot be read as a command"),
        ('train = "train.py', 'train = "python train.py', "commands.train runs python, which is not in"),
        ('train = "train.py', 'train = "../train.py', "'../train.py' is not a script inside"),
        ('editable = ["train.py"]', 'editable = ["train.py", "model.py"]', "model.py is missing"),
        ('editable = ["train.py"]', 'editable = ["../train.py"]', "'../train.py' is not a path inside"),
        ('editable = ["train.py"]', 'editable = ["train.py", "score.py"]', "score.py is both editable and frozen"),
        ('editable = ["train.py"]', "editable = []", "editable"),
        ('editable = ["train.py"]', "", "editable is missing"),
        ('name = "toy"', 'name = "toy', "line 2"),
        ('score = "answers"', 'score = "printed"', "metric.pattern with exactly one group, e.g. '^val_bpb:"),
        ('score = "answers"', "score = \"printed\"\npattern = '('", "metric.pattern = '('"),
    ],
)
def test_a_mistake_gets_one_sentence_with_the_place(folder: Path, old: str, new: str, words: str) -> None:
    edit(folder, old, new)
    message = refusal(folder)
    assert words in message
    assert str(folder) in message
    assert "\n" not in message


def test_a_changed_frozen_file_is_named_with_both_hashes(folder: Path) -> None:
    expected = sha256((folder / "score.py").read_bytes()).hexdigest()
    (folder / "score.py").write_text("print('mine')")
    found = sha256(b"print('mine')").hexdigest()
    message = refusal(folder)
    assert "score.py" in message
    assert expected in message
    assert found in message
    assert "frozen files may not be edited" in message


def remove_train(folder: Path) -> None:
    (folder / "train.py").unlink()


def remove_frozen(folder: Path) -> None:
    (folder / "score.py").unlink()


def make_binary(folder: Path) -> None:
    (folder / "train.py").write_bytes(b"\xff\xfe")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (remove_train, "editable file train.py is missing"),
        (remove_frozen, "frozen file score.py cannot be read"),
        (make_binary, "cannot be read as UTF-8"),
    ],
)
def test_a_missing_or_broken_file_is_named(folder: Path, spoil: Callable[[Path], None], words: str) -> None:
    spoil(folder)
    assert words in refusal(folder)


def test_no_folder_and_no_task_say_what_to_do(tmp_path: Path) -> None:
    assert "no task folder at" in refusal(tmp_path / "absent")
    assert "neither task.toml nor train.py" in refusal(tmp_path)
    (tmp_path / "train.py").write_text("print('val_bpb: 1.0')")
    assert f"run `swarm init {tmp_path}`" in refusal(tmp_path)


# --- files ---


def test_editable_files_keep_every_byte(folder: Path) -> None:
    text = "# Grüße\r\nx = 1\n\n"
    (folder / "train.py").write_bytes(text.encode())
    task = load_task(folder)
    assert read_editable(folder, task) == {"train.py": text}
    assert list(read_frozen(folder, task)) == ["score.py"]


def test_a_bundle_arrives_as_it_left(folder: Path, tmp_path: Path) -> None:
    (folder / "lib" / "__pycache__").mkdir(parents=True)
    (folder / "lib" / "model.py").write_text("x = 1\n")
    (folder / "lib" / "__pycache__" / "model.pyc").write_bytes(b"cache")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("secret")
    (folder / "link").symlink_to("/etc/passwd")
    files = bundle(folder)
    assert sorted(files) == ["lib/model.py", "prepare.py", "score.py", "task.toml", "train.py"]
    unbundle(files, tmp_path / "there")
    assert bundle(tmp_path / "there") == files
    assert load_task(tmp_path / "there") == load_task(folder)


def test_one_folder_may_hold_several_tasks(folder: Path, tmp_path: Path) -> None:
    (folder / "task-short.toml").write_text((folder / "task.toml").read_text().replace("tokens = 1300", "tokens = 7"))
    short = load_task(folder / "task-short.toml")
    assert (short.tokens, load_task(folder).tokens) == (7, 1300)
    unbundle(bundle(folder, "task-short.toml"), tmp_path / "there")
    assert load_task(tmp_path / "there") == short
    with pytest.raises(TaskError, match=r"no task file at .*task-long.toml; there: task-short.toml, task.toml"):
        load_task(folder / "task-long.toml")


def test_a_folder_with_data_in_it_does_not_travel(folder: Path) -> None:
    with open(folder / "shard.bin", "wb") as file:
        file.truncate(17_000_000)
    with pytest.raises(TaskError, match=r"shard.bin, 17 MB\); keep data outside"):
        bundle(folder)


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "a/../../evil", "", ".", "a\\b", "a\0b"])
def test_a_bundle_cannot_write_elsewhere(tmp_path: Path, path: str) -> None:
    with pytest.raises(TaskError, match="leads out of"):
        unbundle({"good.py": b"", path: b"evil"}, tmp_path / "there")
    assert list(tmp_path.iterdir()) == []


def test_a_candidate_brings_editable_files_only(folder: Path) -> None:
    task = load_task(folder)
    editable_only({"train.py": ""}, task)
    with pytest.raises(TaskError, match=r"score\.py may not be edited; editable: train\.py"):
        editable_only({"train.py": "", "score.py": ""}, task)
    with pytest.raises(TaskError, match=r"train\.py is missing"):
        editable_only({}, task)


def test_a_command_is_run_by_this_python_with_its_values(tmp_path: Path) -> None:
    template = "train.py --out {out} --name 'two words' --at {out}/x"
    assert command(template, tmp_path, {"out": "/a b"}) == (
        sys.executable, str(tmp_path / "train.py"), "--out", "/a b", "--name", "two words", "--at", "/a b/x",
    )  # fmt: skip


# --- other people's folders ---


def test_init_makes_a_task_of_a_script_that_prints(tmp_path: Path) -> None:
    folder = tmp_path / "my research (2)"
    folder.mkdir()
    (folder / "train.py").write_text("print('val_bpb: 0.9979')")
    (folder / "prepare.py").write_text("# read-only")
    init_task(folder)
    task = load_task(folder)
    assert (task.name, task.score, task.metric, task.direction) == ("my-research-2", "printed", "val_bpb", "minimize")
    assert list(task.frozen) == ["prepare.py"]
    assert not task.has_data
    assert task.seconds == 300


def test_init_writes_another_metric_as_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    init_task(tmp_path, metric="acc (top-1)", direction="maximize", seconds=60)
    task = load_task(tmp_path)
    assert (task.metric, task.direction, task.seconds) == ("acc (top-1)", "maximize", 60)
    assert task.pattern.startswith(r"^acc\ \(top\-1\):")


def test_init_overwrites_nothing_and_needs_a_script(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="exists already"):
        init_task(folder)
    with pytest.raises(TaskError, match=r"has no train\.py"):
        init_task(tmp_path)


# --- a larger scale ---


@pytest.mark.parametrize(
    ("text", "tokens", "arguments"),
    [
        ("depth=2", 1, ("--scale", "depth=2")),
        ("tokens=3", 3, ()),
        ("width=12", 1, ("--scale", "width=12")),
    ],
)
def test_a_task_may_name_a_larger_scale(folder: Path, text: str, tokens: int, arguments: tuple[str, ...]) -> None:
    edit(folder, 'scale = ""', f'scale = "{text}"')
    scale = load_task(folder).scale
    assert scale is not None and str(scale) == text
    assert (scale.factor, scale.tokens, scale.arguments) == (int(text.partition("=")[2]), tokens, arguments)


def test_a_longer_stream_needs_a_stream(tmp_path: Path) -> None:
    folder = toy.printed_task(tmp_path / "printed")
    with (folder / "task.toml").open("a") as file:
        file.write('[transfer]\nscale = "tokens=3"\n')
    assert "transfer.scale = 'tokens=3' needs budget.tokens" in refusal(folder)


def test_a_larger_scale_goes_with_a_budget_of_tokens_only(folder: Path) -> None:
    edit(folder, 'scale = ""', 'scale = "depth=2"')
    edit(folder, "tokens = 1300", "tokens = 1300\nseconds = 5\ncompile_seconds = 5")
    assert "transfer.scale needs a budget of tokens" in refusal(folder)
