"""Image folders with a metadata.csv: what is read, and one clear error for each thing that is wrong."""

from pathlib import Path

import pytest
from PIL import Image

from mmm_train import DataError, Picture, Question, QuestionSet, read_metadata


def write(folder: Path, text: str, *pictures: str) -> Path:
    for name in pictures:
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    (folder / "metadata.csv").write_bytes(text.encode())
    return folder


def test_questions_are_grouped_by_picture(tmp_path: Path) -> None:
    text = "file_name,question,answer\nb.png,What?,Red\na/a.png,Is it?,YES\nb.png,Why?,so\n"
    data = read_metadata(write(tmp_path, text, "b.png", "a/a.png"))
    assert data == QuestionSet(
        str(tmp_path),
        (
            Picture(tmp_path / "b.png", (Question("What?", "red"), Question("Why?", "so"))),
            Picture(tmp_path / "a/a.png", (Question("Is it?", "yes"),)),
        ),
    )


def test_spreadsheet_files_are_read(tmp_path: Path) -> None:
    text = '\ufeffanswer,id,question,file_name\r\n"light, blue",7," what\nis  it ",a.png\r\n'
    data = read_metadata(write(tmp_path, text, "a.png"))
    assert data.pictures[0].questions == (Question("what is it", "light, blue"),)


def test_captions(tmp_path: Path) -> None:
    text = "file_name,caption,question\nb.png,A  red Ball .,ignored\na.png,two\n"
    data = read_metadata(write(tmp_path, text, "a.png", "b.png"))
    assert [picture.questions for picture in data.pictures] == [(Question("", "a red ball."),), (Question("", "two"),)]


def test_questions_and_captions_beside_each_other(tmp_path: Path) -> None:
    text = "file_name,question,answer,caption\na.png,What?,red,A ball\na.png,Why?,so,\nb.png,,,A box\n"
    data = read_metadata(write(tmp_path, text, "a.png", "b.png"))
    assert data.pictures[0].questions == (Question("What?", "red"), Question("", "a ball"), Question("Why?", "so"))
    assert data.pictures[1].questions == (Question("", "a box"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "file,question\na.png,what?\n",
            "{csv}: the first line must name the columns file_name, question, answer, or file_name, caption, "
            "got file, question.",
        ),
        (
            "",
            "{csv}: the first line must name the columns file_name, question, answer, or file_name, caption, "
            "got nothing.",
        ),
        ("file_name,question,answer\n", "{csv}: no line follows the header. Add one line a question or caption."),
        ("file_name,question,answer\na.png,what?,red\na.png,what?\n", "{csv}, line 3: answer is empty."),
        ("file_name,question,answer\na.png,  ,red\n", "{csv}, line 2: question is empty."),
        ("file_name,question,answer\nb.png,what?,red\n", "{csv}, line 2: picture 'b.png' is not in the folder."),
        ("file_name,question,answer\na.png,,\n", "{csv}, line 2: question is empty."),
        ("file_name,caption\na.png, \n", "{csv}, line 2: caption is empty."),
        ("file_name,caption,question\n,so,\n", "{csv}, line 2: file_name is empty."),
        ("file_name,caption,question,answer\na.png,so,what?,\n", "{csv}, line 2: answer is empty."),
        ("file_name,question,answer\n.,what?,red\n", "{csv}, line 2: picture '.' is not in the folder."),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, text, "a.png")
    with pytest.raises(DataError) as caught:
        read_metadata(tmp_path)
    assert str(caught.value) == message.format(csv=tmp_path / "metadata.csv")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_metadata(tmp_path / "nowhere")
    path = tmp_path / "nowhere" / "metadata.csv"
    assert str(caught.value) == f"{path}: a metadata file was expected; No such file or directory."


def test_not_text(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_bytes(b"file_name,question,answer\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"metadata.csv: not a CSV file in UTF-8: 'utf-8' codec can't decode"):
        read_metadata(tmp_path)


def some(count: int) -> QuestionSet:
    asked = (Question("what?", "red"),)
    return QuestionSet("some", tuple(Picture(Path(f"{number}.png"), asked) for number in range(count)))


@pytest.mark.parametrize(("count", "part", "held"), [(20, 0.1, 2), (20, 0.25, 5), (2, 0.01, 1), (3, 0.99, 2)])
def test_hold_out(count: int, part: float, held: int) -> None:
    data = some(count)
    rest, out = data.hold_out(part)
    assert len(out.pictures) == held
    assert {*rest.pictures, *out.pictures} == {*data.pictures}
    assert not {*rest.pictures} & {*out.pictures}
    backwards = QuestionSet("some", data.pictures[::-1]).hold_out(part)
    assert {*backwards[1].pictures} == {*out.pictures}


def test_hold_out_of_one() -> None:
    with pytest.raises(DataError) as caught:
        some(1).hold_out(0.5)
    assert str(caught.value) == "some: holding out needs 2 pictures or more, got 1. Give data.test."


def test_fingerprint_is_of_the_content() -> None:
    data = some(3)
    moved = QuestionSet("elsewhere", tuple(Picture("/x" / p.path, p.questions) for p in data.pictures))
    other = QuestionSet("some", (*data.pictures[:2], Picture(Path("2.png"), (Question("what?", "blue"),))))
    assert moved.fingerprint() == data.fingerprint()
    assert len({data.fingerprint(), other.fingerprint(), some(2).fingerprint()}) == 3
