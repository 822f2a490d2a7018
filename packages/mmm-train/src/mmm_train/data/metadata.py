"""Reads an image folder: pictures beside a metadata.csv with questions and answers about them, or captions.

The layout is the image folder of Hugging Face's `datasets`, with the columns file_name, question and answer, or
file_name and caption, or all four.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from mmm_train.data.questions import Picture, Question, QuestionSet
from mmm_train.data.tokenizer import normal
from mmm_train.errors import DataError

Form = tuple[str, ...]
ASKED: Form = ("question", "answer")
SAID: Form = ("caption",)


def read_metadata(folder: str | Path) -> QuestionSet:
    """Read the questions and captions of an image folder.

    Args:
        folder: Holds metadata.csv and the pictures that its file_name column names; other columns are ignored. A line
            has a question and its answer, or a caption, or both.
    Returns:
        The pictures in the order of their first line, each with all its questions.
    Raises:
        DataError: The folder, the file, a column, a value or a picture is missing.
    """
    path = Path(folder) / "metadata.csv"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.DictReader(file)
            forms = _read_header(path, lines.fieldnames or ())
            found = [each for line in lines for each in _read_line(path, lines.line_num, line, forms)]
    except OSError as error:
        raise DataError(f"{path}: a metadata file was expected; {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV file in UTF-8: {error}.") from error
    if not found:
        raise DataError(f"{path}: no line follows the header. Add one line a question or caption.")
    return group(str(folder), found)


def group(name: str, found: list[tuple[Path, Question]]) -> QuestionSet:
    """Put the questions of one picture together, pictures in the order of their first question."""
    by_path: dict[Path, list[Question]] = {}
    for path, question in found:
        by_path.setdefault(path, []).append(question)
    return QuestionSet(name, tuple(Picture(path, tuple(asked)) for path, asked in by_path.items()))


def _read_header(path: Path, header: Sequence[str]) -> list[Form]:
    """What the lines may hold."""
    forms = [form for form in (ASKED, SAID) if {"file_name", *form} <= set(header)]
    if not forms:
        raise DataError(
            f"{path}: the first line must name the columns file_name, question, answer, or file_name, caption, "
            f"got {', '.join(header) or 'nothing'}."
        )
    return forms


def _read_line(
    path: Path, number: int, line: dict[str, str | None], forms: Sequence[Form]
) -> list[tuple[Path, Question]]:
    names = ["file_name", *(name for form in forms for name in form)]
    values = {name: " ".join((line[name] or "").split()) for name in names}
    values |= {name: normal(values[name]) for name in ("answer", "caption") if name in values}
    told = [form for form in forms if any(values[name] for name in form)] or [forms[0]]
    for name in ("file_name", *(name for form in told for name in form)):
        if not values[name]:
            raise DataError(f"{path}, line {number}: {name} is empty.")
    picture = path.parent / values["file_name"]
    if not os.path.isfile(picture):  # unlike Path.is_file, it takes a name that the system refuses for a missing file
        raise DataError(f"{path}, line {number}: picture '{values['file_name']}' is not in the folder.")
    return [(picture, Question(values["question"] if form == ASKED else "", values[form[-1]])) for form in told]
