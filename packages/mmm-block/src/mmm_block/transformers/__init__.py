"""`MultiModalMamba` as a model of transformers: importing this registers it with the Auto classes.

`Trainer`, PEFT and `pipeline` then take it as they take transformers' own models. The model holds our modules and runs
our code; a folder that the one saved, the other loads.
"""

try:
    from transformers import __version__
except ImportError as error:
    raise ImportError(
        "mmm_block.transformers: transformers 5.24 or newer was expected, got none. "
        'Run `pip install "mmm-block[transformers]"`.'
    ) from error

if tuple(map(int, __version__.split(".")[:2])) < (5, 24):
    raise ImportError(
        f"mmm_block.transformers: transformers 5.24 or newer was expected, got {__version__}. "
        'Run `pip install --upgrade "mmm-block[transformers]"`.'
    )

from mmm_block.transformers.auto import register
from mmm_block.transformers.cache import MultiModalMambaCache
from mmm_block.transformers.config import MultiModalMambaHfConfig
from mmm_block.transformers.modeling import MultiModalMambaForConditionalGeneration, MultiModalMambaOutput
from mmm_block.transformers.processing import MultiModalMambaImageProcessor, MultiModalMambaProcessor

register()

__all__ = [
    "MultiModalMambaCache",
    "MultiModalMambaForConditionalGeneration",
    "MultiModalMambaHfConfig",
    "MultiModalMambaImageProcessor",
    "MultiModalMambaOutput",
    "MultiModalMambaProcessor",
]
