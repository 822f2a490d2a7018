"""Every command that the documentation shows exists, with its options; every link to a file leads to one."""

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/**/*.md", "packages/*/README.md", "examples/*/README.md")
    for path in ROOT.glob(pattern)
)
BLOCK = re.compile(r"^ *```(?:console|bash|sh)\n(.*?)^ *```", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")


def commands(page: str) -> list[list[str]]:
    """The commands of the shell blocks of a page, word by word; in a console session, those behind a `$`."""
    found = []
    for block in BLOCK.findall(page):
        lines = [line.strip() for line in block.replace("\\\n", " ").splitlines()]
        session = any(line.startswith("$ ") for line in lines)
        for line in lines:
            if line.startswith("$ ") or not session:
                words = shlex.split(line.removeprefix("$ "), comments=True)
                found += split(words, at={"&&", "|", ";"})
    return found


def split(words: list[str], at: set[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word in at:
            parts.append([])
        else:
            parts[-1].append(word)
    return [part for part in parts if part]


def problems(words: list[str]) -> list[str]:
    """What of a command does not exist; commands of other projects are taken at their word."""
    match words:
        case ["python" | "python3", "-m", "nox", *rest] | ["nox", *rest]:
            own, _, passed_on = " ".join(rest).partition(" -- ")
            unknown = [name for name in own.split() if not name.startswith("-") and name not in sessions()]
            demo = problems(["mmm", "demo", *passed_on.split()]) if "demo" in own.split() else []
            return [f"nox has no session {name}" for name in unknown] + demo
        case ["python" | "python3", "-m", module, *_] if module.startswith("mmm_"):
            return [] if importlib.util.find_spec(f"{module}.__main__") else [f"{module} has no __main__"]
        case ["mmm", command, *rest]:
            if not (known := help_text(command)):
                return [f"mmm has no command {command}"]
            options = [word.partition("=")[0] for word in rest if word.startswith("--")]
            missing = [option for option in options if not re.search(rf"{re.escape(option)}\b", known)]
            return [f"mmm {command} has no {option}" for option in missing]
    return []


@cache
def sessions() -> set[str]:
    """The nox sessions, read from the source of noxfile.py."""
    body = ast.parse((ROOT / "noxfile.py").read_text()).body
    functions = [node for node in body if isinstance(node, ast.FunctionDef)]
    return {node.name for node in functions if "nox.session" in map(ast.unparse, node.decorator_list)}


@cache
def help_text(command: str) -> str:
    program = Path(sys.executable).with_name("mmm")
    run = subprocess.run([program, command, "--help"], capture_output=True, text=True)
    return run.stdout if run.returncode == 0 else ""


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_exist(page: Path) -> None:
    found = [(words, problems(words)) for words in commands((ROOT / page).read_text())]
    assert [(shlex.join(words), wrong) for words, wrong in found if wrong] == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_to_files_lead_to_one(page: Path) -> None:
    targets = LINK.findall((ROOT / page).read_text())
    assert [target for target in targets if not (ROOT / page.parent / target).exists()] == []


def test_the_two_commands_of_the_readme() -> None:
    found = commands((ROOT / "README.md").read_text())
    assert ["python3", "-m", "pip", "install", "nox"] in found
    assert ["nox", "-s", "demo"] in found
    assert ["nox", "-s", "tests"] in found


def test_what_does_not_exist_is_seen() -> None:
    page = "```console\n$ nox -s tests && nox -s nowhere\nprinted\n$ mmm demo --no-such=1\n```\n"
    assert [problems(words) for words in commands(page)] == [
        [],
        ["nox has no session nowhere"],
        ["mmm demo has no --no-such"],
    ]
