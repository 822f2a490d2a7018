"""For each rule of the contract, methods that break it: the kit rejects each by the rules named at it, and no other.

The first rule named is the one meant; the others follow from it. The methods stand in `broken_methods/`, a file for
each group of rules.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from mmm_fusion import FusionMethod
from mmm_fusion.testing import ContractViolation, FusionContract, findings
from mmm_fusion.testing.settings import SETTINGS, generators, settings, settings_kept

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package

from broken_methods import (  # noqa: F401
    batch,
    compilation,
    form,
    gradients,
    layout,
    module,
    parts,
    pieces,
    precision,
    state,
)
from broken_methods.dependence import NeedsAnImage, ReadsTheFuture
from broken_methods.right import BROKEN, RULES, Right, RightConcat, RightInParts, RightOnAGrid
from broken_methods.unusual import UNUSUAL, GRUOverTheText

COMPILED = [Right, RightConcat, RightOnAGrid, RightInParts, GRUOverTheText]


def broken_rules(method: type[FusionMethod]) -> dict[str, Exception]:
    """What the kit says of a method, by rule."""
    kit = type("TestBroken", (FusionContract,), {"method": method})()
    found = {}
    for rule in RULES:
        if rule == "compiles" and method not in COMPILED and rule not in BROKEN.get(method, []):
            continue  # the slow one; the built-in methods pass it
        try:
            getattr(kit, f"test_{rule}")()
        except Exception as error:
            found[rule] = error
    return found


@pytest.mark.parametrize("method", [Right, RightConcat, RightOnAGrid, RightInParts, *UNUSUAL])
def test_a_right_method_is_accepted(method: type[FusionMethod]) -> None:
    assert broken_rules(method) == {}


@pytest.mark.parametrize("method", BROKEN, ids=lambda method: method.__name__)
def test_a_broken_method_is_rejected_by_its_rule(method: type[FusionMethod]) -> None:
    found = broken_rules(method)
    assert set(found) == set(BROKEN[method]), {rule: repr(error) for rule, error in found.items()}
    for error in found.values():
        says, remedy = error.__notes__
        assert says.startswith("Rule: ")
        assert remedy.startswith("To do: ")


def test_every_rule_rejects_a_method() -> None:
    assert {rules[0] for rules in BROKEN.values()} == set(RULES)


def test_a_violation_says_what_was_seen_the_rule_and_the_remedy() -> None:
    error = broken_rules(ReadsTheFuture)["causal"]
    assert isinstance(error, ContractViolation)
    assert str(error) == "Seen: text from 1 on changes the output at text position 0 or before it."
    assert error.__notes__ == [
        "Rule: the output at text position i depends on the image and on text up to i; image tokens depend on no text.",
        "To do: attend, convolve and scan over the text from the left only.",
    ]


def test_a_crash_carries_the_rule_too() -> None:
    error = broken_rules(NeedsAnImage)["no_image"]
    assert isinstance(error, TypeError)
    assert error.__notes__[1] == "To do: begin forward with check_inputs: it makes a missing image one of no tokens."


class Exits(Right):
    def fuse(self, text, image, **masks):
        sys.exit(0)


def test_a_method_that_exits_ends_neither_the_rule_nor_the_report() -> None:
    found = list(findings(type("Kit", (FusionContract,), {"method": Exits})))
    assert [finding.name for finding in found] == RULES
    (crash,) = (finding for finding in found if finding.name == "causal")
    assert isinstance(crash.error, SystemExit)
    assert crash.error.__notes__[0] == f"Rule: {crash.rule.says}"


class Interrupted(Right):
    def fuse(self, text, image, **masks):
        raise KeyboardInterrupt


def test_an_interrupt_ends_the_report() -> None:
    with pytest.raises(KeyboardInterrupt):
        list(findings(type("Kit", (FusionContract,), {"method": Interrupted})))


@pytest.mark.parametrize("method", [Right, *(each for each, rules in BROKEN.items() if rules[0] == "global_state")])
def test_the_kit_leaves_the_global_state_alone(method: type[FusionMethod]) -> None:
    before = generators(), settings()
    broken_rules(method)
    assert (generators(), settings()) == before


OTHER = {
    "the default device": torch.device("meta"),
    "the inference mode": True,
    "the default dtype": torch.float64,
    "the dtype of autocast on cpu": torch.float16,
    "the dtype of autocast on cuda": torch.bfloat16,
    "the number of threads": torch.get_num_threads() + 1,
    "the float32 matmul precision": "high",
    **{name: "tf32" for name in SETTINGS if name.startswith("the float32 precision")},
    "the float32 precision of cuDNN": "ieee",
}
"""Another value of the settings that are not on or off."""


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_is_seen_and_put_back(name: str) -> None:
    before, (read, write) = settings(), SETTINGS[name]
    other = OTHER.get(name, not read())
    with settings_kept():
        if name == "the inference mode":
            mode = torch.inference_mode()
            mode.__enter__()
        else:
            write(other)
        assert read() == other
    assert settings() == before
