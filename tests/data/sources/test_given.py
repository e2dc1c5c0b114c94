"""Embeddings that a user brings in a parquet file: a root of their own, or streams of a root."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.cli import Run, assert_one_line_error

from alphafuse.data.dataset import Dataset
from alphafuse.data.embeddings import Failure
from alphafuse.data.sources.given import import_embeddings
from alphafuse.data.streams import Stream
from alphafuse.errors import DatasetError, EncoderError, RecipeMismatchError
from alphafuse.extract.settings import ExtractSettings

pa = pytest.importorskip("pyarrow")
MEDIA = {"dino": "video", "clap": "audio"}
LABELS = ("dog", "cat", "owl")


def vectors(count: int) -> tuple[list[str], dict[str, np.ndarray]]:
    """Labels, and vectors of two streams: dino identifies "dog", clap "cat"."""
    rng = np.random.default_rng(0)
    labels = [LABELS[i % 3] for i in range(count)]
    made = {"dino": rng.normal(0, 0.1, (count, 8)), "clap": rng.normal(0, 0.1, (count, 5))}
    made["dino"][:, 0] += [label == "dog" for label in labels]
    made["clap"][:, 0] += [label == "cat" for label in labels]
    return labels, {name: matrix.astype(np.float32) for name, matrix in made.items()}


def write(path: Path, **columns: Any) -> Path:
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table(columns), path)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    labels, made = vectors(90)
    return write(
        tmp_path / "own.parquet",
        clip_id=[f"clip {i}" for i in range(90)],
        label=labels,
        split=["train"] * 45 + ["validation"] * 15 + ["test"] * 30,
        group=[f"video {i // 2}" for i in range(90)],
        dino=made["dino"].tolist(),
        clap=pa.FixedSizeListArray.from_arrays(pa.array(made["clap"].ravel()), 5),
    )


def files_of(root: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in root.rglob("*") if path.is_file()}


# ---------------------------------------------------------------------------------------------------- new roots


def test_a_root_without_clips_is_made_and_its_heads_are_trained(file: Path, tmp_path: Path) -> None:
    from alphafuse.heads.model.config import Experiment
    from alphafuse.heads.studies.fit import fit
    from alphafuse.heads.training.settings import TrainSettings

    report = import_embeddings(file, tmp_path / "own-root", media=MEDIA)
    dataset = report.dataset
    assert dataset.streams == (Stream("clap", "given", "audio"), Stream("dino", "given", "video"))
    assert (dataset.name, dataset.classes, len(dataset.manifest)) == ("own", ("cat", "dog", "owl"), 90)
    assert report.present == {"clap": 90, "dino": 90} and report.absent == {"clap": 0, "dino": 0}
    assert {clip.group for clip in dataset.manifest.of_split("val")} == {f"video {i // 2}" for i in range(45, 60)}
    _, made = vectors(90)
    stored = dataset.embeddings("val")
    for name, matrix in made.items():
        np.testing.assert_array_equal(stored.features[name], matrix[45:60])
    assert set(stored.recipes["dino"]) == {"encoder", "file_sha256", "dim"} and stored.recipes["dino"]["dim"] == 8
    result = fit(dataset, Experiment(), settings=TrainSettings(epochs=60, hidden=(16,), learning_rate=3e-2))
    assert result.splits["test"].top1.mean > 0.9


def test_splits_that_the_file_lacks_are_made_by_group(tmp_path: Path) -> None:
    labels, made = vectors(60)
    groups = [i // 3 for i in range(60)]  # numbers are texts in a manifest
    file = write(tmp_path / "x.parquet", clip_id=range(60), label=labels, group=groups, video=made["dino"].tolist())
    dataset = import_embeddings(file, tmp_path / "own-root").dataset
    assert {split: len(dataset.manifest.of_split(split)) for split in ("train", "val", "test")} == {
        "train": 45,
        "val": 3,
        "test": 12,
    }
    splits_of: dict[str, set[str]] = {}
    for clip in dataset.manifest:
        splits_of.setdefault(clip.group, set()).add(clip.split)
    assert all(len(splits) == 1 for splits in splits_of.values())


def test_null_nan_and_empty_vectors_are_absent(tmp_path: Path) -> None:
    rows = [[1.0, 2.0], None, [float("nan"), 1.0], [], [None, 1.0], [3.0, 4.0]]
    kind = pa.list_(pa.float64())
    file = write(
        tmp_path / "x.parquet",
        clip_id=list("abcdef"),
        label=["dog"] * 6,
        split=["train"] * 6,
        video=pa.array(rows, kind),
        audio=pa.array([[1, 2, 3]] * 6, pa.large_list(pa.int32())),
    )
    report = import_embeddings(file, tmp_path / "own-root", val_fraction=0, test_fraction=0)
    assert report.present == {"audio": 6, "video": 2} and report.absent == {"audio": 0, "video": 4}
    stored = report.dataset.embeddings("train")
    assert stored.present("video").tolist() == [True, False, False, False, False, True]
    assert stored.failures[0] == Failure("b", "video", "no vector in x.parquet")


def test_a_repeated_import_changes_nothing_and_an_interrupted_one_goes_on(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "own-root"
    monkeypatch.setattr(Dataset, "create", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        import_embeddings(file, root, media=MEDIA)
    assert not (root / "dataset.json").exists()
    monkeypatch.undo()
    import_embeddings(file, root, media=MEDIA)
    before = files_of(root)
    assert len(before) == 5  # three shards, manifest.csv, dataset.json
    import_embeddings(file, root)  # the media are known
    assert files_of(root) == before


# ----------------------------------------------------------------------------------------------- existing roots


def test_streams_are_added_to_a_root_by_clip_id(extracted: Path, tmp_path: Path) -> None:
    before = Dataset.open(extracted)
    clips = [clip.clip_id for clip in before.manifest]
    known = clips[:-1][::-1]
    vector = {clip_id: [float(i), 1.0] for i, clip_id in enumerate(clips)}
    file = write(
        tmp_path / "x.parquet",
        clip_id=[*known, "strange"],
        dino=[*(vector[one] for one in known), [0.0, 0.0]],
        n=[1] * 18,
    )
    report = import_embeddings(file, extracted, media={"dino": "video"})
    dataset = Dataset.open(extracted)
    assert [stream.name for stream in dataset.streams] == ["timesformer", "ast", "dino"]
    assert report.unknown == ("strange",) and report.absent == {"dino": 1}
    assert report.notes == ("columns that aren't used: n",)
    for split in ("train", "val", "test"):
        stored = dataset.embeddings(split)
        for row, clip_id in enumerate(stored.clip_ids):
            if clip_id != clips[-1]:
                assert stored.features["dino"][row].tolist() == vector[clip_id]
        np.testing.assert_array_equal(stored.features["ast"], before.embeddings(split).features["ast"])
    assert dataset.embeddings("test").failures == (Failure(clips[-1], "dino", "not in x.parquet"),)
    store = dataset.store("test")
    assert store.verify() == []
    store.pack()
    assert store.verify() == [] and store.read().features["dino"].shape == (6, 2)


def test_extraction_leaves_given_streams_alone(file: Path, extracted: Path, tmp_path: Path) -> None:
    dataset = Dataset.open(extracted)
    mixed = dataset.with_streams([*dataset.streams, Stream("clap", "given", "audio")])
    assert [stream.name for stream in ExtractSettings().streams_of(mixed)] == ["timesformer", "ast"]
    given = import_embeddings(file, tmp_path / "own-root", media=MEDIA).dataset
    for settings in (ExtractSettings(), ExtractSettings(streams=("clap",))):
        with pytest.raises(EncoderError, match=r"nothing to extract: `alphafuse data embeddings` reads them"):
            settings.streams_of(given)


def test_other_labels_in_the_file_are_said_and_those_of_the_root_count(extracted: Path, tmp_path: Path) -> None:
    clips = list(Dataset.open(extracted).manifest)
    labels = ["other", *(clip.label for clip in clips[1:])]
    ids = [clip.clip_id for clip in clips]
    file = write(tmp_path / "x.parquet", clip_id=ids, label=labels, video=[[1.0]] * len(ids))
    report = import_embeddings(file, extracted)
    assert report.notes == ("1 clips have another label in x.parquet: those of the root count",)
    assert report.dataset.manifest[0].label == clips[0].label


# ------------------------------------------------------------------------------------------------------ refusals


def test_vectors_of_another_file_are_refused(file: Path, tmp_path: Path, extracted: Path) -> None:
    root = tmp_path / "own-root"
    import_embeddings(file, root, media=MEDIA)
    before = files_of(root)
    labels, made = vectors(90)
    other = write(
        tmp_path / "o.parquet", clip_id=[f"clip {i}" for i in range(90)], label=labels, clap=made["clap"].tolist()
    )
    with pytest.raises(RecipeMismatchError, match=r"other embeddings of stream clap, file_sha256 .* another name"):
        import_embeddings(other, root)
    assert files_of(root) == before
    ids = [clip.clip_id for clip in Dataset.open(extracted).manifest]
    ast = write(tmp_path / "a.parquet", clip_id=ids, ast=[[1.0]] * len(ids))
    with pytest.raises(
        RecipeMismatchError, match=r"has embeddings of stream ast from .*: give the column another name"
    ):
        import_embeddings(ast, extracted)


COLUMNS: dict[str, Any] = {"clip_id": ["a", "b"], "label": ["dog", "cat"], "video": [[1.0], [2.0]]}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no clip_id": ({"clip_id": None}, "has no column clip_id"),
    "no label": ({"label": None}, "has no column label"),
    "no vectors": ({"video": None}, "has no column of lists of numbers"),
    "texts in lists": ({"video": [["a"], ["b"]]}, "has no column of lists of numbers"),
    "a name": ({"clap_2": [[1.0], [2.0]]}, "column 'clap_2' can't name a stream"),
    "a reserved name": ({"all": [[1.0], [2.0]]}, "column 'all' can't name a stream"),
    "no medium": ({"dino": [[1.0], [2.0]]}, "say what stream dino of x.parquet embeds: --medium dino=sight"),
    "twice": ({"clip_id": ["a", "a"]}, "clip_id 'a' occurs twice"),
    "lengths": ({"video": [[1.0], [2.0, 3.0]]}, "the vector of clip 'b' has 2 numbers, others of its column have 1"),
    "only nulls": ({"video": pa.array([None, None], pa.list_(pa.float32()))}, "column video has no vector"),
    "a label of lists": ({"label": [["dog"], ["cat"]]}, "Unsupported cast from list<"),
    "a null label": ({"label": ["dog", None]}, "a clip has an empty label"),
    "a split": ({"split": ["train", "dev"]}, "unknown split 'dev'"),
}


@pytest.mark.parametrize("case", BAD)
def test_files_that_cannot_be_used_are_one_line_and_make_nothing(
    case: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changes, said = BAD[case]
    write(Path("x.parquet"), **{name: value for name, value in {**COLUMNS, **changes}.items() if value is not None})
    assert_one_line_error(run("data", "embeddings", "x.parquet", "--root", "root"), said)
    assert not Path("root").exists()


def test_other_mistakes_are_one_line(
    file: Path, extracted: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "new"
    (tmp_path / "text.parquet").write_text("clip_id,label\n")
    assert_one_line_error(run("data", "embeddings", tmp_path / "none.parquet", "--root", root), "no such file")
    assert_one_line_error(run("data", "embeddings", tmp_path / "text.parquet", "--root", root), "write it as parquet")
    media = ("--medium", "dino=video", "--medium", "clap=audio")
    embeddings = ("data", "embeddings", file)
    assert_one_line_error(run(*embeddings, "--root", root, *media, "--medium", "x=video"), "unknown stream 'x'")
    assert_one_line_error(run(*embeddings, "--root", root, *media, "--medium", "dino=smell"), "unknown medium 'smell'")
    assert_one_line_error(run(*embeddings, "--root", root, "--medium", "dino"), "NAME=VALUE")
    assert_one_line_error(run(*embeddings, "--root", extracted, *media), "none of the clips of", "train0_000000")
    import builtins

    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert_one_line_error(run(*embeddings, "--root", root, *media), "pip install 'alphafuse[parquet]'")
    assert not root.exists()


# ----------------------------------------------------------------------------------------------------- commands


def test_the_command_says_what_it_did(file: Path, tmp_path: Path, run: Run) -> None:
    root = tmp_path / "own-root"
    media = ("--medium", "dino=video", "--medium", "clap=audio")
    code, out, err = run("data", "embeddings", file, "--root", root, *media)
    assert (code, err) == (0, "")
    assert out.splitlines()[:3] == [
        "own: 90 clips in 3 classes (train 45, val 15, test 30)",
        "  clap (audio): embeddings of 90 clips",
        "  dino (video): embeddings of 90 clips",
    ]
    assert Dataset.open(root).labelled_by is None
    code, out, _ = run("data", "embeddings", file, "--root", root, "--labelled-by", "ear", "--json")
    assert Dataset.open(root).labelled_by == "ear"
    found = json.loads(out)
    assert found["streams"]["dino"] == {"medium": "video", "present": 90, "absent": 0}
    assert found["clips"] == {"train": 45, "val": 15, "test": 30} and found["unknown"] == []
    code, out, _ = run("data", "audit", "--root", root, "--strict", "--no-decode")
    assert "no file" not in out
    assert run("store", "info", root / "stores" / "train")[0] == 0


def test_streams_are_listed_added_replaced_and_removed(
    extracted: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(extracted.parent)
    streams: Callable[..., tuple[int, str, str]] = lambda *more: run("data", "streams", "--root", "root", *more)  # noqa: E731
    code, out, _ = streams()
    assert code == 0 and [line.split()[:2] for line in out.splitlines()] == [["timesformer", "video"], ["ast", "audio"]]
    code, out, _ = streams("--add", "tiny=compact,medium=audio", "--add", "mine=my.module:f,frames=4")
    assert code == 0 and "mine         video  my.module:f,frames=4\n" in out and "--trust-code" in out
    code, out, _ = streams("--add", "tiny=compact,medium=video", "--remove", "timesformer", "--json")
    listed = {stream["name"]: stream for stream in json.loads(out)["streams"]}
    assert [*listed] == ["ast", "mine", "tiny"] and listed["tiny"]["medium"] == "video"
    assert listed["mine"] == {"name": "mine", "encoder": "my.module:f", "medium": "video", "options": {"frames": "4"}}
    dataset = Dataset.open("root")
    assert [stream.name for stream in dataset.streams] == ["ast", "mine", "tiny"]
    assert dataset.store("test").dims() == {"timesformer": 8, "ast": 8}  # embeddings stay
    before = Path("root/dataset.json").read_bytes()
    assert_one_line_error(streams("--remove", "timesformr"), "unknown stream 'timesformr'")
    assert_one_line_error(streams("--remove", "ast", "--remove", "mine", "--remove", "tiny"), "at least one stream")
    assert_one_line_error(streams("--add", "a=x/y,medium=audio", "--add", "a=compact,medium=audio"), "two streams")
    assert_one_line_error(streams("--add", "B=compact"), "can't name a stream")
    assert_one_line_error(streams("--add", "b=compact"), "say what stream b embeds")
    assert_one_line_error(run("data", "streams", "--root", "nowhere"), "no dataset root at 'nowhere'")
    assert Path("root/dataset.json").read_bytes() == before


def test_errors_of_the_api_are_alphafuse_errors(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file"):
        import_embeddings(tmp_path / "none.parquet", tmp_path / "own-root")
