"""Measuring side by side: contenders in turns, each in a process of its own, and the machine they were measured on."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import psutil
from loky import ProcessPoolExecutor
from machine import Machine

from alphafuse.errors import ExperimentError, unknown
from alphafuse.system.processes import start_worker
from alphafuse.system.progress import Progress

SAMPLE_SECONDS = 0.01  # between two looks at a process's memory


@dataclass(frozen=True)
class Figure:
    """Something that was measured once in every turn.

    Attributes:
        name: what, for people.
        unit: "s", "x" (a ratio), "%", ...
        values: (turns,).
        least, most: what the median is to reach, or not to exceed; None where nothing was promised.
    """

    name: str
    unit: str
    values: tuple[float, ...]
    least: float | None = None
    most: float | None = None

    @property
    def median(self) -> float:
        """Over turns."""
        return median(self.values)

    @property
    def is_met(self) -> bool | None:
        """Whether the median is as promised; None where nothing was."""
        if self.least is None and self.most is None:
            return None
        return (self.least is None or self.median >= self.least) and (self.most is None or self.median <= self.most)

    def to_json(self) -> dict[str, Any]:
        """The fields and what follows from them, json-able."""
        spread = {"median": self.median, "low": min(self.values), "high": max(self.values)}
        return {**asdict(self), **spread, "values": list(self.values), "is_met": self.is_met}


@dataclass(frozen=True)
class Part:
    """What one part of the benchmark found.

    Attributes:
        name: entry of `PARTS`.
        setup: what was measured on what, for people.
        figures: in the order in which they are shown.
        notes: what one has to know to read them.
    """

    name: str
    setup: str
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()

    def __getitem__(self, figure: str) -> Figure:
        return next(found for found in self.figures if found.name == figure)

    def to_json(self) -> dict[str, Any]:
        """The fields, json-able."""
        figures = [figure.to_json() for figure in self.figures]
        return {"name": self.name, "setup": self.setup, "figures": figures, "notes": list(self.notes)}


@dataclass(frozen=True)
class Bench:
    """Everything that a benchmark found.

    Attributes:
        title: what was measured, for people.
        machine: where.
        parts: in the order asked for.
        repeats: turns.
        quick: whether sizes were so small that figures say nothing.
        seconds: that all of it took.
    """

    title: str
    machine: Machine
    parts: tuple[Part, ...]
    repeats: int
    quick: bool
    seconds: float

    def __getitem__(self, part: str) -> Part:
        return next(found for found in self.parts if found.name == part)

    def to_json(self) -> dict[str, Any]:
        """Every figure, json-able."""
        return {
            "title": self.title,
            "machine": asdict(self.machine),
            "repeats": self.repeats,
            "quick": self.quick,
            "seconds": self.seconds,
            "parts": [part.to_json() for part in self.parts],
        }


class Turn(NamedTuple):
    """What a contender is told: which turn it is, from 0, and the `time.time()` at which its process was asked for."""

    number: int
    asked: float


Contender = Callable[[Turn], Mapping[str, float]]  # measures some quantities, by name


Measure = Callable[[Mapping[str, Contender]], dict[str, tuple[float, ...]]]  # name -> contender; quantity -> (turns,)


def run_parts(
    title: str,
    parts: Mapping[str, Callable[[Measure], Part]],
    names: Sequence[str],
    *,
    repeats: int,
    quick: bool,
    progress: Callable[[str], None] | None,
) -> Bench:
    """Run some parts of a benchmark.

    Args:
        title: what is measured, for people.
        parts: all there are.
        names: which; empty for all.
        repeats: turns, at least 1.
        quick: sizes are so small that nothing is promised.
        progress: called with what is about to be measured.

    Raises:
        ExperimentError: an unknown part, a number of turns below 1, or a measurement that was killed.
    """
    for name in names:
        if name not in parts:
            raise ExperimentError(unknown("part of the benchmark", name, parts))
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise ExperimentError(f"repeats must be a whole number of at least 1, not {repeats!r}")
    begin = time.perf_counter()
    machine = Machine.at_hand()
    found = []
    for name in dict.fromkeys(names or parts):
        say = partial(_say, progress, name, repeats)
        part = parts[name](partial(in_turns, repeats=repeats, say=say))
        if quick:
            part = replace(part, figures=tuple(replace(figure, least=None, most=None) for figure in part.figures))
        found.append(part)
    return Bench(title, machine, tuple(found), repeats, quick, time.perf_counter() - begin)


def _say(progress: Callable[[str], None] | None, part: str, repeats: int, contender: str, turn: int) -> None:
    if progress:
        progress(f"{part}: {contender}, turn {turn + 1} of {repeats}")


def in_turns(
    contenders: Mapping[str, Contender], *, repeats: int, say: Callable[[str, int], None]
) -> dict[str, tuple[float, ...]]:
    """Quantity -> (turns,) of all contenders, each in a new process in every turn."""
    found: dict[str, list[float]] = {}
    for turn in range(repeats):
        for name, contender in contenders.items():
            say(name, turn)
            for quantity, value in in_new_process(contender, turn).items():
                found.setdefault(quantity, []).append(value)
    return {quantity: tuple(values) for quantity, values in found.items()}


def in_new_process(contender: Contender, turn: int) -> Mapping[str, float]:
    """Let a contender measure where nothing ran before it; `ExperimentError` when its process is killed."""
    asked = time.time()
    # loky: its workers don't run the caller's main module again, so scripts need no __main__ guard
    with ProcessPoolExecutor(max_workers=1, initializer=start_worker, initargs=(os.getpid(),)) as pool:
        try:
            return pool.submit(contender, Turn(turn, asked)).result()
        except BrokenProcessPool:
            raise ExperimentError(
                "a measurement was killed from outside, probably for lack of memory: measure fewer parts (--part)"
            ) from None
        except BaseException:
            pool.shutdown(wait=True, kill_workers=True)
            raise


class Clock(Progress):
    """Records when each head's each epoch was finished."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def advance(self, count: int = 1, **of_which: int) -> None:
        """`count` more epochs are finished."""
        self.times += [time.perf_counter()] * count

    def seconds_per_epoch(self, heads: int) -> float:
        """Wall time of an epoch of all heads, which train side by side, after the first."""
        return (self.times[-1] - self.times[heads - 1]) / (len(self.times) / heads - 1)


def seconds_of(function: Callable[[], object]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def ratios(values: Sequence[float], base: Sequence[float]) -> tuple[float, ...]:
    """Value by base, turn by turn."""
    return tuple(value / of for value, of in zip(values, base, strict=True))


def runs_per_second(function: Callable[[], object], seconds: float) -> float:
    """Calls per second, measured for this long after a first call that isn't counted."""
    function()
    runs, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds or not runs:
        function()
        runs += 1
    return runs / elapsed


class PeakMemory:
    """How much more memory this process took at most, within a `with` block, than at its beginning.

    Looked at every `SAMPLE_SECONDS`: the system's own record may be older than the process's program (Linux), and
    counts from its start.

    Attributes:
        grown_bytes: the most so far, beyond what there was at the beginning.
        samples: (seconds since the beginning, bytes in all), at every look; with `keep` only.
    """

    def __init__(self, *, children: bool = False, every_seconds: float = SAMPLE_SECONDS, keep: bool = False) -> None:
        """Watch this process alone, or with its `children`, whose shared pages then count once for each."""
        self._process = psutil.Process()
        self._children, self._every, self._keep = children, every_seconds, keep
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.grown_bytes = 0
        self.samples: list[tuple[float, int]] = []

    def __enter__(self) -> PeakMemory:
        self._before, self._began = self._now(), time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _now(self) -> int:
        total = int(self._process.memory_info().rss)
        for child in self._process.children(recursive=True) if self._children else ():
            with contextlib.suppress(psutil.Error):  # ended just now
                total += child.memory_info().rss
        return total

    def _watch(self) -> None:
        while True:
            now = self._now()
            self.grown_bytes = max(self.grown_bytes, now - self._before)
            if self._keep:
                self.samples.append((time.monotonic() - self._began, now))
            if self._over.wait(self._every):
                return
