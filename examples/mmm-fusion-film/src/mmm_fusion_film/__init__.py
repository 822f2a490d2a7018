"""FiLM as a fusion method: an example of a plug-in for `mmm-fusion`."""

from mmm_fusion_film.film import Film

__all__ = ["Film"]
