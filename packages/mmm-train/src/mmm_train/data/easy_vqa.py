"""Reads easy-vqa: drawings of one coloured shape each, with questions, from the package of that name on PyPI.

The package is found but never imported: only its data folder is read.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Literal

from mmm_train.data.metadata import group
from mmm_train.data.questions import Question, QuestionSet
from mmm_train.errors import DataError

EASY_VQA = "easy-vqa"


def read_easy_vqa(part: Literal["train", "test"]) -> QuestionSet:
    """Read one part of easy-vqa's official split.

    Args:
        part: "train", 4,000 pictures and 38,575 questions, or "test", 1,000 and 9,673.
    Returns:
        Its pictures in the order of their numbers.
    Raises:
        DataError: The package is not installed, or lacks its files.
    """
    found = importlib.util.find_spec("easy_vqa")
    if found is None or found.origin is None:
        raise DataError('easy-vqa is not installed. Install it with: pip install "mmm-train[demo]"')
    folder = Path(found.origin).parent / "data" / part
    try:
        rows = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{error.filename}: easy-vqa's questions were expected; {error.strerror}.") from error
    rows.sort(key=lambda row: row[2])  # stable: a picture's questions keep their order
    asked = [(folder / "images" / f"{image}.png", Question(text, answer)) for text, answer, image in rows]
    return group(f"{EASY_VQA} {part}", asked)
