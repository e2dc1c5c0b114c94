"""`alphafuse doctor`: check this installation, and name the command that fixes each problem.

    examine(root) -> findings, one line each: libraries, devices, codecs, disk, weights, the root, a self test

All checks run in a child process, which reports each finding at once. A library that crashes or hangs ends the child,
not the doctor; another child continues with the next check. Outside the child only the standard library and click are
imported, so that the doctor works even if every other library is broken.
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
from dataclasses import asdict, dataclass, replace
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from .common import DEFAULT_ROOT, EXIT_FOUND, json_option, paint, print_json, root_option_with

if TYPE_CHECKING:
    from alphafuse.data.streams import Stream

CHILD_SECONDS = 180.0  # importing torch took 23 s on two cores shared by ten processes
LITTLE_DISK_BYTES = 2 * 10**9  # both published encoders take 0.8 GB, the embeddings of VGGSound 1.2 GB
MODULES = {"scikit-learn": "sklearn", "pillow": "PIL"}  # distributions whose module has another name
DECODERS = {  # codec -> FFmpeg's names of its software decoders
    **{codec: (codec,) for codec in ("h264", "aac", "hevc", "mpeg4", "flac")},
    "vp9": ("vp9", "libvpx-vp9"),
    "av1": ("libdav1d", "libaom-av1"),
    "opus": ("opus", "libopus"),
    "mp3": ("mp3float", "mp3"),
    "vorbis": ("vorbis", "libvorbis"),
}
NEEDED_CODECS = ("h264", "aac")  # the codecs of VGGSound's and Kinetics' clips
OTHER_CHECKS = ("devices", "codecs", "disk", "weights")  # besides libraries, root and self test
REINSTALL = "pip install --force-reinstall"
Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: what was checked.
        status: "ok"; "note": works, with a limitation; "problem": something that alphafuse needs does not work.
        line: the result in one line of text.
        mend: the command that fixes it; "" if none is needed.

    >>> from alphafuse import Finding
    >>> Finding("h5py", "problem", "h5py is not installed", 'pip install "h5py>=3.10"').mend
    'pip install "h5py>=3.10"'
    """

    name: str
    status: Status
    line: str
    mend: str = ""


def examine(root: str | Path | None = None, *, self_test: bool = True) -> Iterator[Finding]:
    """Check this installation, and a dataset root if one is named. A failure is a finding, not an exception.

    Args:
        root: a dataset root; its disk, manifest, stores and encoders are checked too.
        self_test: run stage one on a generated clip.

    >>> from alphafuse import examine
    >>> [finding.line for finding in examine(self_test=False) if finding.status == "problem"]
    []
    """
    yield Finding("python", "ok", f"{platform.python_version()} ({sys.executable}), {platform.platform()}")
    left = [*requirements(), *OTHER_CHECKS]
    left += ["root"] * (root is not None) + ["self test"] * self_test
    while left:
        with _child(left, str(Path(root or ".").expanduser())) as process:
            assert process.stdout is not None
            current = left[0]
            for line in process.stdout:
                message = json.loads(line)
                if "check" in message:
                    current = message["check"]
                else:
                    yield Finding(**message)
        if process.returncode == 0:
            return
        code = process.returncode
        end = (
            f"crashed, or took more than {CHILD_SECONDS:.0f} s ({signal.Signals(-code).name})" if code < 0 else "failed"
        )
        yield Finding(current, "problem", f"{current}: the process that checked it {end}", _fix(current))
        left = left[left.index(current) + 1 :]


def requirements() -> dict[str, str]:
    """Return distribution -> required versions ("" = any), without the extras."""
    try:
        lines = [line.partition(";")[0] for line in metadata.requires("alphafuse") or [] if "extra ==" not in line]
    except metadata.PackageNotFoundError:
        return {}
    ends = [next((i for i, c in enumerate(line) if c in "<>=!~[ "), len(line)) for line in lines]
    return {line[:end]: line[end:].strip() for line, end in zip(lines, ends, strict=True)}


def _fix(check: str) -> str:
    """Return the command that reinstalls the library of a check (torch and torchaudio together), or alphafuse."""
    asked = requirements()
    names = [name for name in ("torch", "torchaudio") if name in asked] if check in ("torch", "torchaudio") else [check]
    return " ".join([REINSTALL, *(f'"{n}{asked[n]}"' for n in names)]) if check in asked else f"{REINSTALL} alphafuse"


@contextmanager
def _child(checks: list[str], folder: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run these checks in a child process; kill it after `CHILD_SECONDS`, or when the block ends early."""
    # -P: do not import a folder named alphafuse, data or torch from the current folder
    command = [sys.executable, "-P", "-c", "from alphafuse.cli.doctor import run_checks; run_checks()"]
    process = subprocess.Popen(
        [*command, folder, *checks], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
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


def run_checks() -> None:
    """Run the checks named in `sys.argv`; print the name of each, then its findings, as lines of json."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback after a Ctrl-C
    folder, checks = sys.argv[1], sys.argv[2:]
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)  # libraries print to stderr, not into the json
        for check in checks:
            print(json.dumps({"check": check}), file=out, flush=True)
            try:
                found = list(CHECKS[check](folder) if check in CHECKS else _library(check))
            except Exception as error:  # every exception becomes a finding
                reason = f"{type(error).__name__}: {error}"
                found = [Finding(check, "problem", f"{check} doesn't work: {reason}", _fix(check))]
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
    from packaging.specifiers import SpecifierSet  # a requirement of huggingface_hub

    if SpecifierSet(asked).contains(version, prereleases=True):
        yield Finding(name, "ok", version)
    else:
        line = f"{name} {version} is installed, but alphafuse needs {name}{asked}"
        yield Finding(name, "problem", line, f'pip install --upgrade "{name}{asked}"')


def _devices(folder: str) -> Iterator[Finding]:
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
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built for the CPU only"
        line = f"an NVIDIA driver is installed, but PyTorch {built} and finds no usable device"
        yield Finding("cuda", "problem", line, "nvidia-smi")
    else:
        yield Finding("cuda", "ok", "no usable device: everything runs on the CPU")


def _codecs(folder: str) -> Iterator[Finding]:
    from av.codec import codecs_available

    missing = [codec for codec, names in DECODERS.items() if not codecs_available.intersection(names)]
    line = f"PyAV decodes {', '.join(codec for codec in DECODERS if codec not in missing)}"
    status: Status = "problem" if set(missing) & set(NEEDED_CODECS) else "note" if missing else "ok"
    if missing:
        line += f"; not {', '.join(missing)}, which PyAV's own wheel decodes"
    yield Finding("codecs", status, line, _fix("av") if missing else "")


def _disk(folder: str) -> Iterator[Finding]:
    from alphafuse.system.claims import Claims
    from alphafuse.system.files import write_atomically

    existing = next(each for each in (Path(folder).resolve(), *Path(folder).resolve().parents) if each.is_dir())
    free = shutil.disk_usage(existing).free
    line = f"{free / 1e9:.1f} GB free at {existing}"
    if free < LITTLE_DISK_BYTES:
        yield Finding("disk", "note", f"{line}: weights and embeddings may not fit", "df -h")
    else:
        yield Finding("disk", "ok", line)
    try:
        with tempfile.TemporaryDirectory(prefix=".alphafuse-doctor-", dir=existing) as scratch:
            write_atomically(Path(scratch) / "file", bytes(4096))
            with Claims(scratch) as first, Claims(scratch) as second:
                locks = first.is_shared and first.claim(["clip"]) == ["clip"] and second.claim(["clip"]) == []
    except OSError as error:
        yield Finding("writing", "problem", f"can't write at {existing}: {error.strerror}", f"chmod u+rwx {existing}")
        return
    line = "files can be written and locked" if locks else "no file locks: run one extraction of a store at a time"
    yield Finding("writing", "ok" if locks else "note", line)


def _weights(folder: str) -> Iterator[Finding]:
    import urllib.request

    from huggingface_hub import constants

    from alphafuse.data.streams import DEFAULT_STREAMS

    hub = Finding("hub", "ok", f"{constants.ENDPOINT} answers")
    if constants.HF_HUB_OFFLINE:
        hub = Finding("hub", "ok", "not asked (HF_HUB_OFFLINE)")
    else:
        try:
            urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=5).close()
        except OSError as error:
            if getattr(error, "code", None) is None:  # an error with a code is an answer of the hub
                line = f"{constants.ENDPOINT} can't be reached: weights come from folders or the hub's cache only"
                hub = Finding("hub", "note", line, "export HF_HUB_OFFLINE=1")
    yield hub
    for stream in DEFAULT_STREAMS:
        yield _encoder(replace(stream, encoder="compact"), "problem")
        yield _encoder(stream, "note")


def _encoder(stream: Stream, lacking: Status) -> Finding:
    """Report whether an encoder's weights are on this machine; `lacking` is the status if they are not."""
    from alphafuse.errors import EncoderError
    from alphafuse.extract.encoders.hub import local_folder

    name = stream.encoder
    fix = f"{REINSTALL} alphafuse" if name == "compact" else "alphafuse convert --help"
    try:
        folder = local_folder(stream)
    except EncoderError as error:
        return Finding(stream.name, lacking, str(error), fix)
    if folder is not None and any(path.suffix in (".safetensors", ".bin") for path in folder.iterdir()):
        return Finding(stream.name, "ok", f"{name} ({folder})")
    line = (
        f"the weights of {name} are not on this machine: extract downloads them from the hub, "
        "or convert the original checkpoint"
    )
    return Finding(stream.name, lacking, line, fix)


def _root(folder: str) -> Iterator[Finding]:
    from alphafuse.data.dataset import Dataset
    from alphafuse.data.streams import GIVEN
    from alphafuse.errors import AlphafuseError

    if not (Path(folder) / "dataset.json").exists():
        yield Finding("root", "note", f"no dataset at {folder} yet", f"alphafuse data demo --root {folder}")
        return
    try:
        dataset = Dataset.open(folder)
        if dataset.needs_clips:
            dataset.require_clips()
    except AlphafuseError as error:
        yield Finding("root", "problem", str(error), f"alphafuse data audit --root {folder}")
        return
    yield Finding("root", "ok", f"{dataset.name}: {len(dataset.manifest)} clips, {len(dataset.classes)} classes")
    lacking: Status = "note"
    for split in ("train", "val", "test"):
        clips = len(dataset.manifest.of_split(split))
        try:
            done = len(dataset.store(split).done())
        except AlphafuseError as error:
            fix = f"alphafuse store verify {Path(folder) / 'stores' / split}"
            yield Finding(f"store {split}", "problem", str(error), fix)
            continue
        line, fix = f"{done} of {clips} clips embedded", f"alphafuse extract --split {split} --root {folder}"
        if done < clips:
            lacking = "problem"  # extraction needs the encoders
        yield Finding(f"store {split}", "note", line, fix) if done < clips else Finding(f"store {split}", "ok", line)
    for stream in dataset.streams:
        if stream.encoder != GIVEN and not stream.is_code:
            yield _encoder(stream, lacking)


def _self_test(folder: str) -> Iterator[Finding]:
    """Run stage one with the compact encoders on a generated clip: half a second of noise and a tone."""
    import numpy as np

    from alphafuse.data.dataset import Dataset
    from alphafuse.data.manifest import Clip, Manifest
    from alphafuse.data.sources.demo import write_mp4
    from alphafuse.data.streams import DEFAULT_STREAMS
    from alphafuse.extract.pipeline import extract_embeddings
    from alphafuse.extract.settings import ExtractSettings

    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="alphafuse-doctor-") as name:
        scratch = Path(name)
        frames = np.random.default_rng(0).integers(0, 256, (6, 120, 160, 3), dtype=np.uint8)
        tone = 0.5 * np.sin(np.arange(22_050) * 2 * np.pi * 440 / 44_100).astype(np.float32)
        write_mp4(scratch / "clip.mp4", frames, tone[None], sample_rate_hz=44_100, frames_per_second=12)
        manifest = Manifest([Clip("clip", "clip.mp4", "noise", "test", "clip")])
        dataset = Dataset.create(
            scratch / "root",
            manifest,
            name="self test",
            clip_folder=scratch,
            classes=("noise",),
            streams=[replace(stream, encoder="compact") for stream in DEFAULT_STREAMS],
        )
        (report,) = extract_embeddings(dataset, ["test"], ExtractSettings(device="cpu", workers=1))
        rows = report.store.read().features.values()
        if report.failures or not all(np.isfinite(each).all() for each in rows):
            raise ValueError("; ".join(failure.reason for failure in report.failures) or "an embedding is not finite")
    yield Finding(
        "self test", "ok", f"clip -> embeddings -> store in {time.monotonic() - began:.1f} s, encoders loaded"
    )


CHECKS: dict[str, Callable[[str], Iterator[Finding]]] = {
    "devices": _devices,
    "codecs": _codecs,
    "disk": _disk,
    "weights": _weights,
    "root": _root,
    "self test": _self_test,
}


# ------------------------------------------------------------------------------------------------------------ command


@click.command()
@root_option_with(help=f"Also check this dataset root. [default: {DEFAULT_ROOT}, if it exists]")
@click.option("--quick", is_flag=True, help="Skip the self test, which runs stage one on a generated clip.")
@json_option
def doctor(root: Path | None, quick: bool, as_json: bool) -> None:
    """Check this installation: versions, devices, codecs, disk, weights.

    Each finding is one line: ok, a note (works, with a limitation), or a problem, with the command that fixes it.
    Exit code 1 when there is a problem. A library that is missing, has the wrong version or crashes is a finding.

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
