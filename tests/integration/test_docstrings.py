"""Every public name says what it is, what it takes and what it gives."""

import dataclasses
import importlib
import inspect
import re

import pytest

PACKAGES = ["mmm_core", "mmm_vit", "mmm_fusion", "mmm_block", "mmm_train", "mmm_fusion_film"]
PUBLIC = [f"{package}.{name}" for package in PACKAGES for name in importlib.import_module(package).__all__]


def look_up(path: str) -> object:
    package, _, name = path.partition(".")
    return getattr(importlib.import_module(package), name)


def undocumented(thing: object) -> list[str]:
    """What the docstring of a public function or class leaves out."""
    text = inspect.getdoc(thing) or ""
    missing = [] if text else ["docstring"]
    if inspect.isclass(thing) and (issubclass(thing, BaseException) or "__init__" not in vars(thing)):
        return missing
    if not (inspect.isclass(thing) or inspect.isroutine(thing)):
        return missing
    signature = inspect.signature(thing)
    # The fields of a data class may stand below their docstrings, one by one.
    fields = {field.name for field in dataclasses.fields(thing)} if dataclasses.is_dataclass(thing) else set()
    named = [name for name in signature.parameters if name not in fields]
    missing += [name for name in named if not re.search(rf"\b{re.escape(name)}\b", text)]
    if named and not re.search(r"^Args:$", text, flags=re.MULTILINE):
        missing.append("Args:")
    gives = not inspect.isclass(thing) and signature.return_annotation not in (None, "None", "NoReturn")
    if gives and not re.search(r"^(Returns|Yields):$", text, flags=re.MULTILINE):
        missing.append("Returns:")
    return missing


@pytest.mark.parametrize("package", PACKAGES)
def test_package_exports_what_it_lists(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__doc__
    assert len(set(module.__all__)) == len(module.__all__)


@pytest.mark.parametrize("path", PUBLIC)
def test_public_name_is_documented(path: str) -> None:
    thing = look_up(path)
    if inspect.isclass(thing) or inspect.isroutine(thing):
        assert undocumented(thing) == []


def test_an_undocumented_parameter_is_seen() -> None:
    def scale(x: float, by: float) -> float:
        """Scale a number.

        Args:
            x: The number.
        """
        return x * by

    assert undocumented(scale) == ["by", "Returns:"]
