"""What a trained method reached and what it costs, measured in the process that trained it."""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from mmm_block import ImageTokens, MultiModalMambaBlock
from mmm_train.answers import write_answers
from mmm_train.data import Batch, Example, Examples, QuestionSet, batches, collate, read_test_set
from mmm_train.data.tokenizer import IMAGE
from mmm_train.evaluate import BATCH
from mmm_train.run import pick_device

if TYPE_CHECKING:
    from mmm_block import MultiModalMamba
    from mmm_train.run import Run

TIMED = 10
"""Batches of pictures that are timed."""
SINGLE = 50
"""Questions that are timed one by one."""


def measure(run: Run) -> dict[str, Any]:
    """Measure a run whose training is over.

    Args:
        run: The run.
    Returns:
        Plain values by what they are; None where it cannot be measured.
    """
    device = pick_device(run.config.train.device)
    model = run.load_model(device)
    test = read_test_set(run.config.data)
    size = run.config.model.image_size
    examples = Examples(QuestionSet(test.name, test.pictures[: TIMED * BATCH]), run.tokenizer, size)
    tokens, once = median_tokens(model, next(batches(examples, BATCH)))
    lines = run.metrics()
    return {
        "accuracy": next((line["test"] for line in reversed(lines) if "test" in line), None),
        "parameters": _count(model),
        "fusion_parameters": _count(_block(model).fusion),
        "images_per_second": _median(line["images_per_second"] for line in lines if "images_per_second" in line),
        "tokens": tokens,
        "tokens_once": once,
        "peak_memory": max((line["peak_memory"] for line in lines if line.get("peak_memory")), default=None),
        "ms_per_answer": _ms_per_answer(run, model, examples),
        "ms_single": _ms_single(run, model, examples),
        "machine": machine(device),
    }


@torch.inference_mode()
def median_tokens(model: MultiModalMamba, batch: Batch) -> tuple[float, float]:
    """How many real tokens the Mamba layers read for a question.

    Args:
        model: The model.
        batch: Some questions.
    Returns:
        The median of all of them, and of those that stand before the question, the mark of the image included: one
        reading serves every question about the picture.
    """
    batch = batch.to(model.embedding.weight.device)
    block = _block(model)
    encoded = block.encode(batch.images)
    image = ImageTokens(encoded.tokens.index_select(0, batch.image_of), encoded.grid)
    text, mask = (F.pad(x, (1, 0), value=first) for x, first in ((batch.text, IMAGE), (batch.prompt_mask, True)))
    fused = block.fuse(model.embedding(text), image, text_mask=mask)
    real = torch.ones_like(fused.tokens[..., 0], dtype=torch.bool) if fused.mask is None else fused.mask
    before = range(fused.tokens.shape[1])[fused.text].start + 1
    return _median(real.sum(1).tolist()) or 0.0, _median(real[:, :before].sum(1).tolist()) or 0.0


def peak_memory(device: torch.device) -> int | None:
    """The most memory that was in use so far.

    Args:
        device: Where the model is.
    Returns:
        On a GPU the bytes of torch's tensors there; else those of this process, Python and torch included; None where
        the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")  # ru_maxrss begins with the size of the process that started this one
    if status.exists():
        found = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(found[0]) * 1024 if found else None
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def machine(device: torch.device) -> dict[str, Any]:
    """What speeds depend on: the processor's model, and torch's threads."""
    about = {"cpu": _cpu(), "threads": torch.get_num_threads(), "device": device.type}
    return {**about, "gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else about


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _ms_per_answer(run: Run, model: MultiModalMamba, examples: Examples) -> float:
    """Milliseconds a question, in batches of pictures as an evaluation has them; reading the pictures not counted."""
    _seconds(run, model, next(batches(examples, BATCH)))
    timed = [(_seconds(run, model, batch), len(batch.text)) for batch in batches(examples, BATCH)]
    return 1000 * sum(seconds for seconds, _ in timed) / sum(questions for _, questions in timed)


def _ms_single(run: Run, model: MultiModalMamba, examples: Examples) -> float:
    """Milliseconds for one question about one picture: the median over some pictures."""
    first = [_first_question(examples, index) for index in range(min(SINGLE, len(examples)))]
    for batch in first[:3]:
        _seconds(run, model, batch)
    return 1000 * statistics.median(_seconds(run, model, batch) for batch in first)


def _first_question(examples: Examples, index: int) -> Batch:
    image, texts = examples[index]
    return collate([Example(image, texts[:1])])


def _seconds(run: Run, model: MultiModalMamba, batch: Batch) -> float:
    before = time.perf_counter()
    write_answers(model, batch, run.tokenizer, longest=run.longest)  # text: nothing is still being computed
    return time.perf_counter() - before


def _block(model: MultiModalMamba) -> MultiModalMambaBlock:
    assert isinstance(model.backbone, MultiModalMambaBlock)  # it reads pictures
    return model.backbone


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None
