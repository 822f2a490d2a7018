"""Which class transformers' Auto classes and pipelines take for a `multimodal_mamba`."""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from mmm_block.checkpoint import MODEL_TYPE
from mmm_block.transformers.config import MultiModalMambaHfConfig
from mmm_block.transformers.modeling import MultiModalMambaForConditionalGeneration
from mmm_block.transformers.processing import MultiModalMambaImageProcessor, MultiModalMambaProcessor


def register() -> None:
    """Tell transformers of our classes."""
    AutoConfig.register(MODEL_TYPE, MultiModalMambaHfConfig)
    for auto in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText):
        auto.register(MultiModalMambaHfConfig, MultiModalMambaForConditionalGeneration)
    AutoImageProcessor.register(MultiModalMambaHfConfig, image_processor_classes={"pil": MultiModalMambaImageProcessor})
    AutoProcessor.register(MultiModalMambaHfConfig, MultiModalMambaProcessor)
