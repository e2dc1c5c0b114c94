"""`AlphaFuse`: label clips with the heads of a trained run and the encoders they were trained with.

clip file -> extract's decoders and encoders -> embeddings -> the run's heads -> probabilities, and why
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
from huggingface_hub import ModelCard, ModelHubMixin
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from alphafuse.data.coverage import coverage_of
from alphafuse.data.embeddings import Embeddings
from alphafuse.data.sources.importing import find_files
from alphafuse.data.streams import GIVEN, Stream
from alphafuse.errors import DatasetError, ExperimentError, unknown
from alphafuse.extract.encoders.encoder import Encoder, Placement
from alphafuse.extract.encoders.families import load_encoder
from alphafuse.extract.encoders.hub import hub_reachable
from alphafuse.extract.engines.embedder import Embedder
from alphafuse.extract.in_memory import EmbeddedFiles, embed_files
from alphafuse.extract.settings import ExtractSettings
from alphafuse.heads.model.config import usable_clips
from alphafuse.heads.studies.runs import TrainedRun, read_run, require_recipe
from alphafuse.system.devices import choose_device
from alphafuse.system.files import each
from alphafuse.system.progress import NO_PROGRESS, Progress

from .bundle import carried_encoder, write_bundle
from .card import model_card
from .explain import ALPHAS, Explanation, explain
from .prediction import Prediction, Ranked
from .shares import no_shares, shares_of

TOP = 5
STREAMED = 64  # clips per batch: workers start once per batch, and an interrupt loses at most one batch


class AlphaFuse(ModelHubMixin, library_name="alphafuse", tags=["audio-visual", "video-classification"]):
    """A classifier of clips: encoders followed by the heads of a trained run.

    >>> from alphafuse import AlphaFuse, find_clips
    >>> clips = find_clips(["demo/clips"])
    >>> model = AlphaFuse.from_pretrained("demo/runs/sqrt-ast")
    >>> model
    AlphaFuse(1 heads of 'AST sqrt', 16 classes, timesformer, ast)
    >>> model(clips[0])
    Prediction('-QJGJy65ytt_000115.mp4': 'heart beating with engine humming' ...%)
    >>> model.explain(clips[:1])[0].changed_by  # blank, this stream changes the answer
    ('timesformer',)

    If a run has several heads (one per seed), probabilities are means over heads. The accuracies in a run's metrics are
    means over its single heads.

    Attributes:
        run: the trained run.
        embedder: computes the embeddings of clips.
    """

    def __init__(
        self, run: TrainedRun, models: Mapping[str, Encoder], extract_settings: ExtractSettings | None = None
    ) -> None:
        """Combine a run and loaded encoders (argument names must differ from the keys of a run's config.json).

        Raises:
            RecipeMismatchError: an encoder or its preprocessing differs from the run's.
        """
        self.run = run
        for stream in run.streams:
            require_recipe(
                run.folder,
                stream,
                run.embeddings[stream],
                models[stream].recipe(),
                than=f"{models[stream].stream.encoder} gives",
                way_out=f": name the encoder it was trained with (--encoder {stream}=ENCODER)",
            )
        self.embedder = Embedder({name: models[name] for name in run.streams}, extract_settings or ExtractSettings())

    def __repr__(self) -> str:
        heads = f"{len(self.run.heads)} heads of {self.run.experiment.title!r}"
        return f"AlphaFuse({heads}, {len(self.classes)} classes, {', '.join(self.embedder.encoders)})"

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels in the order of `Prediction.probabilities`."""
        return self.run.classes

    @property
    def media(self) -> dict[str, str]:
        """Stream that the heads read -> "video" or "audio"."""
        return {name: encoder.stream.medium for name, encoder in self.embedder.encoders.items()}

    @classmethod
    def from_pretrained(  # type: ignore[override]  # no **model_kwargs: a misspelt argument is an error
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        encoders: Mapping[str, str] | None = None,
        trust_code: bool = False,
        device: str = "auto",
        workers: int = 0,
        timeout_seconds: float = ExtractSettings.timeout_seconds,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> AlphaFuse:
        """Load a run with its encoders: a run folder, a folder that `alphafuse export` wrote, or a hub id of one.

        Args:
            pretrained_model_name_or_path: the folder or hub id; a run of `table1` gives its untransformed heads.
            encoders: stream -> folder or hub id of its encoder, if not as recorded in the run.
            trust_code: run the Python code that the run names as an encoder.
            device: "auto", "cpu", "cuda" or "cuda:N".
            workers, timeout_seconds: settings of decoding, as in `ExtractSettings`.
            revision, token, cache_dir, force_download, local_files_only: huggingface_hub's own, for a hub id.

        Raises:
            ExperimentError: there is no such run.
            EncoderError: an encoder is not available.
            RecipeMismatchError: an encoder or its preprocessing differs from the run's.
        """
        name = str(pretrained_model_name_or_path)
        how: dict[str, Any] = {"encoders": encoders or {}, "trust_code": trust_code, "device": device}
        how |= {"workers": workers, "timeout_seconds": timeout_seconds}
        if Path(name).exists():
            return cls._load(Path(name), **how)
        huggingface_hub.logging.set_verbosity_error()
        local_files_only = local_files_only or not hub_reachable()  # else its client retries for half a minute
        try:
            return super().from_pretrained(
                name,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                **how,
            )
        except HFValidationError:
            why = "no such folder"
        except (LocalEntryNotFoundError, OfflineModeIsEnabled):
            why = "no such folder, and the hub can't be reached"
        except OSError as error:  # HfHubHTTPError is one
            why = f"no such folder, and the hub answers: {str(error).splitlines()[0]}"
        raise ExperimentError(
            f"no trained run '{name}' ({why}): name a run folder, such as <root>/runs/sqrt-ast"
        ) from None

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **model_kwargs: Any,
    ) -> AlphaFuse:
        """Load a run from a hub id; called by the mixin's `from_pretrained`."""
        folder = huggingface_hub.snapshot_download(
            model_id,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        return cls._load(Path(folder), **model_kwargs)

    @classmethod
    def _load(
        cls,
        folder: Path,
        *,
        encoders: Mapping[str, str],
        trust_code: bool,
        device: str,
        workers: int,
        timeout_seconds: float,
    ) -> AlphaFuse:
        run = read_run(folder)
        for name in encoders:
            if name not in run.streams:
                raise ExperimentError(unknown("stream", name, run.streams))
        placement = Placement(choose_device(device))
        loaded = {
            name: load_encoder(_stream(run, name, encoders.get(name)), placement, trust_code=trust_code)
            for name in run.streams
        }
        return cls(run, loaded, ExtractSettings(device=device, workers=workers, timeout_seconds=timeout_seconds))

    def _save_pretrained(self, save_directory: Path) -> None:
        write_bundle(self.run, save_directory)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the card that `save_pretrained` and `push_to_hub` write: data, protocol, metrics, limits."""
        return model_card(self.run)

    def __call__(self, clip: str | Path, *, top: int = TOP) -> Prediction:
        """Label one clip; see `predict`."""
        return self.predict([clip], top=top)[0]

    def predict(
        self,
        clips: str | Path | Sequence[str | Path],
        *,
        top: int = TOP,
        progress: Progress = NO_PROGRESS,
    ) -> list[Prediction]:
        """Label clips, in the given order.

        A clip that lacks a stream gets an answer only from heads trained with `absent="zeros"`; `Prediction.missing`
        says what it lacks and why. A file that can't be read gives a prediction without an answer.

        Args:
            clips: a file, or several.
            top: number of labels per clip, at least 1; all labels if there are fewer.
            progress: called for every embedded clip.

        Raises:
            DatasetError: a file does not exist.
        """
        found = self.stream(clips, top=top, progress=progress)
        return [one for one in found if isinstance(one, Prediction)]

    def explain(
        self,
        clips: str | Path | Sequence[str | Path],
        *,
        top: int = TOP,
        alphas: Sequence[float] = ALPHAS,
        progress: Progress = NO_PROGRESS,
    ) -> list[Explanation | Prediction]:
        """Label clips and explain how the answers depend on each stream; without an answer, return a `Prediction`.

        A blank stream is black frames or silence of the same length, passed through its encoder. Possibly no training
        clip was like that: the result tells how much the answer depends on the stream, not what a head trained
        without the stream predicts.

        Args:
            clips, top, progress: as in `predict`.
            alphas: factors on a stream before fusion, after transform and normalisation.

        Raises:
            DatasetError: a file does not exist.
        """
        return list(self.stream(clips, top=top, why=True, alphas=alphas, progress=progress))

    def stream(
        self,
        clips: str | Path | Sequence[str | Path],
        *,
        top: int = TOP,
        why: bool = False,
        alphas: Sequence[float] = ALPHAS,
        progress: Progress = NO_PROGRESS,
    ) -> Iterator[Prediction | Explanation]:
        """Yield the results of `predict`, or with `why` of `explain`, in the given order, as soon as they are known.

        Use it for many clips: memory does not grow with their number, and an error or Ctrl-C loses at most one batch
        of 64 clips.
        """
        if top < 1:
            raise ExperimentError(f"top must be at least 1, not {top}")
        files = _files(clips)
        progress.start("predict", total=len(files))
        try:
            for start in range(0, len(files), STREAMED):
                some = files[start : start + STREAMED]
                embedded = embed_files(self.embedder, some, blank=why, progress=progress)
                predictions = self._predictions(some, embedded, self._probabilities(embedded.rows), top)
                if embedded.blank is None:
                    yield from predictions
                    continue
                yield from explain(
                    predictions,
                    embedded.rows,
                    embedded.blank,
                    self._probabilities,
                    classes=self.classes,
                    names=self.run.streams,
                    alphas=alphas,
                    shares=shares_of(self.run.heads, embedded.rows, predictions, self.classes),
                    no_shares=no_shares(self.run.heads[0].config),
                )
        finally:
            progress.stop()

    def embed(self, clips: str | Path | Sequence[str | Path], *, progress: Progress = NO_PROGRESS) -> Embeddings:
        """Return embeddings {stream: (clips, dim)}; clip_ids are "0", "1", ...; a row of NaN has a failure."""
        files = _files(clips)
        progress.start("embed", total=len(files))
        try:
            return embed_files(self.embedder, files, progress=progress).rows
        finally:
            progress.stop()

    def _probabilities(self, embeddings: Embeddings, alphas: Mapping[str, float] | None = None) -> np.ndarray:
        """Return probabilities (heads, clips, C) float64."""
        return np.stack([head.predict_proba(embeddings, alphas) for head in self.run.heads]).astype(np.float64)

    def _predictions(
        self, clips: Sequence[str | Path], embedded: EmbeddedFiles, probabilities: np.ndarray, top: int
    ) -> list[Prediction]:
        usable = usable_clips(embedded.rows, self.run.heads[0].config)
        encoders = self.embedder.encoders
        hearing = {name: heard for name, encoder in encoders.items() if (heard := encoder.hears)}
        predictions = []
        for i, clip in enumerate(clips):
            mean = probabilities[:, i].mean(axis=0)  # (C,)
            order = [int(j) for j in np.argsort(-mean, kind="stable")[:top]] if usable[i] else []
            predictions.append(
                Prediction(
                    clip=Path(clip),
                    top=tuple(Ranked(self.classes[j], float(mean[j])) for j in order),
                    agreeing=int((probabilities[:, i].argmax(axis=1) == order[0]).sum()) if order else 0,
                    heads=len(probabilities),
                    missing=embedded.reasons(i),
                    media=self.media,
                    probabilities=mean,
                    coverage=coverage_of(hearing, {str(clip): float(embedded.sound_seconds[i])}),
                )
            )
        return predictions


def find_clips(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the given files, and all files of video or sound below given folders, sorted per folder; one or several.

    Raises:
        DatasetError: a path does not exist, or a folder has no such file.

    >>> from alphafuse import find_clips
    >>> clips = find_clips("demo/clips")
    >>> len(clips), clips[0].suffix
    (448, '.mp4')
    """
    found: list[Path] = []
    for path in map(Path, each(paths)):
        inside = [path / relative for relative in find_files(path).clips.values()] if path.is_dir() else [path]
        if not inside:
            raise DatasetError(f"no files of video or sound in {path}: name a folder of clips, or the clips themselves")
        found += inside
    _files(found)
    return found


def _files(clips: str | Path | Sequence[str | Path]) -> list[Path]:
    paths = [Path(clip) for clip in each(clips)]
    for path in paths:
        if not path.exists():
            raise DatasetError(f"no such clip: {path}: name files, or folders of them")
    return paths


def _stream(run: TrainedRun, name: str, encoder: str | None) -> Stream:
    """Return a stream as the run records it, with another encoder if one is given."""
    made, recipe = run.encoders.get(name, {}), run.embeddings[name]
    encoder = encoder or str(carried_encoder(run.folder, name) or made.get("name", ""))
    if encoder == GIVEN:
        raise ExperimentError(
            f"the {name} embeddings of {run.folder} were given, and can't be made of a clip: predict with a run that "
            "leaves the stream out (`alphafuse fit --stream NAME,NAME`)"
        )
    if not encoder:
        raise ExperimentError(f"the run {run.folder} doesn't record its {name} encoder: give --encoder {name}=ENCODER")
    return Stream.recorded(name, made, recipe, encoder=encoder)
