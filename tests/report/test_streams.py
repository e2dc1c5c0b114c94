"""Any streams from clips to a page: two of video and one of audio, none of them a default one; and one alone.

The commands run in order on one root: extract, fit, sweep, compare, then predict --why and report.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure
from support.browser import keep_screenshot, running_chromium, wait_until
from support.clips import write_clip

from alphafuse.cli.main import cli
from alphafuse.data.dataset import Dataset
from alphafuse.data.manifest import Clip, Manifest
from alphafuse.data.streams import Stream
from alphafuse.report.contents import Absent, Report, Vote, Votes
from alphafuse.report.looks import looks_of, roles_of
from alphafuse.report.page.build import build_report
from alphafuse.report.page.html import render_page
from alphafuse.report.page.votes import finding_of

EYE = Stream("eye", "compact", "video")
SQUARE = Stream("square-eye", "compact", "video", {"protocol": "notebook"})
EAR = Stream("ear", "compact", "audio")
QUICK = ("--seeds", "1", "--epochs", "3", "--hidden", "16")
LABELS = ("dog", "cat", "owl")


def command(*arguments: object) -> str:
    """Run a command, which must succeed; return what it prints."""
    found = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert found.exit_code == 0, (arguments, found.output, found.exception)
    return found.stdout


def make_root(root: Path, *streams: Stream) -> Path:
    """Make a root of 18 small clips, extract it, and train some heads."""
    clips = []
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        for number in range(count):
            for look, label in enumerate(LABELS):
                name = f"{split}{number}{look}_000000"
                write_clip(root / "clips" / f"{name}.mp4", look=7 * look + number)
                clips.append(Clip(name, f"{name}.mp4", label, split, name.partition("_")[0]))
    Dataset.create(root, Manifest(clips), name=root.name, clip_folder=root / "clips", classes=LABELS, streams=streams)
    command("extract", "--split", "all", "--root", root, "--workers", 1)
    command("fit", "--root", root, *QUICK)
    for stream in streams if len(streams) > 1 else ():
        command("fit", "--stream", stream.name, "--root", root, *QUICK)
    on = [stream.name for stream in streams] + ["all"] * (len(streams) > 1)
    command("sweep", "--on", ",".join(on), "--alpha", "0.5,1", "--root", root, *QUICK)
    command("compare", "--root", root, *QUICK)
    return root


@pytest.fixture(scope="module")
def three(made_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    return made_once("three-streams", lambda folder: void(make_root(folder / "three", SQUARE, EAR, EYE))) / "three"


@pytest.fixture(scope="module")
def one(made_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    return made_once("one-stream", lambda folder: void(make_root(folder / "one", EAR))) / "one"


@pytest.fixture(scope="module")
def built(three: Path) -> tuple[Report, dict[str, Figure]]:
    return build_report(Dataset.open(three))


@pytest.fixture(scope="module")
def html(built: tuple[Report, dict[str, Figure]]) -> str:
    return render_page(*built)


def void(_: object) -> None:
    """Drop a result."""


def predicted(root: Path, *arguments: object) -> str:
    clip = sorted((root / "clips").glob("test*.mp4"))[0]
    return command("predict", clip, "--root", root, "--run", root / "runs" / "untransformed", *arguments)


def test_three_streams_are_explained_by_sense_and_name(three: Path) -> None:
    (clip,) = json.loads(predicted(three, "--why", "--json"))["clips"]
    why = clip["why"]
    assert set(why["blanked"]) == set(why["along"]) == {"ear", "eye", "square-eye"}
    assert why["shares"] is None and why["no_shares"].startswith("these heads never learned to miss several streams")
    text = predicted(three, "--why")
    for words in ("audio muted", "video (eye) black", "video (square-eye) black", "    all ", "square-eye x alpha"):
        assert words in text
    assert all(word not in text for word in ("TimeSformer", "AST", "both"))


def test_one_stream_is_explained_by_its_sense(one: Path) -> None:
    text = predicted(one, "--why")
    assert "only the audio was used" in text or "no clear answer" in text
    assert "audio muted" in text and "video" not in text and text.count("x alpha") == 1


def test_the_store_and_the_plan_name_each_stream(three: Path) -> None:
    assert re.findall(
        r"^  (\S+): 9 x 96 from compact$", command("store", "info", three / "stores" / "train"), re.M
    ) == [
        "ear",
        "eye",
        "square-eye",
    ]
    content = json.loads(command("extract", "--dry-run", "--split", "all", "--root", three, "--json"))
    assert content["rates"] is None and content["splits"][0]["stream_bytes"] == {"ear": 0, "eye": 0, "square-eye": 0}


def test_the_page_of_three_streams_tells_them_apart(built: tuple[Report, dict[str, Figure]], html: str) -> None:
    report, drawn = built
    assert report.roles == ("fused", "ear", "eye", "square-eye") and report.left_out == ()
    assert isinstance(report.votes, Votes) and isinstance(report.table, Absent)
    assert {one.over for one in report.votes.contributions} == {*report.streams}
    looks = {name: report.looks[name] for name in report.streams}
    assert {look.sense for look in looks.values()} == {"sound", "sight (eye)", "sight (square-eye)"}
    assert len({(look.color, look.marker) for look in looks.values()}) == 3
    assert set(drawn) == {"losses", "alpha", "ablation", "confusion"}
    lines = drawn["alpha"].axes[0].lines
    assert len({(line.get_color(), line.get_marker()) for line in lines if line.get_marker() in "^vso"}) == 4
    for words in (
        "three: what sight and sound contribute",
        "Adding the other streams to sight (eye) alone",
        "sight (square-eye) is compact on the frames",
        "ear + eye",  # a pair of compare, in the ablation
    ):
        assert words in html, words
    assert html.count('<div class="tile">') == 4 and "TimeSformer" not in html and "table1" not in html


def test_the_page_of_one_stream_has_no_fused_heads(one: Path) -> None:
    report, drawn = build_report(Dataset.open(one))
    assert report.roles == ("ear",) and isinstance(report.votes, Votes) and report.left_out == ()
    assert report.votes.fused.role == "ear" and not report.votes.alone and not report.votes.contributions
    assert set(drawn) == {"losses", "alpha", "ablation", "confusion"}
    command("report", "--root", one)
    page = (one / "report.html").read_text()
    assert "show that sound (ear) tells the labels apart" in page and "fused heads" not in page
    assert page.count('<div class="tile">') == page.count('type="range"') == 1


RIGHT, WRONG, OTHER = Vote("dog", 0.9, 0.9, True), Vote("cat", 0.8, 0.1, False), Vote("owl", 0.7, 0.1, False)


@pytest.mark.parametrize(
    ("votes", "finding"),
    [
        ((RIGHT, WRONG, RIGHT), "sound and sight (square-eye) were right, sight (eye) misled"),
        ((WRONG, OTHER, OTHER), "all wrong; fusion followed sound"),
        ((WRONG, WRONG, OTHER), "all wrong"),
        ((RIGHT, RIGHT, RIGHT), "each alone is right, fused is wrong"),
        ((OTHER, WRONG), "sight (eye) misled"),  # square-eye has no heads of its own
    ],
)
def test_a_finding_names_all_streams_that_misled(votes: tuple[Vote, ...], finding: str) -> None:
    media = {"ear": "audio", "eye": "video", "square-eye": "video"}
    given = {"fused": WRONG, **dict(zip(media, votes, strict=False))}
    assert finding_of(given, True, "fused", tuple(media), looks_of(media)) == finding


def test_streams_of_a_medium_have_looks_of_their_own() -> None:
    media = {f"v{i}": "video" for i in range(4)} | {f"a{i}": "audio" for i in range(4)}
    looks = looks_of(media)
    assert len({look.marker for look in looks.values()}) == len({look.sign for look in looks.values()}) == 9
    assert {looks[name].color for name in media if name[0] == "v"} == {"sight", "sight-2"}
    assert roles_of(media)[0] == "fused" and roles_of({"v0": "video"}) == ("v0",)


# a real browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with running_chromium() as running:
        yield running


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_reader_picks_two_of_three_streams_for_the_map(browser: Any, html: str, tmp_path: Path, theme: str) -> None:
    (tmp_path / "report.html").write_text(html, "utf-8")
    page = browser.new_page(
        viewport={"width": 1280, "height": 900}, color_scheme=theme, reduced_motion="reduce"
    )  # no smooth scrolling: a click needs its element at once
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto((tmp_path / "report.html").as_uri())
    page.wait_for_selector('#explorer[data-busy="false"]')
    assert page.locator("#explorer input[type=range]").count() == 3
    assert page.locator("#explorer-pair option").all_text_contents() == [
        "sound and sight (eye)",
        "sound and sight (square-eye)",
        "sight (eye) and sight (square-eye)",
    ]
    page.select_option("#explorer-pair", label="sight (eye) and sight (square-eye)")
    shown = page.locator(".explorer-map svg:visible")
    assert shown.count() == 1 and shown.get_attribute("data-y") == "eye"
    page.fill("#explorer-alpha-ear", "0.4")
    assert shown.locator(".explorer-present").get_attribute("data-beside") == "true"
    square = shown.locator("g", has=page.locator("title")).nth(3)  # eye 0, square-eye 1.5
    square.locator("rect").click(force=True)
    wait_until(page, "document.querySelector('#explorer-alpha-eye').value === '0'")
    page.wait_for_selector('#explorer[data-busy="false"]')
    values = page.locator("#explorer [data-value]").all_text_contents()
    assert values == ["1.00", "0.00", "1.50"], "the others go to 1"
    accuracy = page.inner_text("#explorer [data-out=accuracy]")
    assert square.locator("title").text_content() == f"sight (eye) 0, sight (square-eye) 1.5: {accuracy}"
    page.click("button:text-is('without eye')")
    wait_until(page, "document.querySelector('#explorer-alpha-eye').value === '0'")
    assert page.locator("#explorer .explorer-card").first.locator(".explorer-alone dt").all_text_contents() == [
        "sound",
        "eye",
        "square-eye",
    ]
    assert page.evaluate("document.documentElement.scrollWidth") == 1280 and problems == []
    keep_screenshot(page, f"three-streams-{theme}", tmp_path)
    page.close()
