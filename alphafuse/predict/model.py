"""Clips in, labels out: a trained run's heads behind the encoders whose embeddings they were trained on.

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

from alphafuse.data.embeddings import Embeddings
from alphafuse.data.sources.importing import find_videos
from alphafuse.errors import DatasetError, ExperimentError
from alphafuse.extract.encoders.encoder import Encoder, Placement
from alphafuse.extract.encoders.families import load_encoders
from alphafuse.extract.encoders.hub import hub_reachable
from alphafuse.extract.engines.embedder import Embedder
from alphafuse.extract.files import EmbeddedFiles, embed_files
from alphafuse.extract.settings import ExtractSettings
from alphafuse.heads.model.config import usable_clips
from alphafuse.heads.studies.runs import TrainedRun, read_run, require_recipe
from alphafuse.system.devices import choose_device
from alphafuse.system.progress import NO_PROGRESS, Progress

from .bundle import carried_encoder, write_bundle
from .card import model_card
from .explain import ALPHAS, Explanation, explain
from .prediction import Prediction, Ranked

TOP = 5
STREAMED = 64  # clips that go together: their workers start once, and no more than these are lost


class AlphaFuse(ModelHubMixin, library_name="alphafuse", tags=["audio-visual", "video-classification"]):
    """A classifier of clips: the encoders, and the heads of a trained run behind them.

    >>> from alphafuse import AlphaFuse, find_clips
    >>> clips = find_clips(["demo/clips"])
    >>> model = AlphaFuse.from_pretrained("demo/runs/sqrt-ast")
    >>> model
    AlphaFuse(1 heads of 'AST sqrt', 16 classes, timesformer, ast)
    >>> model(clips[0])
    Prediction('-QJGJy65ytt_000115.mp4': 'heart beating with engine humming' ...%)
    >>> model.explain(clips[:1])[0].decided
    ('timesformer',)

    Where a run has several heads (one per seed), probabilities are their means. The accuracies that a run reports are
    means over its single heads.

    Attributes:
        run: the run.
        embedder: the encoders at work.
    """

    def __init__(
        self, run: TrainedRun, models: Mapping[str, Encoder], extract_settings: ExtractSettings | None = None
    ) -> None:
        """Put a run and loaded encoders together (argument names must not be those of a run's config.json).

        Raises:
            RecipeMismatchError: an encoder or its preprocessing is not the one that the run was trained on.
        """
        self.run = run
        for modality in run.modalities:
            require_recipe(
                run.folder,
                modality,
                run.embeddings[modality],
                models[modality].recipe(),
                than=f"{models[modality].name} gives",
                way_out=f": name the one that it was trained on (--{modality})",
            )
        self.embedder = Embedder({name: models[name] for name in run.modalities}, extract_settings or ExtractSettings())

    def __repr__(self) -> str:
        heads = f"{len(self.run.heads)} heads of {self.run.experiment.title!r}"
        return f"AlphaFuse({heads}, {len(self.classes)} classes, {', '.join(self.embedder.encoders)})"

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels in the order of `Prediction.probabilities`."""
        return self.run.classes

    @classmethod
    def from_pretrained(  # type: ignore[override]  # no **model_kwargs: what is misspelt should be an error
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        timesformer: str | None = None,
        ast: str | None = None,
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
            pretrained_model_name_or_path: the folder or hub id; of a run of `table1` the untransformed heads.
            timesformer, ast: where the encoders are now, if not where the run says.
            device: "auto", "cpu", "cuda" or "cuda:N".
            workers, timeout_seconds: of decoding, as in `ExtractSettings`.
            revision, token, cache_dir, force_download, local_files_only: huggingface_hub's own, for a hub id.

        Raises:
            ExperimentError: no run there.
            EncoderError: an encoder that can't be had.
            RecipeMismatchError: an encoder or its preprocessing is not the one that the run was trained on.
        """
        name = str(pretrained_model_name_or_path)
        how: dict[str, Any] = {"timesformer": timesformer, "ast": ast, "device": device}
        how |= {"workers": workers, "timeout_seconds": timeout_seconds}
        if Path(name).exists():
            return cls._load(Path(name), **how)
        huggingface_hub.logging.set_verbosity_error()
        local_files_only = local_files_only or not hub_reachable()  # its client would retry for half a minute
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
            why = f"no such folder, and the hub says: {str(error).splitlines()[0]}"
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
        """Load from a hub id; the mixin's `from_pretrained` calls it."""
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
        timesformer: str | None,
        ast: str | None,
        device: str,
        workers: int,
        timeout_seconds: float,
    ) -> AlphaFuse:
        run = read_run(folder)
        given = {"timesformer": timesformer, "ast": ast}
        names = {modality: given[modality] or _encoder_name(run, modality) for modality in run.modalities}
        made = next(iter(run.embeddings.values()))
        placement = Placement(choose_device(device), made.get("precision", "fp32"), made.get("protocol", "standard"))
        settings = ExtractSettings(device=device, workers=workers, timeout_seconds=timeout_seconds)
        return cls(run, load_encoders(names, placement), settings)

    def _save_pretrained(self, save_directory: Path) -> None:
        write_bundle(self.run, save_directory)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card that `save_pretrained` and `push_to_hub` write: data, protocol, metrics with intervals, limits."""
        return model_card(self.run)

    def __call__(self, clip: str | Path, *, top: int = TOP) -> Prediction:
        """Label one clip; see `predict`."""
        return self.predict([clip], top=top)[0]

    def predict(
        self,
        clips: Sequence[str | Path],
        *,
        top: int = TOP,
        progress: Progress = NO_PROGRESS,
    ) -> list[Prediction]:
        """Label clips, in their order.

        A clip that lacks a modality has an answer where the heads were trained with `absent="zeros"`, and none
        otherwise; `Prediction.missing` says why. Files that can't be read are predictions without an answer.

        Args:
            clips: files.
            top: how many labels of each, at least 1; all when there are fewer.
            progress: told of every clip that is embedded.

        Raises:
            DatasetError: no such file.
        """
        found = self.stream(clips, top=top, progress=progress)
        return [one for one in found if isinstance(one, Prediction)]

    def explain(
        self,
        clips: Sequence[str | Path],
        *,
        top: int = TOP,
        alphas: Sequence[float] = ALPHAS,
        progress: Progress = NO_PROGRESS,
    ) -> list[Explanation | Prediction]:
        """Label clips and say how the answer depends on sight and sound; a clip without an answer stays a `Prediction`.

        What is blank goes through its encoder as a clip with a black picture, or with silence, of the same length. No
        training clip may have looked like that: read it as "how much the answer leans on this", not as what a head that
        was trained without the modality would say.

        Args:
            clips, top, progress: as in `predict`.
            alphas: factors on what is fused of a modality, after transform and normalisation.

        Raises:
            DatasetError: no such file.
        """
        return list(self.stream(clips, top=top, why=True, alphas=alphas, progress=progress))

    def stream(
        self,
        clips: Sequence[str | Path],
        *,
        top: int = TOP,
        why: bool = False,
        alphas: Sequence[float] = ALPHAS,
        progress: Progress = NO_PROGRESS,
    ) -> Iterator[Prediction | Explanation]:
        """Yield what `predict`, or with `why` what `explain`, says of clips, in their order, as soon as it is known.

        For many clips: memory does not grow with their number, and what was yielded is not lost when a later clip, or
        Ctrl-C, ends it. 64 clips go together.
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
                    names=self.run.modalities,
                    alphas=alphas,
                )
        finally:
            progress.stop()

    def embed(self, clips: Sequence[str | Path], *, progress: Progress = NO_PROGRESS) -> Embeddings:
        """The clips' embeddings, {modality: (clips, dim)}; clip_ids are "0", "1", ..., rows of NaN have a failure."""
        files = _files(clips)
        progress.start("embed", total=len(files))
        try:
            return embed_files(self.embedder, files, progress=progress).rows
        finally:
            progress.stop()

    def _probabilities(self, embeddings: Embeddings, alphas: Mapping[str, float] | None = None) -> np.ndarray:
        """(heads, clips, C) float64."""
        return np.stack([head.predict_proba(embeddings, alphas) for head in self.run.heads]).astype(np.float64)

    def _predictions(
        self, clips: Sequence[str | Path], embedded: EmbeddedFiles, probabilities: np.ndarray, top: int
    ) -> list[Prediction]:
        usable = usable_clips(embedded.rows, self.run.heads[0].config)
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
                    probabilities=mean,
                )
            )
        return predictions


def find_clips(paths: Sequence[str | Path]) -> list[Path]:
    """Files as they are given, and of folders all video files below them, sorted.

    Raises:
        DatasetError: nothing there, or a folder without a video file.

    >>> from alphafuse import find_clips
    >>> clips = find_clips(["demo/clips"])
    >>> len(clips), clips[0].suffix
    (448, '.mp4')
    """
    found: list[Path] = []
    for path in map(Path, paths):
        inside = [path / relative for relative in find_videos(path).values()] if path.is_dir() else [path]
        if not inside:
            raise DatasetError(f"no video files in {path}: name a folder of clips, or the clips themselves")
        found += inside
    _files(found)
    return found


def _files(clips: Sequence[str | Path]) -> list[Path]:
    paths = [Path(clip) for clip in clips]
    for path in paths:
        if not path.exists():
            raise DatasetError(f"no such clip: {path}: name files, or folders of them")
    return paths


def _encoder_name(run: TrainedRun, modality: str) -> str:
    carried = carried_encoder(run.folder, modality)
    name = run.encoders.get(modality, {}).get("name", "")
    if carried is None and not name:
        raise ExperimentError(
            f"the run {run.folder} doesn't say which {modality} it was trained on: name it (--{modality})"
        )
    return str(carried or name)
