"""Methods of this process alone: those of a file that is no package, and classes made in a session or notebook."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import shlex
import sys
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from mmm_fusion.discovery import Source
from mmm_fusion.errors import DuplicateMethodError, PluginError
from mmm_fusion.hookspecs import mmm_fusion_methods
from mmm_fusion.interface import FusionMethod
from mmm_fusion.loading import Registered, loaded, methods_of, text_of
from mmm_fusion.rules import check_method

_here: dict[str, tuple[str, Registered]] = {}
"""By name: what a method replaces when it is registered again (the file, or the class), and the method."""


def register(*methods: type[FusionMethod]) -> None:
    """Register methods by their names, for this process.

    For classes made in a notebook or a script. A cell that is run again replaces its class: that of the same module,
    qualified name and `name`.

    Args:
        methods: The classes.
    Raises:
        PluginError: One is not a fusion method of this contract; names the class and the rule. None is registered.
        DuplicateMethodError: A name is taken by another method. None is registered.
    """
    for method in methods:
        check_method(method)
    _enter(
        [
            (f"{each.__module__}.{each.__qualname__}:{each.name}", Registered(each, Source(place=each.__module__)))
            for each in methods
        ]
    )


def load_file(path: str | os.PathLike[str]) -> tuple[type[FusionMethod], ...]:
    """Load a fusion method from one file, without a package, and register it for this process.

    The methods are those that the hook `mmm_fusion_methods` of the file offers; where it has no hook, the subclasses of
    `FusionMethod` that it defines with a `name` of their own. The same file loaded again replaces what it gave before;
    a model of the class before works on, but can be pickled no more.

    Args:
        path: A Python file. What is beside it cannot be imported from it.
    Returns:
        The classes, now registered by their names.
    Raises:
        PluginError: There is no such file, it does not run, has no method, or one that breaks a rule. Names the file.
        DuplicateMethodError: A name is taken by a method from elsewhere. Names both.
    """
    given, file = os.fspath(path), Path(path).resolve()
    if not file.is_file():
        raise PluginError(
            f"{given}: must be the path of a Python file, got none. Give it as seen from {Path.cwd()}, or in full."
        )
    with _module(file) as module:
        try:
            _run(module, file)
            methods = _methods_in(module)
        except PluginError as error:
            raise PluginError(f"{given}: {error} Repair the file, and load it again.") from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a stranger's code may raise anything, even SystemExit
            cause = f"{type(error).__name__}: {text_of(error)}"
            raise PluginError(f"{given}: does not load ({cause}). {_remedy(error, given, file)}") from error
        _enter([(str(file), Registered(each, Source(place=given))) for each in methods])
    return tuple(methods)


def registered_here() -> list[Registered]:
    """The methods of this process, in the order of their registration."""
    return [registered for _, registered in _here.values()]


def _enter(offers: list[tuple[str, Registered]]) -> None:
    """Register all of the offers, or none, in place of what the same files or classes gave before."""
    known, replaced = loaded(), {key for key, _ in offers}
    entered = {name: entry for name, entry in _here.items() if entry[0] not in replaced}
    for key, offer in offers:
        name = offer.method.name
        other = known.methods.get(name) or (entered[name][1] if name in entered else None)
        if other or name in known.contested:
            taken = f"fusion method '{name}' is offered by {other.source} already." if other else known.contested[name]
            raise DuplicateMethodError(
                f"{offer.source}, {offer.method.__qualname__}: {taken} Give this one another name."
            )
        entered[name] = (key, offer)
    _here.clear()
    _here.update(entered)


def _remedy(error: BaseException, given: str, file: Path) -> str:
    """What to do about a file that does not run."""
    missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if missing and ((file.parent / missing).is_dir() or (file.parent / f"{missing}.py").is_file()):
        return (
            f"A file is loaded alone, without the '{missing}' beside it: make one file or a package of them, "
            "or put their folder on PYTHONPATH."
        )
    return f"Repair it: `python {shlex.quote(given)}` shows where."


@contextlib.contextmanager
def _module(file: Path) -> Iterator[ModuleType]:
    """A new module for the file, in `sys.modules`, where inspect and pickle look; after an error the one before."""
    name = f"_mmm_fusion_file_{file.stem}_{hashlib.sha1(str(file).encode()).hexdigest()[:8]}"
    before = sys.modules.get(name)
    spec = spec_from_file_location(name, file, loader=SourceFileLoader(name, str(file)))
    assert spec is not None  # it has a loader
    sys.modules[name] = module_from_spec(spec)
    try:
        yield sys.modules[name]
    except BaseException:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
        raise


def _run(module: ModuleType, file: Path) -> None:
    """Compiled anew, and kept nowhere: a cache of compiled files takes a change within one second for none."""
    exec(compile(file.read_bytes(), str(file), "exec", dont_inherit=True), vars(module))


def _methods_in(module: ModuleType) -> list[type[FusionMethod]]:
    """What the hook offers, or the methods that are defined in the module."""
    if any(_is_hook(name, value) for name, value in vars(module).items()):
        return methods_of(module)
    classes = [value for value in vars(module).values() if inspect.isclass(value) and issubclass(value, FusionMethod)]
    own = [each for each in dict.fromkeys(classes) if each.__module__ == module.__name__]
    methods = [each for each in own if "name" in vars(each)]  # a base of others has none, or inherits it
    if not methods:
        got = ", ".join(each.__qualname__ for each in own) or "none"
        raise PluginError(f"must define a subclass of FusionMethod with a `name` of its own, got {got}.")
    for method in methods:
        check_method(method)
    return methods


def _is_hook(name: str, value: object) -> bool:
    """A function that has the hook's name, or that is marked as a hook: its name may be misspelt."""
    return inspect.isfunction(value) and (name == mmm_fusion_methods.__name__ or hasattr(value, "mmm_fusion_impl"))
