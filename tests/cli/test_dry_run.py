"""Planning by measured or given seconds per clip: its arithmetic by hand, its options, several devices, Ray."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.cli import Run, assert_one_line_error

from alphafuse.data.dataset import Dataset
from alphafuse.data.streams import DEFAULT_STREAMS, Stream
from alphafuse.errors import ClusterError, DatasetError
from alphafuse.extract import planning
from alphafuse.extract.encoders.encoder import Encoder
from alphafuse.extract.engines.embedder import load_encoders
from alphafuse.extract.pipeline import extract_embeddings
from alphafuse.extract.planning import ClipsPlan, Rates, measure_root, plan_clips, plan_extraction
from alphafuse.extract.settings import ExtractSettings

MakeRoot = Callable[..., Path]
DIMS = {"timesformer": 768, "ast": 768}
# a clip: 0.1 s of a core to decode, 2 s of a core or 0.01 s of a GPU to embed
CORES = Rates(clips=8, decode_seconds=0.1, embed_seconds=2.0, cores=2, workers=2, device="cpu")
GPU = Rates(clips=8, decode_seconds=0.1, embed_seconds=0.01, cores=16, workers=16, device="cuda:0")


def test_every_figure_equals_the_one_computed_by_hand() -> None:
    plan = plan_clips(36_000, GPU.on(cpus=12, gpus=2), DIMS)
    assert plan.rates.bottleneck == "decoding" and plan.rates.clips_per_second == pytest.approx((12 - 2) / 0.1)
    assert plan.seconds == pytest.approx(360)
    assert (plan.gpu_hours, plan.core_hours) == (pytest.approx(0.2), pytest.approx(1.2))
    assert plan.store_bytes == 36_000 * (4 * 2 * 768 + 120)
    assert plan.rates.cores_per_device == pytest.approx(10)


def test_on_the_cpu_decoding_and_models_share_the_cores() -> None:
    plan = plan_clips(1000, CORES.on(cpus=21), DIMS)
    assert plan.rates.clips_per_second == pytest.approx(21 / 1.15 / 2.1)
    assert plan.gpu_hours == 0 and plan.rates.bottleneck == "cores"


def test_two_cores_extract_as_fast_as_docs_extraction_measured() -> None:
    measured = replace(CORES, decode_seconds=0.148, embed_seconds=2 * 1.69)
    assert measured.clips_per_second == pytest.approx(
        0.56, rel=0.15
    )  # the plan assumes more overhead than was measured


def test_balanced_cores_make_decoding_as_fast_as_the_models() -> None:
    enough = round(8 * (GPU.cores_per_device + 1))
    balanced = GPU.on(cpus=enough, gpus=8)
    assert balanced.workers / 0.1 == pytest.approx(8 / 0.01) == pytest.approx(balanced.clips_per_second)
    assert GPU.on(cpus=enough // 2, gpus=8).bottleneck == "decoding"
    assert GPU.on(cpus=2 * enough, gpus=8).bottleneck == "models"


@pytest.mark.parametrize(
    ("rates", "machines", "message"),
    [
        (GPU, {"cpus": 8, "gpus": -1}, "gpus must be at least 0, not -1"),
        (CORES, {"cpus": 0}, "0 cores are too few"),
        (GPU, {"cpus": 8, "gpus": 8}, "8 cores are too few for 8 GPUs"),
        (CORES, {"cpus": 8, "gpus": 2}, "measured on the CPU, so the rate on GPUs is unknown: give --embed-seconds"),
        (GPU, {"cpus": 8}, "measured on cuda:0, so the rate on cores is unknown: measure with --device cpu"),
    ],
)
def test_machines_that_make_no_sense_are_refused(rates: Rates, machines: dict[str, int], message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        rates.on(**machines)


@pytest.mark.parametrize("clips", [0, -5])
def test_fewer_than_one_clip_is_refused(clips: int) -> None:
    with pytest.raises(ClusterError, match=f"clips must be at least 1, not {clips}"):
        plan_clips(clips, CORES, DIMS)


def tiny(tiny_encoders: dict[str, Path], **others: Any) -> ExtractSettings:
    return ExtractSettings(encoders={name: str(path) for name, path in tiny_encoders.items()}, workers=1, **others)


def test_a_root_is_measured_and_gives_the_size_that_its_own_dry_run_gives(
    make_root: MakeRoot, tiny_encoders: dict[str, Path]
) -> None:
    dataset = Dataset.open(make_root())
    settings = tiny(tiny_encoders, device="cpu")
    before = sorted(dataset.root.rglob("*"))
    rates, dims = measure_root(dataset, settings)
    assert sorted(dataset.root.rglob("*")) == before
    assert dims == {"timesformer": 64, "ast": 32} and rates.device == "cpu"
    assert rates.clips == 8 and rates.decode_seconds > 0 and rates.embed_seconds > 0
    ((one,), _) = plan_extraction(dataset, ["train"], settings)
    planned = plan_clips(one.pending, rates.on(cpus=4), dims)
    assert planned.store_bytes == one.new_bytes and planned.stream_bytes == one.stream_bytes
    assert one.stream_bytes == {"timesformer": 4 * 64 * one.pending, "ast": 4 * 32 * one.pending}
    assert rates.embed_seconds == sum(rates.stream_seconds.values()) and set(rates.stream_seconds) == set(dims)
    for clip in dataset.manifest:
        dataset.path_of(clip).unlink()
    with pytest.raises(DatasetError, match="none of the first clips has a file in"):
        measure_root(dataset, settings)


@pytest.mark.slow
def test_a_stream_that_was_added_later_is_priced_alone(
    make_root: MakeRoot, run: Run, tiny_encoders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_root()
    encoders = {name: str(path) for name, path in tiny_encoders.items()}
    dataset = Dataset.open(root)
    streams = tuple(replace(one, encoder=encoders[one.name]) for one in DEFAULT_STREAMS)
    dataset = Dataset.create(
        root,
        dataset.manifest,
        name=dataset.name,
        clip_folder=dataset.clip_folder,
        classes=dataset.classes,
        streams=(*streams, Stream("eye", encoders["timesformer"], "video", {"protocol": "notebook"})),
    )
    extract_embeddings(dataset, ["train"], ExtractSettings(streams=("timesformer", "ast"), workers=1))
    (train, val), rates = plan_extraction(dataset, ["train", "val"], ExtractSettings(workers=1, device="cpu"))
    assert rates is not None and set(rates.stream_seconds) == {"timesformer", "ast", "eye"}
    assert train.finished == {"timesformer": 4, "ast": 4, "eye": 0} and train.pending == val.pending == 4
    assert train.stream_bytes == {"timesformer": 0, "ast": 0, "eye": 4 * 4 * 64}
    decode, eye = 4 * rates.decode_seconds, 4 * rates.stream_seconds["eye"]
    assert train.seconds == pytest.approx(1.15 * (decode + eye) / rates.cores)
    assert val.seconds == pytest.approx(4 / rates.clips_per_second)
    code, out, _ = run("extract", "--dry-run", "--split", "all", "--root", root, "--stream", "eye", "--workers", 1)
    (eye_row,) = [line.split() for line in out.splitlines() if line.startswith("eye ")]
    assert code == 0 and eye_row[1] == "12" and "\nast " not in out


# several devices and Ray


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Simulate a machine with two GPUs like `GPU`; return the devices that encoders are loaded on, in order."""
    asked: list[str] = []

    def load(dataset: Dataset, settings: ExtractSettings, device: str) -> dict[str, Encoder]:
        asked.append(device)
        return load_encoders(dataset, settings, "cpu")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(planning, "load_encoders", load)
    monkeypatch.setattr(planning, "measure_rates", lambda embedder, jobs: GPU)
    return asked


@pytest.mark.parametrize("device", ["all", "cuda:0,cuda:1"])
@pytest.mark.slow
def test_several_devices_are_counted_and_one_is_measured(
    device: str, two_gpus: list[str], run: Run, make_root: MakeRoot, tiny_encoders: dict[str, Path]
) -> None:
    root = make_root()
    _, rates = plan_extraction(Dataset.open(root), ["train"], tiny(tiny_encoders, device=device))
    assert rates == replace(GPU, devices=2) and two_gpus == ["cuda:0"]
    given = [word for name, path in tiny_encoders.items() for word in (f"--{name}", path)]
    code, out, _ = run("extract", "--dry-run", "--split", "train", "--root", root, "--device", device, *given)
    assert code == 0 and "on 2 GPUs and 16 decode workers" in out


@pytest.mark.slow
def test_several_devices_are_measured_for_real(make_root: MakeRoot, tiny_encoders: dict[str, Path]) -> None:
    plans, rates = plan_extraction(Dataset.open(make_root()), ["train"], tiny(tiny_encoders, device="cpu,cpu"))
    assert rates is not None and rates.device == "cpu" and plans[0].seconds


def test_all_devices_of_a_machine_without_any_are_refused_in_one_line(run: Run, make_root: MakeRoot) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    asked = run("extract", "--dry-run", "--split", "train", "--root", make_root(), "--device", "all")
    assert_one_line_error(asked, "no usable CUDA device", "--device cpu")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """Simulate a Ray cluster without starting Ray; the list holds the resources of each machine, empty at first."""
    nodes: list[dict[str, float]] = []

    @contextmanager
    def connected(address: str | None, *, memory_bytes: int) -> Iterator[Any]:
        assert address == "auto"
        yield SimpleNamespace(nodes=lambda: [{"Alive": True, "Resources": node} for node in nodes])

    monkeypatch.setattr(planning, "connected", connected)
    return nodes


def test_the_machines_of_a_ray_cluster_are_counted(
    cluster: list[dict[str, float]], run: Run, make_root: MakeRoot, tiny_encoders: dict[str, Path]
) -> None:
    cluster += [{"CPU": 8.0, "memory": 1e9}, {"CPU": 24.0}, {"memory": 1e9}]
    given = [word for name, path in tiny_encoders.items() for word in (f"--{name}", path)]
    asked = ("extract", "--dry-run", "--split", "train", "--root", make_root(), "--engine", "ray", "--address", "auto")
    code, out, _ = run(*asked, "--workers", 1, *given, "--json")
    rates = json.loads(out)["rates"]
    assert code == 0 and (rates["cores"], rates["device"]) == (32, "cpu")
    assert rates["clips_per_second"] == pytest.approx(32 / 1.15 / (rates["decode_seconds"] + rates["embed_seconds"]))


def test_gpus_of_a_ray_cluster_are_measured_on_one_of_this_machine(
    cluster: list[dict[str, float]], make_root: MakeRoot, tiny_encoders: dict[str, Path]
) -> None:
    cluster += [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 16.0, "GPU": 2.0}]
    dataset, settings = Dataset.open(make_root()), tiny(tiny_encoders, engine="ray", address="auto")
    if not torch.cuda.is_available():
        with pytest.raises(ClusterError, match="has 4 GPUs and this machine none to measure: run the dry run on"):
            plan_extraction(dataset, ["train"], settings)
    _, rates = plan_extraction(dataset, ["train"], replace(settings, device="cpu"))
    assert rates is not None and rates.cores == 32 and rates.device == "cpu"


def test_gpus_of_a_ray_cluster_are_all_counted(
    cluster: list[dict[str, float]], two_gpus: list[str], make_root: MakeRoot, tiny_encoders: dict[str, Path]
) -> None:
    cluster += [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 16.0, "GPU": 2.0}]
    settings = tiny(tiny_encoders, engine="ray", address="auto")
    _, rates = plan_extraction(Dataset.open(make_root()), ["train"], settings)
    assert rates is not None and (rates.devices, rates.cores, rates.workers) == (4, 32, 28) and two_gpus == ["cuda"]


@pytest.mark.cluster
def test_a_ray_started_for_the_dry_run_is_measured(make_root: MakeRoot, tiny_encoders: dict[str, Path]) -> None:
    settings = tiny(tiny_encoders, engine="ray", address="local")
    _, rates = plan_extraction(Dataset.open(make_root()), ["train"], settings)
    assert rates is not None and rates.cores >= 1


# on the command line

ASKED = ("extract", "--dry-run", "--clips", 10_000_000, "--gpus", 8, "--cpus", 512)
GIVEN = ("--decode-seconds", 0.148, "--embed-seconds", 0.0016)


def test_the_command_needs_no_root_if_both_rates_are_given(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALPHAFUSE_ROOT", raising=False)
    code, out, err = run(*ASKED, *GIVEN)
    assert code == 0 and not err
    assert out.startswith(
        "10,000,000 clips on 8 GPUs and 504 decode workers: about 48.9 min at 3,405 clips/s; bottleneck: decoding"
    )
    assert "given: decoding 0.148 s" in out and "6.53 GPU hours" in out and "store: 62.6 GB" in out
    code, out, _ = run(*ASKED, *GIVEN, "--json")
    plan = json.loads(out)
    assert set(plan) == {field.name for field in fields(ClipsPlan)}
    assert set(plan["rates"]) == {field.name for field in fields(Rates)} | {"clips_per_second", "bottleneck"}
    assert plan["rates"]["devices"] == 8 and plan["store_bytes"] == 62_640_000_000
    assert list(tmp_path.iterdir()) == []


def test_the_command_measures_a_named_root(run: Run, make_root: MakeRoot, tiny_encoders: dict[str, Path]) -> None:
    tiny = ("--timesformer", tiny_encoders["timesformer"], "--ast", tiny_encoders["ast"], "--workers", 1)
    root = make_root()
    code, out, _ = run(*ASKED[:4], "--cpus", 4, "--root", root, "--device", "cpu", *tiny)
    assert code == 0 and "measured on 8 clips" in out and "bottleneck: cores" in out
    code, out, _ = run(*ASKED, "--root", root, "--device", "cpu", *tiny, "--embed-seconds", 0.5, "--json")
    rates = json.loads(out)["rates"]
    assert code == 0 and rates["embed_seconds"] == 0.5 and 0 < rates["decode_seconds"] != 0.148
    asked = run(*ASKED, "--root", root, "--device", "cpu", *tiny)
    assert_one_line_error(asked, "measured on the CPU, so the rate on GPUs is unknown", "--embed-seconds")


def test_mistakes_are_one_line_errors(run: Run, tmp_path: Path) -> None:
    assert_one_line_error(run("extract", "--dry-run", "--clips", 0, *GIVEN), "clips must be at least 1, not 0")
    assert_one_line_error(run(*ASKED, *GIVEN, "--embed-seconds", 0), "'--embed-seconds'", "0")
    assert_one_line_error(run(*ASKED, "--root", tmp_path / "nowhere"), "no dataset root at")
    assert_one_line_error(run("extract", "--clips", 10), "--clips plans a run and extracts nothing", "--dry-run")
    assert_one_line_error(run("extract", "--split", "all", "--gpus", 2, "--dry-run"), "--gpus plans a run")
    assert_one_line_error(run("extract", "--dry-run"), "missing option '--split'")
