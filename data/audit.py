"""Audit a dataset: what its splits can show, and what is wrong with its clips.

`audit` reads the manifest and compares files byte by byte. Some findings need decoding: copies that were encoded again,
clips without sound or picture, silent, frozen or short ones. They come from signatures, which
`alphafuse.extract.decoding.signatures.sign_clips` makes.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from alphafuse.errors import AlphafuseError
from alphafuse.system.remote import local_copy
from alphafuse.system.results import Tabular

from .coverage import Coverage, Hearing, coverage_of, stored_hearing, stored_seconds
from .dataset import Dataset
from .duplicates import SILENT_PEAK_DBFS, Signature, near_identical_pairs
from .manifest import SPLITS, Clip
from .power import POWER, smallest_resolvable_gap
from .splits import Ceiling, reachable_ceiling

SHORT_SHARE = 0.5  # clips shorter than this share of the median duration are short
TYPICAL_DISCORDANCE = 0.2  # share of clips that exactly one of two similar heads gets right
USEFUL_GAP = 0.10  # a test split that can't show this difference, even at best, decides what studies can say
IMBALANCE = 10.0  # largest over smallest training class worth a note
_NAMED = 3  # examples in a sentence
_BLOCK_BYTES = 1 << 20

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Problem:
    """One finding as a sentence.

    Attributes:
        severity: "error": figures on these splits mislead or can't answer; "warning": some clips are not what they
            should be; "note": information, nothing is wrong.
        kind: name of the finding, for programs.
        message: the finding, for people.
        mend: what to do about it; empty for notes.
    """

    severity: Severity
    kind: str
    message: str
    mend: str = ""


@dataclass(frozen=True)
class SplitAudit:
    """Counts of one split.

    Attributes:
        clips, classes, source_videos: numbers of listed ones.
        unseen_labels: labels that never occur in training, sorted.
        ceiling: clips that a head can get right.
    """

    clips: int
    classes: int
    source_videos: int
    unseen_labels: tuple[str, ...]
    ceiling: Ceiling


@dataclass(frozen=True)
class Balance:
    """Balance of the training clips over their classes.

    Attributes:
        largest, smallest: clips of the largest and smallest class that occurs in training.
        single_clip_classes: classes with one training clip.
        entropy: entropy of the classes' shares divided by its maximum, in [0, 1]; 1 = all classes equally large.
    """

    largest: int
    smallest: int
    single_clip_classes: int
    entropy: float


@dataclass(frozen=True)
class Resolution:
    """Smallest differences of two accuracies that a paired test finds with 80% power on the test split.

    Attributes:
        source_videos: source videos of the test split, the units that the test samples.
        smallest_gap: if all differing clips favour one head; no test finds less.
        typical_gap: if exactly one of the heads is right on a fifth of the clips.
        largest_gap: largest difference that the split's labels allow: its reachable ceiling.
    """

    source_videos: int
    smallest_gap: float
    typical_gap: float
    largest_gap: float

    @property
    def is_coarse(self) -> bool:
        """Whether even the favourable case needs a larger difference than `USEFUL_GAP`."""
        return self.smallest_gap > USEFUL_GAP

    @property
    def is_hopeless(self) -> bool:
        """Whether the largest possible difference is too small to be found."""
        return self.largest_gap <= self.smallest_gap


@dataclass(frozen=True)
class Copies:
    """Clips with the same content.

    Attributes:
        clip_ids: the clips, in manifest order.
        splits, labels: their splits and labels, each once.
    """

    clip_ids: tuple[str, ...]
    splits: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def straddles(self) -> bool:
        """Whether they lie in more than one split."""
        return len(self.splits) > 1


@dataclass(frozen=True)
class Content:
    """Findings of decoding. All lists are clip_ids in manifest order.

    Attributes:
        decoded: clips that have a signature.
        median_seconds: median duration of the readable clips; None if no clip is readable.
        near_identical: sets of clips with the same content in different files.
        unreadable: clip_id -> why neither picture nor sound can be decoded.
        without_video, without_audio: clips that have only the other one.
        short: clips shorter than half the median.
        silent: clips that have a sound track whose peak is below -60 dBFS.
        frozen: clips that show one picture all the time.
    """

    decoded: int
    median_seconds: float | None
    near_identical: tuple[Copies, ...]
    unreadable: Mapping[str, str]
    without_video: tuple[str, ...]
    without_audio: tuple[str, ...]
    short: tuple[str, ...]
    silent: tuple[str, ...]
    frozen: tuple[str, ...]


@dataclass(frozen=True)
class AuditReport(Tabular):
    """Result of `audit`.

    Attributes:
        root, name: the dataset's folder and name.
        splits: split -> its counts.
        balance: sizes of the training classes; None without training clips.
        resolution: smallest differences that the test split can show; None without test clips.
        straddling: source video -> splits that it lies in, for those in more than one.
        missing: clip_ids without a file.
        byte_identical: sets of clips whose files are the same.
        changed: clips whose file has another size than when it was extracted.
        content: findings of decoding; None if nothing was decoded.
        coverage: what each stream hears of the clips, for streams of which that is known.
        problems: all findings as sentences, the worst first.

    >>> from alphafuse import Dataset, audit
    >>> report = audit(Dataset.open("demo"))
    >>> report.splits["train"]
    SplitAudit(clips=230, classes=16, source_videos=172, unseen_labels=(), ceiling=Ceiling(reachable=230, ...))
    >>> report.splits["test"].ceiling.accuracy
    1.0
    """

    root: Path
    name: str
    splits: Mapping[str, SplitAudit]
    balance: Balance | None
    resolution: Resolution | None
    straddling: Mapping[str, tuple[str, ...]]
    missing: tuple[str, ...]
    byte_identical: tuple[Copies, ...]
    changed: tuple[str, ...]
    content: Content | None
    coverage: tuple[Coverage, ...] = ()
    problems: tuple[Problem, ...] = ()

    def __repr__(self) -> str:
        clips = ", ".join(f"{split}={found.clips}" for split, found in self.splits.items())
        counts = {kind: sum(one.severity == kind for one in self.problems) for kind in ("error", "warning", "note")}
        return f"AuditReport({self.name!r}, {clips}, {', '.join(f'{n} {kind}s' for kind, n in counts.items())})"

    @property
    def is_sound(self) -> bool:
        """Whether there are no errors and no warnings."""
        return all(problem.severity == "note" for problem in self.problems)

    def to_json(self) -> dict[str, Any]:
        """Return everything as json-able values (no NaN)."""
        content = asdict(self)
        for split, counts in self.splits.items():
            content["splits"][split]["ceiling"]["accuracy"] = counts.ceiling.accuracy
        for copies in [*content["byte_identical"], *(content["content"] or {}).get("near_identical", ())]:
            copies["straddles"] = len(copies["splits"]) > 1
        for one, found in zip(content["coverage"], self.coverage, strict=True):
            one["unheard_seconds"] = found.unheard_seconds
        return {**content, "root": str(self.root), "is_sound": self.is_sound}


def audit(
    dataset: Dataset | str | Path,
    *,
    signatures: Mapping[str, Signature] | None = None,
    hearing: Mapping[str, Hearing] | None = None,
) -> AuditReport:
    """Count what the dataset's splits can show and find what is wrong with them.

    Args:
        dataset: any root, or its folder; clips without a file are counted as missing, unless all its embeddings were
            given.
        signatures: clip_id -> signature, from `alphafuse.sign_clips`; None leaves out all findings
            that need decoding. Clips without a signature (their files are missing) are left out of those findings.
        hearing: stream -> what it hears of a clip; None = as recorded where its embeddings are stored. How long a
            clip sounds is known from its signature, else from the stores.

    >>> from alphafuse import Dataset, audit
    >>> report = audit(Dataset.open("demo"))
    >>> report.is_sound
    True
    >>> [problem.kind for problem in report.problems]
    ['not_decoded', 'resolution']
    """
    dataset = Dataset.open(dataset)
    clips = dataset.manifest
    files = {clip.clip_id: dataset.paths_of(clip) for clip in clips}
    sizes = dataset.file_sizes(clips)
    missing = tuple(clip_id for clip_id in files if clip_id not in sizes) if dataset.needs_clips else ()
    by_id = {clip.clip_id: clip for clip in clips}
    identical = _byte_identical({clip_id: files[clip_id] for clip_id in files if clip_id in sizes}, sizes)
    train_labels = {clip.label for clip in clips.of_split("train")}
    splits = {split: _split_audit(clips.of_split(split), train_labels) for split in SPLITS}
    counts = AuditReport(
        root=dataset.root,
        name=dataset.name,
        splits=splits,
        balance=_balance(clips.of_split("train")),
        resolution=_resolution(splits["test"]),
        straddling=_straddling(clips),
        missing=missing,
        byte_identical=tuple(_copies(ids, by_id) for ids in identical),
        changed=tuple(_changed(dataset, sizes)),
        content=None if signatures is None else _content(signatures, by_id, identical),
        coverage=_coverage(dataset, signatures, stored_hearing(dataset) if hearing is None else hearing),
    )
    problems = sorted(_problems(counts, dataset.media), key=lambda problem: SEVERITIES.index(problem.severity))
    return AuditReport(**{**vars(counts), "problems": tuple(problems)})


# counting


def _split_audit(clips: Sequence[Clip], train_labels: set[str]) -> SplitAudit:
    labels = [clip.label for clip in clips]
    return SplitAudit(
        clips=len(clips),
        classes=len(set(labels)),
        source_videos=len({clip.group for clip in clips}),
        unseen_labels=tuple(sorted(set(labels) - train_labels)),
        ceiling=reachable_ceiling(train_labels, labels),
    )


def _balance(train: Sequence[Clip]) -> Balance | None:
    sizes = list(Counter(clip.label for clip in train).values())
    if not sizes:
        return None
    shares = [size / len(train) for size in sizes]
    entropy = -sum(share * math.log(share) for share in shares) / math.log(len(sizes)) if len(sizes) > 1 else 1.0
    return Balance(max(sizes), min(sizes), sizes.count(1), entropy)


def _resolution(test: SplitAudit) -> Resolution | None:
    if not test.clips:
        return None
    return Resolution(
        source_videos=test.source_videos,
        smallest_gap=smallest_resolvable_gap(test.source_videos),
        typical_gap=smallest_resolvable_gap(test.source_videos, discordance=TYPICAL_DISCORDANCE),
        largest_gap=test.ceiling.accuracy,
    )


def _straddling(clips: Iterable[Clip]) -> dict[str, tuple[str, ...]]:
    splits: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        splits[clip.group].add(clip.split)
    return {group: _in_order(names) for group, names in splits.items() if len(names) > 1}


def _in_order(splits: set[str]) -> tuple[str, ...]:
    return tuple(split for split in SPLITS if split in splits)


def _changed(dataset: Dataset, sizes: Mapping[str, int]) -> Iterator[str]:
    for split in SPLITS if dataset.needs_clips else ():
        ids = dataset.manifest.of_split(split).clip_ids
        yield from dataset.store(split).changed({clip_id: sizes[clip_id] for clip_id in ids if clip_id in sizes})


def _byte_identical(files: Mapping[str, tuple[Path, ...]], sizes: Mapping[str, int]) -> list[tuple[str, ...]]:
    """Return sets of clip_ids whose files are equal; only files of equal size are read."""
    by_size: dict[int, list[str]] = defaultdict(list)
    for clip_id in files:
        by_size[sizes[clip_id]].append(clip_id)
    by_digest: dict[str, list[str]] = defaultdict(list)
    for clip_ids in by_size.values():
        for clip_id in clip_ids if len(clip_ids) > 1 else ():
            digest = _sha256(files[clip_id])
            if digest is not None:
                by_digest[digest].append(clip_id)
    return [tuple(clip_ids) for clip_ids in by_digest.values() if len(clip_ids) > 1]


def _sha256(paths: Sequence[Path]) -> str | None:
    """Return the sha256 of a clip's files, in order; None if one can't be read (decoding says why)."""
    digest = hashlib.sha256()
    try:
        for path in paths:
            with local_copy(path) as local, local.open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    digest.update(block)
    except (OSError, AlphafuseError):
        return None
    return digest.hexdigest()


def _copies(clip_ids: Iterable[str], by_id: Mapping[str, Clip]) -> Copies:
    clips = [by_id[clip_id] for clip_id in clip_ids]
    return Copies(
        clip_ids=tuple(clip.clip_id for clip in clips),
        splits=_in_order({clip.split for clip in clips}),
        labels=tuple(sorted({clip.label for clip in clips})),
    )


def _content(
    signatures: Mapping[str, Signature], by_id: Mapping[str, Clip], identical: Iterable[tuple[str, ...]]
) -> Content:
    signed = {clip_id: signatures[clip_id] for clip_id in by_id if clip_id in signatures}
    readable = {clip_id: s for clip_id, s in signed.items() if not (s.no_frames and s.no_waveform)}
    seconds = [s.seconds for s in readable.values()]
    median_seconds = median(seconds) if seconds else None
    near = _sets_of_copies(near_identical_pairs(readable), list(readable), identical)
    return Content(
        decoded=len(signed),
        median_seconds=median_seconds,
        near_identical=tuple(_copies(clip_ids, by_id) for clip_ids in near),
        unreadable={clip_id: s.no_frames for clip_id, s in signed.items() if clip_id not in readable},
        without_video=tuple(clip_id for clip_id, s in readable.items() if s.no_frames),
        without_audio=tuple(clip_id for clip_id, s in readable.items() if s.no_waveform),
        short=tuple(
            clip_id for clip_id, s in readable.items() if median_seconds and s.seconds < SHORT_SHARE * median_seconds
        ),
        silent=tuple(clip_id for clip_id, s in readable.items() if s.is_silent),
        frozen=tuple(clip_id for clip_id, s in readable.items() if s.is_frozen),
    )


def _sets_of_copies(
    pairs: Iterable[tuple[str, str]], clip_ids: Sequence[str], identical: Iterable[tuple[str, ...]]
) -> list[tuple[str, ...]]:
    """Join pairs that share a clip into sets, without pairs of byte-identical files."""
    same_file = {clip_id: number for number, ids in enumerate(identical) for clip_id in ids}
    position = {clip_id: i for i, clip_id in enumerate(clip_ids)}
    edges = [(position[a], position[b]) for a, b in pairs if a not in same_file or same_file[a] != same_file.get(b)]
    if not edges:
        return []
    rows, columns = zip(*edges, strict=True)
    graph = coo_array(([1] * len(edges), (rows, columns)), shape=(len(clip_ids), len(clip_ids)))
    _, set_of = connected_components(graph, directed=False)
    members: dict[int, list[str]] = defaultdict(list)
    for clip_id, number in zip(clip_ids, set_of.tolist(), strict=True):
        members[number].append(clip_id)
    return [tuple(ids) for ids in members.values() if len(ids) > 1]


# sentences


def _coverage(
    dataset: Dataset, signatures: Mapping[str, Signature] | None, hearing: Mapping[str, Hearing]
) -> tuple[Coverage, ...]:
    if not hearing:
        return ()
    seconds: dict[str, float] = {}
    if signatures is None:
        for split in SPLITS:
            seconds |= stored_seconds(dataset, split, hearing)
    else:
        seconds = {clip_id: signature.sound_seconds for clip_id, signature in signatures.items()}
    return coverage_of(hearing, seconds)


def _problems(report: AuditReport, media: Mapping[str, str]) -> Iterator[Problem]:
    yield from _split_problems(report)
    yield from _copy_problems(report.byte_identical, "byte_identical", "byte-identical", report.root)
    if report.missing:
        total = sum(counts.clips for counts in report.splits.values())
        everything = len(report.missing) == total
        yield Problem(
            "error" if everything else "warning",
            "missing",
            f"{len(report.missing)} of {total} clips have no file: {_first_names(report.missing)}.",
            "Bring the files back into the clip folder, or make the root again.",
        )
    if report.changed:
        yield Problem(
            "warning",
            "changed",
            f"The files of {_counted(len(report.changed), 'clip', 'clips')} were changed since their extraction: "
            f"{_first_names(report.changed)}.",
            f"Extract them again: `alphafuse extract --split all --refresh --root {report.root}`.",
        )
    if report.content is not None:
        near = report.content.near_identical
        yield from _copy_problems(near, "near_identical", "near-identical (encoded again)", report.root)
        yield from _content_problems(report.content, report.root)
    else:
        yield Problem("note", "not_decoded", "Nothing was decoded: copies, silent and frozen clips are not known.")
    yield from _coverage_problems(report.coverage, [name for name, medium in media.items() if medium == "video"])
    yield from _resolution_problems(report)
    yield from _balance_problems(report)


def _split_problems(report: AuditReport) -> Iterator[Problem]:
    again = f"Split again: `alphafuse data split --root {report.root} --out NEW`."
    for split, counts in report.splits.items():
        if not counts.clips:
            severity: Severity = "warning" if split == "val" else "error"
            yield Problem(severity, "empty_split", f"Split {split} has no clips.", again)
        elif counts.unseen_labels:
            ceiling, unseen = counts.ceiling, counts.unseen_labels
            labels = f"{len(unseen)} labels" if len(unseen) > 1 else "One label"
            yield Problem(
                "error",
                "unseen_labels",
                f"Only {ceiling.reachable} of {ceiling.clips} {split} clips have a label that occurs in training: no "
                f"head can score above {ceiling.accuracy:.1%}. {labels} never occur{'s' * (len(unseen) == 1)} in "
                f"training: {_first_names(unseen)}.",
                again,
            )
    if report.straddling:
        examples = [f"{group} ({' and '.join(splits)})" for group, splits in report.straddling.items()]
        yield Problem(
            "error",
            "straddling",
            f"{_counted(len(examples), 'source video lies', 'source videos lie')} in more than one split, so that "
            f"heads are tested on what they were trained on: {_first_names(examples)}.",
            again,
        )


def _copy_problems(found: Sequence[Copies], kind: str, adjective: str, root: Path) -> Iterator[Problem]:
    """Yield one problem each for copies across splits, copies with different labels, and others."""
    straddling = [copies for copies in found if copies.straddles]
    conflicting = [copies for copies in found if len(copies.labels) > 1]
    others = [copies for copies in found if not copies.straddles and len(copies.labels) == 1]
    drop = f"`alphafuse data drop CLIP --root {root}`"
    one_group = f"Keep one of each ({drop}), or give copies the same group in manifest.csv and split again."
    cases: tuple[tuple[list[Copies], Severity, str, str, str], ...] = (
        (straddling, "error", f"{kind}_across_splits", "across splits", one_group),
        (
            conflicting,
            "error",
            f"{kind}_labels",
            "with different labels",
            f"Keep the one whose label is right ({drop}).",
        ),
        (others, "warning", kind, "within a split, which count twice", f"Keep one of each ({drop})."),
    )
    for sets, severity, name, where, advice in cases:
        if sets:
            examples = [f"{' = '.join(copies.clip_ids[:4])} ({', '.join(copies.splits)})" for copies in sets]
            number = _counted(len(sets), "set", "sets")
            yield Problem(severity, name, f"{number} of {adjective} clips {where}: {_first_names(examples)}.", advice)


def _content_problems(content: Content, root: Path) -> Iterator[Problem]:
    drop = f"Drop them (`alphafuse data drop CLIP --root {root}`), or keep in mind that they are included."
    absent = "Training drops them or feeds zeros: choose with `alphafuse fit --absent`."
    half = SHORT_SHARE * (content.median_seconds or 0.0)
    cases = (
        ("unreadable", "can't be decoded", list(content.unreadable), "Fetch these files again."),
        ("without_video", "have no video", content.without_video, absent),
        ("without_audio", "have no audio", content.without_audio, absent),
        ("short", f"are shorter than half the median duration ({half:.1f} s)", content.short, drop),
        ("silent", f"are silent (peak below {SILENT_PEAK_DBFS:g} dBFS)", content.silent, drop),
        ("frozen", "show one still picture", content.frozen, drop),
    )
    for kind, verb, clip_ids, advice in cases:
        if clip_ids:
            message = f"{len(clip_ids)} of {content.decoded} decoded clips {verb}: {_first_names(clip_ids)}."
            yield Problem("warning", kind, message, advice)


def _coverage_problems(coverage: Sequence[Coverage], watching: Sequence[str]) -> Iterator[Problem]:
    for found in coverage:
        if found.cut:
            message = " ".join(replace(found, short={}).sentences(watching))
            most = math.floor(10 * (found.hears or 0)) / 10
            cut = f"Cut long clips into parts of at most {most:g} s (of one group)"
            yield Problem("warning", "unheard", message, f"{cut}, or choose a stream that hears more.")
        if found.short:
            message = " ".join(replace(found, cut={}).sentences())
            yield Problem("warning", "padded", message, "Take longer clips, or choose a stream that pads less.")


def _resolution_problems(report: AuditReport) -> Iterator[Problem]:
    resolution = report.resolution
    if resolution is None:
        return
    n = _counted(resolution.source_videos, "source video", "source videos")
    found = f"a paired test finds with {POWER:.0%} power"
    if resolution.is_hopeless:
        yield Problem(
            "error",
            "resolution",
            f"With {n}, the smallest accuracy gap that {found} is {100 * resolution.smallest_gap:.1f} points, and no "
            f"two heads can differ by more than {100 * resolution.largest_gap:.1f}: this test split can't tell any "
            "two heads apart.",
            f"Take more test clips with trained labels: `alphafuse data split --root {report.root} --out NEW`, or "
            "more data.",
        )
        return
    at_best = (
        f"With {n} in test, the smallest accuracy gap that {found} is {100 * resolution.smallest_gap:.1f} points "
        f"at best, and {100 * resolution.typical_gap:.1f} when exactly one of two heads is right on "
        f"{TYPICAL_DISCORDANCE:.0%} of the clips"
    )
    if resolution.is_coarse:
        yield Problem(
            "warning",
            "resolution",
            f"{at_best}: smaller differences stay undecided.",
            "Collect more source videos, or test nearly all of them in turn: `alphafuse data split "
            f"--root {report.root} --folds 5 --out NEW`.",
        )
    else:
        yield Problem("note", "resolution", f"{at_best}.")


def _balance_problems(report: AuditReport) -> Iterator[Problem]:
    balance = report.balance
    if balance is None:
        return
    if balance.largest > IMBALANCE * balance.smallest:
        yield Problem(
            "note",
            "imbalance",
            f"The largest training class has {balance.largest} clips, the smallest {balance.smallest}.",
        )
    if balance.single_clip_classes:
        yield Problem(
            "note",
            "single_clip_classes",
            f"{balance.single_clip_classes} of {report.splits['train'].classes} training classes have a single clip.",
        )


def _first_names(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
