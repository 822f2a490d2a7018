"""`FusionContract`: the rules of the contract as tests, for any fusion method.

Subclass it in a test file, and pytest runs one test for each rule:

    class TestFilm(FusionContract):
        method = Film

It needs no pytest itself. All parameters are moved away from their initial values first, so that a gate which is
zero at the start does not make a method seem to ignore the image.
"""

from __future__ import annotations

from mmm_fusion.testing.batch import BatchRules
from mmm_fusion.testing.compilation import CompilationRules
from mmm_fusion.testing.dependence import DependenceRules
from mmm_fusion.testing.form import FormRules
from mmm_fusion.testing.gradients import GradientRules
from mmm_fusion.testing.layout import LayoutRules
from mmm_fusion.testing.module import ModuleRules
from mmm_fusion.testing.parts import PartsRules
from mmm_fusion.testing.pieces import PiecesRules
from mmm_fusion.testing.precision import PrecisionRules
from mmm_fusion.testing.rule import ContractViolation, Rule
from mmm_fusion.testing.runner import Finding, findings, rules_of
from mmm_fusion.testing.state import StateRules

__all__ = ["ContractViolation", "Finding", "FusionContract", "Rule", "findings", "rules_of"]


class FusionContract(
    FormRules,
    DependenceRules,
    BatchRules,
    PartsRules,
    PiecesRules,
    GradientRules,
    ModuleRules,
    CompilationRules,
    StateRules,
    LayoutRules,
    PrecisionRules,
):
    """One test method for each rule of the contract.

    Set `method` in a subclass. The sizes may be set too, where a method can work only with some.

    Attributes:
        method: The class under test.
        options: Its own options.
        dim: Width of the text.
        image_dim: Width of the image tokens.
        heads: Attention heads.
    """
