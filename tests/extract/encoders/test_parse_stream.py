"""Streams as they are typed: NAME=ENCODER[,option=value...]. No network: the hub can't be reached in tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.cli import Run, assert_one_line_error

from alphafuse.data.dataset import Dataset
from alphafuse.data.streams import DEFAULT_STREAMS, OPTIONS, Stream
from alphafuse.errors import AlphafuseError, DatasetError, EncoderError
from alphafuse.extract.encoders.families import load_encoder, parse_stream


def test_the_name_of_a_default_stream_is_that_stream() -> None:
    assert tuple(parse_stream(stream.name) for stream in DEFAULT_STREAMS) == DEFAULT_STREAMS
    assert parse_stream("ast,protocol=notebook").options == {"protocol": "notebook"}


def test_the_medium_is_what_the_encoder_embeds_or_the_option(tiny_encoders: dict[str, Path]) -> None:
    assert parse_stream(f"a={tiny_encoders['ast']}").medium == "audio"
    assert parse_stream(f"v={tiny_encoders['timesformer']}").medium == "video"
    assert parse_stream("x=owner/name,medium=audio,frames=4") == Stream("x", "owner/name", "audio", {"frames": "4"})
    assert parse_stream("x=my.module:name,frames=4") == Stream("x", "my.module:name", "video", {"frames": "4"})
    assert parse_stream("x=my.module:name,rate=8000").medium == "audio"
    assert parse_stream("x=m:f,medium=audio,anything=goes").options == {"anything": "goes"}  # a factory decides
    assert parse_stream("x=given,medium=video") == Stream("x", "given", "video")


def test_an_option_may_be_repeated_by_no_other_spelling_of_a_stream() -> None:
    stream = Stream("b-2", "owner/name", "video", {"pool": "mean", "frames": "4"})
    assert [*stream.options] == ["frames", "pool"]
    assert parse_stream(f"{stream!r},medium=video".replace("Stream(", "").replace(")", "")) == stream
    assert Stream.from_json(json.loads(json.dumps(stream.to_json()))) == stream


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is no stream: write NAME=ENCODER"),
        ("clap", "'clap' is no stream: write NAME=ENCODER"),
        ("=owner/name", "is no stream"),
        ("clap=", "is no stream"),
        ("clap=owner/name,frames", "is no stream"),
        ("clap=owner/name,frames=", "is no stream"),
        ("Clap=owner/name", "'Clap' can't name a stream: use up to 40 of a-z, 0-9 and '-', a letter first"),
        ("2d=owner/name", "can't name a stream"),
        ("a_b=owner/name", "can't name a stream"),
        (f"{'a' * 41}=owner/name", "can't name a stream"),
        ("../up=owner/name", "can't name a stream"),
        ("all=owner/name", "'all' can't name a stream, because the word is taken"),
        ("fused=owner/name", "the word is taken"),
        ("x=owner/name,frame=4", "stream x: unknown option 'frame' (did you mean 'frames'?)"),
        ("x=owner/name,medium=smell", "unknown medium 'smell': choose from video, audio, sight, sound"),
        ("ast,protocol=mine", "unknown protocol 'mine'"),
        ("x=compact", "say what stream x embeds: --stream x=compact,medium=sight (or sound)"),
        ("x=given", "say what stream x embeds"),
        ("x=owner/nothing", "the hub can't be reached, so say what stream x embeds"),
        ("x=./nothing", "no such folder for x: './nothing'"),
    ],
)
def test_mistakes_are_one_line(text: str, said: str) -> None:
    with pytest.raises(AlphafuseError) as raised:
        parse_stream(text)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_every_option_is_known_to_the_parser() -> None:
    for option in OPTIONS:
        value = {"medium": "video", "protocol": "notebook"}.get(option, "1")
        parse_stream(f"x=owner/name,medium=video,{option}={value}")


def test_an_encoder_of_another_medium_is_refused(tiny_encoders: dict[str, Path]) -> None:
    folder = str(tiny_encoders["timesformer"])
    for made in (lambda: parse_stream(f"x={folder},medium=audio"), lambda: load_encoder(Stream("x", folder, "audio"))):
        with pytest.raises(EncoderError, match="embeds video, and stream x is audio: give it another encoder"):
            made()


def test_an_option_that_the_family_lacks_is_refused(tiny_encoders: dict[str, Path]) -> None:
    folder, options = str(tiny_encoders["timesformer"]), {"frames": "3"}
    for made in (
        lambda: parse_stream(f"x={folder},frames=3"),
        lambda: load_encoder(Stream("x", folder, "video", options)),
    ):
        with pytest.raises(EncoderError, match="stream x: unknown option 'frames'"):
            made()


def test_a_hub_id_that_cannot_be_reached_is_one_line() -> None:
    with pytest.raises(
        EncoderError, match="the hub can't be reached and 'owner/nothing' is not in its cache"
    ) as raised:
        load_encoder(parse_stream("x=owner/nothing,medium=video"))
    assert "\n" not in str(raised.value)


def test_code_of_a_model_folder_is_never_run(
    tiny_encoders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(tiny_encoders["ast"], folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard-of", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    monkeypatch.chdir(tmp_path)
    for trust in (False, True):
        with pytest.raises(EncoderError):
            load_encoder(parse_stream(f"x={folder},medium=audio"), trust_code=trust)
    assert not Path("ran").exists()


def test_commands_refuse_two_streams_of_one_name(make_root: Callable[..., Path], run: Run) -> None:
    dataset = Dataset.open(make_root())
    two = ("--stream", "x=compact,medium=audio", "--stream", "x=compact,medium=video")
    command = ("data", "folder", dataset.clip_folder, "--root", dataset.root)
    assert_one_line_error(run(*command, *two), "two streams are named 'x': give each a name of its own")
    with pytest.raises(DatasetError, match="two streams are named 'ast'"):
        dataset.with_streams([*dataset.streams, Stream("ast", "compact", "audio")])
    with pytest.raises(DatasetError, match="at least one stream is needed"):
        dataset.with_streams([])
