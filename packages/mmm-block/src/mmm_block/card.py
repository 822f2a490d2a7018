"""The model card: what a checkpoint is, and how to load it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmm_block.origins import origin, requirement
from mmm_block.weights import own_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from mmm_block.config import MultiModalMambaConfig

TEMPLATE = """\
---
{{ card_data }}
---

# {{ model_id | default("A MultiModalMamba", true) }}

{{ summary }}

{{ description | default("What it was trained on, and what it is good for, is not written yet.", true) }}

| | |
| --- | --- |
{% for name, value in sizes.items() -%}
| {{ name }} | {{ value }} |
{% endfor %}
## Load it

```console
$ pip install mmm-block{{ " " + plugin if plugin else "" }}
```

```python
from mmm_block import MultiModalMamba

model = MultiModalMamba.from_pretrained("{{ model_id | default("path/of/this/folder", true) }}")
```
"""
OURS = ("mmm-fusion", "mmm-block")


def card_values(model: nn.Module, config: MultiModalMambaConfig, source: Mapping[str, str]) -> dict[str, object]:
    """What the template says of a model.

    Args:
        model: The model.
        config: Its config.
        source: Where its fusion method comes from, see `mmm_block.origins`; empty in a model without images.
    Returns:
        The values of `TEMPLATE`.
    """
    tensors = own_tensors(model).values()
    dtypes = sorted({str(each.dtype).removeprefix("torch.") for each in tensors if each.is_floating_point()})
    sizes: dict[str, object] = {
        "parameters": f"{sum(each.numel() for each in tensors):,}",
        "dtype": ", ".join(dtypes),
        "vocabulary": f"{config.vocab_size:,}",
        "Mamba layers": f"{config.depth} of width {config.dim}, state {config.d_state}",
    }
    if config.image_size is None:
        return {"sizes": sizes, "summary": "A language model on Mamba layers.", "plugin": ""}
    sizes |= {
        "images": f"{_pixels(config.image_size)} pixels, patches of {_pixels(config.patch_size)}",
        "encoder": f"ViT, depth {config.encoder_depth}, width {config.encoder_dim}",
        "fusion method": f"`{config.fusion_method}` of {origin(source)}, contract {config.fusion_contract}",
    }
    foreign = source.get("distribution") not in OURS
    return {
        "sizes": sizes,
        "summary": "A language model on Mamba layers that reads images where they stand in the text. "
        f"A Vision Transformer encodes them, and the fusion method `{config.fusion_method}` of {origin(source)} "
        "brings them to the text.",
        "plugin": requirement(source) if foreign else "",
    }


def _pixels(size: int | tuple[int, int]) -> str:
    y, x = (size, size) if isinstance(size, int) else size
    return f"{y} × {x}"
