"""Models of other libraries as `MultiModalMamba`: their configs and state dicts in, ours out."""

from mmm_block.convert.conversion import assemble, convert_checkpoint
from mmm_block.convert.encoder import from_vision_tower, with_encoder
from mmm_block.convert.mamba import from_mamba
from mmm_block.convert.sources import read_source

__all__ = ["assemble", "convert_checkpoint", "from_mamba", "from_vision_tower", "read_source", "with_encoder"]
