"""Methods of this process: from a file that is no package, and classes made in a session."""

from __future__ import annotations

import inspect
import pickle
import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from mmm_fusion import (
    DuplicateMethodError,
    PluginError,
    available,
    create,
    failures,
    load_file,
    loading,
    plugins,
    register,
)
from mmm_fusion.builtin import mmm_fusion_methods
from mmm_fusion.methods import Concat

BUILT_IN = sorted(method.name for method in mmm_fusion_methods())
OWN = f"mmm-fusion {version('mmm-fusion')}"
FILE = """
from mmm_fusion.methods import Add, Concat
from mmm_fusion import FusionMethod, hookimpl

class Gate(Concat):
    \"\"\"Looks through a gate.\"\"\"

    name = "gate"
"""
HOOK = """
@hookimpl
def mmm_fusion_methods():
    return [Gate]
"""


@pytest.fixture(autouse=True)
def _here(site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(site.folder)


def write(source: str, path: str = "my_fusion.py") -> str:
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text(source)
    return f"./{path}"


def local() -> list[str]:
    return [method.name for method in available()][len(BUILT_IN) :]


def test_a_file_is_loaded_and_its_method_made_by_name() -> None:
    (method,) = load_file(write(FILE))
    assert method.__qualname__ == "Gate"
    assert local() == ["gate"]
    made = create("gate", 8, 6, heads=2, dropout=0.0)
    assert type(made) is method
    assert made(torch.zeros(1, 2, 8), torch.zeros(1, 3, 6)).text == slice(3, 5)
    source = plugins.registry().methods["gate"].source
    assert str(source) == "./my_fusion.py (registered in this process)"
    assert source.place == "./my_fusion.py"
    assert failures() == ()


def test_a_path_may_be_a_path() -> None:
    assert load_file(Path(write(FILE)).resolve())[0].name == "gate"


def test_the_hook_says_what_a_file_offers() -> None:
    source = f"{FILE}\nclass Other(Add):\n    name = 'other'\n{HOOK}"
    assert [method.name for method in load_file(write(source))] == ["gate"]
    assert local() == ["gate"]


def test_without_a_hook_a_file_offers_what_it_defines() -> None:
    bases = "class Base(FusionMethod):\n    pass\n\nclass Shared(Add):\n    pass\n"
    source = f"{FILE}\n{bases}\nclass Other(Shared):\n    name = 'other'\n\nSame = Other\n"
    assert [method.name for method in load_file(write(source))] == ["gate", "other"]


def test_methods_of_this_process_stand_after_the_built_in_ones_by_name(site) -> None:
    site.install("hello-fusion", "1.0", FILE.replace('"gate"', '"hello"') + HOOK)
    load_file(write(FILE.replace('"gate"', '"zoom"')))
    load_file(write(FILE, "other.py"))
    assert local() == ["gate", "hello", "zoom"]


def test_a_file_loaded_again_replaces_what_it_gave() -> None:
    (first,) = load_file(write(FILE))
    (second,) = load_file(write(FILE))
    assert first is not second
    assert available()[-1] is second
    # The same length within the same second: a cache of compiled files would not see it.
    load_file(Path(write(FILE.replace('"gate"', '"door"'))).resolve())
    assert local() == ["door"]


def test_classes_of_a_file_can_be_pickled_and_their_source_read() -> None:
    load_file(write(FILE))
    (method,) = load_file(write("# a line more" + FILE))
    assert pickle.loads(pickle.dumps(method)) is method
    assert "Looks through a gate." in inspect.getsource(method)


def test_two_files_of_one_name_are_two_modules() -> None:
    (first,) = load_file(write(FILE, "one/my_fusion.py"))
    (second,) = load_file(write(FILE.replace('"gate"', '"door"'), "two/my_fusion.py"))
    assert first.__module__ != second.__module__
    assert local() == ["door", "gate"]


def test_a_file_leaves_nothing_beside_it() -> None:
    load_file(write(FILE, "folder/my_fusion.py"))
    assert [path.name for path in Path("folder").iterdir()] == ["my_fusion.py"]


BROKEN = {
    "import error": (
        "import nowhere_at_all",
        "does not load (ModuleNotFoundError: No module named 'nowhere_at_all'). "
        "Repair it: `python './folder/my fusion.py'` shows where.",
    ),
    "import of a file beside it": (
        "import helper",
        "does not load (ModuleNotFoundError: No module named 'helper'). A file is loaded alone, without the 'helper' "
        "beside it: make one file or a package of them, or put their folder on PYTHONPATH.",
    ),
    "syntax error": (
        "def (:",
        "does not load (SyntaxError: invalid syntax (my fusion.py, line 1)). "
        "Repair it: `python './folder/my fusion.py'` shows where.",
    ),
    "exit": (
        "raise SystemExit(3)",
        "does not load (SystemExit: 3). Repair it: `python './folder/my fusion.py'` shows where.",
    ),
    "hook that raises": (
        FILE + HOOK.replace("return [Gate]", "1 / 0"),
        "does not load (ZeroDivisionError: division by zero). Repair it: `python './folder/my fusion.py'` shows where.",
    ),
    "nothing": (
        "from mmm_fusion.methods import Add",
        "must define a subclass of FusionMethod with a `name` of its own, got none. "
        "Repair the file, and load it again.",
    ),
    "no name": (
        FILE.replace('name = "gate"', ""),
        "must define a subclass of FusionMethod with a `name` of its own, got Gate. "
        "Repair the file, and load it again.",
    ),
    "hook without its mark": (
        FILE + HOOK.replace("@hookimpl", ""),
        "no hook `mmm_fusion_methods`, marked with @hookimpl, that returns fusion methods. "
        "Repair the file, and load it again.",
    ),
    "misspelt hook": (FILE + HOOK.replace("methods", "method"), "does not load (PluginValidationError: unknown hook"),
    "bad name": (
        FILE.replace('"gate"', '"Gate"'),
        "<module>.Gate: `name` must be lower case letters, digits and _, beginning with a letter, got 'Gate'. "
        "Repair the file, and load it again.",
    ),
    "no forward": (
        "from mmm_fusion import FusionMethod\nclass Gate(FusionMethod):\n    name = 'gate'",
        "<module>.Gate: must define forward. Repair the file, and load it again.",
    ),
    "newer contract": (
        FILE + "    contract = 2",
        "<module>.Gate: `contract` must be 1, as this mmm-fusion speaks, got 2, which is newer. "
        "Upgrade mmm-fusion, or install an older version of the plug-in. Repair the file, and load it again.",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_an_error_that_names_it(case: str) -> None:
    source, text = BROKEN[case]
    write("SIZE = 1", "folder/helper.py")
    load_file(write(FILE, "folder/my fusion.py"))
    before, modules = available(), set(sys.modules)
    with pytest.raises(PluginError) as caught:
        load_file(write(source, "folder/my fusion.py"))
    seen = re.sub(r"_mmm_fusion_file_my fusion_\w{8}", "<module>", str(caught.value))
    assert seen.startswith(f"./folder/my fusion.py: {text}")
    assert available() == before
    assert set(sys.modules) == modules
    assert pickle.loads(pickle.dumps(before[-1])) is before[-1]


@pytest.mark.parametrize("path", ["./nowhere.py", "."])
def test_no_file(path: str) -> None:
    with pytest.raises(PluginError) as caught:
        load_file(path)
    where = f"Give it as seen from {Path.cwd()}, or in full."
    assert str(caught.value) == f"{path}: must be the path of a Python file, got none. {where}"


def test_an_interrupt_is_let_through() -> None:
    with pytest.raises(KeyboardInterrupt):
        load_file(write("raise KeyboardInterrupt"))


def test_the_name_of_a_built_in_is_taken() -> None:
    with pytest.raises(DuplicateMethodError) as caught:
        load_file(write(FILE.replace('"gate"', '"mlp"')))
    assert str(caught.value) == (
        f"./my_fusion.py (registered in this process), Gate: fusion method 'mlp' is offered by {OWN} already. "
        "Give this one another name."
    )
    assert local() == []


def test_the_name_of_a_plugin_is_taken(site) -> None:
    site.install("acme-fusion", "0.2", FILE + HOOK)
    with pytest.raises(DuplicateMethodError, match=r"'gate' is offered by acme-fusion 0\.2 already"):
        load_file(write(FILE))


def test_a_name_that_two_plugins_claim_is_taken(site) -> None:
    site.install("acme-fusion", "0.2", FILE + HOOK)
    site.install("zebra-fusion", "0.2", FILE + HOOK)
    with pytest.raises(DuplicateMethodError, match=r"by acme-fusion 0\.2 and zebra-fusion 0\.2\. None of"):
        load_file(write(FILE))


def test_the_name_of_another_file_is_taken_and_nothing_is_registered() -> None:
    (first,) = load_file(write(FILE))
    with pytest.raises(DuplicateMethodError) as caught:
        load_file(write(FILE + "\nclass Fine(Add):\n    name = 'fine'\n", "other.py"))
    assert str(caught.value) == (
        "./other.py (registered in this process), Gate: fusion method 'gate' is offered by "
        "./my_fusion.py (registered in this process) already. Give this one another name."
    )
    assert available()[-1] is first
    assert local() == ["gate"]


def cell(name: str, qualname: str = "Gate") -> type[Concat]:
    """The class that a cell of a notebook makes, newly at each run."""
    return type(qualname, (Concat,), {"name": name, "__module__": "__main__", "__qualname__": qualname})


def test_a_class_is_registered_and_replaced_when_its_cell_runs_again() -> None:
    register(cell("gate"))
    again = cell("gate")
    register(again, cell("door", "Door"))
    assert local() == ["door", "gate"]
    assert available()[-1] is again
    assert type(create("gate", 8, 6, heads=2, dropout=0.0)) is again
    assert str(plugins.registry().methods["gate"].source) == "__main__ (registered in this process)"


def test_a_factory_makes_many_methods() -> None:
    """Their classes have one qualified name, and differ in `name`."""
    register(cell("gate", "made.<locals>.Made"), cell("door", "made.<locals>.Made"))
    register(cell("window", "made.<locals>.Made"))
    register(cell("gate", "made.<locals>.Made"))
    assert local() == ["door", "gate", "window"]


def test_two_classes_of_one_name() -> None:
    register(cell("gate"))
    with pytest.raises(DuplicateMethodError, match=r"'gate' is offered by __main__ \(registered in this"):
        register(cell("gate", "Other"))
    with pytest.raises(DuplicateMethodError, match="'door' is offered by __main__"):
        register(cell("door", "Door"), cell("door", "Second"))
    assert local() == ["gate"]


def test_what_is_no_method_is_refused_and_nothing_is_registered() -> None:
    with pytest.raises(PluginError, match="a fusion method must be a subclass of FusionMethod, got <class 'dict'>"):
        register(cell("gate"), dict)
    assert local() == []


def test_strict_holds_for_methods_of_this_process_too(site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("acme-fusion", "0.2", "1 / 0")
    monkeypatch.setenv("MMM_FUSION_STRICT", "1")
    loading.installed.cache_clear()
    with pytest.raises(PluginError, match="MMM_FUSION_STRICT is set"):
        register(cell("gate"))
