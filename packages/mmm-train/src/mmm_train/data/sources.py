"""From the settings to the two sets: one to learn from, one to test on."""

from __future__ import annotations

from typing import Literal

from mmm_train.config import DataConfig
from mmm_train.data.easy_vqa import EASY_VQA, read_easy_vqa
from mmm_train.data.metadata import read_metadata
from mmm_train.data.questions import QuestionSet


def read_sets(config: DataConfig) -> tuple[QuestionSet, QuestionSet]:
    """Read the training and the test set.

    Args:
        config: Names the folders, or easy-vqa.
    Returns:
        The training set and the test set.
    Raises:
        DataError: A folder, a file or a value is missing.
    """
    train = _read(config.train, "train")
    if config.test is not None:
        return train, _read(config.test, "test")
    if config.train == EASY_VQA:
        return train, read_easy_vqa("test")
    return train.hold_out(config.holdout)


def read_test_set(config: DataConfig) -> QuestionSet:
    """Read the test set alone; the training folder is needed only where the test set is a part of it.

    Args:
        config: Names the folders, or easy-vqa.
    Returns:
        The test set.
    Raises:
        DataError: A folder, a file or a value is missing.
    """
    return read_sets(config)[1] if config.test is None else _read(config.test, "test")


def _read(source: str, part: Literal["train", "test"]) -> QuestionSet:
    return read_easy_vqa(part) if source == EASY_VQA else read_metadata(source)
