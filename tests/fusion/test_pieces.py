"""Texts that are joined piece by piece: what is kept between two pieces, and methods that know nothing of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from mmm_fusion import (
    FusionMethod,
    FusionOutput,
    ImageFirst,
    ImageMemory,
    InputError,
    check_image,
    check_inputs,
    check_text,
    create,
)
from mmm_fusion.builtin import mmm_fusion_methods
from mmm_fusion.methods import Add, Concat
from mmm_fusion_film import Film

METHODS = [*mmm_fusion_methods(), Film]
NAMES = [method.name for method in METHODS]
PLACED = ["add", "mlp", "visual_expert"]
"""The methods to which the place of a word, or the words before it, matter."""


def made(name: str) -> FusionMethod:
    """With weights that leave no gate closed."""
    method = create(name, 8, 6, heads=2, dropout=0.0).double().eval()
    for parameter in method.parameters():
        nn.init.normal_(parameter, std=0.5)
    return method


def inputs(l: int = 5, p: int = 12) -> tuple[Tensor, Tensor]:
    return torch.randn(3, l, 8).double(), torch.randn(3, p, 6).double()


def in_pieces(method: FusionMethod, text: Tensor, memory: ImageMemory, *cut: int) -> Tensor:
    tokens = []
    for piece in text.split(list(cut), dim=1):
        joined, memory = method.extend(piece, memory)
        tokens.append(joined)
    return torch.cat(tokens, dim=1)


class BeforeThereWasExtend(FusionMethod):
    """Each word, plus the mean of the words so far and of the image: `forward` is all that it defines."""

    name = "before"

    def __init__(self, dim, image_dim, *, heads, dropout):
        super().__init__()
        self.dim, self.image_dim = dim, image_dim
        self.proj = nn.Linear(image_dim, dim, bias=False)

    def forward(self, text, image, *, text_mask=None, image_mask=None, image_grid=None):
        masks = {"text_mask": text_mask, "image_mask": image_mask}
        text, image = check_inputs(self, text, image, **masks, image_grid=image_grid)
        real = torch.ones_like(text[..., :1]) if text_mask is None else text_mask[..., None]
        mean = text.cumsum(dim=1) / real.cumsum(dim=1).clamp(min=1)
        return FusionOutput(text + mean + self.proj(image.sum(dim=1))[:, None], slice(0, text.shape[1]), text_mask)


class BeforeInParts(ImageFirst):
    """The same in two parts: it defines `join`, and says nothing of `tokenwise`."""

    name = "before_in_parts"

    def __init__(self, dim, image_dim, *, heads, dropout):
        super().__init__()
        self.dim, self.image_dim = dim, image_dim
        self.proj = nn.Linear(image_dim, dim, bias=False)

    def read(self, image, *, image_mask=None, image_grid=None):
        image = check_image(self, image, image_mask=image_mask, image_grid=image_grid)
        return ImageMemory(image.new_zeros(len(image), 0, self.dim), context=(self.proj(image.sum(dim=1))[:, None],))

    def join(self, text, memory, *, text_mask=None):
        text = check_text(self, text, memory=memory, text_mask=text_mask)
        real = torch.ones_like(text[..., :1]) if text_mask is None else text_mask[..., None]
        return text + text.cumsum(dim=1) / real.cumsum(dim=1).clamp(min=1) + memory.context[0]


@pytest.mark.parametrize("kind", [BeforeThereWasExtend, BeforeInParts])
def test_a_method_written_before_there_were_pieces(kind: type[FusionMethod]) -> None:
    method = kind(8, 6, heads=2, dropout=0.0).double()
    text, image = inputs()
    mask = torch.tensor([[1, 1, 0, 0, 1], [0, 0, 1, 1, 1], [1, 1, 1, 1, 0]], dtype=torch.bool)
    start = method.read(image)
    torch.testing.assert_close(in_pieces(method, text, start, 2, 0, 1, 2), method(text, image).tokens)
    whole = method(text, image, text_mask=mask).tokens
    first, memory = method.extend(text[:, :2], start, text_mask=mask[:, :2])
    last, memory = method.extend(text[:, 2:], memory, text_mask=mask[:, 2:])
    torch.testing.assert_close(torch.cat([first, last], dim=1)[mask], whole[mask])
    assert memory.past[0].shape == (3, 5, 8)  # the text itself
    assert torch.equal(memory.past[1], mask)


def test_a_mask_may_come_with_a_later_piece_alone() -> None:
    method = BeforeThereWasExtend(8, 6, heads=2, dropout=0.0).double()
    text, image = inputs()
    mask = torch.tensor([[1, 1, 1, 0, 1], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]], dtype=torch.bool)
    _, memory = method.extend(text[:, :2], method.read(image))
    assert memory.past[1] is None
    last = method.join(text[:, 2:], memory, text_mask=mask[:, 2:])
    expected = method(text, image, text_mask=mask).tokens[:, 2:]
    torch.testing.assert_close(last[mask[:, 2:]], expected[mask[:, 2:]])


class Quiet(Concat):
    """Adds to what its base has, and says nothing of pieces."""

    name = "quiet"
    tokenwise = False

    def join(self, text, memory, *, text_mask=None):
        return 2 * super().join(text, memory, text_mask=text_mask)


class Louder(Add):
    """The same of a base with an `extend`."""

    name = "louder"

    def extend(self, text, memory, *, text_mask=None):
        tokens, memory = super().extend(text, memory, text_mask=text_mask)
        return 2 * tokens, memory


class Counting(Concat):
    """The same of a base without one."""

    name = "counting"

    def extend(self, text, memory, *, text_mask=None):
        tokens, memory = super().extend(text, memory, text_mask=text_mask)
        return 2 * tokens, memory


@pytest.mark.parametrize("kind", [Quiet, Louder, Counting])
def test_a_subclass_that_asks_its_base(kind: type[FusionMethod]) -> None:
    method = kind(8, 6, heads=2, dropout=0.0).double()
    base = kind.__mro__[1](8, 6, heads=2, dropout=0.0).double()
    base.load_state_dict(method.state_dict())
    text, image = inputs()
    expected = base(text, image)
    assert torch.equal(method(text, image).tokens[:, expected.text], 2 * expected.tokens[:, expected.text])
    torch.testing.assert_close(in_pieces(method, text, method.read(image), 2, 3), 2 * expected.tokens[:, expected.text])


class Silent(ImageFirst):
    """All of its image before the text, and no word on `tokenwise`."""

    name = "silent"

    def __init__(self, dim, image_dim, *, heads, dropout):
        super().__init__()
        self.dim, self.image_dim = dim, image_dim
        self.proj = nn.Linear(image_dim, dim)

    def read(self, image, *, image_mask=None, image_grid=None):
        return ImageMemory(self.proj(check_image(self, image, image_mask=image_mask, image_grid=image_grid)))


def test_a_prefix_alone_needs_to_keep_nothing() -> None:
    method = Silent(8, 6, heads=2, dropout=0.0).double()
    text, image = inputs()
    memory = method.read(image)
    tokens, after = method.extend(text, memory)
    assert tokens is text
    assert after is memory


@pytest.mark.parametrize("name", NAMES)
def test_tokenwise_methods_keep_nothing_of_the_text(name: str) -> None:
    method = made(name)
    assert method.tokenwise == (name not in PLACED)
    text, image = inputs()
    memory = method.read(image)
    assert memory.past == ()
    assert (method.extend(text, memory)[1] is memory) == method.tokenwise


@pytest.mark.parametrize("name", ["add", "mlp"])
def test_of_the_text_so_far_a_number_is_kept(name: str) -> None:
    method = made(name)
    text, image = inputs(l=40)
    mask = torch.arange(40).expand(3, 40) % torch.tensor([[2], [3], [41]]) == 0
    _, memory = method.extend(text, method.read(image), text_mask=mask)
    _, memory = method.extend(text[:, :7], memory)
    (count,) = memory.past
    assert (count.tolist(), count.dtype) == ([27, 21, 8], torch.int64)


def test_visual_expert_keeps_keys_and_values_of_the_text() -> None:
    method = made("visual_expert")
    text, image = inputs(l=5, p=12)
    _, memory = method.extend(text, method.read(image))
    k, v, mask, count = memory.past
    assert k.shape == v.shape == (3, 2, 17, 4)
    assert mask is None
    assert count.tolist() == [5, 5, 5]


@pytest.mark.parametrize("name", PLACED)
def test_a_row_whose_piece_is_all_padding_goes_on_as_it_was(name: str) -> None:
    method = made(name)
    text, image = inputs(l=6)
    _, begun = method.extend(text[:, :2], method.read(image))
    pause = torch.tensor([[True, True], [False, False], [True, False]])
    noise = text[:, 2:4].masked_fill(~pause[..., None], float("nan"))
    _, after = method.extend(noise, begun, text_mask=pause)
    went_on, waited = method.join(text[:, 4:], after)[1], method.join(text[:, 4:], begun)[1]
    torch.testing.assert_close(went_on, waited)


@pytest.mark.parametrize("name", NAMES)
def test_pieces_of_another_number_of_rows_are_refused(name: str) -> None:
    method = made(name)
    text, image = inputs()
    with pytest.raises(InputError) as caught:
        method.extend(text[:2], method.read(image))
    assert str(caught.value) == (
        f"fusion method '{name}': `memory` must have b = 2 rows as `text`, got 3. "
        "Give each text the row of its image: memory.rows(index)."
    )


@torch.no_grad()
@pytest.mark.parametrize("name", PLACED)
def test_one_graph_serves_every_further_word(name: str) -> None:
    method, counter = made(name), CompileCounter()
    torch.compiler.reset()
    extend = torch.compile(method.extend, fullgraph=True, backend=counter)
    text, image = inputs(l=40)
    expected = method.join(text, method.read(image))
    graphs, tokens, memory = [], [], method.read(image)
    for piece in text.split([10, *[1] * 30], dim=1):
        joined, memory = extend(piece, memory)
        tokens.append(joined)
        graphs.append(counter.frame_count)
    torch.testing.assert_close(torch.cat(tokens, dim=1), expected)
    assert graphs[4:] == [graphs[4]] * 27


class Counter(TorchDispatchMode):
    """Counts calls of torch's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["concat", "cross_attention", "matmul", "film"])
def test_forward_sets_padding_to_zero_once(name: str) -> None:
    method = made(name)
    text, image = inputs()
    text_mask, image_mask = torch.rand(3, 5) < 0.5, torch.rand(3, 12) < 0.5
    image_mask[:, 0] = True
    with Counter() as both:
        method(text, image, text_mask=text_mask, image_mask=image_mask)
    with Counter() as apart:
        method.join(text, method.read(image, image_mask=image_mask), text_mask=text_mask)
    assert both.calls.count("masked_fill") == apart.calls.count("masked_fill")


@pytest.mark.parametrize("name", ["concat", "cross_attention", "low_rank"])
def test_a_word_of_a_tokenwise_method_costs_what_join_costs(name: str) -> None:
    method = made(name)
    text, image = inputs(l=1)
    memory = method.read(image)
    with Counter() as joined:
        method.join(text, memory)
    with Counter() as extended:
        method.extend(text, memory)
    assert extended.calls == joined.calls
