"""Worker processes that really crash, hang, exceed their memory or are killed lose one task each."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from alphafuse.errors import DatasetError
from alphafuse.system import workers
from alphafuse.system.workers import CRASHED, HUNG, NO_MEMORY, map_tasks


def run(function: object, tasks: list[int], **settings: object) -> dict[int, str]:
    options = {"failed": lambda reason: reason, "workers": 2, **settings}
    results = list(map_tasks(function, [(task, task) for task in tasks], **options))  # type: ignore[arg-type]
    assert len(results) == len(tasks), "every task is answered, and once"
    return dict(results)


def test_tasks_are_answered_under_their_own_keys() -> None:
    assert run(lambda task: str(task), list(range(40))) == {task: str(task) for task in range(40)}
    assert run(lambda task: str(task), []) == {}


def test_a_task_that_ends_its_process_fails_alone() -> None:
    def work(task: int) -> str:
        if task % 4 == 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        return str(task)

    assert run(work, list(range(9))) == {task: CRASHED if task % 4 == 1 else str(task) for task in range(9)}


def test_the_very_last_task_may_crash_too() -> None:
    assert run(lambda task: os._exit(1) if task == 2 else str(task), [0, 1, 2], workers=1) == {
        0: "0",
        1: "1",
        2: CRASHED,
    }


def test_a_task_that_hangs_is_ended_and_the_others_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "START_SECONDS", 3.0)

    def work(task: int) -> str:
        if task == 1:
            os.kill(os.getpid(), signal.SIGSTOP)  # like a read from a dead network disk, it ignores other signals
        if task == 2:
            time.sleep(60)
        return str(task)

    began = time.monotonic()
    assert run(work, list(range(8)), timeout_seconds=1.0) == {
        task: HUNG if task in (1, 2) else str(task) for task in range(8)
    }
    assert time.monotonic() - began < 40


def test_a_task_that_exceeds_its_memory_limit_fails() -> None:
    def work(task: int) -> str:
        if task == 1:
            return str(np.ones(200_000_000).sum())  # 1.6 GB
        return str(np.ones(1_000_000).sum())

    answers = run(work, [0, 1, 2], memory_bytes=400 * 2**20)
    assert answers == {0: "1000000.0", 1: NO_MEMORY, 2: "1000000.0"}


def test_workers_killed_from_outside_are_replaced() -> None:
    def work(task: int) -> int:
        time.sleep(0.02)
        return os.getpid()

    seen: set[int] = set()
    answers = []
    tasks = ((task, task) for task in range(60))
    for _, answer in map_tasks(work, tasks, failed=lambda reason: reason, workers=2):
        answers.append(answer)
        if isinstance(answer, int) and answer not in seen:
            seen.add(answer)
            if len(seen) < 4:
                os.kill(answer, signal.SIGKILL)
    assert len(answers) == 60 and len(seen) >= 4
    assert 1 <= answers.count(CRASHED) <= 3, "a kill loses at most the running task"


def test_at_most_two_tasks_per_worker_are_taken_ahead() -> None:
    taken: list[int] = []

    def tasks() -> object:
        for task in range(50):
            taken.append(task)
            yield task, task

    results = map_tasks(lambda task: task, tasks(), failed=str, workers=2)  # type: ignore[arg-type,type-var]
    for done, _ in enumerate(results, start=1):
        assert len(taken) <= done + 2 * workers.TASKS_PER_WORKER


def test_an_exception_in_a_task_ends_the_iteration_and_the_workers() -> None:
    def work(task: int) -> int:
        if task == 3:
            raise ValueError("a bug")
        return os.getpid()

    seen = set()
    with pytest.raises(ValueError, match="a bug"):
        for _, process in map_tasks(work, [(task, task) for task in range(9)], failed=lambda reason: 0, workers=2):
            seen.add(process)
    assert not any(Path(f"/proc/{process}").exists() for process in seen)


def test_a_negative_number_of_workers_is_refused() -> None:
    with pytest.raises(DatasetError, match="workers must be at least 0, not -1"):
        next(map_tasks(str, [(1, 1)], failed=str, workers=-1))
