"""The built-in fusion methods, one file each."""

from .add import Add
from .concat import Concat
from .mlp import MLP
from .visual_expert import VisualExpert

__all__ = ["MLP", "Add", "Concat", "VisualExpert"]
