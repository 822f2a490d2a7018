"""`python -m mmm_fusion check`: the kit for any method, from the shell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mmm_fusion.__main__ import main
from mmm_fusion.testing import FusionContract, rules_of

RULES = [name.removeprefix("test_") for name in rules_of(FusionContract)]
FILE = """
from mmm_fusion.methods import Concat

class Gate(Concat):
    name = "gate"

    def __init__(self, dim, image_dim, *, heads, dropout, width=1.0):
        super().__init__(dim, image_dim, heads=heads, dropout=dropout)
        self.width = width
"""
LEAKS = """
from mmm_fusion.methods import Add

class Leak(Add):
    name = "leak"

    def extend(self, text, memory, *, text_mask=None):
        if len(text) > 3:
            raise RuntimeError("too many texts: " + "x " * 1000)
        return super().extend(text.flip(1).cumsum(1).flip(1), memory, text_mask=text_mask)
"""


@pytest.fixture(autouse=True)
def _here(site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(site.folder)


def test_a_method_that_keeps_all_rules(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my_fusion.py").write_text(FILE)
    assert main(["check", "./my_fusion.py", "--options", "width=2"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "gate: ./my_fusion.py (registered in this process), width=2",
        *(f"  pass    {rule}" for rule in RULES),
        f"gate: all {len(RULES)} rules are kept.",
    ]
    assert err == ""


def test_a_method_that_breaks_rules(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my_fusion.py").write_text(LEAKS)
    assert main(["check", "my_fusion.py"]) == 1
    out = capsys.readouterr().out
    assert (
        """
  BROKEN  causal
          Seen: text from 1 on changes the output at text position 0 or before it.
          Rule: the output at text position i depends on the image and on text up to i; image tokens
            depend on no text.
          To do: attend, convolve and scan over the text from the left only.
"""
        in out
    )
    broken = [line.split()[1] for line in out.splitlines() if line.startswith("  BROKEN")]
    padding = ["text_padding", "padding_may_hold_nan"]
    pieces = ["longer_text", "text_in_pieces"]
    assert broken == ["causal", *padding, "many_texts_of_one_image", *pieces, "inputs_get_gradients"]
    crash = out[out.index("many_texts_of_one_image") :].splitlines()
    assert crash[1].startswith("          Seen: RuntimeError: too many texts: x x x")
    assert "x x … (my_fusion.py, line 9) Rule: memory.rows(index)" in " ".join(out.split())
    assert all(len(line) <= 100 for line in crash)
    assert crash[-1] == f"leak: 7 of {len(RULES)} rules are BROKEN."


def test_what_was_seen_before_is_not_said_again(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my_fusion.py").write_text(FILE + "        raise OSError('disk full')")
    assert main(["check", "my_fusion.py"]) == 1
    out = capsys.readouterr().out
    assert out.count("Seen: OSError: disk full (my_fusion.py, line 10)") == 1
    assert out.count("Seen: the same.") == len(RULES) - 1
    assert f"gate: {len(RULES)} of {len(RULES)} rules are BROKEN." in out


def test_a_method_that_exits_does_not_end_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my_fusion.py").write_text(FILE + "        raise SystemExit(0)")
    assert main(["check", "my_fusion.py"]) == 1
    out = capsys.readouterr().out
    assert out.count("Seen: SystemExit: 0 (my_fusion.py, line 10)") == 1
    assert f"gate: {len(RULES)} of {len(RULES)} rules are BROKEN." in out


def test_an_exception_without_a_text_does_not_end_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    silent = """
class Silent(Exception):
    def __str__(self):
        raise ValueError
"""
    Path("my_fusion.py").write_text(silent + FILE + "        raise Silent")
    assert main(["check", "my_fusion.py"]) == 1
    out = capsys.readouterr().out
    assert "Seen: Silent: its text cannot be had, for ValueError (my_fusion.py, line 14)" in out
    assert f"gate: {len(RULES)} of {len(RULES)} rules are BROKEN." in out


def test_all_methods_of_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("both.py").write_text(FILE.replace("width=1.0", "width=1.0, deep=None") + LEAKS)
    assert main(["check", "both.py"]) == 1
    last = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert last == [
        "gate: both.py (registered in this process)",
        f"gate: all {len(RULES)} rules are kept.",
        "leak: both.py (registered in this process)",
        f"leak: 7 of {len(RULES)} rules are BROKEN.",
    ]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["conct"], "fusion method 'conct' is not registered. Did you mean 'concat'? See `python -m mmm_fusion`."),
        (["./none.py"], "./none.py: must be the path of a Python file, got none. Give it as seen from"),
        (
            ["broken.py"],
            "broken.py: does not load (ZeroDivisionError: division by zero). Repair it: `python broken.py`",
        ),
        (["mlp", "--options", "ratoi=2"], "fusion method 'mlp' has no option 'ratoi'. Did you mean 'ratio'?"),
        (
            ["mlp", "--options", "ratio=big"],
            "fusion method 'mlp': option 'ratio' must be a number, as its default 1.0,",
        ),
        (["mlp", "--options", "ratio"], "--options: must be key=value or a JSON object, got 'ratio'. For example:"),
        (["mlp", "--options", "[1]"], "--options: must be key=value or a JSON object, got '[1]'. For example:"),
        (["mlp", "--options", '{"ratio": "x"}'], "fusion method 'mlp': option 'ratio' must be a number"),
    ],
)
def test_nothing_to_check(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.py").write_text("1 / 0")
    assert main(["check", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(text)


def test_options_are_json_or_words(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmm_fusion import check

    assert check.parsed(["a=1", "b=1.5", "c=true", "d=x=y", 'e="1"', "f=[1]"]) == {
        "a": 1,
        "b": 1.5,
        "c": True,
        "d": "x=y",
        "e": "1",
        "f": [1],
    }
    assert check.parsed(['{"a": null}', "b=2"]) == {"a": None, "b": 2}


def test_colours_stand_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmm_fusion import check

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert check.coloured("pass", 32) == "pass"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert check.coloured("pass", 32) == "\x1b[32mpass\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert check.coloured("pass", 32) == "pass"


def test_it_is_a_command_of_the_shell() -> None:
    command = [sys.executable, "-m", "mmm_fusion", "check", "nowhere"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("fusion method 'nowhere' is not registered.")
