"""Puts fusion methods to the rules of the contract, and prints a line for each rule."""

from __future__ import annotations

import json
import os
import sys
import textwrap
import traceback
from collections.abc import Sequence
from typing import Any

from mmm_fusion.errors import ArgumentError, FusionError
from mmm_fusion.loading import Registered, text_of
from mmm_fusion.local import load_file
from mmm_fusion.options import check_options
from mmm_fusion.plugins import find, registry
from mmm_fusion.testing import ContractViolation, Finding, FusionContract, findings

WIDTH = 100
LONGEST = 240  # characters of what was seen: the compiler's errors fill pages


def check(name: str, given: Sequence[str]) -> int:
    """Check one method, or all of a file, and print a report.

    Args:
        name: A registered name, or the path of a Python file.
        given: Options of the method: `key=value`, or a JSON object.
    Returns:
        The exit code: 0 if all rules are kept, 1 if one is broken, 2 if there is nothing to check.
    """
    try:
        options = parsed(given)
        entries = found(name)
        for entry in entries:
            check_options(entry.method, options)
    except FusionError as error:
        print(error, file=sys.stderr)
        return 2
    return max([report(entry, options) for entry in entries])


def found(name: str) -> list[Registered]:
    """The method of that name, or those of the file."""
    if not (name.endswith(".py") or os.sep in name):
        return [find(name)]
    methods = load_file(name)
    return [registry().methods[method.name] for method in methods]


def parsed(given: Sequence[str]) -> dict[str, Any]:
    """Options from the command line.

    Raises:
        ArgumentError: One is neither `key=value` nor a JSON object.
    """
    options: dict[str, Any] = {}
    for each in given:
        key, equals, value = each.partition("=")
        if key.isidentifier() and equals:
            options[key] = _value(value)
            continue
        whole = _value(each)
        if not isinstance(whole, dict):
            raise ArgumentError(f"--options: must be key=value or a JSON object, got {each!r}. For example: ratio=2.")
        options |= whole
    return options


def report(entry: Registered, options: dict[str, Any]) -> int:
    """Run every rule, and print what came of each as soon as it is known; 1 if one is broken."""
    method = entry.method
    kit = type("Check", (FusionContract,), {"method": method, "options": options})
    chosen = f", {', '.join(f'{key}={value!r}' for key, value in options.items())}" if options else ""
    print(f"{method.name}: {entry.source}{chosen}", flush=True)
    rules, broken, before = 0, 0, ""
    for finding in findings(kit):
        rules += 1
        what = "" if finding.error is None else seen(finding.error)
        broken += bool(what)
        print(lines(finding, "Seen: the same." if what == before else what), flush=True)
        before = what or before
    verdict = f"{broken} of {rules} rules are BROKEN" if broken else f"all {rules} rules are kept"
    print(f"{method.name}: {verdict}.")
    return 1 if broken else 0


def lines(finding: Finding, what: str) -> str:
    """One line for a rule that is kept; for one that is broken what was seen, the rule, and what to do."""
    if finding.error is None:
        return f"  {coloured('pass', 32)}    {finding.name}"
    paragraphs = (what, f"Rule: {finding.rule.says}", f"To do: {finding.rule.remedy}")
    indent = " " * 10
    wrapped = [
        textwrap.fill(each, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ") for each in paragraphs
    ]
    return "\n".join([f"  {coloured('BROKEN', 31)}  {finding.name}", *wrapped])


def seen(error: BaseException) -> str:
    """What the kit saw, or where the method crashed and by what."""
    if isinstance(error, ContractViolation):
        return textwrap.shorten(str(error), LONGEST, placeholder=" …")
    *_, last = traceback.extract_tb(error.__traceback__)
    text = textwrap.shorten(f"{type(error).__name__}: {text_of(error)}", LONGEST, placeholder=" …")
    return f"Seen: {text} ({os.path.basename(last.filename)}, line {last.lineno})"


def coloured(word: str, code: int) -> str:
    """The word in a colour of the terminal; plain where there is none, or NO_COLOR asks for that."""
    return f"\x1b[{code}m{word}\x1b[0m" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else word


def _value(text: str) -> Any:
    """What JSON reads in the text, or the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
