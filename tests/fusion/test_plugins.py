"""The registry: plug-ins are found, checked and kept apart from each other."""

from __future__ import annotations

import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from mmm_fusion import (
    DuplicateMethodError,
    PluginError,
    UnknownMethodError,
    available,
    create,
    failures,
    loading,
    plugins,
    rules,
)
from mmm_fusion.builtin import mmm_fusion_methods
from mmm_fusion.methods import Add, Concat, LowRank

BUILT_IN = sorted(method.name for method in mmm_fusion_methods())


def hook(body: str) -> str:
    """The module of a plug-in whose hook does this."""
    return f"from mmm_fusion import hookimpl\n@hookimpl\ndef mmm_fusion_methods():\n    {body}"


def plugin(name: str, *more: str, constructor: str = "dim, image_dim, *, heads, dropout, size=1") -> str:
    """The module of a plug-in with methods of these names."""
    return f"""
from torch import nn
from mmm_fusion import FusionMethod, FusionOutput, hookimpl

class Method(FusionMethod):
    name = {name!r}

    def __init__(self, {constructor}):
        super().__init__()
        self.proj = nn.Linear(image_dim, dim)
        self.size = size

    def forward(self, text, image, *, text_mask=None, image_mask=None, image_grid=None):
        return FusionOutput(text, slice(0, text.shape[1]), text_mask)

@hookimpl
def mmm_fusion_methods():
    return [Method, *(type(name, (Method,), {{"name": name}}) for name in {more})]
"""


def names() -> list[str]:
    return [method.name for method in available()]


def test_built_in_methods_register_through_the_hook(site) -> None:
    assert names() == BUILT_IN
    assert failures() == ()
    assert plugins.registry().methods["add"].source.distribution == "mmm-fusion"


def test_plugins_load_after_the_built_in_methods_in_the_order_of_their_names(site) -> None:
    site.install("zebra-fusion", "1.0", plugin("aaa"))
    site.install("acme-fusion", "0.2", plugin("zzz"))
    assert names() == [*BUILT_IN, "aaa", "zzz"]
    assert failures() == ()
    source = plugins.registry().methods["zzz"].source
    assert (source.distribution, source.version, source.entry_point) == ("acme-fusion", "0.2", "acme_fusion")


def test_create_passes_arguments_and_options(site) -> None:
    site.install("acme-fusion", "0.2", plugin("acme"))
    method = create("acme", 8, 6, heads=2, dropout=0.0, size=3)
    assert method.proj.weight.shape == (8, 6)
    assert method.size == 3
    assert method(torch.zeros(1, 2, 8), None).text == slice(0, 2)


def test_an_entry_point_may_be_an_object_and_the_hook_a_generator(site) -> None:
    source = f"""{plugin("one")}
class Many:
    @hookimpl
    def mmm_fusion_methods(self):
        yield Method

many = Many()
"""
    site.install("acme-fusion", "0.2", source, entry_points="[mmm_fusion]\nmany = acme_fusion:many\n")
    assert names() == [*BUILT_IN, "one"]


def test_nothing_is_imported_before_first_use(site) -> None:
    site.install("acme-fusion", "0.2", plugin("acme"))
    assert "acme_fusion" not in sys.modules
    available()
    assert "acme_fusion" in sys.modules


def test_plugins_are_loaded_once(site) -> None:
    site.install("acme-fusion", "0.2", plugin("acme"))
    first = available()
    site.install("late-fusion", "0.1", plugin("late"))
    assert available() == first


def test_threads_at_first_use_get_the_same_classes(site) -> None:
    site.install("acme-fusion", "0.2", plugin("acme", "made"))
    before, together = sys.getswitchinterval(), threading.Barrier(4)
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = [pool.submit(lambda: (together.wait(), available()[-1])[1]) for _ in range(4)]
            assert {each.result() for each in found} == {available()[-1]}
    finally:
        sys.setswitchinterval(before)


OWN = f"mmm-fusion {version('mmm-fusion')}"
NAME = "`name` must be lower case letters, digits and _, beginning with a letter"
CONSTRUCTOR = "the signature must be (dim, image_dim, *, heads, dropout, **options with defaults)"
NO_HOOK = "PluginError: no hook `mmm_fusion_methods`, marked with @hookimpl, that returns fusion methods."
NO_METADATA = "(PluginError: its metadata has no Name or no Version. Install it again.)"
BROKEN = {
    "import error": ("import foo_that_is_not_there", "ModuleNotFoundError: No module named 'foo_that_is_not_there'"),
    "syntax error": ("def (:", "SyntaxError: invalid syntax (broken_fusion.py, line 1)"),
    "exit at import": ("raise SystemExit(3)", "SystemExit: 3"),
    "error of no common kind": ("class Odd(BaseException): pass\nraise Odd('panic')", "Odd: panic"),
    "error that cannot be shown": (
        "class Mute(Exception):\n    def __str__(self): raise OSError\nraise Mute",
        "Mute: its text cannot be had, for OSError",
    ),
    "recursion at import": (
        "def f(): f()\nf()",
        "RecursionError: maximum recursion depth exceeded",
    ),
    "error at import": ("1 / 0", "ZeroDivisionError: division by zero"),
    "no hook": ("x = 1", NO_HOOK),
    "misspelt hook": (
        hook("return []").replace("methods", "method"),
        "PluginValidationError: unknown hook 'mmm_fusion_method'",
    ),
    "hook with an argument": (
        hook("return []").replace("()", "(config)"),
        "PluginValidationError: Plugin 'broken_fusion' for hook 'mmm_fusion_methods'",
    ),
    "hook that raises": (hook("raise RuntimeError('no GPU')"), "RuntimeError: no GPU"),
    "generator that raises": (hook("yield from (); raise OSError('disk')"), "OSError: disk"),
    "hook that asks the registry": (
        "import mmm_fusion\n" + plugin("broken").replace("return [", "mmm_fusion.available(); return ["),
        "PluginError: available, create, register and the like cannot be called while plug-ins load. "
        "Call them in functions that run later.",
    ),
    "module that registers its method": (
        "import mmm_fusion\n" + plugin("broken") + "mmm_fusion.register(Method)",
        "PluginError: available, create, register and the like cannot be called while plug-ins load. ",
    ),
    "hook that returns a class": (
        plugin("broken").replace("return [Method, ", "return Method; ["),
        "PluginError: mmm_fusion_methods must return an iterable of classes, got <class 'broken_fusion.Method'>.",
    ),
    "hook that returns nothing": (hook("return None"), NO_HOOK),
    "hook without an end": (
        hook("while True: yield dict"),
        "PluginError: mmm_fusion_methods must return at most 1000 classes, got more: does it ever end?",
    ),
    "hook that returns no method": (
        hook("return ()"),
        "PluginError: mmm_fusion_methods must return at least one class, got none.",
    ),
    "not a class": (
        hook("return ['mlp']"),
        "PluginError: a fusion method must be a subclass of FusionMethod, got 'mlp'.",
    ),
    "not a FusionMethod": (
        hook("return [dict]"),
        "PluginError: a fusion method must be a subclass of FusionMethod, got <class 'dict'>.",
    ),
    "no name": (
        plugin("broken").replace("    name = 'broken'\n", ""),
        f"PluginError: broken_fusion.Method: {NAME}, got None.",
    ),
    "name of another type": (
        plugin("broken").replace("name = 'broken'", "name = 7"),
        f"PluginError: broken_fusion.Method: {NAME}, got 7.",
    ),
    "name that is a property": (
        plugin("broken").replace("name = 'broken'", "name = property(lambda self: 'broken')"),
        f"PluginError: broken_fusion.Method: {NAME}, got <property object",
    ),
    "bad name": (
        plugin("Broken-1"),
        f"PluginError: broken_fusion.Method: {NAME}, got 'Broken-1'.",
    ),
    "newer contract": (
        plugin("broken").replace("class Method(FusionMethod):", "class Method(FusionMethod):\n    contract = 2"),
        "PluginError: broken_fusion.Method: `contract` must be 1, as this mmm-fusion speaks, got 2, "
        "which is newer. Upgrade mmm-fusion, or install an older version of the plug-in.",
    ),
    "contract 0": (
        plugin("broken").replace("class Method(FusionMethod):", "class Method(FusionMethod):\n    contract = 0"),
        "PluginError: broken_fusion.Method: `contract` must be 1, as this mmm-fusion speaks, got 0, "
        "which never was one. Set it to the number of the contract that the class is written for.",
    ),
    "contract as text": (
        plugin("broken").replace("class Method(FusionMethod):", "class Method(FusionMethod):\n    contract = '1'"),
        "PluginError: broken_fusion.Method: `contract` must be 1, as this mmm-fusion speaks, got '1', "
        "which never was one. Set it to the number of the contract that the class is written for.",
    ),
    "no forward": (
        plugin("broken").replace("def forward", "def fuse"),
        "PluginError: broken_fusion.Method: must define forward.",
    ),
    "no heads": (
        plugin("broken", constructor="dim, image_dim, *, dropout, size=1"),
        f"PluginError: broken_fusion.Method: {CONSTRUCTOR}, got (dim, image_dim, *, dropout, size=1).",
    ),
    "widths the other way round": (
        plugin("broken", constructor="image_dim, dim, *, heads, dropout, size=1"),
        f"PluginError: broken_fusion.Method: {CONSTRUCTOR}, got (image_dim, dim, *, heads, dropout, size=1).",
    ),
    "option without default": (
        plugin("broken", constructor="dim, image_dim, *, heads, dropout, size"),
        f"PluginError: broken_fusion.Method: {CONSTRUCTOR}, got (dim, image_dim, *, heads, dropout, size).",
    ),
    "forward without a grid": (
        plugin("broken").replace(", image_grid=None", ""),
        "PluginError: broken_fusion.Method.forward: the signature must be "
        "(self, text, image, *, text_mask=None, image_mask=None, image_grid=None), "
        "got (self, text, image, *, text_mask=None, image_mask=None).",
    ),
    "read of the text": (
        plugin("broken").replace("    def forward", "    def read(self, text, image):\n        ...\n\n    def forward"),
        "PluginError: broken_fusion.Method.read: the signature must be "
        "(self, image, *, image_mask=None, image_grid=None), got (self, text, image).",
    ),
    "join without a mask": (
        plugin("broken").replace(
            "    def forward", "    def join(self, text, memory):\n        ...\n\n    def forward"
        ),
        "PluginError: broken_fusion.Method.join: the signature must be "
        "(self, text, memory, *, text_mask=None), got (self, text, memory).",
    ),
    "extend without a mask": (
        plugin("broken").replace(
            "    def forward", "    def extend(self, text, memory):\n        ...\n\n    def forward"
        ),
        "PluginError: broken_fusion.Method.extend: the signature must be "
        "(self, text, memory, *, text_mask=None), got (self, text, memory).",
    ),
    "a built-in's name": (
        plugin("mlp"),
        f"DuplicateMethodError: fusion method 'mlp' is offered by {OWN} and broken-fusion 0.2. "
        "A built-in is never replaced. Give the other another name.",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_kept_out_and_on_record(site, case: str) -> None:
    source, cause = BROKEN[case]
    site.install("acme-fusion", "0.2", plugin("acme"))
    site.install("broken-fusion", "0.2", source)
    site.install("zebra-fusion", "1.0", plugin("zebra"))
    assert names() == [*BUILT_IN, "acme", "zebra"]
    (failure,) = failures()
    assert (failure.source.distribution, failure.source.version) == ("broken-fusion", "0.2")
    assert str(failure).startswith(f"broken-fusion 0.2 ({cause}")


@pytest.mark.parametrize("case", BROKEN)
def test_strict_raises(site, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMM_FUSION_STRICT", "1")
    source, cause = BROKEN[case]
    site.install("acme-fusion", "0.2", plugin("acme"))
    site.install("broken-fusion", "0.2", source)
    for _ in range(2):
        with pytest.raises(PluginError) as caught:
            available()
        text = "MMM_FUSION_STRICT is set, and not all plug-ins load. Failed to load: broken-fusion 0.2 "
        assert str(caught.value).startswith(f"{text}({cause}")
        assert type(caught.value.__cause__).__name__ == cause.partition(":")[0]


METADATA = {
    "no metadata": {"metadata": ""},
    "entry point without a value": {"entry_points": "[mmm_fusion]\nno equals sign\n"},
    "entry point to nowhere": {"entry_points": "[mmm_fusion]\nbroken = nowhere_at_all\n"},
}


def test_all_broken_plugins_at_once(site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The good ones, first, between and last, load as if they were alone; each failure is on record, in order."""
    site.install("aaa-fusion", "1.0", plugin("first"))
    broken = {f"broken-{number:02}-fusion": case for number, case in enumerate([*BROKEN, *METADATA])}
    for number, (distribution, case) in enumerate(broken.items()):
        module = distribution.replace("-", "_")
        source = BROKEN[case][0].replace("broken_fusion", module) if case in BROKEN else plugin("broken")
        site.install(distribution, f"0.{number}", source, **METADATA.get(case, {}))
        if number % 7 == 0:
            site.install(f"{distribution}-good", "1.0", plugin(f"good_{number:02}"))
    for distribution in ("twin-a-fusion", "twin-b-fusion"):
        site.install(distribution, "1.0", plugin("twin"))
    site.install("zzz-fusion", "1.0", plugin("last"))
    good = ["first", *(f"good_{number:02}" for number in range(0, len(broken), 7)), "last"]
    assert len(broken) > 25
    assert names() == [*BUILT_IN, *good]

    found = {re.sub(r"[-_]", "-", failure.source.distribution): failure for failure in failures()}
    assert len(failures()) == len(found) == len(broken) + 2
    assert "(DuplicateMethodError: fusion method 'twin' is offered by" in str(found["twin-b-fusion"])
    for number, (distribution, case) in enumerate(broken.items()):
        readable = case not in ("no metadata", "entry point without a value")
        failure = found[distribution if readable else f"{distribution}-0.{number}.dist-info"]  # the folder's name
        assert failure.source.version == (f"0.{number}" if readable else "")
        if case in BROKEN:
            cause = BROKEN[case][1].replace("broken_fusion", distribution.replace("-", "_"))
            assert f"({cause.replace('broken-fusion 0.2', f'{distribution} 0.{number}')}" in str(failure)
    loaded = [failure.source.distribution for failure in failures() if failure.source.entry_point]
    contested = [name for name in loaded if broken.get(name, "twin") in ("a built-in's name", "twin")]
    assert loaded == [*sorted(set(loaded) - set(contested)), *contested]  # a name is settled when all have loaded

    with pytest.raises(UnknownMethodError) as caught:
        create("nowhere", 8, 6, heads=2, dropout=0.0)
    for failure in failures():
        assert str(failure) in str(caught.value)
    monkeypatch.setenv("MMM_FUSION_STRICT", "1")
    loading.installed.cache_clear()
    with pytest.raises(PluginError) as caught:
        available()
    for failure in found:
        assert failure in re.sub(r"[-_]", "-", str(caught.value))


def test_an_interrupt_is_let_through(site) -> None:
    site.install("acme-fusion", "0.2", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        available()


def test_strict_is_content_where_all_plugins_load(site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMM_FUSION_STRICT", "1")
    site.install("acme-fusion", "0.2", plugin("acme"))
    assert names() == [*BUILT_IN, "acme"]


@pytest.mark.parametrize(
    ("broken", "cause"),
    [
        ({"metadata": ""}, NO_METADATA),
        (
            {"metadata": "Name: broken-fusion\n"},
            NO_METADATA,
        ),
        ({"entry_points": "[mmm_fusion]\nno equals sign\n"}, "(TypeError: "),
        ({"entry_points": "[mmm_fusion]\nbroken = broken_fusion::\n"}, "(AttributeError: "),
    ],
)
def test_broken_metadata_is_on_record(site, broken: dict[str, str], cause: str) -> None:
    site.install("acme-fusion", "0.2", plugin("acme"))
    site.install("broken-fusion", "0.3", plugin("broken"), **broken)
    assert names() == [*BUILT_IN, "acme"]
    (failure,) = failures()
    assert re.match(r"broken[_-]fusion[ -]0.3", str(failure))  # the folder's name, where there is no other
    assert cause in str(failure)


def test_other_entry_points_do_not_matter(site) -> None:
    site.install("other", "1.0", entry_points="[console_scripts]\nno equals sign\n", metadata="")
    site.install(
        "acme-fusion", "0.2", plugin("acme"), entry_points="[mmm_fusion_tools]\nx = y\n[mmm_fusion]\na = acme_fusion"
    )
    assert names() == [*BUILT_IN, "acme"]
    assert failures() == ()


def test_plugins_load_in_the_order_of_their_distributions(site, tmp_path: Path) -> None:
    site.install("zebra-fusion", "1.0", "1 / 0")
    site.add_folder(tmp_path / "later").install("acme-fusion", "0.2", "1 / 0")
    assert [failure.source.distribution for failure in failures()] == ["acme-fusion", "zebra-fusion"]


def test_a_method_that_says_nothing_was_written_for_contract_1(site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "CONTRACT", 2)
    with pytest.raises(PluginError) as caught:
        rules.check_method(type("Old", (Add,), {"name": "old", "__module__": "acme"}))
    assert str(caught.value) == (
        "acme.Old: `contract` must be 2, as this mmm-fusion speaks, got 1, which is older. "
        "Upgrade the plug-in, or install an older version of mmm-fusion."
    )


def join(self, text, memory, *, text_mask=None):
    return super(type(self), self).join(text, memory, text_mask=text_mask)


def extend(self, text, memory, *, text_mask=None):
    return super(type(self), self).extend(text, memory, text_mask=text_mask)


@pytest.mark.parametrize(
    ("base", "defined", "got"),
    [
        (Add, {"join": join}, "join of Both and extend of Add"),
        (Add, {"join": join, "extend": extend}, "join of Both and extend of Both"),
        (LowRank, {"extend": extend}, "join of LowRank and extend of Both"),
        (Concat, {"join": join, "extend": extend}, "join of Both and extend of Both"),
    ],
)
def test_parts_that_would_follow_from_each_other(base, defined, got: str) -> None:
    method = type("Both", (base,), {"name": "both", "__module__": "acme", **defined})
    with pytest.raises(PluginError) as caught:
        rules.check_method(method)
    assert str(caught.value) == (
        "acme.Both: of `join` and `extend` a subclass of ImageFirst must define one, its bases included, "
        f"got {got}. Define the one that the base has."
    )


@pytest.mark.parametrize(
    ("base", "defined"), [(Add, {"extend": extend}), (LowRank, {"join": join}), (Concat, {"join": join}), (Concat, {})]
)
def test_one_of_the_parts(base, defined) -> None:
    rules.check_method(type("One", (base,), {"name": "one", "__module__": "acme", **defined}))


def test_two_methods_of_one_name(site) -> None:
    site.install("zebra-fusion", "1.0", plugin("glance"))
    site.install("acme-fusion", "0.2", plugin("fine", "glance"))
    text = (
        "fusion method 'glance' is offered by acme-fusion 0.2 and zebra-fusion 1.0. None of them is loaded. "
        "Uninstall one, or choose one by MMM_FUSION_PLUGINS."
    )
    assert names() == [*BUILT_IN, "fine"]
    assert [str(failure) for failure in failures()] == [
        f"acme-fusion 0.2 (DuplicateMethodError: {text})",
        f"zebra-fusion 1.0 (DuplicateMethodError: {text})",
    ]
    with pytest.raises(DuplicateMethodError) as caught:
        create("glance", 8, 6, heads=2, dropout=0.0)
    assert str(caught.value) == text


def test_one_plugin_with_a_name_twice(site) -> None:
    site.install("acme-fusion", "0.2", plugin("glance", "glance", "fine"))
    text = "fusion method 'glance' is offered twice by acme-fusion 0.2. None of them is loaded. Give one another name."
    assert names() == [*BUILT_IN, "fine"]
    assert [str(failure) for failure in failures()] == [f"acme-fusion 0.2 (DuplicateMethodError: {text})"] * 2


def test_choosing_is_not_advised_where_it_cannot_help(site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("acme_fusion", "zebra_fusion"):
        site.install(name.replace("_", "-"), "1.0", plugin("glance"), entry_points=f"[mmm_fusion]\nglance = {name}\n")
    with pytest.raises(DuplicateMethodError) as caught:
        create("glance", 8, 6, heads=2, dropout=0.0)
    assert str(caught.value).endswith("None of them is loaded. Uninstall one.")


def test_choosing_one_of_two_settles_it(site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("acme-fusion", "0.2", plugin("glance"))
    site.install("zebra-fusion", "1.0", plugin("glance"))
    monkeypatch.setenv("MMM_FUSION_PLUGINS", "zebra_fusion")
    assert plugins.registry().methods["glance"].source.distribution == "zebra-fusion"
    assert failures() == ()


def test_a_built_in_is_never_replaced(site) -> None:
    site.install("acme-fusion", "0.2", plugin("mlp"))
    assert type(create("mlp", 8, 6, heads=2, dropout=0.0)).__module__ == "mmm_fusion.methods.mlp"


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [("", []), (" , ", []), ("acme_fusion", ["acme"]), (" zebra_fusion , acme_fusion ", ["acme", "zebra"])],
)
def test_plugins_are_chosen_by_entry_point(site, monkeypatch, chosen: str, expected: list[str]) -> None:
    monkeypatch.setenv("MMM_FUSION_PLUGINS", chosen)
    site.install("acme-fusion", "0.2", plugin("acme"))
    site.install("broken-fusion", "0.2", "1 / 0")
    site.install("zebra-fusion", "1.0", plugin("zebra"))
    assert names() == [*BUILT_IN, *expected]
    assert failures() == ()


def test_where_none_is_chosen_no_metadata_is_read(site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMM_FUSION_PLUGINS", "")
    site.install("broken-fusion", "0.2", metadata="")
    assert failures() == ()


def test_choosing_what_is_not_installed_is_recorded(site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMM_FUSION_PLUGINS", "acme_fusion,amce")
    site.install("acme-fusion", "0.2", plugin("acme"))
    assert names() == [*BUILT_IN, "acme"]
    assert [str(failure) for failure in failures()] == [
        "MMM_FUSION_PLUGINS (PluginError: no installed distribution has the entry point 'amce' in the group "
        "'mmm_fusion'.)"
    ]


def test_unknown_method(site) -> None:
    with pytest.raises(UnknownMethodError) as caught:
        create("conct", 8, 6, heads=2, dropout=0.0)
    assert str(caught.value) == (
        "fusion method 'conct' is not registered. Did you mean 'concat'? See `python -m mmm_fusion`."
    )


def test_a_name_that_is_no_text(site) -> None:
    with pytest.raises(UnknownMethodError, match=r"^fusion method \['concat'\] is not registered\. Did you mean"):
        create(["concat"], 8, 6, heads=2, dropout=0.0)


def test_unknown_method_far_from_any(site) -> None:
    with pytest.raises(UnknownMethodError) as caught:
        create("xyz", 8, 6, heads=2, dropout=0.0)
    assert str(caught.value) == (
        f"fusion method 'xyz' is not registered. Registered: {', '.join(BUILT_IN)}. See `python -m mmm_fusion`."
    )


def test_unknown_method_names_what_failed_to_load(site) -> None:
    site.install("acme-fusion", "0.2", "import foo_that_is_not_there")
    site.install("near-fusion", "1.0", plugin("cross_covariance"))
    with pytest.raises(UnknownMethodError) as caught:
        create("xcovariance", 8, 6, heads=2, dropout=0.0)
    assert str(caught.value) == (
        "fusion method 'xcovariance' is not registered. Did you mean 'cross_covariance'? Failed to load: "
        "acme-fusion 0.2 (ModuleNotFoundError: No module named 'foo_that_is_not_there'). See `python -m mmm_fusion`."
    )


def test_of_two_copies_on_the_path_the_first_counts(site, tmp_path: Path) -> None:
    site.install("acme-fusion", "0.2", plugin("acme"))
    site.add_folder(tmp_path / "later").install("acme_fusion", "0.1", plugin("acme"))
    assert names() == [*BUILT_IN, "acme"]
    assert failures() == ()
    assert plugins.registry().methods["acme"].source.version == "0.2"
