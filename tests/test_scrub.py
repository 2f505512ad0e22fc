"""Credentials do not survive in text that is kept, and nothing else is lost."""

import time
from pathlib import Path

import pytest
import toy_task as toy
from hypothesis import given
from hypothesis import strategies as st

from node.trial import run_trial
from node.watch import Log
from swarm.records import Failure
from swarm.scrub import scrub

LETTERS = "Ab3dEf6hIj9kLm2nOp5qRs8tUv1wXy4zAb7c"  # 36, in no known secret
SECRETS = (
    "ghp_" + LETTERS,
    "github_pat_" + LETTERS,
    "sk-ant-api03-" + LETTERS,
    "hf_" + LETTERS,
    "glpat-" + LETTERS,
    "AKIA" + "ABCDEFGH23456789",
    "AIza" + LETTERS[:35],
    "xoxb-" + LETTERS,
    f"eyJ{LETTERS}.eyJ{LETTERS}.{LETTERS}",
)


@given(st.sampled_from(SECRETS), st.text(), st.text())
def test_a_token_goes_and_what_stands_around_it_stays(secret: str, before: str, after: str) -> None:
    assert secret not in scrub(f"{before} {secret} {after}")
    assert scrub(f"loss {secret} 2.5") == "loss *** 2.5"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://me:hunter2@example.org/x.git", "https://***@example.org/x.git"),
        (f"Authorization: Bearer {LETTERS}", "Authorization: Bearer ***"),
        ("a\n-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nb", "a\n***\nb"),
        ("-----BEGIN PRIVATE KEY-----\nMIIE cut off", "***"),
    ],
)
def test_logins_headers_and_keys_go(text: str, clean: str) -> None:
    assert scrub(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        "step 10/200 tokens 10240 loss 3.141",
        "task-risk-sk-short",
        "https://example.org:8080/a@b",
        "a basic idea",
        "a more basic parameterization of Muon",
        "basic orthogonalisation, bearer authentication_tokens",
        "fall-back sk-learn-like-normalisation-of-x",
        "https://x-access-token:{token}@github.com",
        "a" * 64,
    ],
)
def test_other_text_stays(text: str) -> None:
    assert scrub(text) == text


def test_it_is_quick_on_hostile_text() -> None:
    before = time.process_time()
    for piece in ("eyJ", "://a:", "-----BEGIN PRIVATE KEY-----", "sk-", "basic "):
        scrub(piece * (200_000 // len(piece)))
    assert time.process_time() - before < 5


def test_a_token_is_gone_before_a_log_is_cut_so_that_no_half_of_it_stays() -> None:
    for beyond in range(4096 - 60, 4097):
        log = Log(100_000)
        log.add(f"key {SECRETS[2]} ".encode() + b"x" * beyond)
        assert LETTERS[-9:] not in log.tail


def test_what_a_candidate_prints_is_scrubbed(tmp_path: Path) -> None:
    workshop = toy.workshop_at(tmp_path, toy.printed_task(tmp_path / "task"))
    run = run_trial(toy.spec_of(f"print('{SECRETS[0]}')\nraise SystemExit('{SECRETS[1]} is wrong')"), workshop=workshop)
    assert isinstance(run.outcome, Failure)
    assert run.outcome.message == "exit code 1: *** is wrong"
    assert run.log.splitlines() == ["***", "*** is wrong"]
