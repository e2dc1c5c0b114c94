"""alphafuse: how much should each modality weigh when frozen video and audio transformers are fused late?

    import alphafuse

    dataset = alphafuse.make_demo("demo").dataset                    # or import_vggsound, import_folder, Dataset.open
    alphafuse.extract_embeddings(dataset, ["train", "val", "test"])  # stage one: clips -> embedding stores
    result = alphafuse.fit(dataset, alphafuse.Experiment("sqrt", on="ast"))  # stage two: a head, scored
    alphafuse.AlphaFuse.from_pretrained(result.folder)("clip.mp4")           # a label for any clip

Names are imported when they are first used, so that `import alphafuse` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alphafuse.bundle import export_run, push_bundle
    from alphafuse.data.audit import AuditReport, audit
    from alphafuse.data.dataset import Dataset
    from alphafuse.data.demo import make_demo
    from alphafuse.data.embeddings import Embeddings, Failure
    from alphafuse.data.folder import import_folder
    from alphafuse.data.kinetics import import_kinetics
    from alphafuse.data.manifest import Clip, Manifest
    from alphafuse.data.resplit import fold_datasets, resplit_dataset
    from alphafuse.data.store import EmbeddingStore
    from alphafuse.data.stored import EmbeddingSource, StoredEmbeddings
    from alphafuse.data.ucf101 import import_ucf101
    from alphafuse.data.vggsound import import_vggsound
    from alphafuse.doctor import Examination, examine
    from alphafuse.errors import AlphafuseError
    from alphafuse.extract.bench import bench_extract
    from alphafuse.extract.checkpoints import convert_ast, convert_timesformer
    from alphafuse.extract.cost import RunPlan, RunSettings, plan_run
    from alphafuse.extract.decode import decode_clip
    from alphafuse.extract.pipeline import ExtractReport, extract_embeddings
    from alphafuse.extract.probe import files_without_audio
    from alphafuse.extract.rates import ExtractPlan, Rates, plan_extraction
    from alphafuse.extract.resample import Resampling, resample
    from alphafuse.extract.settings import ExtractSettings
    from alphafuse.extract.signatures import sign_clips
    from alphafuse.extract.simulate import Simulation, SimulationSettings, simulate
    from alphafuse.heads.bench import bench_heads
    from alphafuse.heads.compare import CompareTable, compare
    from alphafuse.heads.estimator import AlphaFusionClassifier
    from alphafuse.heads.evaluation import RunEvaluation, evaluate
    from alphafuse.heads.experiments import Experiment, RunResult, fit
    from alphafuse.heads.head import AlphaFusion, HeadConfig
    from alphafuse.heads.metrics import Evaluation, evaluate_probabilities
    from alphafuse.heads.runs import TrainedRun, best_run, read_run
    from alphafuse.heads.settings import TrainSettings
    from alphafuse.heads.sweep import Sweep, parse_alphas, sweep
    from alphafuse.heads.table1 import Table1, table1
    from alphafuse.heads.training import train_heads
    from alphafuse.predict import AlphaFuse, Explanation, Prediction, find_clips
    from alphafuse.report.compare import write_compare
    from alphafuse.report.evaluation import write_evaluation
    from alphafuse.report.page import write_report
    from alphafuse.report.sweep import write_sweep
    from alphafuse.report.table1 import write_table1

__version__ = "0.1.0"

_HOMES = {
    "alphafuse.bundle": ("export_run", "push_bundle"),
    "alphafuse.data.audit": ("AuditReport", "audit"),
    "alphafuse.data.dataset": ("Dataset",),
    "alphafuse.data.demo": ("make_demo",),
    "alphafuse.data.folder": ("import_folder",),
    "alphafuse.data.kinetics": ("import_kinetics",),
    "alphafuse.data.manifest": ("Clip", "Manifest"),
    "alphafuse.data.resplit": ("fold_datasets", "resplit_dataset"),
    "alphafuse.data.embeddings": ("Embeddings", "Failure"),
    "alphafuse.data.store": ("EmbeddingStore",),
    "alphafuse.data.stored": ("EmbeddingSource", "StoredEmbeddings"),
    "alphafuse.data.ucf101": ("import_ucf101",),
    "alphafuse.data.vggsound": ("import_vggsound",),
    "alphafuse.doctor": ("Examination", "examine"),
    "alphafuse.errors": ("AlphafuseError",),
    "alphafuse.extract.bench": ("bench_extract",),
    "alphafuse.extract.checkpoints": ("convert_ast", "convert_timesformer"),
    "alphafuse.extract.cost": ("RunPlan", "RunSettings", "plan_run"),
    "alphafuse.extract.decode": ("decode_clip",),
    "alphafuse.extract.pipeline": ("ExtractReport", "extract_embeddings"),
    "alphafuse.extract.probe": ("files_without_audio",),
    "alphafuse.extract.rates": ("ExtractPlan", "Rates", "plan_extraction"),
    "alphafuse.extract.resample": ("Resampling", "resample"),
    "alphafuse.extract.settings": ("ExtractSettings",),
    "alphafuse.extract.signatures": ("sign_clips",),
    "alphafuse.extract.simulate": ("Simulation", "SimulationSettings", "simulate"),
    "alphafuse.heads.bench": ("bench_heads",),
    "alphafuse.heads.compare": ("CompareTable", "compare"),
    "alphafuse.heads.estimator": ("AlphaFusionClassifier",),
    "alphafuse.heads.evaluation": ("RunEvaluation", "evaluate"),
    "alphafuse.heads.experiments": ("Experiment", "RunResult", "fit"),
    "alphafuse.heads.head": ("AlphaFusion", "HeadConfig"),
    "alphafuse.heads.metrics": ("Evaluation", "evaluate_probabilities"),
    "alphafuse.heads.runs": ("TrainedRun", "best_run", "read_run"),
    "alphafuse.heads.settings": ("TrainSettings",),
    "alphafuse.heads.sweep": ("Sweep", "parse_alphas", "sweep"),
    "alphafuse.heads.table1": ("Table1", "table1"),
    "alphafuse.heads.training": ("train_heads",),
    "alphafuse.predict": ("AlphaFuse", "Explanation", "Prediction", "find_clips"),
    "alphafuse.report.compare": ("write_compare",),
    "alphafuse.report.evaluation": ("write_evaluation",),
    "alphafuse.report.page": ("write_report",),
    "alphafuse.report.sweep": ("write_sweep",),
    "alphafuse.report.table1": ("write_table1",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AlphaFuse",
    "AlphaFusion",
    "AlphaFusionClassifier",
    "AlphafuseError",
    "AuditReport",
    "Clip",
    "CompareTable",
    "Dataset",
    "EmbeddingSource",
    "EmbeddingStore",
    "Embeddings",
    "Evaluation",
    "Examination",
    "Experiment",
    "Explanation",
    "ExtractPlan",
    "ExtractReport",
    "ExtractSettings",
    "Failure",
    "HeadConfig",
    "Manifest",
    "Prediction",
    "Rates",
    "Resampling",
    "RunEvaluation",
    "RunPlan",
    "RunResult",
    "RunSettings",
    "Simulation",
    "SimulationSettings",
    "StoredEmbeddings",
    "Sweep",
    "Table1",
    "TrainSettings",
    "TrainedRun",
    "audit",
    "bench_extract",
    "bench_heads",
    "best_run",
    "compare",
    "convert_ast",
    "convert_timesformer",
    "decode_clip",
    "evaluate",
    "evaluate_probabilities",
    "examine",
    "export_run",
    "extract_embeddings",
    "files_without_audio",
    "find_clips",
    "fit",
    "fold_datasets",
    "import_folder",
    "import_kinetics",
    "import_ucf101",
    "import_vggsound",
    "make_demo",
    "parse_alphas",
    "plan_extraction",
    "plan_run",
    "push_bundle",
    "read_run",
    "resample",
    "resplit_dataset",
    "sign_clips",
    "simulate",
    "sweep",
    "table1",
    "train_heads",
    "write_compare",
    "write_evaluation",
    "write_report",
    "write_sweep",
    "write_table1",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'alphafuse' has no attribute '{name}'")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
