"""Synthetic visual and sound events for the demo dataset and the training of the compact encoders.

A *visual event* is a shape that moves in one way (a disc that bounces). A *sound event* is a timbre played in one
rhythm along one pitch contour (strokes of a bell at a steady pitch). Everything else about a clip is
independent of the event: a `Look` (colours, size, speed, background, camera, noise, bystanders) and a `Voice` (pitch,
tempo, loudness, background noise). The clips of one source video share their look and voice,
as two cuts from one real video do.

    event + look  + rng -> render_frames -> (frames, height, width, 3) uint8
    event + voice + rng -> render_sound  -> (samples,) float32 in [-1, 1]

Only NumPy is used. All randomness comes from the generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class VisualEvent:
    """One kind of sight: `shape` is a key of SHAPES, `motion` a key of MOTIONS."""

    name: str
    shape: str
    motion: str


@dataclass(frozen=True)
class SoundEvent:
    """One kind of sound: `timbre` is a key of TIMBRES, `rhythm` of RHYTHMS, `contour` of CONTOURS."""

    name: str
    timbre: str
    rhythm: str
    contour: str


# -------------------------------------------------------------------------------------------------------------- sights
# A shape maps coordinates in units of its own radius (x to the right, y down) to "how far inside": > 0 inside,
# < 0 outside, with a slope of about 1 at the edge, so that edges are drawn smoothly.


def _triangle(x: Array, y: Array) -> Array:
    return np.minimum(0.75 - y, 0.5 + 0.5 * y - 0.87 * np.abs(x))


def _star(x: Array, y: Array) -> Array:
    spike = np.abs(2 * np.mod(2.5 / np.pi * np.arctan2(x, -y), 1) - 1)  # 1 at the five points, 0 between them
    return 0.4 + 0.55 * spike**1.5 - np.hypot(x, y)


def _cross(x: Array, y: Array) -> Array:
    across, along = np.abs(x), np.abs(y)
    return np.maximum(np.minimum(0.28 - across, 0.95 - along), np.minimum(0.95 - across, 0.28 - along))


def _crescent(x: Array, y: Array) -> Array:
    return np.minimum(0.95 - np.hypot(x, y), np.hypot(x - 0.5, y) - 0.75)


def _heart(x: Array, y: Array) -> Array:
    lobes = 0.52 - np.hypot(np.abs(x) - 0.42, y + 0.35)
    tip = np.minimum(0.62 - 0.71 * (np.abs(x) + y), y + 0.35)
    return np.maximum(lobes, tip)


def _blades(x: Array, y: Array) -> Array:
    return 0.56 + 0.42 * np.cos(3 * np.arctan2(x, -y)) - np.hypot(x, y)


def _arrow(x: Array, y: Array) -> Array:
    head = np.minimum(y + 0.95, 0.0 - y) - np.maximum(0.0, np.abs(x) - 0.8 * (y + 0.95))
    shaft = np.minimum(0.24 - np.abs(x), np.minimum(0.95 - y, y + 0.3))
    return np.maximum(head, shaft)


SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "disc": lambda x, y: 0.85 - np.hypot(x, y),
    "square": lambda x, y: 0.78 - np.maximum(np.abs(x), np.abs(y)),
    "triangle": _triangle,
    "star": _star,
    "ring": lambda x, y: 0.2 - np.abs(np.hypot(x, y) - 0.72),
    "cross": _cross,
    "bar": lambda x, y: np.minimum(0.22 - np.abs(x), 1.0 - np.abs(y)),
    "crescent": _crescent,
    "heart": _heart,
    "blades": _blades,
    "diamond": lambda x, y: 0.6 - 0.95 * np.abs(x) - 0.6 * np.abs(y),
    "arrow": _arrow,
}


@dataclass
class Pose:
    """Position of a shape in every frame; each field is a (frames,) float array or one float for all frames."""

    x: Array | float = 0.0  # offset to the right, in units of the frame's height
    y: Array | float = 0.0  # offset downwards, in the same unit
    angle: Array | float = 0.0  # clockwise, in radians
    stretch_x: Array | float = 1.0  # 1 = the shape's own width
    stretch_y: Array | float = 1.0
    opacity: Array | float = 1.0  # 0 = absent, 1 = solid


# A motion maps the phase, a (frames,) array in cycles (1 = one period), to poses. One period takes 0.8 to 1.4 s:
# 8 frames from 2 to 2.5 s sample each period 2.5 to 5.6 times.


def _bounce(phase: Array) -> Pose:
    height = np.abs(np.sin(np.pi * phase))
    squash = 1 - 0.3 * np.exp(-((height / 0.2) ** 2))  # flattened at the ground
    return Pose(y=0.28 - 0.5 * height, stretch_y=squash, stretch_x=1 / squash)


def _swing(phase: Array) -> Pose:
    angle = 1.0 * np.sin(2 * np.pi * phase)
    return Pose(x=-0.4 * np.sin(angle), y=0.4 * np.cos(angle) - 0.3, angle=angle)


def _blink(phase: Array) -> Pose:
    return Pose(opacity=(np.mod(phase, 1) < 0.5).astype(np.float32))


def _pulse(phase: Array) -> Pose:
    size = 1 + 0.42 * np.sin(2 * np.pi * phase)
    return Pose(stretch_x=size, stretch_y=size)


def _zigzag(phase: Array) -> Pose:
    sweep = 2 * np.abs(2 * np.mod(0.5 * phase, 1) - 1) - 1  # slow oscillation in -1..1
    tooth = 2 * np.abs(2 * np.mod(1.5 * phase, 1) - 1) - 1
    return Pose(x=0.42 * sweep, y=0.2 * tooth)


def _jump(phase: Array) -> Pose:
    stops = np.array([[-0.35, -0.2], [0.3, 0.2], [-0.3, 0.22], [0.38, -0.2], [0.0, 0.0]])
    at = stops[np.floor(2 * phase).astype(int) % len(stops)]  # (frames, 2)
    return Pose(x=at[:, 0], y=at[:, 1])


MOTIONS: dict[str, Callable[[Array], Pose]] = {
    "bounce": _bounce,
    "swing": _swing,
    "spin": lambda phase: Pose(
        angle=2.1 * phase
    ),  # about a third of a turn per period, so that no blade takes another's place
    "blink": _blink,
    "orbit": lambda phase: Pose(x=0.32 * np.cos(2 * np.pi * phase), y=0.26 * np.sin(2 * np.pi * phase)),
    "pulse": _pulse,
    "zigzag": _zigzag,
    "slide": lambda phase: Pose(x=1.5 * np.mod(0.6 * phase, 1) - 0.75),
    "fall": lambda phase: Pose(y=1.4 * np.mod(0.7 * phase, 1) - 0.7),
    "flip": lambda phase: Pose(stretch_x=np.maximum(np.abs(np.cos(np.pi * phase)), 0.08)),
    "shake": lambda phase: Pose(x=0.09 * np.sin(5.3 * np.pi * phase), angle=0.25 * np.sin(6.1 * np.pi * phase)),
    "jump": _jump,
}


@dataclass(frozen=True)
class Look:
    """Visual properties that the clips of one source video share, independent of the event."""

    colour: Array  # (3,) float32, of the moving shape, 0..255
    background: Array  # (3, 3, 3) float32: colours of a coarse grid, blended over the frame, 0..255
    texture: float  # standard deviation of the background's grain, in grey levels
    radius: float  # of the shape, in units of the frame's height
    centre: tuple[float, float]  # around which the shape moves, (x, y) in units of the frame's height from the middle
    tilt: float  # of the shape at rest, radians
    hertz: float  # periods of the motion per second
    mirrored: bool  # motion runs right to left
    shake: float  # of the camera, in units of the frame's height per frame
    noise: float  # of the sensor, in grey levels
    gain: float  # contrast, 1 = as drawn
    bystanders: tuple[tuple[str, float, float, float, float], ...]  # static shapes: shape, x, y, radius, shade


def draw_look(rng: np.random.Generator, *, difficulty: float = 1.0) -> Look:
    """Draw a look. `difficulty`, in [0, 1.5], scales all disturbances; 0 = none."""
    # a dark scene with a brighter shape in it, so that a small model need not learn both polarities
    background = rng.uniform(25, 100) + rng.normal(0, 12, 3) + rng.normal(0, 14, (3, 3, 3))
    step = rng.uniform(120 - 80 * difficulty, 150 - 40 * difficulty)
    colour = background.mean((0, 1)) + step * rng.uniform(0.6, 1.4, 3)
    shapes = list(SHAPES)
    bystanders = tuple(
        (
            shapes[rng.integers(len(shapes))],
            float(rng.uniform(-0.6, 0.6)),
            float(rng.uniform(-0.42, 0.42)),
            float(rng.uniform(0.08, 0.17)),
            float(rng.uniform(-35, 25)),
        )
        for _ in range(rng.integers(0, 1 + round(3 * difficulty)))
    )
    return Look(
        colour=colour.astype(np.float32),
        background=background.astype(np.float32),
        texture=float(rng.uniform(0, 14) * difficulty),
        radius=float(rng.uniform(0.16, 0.28)),
        centre=(float(rng.uniform(-0.15, 0.15)), float(rng.uniform(-0.1, 0.1))),
        tilt=float(rng.uniform(-0.35, 0.35)),
        hertz=float(rng.uniform(0.7, 1.25)),
        mirrored=bool(rng.integers(2)),
        shake=float(rng.uniform(0, 0.012) * difficulty),
        noise=float(rng.uniform(2, 16) * difficulty),
        gain=float(rng.uniform(0.6, 1.15)),
        bystanders=bystanders,
    )


def render_frames(
    event: VisualEvent,
    look: Look,
    rng: np.random.Generator,
    *,
    times: Array,
    height: int = 72,
    width: int = 96,
) -> NDArray[np.uint8]:
    """Draw `event` at `times` ((frames,) seconds) under `look`: (frames, height, width, 3) uint8 RGB.

    `rng` draws what differs between clips of one source video: the motion's phase, the camera's path, the noise.
    """
    return render_frames_and_mask(event, look, rng, times=times, height=height, width=width)[0]


def render_frames_and_mask(
    event: VisualEvent,
    look: Look,
    rng: np.random.Generator,
    *,
    times: Array,
    height: int = 72,
    width: int = 96,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Like `render_frames`, and the mask of the moving shape: (frames, height, width) float32, 1 = fully covered."""
    frames = len(times)
    phase = look.hertz * np.asarray(times, dtype=np.float32) + rng.uniform(0, 10)
    pose = MOTIONS[event.motion](phase)
    camera = np.cumsum(rng.normal(0, look.shake, (2, frames, 1, 1)), axis=1).astype(np.float32)
    # pixel grid in units of the height, the origin in the middle, moved by the camera: x, y are (frames, height, width)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x = (x - width / 2 + 0.5)[None] / height + camera[0]
    y = (y - height / 2 + 0.5)[None] / height + camera[1]

    picture = _background(look, rng, height, width, camera)  # (frames, height, width, 3) float32
    for shape, at_x, at_y, radius, shade in look.bystanders:
        static_pose = Pose(x=at_x, y=at_y)
        picture += shade * _coverage(shape, static_pose, radius, 0.0, x, y, height)[..., None]
    sign = -1 if look.mirrored else 1
    moved = Pose(
        sign * np.asarray(pose.x) + look.centre[0],
        np.asarray(pose.y) + look.centre[1],
        sign * np.asarray(pose.angle),
        pose.stretch_x,
        pose.stretch_y,
        pose.opacity,
    )
    mask = _coverage(event.shape, moved, look.radius, look.tilt, x, y, height)
    picture += mask[..., None] * (look.colour - picture)
    picture += look.noise * _grain(rng, picture.shape[:3])[..., None]
    picture = (picture - 128) * look.gain + 128
    return np.clip(picture, 0, 255).astype(np.uint8), mask.astype(np.float32)


def _coverage(shape: str, pose: Pose, radius: float, tilt: float, x: Array, y: Array, height: int) -> Array:
    """Return the share of each pixel that the shape covers: (frames, height, width) float32 in [0, 1]."""

    def column(value: Array | float) -> Array:  # (frames, 1, 1) or (1, 1, 1)
        return np.asarray(value, dtype=np.float32).reshape(-1, 1, 1)

    angle = column(np.asarray(pose.angle) + tilt)
    cos, sin = np.cos(angle), np.sin(angle)
    dx, dy = x - column(pose.x), y - column(pose.y)
    across = (cos * dx + sin * dy) / (radius * column(pose.stretch_x))
    along = (cos * dy - sin * dx) / (radius * column(pose.stretch_y))
    inside = SHAPES[shape](across, along)  # in units of the radius
    return np.clip(inside * radius * height + 0.5, 0, 1) * column(pose.opacity)


def _background(look: Look, rng: np.random.Generator, height: int, width: int, camera: Array) -> Array:
    """Draw the background: a smooth blend of a 3 x 3 grid of colours, plus grain that moves with the camera."""
    rows = _blend_weights(height)  # (height, 3)
    columns = _blend_weights(width)  # (width, 3)
    smooth = np.tensordot(rows, np.tensordot(columns, look.background, (1, 1)), (1, 1))  # (height, width, 3)
    margin = 8
    grain: Array = rng.standard_normal((height + 2 * margin, width + 2 * margin), dtype=np.float32)
    grain = grain + np.roll(grain, 1, 0)
    grain = (grain + np.roll(grain, 1, 1)) / 2  # softer: the mean of 2 x 2, scaled to deviation 1
    shift = np.clip(np.rint(camera[:, :, 0, 0] * height), -margin, margin).astype(int) + margin  # (2, frames) pixels
    scene = np.stack([grain[v : v + height, u : u + width] for u, v in shift.T])  # (frames, height, width)
    return smooth[None] + look.texture * scene[..., None]


def _blend_weights(size: int) -> Array:
    """Return weights of three evenly spaced anchors at `size` positions: (size, 3), every row sums to 1."""
    at = np.linspace(0, 2, size, dtype=np.float32)[:, None]
    return np.maximum(0, 1 - np.abs(at - np.arange(3, dtype=np.float32)))


def _grain(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Draw standard normal grey noise (frames, height, width), cut at random from one array, which is fast."""
    frames, height, width = shape
    sheet = rng.standard_normal((2 * height, 2 * width), dtype=np.float32)
    corners = np.stack([rng.integers(0, height, frames), rng.integers(0, width, frames)], axis=1)
    return np.stack([sheet[v : v + height, u : u + width] for v, u in corners])


# -------------------------------------------------------------------------------------------------------------- sounds
# A rhythm gives the notes of a clip as (onset, length) in beats, and their envelope. A contour maps a note's
# progress (0..1) to a pitch offset in octaves. A timbre turns the running phase (radians) of the fundamental into a
# wave of about unit size.


@dataclass(frozen=True)
class Rhythm:
    """Notes in beats: a repeated `pattern` of (onset, length); `fade` is each note's envelope."""

    pattern: tuple[tuple[float, float], ...]
    beats: float  # length of the pattern
    beat_seconds: float  # at tempo 1
    fade: str  # "struck": decays from the onset; "held": flat with soft ends; "swell": rises and falls


RHYTHMS: dict[str, Rhythm] = {
    "sustained": Rhythm(((0.0, 1.0),), 1.0, 1.6, "held"),
    "strokes": Rhythm(((0.0, 1.0),), 1.0, 0.75, "struck"),
    "ticks": Rhythm(((0.0, 0.18),), 1.0, 0.26, "struck"),
    "beeps": Rhythm(((0.0, 0.5),), 1.0, 0.4, "held"),
    "pairs": Rhythm(((0.0, 0.7), (1.0, 0.7)), 4.0, 0.22, "held"),
    "roll": Rhythm(((0.0, 0.8),), 1.0, 0.075, "struck"),
    "swells": Rhythm(((0.0, 1.0),), 1.0, 0.8, "swell"),
    "gallop": Rhythm(((0.0, 0.8), (1.0, 0.8), (2.0, 1.6)), 5.0, 0.14, "struck"),
}

CONTOURS: dict[str, Callable[[Array, Array], Array]] = {
    # (progress within the note 0..1, seconds since the start of the clip), both (samples,) -> octaves
    "flat": lambda progress, seconds: np.zeros_like(progress),
    "rising": lambda progress, seconds: 1.1 * progress - 0.4,
    "falling": lambda progress, seconds: 0.5 - 1.1 * progress,
    "wail": lambda progress, seconds: 0.5 * np.sin(2 * np.pi * 1.1 * seconds),
    "warble": lambda progress, seconds: 0.22 * np.sin(2 * np.pi * 7.5 * seconds),
    "steps": lambda progress, seconds: np.where(np.mod(seconds, 0.5) < 0.25, 0.33, -0.33),
}


def _partials(phase: Array, ratios: tuple[float, ...], weights: tuple[float, ...]) -> Array:
    wave = np.zeros_like(phase)
    for ratio, weight in zip(ratios, weights, strict=True):
        wave += weight * np.sin(ratio * phase)
    return wave / float(np.sqrt(np.sum(np.square(weights))))


def _breath(phase: Array, rng: np.random.Generator) -> Array:
    """A band of noise around the fundamental: the fundamental modulated by slow noise."""
    slow = np.convolve(rng.standard_normal(len(phase)), np.hanning(24), mode="same").astype(np.float32)
    quad = np.convolve(rng.standard_normal(len(phase)), np.hanning(24), mode="same").astype(np.float32)
    return (slow * np.sin(2.5 * phase) + quad * np.cos(2.5 * phase)) / 3.0


def _voice(phase: Array, rng: np.random.Generator) -> Array:
    """Many harmonics under two formants that don't depend on the pitch: a rough voice."""
    k = np.arange(1, 11)
    weights = np.exp(-(((k - 3) / 1.2) ** 2)) + 0.6 * np.exp(-(((k - 8) / 1.5) ** 2)) + 0.1
    return _partials(phase, tuple(range(1, 11)), tuple(weights.tolist())) * (1 + 0.5 * np.sin(0.5 * phase))


def _thud(phase: Array, rng: np.random.Generator) -> Array:
    skin = np.convolve(rng.standard_normal(len(phase)), np.hanning(48) / 5, mode="same").astype(np.float32)
    return np.sin(0.5 * phase) + 0.7 * skin


TIMBRES: dict[str, Callable[[Array, np.random.Generator], Array]] = {
    "whistle": lambda phase, rng: _partials(2.5 * phase, (1.0, 2.0), (1.0, 0.1)),
    "buzz": lambda phase, rng: _partials(0.5 * phase, tuple(range(1, 11)), tuple(1 / k**0.7 for k in range(1, 11))),
    "hollow": lambda phase, rng: _partials(phase, (1, 3, 5, 7), (1.0, 0.5, 0.3, 0.2)),
    "bell": lambda phase, rng: _partials(phase, (1.0, 2.76, 5.4, 8.93), (1.0, 0.8, 0.6, 0.35)),
    "metal": lambda phase, rng: np.sin(phase + 3.0 * np.sin(1.41 * phase)),
    "breath": _breath,
    "voice": _voice,
    "thud": _thud,
}


@dataclass(frozen=True)
class Voice:
    """Acoustic properties that the clips of one source video share, independent of the event."""

    pitch_hz: float  # of the fundamental
    tempo: float  # 1 = as written in RHYTHMS
    loudness: float  # peak of the clip, 0..1
    snr_db: float  # event to background noise, power
    noise_tilt: float  # 0 white .. 1 dull background noise
    hum_hz: float  # a steady tone in the background
    hum: float  # its share of the background, 0..1
    room: float  # level of one echo, 0..1


def draw_voice(rng: np.random.Generator, *, difficulty: float = 1.0) -> Voice:
    """Draw a voice. `difficulty` scales the background: 0 is a quiet room, 1 a noisy street."""
    return Voice(
        pitch_hz=float(400 * 2 ** rng.uniform(-0.8, 0.8)),
        tempo=float(rng.uniform(0.75, 1.3)),
        loudness=float(10 ** rng.uniform(-1.3, -0.1)),
        snr_db=float(rng.uniform(14, 24) - difficulty * rng.uniform(4, 22)),
        noise_tilt=float(rng.uniform(0, 0.97)),
        hum_hz=float(100 * 2 ** rng.uniform(0, 4)),
        hum=float(rng.uniform(0, 0.7)),
        room=float(rng.uniform(0, 0.4)),
    )


def render_sound(
    event: SoundEvent,
    voice: Voice,
    rng: np.random.Generator,
    *,
    seconds: float,
    sample_rate_hz: int = 16_000,
) -> NDArray[np.float32]:
    """Play `event` for `seconds` in `voice`: (seconds * sample_rate_hz,) float32 in [-1, 1].

    `rng` draws what differs between clips of one source video: the clip's start within the rhythm, and the noise.
    """
    samples = round(seconds * sample_rate_hz)
    clock = np.arange(samples, dtype=np.float32) / sample_rate_hz  # seconds
    envelope, progress = _notes(RHYTHMS[event.rhythm], voice.tempo, clock, rng)
    octaves = CONTOURS[event.contour](progress, clock + np.float32(rng.uniform(0, 5)))
    pitch_hz = voice.pitch_hz * np.exp2(octaves)
    phase = (2 * np.pi / sample_rate_hz * np.cumsum(pitch_hz, dtype=np.float64)).astype(np.float32)
    wave = envelope * TIMBRES[event.timbre](phase, rng)
    echo = round(0.09 * sample_rate_hz)
    wave[echo:] += voice.room * wave[:-echo]
    wave += _noise(voice, clock, rng) * _rms(wave) * 10 ** (-voice.snr_db / 20)
    return (wave * (voice.loudness / np.abs(wave).max())).astype(np.float32)


def _notes(rhythm: Rhythm, tempo: float, clock: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return the envelope (0..1) and each sample's progress (0..1) through its note, both (samples,) float32."""
    beat = rhythm.beat_seconds / tempo
    at = np.mod(clock / beat + rng.uniform(0, rhythm.beats), rhythm.beats)  # beats since the start of the pattern
    envelope, progress = np.zeros_like(clock), np.zeros_like(clock)
    for onset, length in rhythm.pattern:
        inside = (at >= onset) & (at < onset + length)
        part = (at[inside] - onset) / length  # 0..1
        rise = np.minimum(1, part * length * beat / 0.005)  # 5 ms: no click at the onset
        if rhythm.fade == "struck":
            level = np.exp(-4 * part)
        elif rhythm.fade == "swell":
            level = np.sin(np.pi * part) ** 2
        else:
            level = np.minimum(1, (1 - part) * length * beat / 0.02)  # 20 ms release
        envelope[inside], progress[inside] = rise * level, part
    return envelope, progress


def _noise(voice: Voice, clock: Array, rng: np.random.Generator) -> Array:
    """Return a background of unit power: noise between white and dull, and a hum."""
    white = rng.standard_normal(len(clock), dtype=np.float32)
    dull = np.convolve(white, np.hanning(40).astype(np.float32), mode="same")
    noise = (1 - voice.noise_tilt) * white + voice.noise_tilt * dull / _rms(dull)
    hum = np.sin(2 * np.pi * voice.hum_hz * clock)
    background = (1 - voice.hum) * noise / _rms(noise) + voice.hum * hum
    return background / _rms(background)


def _rms(wave: Array) -> float:
    """Return the root mean square plus 1e-8, so that it is never zero."""
    return float(np.sqrt(np.mean(np.square(wave))) + 1e-8)
