"""The explorer of the report page: its packed head equals the head, in Python and in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.browser import running_chromium, wait_until
from support.heads import head_config
from support.toy import CLASSES, SETTINGS, make_dataset

from alphafuse.data.dataset import Dataset
from alphafuse.data.embeddings import Embeddings
from alphafuse.data.splits import Ceiling
from alphafuse.errors import ExperimentError
from alphafuse.heads.model.config import Experiment
from alphafuse.heads.model.head import AlphaFusion
from alphafuse.heads.studies.fit import fit
from alphafuse.heads.studies.runs import load_heads
from alphafuse.report.looks import looks_of
from alphafuse.report.page import explorer
from alphafuse.report.page.explorer import Packed, PackedHead, explored_clip_ids, explorer_html

CEILING = Ceiling(reachable=40, clips=45)
LOOKS = looks_of({"timesformer": "video", "ast": "audio"})
HOSTILE = (
    "</script><script>document.title='taken'</script>",
    '<img src=x onerror="document.title=1">',
    "a\u2028b & 'c' \"d\" {{ 7 * 7 }}",
    "\u202eevil",
)


def make_embeddings(clips: int = 40, *, dims: dict[str, int], seed: int = 0, labels: tuple[str, ...] = CLASSES) -> Any:
    rng = np.random.default_rng(seed)
    return Embeddings(
        clip_ids=tuple(f"video{i // 2}_{i:06d}" for i in range(clips)),
        labels=tuple(labels[i % len(labels)] for i in range(clips)),
        groups=tuple(f"video{i // 2}" for i in range(clips)),
        features={name: rng.normal(size=(clips, dim)).astype(np.float32) for name, dim in dims.items()},
    )


def make_head(seed: int = 1, **config: Any) -> AlphaFusion:
    """A random head whose logits are far enough apart to tell one prediction from another."""
    settings: dict[str, Any] = {"dims": {"timesformer": 8, "ast": 6}, "classes": CLASSES, "hidden": (32, 16), **config}
    generator = torch.Generator().manual_seed(seed)
    head = AlphaFusion(head_config(**settings), generator=generator).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(3)
        for name, buffer in head.named_buffers():
            if name.endswith("mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
            if name.endswith("std"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return head


def make_html(head: AlphaFusion, embeddings: Embeddings, **options: Any) -> str:
    return explorer_html([head], embeddings, **{"looks": LOOKS, "ceiling": CEILING, "title": "a title", **options})


def data_of(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


def text_of(html: str) -> str:
    """Return the visible text, approximately: without style, scripts and tags."""
    bare = re.sub(r"<(style|script)\b.*?</\1>|<[^>]*>", " ", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", bare)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"transform": "sqrt", "on": "ast"},
        {"transform": "learned", "on": "timesformer", "alpha": 0.6},
        {"transform": "learned-dim", "on": "all"},
        {"transform": "neg-scalar", "on": "ast"},
        {"normalize": "zscore"},
        {"normalize": "l2", "transform": "log1p", "on": "all"},
        {"fusion": "add"},
        {"fusion": "add", "dims": {"timesformer": 7, "ast": 7}, "normalize": "zscore"},
        {"hidden": ()},
        {"hidden": (24,), "fusion": "add"},
        {"hidden": (16, 12, 8)},
        {"dims": {"ast": 6}, "transform": "sqrt", "on": "ast"},
        {"dims": {"timesformer": 8}, "hidden": ()},
    ],
    ids=str,
)
def test_packed_head_gives_the_heads_logits_at_any_alphas(config: dict[str, Any]) -> None:
    head = make_head(**config)
    embeddings = make_embeddings(dims={"timesformer": 8, "ast": 6} | config.get("dims", {}))
    packed = PackedHead.of(head, embeddings)
    for values in ((1, 1), (0, 1), (1, 0), (0, 0), (1.5, 0.75), (0.35, 2), (-1, 3)):
        alphas = dict(zip(head.config.streams, values, strict=False))
        exact = head.predict_logits(embeddings, alphas)
        assert np.ptp(exact) > 0
        np.testing.assert_allclose(packed.logits(alphas), exact, atol=2e-3 * max(1, np.abs(exact).max()))
        assert (packed.logits(alphas).argmax(axis=1) == exact.argmax(axis=1)).mean() > 0.97


def test_absent_embeddings_add_nothing_when_the_head_takes_them_as_zeros() -> None:
    embeddings = make_embeddings(dims={"timesformer": 8, "ast": 6})
    embeddings.features["ast"][:5] = np.nan
    head = make_head(absent="zeros", normalize="zscore")
    packed = PackedHead.of(head, embeddings)
    assert (packed.parts["ast"].unpacked[:5] == 0).all() and (packed.parts["ast"].unpacked[5:] != 0).any()
    alphas = {"timesformer": 0.5, "ast": 2.0}
    np.testing.assert_allclose(packed.logits(alphas), head.predict_logits(embeddings, alphas), atol=0.02)


def test_the_rounding_error_of_packing_is_at_most_half_a_step_and_zeros_are_exact() -> None:
    matrix = np.random.default_rng(0).normal(size=(5, 300)).astype(np.float32) * np.array(
        [[1e-6], [1], [1e6], [0], [3]]
    )
    packed = Packed.of(matrix)
    assert packed.quanta.dtype == np.int16 and packed.scales.dtype == np.float32
    assert (np.abs(packed.unpacked - matrix) <= 0.5001 * packed.scales[:, None] + 1e-6 * np.abs(matrix)).all()
    assert (packed.unpacked[3] == 0).all()


def test_the_page_states_the_measured_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    head, embeddings = make_head(), make_embeddings(dims={"timesformer": 8, "ast": 6})
    assert "same prediction for all of the clips as trained" in text_of(make_html(head, embeddings))
    monkeypatch.setattr(explorer, "QUANTA", 3)  # three bits
    coarse = text_of(make_html(head, embeddings))
    points = [{"timesformer": s, "ast": a} for s in explorer.MAP_ALPHAS for a in explorer.MAP_ALPHAS]
    packed = PackedHead.of(head, embeddings)
    exact = [head.predict_logits(embeddings, point).argmax(axis=1) for point in points]
    equal = np.mean([packed.logits(point).argmax(axis=1) == row for point, row in zip(points, exact, strict=True)])
    assert 0.5 < equal < 0.99
    assert f"for {np.floor(10_000 * equal) / 100:.2f}% of them over 81 pairs of weights from 0 to 2" in coarse


@pytest.mark.parametrize(("share", "text"), [(1.0, "all"), (0.99999, "99.99%"), (0.5, "50.00%"), (0.0, "0.00%")])
def test_agreement_is_never_rounded_up_to_all(share: float, text: str) -> None:
    assert explorer._share(share) == text


@pytest.mark.parametrize(("difference", "text"), [(3.12e-5, "0.00004"), (0.0054, "0.006"), (0.1, "0.1"), (0.0, "0")])
def test_largest_difference_is_never_rounded_down(difference: float, text: str) -> None:
    assert explorer._bound(difference) == text


@pytest.mark.parametrize("fusion", ["matrix", "gate", "attention"])
def test_fusions_that_do_not_split_by_stream_are_refused(fusion: str) -> None:
    with pytest.raises(ExperimentError, match=f"fusion '{fusion}' can't be explored .* as concat and add are"):
        make_html(make_head(fusion=fusion), make_embeddings(dims={"timesformer": 8, "ast": 6}))


def test_heads_that_do_not_fit_are_one_line_errors() -> None:
    embeddings = make_embeddings(dims={"timesformer": 8, "ast": 6})
    with pytest.raises(ExperimentError, match="needs a head"):
        explorer_html([], embeddings, looks=LOOKS, ceiling=CEILING, title="")
    with pytest.raises(ExperimentError, match="8-d timesformer embeddings, not 5-d ones: extract with"):
        make_html(make_head(), make_embeddings(dims={"timesformer": 5, "ast": 6}))
    with pytest.raises(ExperimentError, match="have no ast"):
        make_html(make_head(), make_embeddings(dims={"timesformer": 8}))
    embeddings.features["ast"][:] = np.nan
    with pytest.raises(ExperimentError, match="none of the 40 clips has the embeddings"):
        make_html(make_head(), embeddings)


def test_head_that_is_too_large_for_a_page_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "MAX_PAGE_BYTES", 8_000)
    with pytest.raises(ExperimentError, match=r"too large for a page: 0 MB.*hidden layers 32, 16"):
        make_html(make_head(), make_embeddings(dims={"timesformer": 8, "ast": 6}))


def test_of_many_clips_every_call_samples_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "MAX_CLIPS", 15)
    head, embeddings = make_head(), make_embeddings(dims={"timesformer": 8, "ast": 6})
    embeddings.features["ast"][:4] = np.nan
    html = make_html(head, embeddings, split="val")
    drawn = explored_clip_ids([head], embeddings)
    assert [clip["id"] for clip in data_of(html)["clips"]] == list(drawn)
    assert list(drawn) == sorted(drawn, key=embeddings.clip_ids.index)
    assert len(drawn) == 15 and not set(drawn) & set(embeddings.clip_ids[:4])
    assert "15 of 36 val clips, a random sample" in text_of(html) and "4 val clips lack an embedding" in text_of(html)
    assert len(data_of(html)["votes"]["ast"]) == 15


def test_page_without_script_shows_the_head_as_trained() -> None:
    head, embeddings = make_head(), make_embeddings(dims={"timesformer": 8, "ast": 6})
    html = make_html(head, embeddings)
    right = int((head.predict_logits(embeddings).argmax(axis=1) == np.arange(40) % 9).sum())
    text = text_of(html)
    assert f"{100 * right / 40:.1f}% {right} of 40 clips right" in text
    assert "88.9%: 40 of 45 test clips have a label that occurs in training" in text
    assert "these 40 come from 20 source videos" in text
    assert "<noscript>" in html and "The sliders need JavaScript" in text
    assert html.count('class="explorer-square"') == 81


def test_label_that_the_head_does_not_know_is_never_right() -> None:
    embeddings = make_embeddings(dims={"timesformer": 8, "ast": 6}, labels=("unknown label",))
    html = make_html(make_head(), embeddings)
    assert {clip["target"] for clip in data_of(html)["clips"]} == {-1} and "0 of 40 clips right" in text_of(html)


def test_head_of_one_stream_has_one_slider_and_no_votes() -> None:
    embeddings = make_embeddings(dims={"timesformer": 8, "ast": 6})
    html = make_html(make_head(dims={"ast": 6}), embeddings)
    assert html.count('type="range"') == 1 and 'id="explorer-alpha-ast"' in html
    assert data_of(html)["votes"] == {} and html.count('class="explorer-square"') == 9


def test_thumbnails_are_data_uris_of_clips_in_the_page_only() -> None:
    head, embeddings = make_head(), make_embeddings(dims={"timesformer": 8, "ast": 6})
    picture = "data:image/png;base64,AAAA"
    html = make_html(head, embeddings, thumbnails={embeddings.clip_ids[3]: picture, "elsewhere": picture})
    assert html.count(picture) == 1 and data_of(html)["clips"][3]["thumbnail"] == picture
    with pytest.raises(ValueError, match="must be a data:image/ address, not 'https://"):
        make_html(head, embeddings, thumbnails={embeddings.clip_ids[3]: "https://example.com/a.png"})


def test_hostile_labels_and_ids_stay_data() -> None:
    classes = (*HOSTILE, *CLASSES[4:])
    embeddings = make_embeddings(dims={"timesformer": 8, "ast": 6}, labels=classes)
    embeddings = replace(embeddings, clip_ids=tuple(f"{HOSTILE[0]}{i}" for i in range(40)))
    html = make_html(make_head(classes=classes), embeddings, title=HOSTILE[1])
    assert html.count("<script") == html.count("</script>") == 2 and "<img src=x" not in html and "\u2028" not in html
    data = data_of(html)
    assert tuple(data["classes"]) == classes and data["clips"][7]["id"] == f"{HOSTILE[0]}7"


# In a real browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with running_chromium() as running:
        yield running


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, list[AlphaFusion], Any]:
    dataset = make_dataset(tmp_path_factory.mktemp("toy") / "root")
    folder = fit(dataset, Experiment("sqrt", on="ast"), seeds=2, settings=SETTINGS).folder
    return dataset, load_heads(folder), dataset.embeddings("test")


class Opened:
    """The explorer in a browser, alone on a page."""

    def __init__(self, browser: Any, folder: Path, html: str, *, width: int = 1100) -> None:
        file = folder / "page.html"
        file.write_text(
            f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width"><title>untouched</title><link rel="icon" href="data:,"><body>{html}</body>',
            encoding="utf-8",
        )
        self.problems: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", lambda dialog: self.problems.append(dialog.message))
        self.page.on("request", lambda request: self._note_request(request.url, file.as_uri()))
        self.page.goto(file.as_uri())
        self.settle()

    def _note_request(self, url: str, own: str) -> None:
        if url != own and not url.startswith("data:"):
            self.problems.append(f"request of {url}")

    def settle(self) -> None:
        self.page.wait_for_selector('#explorer[data-busy="false"]')

    def set(self, **alphas: float) -> None:
        for stream, alpha in alphas.items():
            self.page.fill(f"#explorer-alpha-{stream}", f"{alpha:g}")
        self.settle()

    def text(self, name: str) -> str:
        return self.page.text_content(f'[data-out="{name}"]').strip()

    def alphas(self) -> dict[str, float]:
        sliders = self.page.locator("input[data-stream]").all()
        return {slider.get_attribute("data-stream"): float(slider.input_value()) for slider in sliders}

    def listed(self) -> dict[str, int]:
        """Clip id -> class index of the prediction, of the whole list."""
        while self.page.locator("[data-more]").is_visible():
            self.page.click("[data-more]")
        cards = "cards => cards.map(card => [card.dataset.clip, Number(card.dataset.predicted)])"
        return dict(self.page.eval_on_selector_all(".explorer-card", cards))

    def choose(self, kind: str) -> None:
        self.page.check(f'input[name="explorer-filter"][value="{kind}"]', force=True)


@pytest.fixture
def opened(browser: Any, trained: Any, tmp_path: Path) -> Iterator[Opened]:
    _, heads, embeddings = trained
    html = explorer_html(heads, embeddings, looks=LOOKS, ceiling=CEILING, title="sqrt on ast")
    opened = Opened(browser, tmp_path, html)
    yield opened
    opened.page.close()
    assert opened.problems == []


def test_browser_predicts_what_the_head_predicts_at_any_alphas(opened: Opened, trained: Any) -> None:
    _, heads, embeddings = trained
    targets = np.array([CLASSES.index(label) for label in embeddings.labels])
    seen = set()
    for alphas in (
        {"timesformer": 1.0, "ast": 1.0},
        {"timesformer": 0.0, "ast": 1.0},
        {"timesformer": 1.0, "ast": 0.0},
        {"timesformer": 0.0, "ast": 0.0},
        {"timesformer": 1.5, "ast": 0.75},
        {"timesformer": 0.35, "ast": 2.0},
    ):
        opened.set(**alphas)
        exact = heads[0].predict_logits(embeddings, alphas).argmax(axis=1)
        listed = opened.listed()
        assert list(listed) == list(embeddings.clip_ids)
        equal = np.array(list(listed.values())) == exact
        assert equal.mean() > 0.97
        right = int((np.array(list(listed.values())) == targets).sum())
        assert opened.text("right") == str(right) and opened.text("accuracy") == f"{100 * right / 45:.1f}%"
        seen.add(right)
    assert len(seen) > 2


def test_browser_shows_interval_change_and_counts(opened: Opened, trained: Any) -> None:
    _, heads, embeddings = trained
    targets = np.array([CLASSES.index(label) for label in embeddings.labels])
    before = heads[0].predict_logits(embeddings).argmax(axis=1)
    assert opened.text("change") == "as trained"
    opened.set(ast=0.0)
    now = np.array(list(opened.listed().values()))
    gained, lost = ((now == targets) & (before != targets)).sum(), ((now != targets) & (before == targets)).sum()
    assert lost > gained
    change = f"−{100 * (lost - gained) / 45:.1f} points: {gained} became right, {lost} became wrong"
    assert opened.text("change") == change
    interval = explorer.wilson_interval(int((now == targets).sum()), 45)
    assert opened.text("interval") == f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"
    counts = {"all": 45, "changed": (now != before).sum(), "wrong": (now != targets).sum()}
    counts["right"] = 45 - counts["wrong"]
    for kind, count in counts.items():
        assert opened.page.text_content(f'[data-count="{kind}"]') == str(count)
        opened.choose(kind)
        assert kind == "all" or opened.page.locator(".explorer-card").count() == min(6, count)
        assert len(opened.listed()) == count
    opened.choose("changed")
    assert opened.page.locator('.explorer-card[data-changed="true"]').count() == min(6, counts["changed"])
    wait_until(opened.page, "document.querySelector('[data-out=spoken]').textContent.includes('clips listed')")


def test_sliders_move_by_keyboard_and_reset_restores(opened: Opened) -> None:
    start = opened.text("accuracy"), opened.listed()
    slider = opened.page.locator("#explorer-alpha-ast")
    slider.focus()
    for _ in range(3):
        opened.page.keyboard.press("ArrowLeft")
    assert opened.alphas() == {"timesformer": 1, "ast": 0.85} and opened.page.text_content("[data-value=ast]") == "0.85"
    assert slider.get_attribute("aria-valuetext") == "weight 0.85 of sound"
    opened.page.keyboard.press("Home")
    opened.settle()
    assert opened.alphas()["ast"] == 0 and opened.listed() != start[1]
    wait_until(opened.page, "document.querySelector('[data-out=spoken]').textContent.includes('sound 0.00')")
    opened.page.click("button:text-is('as trained')")
    opened.settle()
    assert (opened.text("accuracy"), opened.listed()) == start and opened.alphas() == {"timesformer": 1, "ast": 1}
    assert opened.text("change") == "as trained"
    assert opened.page.get_attribute("button:text-is('as trained')", "aria-pressed") == "true"
    opened.set(timesformer=0.2)
    opened.page.dblclick("#explorer-alpha-timesformer", position={"x": 20, "y": 10})
    opened.settle()
    assert opened.alphas()["timesformer"] == 1


def test_presets_and_map_set_both_alphas(opened: Opened) -> None:
    for text, alphas in (
        ("sight only", {"timesformer": 1, "ast": 0}),
        ("sound only", {"timesformer": 0, "ast": 1}),
    ):
        opened.page.click(f"button:text-is('{text}')")
        opened.settle()
        assert opened.alphas() == alphas
        assert opened.page.get_attribute(f"button:text-is('{text}')", "aria-pressed") == "true"
    squares = opened.page.locator(".explorer-square")
    titles = opened.page.locator(".explorer-map g > title")
    for index in (0, 9 * 8 + 2, 40):
        squares.nth(index).click(force=True)
        opened.settle()
        expected = f"sight {explorer.MAP_ALPHAS[index // 9]:g}, sound {explorer.MAP_ALPHAS[index % 9]:g}"
        here = opened.alphas()
        assert f"sight {here['timesformer']:g}, sound {here['ast']:g}" == expected
        assert titles.nth(index).text_content() == f"{expected}: {opened.text('accuracy')}"


def test_the_address_keeps_the_weights_and_the_list(opened: Opened) -> None:
    assert "#" not in opened.page.url
    opened.set(ast=0.35)
    opened.choose("changed")
    wait_until(opened.page, "location.hash === '#explorer?timesformer=1&ast=0.35&list=changed'")
    state = opened.text("accuracy"), opened.listed()
    opened.page.reload()
    opened.settle()
    assert opened.alphas() == {"timesformer": 1, "ast": 0.35}
    assert (opened.text("accuracy"), opened.listed()) == state
    opened.page.click("button:text-is('as trained')")
    opened.choose("all")
    wait_until(opened.page, "location.hash === '#explorer'")


def test_narrow_page_has_no_sideways_scrolling_and_print_hides_the_controls(
    browser: Any, trained: Any, tmp_path: Path
) -> None:
    _, heads, embeddings = trained
    opened = Opened(
        browser, tmp_path, explorer_html(heads, embeddings, looks=LOOKS, ceiling=CEILING, title="t"), width=360
    )
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 360
    opened.page.fill("#explorer-alpha-ast", "0.3")
    opened.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert opened.page.get_attribute("#explorer", "data-busy") == "false"
    opened.page.emulate_media(media="print")
    assert not opened.page.is_visible("#explorer-alpha-ast") and not opened.page.is_visible(
        "button:text-is('as trained')"
    )
    assert opened.page.text_content("[data-value=ast]") == "0.30" and opened.page.is_visible("[data-out=accuracy]")
    opened.page.close()
    assert opened.problems == []


def test_hostile_labels_stay_text_in_the_browser(browser: Any, tmp_path: Path) -> None:
    classes = (*HOSTILE, *CLASSES[4:])
    embeddings = make_embeddings(dims={"timesformer": 8, "ast": 6}, labels=classes)
    embeddings = replace(embeddings, clip_ids=tuple(f"{HOSTILE[1]}{i}" for i in range(40)))
    opened = Opened(browser, tmp_path, make_html(make_head(classes=classes), embeddings, title=HOSTILE[0]))
    opened.set(ast=2.0)
    labels = opened.page.eval_on_selector_all('[data-row="label"] bdi', "all => all.map(one => one.textContent)")
    assert labels == [classes[i % 9] for i in range(6)]
    assert opened.page.title() == "untouched" and opened.page.locator("#explorer img[onerror]").count() == 0
    opened.page.close()
    assert opened.problems == []
