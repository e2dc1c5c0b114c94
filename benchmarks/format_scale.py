"""Text output of a simulated run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alphafuse.report.plan import duration, number
from alphafuse.report.tables import aligned

if TYPE_CHECKING:
    from scenario import Simulation


def format_simulation(found: Simulation) -> str:
    """Format the run's duration, the costs of its failures, and whether the promises held."""
    run = found.settings
    drivers = f"{run.roots} roots with a driver each" if run.roots > 1 else "one root, one driver"
    more = 100 * (found.seconds / found.ideal_seconds - 1)
    lines = [
        f"simulated: {run.clips:,} clips on {run.nodes:,} nodes, {drivers}, seed {run.seed}",
        f"{duration(found.seconds)} at {number(run.clips / found.seconds)} clips/s; without failures "
        f"{duration(found.ideal_seconds)} ({more:+.1f}%)",
        "",
    ]
    rows = [("failure", "times", "clips redone", "most in one failure", "core hours", "device hours")]
    for loss in found.losses:
        counts = (f"{loss.count:,}", f"{loss.clips:,}", f"{loss.most_clips:,}")
        rows.append((loss.kind, *counts, number(loss.core_hours), number(loss.device_hours)))
    lines += [*aligned(rows, left=("failure",)), ""]
    for what, clips in (("stored twice", found.rows_doubled), ("stored never", found.clips_missing)):
        lines.append(f"{what}: {clips:,} clips, promised: 0: {'BROKEN' if clips else 'held'}")
    hours = sum(loss.core_hours for loss in found.losses)
    all_hours = run.clips * run.decode_seconds / 3600
    lines += [
        f"redone though stored: {found.redone_though_stored:,} clips",
        f"redone in all: {found.lost_clips:,} clips ({100 * found.lost_clips / run.clips:.3f}%), {number(hours)} core "
        f"hours in addition to {number(all_hours)} of decoding",
        f"shards: {found.shards:,} of {found.least_clips:,} to {found.most_clips:,} clips, median "
        f"{number(found.median_clips)}; {found.commits - found.shards:,} repeated attempts",
    ]
    if found.resumes:
        slowest = max(found.resumes, key=lambda resume: resume.seconds)
        lines.append(
            f"new drivers: {len(found.resumes)}; the slowest listed {slowest.shards:,} shards in {slowest.pages} pages "
            f"and read their ids, {duration(slowest.seconds)}"
        )
    lines += [
        f"a driver handles {number(found.blocks_per_second)} blocks/s, busy {100 * found.driver_busy:.0f}%; decode "
        f"cores busy {100 * found.decode_busy:.0f}%, devices {100 * found.models_busy:.0f}%",
        f"steps of {run.step_clips:,} clips per node: costs of failures are counted in whole steps",
    ]
    return "\n".join(lines) + "\n"
