"""doctor: libraries that are missing, old, broken, crash or hang; disk, hub, weights, roots; the self test."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.cli import Run, assert_one_line_error

from alphafuse.cli import doctor
from alphafuse.cli.doctor import Finding, examine

MakeRoot = Callable[..., Path]
Broken = Callable[[str, str], None]


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Broken:
    """Replace the code of a library that a child process imports."""

    def break_library(name: str, code: str) -> None:
        (tmp_path / "broken").mkdir(exist_ok=True)
        (tmp_path / "broken" / f"{name}.py").write_text(code)
        before = os.environ.get("PYTHONPATH", "")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path / "broken"), before])))

    return break_library


def only(monkeypatch: pytest.MonkeyPatch, *libraries: str) -> None:
    """Make `examine` check these libraries only."""
    asked = {name: versions for name, versions in doctor.requirements().items() if name in libraries}
    monkeypatch.setattr(doctor, "requirements", lambda: asked)
    monkeypatch.setattr(doctor, "OTHER_CHECKS", ())


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def problems(findings: list[Finding]) -> list[str]:
    return [finding.name for finding in findings if finding.status == "problem"]


@pytest.mark.slow
def test_a_healthy_installation_has_no_problem_and_embeds_a_clip(extracted: Path) -> None:
    found = list(examine(extracted))
    assert not problems(found), found
    names = by_name(found)
    assert {"python", "torch", "torchaudio", "av", "h5py", "click", "cpu", "codecs", "disk", "hub", "root"} <= set(
        names
    )
    assert all(codec in names["codecs"].line for codec in ("h264", "aac", *doctor.DECODERS))
    assert re.match(r"clip -> embeddings -> store in \d+\.\d s", names["self test"].line)
    assert [names[f"store {split}"].line for split in ("train", "val", "test")] == ["6 of 6 clips embedded"] * 3
    assert names["writing"].line == "files can be written and locked"
    assert names["hub"].line == "not asked (HF_HUB_OFFLINE)"
    assert not [path for path in extracted.iterdir() if "doctor" in path.name], "nothing is left behind"


@pytest.mark.slow
def test_the_json_of_doctor_has_the_content_of_the_text(run: Run, extracted: Path) -> None:
    code, out, _ = run("doctor", "--root", extracted, "--quick", "--json")
    content = json.loads(out)
    assert code == 0 and content["problems"] == 0 and set(content) == {"problems", "findings"}
    assert {tuple(finding) for finding in content["findings"]} == {("name", "status", "line", "mend")}
    code, out, _ = run("doctor", "--root", extracted, "--quick")
    assert code == 0 and out.endswith("\nno problems\n")
    for finding in content["findings"]:
        if "GB free" not in finding["line"]:
            assert finding["line"] in out and finding["mend"] in out


@pytest.mark.slow
def test_a_torchaudio_that_does_not_fit_is_named_with_the_command_that_fixes_it(
    broken: Broken, run: Run, tmp_path: Path
) -> None:
    broken("torchaudio", "raise OSError('libtorchaudio.so: undefined symbol: _ZN3c10')")
    code, out, _ = run("doctor", "--root", tmp_path, "--json")
    found = by_name([Finding(**finding) for finding in json.loads(out)["findings"]])
    assert code == 1 and problems(list(found.values())) == ["torchaudio", "self test"]
    assert "torchaudio doesn't work: OSError: libtorchaudio.so: undefined symbol" in found["torchaudio"].line
    assert re.match(r'pip install --force-reinstall "torch\S+" "torchaudio\S+"$', found["torchaudio"].mend)
    assert found["torch"].status == "ok" and "libtorchaudio.so" in found["self test"].line


def test_a_library_that_crashes_stops_neither_doctor_nor_the_other_checks(
    broken: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken("h5py", "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    only(monkeypatch, "click", "h5py", "numpy")
    found = list(examine(self_test=False))
    assert [finding.name for finding in found] == ["python", "h5py", "numpy", "click"]
    assert problems(found) == ["h5py"]
    assert "crashed" in found[1].line and "SIGSEGV" in found[1].line
    assert found[1].mend.startswith('pip install --force-reinstall "h5py')


def test_a_library_that_hangs_is_stopped_after_the_time_limit(broken: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    broken("numpy", "import time\ntime.sleep(600)")
    monkeypatch.setattr(doctor, "CHILD_SECONDS", 4.0)
    only(monkeypatch, "click", "numpy", "tqdm")
    found = list(examine(self_test=False))
    assert problems(found) == ["numpy"] and "took more than 4 s" in by_name(found)["numpy"].line
    assert [finding.name for finding in found] == ["python", "numpy", "tqdm", "click"]


@pytest.mark.slow
def test_a_command_that_cannot_be_loaded_points_to_doctor_which_works(broken: Broken) -> None:
    broken("h5py", "raise ImportError('libhdf5.so.310: cannot open shared object file')")

    def command(*words: str) -> tuple[int, str, str]:
        process = [sys.executable, "-P", "-m", "alphafuse", *words]
        result = subprocess.run(process, cwd="/", capture_output=True, text=True, timeout=200, check=False)
        return result.returncode, result.stdout, result.stderr

    assert_one_line_error(command("fit"), "libhdf5.so.310", "`alphafuse doctor`")
    code, out, _ = command("doctor", "--quick", "--json")
    found = by_name([Finding(**finding) for finding in json.loads(out)["findings"]])
    assert code == 1 and found["h5py"].status == "problem"
    assert found["h5py"].mend.startswith('pip install --force-reinstall "h5py')


def test_installed_versions_are_compared_with_the_required_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"numpy": ">=99", "nonsense": ">=1", "click": ">=8.1"}
    monkeypatch.setattr(doctor, "requirements", lambda: asked)
    (old,), (missing,), (fine,) = (list(doctor._library(name)) for name in asked)
    assert re.fullmatch(r"numpy \S+ is installed, but alphafuse needs numpy>=99", old.line) and old.status == "problem"
    assert old.mend == 'pip install --upgrade "numpy>=99"'
    assert (missing.line, missing.mend) == ("nonsense is not installed", 'pip install "nonsense>=1"')
    assert fine.status == "ok"


def test_requirements_are_those_of_the_installed_distribution_without_the_extras() -> None:
    asked = doctor.requirements()
    assert asked["torch"].startswith(("<", ">")) and asked["safetensors"] == "" and "pytest" not in asked


def test_a_root_with_missing_embeddings_names_the_command_that_makes_them(make_root: MakeRoot, tmp_path: Path) -> None:
    root = make_root()
    dataset = json.loads((root / "dataset.json").read_text())
    dataset["streams"][1]["encoder"] = str(tmp_path / "nowhere")
    (root / "dataset.json").write_text(json.dumps(dataset))
    found = by_name(list(doctor._root(str(root))))
    assert found["store val"].line == "0 of 4 clips embedded"
    assert found["store val"].mend == f"alphafuse extract --split val --root {root}"
    assert found["ast"].status == "problem" and "no such folder for ast" in found["ast"].line
    (root / "dataset.json").write_text("{")
    assert [finding.status for finding in doctor._root(str(root))] == ["problem"]
    (nothing,) = doctor._root(str(tmp_path / "new" / "root"))
    assert nothing.status == "note" and nothing.mend.startswith("alphafuse data demo --root")


def test_a_damaged_store_is_a_problem_with_the_command_that_checks_it(extracted: Path) -> None:
    shard = next((extracted / "stores" / "val").glob("*.h5"))
    shard.write_bytes(shard.read_bytes()[:-100])
    found = list(doctor._root(str(extracted)))
    assert problems(found) == ["store val"]
    assert by_name(found)["store val"].mend == f"alphafuse store verify {extracted / 'stores' / 'val'}"


def test_a_hub_that_cannot_be_reached_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    began = time.monotonic()
    found = next(doctor._weights(""))
    assert found.status == "note" and found.line.startswith("http://127.0.0.1:9 can't be reached")
    assert time.monotonic() - began < 10


def test_a_folder_that_cannot_be_written_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*arguments: object, **keywords: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(doctor.tempfile, "TemporaryDirectory", refuse)
    *_, found = doctor._disk(str(tmp_path / "new"))
    assert (found.status, found.line) == ("problem", f"can't write at {tmp_path}: Read-only file system")


def test_a_check_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def fail(place: str) -> None:
        raise OSError("stale\nfile handle")

    monkeypatch.setitem(doctor.CHECKS, "disk", fail)
    monkeypatch.setattr(sys, "argv", ["doctor", "/somewhere", "disk"])
    monkeypatch.setattr(doctor.signal, "signal", lambda *_: None)
    monkeypatch.setattr(doctor.os, "dup2", lambda *_: None)
    doctor.run_checks()
    started, found = (json.loads(line) for line in capfd.readouterr().out.splitlines())
    assert started == {"check": "disk"} and found["line"] == "disk doesn't work: OSError: stale file handle"
