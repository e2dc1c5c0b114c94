"""A large run, planned, for people."""

from __future__ import annotations

from alphafuse.extract.cost import RunPlan

from .extract import duration
from .tables import aligned, wrapped

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
