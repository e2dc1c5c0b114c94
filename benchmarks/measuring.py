"""Comparative measurements: contenders run in turns, each in a new process; results record the machine."""

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

SAMPLE_SECONDS = 0.01  # interval between two readings of a process's memory


@dataclass(frozen=True)
class Figure:
    """A quantity that is measured once in every turn.

    Attributes:
        name: name of the quantity, as shown to users.
        unit: "s", "x" (a ratio), "%", ...
        values: (turns,) measured values.
        least, most: promised lower and upper bound of the median; None without a promise.
    """

    name: str
    unit: str
    values: tuple[float, ...]
    least: float | None = None
    most: float | None = None

    @property
    def median(self) -> float:
        """Median over turns."""
        return median(self.values)

    @property
    def is_met(self) -> bool | None:
        """Whether the median is as promised; None without a promise."""
        if self.least is None and self.most is None:
            return None
        return (self.least is None or self.median >= self.least) and (self.most is None or self.median <= self.most)

    def to_json(self) -> dict[str, Any]:
        """Return the fields and derived values, json-able."""
        spread = {"median": self.median, "low": min(self.values), "high": max(self.values)}
        return {**asdict(self), **spread, "values": list(self.values), "is_met": self.is_met}


@dataclass(frozen=True)
class Part:
    """Result of one part of a benchmark.

    Attributes:
        name: name of an entry of `PARTS`.
        setup: description of the measurement, as shown to users.
        figures: the measured figures, in the order of the output.
        notes: explanations of the figures.
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
    """Result of a benchmark.

    Attributes:
        title: title of the benchmark, as shown to users.
        machine: the machine that was measured.
        parts: results of the parts, in the requested order.
        repeats: number of turns.
        quick: whether sizes were too small for meaningful figures.
        seconds: duration of the whole benchmark.
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
    """Argument of a contender: the turn's number, from 0, and the `time.time()` at which its process was requested."""

    number: int
    requested: float


Contender = Callable[[Turn], Mapping[str, float]]  # returns name of a quantity -> value
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
        title: title of the benchmark, as shown to users.
        parts: name -> function of every part.
        names: names of the parts to run; empty for all.
        repeats: number of turns, at least 1.
        quick: whether sizes are too small for meaningful figures; promises are then dropped.
        progress: called with a description of each measurement before it starts.

    Raises:
        ExperimentError: an unknown part, fewer than 1 turn, or a measurement whose process was killed.
    """
    for name in names:
        if name not in parts:
            raise ExperimentError(unknown("part of the benchmark", name, parts))
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise ExperimentError(f"repeats must be a whole number of at least 1, not {repeats!r}")
    begin = time.perf_counter()
    machine = Machine.current()
    found = []
    for name in dict.fromkeys(names or parts):
        announce = partial(_announce, progress, name, repeats)
        part = parts[name](partial(in_turns, repeats=repeats, announce=announce))
        if quick:
            part = replace(part, figures=tuple(replace(figure, least=None, most=None) for figure in part.figures))
        found.append(part)
    return Bench(title, machine, tuple(found), repeats, quick, time.perf_counter() - begin)


def _announce(progress: Callable[[str], None] | None, part: str, repeats: int, contender: str, turn: int) -> None:
    if progress:
        progress(f"{part}: {contender}, turn {turn + 1} of {repeats}")


def in_turns(
    contenders: Mapping[str, Contender], *, repeats: int, announce: Callable[[str, int], None]
) -> dict[str, tuple[float, ...]]:
    """Run all contenders in every turn, each in a new process; return quantity -> (turns,) values."""
    found: dict[str, list[float]] = {}
    for turn in range(repeats):
        for name, contender in contenders.items():
            announce(name, turn)
            for quantity, value in in_new_process(contender, turn).items():
                found.setdefault(quantity, []).append(value)
    return {quantity: tuple(values) for quantity, values in found.items()}


def in_new_process(contender: Contender, turn: int) -> Mapping[str, float]:
    """Run a contender in a new process; `ExperimentError` if the process is killed."""
    requested = time.time()
    # loky: its workers don't run the caller's main module again, so scripts need no __main__ guard
    with ProcessPoolExecutor(max_workers=1, initializer=start_worker, initargs=(os.getpid(),)) as pool:
        try:
            return pool.submit(contender, Turn(turn, requested)).result()
        except BrokenProcessPool:
            raise ExperimentError(
                "a measurement was killed from outside, probably for lack of memory: measure fewer parts (--part)"
            ) from None
        except BaseException:
            pool.shutdown(wait=True, kill_workers=True)
            raise


class Clock(Progress):
    """Progress that records the time at which each epoch of each head finishes."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def advance(self, count: int = 1, **of_which: int) -> None:
        """Record `count` finished epochs."""
        self.times += [time.perf_counter()] * count

    def seconds_per_epoch(self, heads: int) -> float:
        """Return the wall time of an epoch of all heads, which train in parallel, without the first epoch."""
        return (self.times[-1] - self.times[heads - 1]) / (len(self.times) / heads - 1)


def seconds_of(function: Callable[[], object]) -> float:
    """Return the wall time of a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def ratios(values: Sequence[float], base: Sequence[float]) -> tuple[float, ...]:
    """Return value / base of each turn."""
    return tuple(value / divisor for value, divisor in zip(values, base, strict=True))


def runs_per_second(function: Callable[[], object], seconds: float) -> float:
    """Return the calls per second, measured for this duration after a first call that isn't counted."""
    function()
    runs, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds or not runs:
        function()
        runs += 1
    return runs / elapsed


class PeakMemory:
    """Peak growth of this process's memory within a `with` block.

    The memory is read periodically, because the system's own peak counts from the start of the process, and on Linux
    may even include the parent's memory before the program was loaded.

    Attributes:
        grown_bytes: peak so far, minus the memory at the beginning of the block.
        samples: (seconds since the beginning, bytes in total) of every reading; only with `keep`.
    """

    def __init__(self, *, children: bool = False, every_seconds: float = SAMPLE_SECONDS, keep: bool = False) -> None:
        """Watch this process alone, or with its `children`; pages that processes share then count once per process."""
        self._process = psutil.Process()
        self._children, self._every, self._keep = children, every_seconds, keep
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.grown_bytes = 0
        self.samples: list[tuple[float, int]] = []

    def __enter__(self) -> PeakMemory:
        self._bytes_before, self._start = self._read(), time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _read(self) -> int:
        total = int(self._process.memory_info().rss)
        for child in self._process.children(recursive=True) if self._children else ():
            with contextlib.suppress(psutil.Error):  # the child has just ended
                total += child.memory_info().rss
        return total

    def _watch(self) -> None:
        while True:
            total = self._read()
            self.grown_bytes = max(self.grown_bytes, total - self._bytes_before)
            if self._keep:
                self.samples.append((time.monotonic() - self._start, total))
            if self._ended.wait(self._every):
                return
