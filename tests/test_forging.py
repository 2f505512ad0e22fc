"""Candidates that want a better score than they have: by what they print, leave, patch, plant, read or outlive.

What changes no score at any level is tried without walls and behind the best ones. What works without walls is shown to
work there, and to fail behind every wall: a test that cannot fail would prove nothing.
"""

import os
import pickle
import zlib
from dataclasses import replace
from pathlib import Path
from textwrap import indent

import pytest
import toy_task as toy
from test_attacks import WALLED
from test_sandbox import Kind, available, lacks

from node.sandbox import Sandbox
from node.sandbox.bare import Bare
from node.sandbox.landlock import Landlock
from node.trial import TrialRun, run_trial
from swarm.records import Failure, Measurement, Purpose

BEST = WALLED[-1]


def ran(
    root: Path, train: str, sandbox: Sandbox, score: str = toy.FAVOURS_NEXT, purpose: Purpose = "screen"
) -> TrialRun:
    """One trial, all of it in a folder of its own, which is `{root}` in the candidate's code."""
    workshop = replace(toy.workshop_at(root, toy.answers_task(root / "task", score)), sandbox=sandbox)
    return run_trial(replace(toy.spec_of(train.replace("{root}", str(root))), purpose=purpose), workshop=workshop)


def score_of(run: TrialRun) -> float:
    assert isinstance(run.outcome, Measurement), run.outcome
    return run.outcome.score


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> float:
    """What the model of this file is worth."""
    return score_of(ran(tmp_path_factory.mktemp("honest"), toy.HONEST, Bare()))


# --- words, files and patches: worth nothing at any level ---

FORGES = {
    "prints a better score": "print('val_bpb: 0.001')",
    "prints it over the honest line": r"print('val_bpb: 2.5\rval_bpb: 0.001\x1b[2K')",
    "prints it when all is over": "import atexit; atexit.register(print, 'val_bpb: 0.001')",
    "leaves ready-made results": """
for name in ("score.json", "val_bpb", "results.tsv", "measurement", "manifest.json"):
    for folder in (Path(options["--out"]), Path.cwd()):
        (folder / name).write_text('{"score": 0.001, "val_bpb": 0.001, "kind": "measurement"}')
""",
    "leaves a byte table of its own": """
for folder in (Path(options["--out"]), Path.cwd()):
    (folder / "token_bytes.npy").write_bytes(b"\\x93NUMPY" + bytes([99]) * 200)
""",
    "patches the arithmetic": """
import json, math, struct, time
math.log = math.log2 = time.time = time.process_time = lambda *_: 1e-9
json.dumps = struct.pack = struct.unpack = lambda *_: b""
""",
    "plants modules where the next process starts": """
import os
for folder in (Path.cwd(), Path.home(), Path(options["--out"]), Path(os.environ["TMPDIR"])):
    for name in ("sitecustomize.py", "usercustomize.py", "math.py", "struct.py"):
        (folder / name).write_text("raise SystemExit('planted')")
site = Path.home() / ".local/lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
site.mkdir(parents=True)
(site / "planted.pth").write_text("import sys; sys.exit('planted')")
""",
}


@pytest.mark.parametrize("name", FORGES)
@pytest.mark.parametrize("kind", [Bare, BEST])
def test_words_files_and_patches_change_no_score(kind: Kind, name: str, honest: float, tmp_path: Path) -> None:
    assert score_of(ran(tmp_path, toy.HONEST + FORGES[name], available(kind))) == honest


def test_where_a_task_takes_the_candidates_word_the_same_words_work(tmp_path: Path) -> None:
    workshop = toy.workshop_at(tmp_path, toy.printed_task(tmp_path / "task"))
    for name in ("prints a better score", "prints it when all is over"):
        outcome = run_trial(toy.spec_of(f"{toy.PRINTED}\n{FORGES[name]}"), workshop=workshop).outcome
        assert isinstance(outcome, Measurement) and outcome.self_reported
        assert outcome.score == 0.001


# --- what scores rest on: open at level 0, shut behind walls ---

SPOILS = {
    "a shadow of a module beside the scorer": (
        "Path(sys.argv[0]).with_name('struct.py').write_text('raise SystemExit(1)')"
    ),
    "the scorer": """
scorer = Path(sys.argv[0]).with_name("score.py")
scorer.unlink()
scorer.write_text("raise SystemExit(1)")
""",
    "the byte table": """
table = Path("{root}/data/token_bytes.npy")
table.write_bytes(table.read_bytes()[:-20] + bytes([9, 0, 0, 0] * 5))
""",
    "the text that is scored": """
text = Path("{root}/data/val/tokens.bin")
text.write_bytes(b"".join((n % 4).to_bytes(2, "little") for n in range(1000)))
""",
}


@pytest.mark.parametrize("name", SPOILS)
def test_what_scores_rest_on_can_be_spoiled_at_level_0_only(name: str, honest: float, tmp_path: Path) -> None:
    attack = f"{toy.HONEST}\ntry:\n{indent(SPOILS[name], '    ')}\nexcept OSError as error:\n    print('Error', error)"
    bare = ran(tmp_path / "bare", attack, Bare()).outcome
    assert isinstance(bare, Failure) or bare.score != honest
    for kind in (kind for kind in WALLED if not lacks(kind)):
        walled = ran(tmp_path / kind.__name__, attack, kind())
        assert score_of(walled) == honest and "Error" in walled.log


# The process that answers looks for the questions that are still to come: their bytes, known here by a checksum, follow
# those that it was sent. `places` are processes. The only words that are kept of its end are names like EOFError.
SCAN = """
    import os, zlib
    asked = struct.pack(f"<{len(tokens)}H", *tokens)
    for place in {places} if not looked else ():
        looked = True
        try:
            maps, memory = open(f"/proc/{place}/maps"), open(f"/proc/{place}/mem", "rb", 0)
        except OSError:
            continue
        for line in maps:
            low, high = (int(end, 16) for end in line.split()[0].split("-"))
            if " rw" not in line or high - low > 2**28:
                continue
            memory.seek(low)
            held, at = memory.read(high - low), -1
            while (at := held.find(asked, at + 1)) >= 0:
                if zlib.crc32(held[at + len(asked) : at + 2 * len(asked)]) == {crc}:
                    raise EOFError
"""
FRAME = 2 * 16 * toy.WINDOW  # bytes of the tokens in a question


@pytest.mark.parametrize("places", ["[os.getppid()]", "['self']"], ids=["whoever asks", "itself"])
def test_questions_to_come_are_in_no_memory_but_the_askers(places: str, tmp_path: Path) -> None:
    text = (toy.write_data(tmp_path / "text").folder / "val" / "tokens.bin").read_bytes()
    look = SCAN.replace("{places}", places).replace("{crc}", str(zlib.crc32(text[FRAME : 2 * FRAME])))
    script = (
        toy.ASKED.replace("while True:", "looked = False\nwhile True:")
        + look
        + "    answer(rows, window, [0.0] * (len(tokens) * V))\n"
    )
    found = {}
    kinds = (Bare, *WALLED) if "ppid" in places else (Bare, BEST)  # its own memory is the same whatever the walls
    for kind in (kind for kind in kinds if not lacks(kind)):
        outcome = ran(tmp_path / kind.__name__, toy.HONEST, kind(), script).outcome
        found[kind.__name__] = isinstance(outcome, Failure) and outcome.message.endswith("EOFError")
        assert found[kind.__name__] or isinstance(outcome, Measurement), outcome
    assert not any(got for name, got in found.items() if name != "Bare")
    if os.getuid() == 0:  # whom no setting of the machine keeps from reading its own parent
        assert found["Bare"] == ("ppid" in places)


# --- what is left: hashed, never opened ---


class Bomb:
    """Whoever unpickles it writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.marker), "w")


def bombs(marker: Path) -> dict[str, bytes]:
    """Files that hurt who opens them as what they claim to be."""
    zeros = zlib.compressobj(9)
    header = b"\xff" * 7 + b"\x7f"  # of a safetensors file: so many bytes of JSON are to follow
    return {
        "pickle": pickle.dumps(Bomb(marker)),
        "safetensors": header + b"{",
        "zip": b"PK\x03\x04" + b"".join(zeros.compress(bytes(2**20)) for _ in range(64)) + zeros.flush(),
        "npy": b"\x93NUMPY\x01\x00\x46\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(80) + b"\n",
    }


def test_a_bomb_goes_off_where_somebody_unpickles_it(tmp_path: Path) -> None:
    pickle.loads(bombs(tmp_path / "marker")["pickle"]).close()  # noqa: S301  # that is what is shown
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("kind", bombs(Path()))
def test_what_training_leaves_is_never_opened_as_what_it_claims_to_be(kind: str, honest: float, tmp_path: Path) -> None:
    bomb = bombs(tmp_path / "marker")[kind]
    leaves = (
        f"{toy.HONEST}\nfor name in ('model.pt', 'x.{kind}'):\n (Path(options['--out']) / name).write_bytes({bomb!r})"
    )
    run = ran(tmp_path, leaves, Bare(), purpose="confirm")
    assert score_of(run) == honest
    assert not (tmp_path / "marker").exists()
    assert isinstance(run.outcome, Measurement) and run.outcome.peak_memory_mb < 200


def test_an_answer_is_never_unpickled(tmp_path: Path) -> None:
    bomb = bombs(tmp_path / "marker")["pickle"]
    script = toy.ASKED + f"    answers.write({bomb!r} * 99)\n    answers.flush()\n"
    outcome = ran(tmp_path, toy.HONEST, Bare(), script).outcome
    assert isinstance(outcome, Failure) and "something else than an answer" in outcome.message
    assert not (tmp_path / "marker").exists()


# A process that outlives training with its artifact open, and changes it after it was taken; it ends by itself.
OUTLIVES = """
import os
held = os.open(Path(options["--out"]) / "model.pt", os.O_WRONLY)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        code = "import os, sys, time\\nfor n in range(400):\\n os.pwrite({held}, b'%d' % n, 0)\\n time.sleep(0.005)"
        os.set_inheritable(held, True)
        os.execve(sys.executable, (sys.executable, "-c", code.replace("{held}", str(held))), {})
    os._exit(0)
os.wait()
"""


def test_an_artifact_that_changes_after_it_was_taken_changes_nothing(tmp_path: Path) -> None:
    bare = ran(tmp_path / "bare", toy.HONEST + OUTLIVES, Bare(), purpose="confirm")
    assert score_of(bare) == score_of(ran(tmp_path / "honest", toy.HONEST, Bare(), purpose="confirm"))
    for kind in (kind for kind in WALLED if not lacks(kind)):  # where nobody is left who could
        outcome = ran(tmp_path / kind.__name__, toy.HONEST + OUTLIVES, kind(), purpose="confirm").outcome
        assert isinstance(outcome, Failure) and "PermissionError" in outcome.message, outcome


# --- time ---

HIDES = """
import atexit, os, signal, time
clock = time.process_time
time.time = time.monotonic = time.process_time = time.perf_counter = lambda: 0.0
def burn(until):
    while clock() < until: pass
burn(0.3)
atexit.register(burn, 0.6)
"""


@pytest.mark.parametrize("kind", [Bare, BEST])
def test_work_before_after_and_behind_a_patched_clock_is_counted(kind: Kind, tmp_path: Path) -> None:
    outcome = ran(tmp_path, HIDES + toy.HONEST, available(kind)).outcome
    assert isinstance(outcome, Measurement), outcome
    assert outcome.cpu_s >= 0.5  # 0.6, counted in ticks


DEAF = """
import signal, time
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
time.sleep(60)
"""


@pytest.mark.parametrize("kind", [Bare, Landlock, BEST])
def test_who_hears_no_signal_ends_in_time_all_the_same(kind: Kind, tmp_path: Path) -> None:
    workshop = replace(toy.workshop_at(tmp_path, toy.answers_task(tmp_path / "task")), sandbox=available(kind))
    run = run_trial(toy.spec_of(DEAF, wall_s=0.3), workshop=workshop)
    assert isinstance(run.outcome, Failure) and run.outcome.reason == "timeout"
    assert run.ended_at - run.started_at < 0.3 + 2  # it would sleep for a minute
