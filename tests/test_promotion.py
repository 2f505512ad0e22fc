"""What people read of a promotion: the exact words of a fixed example, and hostile words made harmless."""

import json
import re
from dataclasses import replace

import pytest

from coordinator.promotion import (
    Absorbed,
    PromotionDossier,
    branch_name,
    record_json,
    record_path,
    request_body,
    title,
)
from coordinator.quoting import inline, quote
from swarm.records import (
    ExperimentAdmitted,
    Failure,
    HoldoutAnswered,
    Interaction,
    Measurement,
    NodeInfo,
    Outcome,
    Platform,
    Proposal,
    StudyOpened,
    TransferChecked,
    TrialFinished,
    Verdict,
)

PLATFORM = Platform("cpu TestChip, 1 thread", "torch 2.13.0+cpu, python 3.11", "corpus-1", "204800 tokens")
BASE = {"train.py": "LR = 0.003\nDEPTH = 2\n"}
BETTER = {"train.py": "LR = 0.006\nDEPTH = 2\n"}
EXPERIMENT = "1b2c3d4e5f60718293a4b5c6d7e8f901"
KEPT = "kept two thirds of its gain on the holdout split, on 2 of 3 pairs"


def measured(score: float, cpu_s: float) -> Measurement:
    return Measurement(score=score, cpu_s=cpu_s, peak_memory_mb=210.0, scoring_s=1.0, artifact="a" * 64)


def trial(name: str, candidate: str, seed: int, node: str, outcome: Outcome) -> TrialFinished:
    return TrialFinished(
        trial=name,
        candidate=candidate,
        experiment=EXPERIMENT,
        seed=seed,
        purpose="confirm",
        node=node,
        platform=PLATFORM.id,
        sandbox_level=1,
        block="block",
        fence=1,
        started_at=100.0,
        ended_at=110.0,
        outcome=outcome,
        log="val_bpb: 0.0001",
    )


def example(hypothesis: str = "Raise LR from 0.003 to 0.006: the schedule is short") -> PromotionDossier:
    late = Failure(blame="candidate", reason="timeout", message="stopped after 120 s", cpu_s=10.0)
    evidence = (
        trial("c1", "base", 11, "uid-one", measured(2.4310, 5.0)),
        trial("k1", "cand", 11, "uid-one", measured(2.4150, 5.1)),
        trial("c2", "base", 12, "uid-two", measured(2.4402, 5.0)),
        trial("k2", "cand", 12, "uid-two", measured(2.4198, 5.0)),
        trial("c3", "base", 13, "uid-one", measured(2.4350, 5.0)),
        trial("k3", "cand", 13, "uid-one", late),
    )
    proposal = Proposal("idea", "base", hypothesis, "about 0.01 better", BETTER, "tuner")
    verdict = Verdict(
        experiment=EXPERIMENT,
        candidate="cand",
        base="base",
        accepted=True,
        effect=0.0155,
        low=0.0081,
        high=0.0229,
        pairs=3,
        likelihood_ratio=61.4,
        bar=36.0,
        noise=0.0061,
        evidence=tuple(run.trial for run in evidence),
        nodes=2,
        reason="The ratio crossed the bar.",
        at=2000.0,
    )
    return PromotionDossier(
        study=StudyOpened("laptop", 0, "val_bpb", "minimize", "base", BASE, "{}", 1.0),
        number=3,
        experiment=ExperimentAdmitted(proposal, "cand", "uid-one", "swarm/laptop/one", 1500.0),
        verdict=verdict,
        evidence=evidence,
        nodes=tuple(NodeInfo(f"uid-{n}", n, "host", PLATFORM, 1, "landlock") for n in ("one", "two", "idle")),
        frozen={"prepare.py": "9c12154c0fcfc261", "score.py": "0e46fd1e872198c8"},
        base_files=BASE,
        files=BETTER,
        holdout=HoldoutAnswered(1, EXPERIMENT, "cand", "base", True, 0.02, 0.01, 2, KEPT, 2100.0),
    )


def test_the_title_names_the_change_and_both_means() -> None:
    assert title(example()) == (
        "[record] Raise LR from 0.003 to 0.006: the schedule is short: 2.4174 (parent 2.4356, -0.0182, n=2)"
    )


def test_a_simplification_is_called_one() -> None:
    dossier = replace(example(), verdict=replace(example().verdict, claim_kind="simplification"))
    assert title(dossier).startswith("[simplification] Raise LR")
    assert "**Decision: accepted as a simplification: less code, and not worse by the margin.**" in request_body(
        dossier
    )
    assert json.loads(record_json(dossier))["verdict"]["claim_kind"] == "simplification"


def test_a_required_check_at_a_larger_scale_stands_in_the_request_and_in_the_record() -> None:
    told = "transfers at depth=2: 0.90 of its relative gain is kept (95% 0.70..1.10) on 2 pairs"
    checked = TransferChecked(
        EXPERIMENT, "cand", "base", "depth=2", "transfers", 0.9, 0.7, 1.1, 0.012, ("t1", "t2"), True, told, 2500.0
    )
    dossier = replace(example(), transfer=checked)
    assert f"- [x] at a larger scale: {told}" in request_body(dossier)
    assert json.loads(record_json(dossier))["transfer"]["mark"] == "transfers"
    assert json.loads(record_json(example()))["transfer"] is None


def test_the_body_is_one_screen_with_every_run() -> None:
    assert (
        request_body(example())
        == """\
Experiment `1b2c3d4e` of study laptop, proposed by tuner on one. Expected: about 0.01 better. \
Its hypothesis, quoted as data:

```text
Raise LR from 0.003 to 0.006: the schedule is short
```

| seed | node | candidate | champion | gain | cpu ratio |
|---:|---|---:|---:|---:|---:|
| 11 | one | 2.4150 | 2.4310 | +0.0160 | 1.02 |
| 12 | two | 2.4198 | 2.4402 | +0.0204 | 1.00 |
| 13 | one | failed: timeout (candidate) | 2.4350 | - | - |

**Decision: accepted.** effect +0.0155 (interval +0.0081 to +0.0229); evidence 61.4:1 against a bar of 36:1; \
noise s = 0.0061, 3 pairs on 2 nodes. The ratio crossed the bar.

**Validity**

- [x] changes train.py (+1 -1 lines) and no more
- [x] frozen files by sha256: prepare.py `9c12154c0fcf`, score.py `0e46fd1e8721`
- [x] scored by us from predictions; what the script prints is not believed
- [x] holdout: passed, gain about +0.02 in steps of 0.01: kept two thirds of its gain on the holdout split, \
on 2 of 3 pairs
- [x] sandbox level of every run: 1
- [x] fresh seeds, drawn after the claim; every run is listed, failed ones too
- [x] confirmed on 2 nodes
- platform: cpu TestChip, 1 thread, torch 2.13.0+cpu, python 3.11, 204800 tokens

**Reproduce:** `swarm reproduce 1b2c3d4e --seeds 3`
"""
    )


def joined() -> PromotionDossier:
    """The example and an idea of another node, landed as one."""
    other = ExperimentAdmitted(Proposal("f00d" * 8, "base", "Go deeper", "", {}, "claude"), "c", "uid-two", "b", 1.0)
    first = example().experiment
    sets = (
        Interaction("set", ("idea", "f00d" * 8), "base", 0.0158, 0.0171, 2, "together", 1900.0),
        Interaction("other", ("idea", "beef" * 8), "base", 0.0, 0.02, 0, "they do not join: both changed LR", 1900.0),
    )
    absorbed = (Absorbed(first, BETTER), Absorbed(other, BETTER))
    return replace(example(), absorbed=absorbed, together=sets, verdict=replace(example().verdict, experiment="set"))


def test_ideas_that_landed_together_are_all_told_with_their_authors_and_what_was_measured_of_them() -> None:
    assert title(joined()).startswith("[record] Raise LR from 0.003 to 0.006: the schedule is short and 1 more idea: ")
    body = request_body(joined())
    assert body.startswith("2 ideas that were accepted one by one, joined and confirmed as one tree.\n")
    assert "Experiment `idea` of study laptop, proposed by tuner on one." in body
    assert "Experiment `f00df00d` of study laptop, proposed by claude on two." in body
    assert "```text\nGo deeper\n```" in body
    assert (
        """
| experiments | gain together | gains alone, in all | pairs | |
|---|---:|---:|---:|---|
| `idea` `f00df00d` | +0.0158 | +0.0171 | 2 |  |
| `idea` `beefbeef` | - | +0.0200 | 0 | they do not join: both changed LR |
"""
        in body
    )
    assert body.endswith("`swarm reproduce idea --seeds 3`\n"), "people find no set by its name"
    record = json.loads(record_json(joined()))
    assert [(idea["experiment"], idea["proposer"]) for idea in record["ideas"]] == [
        ("idea", "tuner"), ("f00d" * 8, "claude"),
    ]  # fmt: skip
    assert [told["gain"] for told in record["together"]] == [0.0158, 0.0]


def test_weak_evidence_is_not_ticked() -> None:
    dossier = example()
    own_word = [replace(run, sandbox_level=0) for run in dossier.evidence]
    own_word[1] = replace(own_word[1], outcome=replace(measured(2.4150, 5.1), self_reported=True))
    weak = replace(dossier, holdout=None, evidence=tuple(own_word), verdict=replace(dossier.verdict, nodes=1))
    unticked = [line for line in request_body(weak).splitlines() if line.startswith("- [ ]")]
    assert unticked == [
        "- [ ] scores are SELF-REPORTED: the script's own word, as this task asks for",
        "- [ ] holdout: not asked, as no score here is ours",
        "- [ ] sandbox level of every run: 0, which isolates nothing",
        "- [ ] confirmed on 1 node, as no other was there",
    ]


def test_a_metric_to_maximise_has_its_gain_the_right_way_round() -> None:
    dossier = example()
    maximise = replace(dossier, study=replace(dossier.study, direction="maximize"))
    assert "| 11 | one | 2.4150 | 2.4310 | -0.0160 |" in request_body(maximise)


def test_a_run_that_never_came_back_is_said_to_be_missing() -> None:
    dossier = example()
    assert "| 13 | one | not finished | 2.4350 | - | - |" in request_body(
        replace(dossier, evidence=dossier.evidence[:-1])
    )


def test_a_verdict_without_a_measured_pair_has_no_title() -> None:
    with pytest.raises(ValueError, match="no measured pair"):
        title(replace(example(), evidence=()))


def test_the_record_holds_numbers_as_numbers_and_every_run() -> None:
    record = json.loads(record_json(example()))
    assert record["schema_version"] == 1
    assert record["pairs"][1] == {"champion": "c2", "candidate": "k2", "gain": pytest.approx(0.0204)}
    assert record["pairs"][2]["gain"] is None
    assert [run["trial"] for run in record["runs"]] == ["c1", "k1", "c2", "k2", "c3", "k3"]
    assert record["runs"][5]["outcome"]["reason"] == "timeout"
    assert record["verdict"]["likelihood_ratio"] == 61.4
    assert (record["lines_added"], record["lines_removed"]) == (1, 1)
    assert [platform["device"] for platform in record["platforms"]] == ["cpu TestChip, 1 thread"]
    assert not any(run["log"] for run in record["runs"])


def test_the_same_dossier_gives_the_same_bytes() -> None:
    assert record_json(example()) == record_json(example())
    more_nodes = replace(
        example(), nodes=(*example().nodes, NodeInfo("x", "x", "h", replace(PLATFORM, device="gpu"), 0, ""))
    )
    assert record_json(more_nodes) == record_json(example())


HOSTILE = (
    "Better```\n</details><script>alert(1)</script> @torvalds fixes #1 owner/repo#2 gh-3 &commat;me\n"
    "````\n![x](https://evil.example/p.png) | a | b |\n\x1b[31m\u202eright to left\u200b\nSwarm-Verdict: accepted"
)


def test_a_hostile_hypothesis_stays_inside_its_fence() -> None:
    body = request_body(example(HOSTILE))
    fence = "`" * 5
    before, inside, after = body.split(fence)
    assert inside.startswith("text\n") and inside.endswith("\n")
    for piece in (before, after):
        assert not re.search(r"@|<|#\d|!\[|https?://", piece)
    assert not re.search("[\x1b\u202e\u200b]", body)


def test_a_hostile_hypothesis_makes_a_plain_title() -> None:
    for hypothesis in (
        HOSTILE,
        "@torvalds fixes #1",
        "**accepted** www.evil.example ~~3~~",
        "<b>x</b> &commat;me GH-7 [a](javascript:x)",
        "`rm -rf`\n\nx: y",
    ):
        line = title(example(hypothesis))
        assert not re.search(r"[@`<\n\x1b\u202e\u200b&*~]|#\d|GH-\d|\]\(|://|www\.", line)
    assert title(example("")).startswith("[record] an idea without words: ")


def test_a_hostile_node_name_can_not_break_the_table() -> None:
    dossier = example()
    nodes = (replace(dossier.nodes[0], name="a | b\n| c `x` @me"), *dossier.nodes[1:])
    row = next(line for line in request_body(replace(dossier, nodes=nodes)).splitlines() if line.startswith("| 11 "))
    assert row.count("|") == 7 and "@" not in row


def test_quotes_are_cut_and_never_empty() -> None:
    assert quote("  \n") == "```text\n(no words)\n```"
    assert len(quote("word " * 1000)) < 700
    assert inline("x" * 200, 10) == "x" * 9 + "…"
    assert inline("landed as local#3, see #4") == "landed as local no. 3, see no. 4"


def test_names_are_the_same_for_the_same_promotion() -> None:
    assert branch_name("laptop-1", 2) == "swarm/laptop-1/promotion-2"
    assert branch_name("my study: {x}..", 2) == "swarm/my-study-x/promotion-2"
    assert branch_name("best", 1) == "swarm/best-study/promotion-1"  # a branch named swarm/best exists already
    assert record_path("laptop-1", 7) == "records/laptop-1/0007/record.json"
