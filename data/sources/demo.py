"""The demo: a small audio-visual dataset in VGGSound's layout, generated locally.

    folder/vggsound.csv                         youtube_id,start_seconds,"label, with commas",train|test   (no header)
    folder/clips/{youtube_id}_{start:06d}.mp4   H.264 video and AAC audio

Sixteen classes combine eight visual events with eight sound events. Sight i occurs with sound i and with sound
i + 1 (modulo 8), so each sight and each sound belongs to exactly two classes. A model of only video, or only audio, is
right for at most half of the clips; a model of both can always be right.

    sight 0 -- sound 0 -- sight 7 -- sound 7 -- sight 6 ... sound 1 -- sight 0      (one ring of 16 classes)

Clips are drawn from `seed` alone: the same seed gives the same bytes with the same PyAV on the same kind of machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from alphafuse.data.dataset import require_own_root
from alphafuse.data.streams import DEFAULT_STREAMS
from alphafuse.errors import DatasetError
from alphafuse.system.files import write_csv
from alphafuse.system.interrupts import map_in

from .importing import ImportReport
from .synthesis import SoundEvent, VisualEvent, draw_look, draw_voice, render_frames, render_sound
from .vggsound import import_vggsound

VISUAL_EVENTS: tuple[VisualEvent, ...] = (
    VisualEvent("ball bouncing", "disc", "bounce"),
    VisualEvent("pendulum swinging", "bar", "swing"),
    VisualEvent("propeller spinning", "blades", "spin"),
    VisualEvent("star twinkling", "star", "blink"),
    VisualEvent("moon circling", "crescent", "orbit"),
    VisualEvent("heart beating", "heart", "pulse"),
    VisualEvent("kite zigzagging", "diamond", "zigzag"),
    VisualEvent("sail passing", "triangle", "slide"),
)

SOUND_EVENTS: tuple[SoundEvent, ...] = (
    SoundEvent("bell ringing", "bell", "strokes", "flat"),
    SoundEvent("siren, alarm wailing", "hollow", "sustained", "wail"),
    SoundEvent("clock ticking", "breath", "ticks", "flat"),
    SoundEvent("dog barking", "voice", "pairs", "falling"),
    SoundEvent("bird chirping, tweeting", "whistle", "beeps", "rising"),
    SoundEvent("engine humming", "buzz", "swells", "flat"),
    SoundEvent("telephone ringing", "metal", "roll", "steps"),
    SoundEvent("horse, hoof beats", "thud", "gallop", "flat"),
)

# (visual event, sound event) of each class, as indices: the ring of the module's docstring
DEMO_PAIRS: tuple[tuple[int, int], ...] = tuple((i, (i + step) % 8) for i in range(8) for step in (0, 1))

DEMO_CLASSES: tuple[str, ...] = tuple(f"{VISUAL_EVENTS[v].name} with {SOUND_EVENTS[s].name}" for v, s in DEMO_PAIRS)

DEMO_NAME = "demo"
CLIPS_PER_CLASS = 28  # 16 official train and 12 official test: 448 clips in all
TEST_SHARE = Fraction(3, 7)
FRAMES_PER_SECOND = 12
FRAME_HEIGHT, FRAME_WIDTH = 72, 96  # pixels, 4:3
SHORTEST_SECONDS, LONGEST_SECONDS = 2.0, 2.5
SAMPLE_RATES_HZ = (16_000, 22_050, 44_100)  # different, as in real clips; the extractor resamples to 16 kHz
# difficulty of draw_look and draw_voice, chosen so that the demo is neither impossible nor solved: on the 192 test
# clips of seed 0 the paper's head reaches 0.84 from both compact embeddings, 0.43 and 0.42 from either alone (mean of
# 5 seeds).
LOOK_DIFFICULTY, VOICE_DIFFICULTY = 1.45, 1.5

# Part of the ids: raise it with every change of the drawing, so that old clips are not mistaken for new ones.
_EDITION = 1
_ID_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"  # YouTube's


@dataclass(frozen=True)
class DemoClip:
    """One clip to draw: its class and split, and the two seeds that decide its content."""

    youtube_id: str  # the source video
    start_seconds: int
    label: int  # index into DEMO_CLASSES
    official_split: str  # "train" or "test"
    source_seed: tuple[int, ...]  # decides look and voice: shared by the clips of one source video
    clip_seed: tuple[int, ...]  # decides phase and noise: different for each clip

    @property
    def clip_id(self) -> str:
        """`{youtube_id}_{start:06d}`, the file's name without suffix."""
        return f"{self.youtube_id}_{self.start_seconds:06d}"


def write_demo_clips(
    folder: Path,
    *,
    seed: int = 0,
    clips_per_class: int = CLIPS_PER_CLASS,
    workers: int | None = None,
    progress: Callable[[], object] | None = None,
) -> Path:
    """Write the demo dataset into `folder` and return the path of its `vggsound.csv`.

    `TEST_SHARE` of each class are official test clips, the others official train clips; no source video is in both.
    A clip is written under a temporary name and renamed when complete, the csv last: after a kill, the same call draws
    missing clips and keeps existing ones (a clip's name follows from its seed). `workers` threads draw at once
    (default: one per processor); `progress` is called once per clip, in the calling thread.

    Raises:
        DatasetError: `clips_per_class` is below 2 (one train and one test clip), or the folder can't be written.
    """
    if clips_per_class < 2:
        raise DatasetError(
            f"clips_per_class must be at least 2 (one to train on, one to test on), not {clips_per_class}"
        )
    clips_folder = Path(folder) / "clips"
    try:
        clips_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatasetError(f"can't make the folder {clips_folder}: {error.strerror}: name another --root") from None
    clips = list_demo_clips(seed=seed, clips_per_class=clips_per_class)

    def draw(clip: DemoClip) -> None:
        path = clips_folder / f"{clip.clip_id}.mp4"
        if not path.exists():
            write_clip(path, clip)

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        for _ in map_in(pool, draw, clips):  # raises the first failure
            if progress is not None:
                progress()
    rows = [(clip.youtube_id, clip.start_seconds, DEMO_CLASSES[clip.label], clip.official_split) for clip in clips]
    write_csv(Path(folder) / "vggsound.csv", rows)
    return Path(folder) / "vggsound.csv"


def list_demo_clips(*, seed: int = 0, clips_per_class: int = CLIPS_PER_CLASS) -> list[DemoClip]:
    """Return the clips of the demo, sorted by clip_id like VGGSound's csv. Every third source video gives two clips."""
    test_clips = max(1, round(clips_per_class * TEST_SHARE))
    clips: list[DemoClip] = []
    for label in range(len(DEMO_CLASSES)):
        for is_test, count in ((0, clips_per_class - test_clips), (1, test_clips)):
            for source, cuts in enumerate(_cuts_per_source(count)):
                source_seed = (seed, _EDITION, label, is_test, source)
                rng = np.random.default_rng((*source_seed, 0))
                youtube_id = "".join(_ID_ALPHABET[i] for i in rng.integers(0, len(_ID_ALPHABET), 11))
                start = int(rng.integers(0, 200))
                for cut in range(cuts):
                    name = "test" if is_test else "train"
                    clips.append(DemoClip(youtube_id, start, label, name, (*source_seed, 1), (*source_seed, 2 + cut)))
                    start += int(rng.integers(10, 60))  # VGGSound's clips last 10 s: cuts do not overlap
    return sorted(clips, key=lambda clip: clip.clip_id)


def _cuts_per_source(clips: int) -> list[int]:
    """Return the number of clips of each source video, with the sum `clips`: 2, 1, 1, 2, 1, 1, ..."""
    cuts: list[int] = []
    while sum(cuts) < clips:
        cuts.append(min(2 if len(cuts) % 3 == 0 else 1, clips - sum(cuts)))
    return cuts


def draw_frame_count(rng: np.random.Generator) -> int:
    """Draw the number of frames of a clip: 24 to 30, that is 2 to 2.5 s."""
    shortest, longest = int(SHORTEST_SECONDS * FRAMES_PER_SECOND), int(LONGEST_SECONDS * FRAMES_PER_SECOND)
    return int(rng.integers(shortest, longest + 1))


def draw_clip(clip: DemoClip) -> tuple[NDArray[np.uint8], NDArray[np.float32], int]:
    """Draw frames (frames, 72, 96, 3) uint8, a waveform (channels, samples) float32 in [-1, 1], and its rate in Hz."""
    source_rng = np.random.default_rng(clip.source_seed)
    look = draw_look(source_rng, difficulty=LOOK_DIFFICULTY)
    voice = draw_voice(source_rng, difficulty=VOICE_DIFFICULTY)
    sample_rate_hz = int(source_rng.choice(SAMPLE_RATES_HZ))
    channels = int(source_rng.integers(1, 3))

    rng = np.random.default_rng(clip.clip_seed)
    frame_count = draw_frame_count(rng)
    visual, sound = DEMO_PAIRS[clip.label]
    times = np.arange(frame_count) / FRAMES_PER_SECOND
    frames = render_frames(VISUAL_EVENTS[visual], look, rng, times=times, height=FRAME_HEIGHT, width=FRAME_WIDTH)
    seconds = frame_count / FRAMES_PER_SECOND
    wave = render_sound(SOUND_EVENTS[sound], voice, rng, seconds=seconds, sample_rate_hz=sample_rate_hz)
    balance = source_rng.uniform(0.5, 1.0, (channels, 1)).astype(np.float32)  # left and right differ in loudness
    return frames, balance * wave, sample_rate_hz


def write_clip(path: Path, clip: DemoClip) -> None:
    """Draw `clip` and write it to `path`, atomically."""
    frames, waveform, sample_rate_hz = draw_clip(clip)
    temporary = path.with_suffix(".mp4.partial")
    write_mp4(temporary, frames, waveform, sample_rate_hz=sample_rate_hz)
    temporary.replace(path)


def write_mp4(
    path: Path,
    frames: NDArray[np.uint8],
    waveform: NDArray[np.float32],
    *,
    sample_rate_hz: int,
    frames_per_second: int = FRAMES_PER_SECOND,
) -> None:
    """Encode frames (frames, height, width, 3) and waveform (1 or 2 channels, samples) as H.264 and AAC in mp4."""
    with av.open(str(path), "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=frames_per_second)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        # one thread: with several, the encoded bytes would depend on the machine's load
        video.options = {"preset": "superfast", "crf": "28", "threads": "1"}
        video.thread_count = 1
        layout = "stereo" if waveform.shape[0] == 2 else "mono"
        # the fast coder takes a third of the default coder's time, and as many bits
        audio = container.add_stream("aac", rate=sample_rate_hz, layout=layout, options={"aac_coder": "fast"})
        audio.bit_rate = 64_000

        for index, picture in enumerate(frames):
            video_frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            video_frame.pts, video_frame.time_base = index, Fraction(1, frames_per_second)
            container.mux(video.encode(video_frame))
        container.mux(video.encode(None))

        audio_frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform), format="fltp", layout=layout)
        audio_frame.sample_rate, audio_frame.pts = sample_rate_hz, 0
        audio_frame.time_base = Fraction(1, sample_rate_hz)
        container.mux(audio.encode(audio_frame))
        container.mux(audio.encode(None))


def make_demo(
    root: str | Path,
    *,
    seed: int = 0,
    stores: str | Path | None = None,
    progress: Callable[[], object] | None = None,
) -> ImportReport:
    """Generate the demo below `root` and make `root` its dataset root, as `import_vggsound` does from VGGSound's files.

    Args:
        root: folder to make; existing clips are kept.
        seed: decides every clip and the validation split.
        stores: folder or URL for the embedding stores; None = as the existing root has it, or ROOT/stores.
        progress: called once per clip.

    >>> from alphafuse import make_demo
    >>> make_demo("demo").dataset
    Dataset('demo', 16 classes, Manifest(448 clips: train=230, val=26, test=192), root='demo')
    """
    root = Path(root)
    require_own_root(root, DEMO_NAME)
    csv_path = write_demo_clips(root, seed=seed, progress=progress)
    return import_vggsound(
        csv_path,
        root / "clips",
        root,
        name=DEMO_NAME,
        classes=DEMO_CLASSES,
        seed=seed,
        streams=[replace(stream, encoder="compact") for stream in DEFAULT_STREAMS],
        stores=stores,
    )
