"""Large runs, planned and simulated, for people and for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alphafuse.extract.cost import RunPlan

from .extract import duration
from .text import aligned, wrapped

if TYPE_CHECKING:
    from alphafuse.extract.simulate import Simulation

RESULT = "computed"


def format_run_plan(plan: RunPlan) -> str:
    """Hours and the bottleneck, the stages, then every figure with how it is known."""
    run = plan.run
    device = f"{plan.device} ({run.precision}) and " if plan.device else ""
    lines = [
        f"{run.clips:,} clips on {device}{run.cpus} cores: about {duration(plan.seconds)} at "
        f"{number(plan.clips_per_second)} clips/s; bottleneck: {plan.bottleneck}",
        "",
    ]
    rows = [("stage", "clips/s alone", "busy")]
    rows += [(stage.name, number(stage.clips_per_second), f"{100 * stage.busy:.0f}%") for stage in plan.stages]
    lines += [*aligned(rows, left=("stage",)), ""]
    lines += wrapped(plan.advice)
    rows4 = [("figure", "value", "unit", "known", "from")]
    rows4 += [(known.name, number(known.value), known.unit, known.source, known.note) for known in plan.inputs]
    results = [
        ("time", plan.seconds / 3600, "h", "clips / slowest stage"),
        ("GPUs in all", plan.device_hours, "h", "busy or idle"),
        ("cores in all", plan.core_hours, "h", "busy or idle"),
        ("store", plan.store_bytes / 1e9, "GB", "clips x (embeddings in float32 + text)"),
        ("shards", plan.shards, "", f"{plan.shard_clips:,} clips each: 64 MB, or what {run.flush_seconds:g} s make"),
        (
            "seeing what is finished",
            plan.resume_seconds,
            "s",
            "at a new start: list, then the ids of one shard after the other",
        ),
    ]
    rows4 += [(name, number(value), unit, RESULT, note) for name, value, unit, note in results]
    lines += ["", *aligned(rows4, left=("figure", "unit", "known", "from"))]
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    """Three digits that count, thousands apart."""
    size = abs(value)
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.{1 if size >= 10 else 2 if size >= 1 else 4}f}"


def format_simulation(found: Simulation) -> str:
    """What the run took, what its failures cost, and whether the promises held."""
    run = found.settings
    drivers = f"{run.roots} roots with a driver each" if run.roots > 1 else "one root, one driver"
    more = 100 * (found.seconds / found.ideal_seconds - 1)
    lines = [
        f"simulated: {run.clips:,} clips on {run.nodes:,} nodes, {drivers}, seed {run.seed}",
        f"{duration(found.seconds)} at {number(run.clips / found.seconds)} clips/s; without failures "
        f"{duration(found.ideal_seconds)} ({more:+.1f}%)",
        "",
    ]
    rows = [("failure", "times", "clips begun again", "most at once", "core hours", "device hours")]
    for loss in found.losses:
        counts = (f"{loss.count:,}", f"{loss.clips:,}", f"{loss.most_clips:,}")
        rows.append((loss.kind, *counts, number(loss.core_hours), number(loss.device_hours)))
    lines += [*aligned(rows, left=("failure",)), ""]
    for what, clips in (("stored twice", found.rows_doubled), ("stored never", found.clips_missing)):
        lines.append(f"{what}: {clips:,} clips, promised: 0: {'BROKEN' if clips else 'held'}")
    hours = sum(loss.core_hours for loss in found.losses)
    all_hours = run.clips * run.decode_seconds / 3600
    lines += [
        f"begun again though stored: {found.redone_though_stored:,} clips",
        f"lost in all: {found.lost_clips:,} clips begun ({100 * found.lost_clips / run.clips:.3f}%), {number(hours)} "
        f"core hours beside {number(all_hours)} of decoding",
        f"shards: {found.shards:,} of {found.least_clips:,} to {found.most_clips:,} clips, median "
        f"{number(found.median_clips)}; {found.commits - found.shards:,} attempts more than shards",
    ]
    if found.resumes:
        slowest = max(found.resumes, key=lambda resume: resume.seconds)
        lines.append(
            f"new drivers: {len(found.resumes)}; the slowest listed {slowest.shards:,} shards in {slowest.pages} pages "
            f"and read their ids, {duration(slowest.seconds)}"
        )
    lines += [
        f"a driver sees to {number(found.blocks_per_second)} blocks/s, busy {100 * found.driver_busy:.0f}%; decode "
        f"cores busy {100 * found.decode_busy:.0f}%, devices {100 * found.models_busy:.0f}%",
        f"in steps of {run.step_clips:,} clips of a node: what a failure costs is counted in whole steps",
    ]
    return "\n".join(lines) + "\n"
