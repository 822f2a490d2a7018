"""The fusion methods that need a scan, under the contract."""

from mmm_block.methods import CrossMamba, State
from mmm_fusion.testing import FusionContract


class TestState(FusionContract):
    method = State


class TestSmallState(FusionContract):
    method = State
    options = {"d_state": 3, "d_conv": 2, "expand": 1}


class TestCrossMamba(FusionContract):
    method = CrossMamba


class TestSmallCrossMamba(FusionContract):
    method = CrossMamba
    options = {"d_state": 3, "d_conv": 2, "expand": 1}
