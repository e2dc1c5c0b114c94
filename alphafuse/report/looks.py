"""How streams are called and drawn: by their medium, as sight or sound; streams of one medium are told apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from alphafuse.data.streams import SENSES, in_order, title_of
from alphafuse.heads.studies.words import capitalised as capitalised  # these two are for the modules of this room
from alphafuse.heads.studies.words import listed as listed

FUSED = "fused"  # the role of heads that read several streams; all others are those of one stream and have its name

# colours are variables of page.css; the two of a medium differ in lightness, which every reader sees
COLORS = {"video": ("sight", "sight-2"), "audio": ("sound", "sound-2")}
SHAPES = {  # matplotlib's marker, and the same as a character
    "video": (("^", "\u25b2"), ("v", "\u25bc"), ("<", "\u25c0"), (">", "\u25b6")),
    "audio": (("s", "\u25a0"), ("P", "\u271a"), ("X", "\u2716"), ("p", "\u2b1f")),
}
COMBINED = ("o", "*", "d", "8")  # markers of curves that change several streams at once


@dataclass(frozen=True)
class Look:
    """How heads of one role are shown.

    Attributes:
        sense: "sight" or "sound"; "sight (eye)" if the root has several streams of this medium; "fused".
        short: the same for a narrow column: the sense, or the stream's title.
        color: variable of page.css and key of `figures.PALETTE`.
        marker: matplotlib's marker; sign: the same as a character.
    """

    sense: str
    short: str
    color: str
    marker: str
    sign: str

    @property
    def alone(self) -> str:
        """The role as a heading: "sight alone", "fused"."""
        return self.sense if self.sense == FUSED else f"{self.sense} alone"


FUSED_LOOK = Look(FUSED, FUSED, "fused", "o", "\u25cf")
Looks = Mapping[str, Look]


def looks_of(media: Mapping[str, str]) -> dict[str, Look]:
    """Return role -> look, for "fused" and each stream.

    Args:
        media: stream -> "video" or "audio".

    >>> looks_of({"ast": "audio", "dino": "video", "timesformer": "video"})["dino"].sense
    'sight (dino)'
    """
    looks = {FUSED: FUSED_LOOK}
    for medium, sense in SENSES.items():
        names = [name for name in in_order(media) if media[name] == medium]
        for place, name in enumerate(names):
            marker, sign = SHAPES[medium][place % len(SHAPES[medium])]
            color = COLORS[medium][place % len(COLORS[medium])]
            title = title_of(name)
            called = (sense, sense) if len(names) == 1 else (f"{sense} ({title})", title)
            looks[name] = Look(*called, color, marker, sign)
    return looks


def look_of(looks: Looks, role: str) -> Look:
    """Return the look of a role; that of fused heads for several streams ("ast,clap", "all")."""
    return looks.get(role, FUSED_LOOK)


def roles_of(media: Mapping[str, str]) -> tuple[str, ...]:
    """Return the roles of a root's heads, those that read most first: "fused" if there are several streams, each alone.

    >>> roles_of({"ast": "audio", "timesformer": "video"}), roles_of({"ast": "audio"})
    (('fused', 'timesformer', 'ast'), ('ast',))
    """
    return (*((FUSED,) if len(media) > 1 else ()), *in_order(media))
