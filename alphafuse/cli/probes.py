"""What doctor lets processes of their own try: imports that may crash, and a clip all the way through stage one.

    python -c "from alphafuse.cli.probes import main; main()" PROBE ARGUMENT...

A probe writes what it finds as lines of json, at once, so that what a crash or an endless wait leaves unsaid is known.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

Say = Callable[..., None]

MODULES = {"scikit-learn": "sklearn", "pillow": "PIL"}  # where a distribution's module has another name
CODECS = {  # what FFmpeg calls decoders that take pictures or sound of these codecs without special hardware
    "h264": ("h264",),
    "hevc": ("hevc",),
    "vp9": ("vp9", "libvpx-vp9"),
    "av1": ("libdav1d", "libaom-av1"),
    "mpeg4": ("mpeg4",),
    "aac": ("aac",),
    "opus": ("opus", "libopus"),
    "mp3": ("mp3float", "mp3"),
    "vorbis": ("vorbis", "libvorbis"),
    "flac": ("flac",),
}
ERROR_CHARACTERS = 200
LOOKED_AT = 1000  # clip files of a root; more would keep a network disk busy
FRAMES, HEIGHT, WIDTH, FRAMES_PER_SECOND = 6, 120, 160, 12  # of the self test's clip: half a second
SAMPLE_RATE_HZ = 44_100


@dataclass(frozen=True)
class Answer:
    """What a probe said.

    Attributes:
        said: its lines, each an object, in order.
        end: "" when it ended well, else how it ended: an error's last line, a signal's name, or the time limit.
    """

    said: tuple[dict[str, Any], ...]
    end: str = ""

    def __getitem__(self, topic: str) -> Any:
        """What was said under a topic, or None."""
        return next((line[topic] for line in self.said if topic in line), None)


@contextlib.contextmanager
def ask(probe: str, *arguments: str, environment: dict[str, str] | None = None) -> Iterator[Callable[[float], Answer]]:
    """Start a probe; the function that is yielded waits for its answer, at most so many seconds.

    What still runs when the block ends is killed.
    """
    # -P: a folder named alphafuse, data or torch where the user happens to be is none of ours
    command = [sys.executable, "-P", "-c", "from alphafuse.cli.probes import main; main()", probe, *arguments]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, **(environment or {})},
    )

    def wait(seconds: float) -> Answer:
        try:
            out, errors = process.communicate(timeout=seconds)
            end = _end(process.returncode, errors)
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
            end = f"did not end within {seconds:.0f} s"
        lines = [line for line in out.splitlines() if line.startswith("{") and line.endswith("}")]
        return Answer(tuple(json.loads(line) for line in lines), end)

    try:
        yield wait
    finally:
        process.kill()


def main() -> None:
    """Run the probe that the command line names."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback when a Ctrl-C reaches it
    with _answers() as out:

        def say(**topics: Any) -> None:
            print(json.dumps(topics), file=out, flush=True)

        PROBES[sys.argv[1]](say, *sys.argv[2:])


@contextlib.contextmanager
def _answers() -> Iterator[TextIO]:
    """The real stdout; whatever libraries print goes to stderr."""
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        yield out


def _end(code: int, errors: str) -> str:
    if code < 0:
        names = {number.value: number.name for number in signal.Signals}
        return f"crashed ({names.get(-code, f'signal {-code}')})"
    if code:
        return _short((errors.strip().splitlines() or [f"ended with exit code {code}"])[-1])
    return ""


def _short(error: object) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= ERROR_CHARACTERS else f"{text[: ERROR_CHARACTERS - 3]}..."


# ------------------------------------------------------------------------------------------------------------ probes


def libraries(say: Say, *tasks: str) -> None:
    """Import each distribution's module; a task that is a name of `LOOKS` with a question mark looks at that.

    Says {"begin": task} before each, then {"library": name, "error": ""} or {topic: what was found}.
    """
    for task in tasks:
        say(begin=task)
        topic = task.removeprefix("?")
        error, found = "", None
        try:
            if task == topic:
                importlib.import_module(MODULES.get(task, task.replace("-", "_")))
            else:
                found = LOOKS[topic]()
        except Exception as caught:  # any: a finding, whatever it is
            error = _short(f"{type(caught).__name__}: {caught}")
        say(**({"library": task, "error": error} if task == topic else {topic: found, f"{topic}_error": error}))


def _torch() -> dict[str, Any]:
    import torch

    devices = []
    usable = torch.cuda.is_available()
    for index in range(torch.cuda.device_count() if usable else 0):
        free, total = torch.cuda.mem_get_info(index)
        devices.append(
            {
                "name": torch.cuda.get_device_name(index),
                "capability": list(torch.cuda.get_device_capability(index)),
                "free_bytes": free,
                "total_bytes": total,
                "bf16": torch.cuda.is_bf16_supported(),
            }
        )
    return {
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "onednn": torch.backends.mkldnn.is_available(),
        "threads": torch.get_num_threads(),
        "cuda_built": torch.version.cuda,
        "cuda": devices,
    }


def _codecs() -> dict[str, Any]:
    import av
    from av.codec import Codec
    from av.codec.codec import UnknownCodecError

    def has(decoder: str) -> bool:
        try:
            return bool(Codec(decoder, "r"))
        except UnknownCodecError:
            return False

    ffmpeg = ".".join(str(part) for part in av.library_versions["libavcodec"])
    return {"libavcodec": ffmpeg, "decoders": {codec: any(map(has, names)) for codec, names in CODECS.items()}}


def _machine() -> dict[str, Any]:
    from alphafuse.system.machine import Machine

    machine = asdict(Machine.at_hand())
    return {name: machine[name] for name in ("cpu", "cores", "memory_gb", "free_gb", "load")}


def _defaults() -> dict[str, str]:
    from alphafuse.data.dataset import DEFAULT_AST, DEFAULT_TIMESFORMER

    return {"timesformer": DEFAULT_TIMESFORMER, "ast": DEFAULT_AST}


LOOKS: dict[str, Callable[[], Any]] = {
    "torch": _torch,
    "codecs": _codecs,
    "machine": _machine,
    "defaults": _defaults,
}


def self_test(say: Say) -> None:
    """Encode half a second of picture and sound, and take it through stage one with the compact encoders.

    Says {"step": name} before each step, at last the seconds that each took.
    """
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="alphafuse-doctor-") as folder:
        path, state = Path(folder), dict[str, Any]()
        for step, do in STEPS.items():
            say(step=step)
            began = time.monotonic()
            do(path, state)
            seconds[step] = time.monotonic() - began
        say(seconds=seconds, dims={modality: int(rows.shape[1]) for modality, rows in state["embeddings"].items()})


def _loading(folder: Path, state: dict[str, Any]) -> None:
    from alphafuse.extract.encoders.families import load_encoders
    from alphafuse.extract.encoders.hub import COMPACT

    state["encoders"] = load_encoders({"timesformer": COMPACT, "ast": COMPACT})


def _encoding(folder: Path, state: dict[str, Any]) -> None:
    import numpy as np

    from alphafuse.data.sources.demo import write_mp4

    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    seconds = np.arange(SAMPLE_RATE_HZ * FRAMES // FRAMES_PER_SECOND) / SAMPLE_RATE_HZ
    tone = (0.5 * np.sin(2 * np.pi * 440 * seconds))[None].astype(np.float32)
    write_mp4(folder / "clip.mp4", frames, tone, sample_rate_hz=SAMPLE_RATE_HZ, frames_per_second=FRAMES_PER_SECOND)


def _decoding(folder: Path, state: dict[str, Any]) -> None:
    from functools import partial

    from alphafuse.errors import DecodeError
    from alphafuse.extract.decoding.decode import decode_clip, prepare_frame

    spec = state["encoders"]["timesformer"].spec
    decoded = decode_clip(folder / "clip.mp4", frames=spec.frames, prepare=partial(prepare_frame, spec=spec))
    if decoded.frames is None or decoded.waveform is None:
        raise DecodeError(decoded.no_frames or decoded.no_waveform)
    state["inputs"] = {"timesformer": decoded.frames, "ast": decoded.waveform}


def _embedding(folder: Path, state: dict[str, Any]) -> None:
    import numpy as np

    from alphafuse.errors import EncoderError

    encoders, inputs = state["encoders"], state["inputs"]
    state["embeddings"] = {name: encoder.embed([inputs[name]]) for name, encoder in encoders.items()}
    for name, rows in state["embeddings"].items():
        if not np.isfinite(rows).all():
            raise EncoderError(f"the {name} embedding is not finite")


def _storing(folder: Path, state: dict[str, Any]) -> None:
    import numpy as np

    from alphafuse.data.embeddings import Embeddings
    from alphafuse.data.store.store import EmbeddingStore
    from alphafuse.errors import StoreError

    store = EmbeddingStore(folder / "store")
    features = state["embeddings"]
    settings = {name: {"dim": int(rows.shape[1])} for name, rows in features.items()}
    store.write(Embeddings(("clip",), ("label",), ("group",), features, recipes=settings))
    read = EmbeddingStore(folder / "store").read().features
    if not all(np.array_equal(read[name], features[name]) for name in features):
        raise StoreError("what was read from the store is not what was written")


STEPS: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "loading": _loading,
    "encoding": _encoding,
    "decoding": _decoding,
    "embedding": _embedding,
    "storing": _storing,
}


def root(say: Say, folder: str) -> None:
    """What a dataset root holds: clips, their files, how far extraction is, the runs."""
    from alphafuse.data.dataset import Dataset
    from alphafuse.data.manifest import SPLITS
    from alphafuse.errors import AlphafuseError

    try:
        dataset = Dataset.open(folder)
    except AlphafuseError as error:
        say(error=str(error))
        return
    clips = list(dataset.manifest)
    looked_at = clips[:: max(1, len(clips) // LOOKED_AT)]
    say(
        dataset={
            "name": dataset.name,
            "classes": len(dataset.classes),
            "clips": {split: len(dataset.manifest.of_split(split)) for split in SPLITS},
            "encoders": {"timesformer": dataset.timesformer, "ast": dataset.ast},
            "protocol": dataset.protocol,
        }
    )
    runs = sorted(path.parent.name for path in (dataset.root / "runs").glob("*/config.json"))
    say(runs=runs)
    try:
        there = len(dataset.file_sizes(looked_at))
    except AlphafuseError as error:
        say(error=str(error))
        return
    say(files={"looked_at": len(looked_at), "there": there, "folder": str(dataset.clip_folder)})
    stores: dict[str, Any] = {}
    for split in SPLITS:
        wanted = {clip.clip_id for clip in dataset.manifest.of_split(split)}
        try:
            stores[split] = {"clips": len(wanted), "done": len(wanted & dataset.store(split).done()), "error": ""}
        except AlphafuseError as error:
            stores[split] = {"clips": len(wanted), "done": 0, "error": str(error)}
    say(stores=stores)


PROBES: dict[str, Callable[..., None]] = {"libraries": libraries, "self-test": self_test, "root": root}
