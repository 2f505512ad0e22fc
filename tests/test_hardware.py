"""What a Node says about its machine. The machine of the test is whatever it is, so only promises are checked."""

import sys
from pathlib import Path

import pytest
import toy_task as toy

from node import hardware
from node.hardware import Gpu, cores, doctor, find_gpu, free_disk_mb, gpu_name, memory_mb, node_uid, platform_of
from swarm.task import Task, load_task


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return load_task(toy.answers_task(tmp_path / "task"))


@pytest.fixture
def gpu_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose driver's tool names two GPUs; with -i it names that one."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\n[ "$1" = -i ] && echo "GPU number $2, 580.1" && exit\necho "NVIDIA H200, 580.1\nOther, 580.1"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    hardware._ask_driver.cache_clear()
    monkeypatch.setattr(hardware, "_version", lambda package: "2.13.0")


def test_a_platform_is_the_same_twice_and_tells_its_parts(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    one, two = platform_of(task, "f1", 1), platform_of(task, "f1", 1)
    assert one.id == two.id
    assert one.device.startswith("cpu ")
    assert one.device.endswith(", 1 thread")
    assert f"python {sys.version_info.major}.{sys.version_info.minor}" in one.software
    assert (one.data, one.budget) == ("f1", "1300 tokens")
    assert len({one.id, platform_of(task, "f2", 1).id, platform_of(task, "f1", 2).id}) == 3


def test_a_gpu_is_found_without_torch(gpu_machine: None, task: Task) -> None:
    assert find_gpu() == Gpu("NVIDIA H200", "580.1")
    assert gpu_name() == "NVIDIA H200"
    assert platform_of(task, "f1", 1).device == "NVIDIA H200"
    assert "driver 580.1" in platform_of(task, "f1", 1).software


def test_only_the_gpu_that_was_lent_counts(gpu_machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert gpu_name() == "GPU number 3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_name() is None


def test_a_cpu_build_of_torch_makes_a_cpu_platform(
    gpu_machine: None, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_version", lambda package: "2.13.0+cpu")
    assert platform_of(task, "f1", 1).device.startswith("cpu ")
    (check,) = [check for check in doctor() if check.name == "gpu"]
    assert not check.ok
    assert "CPU build" in check.detail


def test_a_node_keeps_its_identity(tmp_path: Path) -> None:
    uid = node_uid(tmp_path / "a")
    assert len(uid) == 32
    assert node_uid(tmp_path / "a") == uid
    assert node_uid(tmp_path / "b") != uid


def test_the_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert free_disk_mb(tmp_path / "a" / "b") == pytest.approx(free_disk_mb(tmp_path), abs=200)


def test_doctor_says_how_to_mend_what_is_not_ok_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "planted-secret")
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    checks = doctor()
    by_name = {check.name: check for check in checks}
    assert set(by_name) >= {"python", "git", "torch", "ray", "disk", "memory", "cores", "gpu", "sandbox"}
    assert by_name["GITHUB_TOKEN"].detail == "set"
    assert by_name["ANTHROPIC_API_KEY"].detail.startswith("not set")
    assert "planted-secret" not in str(checks)
    assert all(check.ok != bool(check.fix) for check in checks)
    assert by_name["python"].ok
    assert (memory_mb() > 0, cores() > 0) == (True, True)
