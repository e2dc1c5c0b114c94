"""Speed of stage one on this machine, with your clips.

    python benchmarks/bench_extract.py --clips /data/vggsound --part decode

    decode      8 frames and the waveform of a clip, compared with decoding everything and with torchcodec
    models      both full-size encoders, compared with HuggingFace's forward passes and with matrix products
    overlap     the whole extraction: wall time x cores / seconds of decoding and models
    memory      memory of all processes, over many clips
    engines     the local engine and Ray on this machine, over many clips

Weights are random, because speed does not depend on them. Contenders run in turns, each in a new process; ratios are
taken within a turn.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from bench_engines import measure_engines
from command import parser_of, print_bench
from full_size import random_encoders, random_models
from loky import cpu_count
from measuring import (
    Bench,
    Contender,
    Figure,
    Measure,
    Part,
    PeakMemory,
    Turn,
    ratios,
    run_parts,
    runs_per_second,
)

from alphafuse.data.dataset import Dataset
from alphafuse.data.manifest import Clip, Manifest
from alphafuse.data.sources.importing import find_videos
from alphafuse.data.streams import COMPACT, DEFAULT_STREAMS, TITLES
from alphafuse.errors import DatasetError
from alphafuse.extract.decoding.decode import decode_clip, decode_inputs
from alphafuse.extract.decoding.specs import FrameSpec, Spec, frame_indices
from alphafuse.extract.encoders.ast import SpectrogramSpec, audio_inputs
from alphafuse.extract.encoders.encoder import Encoder
from alphafuse.extract.encoders.families import load_encoder
from alphafuse.extract.encoders.hub import COMPACT_FOLDER
from alphafuse.extract.encoders.timesformer import frame_inputs
from alphafuse.extract.encoders.transformer import model_flops
from alphafuse.extract.engines.embedder import Embedder
from alphafuse.extract.engines.local import LocalEngine
from alphafuse.extract.missing import Work
from alphafuse.extract.pipeline import ExtractReport, fill_store
from alphafuse.extract.settings import ExtractSettings
from alphafuse.system.files import read_json

FRAMES = 8
SPLIT = "test"
COMPACT_STREAMS = [replace(stream, encoder=COMPACT) for stream in DEFAULT_STREAMS]


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurements.

    Attributes:
        decode_clips: clips that each contender decodes.
        model_clips: clips that each contender embeds, per core.
        matrix, matrix_seconds: width of the square matrices in part "models", and duration of that measurement.
        overlap_clips: clips to extract per core in part "overlap".
        memory_clips, engine_clips: clips to extract with the compact encoders in parts "memory" and "engines".
        full_size: whether the models are the full-size ones.
    """

    decode_clips: int = 60
    model_clips: int = 3
    matrix: int = 4096
    matrix_seconds: float = 2.0
    overlap_clips: int = 16
    memory_clips: int = 2000
    engine_clips: int = 20_000
    full_size: bool = True


FULL = Sizes()
QUICK = Sizes(  # to check that everything works; the figures mean nothing
    decode_clips=2,
    model_clips=1,
    matrix=64,
    matrix_seconds=0.01,
    overlap_clips=2,
    memory_clips=8,
    engine_clips=60,
    full_size=False,
)


def bench_extract(
    clips: str | Path,
    parts: Sequence[str] = (),
    *,
    repeats: int = 3,
    quick: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Bench:
    """Measure the speed of extraction on this machine.

    Args:
        clips: folder with video files, also in sub-folders.
        parts: names of entries of `PARTS`; empty for all.
        repeats: number of turns, at least 1.
        quick: whether to use small sizes, to check that everything works.
        progress: called with a description of each measurement before it starts.

    Raises:
        DatasetError: the folder has no video files.
        ExperimentError: an unknown part, fewer than 1 turn, or a measurement whose process was killed.

    >>> from bench_extract import bench_extract
    >>> bench_extract("demo/clips", ["decode"]).parts[0]  # doctest: +SKIP
    """
    folder = Path(clips)
    files = [folder / path for path in find_videos(folder).values()]
    if not files:
        raise DatasetError(f"no video files in {folder}: name a folder with clips (--clips)")
    sizes = QUICK if quick else FULL
    chosen = {name: partial(part, sizes, files) for name, part in PARTS.items()}
    return run_parts("Extraction", chosen, parts, repeats=repeats, quick=quick, progress=progress)


# decode


def _decode(sizes: Sizes, files: Sequence[Path], measure: Measure) -> Part:
    chosen = _spread(files, sizes.decode_clips)
    contenders: dict[str, Contender] = {
        "alphafuse": partial(_decode_ours, chosen),
        "everything": partial(_decode_everything, chosen),
    }
    notes = ["frames and waveform of each clip on one core, no resizing; CPU seconds"]
    has_torchcodec = find_spec("torchcodec") is not None
    if has_torchcodec:
        contenders["torchcodec"] = partial(_decode_torchcodec, chosen)
    else:
        notes.append("torchcodec is not installed: run `pip install torchcodec` (needs FFmpeg's libraries) to compare")
    found = measure(contenders)
    figures = [
        Figure("alphafuse", "ms/clip", found["alphafuse"]),
        Figure("as in extraction (resized, only the sound that AST uses)", "ms/clip", found["worker"]),
        Figure("clips per second and core", "", tuple(1e3 / value for value in found["worker"])),
        Figure("decoding everything", "x", ratios(found["everything"], found["alphafuse"])),
    ]
    if has_torchcodec:
        figures.append(Figure("torchcodec", "x", ratios(found["torchcodec"], found["alphafuse"]), least=1.7))
    same = Figure("clips with the same frames as decoding everything", "%", found["identical"], least=100.0)
    return Part("decode", f"{len(chosen)} clips, {FRAMES} frames", (*figures, same), tuple(notes))


def _decode_ours(files: Sequence[Path], turn: Turn) -> dict[str, float]:
    decode_clip(files[0], frames=FRAMES)
    start = time.process_time()
    for path in files:
        decode_clip(path, frames=FRAMES)
    ours = time.process_time() - start
    specs: dict[str, Spec] = {"timesformer": FrameSpec(), "ast": SpectrogramSpec().audio}
    start = time.process_time()
    for path in files:
        decode_inputs((path, ("timesformer", "ast"), None), specs=specs)
    worker = time.process_time() - start
    return {"alphafuse": 1e3 * ours / len(files), "worker": 1e3 * worker / len(files)}


def _decode_everything(files: Sequence[Path], turn: Turn) -> dict[str, float]:
    _frames_of_everything(files[0])
    start = time.process_time()
    frames = []
    for path in files:
        frames.append(_frames_of_everything(path))
        decode_clip(path, frames=FRAMES, picture=False)
    seconds = time.process_time() - start
    identical = 0
    for path, expected in zip(files, frames, strict=True):
        ours = decode_clip(path, frames=FRAMES, sound=False).frames
        identical += (ours is None and expected is None) or (
            ours is not None and expected is not None and np.array_equal(ours, expected)
        )
    return {"everything": 1e3 * seconds / len(files), "identical": 100 * identical / len(files)}


def _frames_of_everything(path: Path) -> np.ndarray | None:
    """Decode all frames in sequence, then select the sampled ones."""
    import av

    with av.open(str(path)) as container:
        if not container.streams.video:
            return None
        container.streams.video[0].codec_context.thread_count = 1
        shown = list(container.decode(video=0))
    if not shown:
        return None
    return np.stack([shown[i].to_ndarray(format="rgb24") for i in frame_indices(len(shown), FRAMES)])


def _decode_torchcodec(files: Sequence[Path], turn: Turn) -> dict[str, float]:
    from torchcodec.decoders import AudioDecoder, VideoDecoder

    torch.set_num_threads(1)

    def decode(path: Path) -> None:
        video = VideoDecoder(str(path), seek_mode="exact", num_ffmpeg_threads=1)
        video.get_frames_at(frame_indices(video.metadata.num_frames, FRAMES).tolist())
        AudioDecoder(str(path), sample_rate=16_000, num_channels=1).get_all_samples()

    usable = [path for path in files if _has_both(path)]  # torchcodec raises an error if a stream is missing
    decode(usable[0])
    start = time.process_time()
    for path in usable:
        decode(path)
    return {"torchcodec": 1e3 * (time.process_time() - start) / len(usable)}


def _has_both(path: Path) -> bool:
    decoded = decode_clip(path, frames=1)
    return decoded.frames is not None and decoded.waveform is not None


# models


def _models(sizes: Sizes, files: Sequence[Path], measure: Measure) -> Part:
    cores = cpu_count()
    found = measure(
        {
            "matrix products": partial(_matrix_rate, sizes),
            "alphafuse": partial(_models_ours, sizes),
            "HuggingFace": partial(_models_huggingface, sizes),
        }
    )
    configs = {name: model.config for name, model in _huggingface(sizes).items()}
    figures = [Figure("torch.mm on all cores", "GFLOP/s", found["gflops"])]
    for stream, shown in TITLES.items():
        flops = model_flops(configs[stream])
        for library, least in (("alphafuse", 90.0), ("HuggingFace", None)):
            seconds = found[f"{library} {stream}"]
            rates = tuple(100 * flops / 1e9 / s / rate for s, rate in zip(seconds, found["gflops"], strict=True))
            figures.append(Figure(f"{shown}, {library}: share of torch.mm's rate", "%", rates, least=least))
    sums = {
        library: tuple(sum(pair) for pair in zip(found[f"{library} timesformer"], found[f"{library} ast"], strict=True))
        for library in ("alphafuse", "HuggingFace")
    }
    figures += [
        Figure("both models, alphafuse", "s/clip", sums["alphafuse"]),
        Figure("HuggingFace", "x", ratios(sums["HuggingFace"], sums["alphafuse"]), least=1.1),
        Figure("largest difference from HuggingFace's embeddings", "1e-6", found["difference"], most=10.0),
    ]
    return Part(
        "models",
        f"float32, random weights, {cores} cores; alphafuse one clip per core, HuggingFace one clip on all cores",
        tuple(figures),
        (
            "rates count the products of HuggingFace's whole forward pass; for the same embedding alphafuse computes "
            "11% fewer in TimeSformer, 8% fewer in AST",
        ),
    )


def _matrix_rate(sizes: Sizes, turn: Turn) -> dict[str, float]:
    a, b = torch.randn(2, sizes.matrix, sizes.matrix)
    out = torch.empty(sizes.matrix, sizes.matrix)
    with torch.inference_mode():
        rate = runs_per_second(lambda: torch.mm(a, b, out=out), sizes.matrix_seconds)
    return {"gflops": rate * 2 * sizes.matrix**3 / 1e9}


def _models_ours(sizes: Sizes, turn: Turn) -> dict[str, float]:
    """Measure seconds per clip, while each core embeds its own clips."""
    embedder = _embedder(sizes)
    inputs = _random_inputs(sizes)
    found = {}
    with embedder.model_threads() as pool:
        for stream, encoder in embedder.encoders.items():
            clip = [inputs[stream]]
            list(pool.map(encoder.embed, [clip] * embedder.threads))
            start = time.perf_counter()
            list(pool.map(encoder.embed, [clip] * (sizes.model_clips * embedder.threads)))
            seconds = time.perf_counter() - start
            found[f"alphafuse {stream}"] = seconds / (sizes.model_clips * embedder.threads)
    made = {stream: encoder.embed([inputs[stream]]) for stream, encoder in embedder.encoders.items()}
    expected = _huggingface_embeddings(_huggingface(sizes), inputs, sizes)
    largest = max(float(np.abs(made[stream] - expected[stream]).max()) for stream in made)
    return {**found, "difference": 1e6 * largest}


def _models_huggingface(sizes: Sizes, turn: Turn) -> dict[str, float]:
    """Measure seconds per clip of HuggingFace's forward passes, with PyTorch's default number of threads."""
    models, inputs = _huggingface(sizes), _random_inputs(sizes)
    found = {}
    for stream in models:
        one = {stream: models[stream]}
        _huggingface_embeddings(one, inputs, sizes)
        start = time.perf_counter()
        for _ in range(2 * sizes.model_clips):
            _huggingface_embeddings(one, inputs, sizes)
        found[f"HuggingFace {stream}"] = (time.perf_counter() - start) / (2 * sizes.model_clips)
    return found


def _huggingface(sizes: Sizes) -> dict[str, torch.nn.Module]:
    if sizes.full_size:
        return random_models()
    from transformers import ASTModel, TimesformerModel

    return {
        "timesformer": TimesformerModel.from_pretrained(COMPACT_FOLDER / "timesformer").eval(),
        "ast": ASTModel.from_pretrained(COMPACT_FOLDER / "ast").eval(),
    }


@torch.inference_mode()
def _huggingface_embeddings(
    models: Mapping[str, torch.nn.Module], inputs: Mapping[str, np.ndarray], sizes: Sizes
) -> dict[str, np.ndarray]:
    specs = _specs(sizes)
    device = torch.device("cpu")
    made = {}
    for stream, model in models.items():
        if stream == "timesformer":
            pixel_values = frame_inputs([inputs[stream]], specs[0], device=device)
            made[stream] = model(pixel_values=pixel_values).last_hidden_state[:, 0].numpy()
        else:
            input_values = audio_inputs([inputs[stream]], specs[1], device=device)
            made[stream] = model(input_values=input_values).pooler_output.numpy()
    return made


def _compact_encoders() -> dict[str, Encoder]:
    return {stream.name: load_encoder(stream) for stream in COMPACT_STREAMS}


def _specs(sizes: Sizes) -> tuple[FrameSpec, SpectrogramSpec]:
    if sizes.full_size:
        return FrameSpec(), SpectrogramSpec()
    video, audio = (COMPACT_FOLDER / stream.name for stream in COMPACT_STREAMS)
    frames, bins = read_json(video / "config.json"), read_json(audio / "config.json")
    return (
        FrameSpec.from_config(
            read_json(video / "preprocessor_config.json"), frames=frames["num_frames"], image_size=frames["image_size"]
        ),
        SpectrogramSpec.from_config(
            read_json(audio / "preprocessor_config.json"),
            mel_bins=bins["num_mel_bins"],
            max_length=bins["max_length"],
        ),
    )


def _random_inputs(sizes: Sizes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    frame_spec, _ = _specs(sizes)
    frames = rng.integers(0, 256, (frame_spec.frames, *frame_spec.crop, 3), dtype=np.uint8)
    return {"timesformer": frames, "ast": rng.normal(0, 0.1, 160_000).astype(np.float32)}


# overlap


def _overlap(sizes: Sizes, files: Sequence[Path], measure: Measure) -> Part:
    cores = cpu_count()
    count = sizes.overlap_clips * cores
    found = measure({"extraction": partial(_extract_all, sizes, files, count)})
    figures = (
        Figure("wall time x cores / seconds of decoding and models", "", found["overlap"], most=1.15),
        Figure("extraction", "clips/s", found["clips_per_second"]),
        Figure("decoding, per core", "clips/s", found["decode_rate"]),
        Figure("both models, per core", "clips/s", found["embed_rate"]),
        Figure("decode cores per embedding core", "", found["cores_per_device"]),
    )
    return Part(
        "overlap",
        f"{count} clips, {'full-size' if sizes.full_size else 'compact'} encoders on the CPU, {cores} cores, from the "
        "first clip's decoding to the last shard",
        figures,
        ("seconds of decoding and models are CPU seconds of the same run",),
    )


def _extract_all(sizes: Sizes, files: Sequence[Path], count: int, turn: Turn) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        report = _extract(Path(folder), list(islice(cycle(files), count)), _embedder(sizes))
    busy = report.decode_seconds + report.embed_seconds
    return {
        "overlap": report.seconds * cpu_count() / busy,
        "clips_per_second": count / report.seconds,
        "decode_rate": count / report.decode_seconds,
        "embed_rate": count / report.embed_seconds,
        "cores_per_device": report.decode_seconds / report.embed_seconds,
    }


# memory


def _memory(sizes: Sizes, files: Sequence[Path], measure: Measure) -> Part:
    found = measure({"extraction": partial(_watch_memory, sizes, files)})
    figures = (
        Figure("peak memory, all processes", "MB", found["peak"]),
        Figure("peak of the last quarter / peak of the second", "x", found["growth"], most=1.05),
        Figure("extraction", "clips/s", found["clips_per_second"]),
    )
    return Part("memory", f"{sizes.memory_clips} clips, compact encoders", figures)


def _watch_memory(sizes: Sizes, files: Sequence[Path], turn: Turn) -> dict[str, float]:
    chosen = list(islice(cycle(files), sizes.memory_clips))
    with tempfile.TemporaryDirectory() as folder:
        embedder = _embedder(replace(sizes, full_size=False))
        with PeakMemory(children=True, every_seconds=0.2, keep=True) as memory:
            report = _extract(Path(folder), chosen, embedder)
    samples = np.array([amount for _, amount in memory.samples], float)
    quarters = np.array_split(samples, 4) if len(samples) >= 4 else [samples] * 4
    return {
        "peak": samples.max() / 1e6,
        "growth": quarters[3].max() / quarters[1].max(),
        "clips_per_second": len(chosen) / report.seconds,
    }


# engines


def _engines(sizes: Sizes, files: Sequence[Path], measure: Measure) -> Part:
    chosen = list(islice(cycle(files), sizes.engine_clips))
    return measure_engines(sizes.engine_clips, SPLIT, partial(_root, files=chosen), measure)


# encoders, roots and clips


def _embedder(sizes: Sizes) -> Embedder:
    """Return an embedder with random full-size encoders, or with the compact ones."""
    encoders = random_encoders() if sizes.full_size else _compact_encoders()
    return Embedder(encoders, ExtractSettings(device="cpu"))


def _extract(root: Path, files: Sequence[Path], embedder: Embedder) -> ExtractReport:
    """Extract a new root of these files."""
    return fill_store(LocalEngine(embedder), Work(_root(root / "root", files), SPLIT, embedder.recipes))


def _root(root: Path, files: Sequence[Path]) -> Dataset:
    """Create a root of these files with the compact encoders as defaults."""
    clip_folder = Path(files[0].anchor) if files else root
    clips = [
        Clip(f"clip_{i:06d}", path.resolve().relative_to(clip_folder).as_posix(), "any", SPLIT, f"clip{i}")
        for i, path in enumerate(files)
    ]
    return Dataset.create(
        root,
        Manifest(clips),
        name="bench",
        clip_folder=clip_folder,
        classes=("any",),
        streams=COMPACT_STREAMS,
    )


def _spread(files: Sequence[Path], count: int) -> list[Path]:
    """Return `count` files, evenly spaced from the first to the last, repeated if there are fewer."""
    if len(files) >= count:
        return [files[i] for i in np.linspace(0, len(files) - 1, count).astype(int)]
    return list(islice(cycle(files), count))


PARTS: dict[str, Callable[[Sizes, Sequence[Path], Measure], Part]] = {
    "decode": _decode,
    "models": _models,
    "overlap": _overlap,
    "memory": _memory,
    "engines": _engines,
}


def main() -> None:
    """Run the command line."""
    parser = parser_of(__doc__, PARTS)
    parser.add_argument("--clips", type=Path, required=True, help="folder with your clips")
    options = parser.parse_args()
    print_bench(options, partial(bench_extract, options.clips))


if __name__ == "__main__":
    from bench_extract import main as run  # imported by name, so that worker processes can unpickle its functions

    run()
