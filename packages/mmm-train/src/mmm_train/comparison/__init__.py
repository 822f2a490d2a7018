"""Every fusion method trained on the same data with the same settings, and what each reached and cost."""

from mmm_train.comparison.running import compare
from mmm_train.comparison.summary import Comparison

__all__ = ["Comparison", "compare"]
