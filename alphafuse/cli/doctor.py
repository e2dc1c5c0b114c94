"""`alphafuse doctor`: does this installation work, and which command mends what doesn't.

    examine(root) -> findings, one line each: libraries, devices, codecs, disk, weights, the root, a self test

All looks are taken in a child process, which says what it finds at once: a library that crashes or hangs ends the child
and not the doctor, and another child goes on with the next look. Outside of the child only the standard library and
click are imported, so that the doctor works where nothing else does.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Literal

import click

from .common import DEFAULT_ROOT, EXIT_FOUND, json_option, paint, print_json, roots

CHILD_SECONDS = 180.0  # importing torch took 23 s on two cores that ten processes wanted
LITTLE_DISK_BYTES = 2 * 10**9  # both published encoders take 0.8 GB, the embeddings of VGGSound 1.2 GB
MODULES = {"scikit-learn": "sklearn", "pillow": "PIL"}  # where a distribution's module has another name
DECODERS = {  # codec -> what FFmpeg calls its decoders in software
    **{codec: (codec,) for codec in ("h264", "aac", "hevc", "mpeg4", "flac")},
    "vp9": ("vp9", "libvpx-vp9"),
    "av1": ("libdav1d", "libaom-av1"),
    "opus": ("opus", "libopus"),
    "mp3": ("mp3float", "mp3"),
    "vorbis": ("vorbis", "libvorbis"),
}
NEEDED_CODECS = ("h264", "aac")  # of VGGSound's and Kinetics' clips
OTHER_LOOKS = ("devices", "codecs", "disk", "weights")  # beside libraries, root and self test
REINSTALL = "pip install --force-reinstall"
Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """What was found of one thing.

    Attributes:
        name: of the thing.
        status: "ok"; "note": works, but there is something to know; "problem": something that alphafuse needs doesn't.
        line: one line for people.
        mend: the command that mends it, "" if none is needed.

    >>> from alphafuse import Finding
    >>> Finding("h5py", "problem", "h5py is not installed", 'pip install "h5py>=3.10"').mend
    'pip install "h5py>=3.10"'
    """

    name: str
    status: Status
    line: str
    mend: str = ""


def examine(root: str | Path | None = None, *, self_test: bool = True) -> Iterator[Finding]:
    """Look at this installation, and at a dataset root if one is named. Whatever is broken is a finding, not an error.

    Args:
        root: a dataset root; its disk, its manifest and its encoders are looked at too.
        self_test: take a generated clip through stage one.

    >>> from alphafuse import examine
    >>> [finding.line for finding in examine(self_test=False) if finding.status == "problem"]
    []
    """
    yield Finding("python", "ok", f"{platform.python_version()} ({sys.executable}), {platform.platform()}")
    left = [*requirements(), *OTHER_LOOKS]
    left += ["root"] * (root is not None) + ["self test"] * self_test
    while left:
        with _child(left, str(Path(root or ".").expanduser())) as process:
            assert process.stdout is not None
            begun = left[0]
            for line in process.stdout:
                said = json.loads(line)
                if "begun" in said:
                    begun = said["begun"]
                else:
                    yield Finding(**said)
        if process.returncode == 0:
            return
        code = process.returncode
        end = (
            f"crashed, or took more than {CHILD_SECONDS:.0f} s ({signal.Signals(-code).name})" if code < 0 else "failed"
        )
        yield Finding(begun, "problem", f"{begun}: the process that looked at it {end}", _mend(begun))
        left = left[left.index(begun) + 1 :]


def requirements() -> dict[str, str]:
    """Distribution -> the versions that alphafuse needs ("" = any), without the extras."""
    try:
        lines = [line.partition(";")[0] for line in metadata.requires("alphafuse") or [] if "extra ==" not in line]
    except metadata.PackageNotFoundError:
        return {}
    ends = [next((i for i, c in enumerate(line) if c in "<>=!~[ "), len(line)) for line in lines]
    return {line[:end]: line[end:].strip() for line, end in zip(lines, ends, strict=True)}


def _mend(look: str) -> str:
    """The command that installs anew what a look is about: a library, with its twin where both must fit, or all."""
    asked = requirements()
    names = [name for name in ("torch", "torchaudio") if name in asked] if look in ("torch", "torchaudio") else [look]
    return " ".join([REINSTALL, *(f'"{n}{asked[n]}"' for n in names)]) if look in asked else f"{REINSTALL} alphafuse"


@contextmanager
def _child(looks: list[str], place: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that takes these looks; it is killed after `CHILD_SECONDS`, and when the block ends early."""
    # -P: a folder named alphafuse, data or torch where the user happens to be is none of ours
    command = [sys.executable, "-P", "-c", "from alphafuse.cli.doctor import take_looks; take_looks()"]
    process = subprocess.Popen(
        [*command, place, *looks], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    timer = threading.Timer(CHILD_SECONDS, process.kill)
    timer.start()
    try:
        yield process
        process.wait()
    finally:
        timer.cancel()
        process.kill()
        process.wait()


# ------------------------------------------------------------------------------------------------ in the child process


def take_looks() -> None:
    """Take the looks that the command line names; print the name of each, then its findings, as lines of json."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback when a Ctrl-C reaches it
    place, looks = sys.argv[1], sys.argv[2:]
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)  # what libraries print goes nowhere
        for look in looks:
            print(json.dumps({"begun": look}), file=out, flush=True)
            try:
                found = list(LOOKS[look](place) if look in LOOKS else _library(look))
            except Exception as error:  # any: whatever it is, it is a finding
                found = [Finding(look, "problem", f"{look} doesn't work: {type(error).__name__}: {error}", _mend(look))]
            for finding in found:
                print(
                    json.dumps(asdict(finding) | {"line": " ".join(finding.line.split())[:300]}), file=out, flush=True
                )


def _library(name: str) -> Iterator[Finding]:
    asked = requirements()[name]
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        yield Finding(name, "problem", f"{name} is not installed", f'pip install "{name}{asked}"')
        return
    import_module(MODULES.get(name, name.replace("-", "_")))
    from packaging.specifiers import SpecifierSet  # huggingface_hub needs it, so it is there or the line above said why

    if SpecifierSet(asked).contains(version, prereleases=True):
        yield Finding(name, "ok", version)
    else:
        line = f"{name} {version} is installed, needed is {name}{asked}"
        yield Finding(name, "problem", line, f'pip install --upgrade "{name}{asked}"')


def _devices(place: str) -> Iterator[Finding]:
    import torch
    from loky import cpu_count

    kernels, one_dnn = torch.backends.cpu.get_cpu_capability(), torch.backends.mkldnn.is_available()
    is_slow = not one_dnn or kernels in ("DEFAULT", "NO AVX")
    line = f"{cpu_count()} cores, kernels for {kernels}, oneDNN {'present' if one_dnn else 'missing'}"
    yield Finding("cpu", "note" if is_slow else "ok", line + ": models will be slow" * is_slow)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        free, total = (number / 1e9 for number in torch.cuda.mem_get_info(index))
        yield Finding(f"cuda:{index}", "ok", f"{torch.cuda.get_device_name(index)}, {free:.1f} of {total:.1f} GB free")
    if count:
        return
    has_driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")
    if has_driver and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built for the CPU alone"
        line = f"an NVIDIA driver is here, but PyTorch {built} and finds no device that it can use"
        yield Finding("cuda", "problem", line, "nvidia-smi")
    else:
        yield Finding("cuda", "ok", "none that may be used: everything runs on the CPU")


def _codecs(place: str) -> Iterator[Finding]:
    from av.codec import codecs_available

    missing = [codec for codec, names in DECODERS.items() if not codecs_available.intersection(names)]
    line = f"PyAV decodes {', '.join(codec for codec in DECODERS if codec not in missing)}"
    status: Status = "problem" if set(missing) & set(NEEDED_CODECS) else "note" if missing else "ok"
    if missing:
        line += f"; not {', '.join(missing)}, which its own wheel holds"
    yield Finding("codecs", status, line, _mend("av") if missing else "")


def _disk(place: str) -> Iterator[Finding]:
    from alphafuse.system.claims import Claims
    from alphafuse.system.files import write_atomically

    folder = next(each for each in (Path(place).resolve(), *Path(place).resolve().parents) if each.is_dir())
    free = shutil.disk_usage(folder).free
    line = f"{free / 1e9:.1f} GB free at {folder}"
    if free < LITTLE_DISK_BYTES:
        yield Finding("disk", "note", f"{line}: little for weights and embeddings", "df -h")
    else:
        yield Finding("disk", "ok", line)
    try:
        with tempfile.TemporaryDirectory(prefix=".alphafuse-doctor-", dir=folder) as scratch:
            write_atomically(Path(scratch) / "file", bytes(4096))
            with Claims(scratch) as mine, Claims(scratch) as other:
                locks = mine.is_shared and mine.claim(["clip"]) == ["clip"] and other.claim(["clip"]) == []
    except OSError as error:
        yield Finding("writing", "problem", f"can't write at {folder}: {error.strerror}", f"chmod u+rwx {folder}")
        return
    line = "files are written and locked" if locks else "no file locks: run one extraction of a store at a time"
    yield Finding("writing", "ok" if locks else "note", line)


def _weights(place: str) -> Iterator[Finding]:
    import urllib.request

    from huggingface_hub import constants

    from alphafuse.data.streams import DEFAULT_AST, DEFAULT_TIMESFORMER

    hub = Finding("hub", "ok", f"{constants.ENDPOINT} answers")
    if constants.HF_HUB_OFFLINE:
        hub = Finding("hub", "ok", "not asked (HF_HUB_OFFLINE)")
    else:
        try:
            urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=5).close()
        except OSError as error:
            if getattr(error, "code", None) is None:  # with one, it is an answer, if not the one hoped for
                line = f"{constants.ENDPOINT} can't be reached: weights come from folders or the hub's cache only"
                hub = Finding("hub", "note", line, "export HF_HUB_OFFLINE=1")
    yield hub
    for modality, name in (("timesformer", DEFAULT_TIMESFORMER), ("ast", DEFAULT_AST)):
        yield _encoder(modality, "compact", "problem")
        yield _encoder(modality, name, "note")


def _encoder(modality: str, name: str, lacking: Status) -> Finding:
    """Whether an encoder's weights are on this machine; `lacking` is the status if they aren't."""
    from alphafuse.errors import EncoderError
    from alphafuse.extract.encoders.hub import local_folder

    mend = f"{REINSTALL} alphafuse" if name == "compact" else f"alphafuse convert {modality} FILE OUT"
    try:
        folder = local_folder(modality, name)
    except EncoderError as error:
        return Finding(modality, lacking, str(error), mend)
    if folder is not None and any(path.suffix in (".safetensors", ".bin") for path in folder.iterdir()):
        return Finding(modality, "ok", f"{name} ({folder})")
    line = f"the weights of {name} are not on this machine: they come from the hub, or from the original checkpoint"
    return Finding(modality, lacking, line, mend)


def _root(place: str) -> Iterator[Finding]:
    from alphafuse.data.dataset import Dataset
    from alphafuse.errors import AlphafuseError

    if not (Path(place) / "dataset.json").exists():
        yield Finding("root", "note", f"no dataset at {place} yet", f"alphafuse data demo --root {place}")
        return
    try:
        dataset = Dataset.open(place)
        dataset.require_clips()
    except AlphafuseError as error:
        yield Finding("root", "problem", str(error), f"alphafuse data audit --root {place}")
        return
    yield Finding("root", "ok", f"{dataset.name}: {len(dataset.manifest)} clips, {len(dataset.classes)} classes")
    lacking: Status = "note"
    for split in ("train", "val", "test"):
        clips = len(dataset.manifest.of_split(split))
        try:
            done = len(dataset.store(split).done())
        except AlphafuseError as error:
            mend = f"alphafuse store verify {Path(place) / 'stores' / split}"
            yield Finding(f"store {split}", "problem", str(error), mend)
            continue
        line, mend = f"{done} of {clips} clips embedded", f"alphafuse extract --split {split} --root {place}"
        if done < clips:
            lacking = "problem"  # encoders that are not here
        yield Finding(f"store {split}", "note", line, mend) if done < clips else Finding(f"store {split}", "ok", line)
    yield _encoder("timesformer", dataset.timesformer, lacking)
    yield _encoder("ast", dataset.ast, lacking)


def _self_test(place: str) -> Iterator[Finding]:
    """Encode half a second of noise and a tone, and take it through stage one with the compact encoders."""
    import numpy as np

    from alphafuse.data.dataset import Dataset
    from alphafuse.data.manifest import Clip, Manifest
    from alphafuse.data.sources.demo import write_mp4
    from alphafuse.extract.pipeline import extract_embeddings
    from alphafuse.extract.settings import ExtractSettings

    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="alphafuse-doctor-") as name:
        folder = Path(name)
        frames = np.random.default_rng(0).integers(0, 256, (6, 120, 160, 3), dtype=np.uint8)
        tone = 0.5 * np.sin(np.arange(22_050) * 2 * np.pi * 440 / 44_100).astype(np.float32)
        write_mp4(folder / "clip.mp4", frames, tone[None], sample_rate_hz=44_100, frames_per_second=12)
        manifest = Manifest([Clip("clip", "clip.mp4", "noise", "test", "clip")])
        dataset = Dataset.create(
            folder / "root",
            manifest,
            name="self test",
            clip_folder=folder,
            classes=("noise",),
            timesformer="compact",
            ast="compact",
        )
        (report,) = extract_embeddings(dataset, ["test"], ExtractSettings(device="cpu", workers=1))
        rows = report.store.read().features.values()
        if report.failures or not all(np.isfinite(each).all() for each in rows):
            raise ValueError("; ".join(failure.reason for failure in report.failures) or "an embedding is not finite")
    yield Finding(
        "self test", "ok", f"clip -> embeddings -> store in {time.monotonic() - began:.1f} s, encoders loaded"
    )


LOOKS: dict[str, Callable[[str], Iterator[Finding]]] = {
    "devices": _devices,
    "codecs": _codecs,
    "disk": _disk,
    "weights": _weights,
    "root": _root,
    "self test": _self_test,
}


# ------------------------------------------------------------------------------------------------------------ command


@click.command()
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    envvar="ALPHAFUSE_ROOT",
    show_envvar=True,
    shell_complete=roots,
    help=f"Also look at this dataset root. [default: {DEFAULT_ROOT}, if it is there]",
)
@click.option("--quick", is_flag=True, help="Without the self test, which takes a generated clip through stage one.")
@json_option
def doctor(root: Path | None, quick: bool, as_json: bool) -> None:
    """Check this installation: versions, devices, codecs, disk, weights.

    Each finding is one line: ok, a note (works, but there is something to know), or a problem, with the command that
    mends it. Exit code 1 when there is a problem. It works where nothing else does: a library that is missing, doesn't
    fit or crashes is a finding.

    \b
    Examples:
      alphafuse doctor
      alphafuse doctor --root demo
      alphafuse doctor --json --quick
    """
    if root is None and (Path(DEFAULT_ROOT) / "dataset.json").is_file():
        root = Path(DEFAULT_ROOT)
    found = []
    for finding in examine(root, self_test=not quick):
        found.append(finding)
        if not as_json:
            click.echo(f"{paint(f'{finding.status:8}', finding.status)}{finding.name:17} {finding.line}")
            if finding.mend:
                click.echo(f"{'':26}-> {paint(finding.mend, 'command')}")
    problems = sum(finding.status == "problem" for finding in found)
    if as_json:
        print_json({"problems": problems, "findings": [asdict(finding) for finding in found]})
    else:
        click.echo(f"\n{problems or 'no'} problem{'' if problems == 1 else 's'}")
    if problems:
        sys.exit(EXIT_FOUND)
