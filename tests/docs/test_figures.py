"""Every fusion method of this repository has a section, a figure and a row; the figures are what their script draws."""

import re
import runpy
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import mmm_block.fusion_plugin
import mmm_fusion.builtin
import mmm_fusion_film.film

ROOT = Path(__file__).parents[2]
OFFERS = (mmm_fusion.builtin, mmm_block.fusion_plugin, mmm_fusion_film.film)
METHODS = sorted(method.name for offer in OFFERS for method in offer.mmm_fusion_methods())
SVG = "{http://www.w3.org/2000/svg}"


DRAWN: dict[str, str] = runpy.run_path(str(ROOT / "docs/figures/fusion.py"))["files"]()


def page(name: str) -> str:
    return (ROOT / "docs/concepts" / name).read_text(encoding="utf-8")


def test_every_method_has_a_figure() -> None:
    assert sorted(DRAWN) == sorted(f"{method}.svg" for method in METHODS)


def test_the_folder_holds_what_the_script_draws() -> None:
    folder = ROOT / "docs/assets/fusion"
    stale = "run `python docs/figures/fusion.py`"
    assert {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} == DRAWN, stale


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_section_with_its_figure(method: str) -> None:
    sections = re.findall(r"^##+ `(\w+)`.*?\n\n(.*?)(?=^##|\Z)", page("fusion-methods.md"), re.MULTILINE | re.DOTALL)
    text = dict(sections)[method]
    assert f'--8<-- "docs/assets/fusion/{method}.svg"' in text
    for fact in ("Paper", "Parameters", "Cost", "When"):
        assert f"- **{fact}**: " in text


@pytest.mark.parametrize("name", ["fusion-methods.md", "choosing-fusion.md"])
def test_every_method_has_a_row(name: str) -> None:
    rows = re.findall(r"^\| (.*?) \|", page(name), re.MULTILINE)
    assert sorted(set(re.findall(r"`(\w+)`", " ".join(rows)))) == METHODS


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_a_figure_can_be_heard(name: str) -> None:
    figure = ElementTree.fromstring(DRAWN[name])
    (title,), (description,) = figure.findall(f"{SVG}title"), figure.findall(f"{SVG}desc")
    assert re.fullmatch(rf"{Path(name).stem}: .+", title.text or "")
    assert re.fullmatch(r".+\.", description.text or "")
    assert figure.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"


def test_ids_of_figures_on_one_page_differ() -> None:
    ids = [id for text in DRAWN.values() for id in re.findall(r' id="([^"]+)"', text)]
    assert len(ids) == 2 * len(DRAWN) == len(set(ids))


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_nothing_leaves_the_figure(name: str) -> None:
    """A letter is taken for 8.5 units wide, more than system fonts take on average."""
    figure = ElementTree.fromstring(DRAWN[name])
    width, height = map(float, figure.get("viewBox", "").split()[2:])
    spans = []
    for text in figure.iter(f"{SVG}text"):
        x, length = float(text.get("x", "nan")), 8.5 * len(text.text or "")
        left = x if "left" in text.get("class", "") else x - length / 2
        spans.append((left, left + length, width))
    for box in figure.iter(f"{SVG}rect"):
        x, y, w, h = (float(box.get(key, "nan")) for key in ("x", "y", "width", "height"))
        spans += [(x, x + w, width), (y, y + h, height)]
    assert [span for span in spans if not 0 <= span[0] < span[1] <= span[2]] == []
