"""`ModelState`: copied, picked, joined, stored, gone back to, and refused where it does not fit."""

import json
import os
import pickle

import pytest
import safetensors.torch
import torch

import mmm_fusion
from mmm_block import CheckpointError, InputError, ModelState
from mmm_block.state_file import write_state

METHODS = [method.name for method in mmm_fusion.available()]
methods = pytest.mark.parametrize("method", METHODS)
MARK = 3
IDS = torch.tensor([[5, MARK, 7, 8], [9, 10, 11, 12], [MARK, 13, MARK, 14]])
NEXT = torch.tensor([[6, 7], [8, 9], [10, 11]])


def read(model, ids=IDS, **options):
    """The state behind texts, some of them with images."""
    generator = torch.Generator().manual_seed(1)
    marks = int((ids == MARK).sum())
    images = torch.randn(marks, 3, 16, 24, generator=generator) if marks else None
    with torch.no_grad():
        return model(ids, images, return_state=True, **options).state


@torch.no_grad()
def follow(model, state, ids=NEXT):
    return model(ids, state=state).logits


def tensors(state):
    """All tensors of a state."""
    found = [state.length, *(each for layer in state.layers for each in layer)]
    for rows, memory in state.groups:
        found += [each for each in (rows, *memory.context, *getattr(memory, "past", ())) if torch.is_tensor(each)]
    return found


@methods
def test_forward_never_writes_a_state_so_an_earlier_one_is_there_to_go_back_to(small, method):
    model = small(fusion_method=method)
    state = read(model)
    before = [each.clone() for each in tensors(state)]
    first = follow(model, state)
    with torch.no_grad():
        model(IDS, torch.randn(3, 3, 16, 24), state=state, return_state=True)
        model(NEXT, state=state, attention_mask=torch.tensor([[1, 1], [0, 1], [0, 0]]), return_state=True)
    assert all(torch.equal(one, other) for one, other in zip(before, tensors(state), strict=True))
    assert torch.equal(follow(model, state), first)


@methods
@pytest.mark.parametrize("mark", [MARK, None])
def test_a_state_keeps_no_memory_for_image_tokens_that_the_layers_have_read(small, method, mark):
    model = small(fusion_method=method, image_token_id=mark)
    for token, images in ((9, None), (MARK, torch.randn(1, 3, 16, 24))):
        ((_, memory),) = model(torch.tensor([[token, 7]]), images, return_state=True).state.groups
        assert memory.prefix.untyped_storage().nbytes() == 0


@methods
def test_a_clone_is_free_of_the_state(small, method):
    model = small(fusion_method=method)
    state = read(model)
    kept, expected = state.clone(), follow(model, state)
    for column in NEXT.T:
        model.step(column, state)
    assert not torch.allclose(follow(model, state), expected, atol=1e-4)
    assert torch.equal(follow(model, kept), expected)
    assert kept.length.tolist() == [4, 4, 4]
    assert state.length.tolist() == [6, 6, 6]


@methods
@pytest.mark.parametrize("index", [[0, 1, 2], [2, 0], [1], [1, 1, 0, 2, 2]], ids=str)
def test_rows_go_on_as_they_would_have(small, method, index):
    model = small(fusion_method=method)
    state = read(model)
    index = torch.tensor(index)
    picked = state.rows(index)
    torch.testing.assert_close(follow(model, picked, NEXT[index]), follow(model, state)[index], atol=1e-5, rtol=1e-5)
    model.step(NEXT[index, 0], picked)  # of its own memory
    assert torch.equal(follow(model, state), follow(model, read(model)))


@methods
def test_joined_states_go_on_as_each_would_have(small, method):
    model = small(fusion_method=method)
    parts = [read(model), read(model, IDS[1:2, :3]), read(model, IDS[:1])]
    expected = torch.cat([follow(model, part, NEXT[: len(part.length)]) for part in parts])
    joined = ModelState.cat(parts)
    assert joined.length.tolist() == [4, 4, 4, 3, 4]
    ids = torch.cat([NEXT, NEXT[:1], NEXT[:1]])
    torch.testing.assert_close(follow(model, joined, ids), expected, atol=1e-5, rtol=1e-5)
    back = joined.rows(torch.tensor([3]))
    torch.testing.assert_close(follow(model, back, NEXT[:1]), expected[3:4], atol=1e-5, rtol=1e-5)


def test_joined_rows_whose_images_are_of_one_form_are_fused_together(small):
    model = small(fusion_method="mlp")
    state = read(model)
    apart = [state.rows(torch.tensor([row])) for row in (2, 0, 1)]
    joined = ModelState.cat(apart)
    assert len(joined.groups) <= len(state.groups)


def test_joined_states_of_a_model_of_text_alone(small):
    model = small(image_size=None, image_token_id=None)
    ids = torch.tensor([[5, 7], [8, 9]])
    joined = ModelState.cat([read(model, ids[:1]), read(model, ids[1:])])
    torch.testing.assert_close(follow(model, joined, ids), follow(model, read(model, ids), ids))


@methods
def test_saved_and_loaded(small, method, tmp_path):
    model = small(fusion_method=method)
    state = read(model)
    state.save(tmp_path / "chat.safetensors")
    loaded = ModelState.load(str(tmp_path / "chat.safetensors"))
    assert torch.equal(follow(model, loaded), follow(model, state))
    assert torch.equal(loaded.length, state.length)
    assert [path.name for path in tmp_path.iterdir()] == ["chat.safetensors"]


def test_saved_and_loaded_in_bfloat16_with_padding_and_a_gradient(small, tmp_path):
    model = small(fusion_method="concat").to(torch.bfloat16)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    state = model(IDS, torch.randn(3, 3, 16, 24).bfloat16(), attention_mask=mask, return_state=True).state
    assert state.layers[0].ssm.requires_grad
    state.save(tmp_path / "chat")
    loaded = ModelState.load(tmp_path / "chat", device="cpu")
    assert all(torch.equal(*pair) for pair in zip(tensors(state), tensors(loaded), strict=True))
    assert [each.dtype for each in tensors(state)] == [each.dtype for each in tensors(loaded)]


def test_a_failure_leaves_the_old_file(small, tmp_path, monkeypatch):
    path, model = tmp_path / "chat", small()
    read(model).save(path)
    before = path.read_bytes()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        read(model, IDS[:1]).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["chat"]


def test_what_cannot_be_stored(small, tmp_path):
    state = read(small(fusion_method="mlp"))
    memory = state.groups[0].memory
    state.groups = (state.groups[0]._replace(memory=memory._replace(context=(*memory.context, object()))),)
    with pytest.raises(InputError) as caught:
        state.save(tmp_path / "chat")
    place = len(memory.context)
    assert str(caught.value) == (
        f"ModelState.save: `groups.0.memory.context.{place}` must be a tensor, a tuple or a plain value, got object. "
        "Have the fusion method keep tensors."
    )
    assert list(tmp_path.iterdir()) == []


def refused(path):
    with pytest.raises(CheckpointError) as caught:
        ModelState.load(path)
    return str(caught.value)


def test_no_file(tmp_path):
    assert refused(tmp_path / "chat") == f"{tmp_path}: chat was expected, got none. Copy or download it anew."
    assert refused(tmp_path).startswith(f"{tmp_path}: a whole safetensors file was expected, got one that is damaged: ")


@pytest.mark.parametrize("keep", [0, 4, 60, 0.5, 0.99, -1])
def test_a_truncated_file(small, tmp_path, keep):
    path = tmp_path / "chat"
    read(small()).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    message = refused(path)
    assert message.startswith(f"{path}: a whole safetensors file was expected, got one that is damaged: ")
    assert message.endswith(" Copy or download it anew.")


def test_an_altered_file(small, tmp_path):
    path = tmp_path / "chat"
    read(small()).save(path)
    content = path.read_bytes()
    for place in range(8, len(content), 41):  # behind the length of the header
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert str(path) in refused(path)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 64]))
    assert refused(path) == (
        f"{path}: the checksum of what ModelState.save wrote was expected, got another: it is damaged. Copy it anew."
    )


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("boom",)


@pytest.mark.parametrize("protocol", [2, 4, "zip"])
def test_a_pickle_is_named_as_one_and_not_run(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "chat"
    if protocol == "zip":
        torch.save(Bomb(), path)
    else:
        path.write_bytes(pickle.dumps(Bomb(), protocol))
    assert refused(path) == (
        f"{path}: a safetensors file was expected, got a pickle, which runs code when it is read. "
        "Save it as safetensors where it was made."
    )
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_file_of_other_tensors(tmp_path, metadata):
    path = tmp_path / "weights"
    safetensors.torch.save_file({"weight": torch.ones(2)}, path, metadata)
    got = "other tensors" if metadata is None else "pt"
    assert refused(path) == (
        f"{path}: what ModelState.save writes ('mmm_block.ModelState 1') was expected, got {got}. Name another file."
    )


def stored(path, tree, monkeypatch):
    """A whole file of another tree."""
    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", lambda *_: tree)
        write_state(path, {})


@pytest.mark.parametrize(
    ("tree", "got"),
    [
        ("[" * 200_000, "RecursionError: maximum recursion depth exceeded"),
        ("{", "JSONDecodeError: "),
        ("[]", "AttributeError: "),
        ('{"layers": [], "groups": [], "length": {"tensor": "length"}, "fusion": null}', "KeyError: 'length'"),
        ('{"layers": [], "groups": [], "length": null}', "a file without fusion. "),  # as before there was one
        ('{"layers": [[1]], "groups": [], "length": null, "fusion": null}', "another tree: "),
        ('{"layers": 3, "groups": [], "length": null, "fusion": null}', "another tree: "),
    ],
)
def test_a_whole_file_of_another_tree(tmp_path, monkeypatch, tree, got):
    path = tmp_path / "chat"
    stored(path, tree, monkeypatch)
    message = refused(path)
    assert message.startswith(f"{path}: what this ModelState.save writes was expected, got {got}")
    assert message.endswith(" Save the state anew, with the version that reads it.")


def test_a_file_that_may_not_be_read(small, tmp_path, monkeypatch):
    path = tmp_path / "chat"
    read(small()).save(path)

    def refuse(*_, **__):
        raise FileNotFoundError("No such file or directory")  # so safetensors says

    monkeypatch.setattr(safetensors, "safe_open", refuse)
    assert refused(path) == (
        f"{path}: a file that may be read was expected, got one that may not. Look at its permissions."
    )


def test_the_file_can_be_read_without_this_package(small, tmp_path):
    state = read(small(fusion_method="concat"))
    state.save(tmp_path / "chat")
    with safetensors.safe_open(tmp_path / "chat", "pt") as file:
        assert torch.equal(file.get_tensor("layers.1.ssm"), state.layers[1].ssm)
        assert torch.equal(file.get_tensor("length"), state.length)
        assert set(json.loads(file.metadata()["tree"])) == {"layers", "groups", "length", "fusion"}


@pytest.mark.parametrize("way", ["forward", "step"])
@pytest.mark.parametrize(
    ("fields", "rows", "message"),
    [
        (
            {},
            [0, 1],
            "must have b = 3 rows as `input_ids`, got 2. "
            "state.rows(index) picks rows, and ModelState.cat joins those of several states.",
        ),
        (
            {"depth": 3},
            [0, 1, 2],
            "must have 2 layers of conv (b, e, k-1) and ssm (b, e, n) = (3, 32, 3) and (3, 32, 4), "
            "got 3 of (3, 32, 3) and (3, 32, 4). It is another model's.",
        ),
        (
            {"dim": 8},
            [0, 1, 2],
            "must have 2 layers of conv (b, e, k-1) and ssm (b, e, n) = (3, 32, 3) and (3, 32, 4), ",
        ),
        ({"d_state": 5}, [0, 1, 2], "must have 2 layers of conv (b, e, k-1) and ssm (b, e, n) = "),
        ({"d_conv": 3}, [0, 1, 2], "must have 2 layers of conv (b, e, k-1) and ssm (b, e, n) = "),
        (
            {"image_size": None, "image_token_id": None},
            [0, 1, 2],
            'must be that of a model with the fusion method mlp {"heads": 2}, got one without a fusion method. '
            "It is another model's.",
        ),
    ],
)
def test_a_state_that_does_not_fit(small, way, fields, rows, message):
    other, model = small(**fields), small()
    state = read(other, torch.tensor([[5, 7], [8, 9], [10, 11]])[rows])
    with pytest.raises(InputError) as caught:
        model(NEXT, state=state) if way == "forward" else model.step(NEXT[:, 0], state)
    assert str(caught.value).startswith(f"MultiModalMamba: `state` {message}")


def test_a_state_with_images_for_a_model_without(small):
    model = small(image_size=None, image_token_id=None)
    with pytest.raises(InputError, match="a model without a fusion method, got one with the fusion method mlp"):
        model(NEXT, state=read(small()))


@pytest.mark.parametrize("way", ["kept", "cloned", "picked", "joined", "stored", "gone on from"])
def test_a_state_of_another_fusion_method_of_equal_sizes(small, way, tmp_path):
    other, model = small(fusion_method="add"), small(fusion_method="concat")
    state = read(other)
    if way == "cloned":
        state = state.clone()
    elif way == "picked":
        state = state.rows(torch.tensor([2, 1, 0]))
    elif way == "joined":
        state = ModelState.cat([state.rows(torch.tensor([row])) for row in range(3)])
    elif way == "stored":
        state.save(tmp_path / "chat")
        state = ModelState.load(tmp_path / "chat")
    elif way == "gone on from":
        state = read(other, NEXT, state=state)
    for call in (lambda: model(NEXT, state=state), lambda: model.step(NEXT[:, 0], state)):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == (
            'MultiModalMamba: `state` must be that of a model with the fusion method concat {"heads": 2}, '
            'got one with the fusion method add {"heads": 2}. It is another model\'s.'
        )


@pytest.mark.parametrize("fields", [{"fusion_options": {"ratio": 2.0}}, {"heads": 1}])
def test_a_state_of_the_same_method_with_other_options(small, tmp_path, fields):
    read(small(**fields)).save(tmp_path / "chat")
    with pytest.raises(InputError, match="`state` must be that of a model with the fusion method mlp"):
        small()(NEXT, state=ModelState.load(tmp_path / "chat"))
    small(**fields)(NEXT, state=ModelState.load(tmp_path / "chat"))


def test_no_states_are_not_joined():
    with pytest.raises(InputError, match="`states` must be one state at least, got none"):
        ModelState.cat([])


def test_states_that_come_one_by_one_are_joined(small):
    state = read(small())
    joined = ModelState.cat(state.rows(torch.tensor([row])) for row in (1, 0))
    assert torch.equal(joined.length, state.length[[1, 0]])


@pytest.mark.parametrize("index", [0, [0], torch.tensor(0), torch.tensor([True, False, True])])
def test_row_numbers_that_are_none(small, index):
    with pytest.raises(InputError, match="`index` must be a tensor of row numbers"):
        read(small()).rows(index)


def test_states_of_several_fusion_methods_are_not_joined(small):
    with pytest.raises(InputError) as caught:
        ModelState.cat([read(small(fusion_method=method)) for method in ("add", "concat", "add")])
    assert str(caught.value) == (
        'ModelState.cat: `states` must be of one fusion method and its options, got add {"heads": 2}, '
        'concat {"heads": 2}. Join those of one model.'
    )


def test_what_is_no_state(small):
    with pytest.raises(InputError) as caught:
        small()(NEXT, state={"layers": ()})
    assert str(caught.value) == (
        "MultiModalMamba: `state` must be a ModelState, got dict. "
        "Take it from the output of a call with return_state=True."
    )


def test_a_state_of_packed_texts_has_a_row_for_each(small):
    model = small()
    ids, bounds = torch.tensor([[5, MARK, 7, 8, 9]]), torch.tensor([0, 3, 3, 5])
    state = model(ids, torch.randn(1, 3, 16, 24), cu_seqlens=bounds, return_state=True).state
    assert state.length.tolist() == [3, 0, 2]
    with pytest.raises(InputError, match="must have b = 2 rows"):
        model(ids[:, 3:], cu_seqlens=torch.tensor([0, 1, 2]), state=state)
