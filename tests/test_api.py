"""The public API: all of it typed, described and shown by an example that runs; none of it prints."""

from __future__ import annotations

import ast
import doctest
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import pytest

import alphafuse

# public name -> why its example can't run; the example is marked as skipped
CANNOT_RUN = {
    "push_bundle": "pushes to the hub; tests/predict/test_model.py pushes to a replacement",
    "convert_ast": "needs an original checkpoint (350 MB); the tests of extract/encoders/checkpoints make one",
    "convert_timesformer": "needs an original checkpoint; the tests of extract/encoders/checkpoints make one",
}


def modules() -> list[str]:
    """Every module of the package."""
    found = set()
    for package in ("alphafuse", *(f"alphafuse.{room}" for room in ("data", "extract", "heads", "report"))):
        walked = pkgutil.walk_packages(import_module(package).__path__, f"{package}.")
        found |= {module.name for module in walked}  # in a checkout the rooms are beside alphafuse/
    assert len(found) > 60
    return sorted(found)


def public_methods() -> Iterator[tuple[str, Callable[..., object]]]:
    """Every public function, and the methods that public classes define themselves."""
    for name in alphafuse.__all__:
        public = getattr(alphafuse, name)
        if not inspect.isclass(public):
            yield name, public
            continue
        for attribute, value in vars(public).items():
            function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            if not attribute.startswith("_") and inspect.isfunction(function):
                yield f"{name}.{attribute}", function


def test_every_public_name_can_be_imported() -> None:
    assert set(alphafuse.__all__) == set(alphafuse._HOME_OF)
    for name in alphafuse.__all__:
        assert getattr(alphafuse, name).__name__ == name
        assert getattr(alphafuse, name).__doc__


def test_the_package_shows_what_people_use_and_nothing_else() -> None:
    assert dir(alphafuse) == sorted([*alphafuse.__all__, "__version__"])
    assert sorted(alphafuse.__all__) == sorted(set(alphafuse.__all__))


def test_the_package_s_help_names_every_public_name_once_by_task() -> None:
    by_task = str(alphafuse.__doc__).partition("\nAnswer ")[2].partition("\nNames are imported")[0]
    named = re.findall(r"[A-Za-z]\w*", re.sub(r"^[A-Z]\w+ {2,}", "", f"Answer  {by_task}", flags=re.M))
    assert sorted(named) == sorted(alphafuse.__all__)


def test_every_function_of_a_dataset_takes_its_folder() -> None:
    taking = [(name, function) for name, function in public_methods() if "." not in name]
    taking = [(name, inspect.signature(function).parameters) for name, function in taking]
    taking = [(name, parameters) for name, parameters in taking if "dataset" in parameters]
    assert len(taking) > 20
    for name, parameters in taking:
        assert "Dataset | str | Path" in str(parameters["dataset"].annotation), name
        for several in {"streams", "on", "splits", "runs"}.intersection(parameters):
            assert str(parameters[several].annotation).startswith("str | "), f"{name}: {several}"


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(alphafuse, "nothing")


def test_importing_alphafuse_imports_nothing_heavy() -> None:
    code = "import sys, alphafuse; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("torch", "numpy", "av", "h5py", "transformers", "sklearn", "click"):
        assert f"'{heavy}'" not in loaded
    assert "'alphafuse'" in loaded


def test_every_public_function_and_method_has_annotations_and_a_docstring() -> None:
    checked = 0
    for name, function in public_methods():
        signature = inspect.signature(function)
        assert signature.return_annotation is not inspect.Signature.empty, f"{name}: return type"
        for parameter in list(signature.parameters.values()):
            if parameter.name not in ("self", "cls"):
                assert parameter.annotation is not inspect.Parameter.empty, f"{name}: type of {parameter.name}"
        assert function.__doc__, f"{name}: docstring"
        checked += 1
    assert checked > 80


def test_every_path_may_be_given_as_text() -> None:
    for name, function in public_methods():
        for parameter in inspect.signature(function).parameters.values():
            kinds = str(parameter.annotation).split(" | ")
            assert "Path" not in kinds or "str" in kinds, f"{name}: {parameter}"


def test_the_package_is_marked_as_typed() -> None:
    assert files("alphafuse").joinpath("py.typed").is_file()


@pytest.mark.slow
def test_examples_in_docstrings_run(demo_folder: Path) -> None:
    tried = 0
    for name in modules():
        results = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS)
        assert results.failed == 0, f"{name}: see above"
        tried += results.attempted
    assert tried > 150


@pytest.mark.parametrize("name", alphafuse.__all__)
def test_every_public_name_has_an_example_that_runs(name: str) -> None:
    public = getattr(alphafuse, name)
    examples = doctest.DocTestParser().get_examples(public.__doc__)
    assert examples, f"alphafuse.{name} has no example (>>>) in its docstring"
    shown = [example for example in examples if not example.source.startswith(("import ", "from "))]
    run = [example for example in shown if not example.options.get(doctest.SKIP)]
    assert bool(run) != (name in CANNOT_RUN), f"alphafuse.{name}: its example doesn't run, or CANNOT_RUN is wrong"


@pytest.mark.slow
def test_nothing_in_the_api_prints(
    make_root: Callable[..., Path],
    tiny_encoders: dict[str, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from alphafuse import Dataset, Experiment, ExtractSettings, TrainSettings

    settings = ExtractSettings(encoders={stream: str(path) for stream, path in tiny_encoders.items()})
    quick = TrainSettings(epochs=2, hidden=(8,))
    made = Dataset.open(make_root())
    capfd.readouterr()  # drop FFmpeg's messages about the clips made above

    alphafuse.import_folder(made.clip_folder, tmp_path / "imported", csv=_labels(made, tmp_path / "labels.csv"))
    alphafuse.plan_extraction(made, ["test"], settings)
    alphafuse.extract_embeddings(made, ["train", "val", "test"], settings)
    alphafuse.resample(made, "test", 2, settings)
    alphafuse.audit(made, signatures=alphafuse.sign_clips(made))
    run = alphafuse.fit(made, Experiment("sqrt", on="ast"), settings=quick).folder
    alphafuse.write_evaluation(alphafuse.evaluate(run))
    model = alphafuse.AlphaFuse.from_pretrained(alphafuse.export_run(run, tmp_path / "bundle", with_encoders=True))
    model.explain(alphafuse.find_clips([made.clip_folder])[:1])
    alphafuse.AlphaFusion.from_pretrained(run).predict_proba(made.embeddings("test"))
    alphafuse.write_table1(alphafuse.table1(made, seeds=1, settings=quick), made)
    alphafuse.write_sweep(alphafuse.sweep(made, on=["ast"], alphas=[0.5, 1.0], seeds=1, settings=quick), made)
    alphafuse.write_compare(alphafuse.compare(made, seeds=1, settings=quick), made)
    alphafuse.write_report(made, tmp_path / "report.html")
    alphafuse.similar(made, [made.manifest[0].clip_id])
    alphafuse.resplit_dataset(made, tmp_path / "resplit", val=2, test=2)
    store = made.store("test")
    store.info()
    store.verify()
    store.pack()
    store.export(tmp_path / "test.npz")

    assert capfd.readouterr() == ("", "")


def _labels(dataset: alphafuse.Dataset, path: Path) -> Path:
    lines = [f'{clip.path},"{clip.label}",{clip.split}' for clip in dataset.manifest]
    path.write_text("\n".join(["path,label,split", *lines]))
    return path


@pytest.mark.slow
def test_making_the_demo_prints_nothing(demo_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    next(Path("demo/clips").glob("*.mp4")).unlink()  # this clip is made again
    alphafuse.make_demo("demo")
    assert capfd.readouterr() == ("", "")


def test_rooms_import_only_what_they_may() -> None:
    """`data` imports neither stage, and the stages don't import each other: they share only the store."""
    forbidden = {"data": ("extract", "heads", "report", "cli"), "extract": ("heads", "report", "cli")}
    forbidden["heads"] = ("extract", "report", "cli")
    for room, others in forbidden.items():
        folder = Path(str(import_module(f"alphafuse.{room}").__file__)).parent
        for path in folder.rglob("*.py"):
            nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
            imported = {node.module or "" for node in nodes if not node.level}
            for other in others:
                assert not any(name.startswith(f"alphafuse.{other}") for name in imported), f"{path} imports {other}"
