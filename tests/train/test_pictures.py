"""From files to tensors: every kind of picture, broken ones, and changes that are the same when repeated."""

import io
import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmm_train import DataError, Picture, Question, QuestionSet
from mmm_train.data import Augment, check_pictures, open_picture, to_bytes, to_tensor


def noise(width: int = 24, height: int = 16) -> Image.Image:
    chance = random.Random(0)
    return Image.frombytes("RGB", (width, height), chance.randbytes(3 * width * height))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_values_and_axes(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 2), "black")
    image.putpixel((1, 0), (255, 0, 51))  # x, y
    image.save(tmp_path / "a.png")
    values = to_tensor(to_bytes(open_picture(tmp_path / "a.png"), 2))
    assert values.dtype == torch.float32
    assert values[:, 0, 1].tolist() == pytest.approx([1, -1, -0.6])
    assert (values[:, 1] == -1).all()


def test_resized_only_where_sizes_differ() -> None:
    exact = to_tensor(to_bytes(noise(16, 16), 16))
    assert torch.equal(exact, (torch.tensor(noise(16, 16).get_flattened_data()).T.view(3, 16, 16) / 127.5 - 1))
    assert to_tensor(to_bytes(noise(24, 16), 16)).shape == (3, 16, 16)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.tiff"
    noise().convert(mode).save(path)
    assert open_picture(path).mode == "RGB"
    assert open_picture(path).size == (24, 16)


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    image.save(tmp_path / "a.png")
    image.convert("P").save(tmp_path / "b.png", transparency=0)
    assert open_picture(tmp_path / "a.png").getpixel((1, 0)) == (255, 255, 255)
    assert open_picture(tmp_path / "a.png").getpixel((0, 0)) == (255, 0, 0)
    assert open_picture(tmp_path / "b.png").mode == "RGB"


def test_upright_as_the_camera_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    noise(24, 16).save(tmp_path / "a.jpg", exif=exif)
    assert open_picture(tmp_path / "a.jpg").size == (16, 24)


def message(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_picture(path)
    return str(caught.value)


def test_broken_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    assert message(path) == f"{path}: a picture was expected, got No such file or directory."
    path.write_text("no picture")
    assert message(path) == f"{path}: a picture was expected, got a file that is none."
    path.write_bytes(b"")
    assert message(path) == f"{path}: a picture was expected, got a file that is none."
    path.write_bytes(encoded(noise(), "PNG")[:-200])
    assert message(path).startswith(f"{path}: a picture was expected, got ")
    Image.new("I;16", (4, 4)).save(path)
    assert message(path) == f"{path}: a picture was expected, got mode I;16: save it with 8 bits a channel."


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, which also warns of some
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP"])
def test_truncated_or_scrambled_files_raise_nothing_else(tmp_path: Path, kind: str) -> None:
    whole = encoded(noise(), kind)
    chance = random.Random(0)
    path = tmp_path / "a"
    said = []
    for _ in range(150):
        broken = bytearray(whole[: chance.randrange(1, len(whole))] if chance.random() < 0.5 else whole)
        for _ in range(chance.randrange(8)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        path.write_bytes(broken)
        try:
            assert open_picture(path).mode == "RGB"
        except DataError as error:
            said.append(str(error))
    assert len(said) > 50
    assert [text for text in said if not text.startswith(f"{path}: a picture was expected, got ")] == []


def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "exceeds limit of 200 pixels" in message(tmp_path / "a.png")


def test_all_pictures_are_checked(tmp_path: Path) -> None:
    asked = (Question("what?", "red"),)
    for number in range(5):
        noise().save(tmp_path / f"{number}.png")
    data = QuestionSet("some", tuple(Picture(tmp_path / f"{number}.png", asked) for number in range(5)))
    seen: list[int] = []
    check_pictures(data, seen.append)
    assert seen == [1] * 5
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:100])
    with pytest.raises(DataError, match=r"3\.png: a picture was expected, got "):
        check_pictures(data)


def test_the_same_place_gives_the_same_change() -> None:
    image = to_tensor(to_bytes(noise(16, 16), 16))
    change = Augment(flip=True, shift=3, seed=0, epoch=2)
    changed = [change(image, index) for index in range(20)]
    assert all(torch.equal(again, change(image, index)) for index, again in enumerate(changed))
    other_epoch = Augment(flip=True, shift=3, seed=0, epoch=3)
    assert any(not torch.equal(other, other_epoch(image, index)) for index, other in enumerate(changed))
    assert len({tuple(one.flatten().tolist()) for one in changed}) > 10


def test_flip_mirrors_about_half() -> None:
    image = to_tensor(to_bytes(noise(16, 16), 16))
    change = Augment(flip=True, shift=0, seed=0, epoch=0)
    flipped = [torch.equal(change(image, index), image.flip(-1)) for index in range(200)]
    kept = [torch.equal(change(image, index), image) for index in range(200)]
    assert sum(flipped) + sum(kept) == 200
    assert 70 < sum(flipped) < 130


def test_shift_moves_by_whole_pixels_in_both_directions() -> None:
    image = torch.zeros(3, 9, 9)
    image[:, 4, 4] = 1
    change = Augment(flip=False, shift=2, seed=0, epoch=0)
    places = set()
    for index in range(300):
        moved = change(image, index)
        assert moved.shape == image.shape
        assert moved.sum() == 3
        places.add(tuple(moved[0].nonzero()[0].tolist()))
    assert places == {(y, x) for y in range(2, 7) for x in range(2, 7)}
    nothing = Augment(flip=False, shift=0, seed=0, epoch=0)
    assert torch.equal(nothing(image, 0), image)
