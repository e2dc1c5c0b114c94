"""The cost model: its formulas against figures computed by hand, its options, and what it says of itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
from support.cli import Run, assert_one_line_error

from alphafuse.cli import common as cli_common
from alphafuse.data.dataset import Dataset
from alphafuse.errors import ClusterError, DatasetError
from alphafuse.extract.cost import (
    ACHIEVED,
    BLOCK_SECONDS,
    PEAK_TFLOPS,
    SOURCES,
    Known,
    RunPlan,
    RunSettings,
    Work,
    gpu_name,
    measure_work,
    plan_run,
    published_work,
)
from alphafuse.extract.planning import plan_extraction
from alphafuse.extract.settings import PRECISIONS, ExtractSettings

MakeRoot = Callable[..., Path]
# a clip: 0.1 s of a core to decode, 2 s of a core or 1 TFLOP to embed, 1 MB, two embeddings of 768
EASY = Work(
    decode=Known("decoding", 0.1, "core s/clip", "measured"),
    cpu_models=Known("models on the CPU", 2.0, "core s/clip", "measured"),
    flops=Known("models", 1000.0, "GFLOP/clip", "computed"),
    file=Known("a clip's file", 1.0, "MB", "measured"),
    dims={"timesformer": 768, "ast": 768},
    decoded_bytes=2 * 10**6,
)


def stage(plan: RunPlan, name: str) -> float:
    return next(found.clips_per_second for found in plan.stages if found.name == name)


def test_every_stage_is_what_one_computes_by_hand() -> None:
    plan = plan_run(
        RunSettings(clips=36_000, gpus=2, cpus=12, gpu="H100", precision="bf16", achieved=0.5, nodes=3, node_gbps=0.8),
        EASY,
    )
    assert stage(plan, "network") == pytest.approx(3 * 0.8e9 / 8 / 1e6)
    assert stage(plan, "decoding") == pytest.approx((12 - 2) / 0.1)
    assert stage(plan, "models") == pytest.approx(2 * 0.5 * 989)
    assert stage(plan, "driver") == pytest.approx(16 / BLOCK_SECONDS)
    assert plan.bottleneck == "decoding" and plan.clips_per_second == pytest.approx(100)
    assert plan.seconds == pytest.approx(360)
    assert (plan.device_hours, plan.core_hours) == (pytest.approx(0.2), pytest.approx(1.2))
    assert plan.store_bytes == 36_000 * (4 * 2 * 768 + 120)
    assert plan.shard_clips == 30 * 100 and plan.shards == 12  # what 30 s make
    assert {found.name: found.busy for found in plan.stages}["models"] == pytest.approx(100 / 989)
    assert plan.cores_per_gpu == pytest.approx(1 + 0.1 * 0.5 * 989)


def test_fast_runs_make_shards_of_64_mb() -> None:
    plan = plan_run(RunSettings(clips=10**7, gpus=8, cpus=2000, precision="bf16"), EASY)
    assert plan.shard_clips == 64 * 2**20 // 6144 and plan.shards == -(-(10**7) // plan.shard_clips)


def test_on_the_cpu_decoding_and_models_share_the_cores() -> None:
    plan = plan_run(RunSettings(clips=1000, cpus=21), EASY)
    assert plan.clips_per_second == pytest.approx(21 / 1.15 / 2.1)
    assert plan.device_hours == 0 and plan.cores_per_gpu is None and plan.device == ""
    assert plan.advice[0] == "of the cores' time 5% decodes and 95% runs the models"


def test_two_cores_extract_as_fast_as_docs_extraction_measured() -> None:
    plan = plan_run(RunSettings(clips=1000, cpus=2))
    assert plan.clips_per_second == pytest.approx(0.56, rel=0.15)  # the model allows for more overhead than was there


def test_balanced_cores_make_decoding_as_fast_as_the_models() -> None:
    lean = plan_run(RunSettings(clips=10**6, gpus=8, cpus=16, precision="bf16"))
    assert lean.bottleneck == "decoding" and lean.cores_per_gpu is not None
    enough = round(8 * lean.cores_per_gpu)
    assert f"{enough + 1} cores would keep all of them busy" in lean.advice[1] or str(enough) in lean.advice[1]
    balanced = plan_run(RunSettings(clips=10**6, gpus=8, cpus=enough, precision="bf16", nodes=100))
    assert stage(balanced, "decoding") == pytest.approx(stage(balanced, "models"), rel=0.01)
    rich = plan_run(RunSettings(clips=10**6, gpus=8, cpus=4 * enough, nodes=100))
    assert rich.bottleneck == "models" and "stand idle" in rich.advice[1] and "--precision bf16" in rich.advice[2]


def test_a_network_or_a_driver_can_be_what_is_too_slow() -> None:
    slow = plan_run(RunSettings(clips=10**6, gpus=8, cpus=2000, precision="bf16", nodes=1, node_gbps=1.0))
    assert slow.bottleneck == "network" and "arrive more slowly" in slow.advice[-1]
    wide = RunSettings(clips=10**9, gpus=1000, cpus=16_000, gpu="L4", precision="bf16")
    many = plan_run(wide)
    assert many.bottleneck == "driver" and "divide the clips among 6 roots" in many.advice[-1]
    assert plan_run(replace(wide, clips=10**6, gpus=1000 // 6, cpus=16_000 // 6)).bottleneck == "models"


def test_an_h100_takes_about_150_cores_where_it_reaches_two_thirds_of_its_peak() -> None:
    """What the plan for large runs was given; ours assumes less, for lack of a GPU to measure."""
    assumed = plan_run(RunSettings(clips=1, gpus=1, cpus=100, precision="bf16")).cores_per_gpu
    reached = plan_run(RunSettings(clips=1, gpus=1, cpus=100, precision="bf16", achieved=2 / 3)).cores_per_gpu
    assert assumed == pytest.approx(91, abs=1) and reached == pytest.approx(150, abs=2)
    assert plan_run(RunSettings(clips=1, gpus=1, cpus=100)).cores_per_gpu == pytest.approx(11.6, abs=0.1)  # fp32


def test_the_published_encoders_are_what_is_planned_with() -> None:
    work = published_work()
    assert work.flops.value == pytest.approx(391.66 + 261.03, abs=0.01)  # GFLOP, counted by PyTorch in test_forward
    assert work.dims == {"timesformer": 768, "ast": 768} and work.decoded_bytes < 2**21
    assert published_work(["ast"]).flops.value == pytest.approx(261.03, abs=0.01)
    assert published_work(["ast"]).cpu_models.value < work.cpu_models.value


@pytest.mark.parametrize("gpus", [0, 4])
def test_every_figure_says_how_it_is_known(gpus: int) -> None:
    plan = plan_run(RunSettings(clips=1000, gpus=gpus, cpus=64))
    for known in plan.inputs:
        assert known.source in SOURCES and known.value > 0, known
        assert known.note or known.source == "given", f"{known.name}: from where?"
    assert len({known.name for known in plan.inputs}) == len(plan.inputs)


def test_gpus_are_found_in_any_spelling_and_completion_knows_them() -> None:
    assert tuple(PEAK_TFLOPS) == cli_common.GPUS
    assert [gpu_name(given) for given in ("h100", "NVIDIA L4", "GeForce RTX-4090", "H100-SXM")] == [
        *("H100", "L4", "RTX 4090", "H100")
    ]
    assert set(ACHIEVED) == set(PRECISIONS) == set(PEAK_TFLOPS["H100"])
    with pytest.raises(ClusterError, match=r"unknown GPU 'A1000' \(did you mean 'A100'\?\): choose from H200, H100"):
        gpu_name("A1000")
    with pytest.raises(ClusterError, match="T4 has no bf16: plan with --precision fp32"):
        plan_run(RunSettings(clips=1, gpus=1, cpus=8, gpu="T4", precision="bf16"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"clips": 0}, "clips must be at least 1, not 0"),
        ({"clips": -5}, "clips must be at least 1, not -5"),
        ({"gpus": -1}, "gpus must be at least 0"),
        ({"cpus": 0}, "cpus must be at least 1"),
        ({"gpus": 8, "cpus": 8}, "8 cores can't feed 8 GPUs and decode"),
        ({"achieved": 40.0}, "share of the peak"),
        ({"achieved": float("nan")}, "share of the peak"),
        ({"node_gbps": 0.0}, "node_gbps must be above 0"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        RunSettings(**{"clips": 1, "cpus": 4, **wrong})  # type: ignore[arg-type]


def test_a_root_is_measured_and_gives_the_size_that_its_own_dry_run_gives(
    make_root: MakeRoot, tiny_encoders: dict[str, Path]
) -> None:
    dataset = Dataset.open(make_root())
    names = {name: str(path) for name, path in tiny_encoders.items()}
    settings = ExtractSettings(**names, device="cpu", workers=1)  # type: ignore[arg-type]
    before = sorted(dataset.root.rglob("*"))
    work = measure_work(dataset, settings)
    assert sorted(dataset.root.rglob("*")) == before
    assert work.dims == {"timesformer": 64, "ast": 32} and work.decode.source == work.cpu_models.source == "measured"
    assert work.decode.note == "8 clips of root, here" and "12 files of root" in work.file.note
    assert work.flops.value < 1  # GFLOP, of tiny models
    ((one,), _) = plan_extraction(dataset, ["train"], settings)
    plan = plan_run(RunSettings(clips=one.pending, cpus=4), work)
    assert plan.store_bytes == one.new_bytes
    for clip in dataset.manifest:
        dataset.path_of(clip).unlink()
    with pytest.raises(DatasetError, match="none of the clip files looked at is in"):
        measure_work(dataset, settings)


def test_a_measured_device_is_planned_with_unless_another_is_named() -> None:
    measured = replace(EASY, device_models=Known("models on cuda:0", 0.01, "s/clip", "measured", "here"))
    plan = plan_run(RunSettings(clips=1000, gpus=2, cpus=400), measured)
    assert stage(plan, "models") == pytest.approx(200) and plan.device == "2 x the device measured"
    named = plan_run(RunSettings(clips=1000, gpus=2, cpus=400, gpu="A100"), measured)
    assert stage(named, "models") == pytest.approx(2 * 19.5 * ACHIEVED["fp32"]) and named.device == "2 x A100"


# on the command line

ASKED = ("extract", "--dry-run", "--clips", 10_000_000, "--gpus", 8, "--cpus", 512)


def test_the_command_needs_no_root_and_marks_every_figure(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALPHAFUSE_ROOT", raising=False)
    code, out, err = run(*ASKED)
    assert code == 0 and not err
    assert out.startswith(
        "10,000,000 clips on 8 x H100 (fp32) and 512 cores: about 4.8 h at 575 clips/s; bottleneck: models"
    )
    figures = out.partition("figure ")[2].splitlines()[1:]
    assert len(figures) > 12
    for line in figures:
        assert sum(f"  {source} " in f"{line} " for source in SOURCES) == 1, line
    for what in ("store", "shards", "GPUs in all", "cores in all", "seeing what is finished"):
        assert any(line.startswith(what) and " computed" in line for line in figures)
    code, out, _ = run(*ASKED, "--precision", "bf16", "--json")
    plan = json.loads(out)
    assert set(plan) == {field.name for field in fields(RunPlan)} and set(plan["run"]) >= {"clips", "gpus", "cpus"}
    assert plan["bottleneck"] == "decoding" and plan["run"]["gpus"] == 8 and plan["store_bytes"] == 62_640_000_000
    assert list(tmp_path.iterdir()) == []


def test_the_command_measures_a_root_that_is_named(
    run: Run, make_root: MakeRoot, tiny_encoders: dict[str, Path]
) -> None:
    tiny = ("--timesformer", tiny_encoders["timesformer"], "--ast", tiny_encoders["ast"], "--workers", 1)
    code, out, _ = run(*ASKED[:4], "--cpus", 4, "--root", make_root(), *tiny)
    assert code == 0 and "8 clips of root, here" in out and "bottleneck: decoding and models" in out


def test_mistakes_are_said_in_one_line(run: Run, tmp_path: Path) -> None:
    assert_one_line_error(run("extract", "--dry-run", "--clips", 0), "clips must be at least 1, not 0")
    assert_one_line_error(run(*ASKED, "--gpu", "H10"), "unknown GPU 'H10' (did you mean")
    assert_one_line_error(run(*ASKED, "--root", tmp_path / "nowhere"), "no dataset root at")
    assert_one_line_error(run("extract", "--clips", 10), "--clips plans a run and extracts nothing", "--dry-run")
    assert_one_line_error(run("extract", "--split", "all", "--gpus", 2, "--dry-run"), "--gpus plans a run")
    assert_one_line_error(run("extract", "--dry-run"), "missing option '--split'")
