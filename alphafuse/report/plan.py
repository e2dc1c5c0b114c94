"""Plans of extraction as text and json: the work to do, and its time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from alphafuse.data.dataset import Dataset
from alphafuse.system.progress import duration

from .extract import coverage_json, format_changed, format_coverage
from .tables import aligned

if TYPE_CHECKING:  # commands that only read stores need no torch
    from alphafuse.extract.planning import ClipsPlan, ExtractPlan, Rates


def format_plan(plans: Sequence[ExtractPlan], rates: Rates | None, dataset: Dataset) -> str:
    """Format the work to do in each split, the rate, the time and the size of the new embeddings."""
    rows: list[tuple[str, ...]] = [("split", "clips", "done", "to do", "no file", "MB now", "MB more", "time")]
    for plan in plans:
        done = plan.clips - plan.pending
        cells = (plan.clips, done, plan.pending, plan.missing_files)
        sizes = (f"{plan.store_bytes / 1e6:.1f}", f"{plan.new_bytes / 1e6:.1f}")
        rows.append((plan.split, *(str(cell) for cell in cells), *sizes, duration(plan.seconds or 0.0)))
    lines = aligned(rows, left=("split",))
    pending = sum(plan.pending for plan in plans)
    notes = [f"{plan.split}: {changed}" for plan in plans if (changed := format_changed(plan.changed))]
    notes += format_coverage((found for plan in plans for found in plan.coverage), dataset.media).splitlines()
    if rates is None:
        files = "no clip to do has a file" if pending else "all clips are already in the store"
        return "\n".join([*lines, f"nothing to do: {files}", *notes]) + "\n"
    total = sum(plan.seconds or 0.0 for plan in plans)
    lines += [
        _seconds(rates),
        f"to do: {pending} clips at {pending / total:.2f} clips/s on {_machines(rates)}, about "
        f"{duration(total)}; {sum(plan.new_bytes for plan in plans) / 1e6:.1f} MB more in {dataset.store_folder}",
        *_balance(rates),
    ]
    to_do = {name: sum(plan.clips - plan.finished[name] for plan in plans) for name in rates.stream_seconds}
    growth = {name: sum(plan.stream_bytes[name] for plan in plans) for name in to_do}
    return "\n".join([*lines, *_by_stream(rates, to_do, growth, "MB more", 1e6), *notes]) + "\n"


def plan_json(plans: Sequence[ExtractPlan], rates: Rates | None) -> dict[str, Any]:
    """Return the plan as json-able values: the fields of `ExtractPlan` and `Rates`, and the expected rate."""
    splits = [{**asdict(plan), "coverage": coverage_json(plan.coverage)} for plan in plans]
    return {"splits": splits, "rates": None if rates is None else _rates_json(rates)}


def format_clips_plan(plan: ClipsPlan) -> str:
    """Format time, rate, core and GPU hours, store size, and the balance of cores and GPUs."""
    rates = plan.rates
    hours = [f"{number(plan.core_hours)} core hours"]
    if plan.gpu_hours:
        hours.append(f"{number(plan.gpu_hours)} GPU hours")
    lines = [
        f"{plan.clips:,} clips on {_machines(rates)}: about {duration(plan.seconds)} at "
        f"{number(rates.clips_per_second)} clips/s; bottleneck: {rates.bottleneck}",
        _seconds(rates),
        f"{' and '.join(hours)}, busy or idle; store: {number(plan.store_bytes / 1e9)} GB",
        *_balance(rates),
    ]
    to_do = dict.fromkeys(rates.stream_seconds, plan.clips)
    return "\n".join([*lines, *_by_stream(rates, to_do, plan.stream_bytes, "GB", 1e9)]) + "\n"


def clips_plan_json(plan: ClipsPlan) -> dict[str, Any]:
    """Return the plan as json-able values: the fields of `ClipsPlan` and `Rates`, and the expected rate."""
    return {**asdict(plan), "rates": _rates_json(plan.rates)}


def number(value: float) -> str:
    """Format a number with about three significant digits and thousands separators."""
    size = abs(value)
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.{1 if size >= 10 else 2 if size >= 1 else 4}f}"


def _rates_json(rates: Rates) -> dict[str, Any]:
    return asdict(rates) | {"clips_per_second": rates.clips_per_second, "bottleneck": rates.bottleneck}


def _machines(rates: Rates) -> str:
    if rates.device == "cpu":
        return f"{rates.cores} cores"
    devices = rates.device if rates.devices == 1 else f"{rates.devices} GPUs"
    return f"{devices} and {rates.workers} decode workers"


def _seconds(rates: Rates) -> str:
    known = f"measured on {rates.clips} clips" if rates.clips else "given"
    return (
        f"{known}: decoding {rates.decode_seconds:.3f} s of a core per clip, models {rates.embed_seconds:.3f} s of "
        f"{'a core' if rates.device == 'cpu' else 'the device'}"
    )


def _by_stream(
    rates: Rates, to_do: Mapping[str, int], sizes: Mapping[str, int], unit: str, unit_bytes: float
) -> list[str]:
    """Return a table of what each stream takes: embeddings to make, seconds in its model, and their size."""
    rows: list[tuple[str, ...]] = (
        [("stream", "to do", "s per clip", "model time", unit)] if rates.stream_seconds else []
    )
    for name, seconds in rates.stream_seconds.items():
        busy = duration(rates.wall_seconds(0.0, to_do[name] * seconds))
        rows.append((name, f"{to_do[name]:,}", f"{seconds:.3f}", busy, f"{sizes[name] / unit_bytes:.1f}"))
    return aligned(rows, left=("stream",)) if rows else []


def _balance(rates: Rates) -> list[str]:
    return [] if rates.device == "cpu" else [f"one such device embeds what {rates.cores_per_device:.1f} cores decode"]
