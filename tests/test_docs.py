"""README and docs/ are checked: pages, links, command lines, Python blocks, the built site."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import click
import h5py
import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

import alphafuse
from alphafuse.cli.main import cli

CHECKOUT = Path(__file__).parents[1]
DOCS = CHECKOUT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), CHECKOUT / "README.md", CHECKOUT / "CHANGELOG.md"])
NOT_RUN = re.compile(r"<!--\s*not run: \S.*-->")  # before a Python block that can't run, with the reason


def name_of(page: Path) -> str:
    return str(page.relative_to(CHECKOUT))


def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


# links


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    found: list[str] = []
    parsed = tokens(page)
    for opening, inline in itertools.pairwise(parsed):
        if opening.type == "heading_open":
            text = "".join(child.content for child in inline.children or () if child.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
            found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


def links(page: Path) -> list[str]:
    inlines = [child for token in tokens(page) for child in token.children or ()]
    return [
        str(token.attrs.get("href", token.attrs.get("src")))
        for token in inlines
        if token.type in ("link_open", "image")
    ]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_and_anchor_exists(page: Path) -> None:
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue  # an external link: no test uses the network
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)} links to {link}, which isn't there"
        assert not anchor or anchor in anchors(target), f"{name_of(page)}: {link}: no such heading in {target.name}"
        if page.parent == DOCS and path.endswith(".md"):
            assert target.parent == DOCS, f"{name_of(page)}: {link} is outside of docs/ and not a page of the site"


def test_a_link_to_a_missing_heading_is_detected(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# What `fit` writes: a (short) list\n\n[up](#what-fit-writes-a-short-list) ![p](a%20b.png)\n\n## A\n\n## A\n"
    )
    assert anchors(page) == {"what-fit-writes-a-short-list", "a", "a-1"}
    assert links(page) == ["#what-fit-writes-a-short-list", "a%20b.png"]


def test_every_page_is_linked_from_the_first_one_or_readme() -> None:
    linked = {
        unquote(link).partition("#")[0].removeprefix("docs/")
        for page in (DOCS / "index.md", CHECKOUT / "README.md")
        for link in links(page)
    }
    for page in DOCS.glob("*.md"):
        assert page.name in linked | {"index.md"}, f"no page links to {name_of(page)}"


# command lines


@dataclass(frozen=True)
class Line:
    """A command line of a page; `is_whole`: a complete command, not a mention such as `alphafuse store info`."""

    text: str
    is_whole: bool


def command_lines(page: Path) -> Iterator[Line]:
    for token in tokens(page):
        if token.type in ("code_block", "fence") and token.info.strip() in ("", "sh", "bash", "console", "shell"):
            for line in re.sub(r"\\\n\s*", " ", token.content).splitlines():
                found = re.match(r"\s*(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\S*/bin/)?(alphafuse\s.*)", line)
                if found:
                    yield Line(found[1], is_whole=True)
        for child in token.children or ():
            if child.type == "code_inline" and child.content.startswith("alphafuse "):
                yield Line(child.content, is_whole=False)


def alternatives(text: str) -> list[list[str]]:
    """Return the words of a command line, once per alternative of `a|b`, without comments, pipes and redirections."""
    words = []
    for word in shlex.split(text.replace("[", " ").replace("]", " "), comments=True):
        if word in ("|", "&&", "||", ";", "&") or re.match(r"\d?>", word):
            break
        words.append(word.split("|") if not word.startswith("<") else [word])
    return [list(chosen) for chosen in itertools.product(*words)]


def complaint(words: list[str], *, is_whole: bool) -> str:
    """Return click's error for a command line without running it; "" if it is valid."""
    program, *rest = words
    assert program == "alphafuse"
    command: click.Command = cli
    context = click.Context(cli, info_name="alphafuse")
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        if rest[0] in ("...", "COMMAND"):
            return ""
        if rest[0] not in command.commands:
            return f"no command '{rest[0]}'"
        command = command.commands[rest.pop(0)]
        context = click.Context(command, info_name=command.name, parent=context)
    rest = [word for word in rest if word != "..."]
    if not is_whole and rest and rest[-1].startswith("--"):  # a mention of an option without its value
        flag = next((param for param in command.params if rest[-1] in param.opts), None)
        if isinstance(flag, click.Option) and not flag.is_flag:
            rest.append("VALUE")
    try:
        given, left, _ = command.make_parser(context).parse_args(args=rest)
    except click.UsageError as error:
        return error.format_message()
    if left:
        return f"unexpected {left}"
    asks_for_help = {"help", "version"} & set(given)
    for param in command.params:
        value = given.get(param.name)
        is_given = isinstance(value, str | list | tuple) and bool(value)  # if not, click gives None or a sentinel
        if is_whole and param.required and not is_given and not asks_for_help:
            return f"lacks {param.name}"
        if is_whole and isinstance(value, str) and not isinstance(param.type, click.Path | click.File):
            try:
                param.type_cast_value(context, value)
            except click.BadParameter as error:
                return error.format_message()
    return ""


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_line_is_valid(page: Path) -> None:
    for line in command_lines(page):
        for words in alternatives(line.text):
            found = complaint(words, is_whole=line.is_whole)
            assert not found, f"{name_of(page)}: `{line.text}`: {found}"


def test_invalid_command_lines_are_detected() -> None:
    def of(text: str) -> str:
        return " / ".join(filter(None, (complaint(words, is_whole=True) for words in alternatives(text))))

    assert of("alphafuse data demo --root demo  # makes it") == ""
    assert of("alphafuse extract --split all | tee log") == ""
    assert of("alphafuse data nothing") == "no command 'nothing'"
    assert of("alphafuse store info|nothing STORE") == "no command 'nothing'"
    assert "No such option" in of("alphafuse fit --transfrom sqrt")
    assert of("alphafuse fit sqrt") == "unexpected ['sqrt']"
    assert of("alphafuse data split") == "lacks out"
    assert "not a valid int" in of("alphafuse fit --seeds many")


def commands(group: click.Group, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command and group below a group, with its path."""
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_named_environment_variable_belongs_to_an_option(page: Path) -> None:
    params = [param for _, command in commands(cli, ()) for param in command.params]
    read = {param.envvar for param in params} | {
        "ALPHAFUSE_TEST_CLIPS",
        "ALPHAFUSE_TEST_THOROUGH",
    }  # tests/conftest.py's
    for name in re.findall(r"\bALPHAFUSE_[A-Z0-9_]*[A-Z0-9]\b(?!_)", page.read_text(encoding="utf-8")):
        assert name in read, f"{name_of(page)} names {name}, which sets no option"


def test_the_command_lines_of_readme_and_docs_are_found() -> None:
    assert len([line for line in command_lines(CHECKOUT / "README.md") if line.is_whole]) >= 5
    assert len([line for page in PAGES for line in command_lines(page)]) > 40


# Python


@dataclass(frozen=True)
class Block:
    """A Python block of a page, and the output shown on the page ("" = none)."""

    line: int
    code: str
    output: str
    is_run: bool


def python_blocks(page: Path) -> list[Block]:
    found = []
    parsed = tokens(page)
    for before, token, after in zip([None, *parsed], parsed, [*parsed[1:], None], strict=False):
        if token.type == "fence" and token.info.strip() == "python":
            excused = before is not None and before.type == "html_block" and NOT_RUN.search(before.content)
            shown = after.content if after is not None and after.type == "fence" and not after.info.strip() else ""
            found.append(Block((token.map or [0])[0] + 1, token.content, shown, not excused))
    return found


def without_fractions(text: str) -> str:
    """Replace numbers with a fraction, which may differ between machines."""
    return re.sub(r"-?\d+\.\d+", "#", text).strip()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=name_of)
def test_python_blocks_run_and_print_what_is_shown(page: Path, demo_folder: Path) -> None:
    variables: dict[str, object] = {}  # the blocks of a page share their variables
    for block in python_blocks(page):
        if not block.is_run:
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block.code, f"{name_of(page)} line {block.line}", "exec"), variables)
        if block.output:
            assert without_fractions(printed.getvalue()) == without_fractions(block.output), name_of(page)


def test_readme_and_the_format_page_have_python_blocks_with_output() -> None:
    for page in (CHECKOUT / "README.md", DOCS / "api.md", DOCS / "store.md"):
        blocks = python_blocks(page)
        assert blocks and all(block.is_run and block.output for block in blocks)


def test_reading_a_shard_takes_six_lines_and_no_alphafuse() -> None:
    first = python_blocks(DOCS / "store.md")[0].code
    assert len([line for line in first.splitlines() if line]) <= 6
    assert "alphafuse" not in first


@pytest.mark.slow
def test_the_format_page_names_every_file_field_and_column(demo_folder: Path) -> None:
    """Compare the files of a demo with one run, table, sweep and evaluation with the words set as code."""
    root = Path("demo")
    dataset = alphafuse.Dataset.open(root)
    quick = alphafuse.TrainSettings(epochs=1, hidden=(8,))
    alphafuse.write_table1(alphafuse.table1(dataset, seeds=1, settings=quick), dataset)
    found = alphafuse.sweep(dataset, on=["ast"], alphas=[0.5, 1.0], seeds=1, settings=quick)
    alphafuse.write_sweep(found, dataset)
    alphafuse.write_evaluation(alphafuse.evaluate(root / "runs/sqrt-ast"))

    there = {path.name for path in root.rglob("*.*") if path.is_file() and "clips" not in path.parts}
    there -= {"vggsound.csv"} | {path.name for path in root.glob("stores/*/shard-*.h5")}  # the csv belongs to the clips
    fields = dict[str, object]()
    for path in (root / "dataset.json", *root.glob("runs/*/*.json"), *root.glob("runs/*/head/*.json")):
        if path.name not in ("table1.json", "sweep.json"):
            fields |= json.loads(path.read_text())
    fields |= json.loads((root / "runs/sqrt-ast/metrics.json").read_text())["test"]
    fields |= json.loads((root / "runs/sqrt-ast/metrics.json").read_text())["test"]["top1"]
    there |= set(fields)
    for path in (root / "manifest.csv", *root.glob("runs/*/*.csv"), *root.glob("runs/*/*/classes.csv")):
        there |= set(path.read_text().splitlines()[0].split(","))
    with h5py.File(next(root.glob("stores/test/shard-*.h5"))) as shard:
        shard.visititems(lambda name, item: there.add(f"/{name}") if isinstance(item, h5py.Dataset) else None)
        there |= set(shard.attrs)
        for made in json.loads(shard.attrs["recipes"]).values():
            there |= set(made)
        there |= set(json.loads(shard.attrs["provenance"]))

    page = (DOCS / "store.md").read_text(encoding="utf-8")
    named = {word for code in re.findall(r"`([^`\n]+)`", page) for word in re.split(r"[,\s]+", code)}
    named |= {
        re.sub(r"^\W+", "", line.split()[0]) for line in page.splitlines() if line.startswith("    ") and line.split()
    }
    named |= {heading.removeprefix("### ") for heading in re.findall(r"^### \S+$", page, re.MULTILINE)}
    ends = {f"{name}{end}" for name in named for end in ("_low", "_high")}  # the page explains these endings
    assert sorted(there - named - ends) == []


def test_the_functions_named_in_the_design_exist() -> None:
    rows = re.findall(
        r"^\|[^|]*\|[^|]*\|([^|]*`[^|]*)\|([^|]*`[^|]*)\|$", (DOCS / "design.md").read_text(), re.MULTILINE
    )
    checked = 0
    for functions, places in rows:
        paths = [CHECKOUT / place for place in re.findall(r"`(\w+(?:/\w+)*/(?:\w+\.py)?)`", places)]
        folder = paths[0] if paths[0].is_dir() else paths[0].parent
        paths += [folder / place for place in re.findall(r"`(\w+\.py)`", places)]
        files = [file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])]
        code = "\n".join(file.read_text(encoding="utf-8") for file in files)
        for name in re.findall(r"`([\w.]+)`", functions):
            last = name.rpartition(".")[2]
            assert re.search(rf"^ *(?:def|class) {last}\b", code, re.MULTILINE), f"{name} is not in {places.strip()}"
            checked += 1
    assert checked > 50


# the site


@pytest.fixture(scope="session")
def site(made_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """The built site; a warning fails it."""
    return made_once("site", _build)


def _build(folder: Path) -> None:
    command = [
        sys.executable,
        "-P",
        "-m",
        "sphinx",
        "--fail-on-warning",
        "--keep-going",
        "--quiet",
        "docs",
        str(folder),
    ]
    built = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr


class _Page(HTMLParser):
    """Collects the addresses that a browser fetches, and the ids of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids.add(values.get("id") or "")
        self.fetched += [str(values["src"])] if values.get("src") else []
        loads = {"stylesheet", "icon", "preload", "preconnect", "dns-prefetch", "prefetch"}
        if tag == "link" and loads & set((values.get("rel") or "").split()):
            self.fetched.append(str(values.get("href")))


@pytest.mark.slow
def test_the_site_has_every_page_and_loads_nothing_external(site: Path) -> None:
    for page in DOCS.glob("*.md"):
        for address in _Page(site / f"{page.stem}.html").fetched:
            assert not re.match(r"(https?:)?//", address), f"{page.stem}.html fetches {address}"
            assert address.startswith("data:") or (site / address.partition("?")[0]).is_file(), address
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.mark.slow
def test_every_public_name_and_every_command_is_in_the_reference(site: Path) -> None:
    api = _Page(site / "api.html").ids
    for name in alphafuse.__all__:
        assert f"alphafuse.{name}" in api, f"docs/api.md lacks alphafuse.{name}"

    reference = _Page(site / "commands.html").ids
    for path, _ in commands(cli, ("alphafuse",)):
        assert "-".join(path) in reference, f"docs/commands.md lacks {' '.join(path)}"
