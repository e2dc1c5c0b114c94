"""alphafuse: what does each stream of frozen embeddings tell about the labels, and how much should it weigh?

    import alphafuse

    alphafuse.make_demo("demo")                       # or import_folder, import_vggsound, import_embeddings, ...
    alphafuse.extract_embeddings("demo")              # stage one, once: clips -> embedding stores
    print(alphafuse.weigh("demo"))                    # what to weigh, in closed form
    result = alphafuse.fit("demo", alphafuse.Experiment("sqrt", on="ast"))  # stage two: a head, scored
    result.predictions("test").to_pandas()            # its answer for each clip
    alphafuse.AlphaFuse.from_pretrained(result.folder)("clip.mp4")          # a label for any clip

A dataset is given as its folder or as a `Dataset`; streams as text ("ast", "ast,clap", "sight", "sound") or as a list.
Nothing prints: `print(result)` shows what the command shows, a notebook shows tables, and `result.to_pandas()` gives
unrounded figures.

Answer         answer (Answer)
Datasets       make_demo, import_folder, import_vggsound, import_ucf101, import_kinetics, import_embeddings
               (GivenReport); Dataset, Manifest, Clip, Stream, parse_stream
Splits         audit (AuditReport), sign_clips, files_without_audio, labelling_warning, resplit_dataset, fold_datasets,
               drop_clips, restore_clips
Extraction     extract_embeddings (ExtractSettings, ExtractReport), plan_extraction (ExtractPlan, Rates),
               resample (Resampling), decode_clip; CustomEncoder, FrameSpec, AudioSpec, convert_timesformer, convert_ast
Embeddings     EmbeddingStore, Embeddings, StoredEmbeddings, EmbeddingSource, Failure
Weights        weigh (Weighing), contribute (Contribution), choose_weight (Choice)
Experiments    fit (Experiment, TrainSettings, RunResult, Probe), compare (CompareTable), sweep (Sweep, parse_alphas),
               table1 (Table1), curve (Curve), mteb_scores (MtebScores)
Runs           read_run (TrainedRun, Predictions), best_run, evaluate (RunEvaluation), evaluate_probabilities
               (Evaluation), export_run, push_bundle
Heads          AlphaFusion, HeadConfig, HeadSettings, train_heads, AlphaFusionClassifier
Prediction     AlphaFuse, find_clips, Prediction, Explanation, similar (SimilarClips)
Files          write_report, write_weigh, write_contribution, write_compare, write_sweep, write_table1, write_curve,
               write_evaluation
Installation   examine (Finding), AlphafuseError

Names are imported at their first use, so that `import alphafuse` is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from alphafuse.system.results import tables_by as _tables_by
from alphafuse.version import __version__ as __version__

if TYPE_CHECKING:
    from alphafuse.answering import Answer, answer
    from alphafuse.cli.doctor import Finding, examine
    from alphafuse.data.audit import AuditReport, audit
    from alphafuse.data.dataset import Dataset
    from alphafuse.data.dropping import drop_clips, restore_clips
    from alphafuse.data.embeddings import Embeddings, Failure
    from alphafuse.data.labelling import labelling_warning
    from alphafuse.data.manifest import Clip, Manifest
    from alphafuse.data.sources.demo import make_demo
    from alphafuse.data.sources.folder import import_folder
    from alphafuse.data.sources.given import GivenReport, import_embeddings
    from alphafuse.data.sources.kinetics import import_kinetics
    from alphafuse.data.sources.resplit import fold_datasets, resplit_dataset
    from alphafuse.data.sources.ucf101 import import_ucf101
    from alphafuse.data.sources.vggsound import import_vggsound
    from alphafuse.data.store.lazy import EmbeddingSource, StoredEmbeddings
    from alphafuse.data.store.store import EmbeddingStore
    from alphafuse.data.streams import Stream
    from alphafuse.errors import AlphafuseError
    from alphafuse.extract.decoding.decode import decode_clip
    from alphafuse.extract.decoding.probe import files_without_audio
    from alphafuse.extract.decoding.signatures import sign_clips
    from alphafuse.extract.decoding.specs import AudioSpec, FrameSpec
    from alphafuse.extract.encoders.checkpoints import convert_ast, convert_timesformer
    from alphafuse.extract.encoders.code import CustomEncoder
    from alphafuse.extract.encoders.families import parse_stream
    from alphafuse.extract.pipeline import ExtractReport, extract_embeddings
    from alphafuse.extract.planning import ExtractPlan, Rates, plan_extraction
    from alphafuse.extract.recheck import Resampling, resample
    from alphafuse.extract.settings import ExtractSettings
    from alphafuse.heads.estimator import AlphaFusionClassifier
    from alphafuse.heads.model.config import Experiment, HeadConfig, HeadSettings
    from alphafuse.heads.model.head import AlphaFusion
    from alphafuse.heads.scoring.choice import Choice, choose_weight
    from alphafuse.heads.scoring.metrics import Evaluation, evaluate_probabilities
    from alphafuse.heads.studies.best_run import best_run
    from alphafuse.heads.studies.compare import CompareTable, compare
    from alphafuse.heads.studies.contribute import Contribution, contribute
    from alphafuse.heads.studies.curve import Curve, curve
    from alphafuse.heads.studies.evaluate import RunEvaluation, evaluate
    from alphafuse.heads.studies.fit import RunResult, fit
    from alphafuse.heads.studies.mteb import MtebScores, mteb_scores
    from alphafuse.heads.studies.predictions import Predictions
    from alphafuse.heads.studies.probe import Probe
    from alphafuse.heads.studies.runs import TrainedRun, read_run
    from alphafuse.heads.studies.sweep import Sweep, parse_alphas, sweep
    from alphafuse.heads.studies.table1 import Table1, table1
    from alphafuse.heads.studies.weigh import Weighing, weigh
    from alphafuse.heads.training.settings import TrainSettings
    from alphafuse.heads.training.train import train_heads
    from alphafuse.predict.bundle import export_run
    from alphafuse.predict.explain import Explanation
    from alphafuse.predict.model import AlphaFuse, find_clips
    from alphafuse.predict.prediction import Prediction
    from alphafuse.predict.push import push_bundle
    from alphafuse.predict.similar import SimilarClips, similar
    from alphafuse.report.contribute import write_contribution
    from alphafuse.report.curve import write_curve
    from alphafuse.report.page.build import write_report
    from alphafuse.report.studies import write_compare, write_evaluation, write_sweep, write_table1
    from alphafuse.report.weigh import write_weigh

_HOMES = {
    "alphafuse.answering": ("Answer", "answer"),
    "alphafuse.predict.bundle": ("export_run",),
    "alphafuse.data.audit": ("AuditReport", "audit"),
    "alphafuse.data.dataset": ("Dataset",),
    "alphafuse.data.dropping": ("drop_clips", "restore_clips"),
    "alphafuse.data.sources.demo": ("make_demo",),
    "alphafuse.data.sources.folder": ("import_folder",),
    "alphafuse.data.sources.given": ("GivenReport", "import_embeddings"),
    "alphafuse.data.sources.kinetics": ("import_kinetics",),
    "alphafuse.data.labelling": ("labelling_warning",),
    "alphafuse.data.manifest": ("Clip", "Manifest"),
    "alphafuse.data.sources.resplit": ("fold_datasets", "resplit_dataset"),
    "alphafuse.data.embeddings": ("Embeddings", "Failure"),
    "alphafuse.data.store.store": ("EmbeddingStore",),
    "alphafuse.data.store.lazy": ("EmbeddingSource", "StoredEmbeddings"),
    "alphafuse.data.streams": ("Stream",),
    "alphafuse.data.sources.ucf101": ("import_ucf101",),
    "alphafuse.data.sources.vggsound": ("import_vggsound",),
    "alphafuse.cli.doctor": ("Finding", "examine"),
    "alphafuse.errors": ("AlphafuseError",),
    "alphafuse.extract.encoders.checkpoints": ("convert_ast", "convert_timesformer"),
    "alphafuse.extract.encoders.code": ("CustomEncoder",),
    "alphafuse.extract.encoders.families": ("parse_stream",),
    "alphafuse.extract.decoding.decode": ("decode_clip",),
    "alphafuse.extract.pipeline": ("ExtractReport", "extract_embeddings"),
    "alphafuse.extract.decoding.probe": ("files_without_audio",),
    "alphafuse.extract.decoding.specs": ("AudioSpec", "FrameSpec"),
    "alphafuse.extract.planning": ("ExtractPlan", "Rates", "plan_extraction"),
    "alphafuse.extract.recheck": ("Resampling", "resample"),
    "alphafuse.extract.settings": ("ExtractSettings",),
    "alphafuse.extract.decoding.signatures": ("sign_clips",),
    "alphafuse.heads.studies.compare": ("CompareTable", "compare"),
    "alphafuse.heads.studies.curve": ("Curve", "curve"),
    "alphafuse.heads.studies.contribute": ("Contribution", "contribute"),
    "alphafuse.heads.estimator": ("AlphaFusionClassifier",),
    "alphafuse.heads.studies.evaluate": ("RunEvaluation", "evaluate"),
    "alphafuse.heads.studies.fit": ("RunResult", "fit"),
    "alphafuse.heads.studies.mteb": ("MtebScores", "mteb_scores"),
    "alphafuse.heads.model.config": ("Experiment", "HeadConfig", "HeadSettings"),
    "alphafuse.heads.model.head": ("AlphaFusion",),
    "alphafuse.heads.scoring.metrics": ("Evaluation", "evaluate_probabilities"),
    "alphafuse.heads.studies.best_run": ("best_run",),
    "alphafuse.heads.studies.predictions": ("Predictions",),
    "alphafuse.heads.studies.probe": ("Probe",),
    "alphafuse.heads.studies.runs": ("TrainedRun", "read_run"),
    "alphafuse.heads.training.settings": ("TrainSettings",),
    "alphafuse.heads.studies.sweep": ("Sweep", "parse_alphas", "sweep"),
    "alphafuse.heads.studies.table1": ("Table1", "table1"),
    "alphafuse.heads.studies.weigh": ("Weighing", "weigh"),
    "alphafuse.heads.scoring.choice": ("Choice", "choose_weight"),
    "alphafuse.heads.training.train": ("train_heads",),
    "alphafuse.predict.explain": ("Explanation",),
    "alphafuse.predict.model": ("AlphaFuse", "find_clips"),
    "alphafuse.predict.prediction": ("Prediction",),
    "alphafuse.predict.push": ("push_bundle",),
    "alphafuse.predict.similar": ("SimilarClips", "similar"),
    "alphafuse.report.curve": ("write_curve",),
    "alphafuse.report.contribute": ("write_contribution",),
    "alphafuse.report.page.build": ("write_report",),
    "alphafuse.report.weigh": ("write_weigh",),
    "alphafuse.report.studies": ("write_compare", "write_evaluation", "write_sweep", "write_table1"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AlphaFuse",
    "AlphaFusion",
    "AlphaFusionClassifier",
    "AlphafuseError",
    "Answer",
    "AudioSpec",
    "AuditReport",
    "Choice",
    "Clip",
    "CompareTable",
    "Contribution",
    "Curve",
    "CustomEncoder",
    "Dataset",
    "EmbeddingSource",
    "EmbeddingStore",
    "Embeddings",
    "Evaluation",
    "Experiment",
    "Explanation",
    "ExtractPlan",
    "ExtractReport",
    "ExtractSettings",
    "Failure",
    "Finding",
    "FrameSpec",
    "GivenReport",
    "HeadConfig",
    "HeadSettings",
    "Manifest",
    "MtebScores",
    "Prediction",
    "Predictions",
    "Probe",
    "Rates",
    "Resampling",
    "RunEvaluation",
    "RunResult",
    "SimilarClips",
    "StoredEmbeddings",
    "Stream",
    "Sweep",
    "Table1",
    "TrainSettings",
    "TrainedRun",
    "Weighing",
    "answer",
    "audit",
    "best_run",
    "choose_weight",
    "compare",
    "contribute",
    "convert_ast",
    "convert_timesformer",
    "curve",
    "decode_clip",
    "drop_clips",
    "evaluate",
    "evaluate_probabilities",
    "examine",
    "export_run",
    "extract_embeddings",
    "files_without_audio",
    "find_clips",
    "fit",
    "fold_datasets",
    "import_embeddings",
    "import_folder",
    "import_kinetics",
    "import_ucf101",
    "import_vggsound",
    "labelling_warning",
    "make_demo",
    "mteb_scores",
    "parse_alphas",
    "parse_stream",
    "plan_extraction",
    "push_bundle",
    "read_run",
    "resample",
    "resplit_dataset",
    "restore_clips",
    "sign_clips",
    "similar",
    "sweep",
    "table1",
    "train_heads",
    "weigh",
    "write_compare",
    "write_contribution",
    "write_curve",
    "write_evaluation",
    "write_report",
    "write_sweep",
    "write_table1",
    "write_weigh",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'alphafuse' has no attribute '{name}'")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


_tables_by[:] = [lambda: import_module("alphafuse.report.notebook")]
