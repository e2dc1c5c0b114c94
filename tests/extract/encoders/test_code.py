"""Encoders that are Python code: what they compute, what they may do, and what their mistakes look like."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.cli import Run, assert_one_line_error
from support.clips import write_clip

from alphafuse.data.dataset import Dataset
from alphafuse.data.embeddings import Failure
from alphafuse.data.sources.given import import_embeddings
from alphafuse.data.streams import Stream
from alphafuse.errors import AlphafuseError, ClipError, ClusterError, DatasetError, EncoderError, RecipeMismatchError
from alphafuse.extract.decoding.decode import decode_clip
from alphafuse.extract.encoders.encoder import Encoder, Placement, place
from alphafuse.extract.encoders.families import load_encoder, parse_stream
from alphafuse.extract.engines.embedder import NOT_FINITE, embed_batch
from alphafuse.extract.engines.ray_stages import ship_encoders
from alphafuse.extract.pipeline import extract_embeddings
from alphafuse.extract.recheck import resample
from alphafuse.extract.settings import ExtractSettings

MakeRoot = Callable[..., Path]
EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"
SETTINGS = ExtractSettings(device="cpu", workers=1, trust_code=True)

PLAIN = """
import numpy as np

def colour(frames):
    assert frames.dtype == np.uint8 and frames.ndim == 4
    return frames.mean((0, 1, 2))

def loudness(samples):
    assert samples.dtype == np.float32 and samples.ndim == 1
    return np.array([np.abs(samples).mean(), len(samples)])
"""
FACTORY = """
import numpy as np
from alphafuse import FrameSpec

class Corner:
    dim = 3

    def __init__(self, device, side):
        self.device, self.spec = device, FrameSpec(frames=2, shortest_edge=int(side), crop=(16, 16))
        self.recipe = {"weights_sha256": "a" * 64, "side": int(side), "mean": (0.5, 0.5), "protocol": "mine"}

    def embed(self, windows):
        return np.stack([window[:, 0, 0].mean(0) for window in windows])

def corner(device, side="32"):
    return Corner(device, side)
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Write a module into the current folder; return its name. It is forgotten afterwards."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    names: list[str] = []

    def write_module(text: str, name: str = "mine") -> str:
        sys.modules.pop(name, None)
        (folder / f"{name}.py").write_text(text)
        names.append(name)
        return name

    yield write_module
    for name in names:
        sys.modules.pop(name, None)


def load(text: str, **how: object) -> Encoder:
    return load_encoder(parse_stream(text), trust_code=True, **how)  # type: ignore[arg-type]


def root_with(make_root: MakeRoot, *texts: str, **clips: object) -> Dataset:
    return Dataset.open(make_root(**clips)).with_streams([parse_stream(text) for text in texts])


# ------------------------------------------------------------------------------------------------- what they compute


def test_plain_functions_get_frames_as_decoded_and_samples_at_their_rate(
    make_root: MakeRoot, write: Callable[..., str]
) -> None:
    write(PLAIN)
    texts = ("colour=mine:colour,frames=3", "loud=mine:loudness,rate=8000", "soon=mine:loudness,rate=8000,seconds=1")
    dataset = root_with(make_root, *texts)
    (report,) = extract_embeddings(dataset, ["test"], SETTINGS)
    assert report.embedded == {"colour": 4, "loud": 4, "soon": 4}
    stored = dataset.embeddings("test")
    for row, clip in enumerate(dataset.manifest.of_split("test")):
        decoded = decode_clip(dataset.path_of(clip), frames=3, rate=8000)
        assert decoded.frames is not None and decoded.waveform is not None
        np.testing.assert_allclose(stored.features["colour"][row], decoded.frames.mean((0, 1, 2)), rtol=1e-6)
        assert stored.features["loud"][row, 1] == len(decoded.waveform) > 8000 == stored.features["soon"][row, 1]
    assert stored.recipes["colour"]["function"] == "colour" and stored.recipes["colour"]["frames"] == 3
    assert extract_embeddings(dataset, ["test"], SETTINGS)[0].already == 4  # resumed: the recipe is the same


def test_a_change_of_the_source_is_another_recipe(make_root: MakeRoot, write: Callable[..., str]) -> None:
    write(PLAIN)
    dataset = root_with(make_root, "colour=mine:colour,frames=3")
    extract_embeddings(dataset, ["test"], SETTINGS)
    write(PLAIN + "# a comment\n")
    with pytest.raises(RecipeMismatchError, match="another colour weights_sha256"):
        extract_embeddings(dataset, ["test"], SETTINGS)


def test_a_factory_gets_device_and_options_and_its_recipe_is_kept(
    make_root: MakeRoot, write: Callable[..., str]
) -> None:
    write(FACTORY)
    dataset = root_with(make_root, "corner=mine:corner,medium=video,side=24")
    extract_embeddings(dataset, ["test"], SETTINGS)
    stored = dataset.embeddings("test")
    recipe = stored.recipes["corner"]
    assert recipe["weights_sha256"] == "a" * 64 and recipe["code.side"] == 24 and recipe["code.mean"] == [0.5, 0.5]
    assert recipe["shortest_edge"] == 24 and recipe["mean"] == [0.45] * 3 and recipe["family"] == "code"
    assert stored.features["corner"].shape == (4, 3)


def test_precision_and_compilation_are_left_to_the_code(write: Callable[..., str]) -> None:
    write(FACTORY)
    stream = parse_stream("corner=mine:corner,medium=video").with_options(precision="fp32")  # as predict does
    encoder = load_encoder(stream, Placement(precision="bf16"), trust_code=True)
    assert encoder.recipe()["precision"] == "fp32"
    compiled = place(encoder, "cpu", compile=True)
    frames = np.full((2, 16, 16, 3), 7, np.uint8)
    np.testing.assert_array_equal(compiled.embed([frames]), [[7, 7, 7]])
    with pytest.raises(EncoderError, match="leave out the option precision"):
        load_encoder(stream.with_options(precision="bf16"), trust_code=True)


def test_another_device_calls_the_factory_again(write: Callable[..., str]) -> None:
    write(FACTORY)
    moved = place(load("corner=mine:corner,medium=video"), "meta")
    assert moved.model._code.embed.__self__.device == "meta"  # type: ignore[union-attr]
    plain = load(f"colour={write(PLAIN, 'plain')}:colour,frames=2")
    assert place(plain, "meta").model is plain.model


def test_any_array_library_may_make_the_embedding(write: Callable[..., str]) -> None:
    write("import torch\ndef embed(frames): return torch.ones(4, dtype=torch.bfloat16, requires_grad=True)")
    encoder = load("x=mine:embed,frames=1")
    made = encoder.embed([np.zeros((1, 8, 8, 3), np.uint8)] * 2)
    assert made.dtype == np.float32 and made.shape == (2, 4)


def test_imports_inside_of_functions_find_the_current_folder_and_the_path_is_restored(
    write: Callable[..., str],
) -> None:
    write("def size(): return 5", "helper_of_mine")
    write("import numpy\ndef embed(frames):\n    import helper_of_mine\n    return numpy.ones(helper_of_mine.size())")
    before = list(sys.path)
    assert load("x=mine:embed,frames=1").dim == 5
    assert sys.path == before


# -------------------------------------------------------------------------------------------------------- other places


@pytest.mark.slow
def test_code_is_pickled_by_name_and_a_machine_without_it_says_so(write: Callable[..., str], tmp_path: Path) -> None:
    write(FACTORY)
    pickled, arrays = ship_encoders({"corner": load("corner=mine:corner,medium=video")})
    assert arrays == [] and len(pickled) < 5000
    (tmp_path / "shipped").write_bytes(pickled)
    program = """if True:
        import sys
        from pathlib import Path
        import numpy as np
        from alphafuse.errors import ClusterError
        from alphafuse.extract.engines.ray_stages import unship_encoders
        try:
            encoders = unship_encoders((Path(sys.argv[1]).read_bytes(), []))
            print(encoders["corner"].embed([np.full((2, 16, 16, 3), 7, np.uint8)]).tolist())
        except ClusterError as error:
            print(error)
    """

    def elsewhere() -> str:
        command = [sys.executable, "-P", "-c", program, str(tmp_path / "shipped")]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert elsewhere() == "[[7.0, 7.0, 7.0]]"
    write(FACTORY.replace('"a" * 64', '"b" * 64'))
    said = elsewhere()
    assert "\n" not in said and "has another version of mine:corner" in said
    Path("mine.py").unlink()
    said = elsewhere()
    assert "\n" not in said and "lacks the code of a stream" in said and "no module 'mine'" in said


@pytest.mark.cluster
def test_ray_computes_the_same_and_says_in_one_line_that_a_machine_lacks_the_code(
    make_root: MakeRoot, write: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from alphafuse.extract.engines import ray as ray_engine

    write(PLAIN + FACTORY)
    texts = ("colour=mine:colour,frames=2", "corner=mine:corner,medium=video", "loud=mine:loudness,rate=8000")
    local = root_with(make_root, *texts, name="local")
    extract_embeddings(local, ["test"], SETTINGS)
    on_ray = root_with(make_root, *texts, name="ray")
    settings = replace(SETTINGS, engine="ray", models=1)
    extract_embeddings(on_ray, ["test"], settings)
    found, expected = (dataset.embeddings("test").features for dataset in (on_ray, local))
    for stream in expected:
        np.testing.assert_array_equal(found[stream], expected[stream])

    def ship(encoders: Mapping[str, Encoder]) -> object:
        shipped = ship_encoders(encoders)
        Path("mine.py").unlink()
        return shipped

    monkeypatch.setattr(ray_engine, "ship_encoders", ship)
    with pytest.raises(ClusterError, match="lacks the code of a stream") as raised:
        extract_embeddings(on_ray, ["train"], settings)
    assert "\n" not in str(raised.value)


# ------------------------------------------------------------------------------------------------------------ failures


BAD = """
import numpy as np

def embed(samples):
    loud = len(samples) and np.abs(samples).max() > 0.01
    if loud and {condition}:
        {action}
    return np.ones(2)
"""


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("raise ValueError('too\\nloud')", "mine:embed raised ValueError: too loud"),
        ("return np.ones(3)", "the code returned an array of shape (3,) instead of (2,)"),
        ("return None", "the code returned None instead of an array of numbers"),
        ("return np.array([1, np.nan])", NOT_FINITE),
    ],
)
def test_a_stream_of_a_clip_fails_alone(
    make_root: MakeRoot, write: Callable[..., str], action: str, reason: str
) -> None:
    write(BAD.format(condition="len(samples) > 17000", action=action) + PLAIN)
    texts = ("bad=mine:embed,rate=8000", "colour=mine:colour,frames=2")
    dataset = root_with(make_root, *texts)
    clips = dataset.manifest.of_split("test")
    write_clip(dataset.path_of(clips[1]), seconds=2.5)  # the others last 2 seconds
    (report,) = extract_embeddings(dataset, ["test"], SETTINGS)
    assert report.failures == (Failure(clips[1].clip_id, "bad", reason),)
    assert report.embedded == {"bad": 3, "colour": 4}
    assert dataset.embeddings("test").present("bad").tolist() == [True, False, True, True]


def test_in_a_batch_only_the_clip_that_fails_is_lost(write: Callable[..., str]) -> None:
    write(BAD.format(condition="samples[0] > 0.5", action="raise ValueError('loud')"))
    encoder = load("bad=mine:embed,rate=8000")
    with pytest.raises(ClipError, match="raised ValueError: loud"):
        encoder.embed([np.ones(9, np.float32)])
    from alphafuse.data.manifest import Clip
    from alphafuse.extract.decoding.specs import Inputs
    from alphafuse.extract.jobs import Job

    levels = (0.1, 1.0, 0.2)
    jobs = [
        (
            Job(Clip(str(i), "-", "-", "test", "-"), Path("-"), ("bad",)),
            Inputs({"bad": np.full(9, level, np.float32)}, {}),
        )
        for i, level in enumerate(levels)
    ]
    batch = embed_batch({"bad": encoder}, jobs)
    assert np.isfinite(batch.rows["bad"]).all(1).tolist() == [True, False, True]
    assert batch.failures == (Failure("1", "bad", "mine:embed raised ValueError: loud"),)


MISTAKES = {
    "nothing:embed,frames=1": "there is no module 'nothing' in the current folder",
    "mine.inside:embed,frames=1": "there is no module 'mine.inside'",
    "lacking:embed,frames=1": "can't be imported (ModuleNotFoundError: No module named 'not_installed')",
    "broken:embed,frames=1": "can't be imported (ZeroDivisionError: division by zero)",
    "mine:colours,frames=1": "unknown name 'colours' (did you mean 'colour'?)",
    "mine:CONSTANT,frames=1": "is a int, which can't be called",
    "mine:colour,medium=video": "needs the stream's option frames=N",
    "mine:colour,frames=0": "option frames must be a whole number from 1 to 1024, not '0'",
    "mine:colour,frames=x": "option frames must be a whole number",
    "mine:colour,frames=2,seconds=3": "unknown option 'seconds'",
    "mine:loudness,rate=8000,seconds=1.5": "option seconds must be a whole number",
    "mine:fails,frames=2": "can't embed black frames of shape (2, 480, 640, 3): it raised RuntimeError: no",
    "mine:fails,rate=16": "can't embed samples of silence of shape (960,): it raised RuntimeError: no",
    "mine:scalar,frames=2": "array of shape () instead of (dim,)",
    "mine:matrix,frames=2": "array of shape (1, 2) instead of (dim,)",
    "mine:words,frames=2": "returned 'word' instead of an array of numbers",
    "mine:factory,medium=video,side=3": "doesn't take the stream's options (side): ",
    "mine:none,medium=video": "returns a NoneType without spec, dim, recipe, embed",
    "mine:failing,medium=video": "raised OSError: no weights: mend it",
    "mine:factory,medium=audio": "embeds video, and the stream is audio: give the option medium=video",
    "mine:no_hash,medium=video": "has a recipe without 'weights_sha256'",
    "mine:no_json,medium=video": "has a recipe that json can't hold",
    "mine:no_dim,medium=video": "has dim '3'",
    "mine:no_spec,medium=video": "has a dict as spec",
    "mine:wrong_dim,medium=video": "array of shape (1, 3) instead of (1, 4)",
    "mine:len,frames=1": "array of shape () instead of (dim,)",
    "math:sqrt,frames=1": "can't embed black frames",
}
MODULE = (
    PLAIN
    + """
from alphafuse import FrameSpec

CONSTANT = 1
len = len
def fails(x): raise RuntimeError("no")
def scalar(x): return 1.0
def matrix(x): return [[1, 2]]
def words(x): return "word"

class Made:
    spec, dim, recipe = FrameSpec(frames=1), 3, {"weights_sha256": "a"}
    def embed(self, windows): return np.ones((1, 3))
    def __init__(self, **changes): vars(self).update(changes)

def factory(device): return Made()
def none(device): return None
def failing(device): raise OSError("no weights")
def no_hash(device): return Made(recipe={})
def no_json(device): return Made(recipe={"weights_sha256": "a", "x": np.ones(2)})
def no_dim(device): return Made(dim="3")
def no_spec(device): return Made(spec={})
def wrong_dim(device): return Made(dim=4)
"""
)


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes_are_one_line(write: Callable[..., str], text: str) -> None:
    write(MODULE)
    write("import not_installed", "lacking")
    write("1 / 0", "broken")
    with pytest.raises(EncoderError) as raised:
        load(f"x={text}")
    message = str(raised.value)
    assert MISTAKES[text] in message and "\n" not in message and message.startswith("stream x: "), message


# --------------------------------------------------------------------------------------------------------------- trust


@pytest.mark.slow
def test_no_command_imports_code_that_is_not_trusted(
    make_root: MakeRoot, write: Callable[..., str], run: Run, tmp_path: Path
) -> None:
    write("from pathlib import Path\nPath('ran').touch()\n" + PLAIN)
    dataset = root_with(make_root, "colour=mine:colour,frames=2")
    root = dataset.root
    clips = dataset.clip_folder
    refused = [
        ("extract", "--split", "test"),
        ("extract", "--split", "test", "--dry-run"),
        ("extract", "--split", "test", "--device", "cpu,cpu"),
    ]
    for command in refused:
        assert_one_line_error(run(*command, "--root", root), "mine:colour", "--trust-code")
    code, _, err = run("data", "streams", "--root", root, "--add", "other=mine:loudness,rate=8000")
    assert code == 0, err
    listed = clips.parent / "labels.csv"
    listed.write_text("path,label\n" + "".join(f'{clip.path},"{clip.label}"\n' for clip in dataset.manifest))
    code, _, err = run(
        "data", "folder", clips, "--csv", listed, "--root", tmp_path / "new", "--stream", "colour=mine:colour,frames=2"
    )
    assert code == 0, err
    run("doctor", "--root", root)
    assert not Path("ran").exists()

    assert run("extract", "--split", "all", "--root", root, "--trust-code")[0] == 0
    assert Path("ran").exists()
    Path("ran").unlink()
    sys.modules.pop("mine")
    store = dataset.store("test").folder
    assert run("store", "verify", store)[0] == 0
    assert_one_line_error(run("store", "verify", store, "--resample", "2"), "mine:colour", "--trust-code")
    assert run("data", "audit", "--root", root, "--no-decode")[0] == 0
    assert not Path("ran").exists()
    assert run("store", "verify", store, "--resample", "2", "--trust-code")[0] == 0


def test_a_bundle_that_names_code_predicts_only_with_trust(
    make_root: MakeRoot, write: Callable[..., str], run: Run
) -> None:
    write("from pathlib import Path\nPath('ran').touch()\n" + PLAIN)
    dataset = root_with(make_root, "colour=mine:colour,frames=2", "loud=mine:loudness,rate=8000")
    extract_embeddings(dataset, ["train", "val", "test"], SETTINGS)
    Path("ran").unlink()
    sys.modules.pop("mine")
    assert run("fit", "--root", dataset.root, "--epochs", "1")[0] == 0
    (made,) = (dataset.root / "runs").iterdir()
    assert run("export", made, "bundle")[0] == 0
    assert run("export", made, "with-encoders", "--with-encoders")[0] == 0
    clip = dataset.path_of(dataset.manifest[0])
    assert_one_line_error(run("predict", clip, "--run", "bundle"), "--trust-code")
    assert not Path("ran").exists()
    code, out, err = run("predict", clip, "--run", "bundle", "--trust-code", "--json")
    assert code == 0 and json.loads(out), err


# ------------------------------------------------------------------------------------------------ documented examples


def test_the_example_from_timm_equals_timm(make_root: MakeRoot, write: Callable[..., str]) -> None:
    timm = pytest.importorskip("timm")
    from PIL import Image

    text = (EXAMPLES / "timm_encoder.py").read_text()
    assert text.count("pretrained=True") == 1  # the weights are on the hub; here they are random
    write(text.replace("model = timm", "torch.manual_seed(0)\nmodel = timm").replace("=True", "=False"), "timm_encoder")
    dataset = root_with(make_root, "vit=timm_encoder:vit,frames=4")
    extract_embeddings(dataset, ["test"], SETTINGS)
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0).eval()
    for clip, row in zip(dataset.manifest.of_split("test"), dataset.embeddings("test").features["vit"], strict=True):
        frames = decode_clip(dataset.path_of(clip), frames=4).frames
        assert frames is not None
        side = (248 * frames.shape[2] // frames.shape[1], 248)  # timm: short side 224 / 0.9, bicubic
        left, top = (side[0] - 224) // 2, 12
        pixels = [
            np.asarray(Image.fromarray(one).resize(side, Image.Resampling.BICUBIC))[top : top + 224, left : left + 224]
            for one in frames
        ]
        normal = (torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
        with torch.no_grad():
            expected = model(normal).mean(0).numpy()
        np.testing.assert_allclose(row, expected, atol=1e-3)


def test_the_example_from_onnx_equals_the_exported_model(make_root: MakeRoot, write: Callable[..., str]) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    write((EXAMPLES / "onnx_encoder.py").read_text(), "onnx_encoder")
    kernel = np.random.default_rng(0).normal(size=(6, 1, 400)).astype(np.float32)
    node, tensor = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            node("Unsqueeze", ["samples", "one"], ["channel"]),
            node("Conv", ["channel", "kernel"], ["bands"], strides=[160]),
            node("Relu", ["bands"], ["positive"]),
            node("ReduceMean", ["positive", "last"], ["embedding"], keepdims=0),
        ],
        "sound",
        [tensor("samples", onnx.TensorProto.FLOAT, ["clips", "samples"])],
        [tensor("embedding", onnx.TensorProto.FLOAT, ["clips", 6])],
        [
            onnx.numpy_helper.from_array(kernel, "kernel"),
            onnx.numpy_helper.from_array(np.array([1], np.int64), "one"),
            onnx.numpy_helper.from_array(np.array([2], np.int64), "last"),
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, "sound.onnx")
    dataset = root_with(make_root, "sound=onnx_encoder:sound,medium=audio,file=sound.onnx")
    extract_embeddings(dataset, ["test"], SETTINGS)
    for clip, row in zip(dataset.manifest.of_split("test"), dataset.embeddings("test").features["sound"], strict=True):
        waveform = decode_clip(dataset.path_of(clip), frames=1).waveform
        assert waveform is not None
        windows = np.lib.stride_tricks.sliding_window_view(waveform, 400)[::160]
        expected = np.maximum(windows @ kernel[:, 0].T, 0).mean(0)
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------------------------- texts


def test_a_stream_may_be_named_like_a_default_one(write: Callable[..., str]) -> None:
    write(PLAIN)
    assert load("ast=mine:loudness,rate=8000").stream == Stream("ast", "mine:loudness", "audio", {"rate": "8000"})


@pytest.mark.parametrize("text", ["x=mine:colour", "x=mine:colour,frames=1,rate=2"])
def test_code_must_say_its_medium(text: str) -> None:
    with pytest.raises(AlphafuseError, match="say what stream x embeds"):
        parse_stream(text)


def test_verify_extracts_again_only_what_was_extracted_and_is_a_stream_of_the_root(
    make_root: MakeRoot, write: Callable[..., str], tmp_path: Path
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    write(PLAIN)
    dataset = root_with(make_root, "colour=mine:colour,frames=2", "loud=mine:loudness,rate=8000")
    extract_embeddings(dataset, ["test"], SETTINGS)
    ids = [clip.clip_id for clip in dataset.manifest]
    parquet.write_table(pyarrow.table({"clip_id": ids, "video": [[1.0]] * len(ids)}), tmp_path / "x.parquet")
    dataset = import_embeddings(tmp_path / "x.parquet", dataset.root).dataset
    dataset = dataset.with_streams([stream for stream in dataset.streams if stream.name != "loud"])
    again = resample(dataset, "test", 4, SETTINGS)
    assert {one.stream for one in again.differences} == {"colour"} and again.largest == 0
    given = dataset.with_streams([dataset.stream("video")])
    with pytest.raises(DatasetError, match="were given, not extracted"):
        resample(given, "test", 4, SETTINGS)
