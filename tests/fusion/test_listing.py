"""`python -m mmm_fusion`, as a user runs it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from mmm_fusion import load_file, register
from mmm_fusion.__main__ import main
from mmm_fusion.builtin import mmm_fusion_methods
from mmm_fusion.listing import print_listing, summary
from mmm_fusion.methods import Add

GOOD = """
from mmm_fusion import hookimpl
from mmm_fusion.methods import Add

class Acme(Add):
    \"\"\"Adds the image, by acme.

    Slowly.
    \"\"\"

    name = "acme"

@hookimpl
def mmm_fusion_methods():
    return [Acme]
"""


def listing(path: Path, chosen: str, *options: str, **environment: str) -> tuple[int, str, str]:
    search = os.pathsep.join([str(path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"PYTHONPATH": search, "MMM_FUSION_PLUGINS": chosen, **environment}
    command = [sys.executable, "-W", "error", "-m", "mmm_fusion", *options]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=path)
    return run.returncode, run.stdout, run.stderr


def test_the_loaded_and_the_failed(site) -> None:
    site.install("acme-fusion", "0.2", GOOD)
    site.install("broken-fusion", "0.3", "raise SystemExit(3)")
    own = f"mmm-fusion {version('mmm-fusion')}"
    built_in = [
        line
        for method in sorted(mmm_fusion_methods(), key=lambda method: method.name)
        for line in (
            f"  {method.name:<16} {own}, {method.__module__}.{method.__qualname__}",
            f"      {summary(method)}",
        )
    ]
    code, out, err = listing(site.folder, "acme_fusion,broken_fusion")
    assert err == ""
    assert out.splitlines() == [
        "Fusion methods (contract 1)",
        *built_in,
        "  acme             acme-fusion 0.2, acme_fusion.Acme",
        "      Adds the image, by acme.",
        "",
        "Failed to load",
        "  broken-fusion 0.3, entry point 'broken_fusion'",
        "      SystemExit: 3",
    ]
    assert code == 1


def test_json(site) -> None:
    site.install(
        "acme-fusion", "0.2", "print('hello')" + GOOD.replace("import Add", "import MLP").replace("(Add)", "(MLP)")
    )
    site.install("broken-fusion", "0.3", "raise SystemExit(3)")
    code, out, err = listing(site.folder, "acme_fusion,broken_fusion", "--json")
    assert (code, err) == (1, "hello\n")
    listed = json.loads(out)
    assert listed["contract"] == 1
    assert {each["distribution"] for each in listed["methods"][:-1]} == {"mmm-fusion"}
    assert listed["methods"][-1] == {
        "name": "acme",
        "summary": "Adds the image, by acme.",
        "class": "acme_fusion.Acme",
        "options": {"ratio": 1.0},
        "distribution": "acme-fusion",
        "version": "0.2",
        "entry_point": "acme_fusion",
        "place": None,
    }
    assert listed["failures"] == [
        {
            "error": "SystemExit",
            "message": "3",
            "distribution": "broken-fusion",
            "version": "0.3",
            "entry_point": "broken_fusion",
            "place": None,
        }
    ]


class Mute:
    def __repr__(self) -> str:
        raise OSError


MUTE, TABLE = Mute(), {(1, 2): 3}


class Odd(Add):
    name = "odd"

    def __init__(self, dim, image_dim, *, heads, dropout, table=TABLE, top=math.inf, mute=MUTE, sizes=(1,)):
        super().__init__(dim, image_dim, heads=heads, dropout=dropout)


def test_defaults_that_json_does_not_have(site, capsys) -> None:
    register(Odd)
    assert print_listing(as_json=True) == 0
    last = json.loads(capsys.readouterr().out, parse_constant=lambda constant: pytest.fail(constant))["methods"][-1]
    assert last["options"] == {"table": "{(1, 2): 3}", "top": "inf", "mute": "<Mute>", "sizes": [1]}


def test_a_method_without_a_docstring_has_no_summary(site, capsys) -> None:
    register(Odd)
    assert print_listing() == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"  odd              {__name__} (registered in this process), Odd"


def test_a_failure_is_one_line(site, capsys) -> None:
    site.install("broken-fusion", "0.3", "raise ValueError('one\\n\\ntwo')")
    assert print_listing() == 1
    assert capsys.readouterr().out.splitlines()[-1] == "      ValueError: one two"


def test_json_is_for_the_listing(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--json", "check", "mlp"])
    assert caught.value.code == 2
    assert "--json is for the listing, and does not go with check" in capsys.readouterr().err


def test_what_is_registered_in_this_process(site, monkeypatch, capsys) -> None:
    monkeypatch.chdir(site.folder)
    Path("my_fusion.py").write_text(GOOD.replace("acme", "gate"))
    load_file("./my_fusion.py")
    register(type("Door", (Add,), {"name": "door", "__module__": "__main__", "__doc__": "A door."}))
    assert print_listing() == 0
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "  door             __main__ (registered in this process), Door",
        "      A door.",
        "  gate             ./my_fusion.py (registered in this process), Acme",
        "      Adds the image, by gate.",
    ]
    assert print_listing(as_json=True) == 0
    last = json.loads(capsys.readouterr().out)["methods"][-1]
    assert (last["name"], last["distribution"], last["place"]) == ("gate", None, "./my_fusion.py")


def test_strict(site) -> None:
    site.install("broken-fusion", "0.3", "1 / 0")
    assert listing(site.folder, "broken_fusion", MMM_FUSION_STRICT="1") == (
        1,
        "",
        "MMM_FUSION_STRICT is set, and not all plug-ins load. Failed to load: broken-fusion 0.3 (ZeroDivisionError: "
        "division by zero). Repair or uninstall what fails, or leave it out by MMM_FUSION_PLUGINS.\n",
    )


def test_the_example_plugin_where_it_is_installed(tmp_path: Path) -> None:
    code, out, err = listing(tmp_path, "film")
    line = f"  film             mmm-fusion-film {version('mmm-fusion-film')}, mmm_fusion_film.film.Film"
    assert line in out.splitlines()
    assert (code, err) == (0, "")
