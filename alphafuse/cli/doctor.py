"""Whether this installation works, and what is missing: every part looked at so that a broken one can't stop the rest.

    examine(root) -> Examination: findings, each one line, with the command that mends it when it is a problem

Whatever may crash or hang (imports, models, a root's files) runs in processes of its own (`probes`), and disks and the
network are looked at in threads that are waited for only so long. This module imports the standard library alone, so
that it works where nothing else does.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import alphafuse

from .probes import CODECS, LOOKS, Answer, ask

PROBE_SECONDS = 120.0  # loading the models took 23 s on two cores that ten processes wanted
LOOK_SECONDS = 20.0  # at a disk, or the network
NEEDED_CODECS = ("h264", "aac")  # VGGSound's and Kinetics' clips
LITTLE_DISK_BYTES = 2 * 10**9  # both encoders have 207 million weights, 0.8 GB; the embeddings of VGGSound take 1.2 GB
LITTLE_MEMORY_BYTES = 2 * 10**9
EXTRAS = {
    "pyarrow": ("parquet", "`alphafuse store export FILE.parquet`"),
    "vggsounder": ("vggsounder", "`alphafuse evaluate --vggsounder`"),
}
SHOWN_VARIABLES = (
    *("HF_HUB_OFFLINE", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "NO_COLOR", "FORCE_COLOR"),
    *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS"),
)
Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """What was found of one thing.

    Attributes:
        section: what it belongs to: "installation", "machine", "codecs", "weights", "disk", "root", "self test".
        name: of the thing; unique in its section.
        status: "ok"; "note": works, but there is something to know; "problem": something that alphafuse needs doesn't.
        line: one line for people.
        mend: a command that mends it, "" if none is needed.
        facts: the same for programs, json-able.
    """

    section: str
    name: str
    status: Status
    line: str
    mend: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Examination:
    """Everything that was found.

    Attributes:
        findings: in the order in which they are shown.
        seconds: that it took.

    >>> from alphafuse import Examination
    >>> found = Examination((Finding("machine", "memory", "problem", "0.1 of 4.3 GB free", "close something"),), 0.2)
    >>> found, found["memory"].mend
    (Examination(1 findings, 1 problems, 0.2 s), 'close something')
    """

    findings: tuple[Finding, ...]
    seconds: float

    def __repr__(self) -> str:
        return f"Examination({len(self.findings)} findings, {len(self.problems)} problems, {self.seconds:.1f} s)"

    @property
    def problems(self) -> tuple[Finding, ...]:
        """Those that something has to be done about."""
        return tuple(finding for finding in self.findings if finding.status == "problem")

    def __getitem__(self, name: str) -> Finding:
        return next(finding for finding in self.findings if finding.name == name)

    def to_json(self) -> dict[str, Any]:
        """Everything, json-able."""
        return {
            "version": alphafuse.__version__,
            "problems": len(self.problems),
            "findings": [asdict(finding) for finding in self.findings],
            "seconds": round(self.seconds, 3),
        }


def examine(
    root: str | Path | None = None,
    *,
    offline: bool = False,
    self_test: bool = True,
    variables: Iterable[str] = (),
    progress: Callable[[], object] | None = None,
) -> Examination:
    """Look at the installation, the machine, and a dataset root if one is named.

    Nothing raises, whatever is broken: that is what findings are for. On a healthy machine it takes about as long as
    importing torch twice.

    Args:
        root: a dataset root; its disk, file locks, clips, stores, encoders and runs are looked at too.
        offline: leave the hub alone, as with HF_HUB_OFFLINE=1.
        self_test: take a generated clip through stage one.
        variables: every environment variable that alphafuse's options are read from; others that begin with
            `ALPHAFUSE_` are then pointed out.
        progress: called after each part.

    >>> from alphafuse import examine
    >>> found = examine(offline=True, self_test=False)
    >>> found["torch"].status, found["decoders"].status
    ('ok', 'ok')
    """
    began = time.monotonic()
    folder = None if root is None else Path(root).expanduser()
    requirements = _requirements()
    tasks = [*requirements, *(f"?{topic}" for topic in LOOKS)]
    offline = offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    with ExitStack() as probes:
        installed = probes.enter_context(ask("libraries", *tasks))
        tested = probes.enter_context(ask("self-test", environment={"HF_HUB_OFFLINE": "1"})) if self_test else None
        has_root = folder is not None and _within(LOOK_SECONDS, (folder / "dataset.json").is_file, default=False)
        rooted = probes.enter_context(ask("root", str(folder))) if has_root else None
        hub = _Look(lambda: _hub(offline=offline))
        disk = _Look(lambda: _disk(folder))
        libraries, in_root = (
            _Later(lambda: _all_libraries(tasks, installed(PROBE_SECONDS))),
            _Later(lambda: rooted and rooted(PROBE_SECONDS)),
        )
        hub_findings = partial(hub.findings, "weights", mend="alphafuse doctor --offline")
        findings: list[Finding] = []
        parts: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
            ("installation", lambda: _installation(requirements, libraries())),
            ("installation", lambda: _environment(variables)),
            ("machine", lambda: _machine(libraries())),
            ("codecs", lambda: _codecs(libraries())),
            ("disk", lambda: disk.findings("disk", mend="df -h")),
            ("weights", hub_findings),
            ("weights", lambda: _weights(libraries(), in_root(), reachable=_is_reachable(hub_findings()))),
            ("root", lambda: _root(folder, in_root())),
            ("self test", lambda: _self_test(tested(PROBE_SECONDS), findings) if tested else []),
        ]
        for section, look in parts:
            try:
                findings += look()
            except Exception as error:  # a doctor that fails helps nobody; tests see to it that this is never used
                line = f"could not be examined: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
                findings.append(Finding(section, section, "problem", line, REINSTALL))
            if progress is not None:
                progress()
    return Examination(tuple(findings), time.monotonic() - began)


PARTS = 9  # of an examination: calls of its `progress`
REINSTALL = "pip install --force-reinstall alphafuse"


class _Later:
    """A value that is computed when it is first asked for."""

    def __init__(self, compute: Callable[[], Any]) -> None:
        self._compute = compute
        self._value: list[Any] = []

    def __call__(self) -> Any:
        if not self._value:
            self._value.append(self._compute())
        return self._value[0]


class _Look:
    """Findings made in a thread of their own, which is not waited for longer than `LOOK_SECONDS` from its start."""

    def __init__(self, look: Callable[[], list[Finding]]) -> None:
        self._found: list[Finding] | None = None
        self._error = ""
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, args=(look,), daemon=True)
        self._thread.start()

    def _run(self, look: Callable[[], list[Finding]]) -> None:
        try:
            self._found = look()
        except Exception as error:  # goes on in `findings`
            self._error = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

    def findings(self, section: str, *, mend: str) -> list[Finding]:
        self._thread.join(max(0.0, self._began + LOOK_SECONDS - time.monotonic()))
        if self._found is not None:
            return self._found
        why = self._error or f"no answer within {LOOK_SECONDS:.0f} s"
        return [Finding(section, section, "problem", f"could not be examined: {why}", mend)]


def _within(seconds: float, look: Callable[[], Any], *, default: Any) -> Any:
    """The value of a function that may hang, or the default."""
    values: list[Any] = []
    thread = threading.Thread(target=lambda: values.append(look()), daemon=True)
    thread.start()
    thread.join(seconds)
    return values[0] if values else default


# ------------------------------------------------------------------------------------------------------ installation


def _requirements() -> dict[str, str]:
    """Distribution -> what alphafuse asks of its version ("" = any), without the extras."""
    try:
        required = metadata.requires("alphafuse") or []
    except metadata.PackageNotFoundError:
        return {}
    requirements = {}
    for line in required:
        asked, _, marker = line.partition(";")
        if "extra" in marker:
            continue
        end = next((i for i, character in enumerate(asked) if character in "<>=!~[ ("), len(asked))
        requirements[asked[:end].strip()] = asked[end:].strip()
    return requirements


def _all_libraries(tasks: Sequence[str], answer: Answer) -> Answer:
    """The answer of the probe of libraries, asked again for what is left after a task that crashed or hung."""
    said = list(answer.said)
    left = list(tasks)
    while answer.end:
        begun = [line["begin"] for line in answer.said if "begin" in line]
        if not begun:
            break  # Python itself doesn't start
        left = left[left.index(begun[-1]) + 1 :]
        said.append({"library": begun[-1], "error": f"import {answer.end}"})
        if not left:
            break
        with ask("libraries", *left) as wait:
            answer = wait(PROBE_SECONDS)
        said += answer.said
    return Answer(tuple(said), answer.end)


def _installation(requirements: Mapping[str, str], answer: Answer) -> list[Finding]:
    python = f"{platform.python_version()} ({sys.executable})"
    found = [_finding("installation", "python", "ok", python, version=platform.python_version(), path=sys.executable)]
    here = str(Path(alphafuse.__file__).parent)
    if requirements:
        found.append(_finding("installation", "alphafuse", "ok", f"{alphafuse.__version__} ({here})", path=here))
    else:
        line = f"{alphafuse.__version__} in {here} is not installed: what it needs is unknown"
        found.append(_finding("installation", "alphafuse", "note", line, mend="pip install alphafuse", path=here))
    versions = {name: _version(name) for name in requirements}
    errors = {line["library"]: line["error"] for line in answer.said if "library" in line}
    broken = {name: error for name, error in errors.items() if error and name in requirements}
    found += _torch_pair(requirements, versions, broken)
    others = {name: version for name, version in versions.items() if name not in ("torch", "torchaudio")}
    for name, version in others.items():
        mend = f'pip install --upgrade "{name}{requirements[name]}"'
        if not version:
            found.append(_finding("installation", name, "problem", f"{name} is not installed", mend=mend))
        elif not _satisfies(version, requirements[name]):
            line = f"{name} {version} is installed, needed is {name}{requirements[name]}"
            found.append(_finding("installation", name, "problem", line, mend=mend, version=version))
        elif name in broken:
            mend = f'pip install --force-reinstall "{name}{requirements[name]}"'
            line = f"{name} {version} can't be imported: {broken[name]}"
            found.append(_finding("installation", name, "problem", line, mend=mend, version=version))
    bad = {finding.name for finding in found if finding.status == "problem"}
    good = {name: version for name, version in others.items() if name not in bad}
    if good:
        line = ", ".join(f"{name} {version}" for name, version in good.items())
        found.append(_finding("installation", "libraries", "ok", line, versions=good))
    for name, (extra, use) in EXTRAS.items():
        version = _version(name)
        line = f"{name} {version}, for {use}" if version else f"{name} is not installed; only {use} needs it"
        mend = "" if version else f"pip install 'alphafuse[{extra}]'"
        found.append(_finding("installation", name, "ok" if version else "note", line, mend=mend, version=version))
    return found


def _torch_pair(
    requirements: Mapping[str, str], versions: Mapping[str, str], broken: Mapping[str, str]
) -> Iterable[Finding]:
    """torch and torchaudio, which have to fit together: the commonest of broken installations."""
    pair = [name for name in ("torch", "torchaudio") if name in requirements]
    both = " ".join(f'"{name}{requirements[name]}"' for name in pair)
    mend = f"pip install --force-reinstall {both}"
    facts = {name: versions[name] for name in pair}
    shown = " and ".join(f"{name} {versions[name] or '(missing)'}" for name in pair)
    lacking = [name for name in pair if not versions[name]]
    unfit = [name for name in pair if versions[name] and not _satisfies(versions[name], requirements[name])]
    if not pair:
        return []
    if lacking:
        line = f"{' and '.join(lacking)} not installed"
    elif "torch" in broken:
        line = f"torch {versions['torch']} can't be imported: {broken['torch']}"
    elif unfit:
        line = f"{shown}: needed is {both.replace(chr(34), '')}"
    elif "torchaudio" in broken:
        line = f"{shown} don't fit together: {broken['torchaudio']}"
    else:
        return [_finding("installation", "torch", "ok", f"{shown} fit together", **facts)]
    return [_finding("installation", "torch", "problem", line, mend=mend, **facts)]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
    except Exception:  # metadata that can't be read
        return "?"


def _satisfies(version: str, asked: str) -> bool:
    """Whether a version is one that is asked for; True where that can't be told."""
    if not asked or importlib.util.find_spec("packaging") is None:
        return True
    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.version import InvalidVersion

    try:
        return SpecifierSet(asked.strip("()")).contains(version, prereleases=True)
    except (InvalidSpecifier, InvalidVersion):
        return True


def _environment(variables: Iterable[str]) -> list[Finding]:
    """Variables that are set and decide something, and those that look as if they did."""
    known = set(variables)
    ours = {name: value for name, value in os.environ.items() if name.startswith("ALPHAFUSE_")}
    shown = ours | {name: os.environ[name] for name in SHOWN_VARIABLES if os.environ.get(name)}
    shown |= {f"{kind}_proxy": "set" for kind in urllib.request.getproxies()}  # an address may hold a password
    found = []
    if shown:
        line = " ".join(f"{name}={value}" for name, value in sorted(shown.items()))
        found.append(_finding("installation", "environment", "ok", line, variables=shown))
    for name in sorted(ours if known else ()):
        if name not in known and not name.startswith("ALPHAFUSE_TEST_"):
            near = get_close_matches(name, known, n=1, cutoff=0.75)
            hint = f" (did you mean {near[0]}?)" if near else ""
            found.append(_finding("installation", name, "note", f"{name} is no option's variable{hint}"))
    return found


# ----------------------------------------------------------------------------------------------------------- machine


def _machine(answer: Answer) -> list[Finding]:
    torch, machine = answer["torch"], answer["machine"] or {}
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    cores = machine.get("cores") or _usable_cores()
    if torch is None:
        line = f"{cores} cores, {system}; what PyTorch makes of them is unknown without it"
        return [_finding("machine", "cpu", "note", line, cores=cores, system=system)]
    kernels, onednn = torch["cpu_capability"], torch["onednn"]
    cpu = machine.get("cpu", platform.machine())
    line = f"{cpu}, {cores} cores usable, {torch['threads']} threads; kernels for {kernels}"
    line += f", oneDNN {'present' if onednn else 'missing'}; {system}"
    slow = not onednn or kernels in ("DEFAULT", "NO AVX")
    facts = {"cpu": cpu, "cores": cores, "system": system, **{k: v for k, v in torch.items() if k != "cuda"}}
    found = [_finding("machine", "cpu", "note" if slow else "ok", line + ("; models will be slow" * slow), **facts)]
    if "free_gb" in machine:
        free, total, load = machine["free_gb"], machine["memory_gb"], machine["load"]
        little = free * 1e9 < LITTLE_MEMORY_BYTES
        line = f"{free:.1f} of {total:.1f} GB free" + (": little for the full-size encoders" if little else "")
        found.append(_finding("machine", "memory", "note" if little else "ok", line, free_gb=free, total_gb=total))
        if load is not None and load > cores:
            line = (
                f"{load:.1f} processes wanted the {cores} cores in the last minute: expect less than their full speed"
            )
            found.append(_finding("machine", "load", "note", line, load=load))
    found += _cuda(torch)
    return found


def _cuda(torch: Mapping[str, Any]) -> list[Finding]:
    for device in torch["cuda"]:
        device["bf16"] = bool(device["bf16"])
    if torch["cuda"]:
        return [
            _finding(
                "machine",
                f"cuda:{index}",
                "ok",
                f"{device['name']}, {device['free_bytes'] / 1e9:.1f} of {device['total_bytes'] / 1e9:.1f} GB free"
                + (", bf16" if device["bf16"] else ""),
                **device,
            )
            for index, device in enumerate(torch["cuda"])
        ]
    if Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi"):
        if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
            return [_finding("machine", "cuda", "note", "hidden by CUDA_VISIBLE_DEVICES")]
        built = f"is built for CUDA {torch['cuda_built']}" if torch["cuda_built"] else "is built for the CPU alone"
        line = f"an NVIDIA driver is here, but PyTorch {built} and finds no device it can use: see what nvidia-smi says"
        return [_finding("machine", "cuda", "problem", line, mend="nvidia-smi", built=torch["cuda_built"])]
    return [_finding("machine", "cuda", "ok", "none: everything runs on the CPU", built=torch["cuda_built"])]


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _codecs(answer: Answer) -> list[Finding]:
    codecs = answer["codecs"]
    if codecs is None:
        why = answer["codecs_error"] or "PyAV did not get that far"
        return [_finding("codecs", "decoders", "problem", f"unknown: {why}", mend="pip install --force-reinstall av")]
    there = [codec for codec, present in codecs["decoders"].items() if present]
    missing = [codec for codec in CODECS if codec not in there]
    needed = [codec for codec in missing if codec in NEEDED_CODECS]
    line = f"PyAV {_version('av')} (libavcodec {codecs['libavcodec']}) decodes {', '.join(there) or 'nothing'}"
    line += f"; not {', '.join(missing)}" if missing else ""
    status: Status = "problem" if needed else "note" if missing else "ok"
    mend = "pip install --force-reinstall av" if missing else ""  # its own files hold all of them
    return [_finding("codecs", "decoders", status, line, mend=mend, **codecs)]


# -------------------------------------------------------------------------------------------------------------- disk


def _disk(root: Path | None) -> list[Finding]:
    place = _existing(root or Path())
    found = [_free_space("space", place, mend="df -h")]
    cache = _hub_cache()
    if cache is not None:
        found.append(_free_space("hub cache", _existing(cache), mend="HF_HOME=/elsewhere alphafuse ..."))
    found.append(_locks(place, is_root=root is not None))
    return found


def _free_space(name: str, place: Path, *, mend: str) -> Finding:
    free = shutil.disk_usage(place).free
    little = free < LITTLE_DISK_BYTES
    line = f"{free / 1e9:.1f} GB free at {place.resolve()}" + (": little for weights and embeddings" if little else "")
    status: Status = "problem" if not free else "note" if little else "ok"
    return _finding("disk", name, status, line, mend=mend if not free else "", free_bytes=free)


def _locks(place: Path, *, is_root: bool) -> Finding:
    """Whether files can be written at a place, synced to the disk, and locked: what stage one's stores are built on."""
    from alphafuse.data.store.claims import Claims
    from alphafuse.errors import AlphafuseError
    from alphafuse.system.files import write_atomically

    try:
        with tempfile.TemporaryDirectory(prefix=".alphafuse-doctor-", dir=place) as folder:
            began = time.monotonic()
            write_atomically(Path(folder) / "synced", bytes(4096))
            milliseconds = 1000 * (time.monotonic() - began)
            with Claims(folder) as mine, Claims(folder) as other:
                locks = mine.is_shared and mine.claim(["clip"]) == ["clip"] and other.claim(["clip"]) == []
    except (OSError, AlphafuseError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        status: Status = "problem" if is_root else "note"
        line = f"can't write at {place.resolve()}: {' '.join(str(reason).split())}"
        return _finding("disk", "writing", status, line, mend=f"chmod u+rwx {place.resolve()}" if is_root else "")
    facts: dict[str, Any] = {"locks": locks, "write_milliseconds": round(milliseconds, 2)}
    if not locks:
        line = "no file locks here: run one extraction at a time, two would do the same clips twice"
        return _finding("disk", "writing", "note", line, **facts)
    line = f"a file is written, synced and renamed in {milliseconds:.1f} ms; locks let extractions share the work"
    return _finding("disk", "writing", "ok", line, **facts)


def _existing(place: Path) -> Path:
    """The place, or the nearest folder above it that exists."""
    place = place.absolute()
    return next((folder for folder in (place, *place.parents) if folder.is_dir()), Path(place.anchor))


def _hub_cache() -> Path | None:
    if importlib.util.find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


# ----------------------------------------------------------------------------------------------------------- weights


def _hub(*, offline: bool) -> list[Finding]:
    from huggingface_hub import constants

    from alphafuse.extract.encoders.hub import hub_reachable

    endpoint = constants.ENDPOINT
    if offline:
        why = "HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "--offline"
        return [_finding("weights", "hub", "ok", f"not asked ({why})", endpoint=endpoint, reachable=False)]
    began = time.monotonic()
    proxied = bool(urllib.request.getproxies())
    reachable = _asked_through_proxy(endpoint) if proxied else hub_reachable()
    facts: dict[str, Any] = {"endpoint": endpoint, "reachable": reachable}
    if reachable:
        line = f"{endpoint} answers in {1000 * (time.monotonic() - began):.0f} ms"
        return [_finding("weights", "hub", "ok", line, **facts)]
    line = f"{endpoint} can't be reached{' through the proxy' * proxied}: weights come from folders or the cache only"
    return [_finding("weights", "hub", "note", line, **facts)]


def _asked_through_proxy(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=5):
            return True
    except OSError as error:
        return getattr(error, "code", None) is not None  # an answer, if not the one hoped for


def _is_reachable(hub: Iterable[Finding]) -> bool:
    return any(finding.facts.get("reachable") for finding in hub)


def _weights(libraries: Answer, in_root: Answer | None, *, reachable: bool) -> list[Finding]:
    """The weights that are shipped, those that extraction takes by default, and those that the root names."""
    from alphafuse.extract.encoders.hub import COMPACT, COMPACT_FOLDER, weights_in

    shipped = {modality: weights_in(COMPACT_FOLDER / modality) for modality in ("timesformer", "ast")}
    missing = [modality for modality, file in shipped.items() if file is None]
    if missing:
        line = f"the {' and '.join(missing)} weights that are shipped are not there: the installation is incomplete"
        found = [_finding("weights", COMPACT, "problem", line, mend=REINSTALL)]
    else:
        size = sum(file.stat().st_size for file in shipped.values() if file) / 1e6
        found = [_finding("weights", COMPACT, "ok", f"TimeSformer and AST for the demo, shipped ({size:.1f} MB)")]
    defaults = libraries["defaults"] or {}
    for modality, name in defaults.items():
        found.append(_encoder(modality, modality, name, reachable=reachable, needed=False))
    dataset = in_root["dataset"] if in_root else None
    if in_root and dataset:
        stores = in_root["stores"]
        needed = not stores or any(store["done"] < store["clips"] for store in stores.values())
        for modality, name in dataset["encoders"].items():
            if name not in (COMPACT, defaults.get(modality)):
                found.append(_encoder(f"root's {modality}", modality, name, reachable=reachable, needed=needed))
    return found


def _encoder(title: str, modality: str, name: str, *, reachable: bool, needed: bool) -> Finding:
    """Whether an encoder can be had; `needed` when a root has clips that are yet to be embedded with it."""
    from alphafuse.errors import EncoderError
    from alphafuse.extract.encoders.hub import cached_weights, locate, weights_in

    lacking: Status = "problem" if needed else "note"
    mend = f"alphafuse convert {modality} FILE OUT"
    facts: dict[str, Any] = {"modality": modality, "encoder": name, "file": ""}
    try:
        source = locate(modality, name)
    except EncoderError as error:
        return _finding("weights", title, lacking, str(error), mend=mend, **facts)
    is_folder = Path(source).is_dir()
    file = weights_in(Path(source)) if is_folder else cached_weights(source)
    if file is not None:
        where = f"{source}" if is_folder else f"{name}, in the hub's cache"
        line = f"{where} ({file.stat().st_size / 1e6:.0f} MB)"
        return _finding("weights", title, "ok", line, **(facts | {"file": str(file)}))
    if is_folder:
        line = f"{source} has a config.json, but no weights"
        return _finding("weights", title, lacking, line, mend=mend, **facts)
    if reachable:
        return _finding("weights", title, "ok", f"{name}, loaded from the hub when it is first needed", **facts)
    line = f"{name} is not in the hub's cache: name a folder with --{modality}, made from the original checkpoint with"
    return _finding("weights", title, lacking, line, mend=mend, **facts)


# -------------------------------------------------------------------------------------------------------------- root


def _root(root: Path | None, answer: Answer | None) -> list[Finding]:
    if root is None:
        return []
    if answer is None:
        line = f"no dataset at {root} yet"
        return [_finding("root", "dataset", "note", line, mend=f"alphafuse data demo --root {root}")]
    if answer["error"]:
        return [_finding("root", "dataset", "problem", answer["error"], mend="alphafuse data --help")]
    found = []
    if answer["dataset"]:
        dataset = answer["dataset"]
        sizes = ", ".join(f"{split} {count}" for split, count in dataset["clips"].items())
        line = f"{dataset['name']} at {root}: {sum(dataset['clips'].values())} clips in {dataset['classes']} classes"
        found.append(_finding("root", "dataset", "ok", f"{line} ({sizes})", **dataset))
    stores = answer["stores"] or {}
    if answer["files"]:
        files = answer["files"]
        whole = files["there"] == files["looked_at"]
        line = f"{files['there']} of {files['looked_at']} clip files looked at are in {files['folder']}"
        mend = "" if whole else f"alphafuse extract --split all --dry-run --root {root}"
        found.append(_finding("root", "files", "ok" if whole else "note", line, mend=mend, **files))
    for split, store in stores.items():
        name, facts = f"store {split}", {"clips": store["clips"], "done": store["done"]}
        if store["error"]:
            mend = f"alphafuse store verify {root / 'stores' / split}"
            found.append(_finding("root", name, "problem", store["error"], mend=mend, **facts))
        elif store["done"] < store["clips"]:
            line = f"{store['done']} of {store['clips']} clips embedded"
            mend = f"alphafuse extract --split {split} --root {root}"
            found.append(_finding("root", name, "note", line, mend=mend, **facts))
        else:
            found.append(_finding("root", name, "ok", f"all {store['clips']} clips embedded", **facts))
    if answer["runs"] is not None:
        runs = answer["runs"]
        line = f"{len(runs)}: {', '.join(runs[:8])}{', ...' * (len(runs) > 8)}" if runs else "none yet"
        found.append(_finding("root", "runs", "ok", line, runs=runs))
    if answer.end:
        line = f"looking at {root} {answer.end}"
        found.append(_finding("root", "reading", "problem", line, mend=f"alphafuse data audit --root {root}"))
    return found


# --------------------------------------------------------------------------------------------------------- self test


def _self_test(answer: Answer, before: Iterable[Finding]) -> list[Finding]:
    seconds = answer["seconds"]
    if answer.end or seconds is None:
        step = next((line["step"] for line in reversed(answer.said) if "step" in line), "starting")
        line = f"clip -> embeddings failed while {step}: {answer.end or 'no reason given'}"
        cause = next((finding for finding in before if finding.status == "problem"), None)
        mend = cause.mend if cause else REINSTALL
        return [_finding("self test", "stage one", "problem", line, mend=mend, step=step)]
    work = sum(value for step, value in seconds.items() if step != "loading")
    line = f"clip -> embeddings -> store in {work:.2f} s; the compact encoders loaded in {seconds['loading']:.1f} s"
    return [_finding("self test", "stage one", "ok", line, seconds=seconds, dims=answer["dims"])]


def _finding(section: str, name: str, status: Status, line: str, /, *, mend: str = "", **facts: Any) -> Finding:
    return Finding(section, name, status, " ".join(line.split()), mend, facts)
