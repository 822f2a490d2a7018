"""Reads an image folder: pictures beside a metadata.csv that says which question each answers, and how.

The layout is the image folder of Hugging Face's `datasets`, with the columns file_name, question and answer.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from mmm_train.data.questions import Picture, Question, QuestionSet
from mmm_train.errors import DataError

COLUMNS = ("file_name", "question", "answer")


def read_metadata(folder: str | Path) -> QuestionSet:
    """Read the questions of an image folder.

    Args:
        folder: Holds metadata.csv and the pictures that its file_name column names; other columns are ignored.
    Returns:
        The pictures in the order of their first line, each with all its questions.
    Raises:
        DataError: The folder, the file, a column, a value or a picture is missing.
    """
    path = Path(folder) / "metadata.csv"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.DictReader(file)
            _check_header(path, lines.fieldnames or ())
            found = [_read_line(path, lines.line_num, line) for line in lines]
    except OSError as error:
        raise DataError(f"{path}: a metadata file was expected; {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV file in UTF-8: {error}.") from error
    if not found:
        raise DataError(f"{path}: no line follows the header. Add one line a question.")
    return group(str(folder), found)


def group(name: str, found: list[tuple[Path, Question]]) -> QuestionSet:
    """Put the questions of one picture together, pictures in the order of their first question."""
    by_path: dict[Path, list[Question]] = {}
    for path, question in found:
        by_path.setdefault(path, []).append(question)
    return QuestionSet(name, tuple(Picture(path, tuple(asked)) for path, asked in by_path.items()))


def _check_header(path: Path, header: Sequence[str]) -> None:
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise DataError(
            f"{path}: the first line must name the columns {', '.join(COLUMNS)}; "
            f"missing: {', '.join(missing)}; got {', '.join(header) or 'nothing'}."
        )


def _read_line(path: Path, number: int, line: dict[str, str | None]) -> tuple[Path, Question]:
    file_name, question, answer = (" ".join((line[name] or "").split()) for name in COLUMNS)
    for name, value in zip(COLUMNS, (file_name, question, answer), strict=True):
        if not value:
            raise DataError(f"{path}, line {number}: {name} is empty.")
    picture = path.parent / file_name
    if not os.path.isfile(picture):  # unlike Path.is_file, it takes a name that the system refuses for a missing file
        raise DataError(f"{path}, line {number}: picture '{file_name}' is not in the folder.")
    return picture, Question(question, answer.lower())
