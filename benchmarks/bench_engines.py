"""The cost of Ray on one machine: part "engines" of bench_extract.py.

Extracts the same clips, with the compact encoders, with the local engine and with Ray, each in a new process. Rates are
those of a warm engine: from the time at which a fifth of the clips is in the store until all are.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from measuring import Figure, Measure, Part, PeakMemory, Turn, ratios

from alphafuse.data.dataset import Dataset
from alphafuse.extract.pipeline import extract_embeddings
from alphafuse.extract.settings import ExtractSettings
from alphafuse.system.progress import Progress

WARM_SHARE = 0.2
FLUSH_SECONDS = 2.0  # short, so that the time of the first fifth is known precisely


def measure_engines(count: int, split: str, make: Callable[[Path], Dataset], measure: Measure) -> Part:
    """Compare the engines.

    Args:
        count: number of clips.
        split: split of the clips.
        make: function that makes a root of the clips in an empty folder.
        measure: function that runs contenders in turns.
    """
    engines = ["local", "ray"] if find_spec("ray") else ["local"]
    found = measure({engine: partial(_extract, engine, split, make) for engine in engines})
    figures = [Figure(f"{engine} engine, warm", "clips/s", found[f"{engine}_rate"]) for engine in engines]
    figures += [Figure(f"{engine} engine, peak memory", "MB", found[f"{engine}_peak"]) for engine in engines]
    notes = ["memory: of all processes; pages that processes share count once per process"]
    if len(engines) == 2:
        cost = ratios(found["local_rate"], found["ray_rate"])
        figures.append(Figure("time per clip, Ray / local engine", "x", cost, most=1.15))
    else:
        notes.append("Ray isn't installed: `pip install 'alphafuse[ray]'`")
    return Part("engines", f"{count} clips, compact encoders on the CPU", tuple(figures), tuple(notes))


class _Times(Progress):
    """Progress that records the times at which clips are done."""

    def __init__(self) -> None:
        self._done = 0

    def start(self, title: str, *, total: int, done: int = 0, unit: str = "clip") -> None:
        self.total = total - done
        self._records = [(time.monotonic(), 0)]

    def advance(self, count: int = 1, **of_which: int) -> None:
        self._done += count
        self._records.append((time.monotonic(), self._done))

    @property
    def warm_rate(self) -> float:
        """Clips per second after the first `WARM_SHARE` of the clips; over all clips if there are too few."""
        start, before = next(record for record in self._records if record[1] >= WARM_SHARE * self.total)
        end, after = self._records[-1]
        if after == before:
            start, before = self._records[0]
        return (after - before) / (end - start)


def _extract(engine: str, split: str, make: Callable[[Path], Dataset], turn: Turn) -> dict[str, float]:
    times = _Times()
    settings = ExtractSettings(device="cpu", engine=engine, address="local", flush_seconds=FLUSH_SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        dataset = make(Path(folder))
        with PeakMemory(children=True, every_seconds=0.5, keep=True) as memory:
            extract_embeddings(dataset, [split], settings, progress=times)
    peak = max(amount for _, amount in memory.samples)
    return {f"{engine}_rate": times.warm_rate, f"{engine}_peak": peak / 1e6}
