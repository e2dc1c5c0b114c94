"""The command line at a terminal: completion, variables, colours, what goes to stdout, interruptions."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from support.cli import Run, assert_one_line_error

from alphafuse import __version__
from alphafuse.cli.common import Commands, print_text, use_colour, walk
from alphafuse.cli.main import SECTIONS, cli

MakeRoot = Callable[..., Path]
ALPHAFUSE = [sys.executable, "-P", "-m", "alphafuse"]


def command(*arguments: object, cwd: Path | str = "/", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a new process, as a shell does."""
    words = [*ALPHAFUSE, *(str(argument) for argument in arguments)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ALPHAFUSE_")}
    return subprocess.run(
        words, cwd=cwd, env={**clean, **environment}, capture_output=True, text=True, timeout=100, check=False
    )


# ------------------------------------------------------------------------------------------------------------- help


def test_every_command_has_its_place_in_the_help_and_no_summary_is_cut_off(run: Run) -> None:
    listed = [name for section in SECTIONS.values() for name in section]
    assert sorted(listed) == sorted(cli.commands)
    for path, group in walk(cli):
        if isinstance(group, Commands):
            _, out, _ = run(*path, "--help")
            for name in group.commands:
                (line,) = re.findall(rf"^  {name} +(\S.*)$", out, re.MULTILINE)
                assert line[-1] in ".," and "..." not in line and len(line) <= 66, "one line of an 80-column terminal"
    _, out, _ = run("--help")
    assert out.index("extract ") < out.index("fit ") < out.index("predict ") < out.index("doctor ")
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "ALPHAFUSE_ROOT" in out and "NO_COLOR" in out and "HF_HUB_OFFLINE" in out


@pytest.mark.parametrize("words", [(), ("fit",), ("table1",), ("extract",), ("predict",)], ids=" ".join)
def test_help_answers_without_loading_torch(words: tuple[str, ...]) -> None:
    script = (
        "import sys\nfrom alphafuse.cli.main import cli\ncli.main([*sys.argv[1:], '--help'], standalone_mode=False)\n"
    )
    script += "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-P", "-c", script, *words], cwd="/", capture_output=True, text=True, check=False
    )
    assert result.returncode == 0 and "Example" in result.stdout, result.stderr


@pytest.mark.slow
def test_help_and_completion_are_fast(tmp_path: Path) -> None:
    def seconds(**environment: str) -> float:
        began = time.monotonic()
        assert command("--help", cwd=tmp_path, **environment).returncode == 0
        return time.monotonic() - began

    completing = {"_ALPHAFUSE_COMPLETE": "bash_complete", "COMP_WORDS": "alphafuse fit --tr", "COMP_CWORD": "2"}
    # about 0.2 s on an idle machine; the best of several runs and a wide margin allow for a busy one
    assert min(seconds() for _ in range(3)) < 2 and min(seconds(**completing) for _ in range(3)) < 2


# ------------------------------------------------------------------------------------------------------- completion


def complete(words: str, *, cwd: Path | str = "/", shell: str = "bash", **environment: str) -> list[str]:
    """Return the completions of the last of these words."""
    shell_variables = {
        "_ALPHAFUSE_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    result = command(cwd=cwd, **shell_variables, **environment)
    assert result.returncode == 0 and not result.stderr
    return [line.partition(",")[2] for line in result.stdout.splitlines()]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("alphafuse fi", ["fit"]),
        ("alphafuse data au", ["audit"]),
        ("alphafuse fit --trans", ["--transform"]),
        ("alphafuse fit --transform s", ["sqrt", "signed-sqrt", "scale"]),
        ("alphafuse fit --fusion a", ["add", "attention"]),
        ("alphafuse fit --normalize ", ["none", "zscore", "variance", "l2"]),
        ("alphafuse fit --schedule c", ["constant", "cosine"]),
        ("alphafuse fit --absent ", ["drop", "zeros"]),
        ("alphafuse fit --device c", ["cpu", "cuda"]),
        ("alphafuse fit --stream timesformer,", ["timesformer,ast"]),
        ("alphafuse sweep --on timesformer,", ["timesformer,ast", "timesformer,all"]),
        ("alphafuse extract --split t", ["train", "test"]),
        ("alphafuse extract --stream a", ["ast"]),
        ("alphafuse extract --protocol n", ["notebook"]),
        ("alphafuse extract --precision ", ["fp32", "bf16"]),
        ("alphafuse similar x --by s", ["sight", "sound"]),
        ("alphafuse fit --prob", ["--probe"]),
        ("alphafuse data folder --labelled-by e", ["ear", "eye"]),
        ("alphafuse data labelled-by ", ["ear", "eye", "both"]),
        ("alphafuse completion z", ["zsh"]),
        ("alphafuse nons", []),
    ],
)
def test_completion_offers_names(words: str, offered: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from click.shell_completion import BashComplete

    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    shell = BashComplete(cli, {}, "alphafuse", "_ALPHAFUSE_COMPLETE")
    assert [item.value for item in shell.get_completions(*shell.get_completion_args())] == offered


@pytest.mark.slow
def test_the_installed_command_completes_runs_stores_and_roots(tmp_path: Path) -> None:
    for run_name in ("sqrt-ast", "untransformed"):
        folder = tmp_path / "demo" / "runs" / run_name
        (folder / "head").mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    (tmp_path / "demo" / "stores" / "train").mkdir(parents=True)
    (tmp_path / "demo" / "dataset.json").write_text("{}")
    assert complete("alphafuse evaluate ", cwd=tmp_path) == ["demo/runs/sqrt-ast", "demo/runs/untransformed"]
    assert complete("alphafuse evaluate demo/runs/s", cwd=tmp_path) == ["demo/runs/sqrt-ast"]
    there = str(tmp_path / "demo" / "runs")
    assert complete(f"alphafuse evaluate {there}/s") == [f"{there}/sqrt-ast"]
    assert complete("alphafuse evaluate ", ALPHAFUSE_ROOT=str(tmp_path / "demo"))[0] == f"{there}/sqrt-ast"
    assert complete("alphafuse store info ", cwd=tmp_path) == ["demo/stores/train"]
    assert complete("alphafuse fit --root ", cwd=tmp_path) == ["demo"]
    assert complete("alphafuse fit --root ", cwd="/", ALPHAFUSE_FIT_SEEDS="nonsense") == [""]  # any folder


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_calls_the_command(run: Run, shell: str) -> None:
    code, out, err = run("completion", shell)
    assert code == 0 and "_ALPHAFUSE_COMPLETE" in out and f"{shell}_complete" in out and not err
    assert_one_line_error(run("completion", f"{shell}x"), f"did you mean '{shell}'?", "bash, zsh, fish")


def test_bash_completes_a_line_with_the_script(tmp_path: Path) -> None:
    function = command("completion", "bash").stdout
    (tmp_path / "bin").mkdir()
    launcher = tmp_path / "bin" / "alphafuse"
    launcher.write_text(f'#!/bin/sh\nexec {" ".join(ALPHAFUSE)} "$@"\n')
    launcher.chmod(0o755)
    asked = "COMP_WORDS=(alphafuse fit --transform s); COMP_CWORD=3; _alphafuse_completion alphafuse"
    out = subprocess.run(
        ["bash", "--norc", "-c", f'{function}\n{asked}\necho "${{COMPREPLY[@]}}"'],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": f"{launcher.parent}:{os.environ['PATH']}"},
    ).stdout
    assert out == "sqrt signed-sqrt scale\n"


# --------------------------------------------------------------------------------------------------------- variables


def test_every_option_has_a_variable_of_its_name_and_the_command_line_wins(
    run: Run, extracted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = [
        parameter.envvar
        for path, found in walk(cli)
        for parameter in found.params
        if path and isinstance(parameter, click.Option)
    ]
    assert all(isinstance(name, str) and re.fullmatch(r"ALPHAFUSE_[A-Z0-9_]+", name) for name in variables)
    own = [name for name in variables if name != "ALPHAFUSE_ROOT"]
    assert len(own) == len(set(own)) > 100
    monkeypatch.setenv("ALPHAFUSE_ROOT", str(extracted))
    monkeypatch.setenv("ALPHAFUSE_FIT_SEEDS", "2")
    monkeypatch.setenv("ALPHAFUSE_FIT_EPOCHS", "1")
    monkeypatch.setenv("ALPHAFUSE_FIT_JSON", "1")
    assert json.loads(run("fit")[1])["seeds"] == [0, 1]
    assert json.loads(run("fit", "--seeds", "1")[1])["seeds"] == [0]
    monkeypatch.setenv("ALPHAFUSE_FIT_SEEDS", "many")
    assert_one_line_error(run("fit"), "'--seeds'", "'many' is not a valid integer", "from ALPHAFUSE_FIT_SEEDS")


def test_the_variable_of_the_root_does_not_replace_the_root_of_a_named_run(
    run: Run, extracted: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def variable(*path: str) -> object:
        found: click.Command = cli
        for name in path:
            found = found.commands[name]  # type: ignore[attr-defined]
        return next(option.envvar for option in found.params if option.name == "root")

    for path in (("extract",), ("fit",), ("data", "demo"), ("data", "vggsound"), ("data", "audit"), ("doctor",)):
        assert variable(*path) == "ALPHAFUSE_ROOT"
    run("fit", "--epochs", 1, "--root", extracted)
    monkeypatch.setenv("ALPHAFUSE_ROOT", str(tmp_path / "another"))
    assert run("evaluate", extracted / "runs" / "untransformed")[0] == 0


# ----------------------------------------------------------------------------------------------------------- colours


@pytest.mark.parametrize(
    ("environment", "on_terminal", "to_file"),
    [
        ({}, True, False),
        ({"NO_COLOR": "1"}, False, False),
        ({"NO_COLOR": "0"}, False, False),  # any value that is not empty
        ({"NO_COLOR": ""}, True, False),
        ({"TERM": "dumb"}, False, False),
        ({"FORCE_COLOR": "1"}, True, True),
        ({"CLICOLOR_FORCE": "1"}, True, True),
        ({"FORCE_COLOR": "0"}, True, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False),
    ],
)
def test_colours_are_used_on_terminals_that_support_them(
    environment: dict[str, str], on_terminal: bool, to_file: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    main_end, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stream, Path(os.devnull).open("w") as file:
        assert use_colour(stream) is on_terminal and use_colour(file) is to_file
    os.close(main_end)
    assert use_colour(None) is False


def test_the_next_command_is_coloured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = "demo: 3 clips\n  next: alphafuse fit --root demo\n----------\nwritten: demo/runs/x\n"
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    print_text(text)
    assert capsys.readouterr().out == text
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_text(text)
    out = capsys.readouterr().out
    assert "  next: \x1b[36malphafuse fit --root demo\x1b[0m\n" in out and click.unstyle(out) == text


def on_terminal(*arguments: str, **environment: str) -> str:
    """Return what a command writes to a terminal of 80 columns, stdout and stderr."""
    main_end, terminal = pty.openpty()
    base = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    with subprocess.Popen(
        [*ALPHAFUSE, *arguments],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        cwd="/",
        env={**base, "TERM": "xterm", **environment},
    ) as process:
        os.close(terminal)
        written = b""
        while True:
            try:
                part = os.read(main_end, 65536)
            except OSError:  # Linux' end of a terminal
                break
            if not part:
                break
            written += part
        process.wait(60)
    os.close(main_end)
    return written.decode().replace("\r\n", "\n")


def test_a_terminal_gets_headings_and_errors_in_colour_unless_it_declines() -> None:
    assert "\x1b[31m\x1b[1malphafuse:\x1b[0m unknown command 'fti' (did you mean 'fit'?)" in on_terminal("fti")
    assert on_terminal("fti", NO_COLOR="1").startswith("alphafuse: unknown command 'fti'")
    assert "\x1b[1mOptions:\x1b[0m" in on_terminal("store", "--help")
    assert "\x1b" not in on_terminal("store", "--help", TERM="dumb")


# ------------------------------------------------------------------------------------------------ stdout and stderr

JSON_KEYS = {  # programs rely on these keys: list every change in the changelog
    "data folder": "classes clips labelled_by left_out listed missing name notes reachable root skipped",
    "data split": "carried clips root single_video_labels",
    "data audit": (
        "balance byte_identical changed content coverage is_sound missing name problems resolution root splits "
        "straddling"
    ),
    "extract": (
        "already changed clips coverage decode_seconds embed_seconds embedded failures refreshed seconds split store"
    ),
    "extract --dry-run": "rates splits",
    "store info": "bytes clips dims duplicates failures files folder provenance recipes rows shards windows",
    "store verify": "folder problems shards",
    "fit": "answer experiment note_on_encoders run seeds test val",
    "table1": (
        "answer classes clips dataset dropped is_demo is_paper_split largest_gap note_on_encoders reachable_ceiling "
        "rows seeds smallest_resolvable_gap unread_streams verdict"
    ),
    "sweep": "answer baseline chosen clips curves dataset note_on_encoders seeds smallest_resolvable_gap transform",
    "weigh": (
        "absent answer best_single clips confusion constant dataset dropped effective_ranks final heads late "
        "neighbours note_on_encoders probe profile raw_alphas removed source_videos streams test val verdict warning "
        "weights without zscored"
    ),
    "evaluate": (
        "absent_classes against answer auc classes d_prime dropped ece log_loss mean_average_precision "
        "mean_class_accuracy n note_on_encoders reachable_ceiling run seeds source_videos split table top1 top3 "
        "vggsounder"
    ),
}


@pytest.mark.slow
def test_json_is_one_document_with_the_keys_that_programs_rely_on(
    extracted: Path, tiny_encoders: dict[str, Path], make_root: MakeRoot, tmp_path: Path, run: Run
) -> None:
    fresh = make_root("fresh")
    quick = ("--epochs", 1, "--root", extracted)
    calls: dict[str, tuple[object, ...]] = {
        "data folder": (extracted / "clips", "--csv", tmp_path / "list.csv", "--root", tmp_path / "mine"),
        "data split": ("--root", extracted, "--out", tmp_path / "new", "--val", 3, "--test", 3),
        "data audit": ("--root", extracted, "--no-decode"),
        "extract": (
            *("--split", "val", "--root", fresh, "--workers", 1),
            *("--timesformer", tiny_encoders["timesformer"], "--ast", tiny_encoders["ast"]),
        ),
        "extract --dry-run": (
            *("--split", "test", "--root", fresh, "--workers", 1),
            *("--timesformer", tiny_encoders["timesformer"], "--ast", tiny_encoders["ast"]),
        ),
        "store info": (extracted / "stores" / "train",),
        "store verify": (extracted / "stores" / "train",),
        "fit": quick,
        "table1": ("--seeds", 1, *quick),
        "sweep": ("--alpha", "1,2", "--seeds", 1, *quick),
        "weigh": ("--root", extracted),
        "evaluate": (extracted / "runs" / "untransformed",),
    }
    rows = [
        f"{path.name},{path.stem[-1]},{path.stem.rstrip('0123456789_')}" for path in (extracted / "clips").iterdir()
    ]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    found = {}
    for name, arguments in calls.items():
        code, out, _ = run(*name.split(), *arguments, "--json")
        assert code == 0, name
        content = json.loads(out)  # one document and nothing else
        found[name] = " ".join(sorted(content[0] if isinstance(content, list) else content))
    assert found == JSON_KEYS


@pytest.mark.slow
def test_warnings_and_progress_never_reach_stdout(extracted: Path) -> None:
    noisy = "import warnings, runpy, sys, logging; warnings.simplefilter('always'); warnings.warn('hear me');"
    noisy += "logging.basicConfig(level='DEBUG'); sys.argv = ['alphafuse', *sys.argv[1:]];"
    noisy += "runpy.run_module('alphafuse', run_name='__main__')"
    words = [sys.executable, "-P", "-c", noisy, "fit", "--root", str(extracted), "--epochs", "1", "--json"]
    result = subprocess.run(words, cwd="/", capture_output=True, text=True, timeout=100, check=True)
    assert json.loads(result.stdout)["experiment"] == "untransformed" and "hear me" in result.stderr


# ---------------------------------------------------------------------------------------------------- interruptions


@pytest.mark.parametrize("arguments", [("--help",), ("data", "audit", "--no-decode", "--json")], ids=" ".join)
@pytest.mark.slow
def test_a_closed_reader_ends_the_command_without_a_message(extracted: Path, arguments: tuple[str, ...]) -> None:
    with subprocess.Popen(
        [*ALPHAFUSE, *arguments],
        cwd="/",
        env={**os.environ, "ALPHAFUSE_ROOT": str(extracted)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.wait(60) == 141 and process.stderr.read() == b""


def test_a_closed_stdout_is_not_an_error(extracted: Path) -> None:
    words = " ".join([*ALPHAFUSE, "store", "info", str(extracted / "stores" / "train")])
    result = subprocess.run(f"{words} >&-", shell=True, cwd="/", capture_output=True, text=True, check=False)
    assert result.returncode == 0 and not result.stderr


@pytest.mark.parametrize("module", ["alphafuse.cli.main", "numpy", "torch", "transformers"])
def test_ctrl_c_during_any_import_ends_in_one_line(module: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
    )
    process = [*ALPHAFUSE, "convert", "ast", str(tmp_path / "missing.pth"), str(tmp_path / "out")]
    if module == "transformers":  # an interrupt during its import becomes an error of its own
        script = "from alphafuse.cli.main import cli, main\nimport sys\n"
        script += "@cli.command('load')\ndef load() -> None:\n    import transformers\n    transformers.ASTModel\n"
        script += "sys.argv = ['alphafuse', 'load']\nmain()\n"
        process = [sys.executable, "-P", "-c", script]
    result = subprocess.run(
        process,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode in (130, -signal.SIGINT)  # Python ends by the signal itself if exec was interrupted
    assert result.stdout == "" and result.stderr.strip().count("\n") == 0
    assert result.stderr.strip().startswith("alphafuse: interrupted")


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
@pytest.mark.parametrize("where", ["callback", "finaliser"])
def test_an_interrupt_in_a_callback_of_the_interpreters_own_is_not_lost(
    number: int, code: int, word: str, where: str
) -> None:
    """Python can't raise an exception from such a callback: it prints it and continues."""
    script = "from alphafuse.cli.main import cli, main\nimport signal, sys, time, weakref\n"
    script += f"def interrupt(*_): signal.raise_signal({int(number)})\n"
    script += "class Thing: pass\n"
    script += "@cli.command('work')\ndef work() -> None:\n    thing = Thing()\n"
    if where == "callback":
        script += "    kept = weakref.ref(thing, interrupt)\n"
    else:
        script += "    Thing.__del__ = interrupt\n"
    script += "    del thing\n    print('lost for now', flush=True)\n    time.sleep(60)\n"
    script += "sys.argv = ['alphafuse', 'work']\nmain()\n"
    began = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-P", "-c", script], cwd="/", capture_output=True, text=True, timeout=100, check=False
    )
    assert (result.returncode, result.stdout) == (code, "lost for now\n"), result.stderr
    assert result.stderr == f"\nalphafuse: {word}\n"
    assert time.monotonic() - began < 30, "the main thread's wait was interrupted"


def test_the_module_runs_as_the_command_does() -> None:
    result = command("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{__version__}\n", "")
