"""What people read of a study: LEADERBOARD.md, results.tsv, report.md and progress.png."""

import csv
import io
import re
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
from factories import CALIBRATION, CRASH, Scribe, finished_study, long_study, small_study

from coordinator.leaderboard import leaderboard_md, results_tsv
from coordinator.plot import progress_png
from coordinator.report import report_md
from swarm.history import History, history
from swarm.records import (
    BlockLost,
    ExperimentAdmitted,
    Fact,
    Failure,
    Interaction,
    Measurement,
    NodeJoined,
    Promotion,
    StudyOpened,
    TrialFinished,
    Verdict,
)

HOSTILE = "Win | 9 %\n## Promoted\n<img src=x onerror=alert(1)> @everyone [x](http://evil.org) `rm` #12 www.evil.org"


def section(page: str, title: str) -> str:
    """A part of a page, without its heading."""
    found = re.search(rf"^##+ {re.escape(title)}\n\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, f"no section {title!r} in:\n{page}"
    return found[1].strip()


def hostile_study() -> Scribe:
    """Every text that others write is hostile."""
    scribe = Scribe()
    scribe.open(study="<b>study</b>")
    scribe.calibrate(CALIBRATION)
    for gain in (0.03, -0.1):
        idea = scribe.admit(HOSTILE, f"X = {gain}")
        scribe.screen(idea, gain)
    scribe.screen(scribe.admit(HOSTILE, "C = 1"), replace(CRASH, message=HOSTILE))
    idea = scribe.admit(HOSTILE, "Y = 1")
    scribe.screen(idea, 0.03)
    scribe.claim(idea, 0.03)
    evidence = scribe.pairs("confirm", idea.proposal.idea, idea.candidate, scribe.champion, [(2.2, 2.17), (2.2, 2.18)])
    scribe.judge(idea, evidence, 0.02, 0.01, 0.04, accepted=True, reason=HOSTILE)
    scribe.promote(idea)
    scribe.refuse(HOSTILE)
    scribe.finish(reason=HOSTILE, gain=0.02, low=0.01, high=0.03, pairs=3)
    return replace(scribe, facts=[_rename(fact) for fact in scribe.facts])


def _rename(fact: Fact) -> Fact:
    if isinstance(fact, NodeJoined):
        return replace(fact, node=replace(fact.node, name=HOSTILE, sandbox=HOSTILE))
    if isinstance(fact, ExperimentAdmitted):
        return replace(fact, proposal=replace(fact.proposal, proposer=HOSTILE))
    return fact


# --- LEADERBOARD.md --------------------------------------------------------------------------------------


def test_the_leaderboard_of_a_finished_study() -> None:
    assert leaderboard_md(history(finished_study().facts)).startswith(
        """\
# Leaderboard of laptop-1

`val_bpb`, lower is better. Written from the ledger at 2026-01-01 00:02 UTC; edits made here are overwritten.

- **Champion:** promotion 1, experiment 2, `88e5b750`: 2.1740 ± 0.0010 (n = 3)
- **Baseline:** `99fa8876`: 2.2003 ± 0.0038 (n = 8)
- **Total gain:** +0.0221 (1.00 %), the published gains along the line summed up; measured at once on 3 fresh seeds at \
the end: +0.0250 [+0.0161, +0.0339]
- **Noise:** s = 0.0061, the sd of a paired gain (calibration on the baseline, moved since by the spread within closed \
confirmations)
- **Panel:** off: it cannot be judged before 100 trials, 40 of them foretold by earlier ones, and pairs that tell the \
noise; 31 trials so far
- **Platforms compared:** cpu, 1 thread; torch 2.13.0+cpu, python 3.11; 204800 tokens

## Frontier

| # | val_bpb | gain vs parent | gain vs baseline | change | lines | nodes | larger scale | date (UTC) | author \
| request |
| ---: | ---: | ---: | ---: | --- | ---: | ---: | --- | --- | --- | --- |
| 1 | 2.1740 ± 0.0010 (n = 3) | +0.0221 [+0.0150, +0.0370] | +0.0221 | Switch SMEAR on | +1 -0 | 2 | – \
| 2026-01-01 00:01 | tuner on bee | request 1 |
| 0 | 2.2003 ± 0.0038 (n = 8) | – | – | baseline | – | – | – | 2026-01-01 00:00 | – | – |
"""
    )


def joined_study() -> Scribe:
    """After the small study two more ideas, of two nodes, land as one; a third was tried with them."""
    scribe = small_study()
    wide = scribe.admit("Twice the WIDTH", "WIDTH = 128")
    long = scribe.admit("Longer STEPS", "STEPS = 9", node="uid-bee")
    left = scribe.admit("Less MOMENTUM", "MOMENTUM = 0.8", node="uid-bee")
    ideas = [admitted.proposal.idea for admitted in (wide, long, left)]
    base = scribe.champion
    scribe.facts += [
        Interaction("all", tuple(ideas), base, -0.0100, 0.0600, 2, "together", scribe.now),
        Interaction("last", (ideas[0], ideas[2]), base, 0.0, 0.0400, 0, "failed: crash", scribe.now),
        Interaction("two", tuple(ideas[:2]), base, 0.0310, 0.0400, 2, "together", scribe.now),
    ]
    evidence = scribe.pairs("confirm", "two", "tree", base, [(2.17, 2.14), (2.171, 2.139), (2.172, 2.141)])
    scribe.judge(wide, evidence, 0.0260, 0.0200, 0.0400, accepted=True)
    verdict = scribe.facts.pop()
    assert isinstance(verdict, Verdict)
    landed = Promotion(2, "two", "tree", base, "sha", "request 2", scribe.now, ideas=tuple(ideas[:2]))
    scribe.facts += [replace(verdict, experiment="two", candidate="tree"), landed]
    return scribe


def test_ideas_that_were_joined_are_shown_with_what_they_gained_together_and_alone() -> None:
    rows = [
        "| 1 | 8, 9, 10 | -0.0100 | +0.0600 | 2 | did not land |",
        "| 1 | 8, 10 | – | +0.0400 | 0 | failed: crash |",
        "| 1 | 8, 9 | +0.0310 | +0.0400 | 2 | landed as promotion 2 |",
    ]
    told = history(joined_study().facts)
    page, report = leaderboard_md(told), report_md(told)
    for text in (page, report):
        assert section(text, "Ideas that were joined").splitlines()[2:5] == rows
    assert "- **Champion:** promotion 2, experiment 8, experiment 9, `tree`: 2.1400" in page
    (row,) = (line for line in section(page, "Frontier").splitlines() if line.startswith("| 2 |"))
    assert "Twice the WIDTH; Longer STEPS" in row and "tuner on ant; tuner on bee" in row and "+0.0260" in row
    assert "Experiments 8, 9 by tuner on ant; tuner on bee; " in report
    assert {e.number for e in told.experiments if e.status == "promoted"} == {2, 8, 9}
    assert "Ideas that were joined" not in leaderboard_md(history(small_study().facts))


def test_every_claim_without_a_promotion_is_listed_with_its_reason() -> None:
    page = leaderboard_md(history(small_study().facts))
    assert section(page, "Claims without an end yet").splitlines()[2:] == [
        "| 7 | Switch ALIBI on | +0.0390 | tuner on ant | fresh seeds; 0 confirmation runs so far |"
    ]
    assert section(page, "Claims that did not reproduce").splitlines()[2:] == [
        "| 5 | Raise LR to 0.02 | +0.0280 | -0.0015 [-0.0110, +0.0080] | 2 | tuner on ant "
        "| rejected: better on 1 of 2 fresh pairs |"
    ]


def test_negative_results_are_counted_and_the_worst_are_named() -> None:
    told = section(leaderboard_md(history(small_study().facts)), "Negative results").splitlines()
    assert told[0] == (
        "2 ideas tried and dropped, 1 idea failed (1 crash), 0 set aside before they were tried; "
        "1 proposal refused before admission."
    )
    assert told[-2:] == [
        "| 4 | Half the WIDTH | -0.2500 | tuner on bee |",
        "| 1 | Shorter warmup: WARMUP 0.2 to 0.1 | -0.0040 | tuner on ant |",
    ]


def test_nodes_are_shown_with_what_they_did() -> None:
    assert section(leaderboard_md(history(small_study().facts)), "Nodes").splitlines()[2:] == [
        "| ant | 12 | 11 | 4 | 0 | 1 | 0 | level 1, bubblewrap |",
        "| bee | 13 | 13 | 3 | 1 | 0 | 1 | level 1, bubblewrap |",
    ]


def test_gains_over_the_baseline_are_summed_along_the_line() -> None:
    told = history(long_study(60).facts)
    rows = [row.split(" | ") for row in section(leaderboard_md(told), "Frontier").splitlines() if row.startswith("| ")]
    steps = [row for row in rows if row[0].removeprefix("| ").isdigit() and row[0] != "| 0"]
    gains = [float(row[2].split()[0]) for row in reversed(steps)]
    totals = [float(row[3]) for row in reversed(steps)]
    assert len(gains) == len(told.promotions) > 2
    for number, total in enumerate(totals, start=1):
        assert total == pytest.approx(sum(gains[:number]), abs=1e-3)


def test_a_study_that_ended_first_says_what_became_of_its_claims() -> None:
    assert "nothing: the study ended first" in leaderboard_md(history(finished_study().facts))


# --- other people's words --------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [leaderboard_md, report_md])
def test_hostile_text_stays_text(page: Callable[[History], str]) -> None:
    text = page(history(hostile_study().facts))
    assert "Win" in text
    for harmful in ("<img", "<b>", "@everyone", "](http", "://evil", "`rm`", "#12", "www.evil", "\n## Promoted"):
        assert harmful not in text, harmful


def test_every_table_row_has_as_many_cells_as_its_head() -> None:
    for page in (leaderboard_md, report_md):
        head = 0
        for line in page(history(hostile_study().facts)).splitlines():
            head = 0 if not line.startswith("|") else head or line.count("|")
            assert line.count("|") in (0, head), line


def test_hostile_text_cannot_add_columns_rows_or_formulas_to_the_table_of_results() -> None:
    scribe = hostile_study()
    scribe.screen(scribe.admit('=cmd()|"\t"\n\tkeep', "Z = 1"), -0.1)
    rows = list(csv.reader(io.StringIO(results_tsv(history(scribe.facts))), delimiter="\t"))
    assert {len(row) for row in rows} == {13}
    assert len(rows) == 1 + 1 + 5
    assert not rows[-1][4].startswith("=")


# --- results.tsv -----------------------------------------------------------------------------------------


def test_results_open_with_the_five_known_columns_and_the_baseline() -> None:
    rows = list(csv.reader(io.StringIO(results_tsv(history(small_study().facts))), delimiter="\t"))
    assert rows[0][:5] == ["commit", "val_bpb", "memory_gb", "status", "description"]
    assert [row[1:5] for row in rows[1:]] == [
        ["2.200250", "0.5", "keep", "baseline, mean of 8 seeds"],
        ["2.204000", "0.5", "discard", "Shorter warmup: WARMUP 0.2 to 0.1"],
        ["2.169000", "0.5", "keep", "Switch SMEAR on"],
        ["0.000000", "0.0", "crash", "Twice the DEPTH"],
        ["2.450000", "0.5", "discard", "Half the WIDTH"],
        ["2.172000", "0.5", "keep", "Raise LR to 0.02"],
        ["2.172500", "0.5", "keep", "Softer cap on logits"],
        ["2.161000", "0.5", "keep", "Switch ALIBI on"],
    ]
    assert [row[5:12] for row in rows[2:4]] == [
        ["1", "ant", "7", "-0.004000", "", "", "no"],
        ["2", "bee", "7", "0.031000", "claimed", "accepted", "no"],
    ]
    assert all(re.fullmatch("[0-9a-f]{7}", row[0]) for row in rows[1:])


def test_ideas_that_never_ran_are_not_results() -> None:
    scribe = Scribe()
    scribe.open()
    scribe.admit("waits", "X = 1")
    assert len(results_tsv(history(scribe.facts)).splitlines()) == 1


# --- report.md -------------------------------------------------------------------------------------------


def test_the_report_shows_the_final_comparison_with_every_pair() -> None:
    page = report_md(history(finished_study().facts), notes="Some techniques are shipped switched off.")
    assert "**Note.** Some techniques are shipped switched off." in page
    assert "](progress.png)" in page
    told = section(page, "Champion against baseline")
    assert "Validation split, not holdout." in told
    assert "**Gain +0.0250 (1.14 %), 95 % interval [+0.0161, +0.0339], 3 pairs.**" in told
    assert [line.split(" | ")[2:] for line in told.splitlines()[-3:]] == [
        ["2.2020", "2.1780", "+0.0240 |"],
        ["2.1970", "2.1680", "+0.0290 |"],
        ["2.2000", "2.1780", "+0.0220 |"],
    ]


def test_the_report_tells_what_the_holdout_said_and_how_often_it_was_asked() -> None:
    scribe = finished_study()
    page = report_md(history(scribe.facts))
    assert "Holdout: passed, gain about +0.02 in steps of 0.01" in section(page, "Promotions")
    assert "it was asked about 1 tree, 1 passed" in section(page, "What was not verified")
    own_word = report_md(history(finished_study(self_reported=True).facts))
    assert "the scripts' own word, so there is nothing to score on it" in section(own_word, "What was not verified")
    assert "Holdout" not in section(own_word, "Promotions")


def test_the_report_lists_bad_evidence_too() -> None:
    scribe = Scribe()
    scribe.open()
    scribe.calibrate(CALIBRATION)
    idea = scribe.admit("an idea", "X = 1")
    scribe.screen(idea, 0.03)
    scribe.claim(idea, 0.03)
    runs: list[tuple[float, float | Failure]] = [(2.2, 2.16), (2.2, 2.21), (2.2, CRASH)]
    evidence = scribe.pairs("confirm", idea.proposal.idea, idea.candidate, scribe.champion, runs)
    scribe.judge(idea, evidence, 0.02, 0.001, 0.04, accepted=True)
    scribe.promote(idea)
    rows = [line.split(" | ") for line in section(report_md(history(scribe.facts)), "Promotions").splitlines()]
    assert [row[3:] for row in rows[-3:]] == [
        ["2.1600", "+0.0400 |"],
        ["2.2100", "-0.0100 |"],
        ["failed: crash", "– |"],
    ]


def test_trials_are_counted_by_purpose_and_outcome() -> None:
    told = section(report_md(history(small_study().facts)), "Trials").splitlines()
    assert told[2:5] == ["| calibrate | 8 | 0 | 0 | 8 |", "| screen | 6 | 1 | 0 | 7 |", "| confirm | 10 | 0 | 0 | 10 |"]
    assert told[-1] == "Attempts that the machinery failed, run again where possible: 1."


def test_costs_are_told() -> None:
    told = section(report_md(history(small_study().facts)), "Costs")
    assert "1000 tokens read, 200 written, 0.25 USD" in told


@pytest.mark.parametrize(
    ("gains", "claimed", "says"),
    [
        ((), False, "No idea was admitted"),
        ((-0.1, -0.2), False, "No idea was better than its branch tip"),
        ((CRASH, CRASH), False, "Every idea failed"),
        ((0.001, -0.1), False, "none was so much better that it was worth a claim"),
        ((0.03,), True, "none of the claims ended in a promotion"),
    ],
)
def test_a_study_without_a_promotion_says_why(gains: tuple[float | Failure, ...], claimed: bool, says: str) -> None:
    scribe = Scribe()
    scribe.open()
    scribe.calibrate(CALIBRATION)
    for number, gain in enumerate(gains):
        idea = scribe.admit(f"idea {number}", f"X{number} = 1")
        scribe.screen(idea, gain)
        if claimed:
            scribe.claim(idea, 0.03)
            scribe.judge(idea, (), 0.0, 0.0, 0.0, accepted=False, reason="no gain on fresh seeds")
    scribe.finish()
    page = report_md(history(scribe.facts))
    assert says in section(page, "Why nothing was promoted")
    assert "the baseline is still the champion" in page
    assert ("no gain on fresh seeds" in page) == claimed
    assert "Champion against baseline" not in page


def test_the_report_says_what_was_not_verified() -> None:
    scribe = finished_study()
    told = section(report_md(history(scribe.facts)), "What was not verified")
    assert "holdout" in told and "all nodes share one" in told and "level 0" not in told
    bare = [replace(f, node=replace(f.node, sandbox_level=0)) if isinstance(f, NodeJoined) else f for f in scribe.facts]
    assert "level 0" in section(report_md(history(bare)), "What was not verified")


def test_the_report_says_how_many_deciding_trials_were_not_audited() -> None:
    facts = finished_study().facts

    def limits(audited: Callable[[TrialFinished], bool]) -> str:
        told = [
            replace(fact, outcome=replace(fact.outcome, audited=audited(fact)))
            if isinstance(fact, TrialFinished) and isinstance(fact.outcome, Measurement)
            else fact
            for fact in facts
        ]
        return section(report_md(history(told)), "What was not verified")

    assert "audited" not in limits(lambda fact: fact.purpose != "screen")  # screenings decide nothing
    deciding = [f for f in facts if isinstance(f, TrialFinished) and f.purpose in ("calibrate", "confirm", "final")]
    scored = sum(isinstance(fact.outcome, Measurement) for fact in deciding)
    assert f"1 of {scored} deciding trials were not audited" in limits(lambda fact: fact.trial != deciding[0].trial)


def test_a_lost_block_is_told() -> None:
    scribe = small_study()
    scribe.facts.append(BlockLost("b", "its node died", scribe.now))
    assert "1 block lost." in report_md(history(scribe.facts))


# --- everywhere ------------------------------------------------------------------------------------------


def test_self_reported_scores_are_marked_wherever_they_stand() -> None:
    told = history(finished_study(self_reported=True).facts)
    page = leaderboard_md(told)
    assert "**Scores are SELF-REPORTED:**" in page
    frontier = [line for line in section(page, "Frontier").splitlines() if line.startswith(("| 1 ", "| 0 "))]
    assert all("self-reported" in line for line in frontier)
    assert "self-reported" in section(report_md(told), "What was not verified")
    rows = list(csv.DictReader(io.StringIO(results_tsv(told)), delimiter="\t"))
    assert {row["self_reported"] for row in rows if row["status"] != "crash"} == {"yes"}
    trusted = history(finished_study().facts)
    assert "self-reported" not in leaderboard_md(trusted).lower() + report_md(trusted).lower()


def test_where_higher_is_better_gains_keep_their_sign() -> None:
    told = history(finished_study(direction="maximize").facts)
    page = leaderboard_md(told)
    assert "`val_bpb`, higher is better" in page
    row = next(line for line in section(page, "Frontier").splitlines() if line.startswith("| 1 |"))
    assert row.startswith("| 1 | 2.2260 ± 0.0082 (n = 3) | +0.0221 [+0.0150, +0.0370] |")
    assert "| +0.0300 |" in section(report_md(told), "Promotions")


@pytest.mark.parametrize("facts", [(), tuple(small_study().facts[:1]), tuple(small_study().facts[:5])])
def test_pages_exist_from_the_first_fact_on(facts: tuple[Fact, ...]) -> None:
    told = history(facts)
    assert leaderboard_md(told).startswith("# Leaderboard")
    assert results_tsv(told).startswith("commit\t")
    assert "so far" in report_md(told)


# --- progress.png ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scribe", [small_study(), finished_study(direction="maximize"), long_study(), hostile_study(), Scribe()]
)
def test_the_picture_is_a_png_of_its_size(scribe: Scribe) -> None:
    picture = progress_png(history(scribe.facts))
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", picture[16:24]) == (1200, 700)
    assert 20_000 < len(picture) < 400_000


def test_the_picture_draws_words_that_its_font_does_not_hold_without_a_warning() -> None:
    scribe = finished_study()
    assert isinstance(scribe.facts[0], StudyOpened)
    scribe.facts[0] = replace(scribe.facts[0], study="学习 🚀 $x^$", metric="\u202eval")
    assert progress_png(history(scribe.facts))
