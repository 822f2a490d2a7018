"""FiLM as a fusion method: an example of a plug-in for `mmm-fusion`."""

from .film import Film

__all__ = ["Film"]
