"""What a person may get wrong: each ends with one sentence that says how to mend it, exit code 2, no traceback.

What `swarm run` refuses, it refuses before it starts anything: no study folder is made.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import toy_task as toy
from commands import Said, start, swarm, swarm_process
from factories import small_study

from swarm.cluster import ensure_token
from swarm.ledger import Ledger

ROOT = os.geteuid() == 0
ALIEN = """
import sys
class NoArguments:
    pass
class Picky:
    def __init__(self, seed, options):
        raise ValueError("options.temperature is missing")
not_a_class = 3
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A working directory with one good task."""
    toy.printed_task(tmp_path / "task")
    return tmp_path


def refused(place: Path, *arguments: str, env: dict[str, str] | None = None) -> str:
    """`swarm run` on the good task, refused before anything was made."""
    said = swarm(place, "run", "--set", "task=task", *arguments, env=env)
    assert not (place / "studies").exists(), "refused before anything was started"
    assert said.out == ""
    assert len(said.err) < 500, "a sentence, not a page"
    return said.sentence


def settings(*overrides: str) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


def test_code_that_asks_for_walls_where_there_are_none(place: Path) -> None:
    words = refused(place, *settings("nodes.sandbox=bare"))
    assert "level 0" in words and "level 1" in words and "--i-trust-this-code" in words


# --- the configuration -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[stop]\nwall_minuts = 3", "mine.toml: stop.wall_minuts: unknown key; did you mean wall_minutes?"),
        ("[stopp]\nwall_minutes = 3", "mine.toml: stopp: unknown key; did you mean stop?"),
        ("zzzz = 1", "mine.toml: zzzz: unknown key; valid here: study, task, seed"),
        ("seed = 1\nseed = 2", "mine.toml is not valid TOML: Cannot overwrite a value (at line 2, column 9)"),
        ("[stop\n", "mine.toml is not valid TOML: Expected ']'"),
        ("seed = -1", "seed = -1: Input should be greater than or equal to 0"),
        ("[nodes]\nlocal = 65", "nodes.local = 65: Input should be less than or equal to 64"),
        ("[stop]\nwall_minutes = nan", "stop.wall_minutes = nan: Input should be a finite number"),
        ("stop = 3", "stop = 3: it is a section; set one of its keys: wall_minutes"),
        ('study = "My Study"', "study = 'My Study': use a-z, 0-9 and -"),
        ('[decision]\ndial = "lavish"', "'economy', 'standard' or 'thorough'"),
        ("[stop]\nwall_minutes = 1", "stop.final_minutes = 1.8 must be smaller than stop.wall_minutes = 1"),
    ],
)
def test_a_configuration_that_cannot_be_obeyed(place: Path, text: str, words: str) -> None:
    (place / "mine.toml").write_text(text + "\n")
    assert words in refused(place, "mine.toml")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stop.wall_minuts=3", "--set: stop.wall_minuts: unknown key; did you mean wall_minutes?"),
        ("stop.wall_minutes", "write it as section.key=value"),
        ("=3", "write it as section.key=value"),
        ("stop.wall_minutes=soon", "stop.wall_minutes = 'soon': Input should be a valid number"),
        ("task.folder=3", "task is a value, not a section"),
        ("notes=\udc80", "no Unicode"),
    ],
)
def test_an_override_that_cannot_be_obeyed(place: Path, override: str, words: str) -> None:
    assert words in refused(place, "--set", override)


def test_a_configuration_that_is_not_there_or_is_not_text(place: Path) -> None:
    assert "no configuration at nope.toml; the shipped ones are in configs/" in refused(place, "nope.toml")
    (place / "bytes.toml").write_bytes(b"\xff\xfe")
    assert "bytes.toml" in refused(place, "bytes.toml")
    assert "task cannot be read" in refused(place, "task")


# --- names that lead nowhere -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("use", "words"),
    [
        ("tunr", "proposer 'tunr' is unknown; did you mean 'tuner'?"),
        ("gpt", "proposer 'gpt' is unknown; choose one of tuner, claude"),
        ("", "proposer '' is unknown"),
        (":X", "proposer ':X' is unknown"),
        ("nowhere.at.all:X", "No module named 'nowhere'"),
        ("alien:Missing", "has no attribute 'Missing'"),
        ("alien:not_a_class", "is no class"),
        ("alien:NoArguments", "cannot be built with the options {}"),
        ("alien:Picky", "options.temperature is missing"),
    ],
)
def test_a_proposer_that_nobody_knows(place: Path, monkeypatch: pytest.MonkeyPatch, use: str, words: str) -> None:
    (place / "alien.py").write_text(ALIEN)
    monkeypatch.syspath_prepend(place)
    assert words in refused(place, "--set", f"proposer.use={use}")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["proposer.options.pears=0.2"], "pears"),
        (["proposer.options.pairs=many"], "pairs"),
        (["proposer.options.tier=tpu"], "choose cpu or gpu"),
        (["proposer.use=claude", "proposer.options.modell=x"], "modell"),
        (["proposer.use=claude", "proposer.options.attempts=0"], "attempts must be at least 1"),
    ],
)
def test_options_that_the_proposer_does_not_have(place: Path, options: list[str], words: str) -> None:
    assert words in refused(place, *settings(*options))


def test_claude_without_a_key_is_refused_before_ray_starts(place: Path) -> None:
    sentence = refused(place, "--set", "proposer.use=claude", env={"ANTHROPIC_API_KEY": ""})
    assert "ANTHROPIC_API_KEY" in sentence and "tuner" in sentence


@pytest.mark.parametrize(("use", "words"), [("bar", "did you mean 'bare'?"), ("nowhere:Box", "No module named")])
def test_a_sandbox_that_nobody_knows(place: Path, use: str, words: str) -> None:
    assert words in refused(place, "--set", f"nodes.sandbox={use}")


def test_a_coordinator_without_nodes_of_its_own_refuses_misspelt_names_only(place: Path) -> None:
    with socket.create_server(("", 0)) as server:
        port = str(server.getsockname()[1])  # in use: what is not refused before ends there
        arguments = ("coordinator", "--port", port, "--set", "task=task")
        assert "did you mean 'tuner'?" in swarm(place, *arguments, "--set", "proposer.use=tunr").sentence
        assert "did you mean 'bare'?" in swarm(place, *arguments, "--set", "nodes.sandbox=bar").sentence
        elsewhere = ("--set", "proposer.use=on_the_nodes:Only", "--set", "nodes.sandbox=on_the_nodes:Box")
        assert f"port {port}" in swarm(place, *arguments, *elsewhere).sentence


def test_a_forge_that_is_unknown_or_lacks_something(place: Path) -> None:
    assert "did you mean 'github'?" in refused(place, "--set", "forge.use=gitlab")
    assert "cannot be loaded" in refused(place, "--set", "forge.use=nowhere:Forge")
    assert "no node would run a trial" in refused(place, "--set", "nodes.local=0")
    github = settings("forge.use=github", "forge.repository=me/mine")
    assert "GITHUB_TOKEN" in refused(place, *github, env={"GITHUB_TOKEN": ""})
    assert "forge.repository" in refused(place, *github[:2], env={"GITHUB_TOKEN": "token"})


# --- tasks -----------------------------------------------------------------------------------------------


def test_a_task_that_is_none(place: Path) -> None:
    (place / "empty").mkdir()
    assert "no task folder at nowhere" in refused(place, "--set", "task=nowhere")
    assert "neither task.toml nor train.py" in refused(place, "--set", "task=empty")
    (place / "empty" / "train.py").write_text("")
    assert "run `swarm init empty`" in refused(place, "--set", "task=empty")
    (place / "task" / "train.py").unlink()
    assert "train.py is missing" in refused(place)


def test_a_task_whose_frozen_file_was_edited(place: Path) -> None:
    toy.answers_task(place / "answers")
    with (place / "answers" / "score.py").open("a") as file:
        file.write("# easier\n")
    assert "frozen files may not be edited; restore it" in refused(place, "--set", "task=answers")


def test_a_task_with_a_typo(place: Path) -> None:
    path = place / "task" / "task.toml"
    path.write_text(path.read_text().replace("score =", "scor ="))
    assert "metric.scor: unknown key; did you mean score?" in refused(place)


def test_a_task_that_trains_longer_than_a_trial_may_take(place: Path) -> None:
    with (place / "task" / "task.toml").open("a") as file:
        file.write("[budget]\nseconds = 300\n")
    assert "trains for 300 s" in refused(place) and "nodes.trial_wall_s" in refused(place)


def test_a_folder_without_prepared_data(place: Path) -> None:
    words = refused(place, *settings("nodes.sandbox=bare", "nodes.trust_code=true", "nodes.data=task"))
    assert "nodes.data = 'task'" in words and "manifest.json" in words


def refused_data(place: Path) -> str:
    """`swarm run` on prepared data in `place/data`, refused before a study was made."""
    chosen = settings("task=small", "nodes.data=data", "nodes.sandbox=bare", "nodes.trust_code=true")
    words = swarm(place, "run", *chosen).sentence
    assert not (place / "studies").exists()
    return words


def test_data_with_too_little_text_to_score_and_audit(place: Path) -> None:
    toy.answers_task(place / "small")
    toy.write_data(place / "data")
    path = place / "small" / "task.toml"
    path.write_text(path.read_text().replace(f"val_tokens = {toy.VAL_TOKENS}", "val_tokens = 2000"))
    words = refused_data(place)
    assert "the val split has 1000 tokens" in words and "budget.val_tokens to 496 or less" in words


def test_data_of_which_a_part_is_missing(place: Path) -> None:
    toy.answers_task(place / "small")
    toy.write_data(place / "data")
    (place / "data" / "holdout" / "tokens.bin").unlink()
    assert "the holdout split has 0 tokens" in refused_data(place)


def test_data_that_was_cut_short(place: Path) -> None:
    toy.answers_task(place / "small")
    tokens = toy.write_data(place / "data").folder / "train" / "tokens.bin"
    listed = {"train/tokens.bin": {"bytes": tokens.stat().st_size, "sha256": ""}}
    (place / "data" / "manifest.json").write_text(json.dumps({"fingerprint": "toy", "files": listed}))
    os.truncate(tokens, 1000)
    words = refused_data(place)
    assert "train/tokens.bin is missing, cut short or grown" in words and "prepare again" in words


def test_a_required_check_at_a_larger_scale_that_nobody_names(place: Path) -> None:
    told = refused(place, "--set", "decision.transfer_required=true")
    assert "nothing would be" in told and '[transfer] scale = "depth=2"' in told


# --- a port, a second coordinator ------------------------------------------------------------------------


def test_a_port_in_use_is_named_with_the_fix(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        said = swarm(place, "coordinator", "--set", "task=task", "--port", port)
    assert f"port {port} on this machine is in use" in said.sentence and "--port" in said.err


@pytest.mark.parametrize("port", ["10002", "19999"])
def test_a_port_of_the_workers_is_none_for_the_head(place: Path, port: str) -> None:
    words = swarm(place, "coordinator", "--set", "task=task", "--port", port).sentence
    assert f"port {port}" in words and "10002 to 19999" in words and "--port" in words


HOLDER = """
import sys
from pathlib import Path
from swarm.ledger import Ledger
with Ledger(Path(sys.argv[1])):
    print("holding", flush=True)
    sys.stdin.read()
"""


@contextmanager
def coordinator_on(ledger: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a ledger as a coordinator does."""
    command = (sys.executable, "-c", HOLDER, str(ledger))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "holding\n"
        yield process
        process.kill()


@pytest.mark.parametrize("command", ["run", "coordinator"])
def test_a_second_coordinator_is_refused_with_the_first_ones_process(place: Path, command: str) -> None:
    folder = place / "studies" / "study-1"
    with coordinator_on(folder / "ledger.sqlite") as first:
        said = swarm(place, command, "--set", "task=task")
        assert f"a coordinator is already running on studies/study-1 (process {first.pid})" in said.sentence
        assert "`swarm leave --study studies/study-1`" in said.err
        assert first.poll() is None
        assert swarm(place, "status").code == 0, "who only looks is welcome"


# --- joining ---------------------------------------------------------------------------------------------


def join(place: Path, *arguments: str, address: str = "127.0.0.1:9") -> Said:
    return swarm(place, "join", address, "--home", "home", *arguments)


def test_joining_without_a_token(place: Path) -> None:
    assert "no token at token: copy run/token from" in join(place).sentence
    assert "no token at task" in join(place, "--token-file", "task").sentence, "a folder"
    assert not (place / "home").exists()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_joining_with_a_token_that_others_may_read(place: Path, mode: int) -> None:
    ensure_token(place / "token").chmod(mode)
    sentence = join(place).sentence
    assert f"mode {mode:o}" in sentence and sentence.endswith("chmod 600 token\n")


@pytest.mark.skipif(ROOT, reason="root may read everything")
def test_joining_with_a_token_that_cannot_be_read(place: Path) -> None:
    ensure_token(place / "token").chmod(0)
    assert "cannot be read" in join(place).sentence


@pytest.mark.parametrize("content", [b"", b"hello\n", b"\xff\xfe", b"0" * 63, b"g" * 64])
def test_joining_with_a_file_that_holds_no_token(place: Path, content: bytes) -> None:
    ensure_token(place / "token").write_bytes(content)
    assert "holds no token" in join(place).sentence


@pytest.mark.parametrize(
    "address", ["nowhere", "host:", ":6379", "host:port", "a:b:1", "http://host:1", "h:0", "h:70000"]
)
def test_joining_an_address_that_is_none(place: Path, address: str) -> None:
    ensure_token(place / "token")
    assert "write it as HOST:PORT" in join(place, address=address).sentence


@pytest.mark.parametrize("host", ["192.0.2.10", "0.0.0.0", "no-such-host.invalid", "a..b"])
def test_waiting_for_nodes_at_an_address_of_another_machine(place: Path, host: str) -> None:
    words = swarm(place, "coordinator", "--set", "task=task", "--host", host).sentence
    assert f"--host '{host}' is not one address of this machine" in words and "hostname -I" in words
    assert not (place / "studies").exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_joining_where_nothing_answers_ends_at_once(place: Path, host: str) -> None:
    ensure_token(place / "token")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"{host}:{server.getsockname()[1]}"
    sentence = join(place, address=address).sentence
    assert f"could not join {address}: no head answers" in sentence and "`swarm coordinator`" in sentence


# --- ledgers that are none -------------------------------------------------------------------------------


@pytest.fixture
def ledger(place: Path) -> Path:
    """The ledger of an unfinished study."""
    path = place / "studies" / "study-1" / "ledger.sqlite"
    with Ledger(path) as writer:
        writer.append(small_study().facts, 1.0)
    return path


@pytest.mark.parametrize("command", [("run", "--set", "task=task"), ("status",), ("log",), ("show", "1")])
def test_a_ledger_that_is_another_file(place: Path, ledger: Path, command: tuple[str, ...]) -> None:
    ledger.write_text("these are my notes\n" * 100)
    sentence = swarm(place, *command).sentence
    assert "is no ledger but some other file" in sentence and "ledger.sqlite" in sentence
    assert ledger.read_text() == "these are my notes\n" * 100


@pytest.mark.parametrize("command", [("run", "--set", "task=task"), ("status",), ("log",), ("export",)])
def test_a_ledger_that_was_cut_short(place: Path, ledger: Path, command: tuple[str, ...]) -> None:
    whole = ledger.read_bytes()
    ledger.write_bytes(whole[: len(whole) // 2])
    assert "ledger.sqlite is damaged" in swarm(place, *command).sentence


def test_a_study_of_another_version_of_the_swarm(place: Path, ledger: Path) -> None:
    scribe = small_study()
    with Ledger(place / "studies" / "study-2" / "ledger.sqlite") as writer:
        opened = scribe.facts[0].__class__(**{**vars(scribe.facts[0]), "config": '{"colour": "red"}'})
        writer.append([opened, *scribe.facts[1:]], 1.0)
    sentence = swarm(place, "run", "--set", "task=task").sentence
    assert "colour: unknown key" in sentence and "another version of the swarm" in sentence


# --- disks -----------------------------------------------------------------------------------------------


@contextmanager
def disk(at: Path, size: str, *, options: str = "") -> Iterator[Path]:
    """A small disk of its own."""
    at.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}{options}", "swarm-test", str(at)])
    if made.returncode:
        pytest.skip("mounting a small disk takes more rights than these tests have")
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


@pytest.mark.skipif(not ROOT, reason="mounting a small disk takes root")
def test_a_full_disk_is_said_in_one_sentence(place: Path) -> None:
    with disk(place / "studies", "1m") as full:
        for room in (0, 8192, 40_000):
            (full / "fill").write_bytes(bytes(2**20 - 16_384 - room))
            while room == 0:
                try:
                    with (full / "more").open("ab") as file:
                        file.write(bytes(4096))
                except OSError:
                    break
            said = swarm(place, "run", "--set", "task=task")
            assert "the disk" in said.sentence and "is full" in said.err and "same command again" in said.err
            for path in full.glob("*"):
                if path.is_file():
                    path.unlink()


@pytest.mark.skipif(not ROOT, reason="mounting a small disk takes root")
def test_a_disk_that_is_read_only(place: Path) -> None:
    with disk(place / "studies", "1m", options=",ro"):
        assert "this folder is read-only" in swarm(place, "run", "--set", "task=task").sentence


@pytest.mark.skipif(ROOT, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(place: Path) -> None:
    (place / "studies").mkdir(mode=0o555)
    assert "permission denied" in swarm(place, "run", "--set", "task=task").sentence


@pytest.mark.skipif(not ROOT, reason="mounting a small disk takes root")
def test_a_study_on_a_disk_that_may_not_be_written_can_be_read(place: Path) -> None:
    with disk(place / "studies", "4m") as shelf:
        with Ledger(shelf / "old-1" / "ledger.sqlite") as writer:
            writer.append(small_study().facts, 1.0)
        subprocess.run(["mount", "-o", "remount,ro", str(shelf)], check=True)
        assert "open for" in swarm(place, "status").out
        assert swarm(place, "show", "2").code == 0


# --- as a process ----------------------------------------------------------------------------------------


def test_a_mistake_ends_the_process_with_2_and_a_sentence_on_stderr(place: Path) -> None:
    said = swarm_process(place, "run", "--set", "stop.wall_minuts=3")
    assert (said.out, said.err) == ("", "swarm: --set: stop.wall_minuts: unknown key; did you mean wall_minutes?\n")
    assert said.code == 2


def test_ctrl_c_ends_a_command_with_130_and_no_traceback(place: Path, ledger: Path) -> None:
    with start(place, "log", "--follow") as process:
        assert process.stdout and process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr and "Traceback" not in process.stderr.read()
