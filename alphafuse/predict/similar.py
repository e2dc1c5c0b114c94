"""`similar`: the cached clips that look and sound most like a clip.

clip_id -> its cached embeddings; file -> extract's decoders and encoders -> embeddings -> the nearest cached clips
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from alphafuse.data.columns import Places
from alphafuse.data.dataset import Dataset
from alphafuse.data.embeddings import Embeddings
from alphafuse.data.manifest import SPLITS, Clip
from alphafuse.data.store.lazy import StoredEmbeddings
from alphafuse.data.store.store import recipe_differences
from alphafuse.data.streams import ALL, SENSES, in_order, names_of
from alphafuse.errors import DatasetError, ExperimentError, RecipeMismatchError, unknown
from alphafuse.extract.engines.embedder import load_stored
from alphafuse.extract.in_memory import embed_files
from alphafuse.extract.settings import ExtractSettings
from alphafuse.heads.closed.neighbours import Neighbours, shares_of
from alphafuse.system.files import each, one_line
from alphafuse.system.progress import NO_PROGRESS, Progress
from alphafuse.system.remote import is_remote
from alphafuse.system.results import Tabular

from .model import find_clips

COUNT = 5
NOT_EXTRACTED = "not extracted, and can't be made of the file"
NO_GROUP = ""  # of a file that isn't a clip of the root; no clip has it


@dataclass(frozen=True)
class SimilarClip:
    """A cached clip that is like another.

    Attributes:
        clip: the clip: id, label, split, source video.
        path: address of its file.
        similarity: in [-1, 1]: 1 = the same direction in every stream; two random clips of the root have about 0.
        parts: stream -> what it adds to the similarity, its share times its cosine; None = this clip or the query lacks
            the stream, which adds 0.
    """

    clip: Clip
    path: Path
    similarity: float
    parts: Mapping[str, float | None]

    def to_json(self) -> dict[str, Any]:
        """Return the fields, json-able."""
        clip = self.clip
        where = {"clip_id": clip.clip_id, "path": str(self.path), "label": clip.label, "split": clip.split}
        return {**where, "group": clip.group, "similarity": self.similarity, "parts": dict(self.parts)}


@dataclass(frozen=True)
class SimilarTo:
    """The cached clips that are most like one clip.

    Attributes:
        query: the clip, as it was asked for: a clip_id or a file.
        clip: the clip of the root that it is; None = it is a file that the root doesn't list.
        found: the nearest clips, nearest first; none of its own source video; empty if it has no embedding.
        missing: stream -> why the query has no such embedding.
    """

    query: str
    clip: Clip | None
    found: tuple[SimilarClip, ...]
    missing: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the fields, json-able."""
        own = {"clip_id": self.clip and self.clip.clip_id, "label": self.clip and self.clip.label}
        found = [one.to_json() for one in self.found]
        return {"query": self.query, **own, "found": found, "missing": dict(self.missing)}


@dataclass(frozen=True)
class SimilarClips(Tabular):
    """What `similar` finds.

    Attributes:
        shares: stream -> its share of the similarity, alpha^2; they sum to 1.
        media: stream -> "video" or "audio".
        searched: split -> cached clips that were searched.
        answers: one for each query.

    >>> from alphafuse import Dataset, similar
    >>> found = similar(Dataset.open("demo"), ["demo/clips"], split="train", count=1, by="sound")
    >>> found
    SimilarClips(448 queries among 230 clips, ast=1.00)
    """

    shares: Mapping[str, float]
    media: Mapping[str, str]
    searched: Mapping[str, int]
    answers: tuple[SimilarTo, ...]

    def __repr__(self) -> str:
        shares = ", ".join(f"{name}={share:.2f}" for name, share in self.shares.items())
        return f"SimilarClips({len(self.answers)} queries among {sum(self.searched.values())} clips, {shares})"

    def to_json(self) -> dict[str, Any]:
        """Return the fields, json-able."""
        answers = [answer.to_json() for answer in self.answers]
        return {"shares": dict(self.shares), "searched": dict(self.searched), "queries": answers}


@dataclass(frozen=True)
class _Query:
    """A clip that is asked for: a clip of the root, a file, or both.

    Attributes:
        asked: as it was asked for.
        clip: the clip of the root.
        file: the file, unless a clip_id was given.
    """

    asked: str
    clip: Clip | None
    file: Path | None

    @property
    def split(self) -> str | None:
        """The split of the clip of the root."""
        return self.clip.split if self.clip else None


def similar(
    dataset: Dataset | str | Path,
    clips: str | Path | Sequence[str | Path],
    *,
    split: str = ALL,
    count: int = COUNT,
    alphas: Mapping[str, float] | None = None,
    by: str = ALL,
    settings: ExtractSettings | None = None,
    progress: Progress = NO_PROGRESS,
) -> SimilarClips:
    """Find the cached clips that are most like some clips, in the order of these.

    The similarity is the sum over streams of alpha^2 times the cosine of the two embeddings, which are centred by the
    mean of the searched clips; the alpha^2 sum to 1 over the streams that the query has. A clip of the query's own
    source video is never found. Nothing is trained, and no label is used.

    Args:
        dataset: the root, or its folder, some clips of which are extracted.
        clips: one or several clip_ids of the root, files, or folders of files. A name that is both is the clip_id.
            Files that the root doesn't list are embedded by the encoders that made its embeddings.
        split: where to search: "train", "val", "test" or "all".
        count: clips to find for each, at least 1.
        alphas: stream -> relative weight, 0 or more; 1 for streams that it doesn't name.
        by: streams to compare: "all", "sight" (those of video), "sound" (those of audio) or the name of one.
        settings: how to embed files: encoders, device, workers, trust_code.
        progress: called for every embedded file.

    Raises:
        DatasetError: a clip is neither a clip_id nor a file, or nothing is extracted.
        ExperimentError: an argument is invalid.
        RecipeMismatchError, EncoderError: the encoders are not those that made the stores.

    >>> from alphafuse import Dataset, similar
    >>> found = similar(Dataset.open("demo"), ["0mel8sIKhgk_000007"], count=2, alphas={"ast": 0.5})
    >>> found.shares
    {'timesformer': 0.8, 'ast': 0.2}
    >>> nearest = found.answers[0].found[0]
    >>> nearest.clip.group != found.answers[0].clip.group, nearest.parts
    (True, {'timesformer': ..., 'ast': ...})
    """
    dataset = Dataset.open(dataset)
    if count < 1:
        raise ExperimentError(f"count must be at least 1, not {count}")
    if split not in (*SPLITS, ALL):
        raise DatasetError(unknown("split", split, (*SPLITS, ALL)))
    names = _streams_by(dataset, by)
    places = Places(dataset.manifest.clip_ids)
    asked = _queries(dataset, places, each(clips))
    searched = _cached(dataset, SPLITS if split == ALL else (split,), names)
    _check_alphas(alphas or {}, in_order({name for rows in searched.values() for name in rows.dims}))
    neighbours = Neighbours(*searched.values())
    alpha = [(alphas or {}).get(name, 1.0) for name in neighbours.streams]
    (shares,) = shares_of([alpha], neighbours.streams).tolist()
    queries, missing = _embeddings(dataset, asked, searched, neighbours, settings or ExtractSettings(), progress)
    nearest = neighbours.nearest(queries, [alpha], count)
    parts = neighbours.parts(queries, alpha, nearest.positions[0])
    answers = []
    for i, query in enumerate(asked):
        found = []
        for position, similarity, its in zip(
            nearest.positions[0, i].tolist(), nearest.similarities[0, i].tolist(), parts[i].tolist(), strict=True
        ):
            if position < 0:
                break
            (at,) = places.find([neighbours.clip_id(position)]).tolist()
            clip = dataset.manifest[at]
            of_stream = {
                name: None if np.isnan(part) else part for name, part in zip(neighbours.streams, its, strict=True)
            }
            found.append(SimilarClip(clip, dataset.path_of(clip), similarity, of_stream))
        answers.append(SimilarTo(query.asked, query.clip, tuple(found), missing[i]))
    return SimilarClips(
        shares=dict(zip(neighbours.streams, shares, strict=True)),
        media={name: dataset.media[name] for name in neighbours.streams},
        searched={name: len(source) for name, source in searched.items()},
        answers=tuple(answers),
    )


def _streams_by(dataset: Dataset, by: str) -> list[str]:
    """Return the streams that are compared; `ExperimentError` if the root has none of them."""
    names = names_of(by, dataset.media) or tuple(dataset.media)
    for name in names:
        if name in dataset.media:
            continue
        if name in SENSES.values():
            known = ", ".join(dataset.media)
            raise ExperimentError(f"the root {dataset.root} has no stream of {name}: compare by {known}")
        raise ExperimentError(unknown("stream", name, (ALL, *SENSES.values(), *dataset.media)))
    return list(names)


def _check_alphas(alphas: Mapping[str, float], names: Sequence[str]) -> None:
    for name, alpha in alphas.items():
        if name not in names:
            raise ExperimentError(f"an alpha is of no stream that is compared: {unknown('stream', name, names)}")
        if not (np.isfinite(alpha) and alpha >= 0):
            raise ExperimentError(f"the alpha of {name} must be a finite number of 0 or more, not {alpha}")


def _queries(dataset: Dataset, places: Places, clips: Sequence[str | Path]) -> list[_Query]:
    """Find out what is asked for: clips of the root, files, or the files of folders."""
    positions = places.find([str(clip) for clip in clips]).tolist()
    found: list[_Query] = []
    for clip, position in zip(clips, positions, strict=True):
        if position >= 0:
            found.append(_Query(str(clip), dataset.manifest[position], None))
        elif Path(clip).exists():
            found += [_Query(str(file), None, file) for file in find_clips([clip])]
        else:
            raise DatasetError(
                f"no clip '{one_line(clip, 200)}': it is neither a file nor a clip_id that {dataset.root}/manifest.csv "
                "lists: name one of these"
            )
    return _listed(dataset, found)


def _listed(dataset: Dataset, queries: Sequence[_Query]) -> list[_Query]:
    """Return the same queries, with their clip for files that the root lists."""
    folder = None if is_remote(dataset.clip_folder) else dataset.clip_folder.resolve()
    inside = {
        query.file: path.relative_to(folder).as_posix()
        for query in queries
        if folder and query.file and (path := query.file.resolve()).is_relative_to(folder)
    }
    wanted = set(inside.values())
    clips = {clip.path: clip for clip in dataset.manifest if clip.path in wanted} if wanted else {}
    return [
        replace(query, clip=clips.get(inside[query.file])) if query.file and query.file in inside else query
        for query in queries
    ]


def _cached(dataset: Dataset, splits: Sequence[str], names: Sequence[str]) -> dict[str, StoredEmbeddings]:
    """Return split -> its clips that have an embedding of one of these streams, made under the same recipes."""
    found: dict[str, StoredEmbeddings] = {}
    for split in splits:
        clips, store = dataset.manifest.of_split(split), dataset.store(split)
        if len(clips) and store.dims():
            rows = store.open_rows(clips).only(names)
            there = np.zeros(len(rows), bool)
            for name in rows.dims:
                there |= rows.present(name)
            if there.any():
                found[split] = rows.take(there)
    if not found:
        where = ALL if len(splits) > 1 else splits[0]
        raise DatasetError(
            f"no {' or '.join(names)} embeddings of {'any' if where == ALL else where} clips: run "
            f"`alphafuse extract --split {where} --root {dataset.root}` first"
        )
    for split in found:
        _require_same(dataset, found, split)
    return found


def _require_same(dataset: Dataset, searched: Mapping[str, StoredEmbeddings], split: str) -> None:
    """Raise `RecipeMismatchError` if a split's embeddings can't be compared with those that are searched."""
    recipes = dataset.store(split).recipes()
    for other, rows in searched.items():
        for name in rows.dims:
            difference = recipe_differences(rows.recipes[name], recipes.get(name, rows.recipes[name]))
            if difference:
                raise RecipeMismatchError(
                    f"{other} and {split} were extracted with another {name} {difference}: search one of them "
                    "(--split), or compare by another stream (--by)"
                )


def _embeddings(
    dataset: Dataset,
    asked: Sequence[_Query],
    searched: Mapping[str, StoredEmbeddings],
    neighbours: Neighbours,
    settings: ExtractSettings,
    progress: Progress,
) -> tuple[Embeddings, list[dict[str, str]]]:
    """Return the queries' embeddings, cached ones where there are any; and per query, stream -> why it lacks that."""
    sources = [*_of_stores(dataset, asked, searched, neighbours.streams)]
    known = {i for positions, _ in sources for i in positions}
    rest = [i for i in range(len(asked)) if i not in known]
    files = [asked[i].file for i in rest]
    for i, file in zip(rest, files, strict=True):
        if file is None:
            raise DatasetError(
                f"the clip {one_line(asked[i].asked, 80)} has no {' or '.join(neighbours.streams)} embedding yet: run "
                f"`alphafuse extract --split {asked[i].split} --root {dataset.root}` first"
            )
    if rest:
        most = max(searched, key=lambda split: len(searched[split].dims))
        embedder = load_stored(dataset, most, settings, neighbours.streams)
        progress.start("embed", total=len(rest))
        try:
            sources.append((rest, embed_files(embedder, [file for file in files if file], progress=progress).rows))
        finally:
            progress.stop()
    features = {name: np.full((len(asked), len(mean)), np.nan, np.float32) for name, mean in neighbours.means.items()}
    missing: list[dict[str, str]] = [{} for _ in asked]
    for positions, rows in sources:
        reasons = {(failure.clip_id, failure.stream): failure.reason for failure in rows.failures}
        for name, matrix in features.items():
            if name in rows.features:
                matrix[positions] = rows.features[name]
            for i, clip_id in zip(positions, rows.clip_ids, strict=True):
                if np.isnan(matrix[i, 0]):
                    missing[i][name] = reasons.get((clip_id, name), NOT_EXTRACTED)
    queries = Embeddings(
        clip_ids=tuple(map(str, range(len(asked)))),
        labels=("-",) * len(asked),
        groups=tuple(query.clip.group if query.clip else NO_GROUP for query in asked),
        features=features,
    )
    return queries, missing


def _of_stores(
    dataset: Dataset, asked: Sequence[_Query], searched: Mapping[str, StoredEmbeddings], names: Sequence[str]
) -> Iterator[tuple[list[int], Embeddings]]:
    """Yield positions of queries that were extracted, with what the store of their split has of them."""
    for split in SPLITS:
        own = [i for i, query in enumerate(asked) if query.split == split]
        if own and dataset.store(split).dims():
            _require_same(dataset, searched, split)
            clips = {query.clip.clip_id: query.clip for query in asked if query.clip and query.split == split}
            rows = dataset.store(split).open_rows([*clips.values()]).only(names).load(pooled=True)
            row_of = {clip_id: row for row, clip_id in enumerate(rows.clip_ids)}
            done = {failure.clip_id for failure in rows.failures}
            for name in rows.dims:
                done.update(np.array(rows.clip_ids)[rows.present(name)].tolist())
            pairs = [(i, row_of[clip.clip_id]) for i in own if (clip := asked[i].clip) and clip.clip_id in done]
            yield [i for i, _ in pairs], rows.take(np.array([row for _, row in pairs], np.int64))
