"""What `accelerate` takes, leaves as it is, and gives back."""

from __future__ import annotations

import copy
import io
import pickle
import re

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoModelForCausalLM, Mamba2Config, Mamba2Model, MambaConfig, Trainer, TrainingArguments
from transformers.models.mamba.modeling_mamba import MambaMixer

from mmm_core import BackendUnavailable
from mmm_core.compat.transformers import accelerate
from mmm_core.testing import rms_error_ratio

TOLERANCE = 1e-5
LAYERS = {"mamba": (2, "MambaMixer"), "falcon_mamba": (2, "FalconMambaMixer"), "jamba": (3, "JambaMambaMixer")}


@pytest.fixture
def ids():
    return torch.randint(1, 50, (3, 13))


def runs_on_ours(model, ids):
    """Whether a call reaches our kernels, of which none may run here."""
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setenv("MMM_CORE_BACKEND", "triton")
        try:
            model(ids)
        except BackendUnavailable:
            return True
    return False


@pytest.mark.parametrize("kind", LAYERS)
def test_undo(build, kind, ids):
    model, (number, name) = build(kind), LAYERS[kind]
    before = model(ids).logits
    acceleration = accelerate(model)
    assert repr(acceleration) == f"<Acceleration: {number} {name}>"
    assert list(acceleration.layers.values()) == [name] * number
    assert all(type(model.get_submodule(path)).__name__ == name for path in acceleration.layers)
    assert re.search(rf"{name}\(\s+accelerated by mmm_core\n", str(model))
    assert runs_on_ours(model, ids)
    acceleration.undo()
    assert repr(acceleration) == f"<Acceleration: {number} {name}, undone>"
    assert not runs_on_ours(model, ids)
    assert "mmm_core" not in str(model)
    assert model(ids).logits.equal(before)
    acceleration.undo()


def test_a_with_block(model, ids):
    with accelerate(model) as acceleration:
        assert runs_on_ours(model, ids)
        with accelerate(model) as inner:  # nothing is left to take, nor to give back
            assert inner.layers == {}
            assert repr(inner) == f"<Acceleration: no layer, {len(acceleration.layers)} accelerated before>"
        assert runs_on_ours(model, ids)
    assert not runs_on_ours(model, ids)


def test_a_with_block_that_fails(model, ids):
    with pytest.raises(IndexError), accelerate(model):
        model(ids + 1000)
    assert not runs_on_ours(model, ids)


def test_the_parameters_are_the_models_own(model, ids, tmp_path):
    before, names = list(model.parameters()), list(model.state_dict())
    accelerate(model)
    assert all(one is other for one, other in zip(before, model.parameters(), strict=True))
    assert list(model.state_dict()) == names
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model)
    assert not runs_on_ours(loaded, ids)
    assert rms_error_ratio(model(ids).logits, loaded(ids).logits) <= TOLERANCE
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    assert not model(ids).logits.any()


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled, saved])
def test_a_copy_is_accelerated_and_its_own(model, ids, duplicate):
    acceleration = accelerate(model)
    logits = model(ids).logits
    other = duplicate(model)
    acceleration.undo()
    assert runs_on_ours(other, ids)
    assert isinstance(first_mixer(other), type(first_mixer(model)))
    assert other(ids).logits.equal(logits)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert other(ids).logits.equal(logits)


def first_mixer(model):
    return next(module for module in model.modules() if "Mixer" in type(module).__name__)


def test_a_module_that_holds_mixers(ids):
    class Picture(nn.Module):
        def __init__(self):
            super().__init__()
            config = MambaConfig(hidden_size=12, num_hidden_layers=2)
            self.rows, self.columns = (MambaMixer(config, layer_idx=i) for i in range(2))

        def forward(self, x):  # (b, y, x, d)
            b = x.shape[0]
            x = self.rows(x.flatten(0, 1)).unflatten(0, (b, -1)).transpose(1, 2)
            return self.columns(x.flatten(0, 1)).unflatten(0, (b, -1)).transpose(1, 2)

    model, x = Picture(), torch.randn(2, 5, 3, 12)
    before = model(x)
    assert repr(accelerate(model)) == "<Acceleration: 2 MambaMixer>"
    assert rms_error_ratio(model(x), before) <= TOLERANCE


TARGETS = ["in_proj", "x_proj", "out_proj"]


def with_adapters(model, targets):
    """The model with low-rank adapters that all have a say."""
    holder = nn.ModuleDict({"model": model})  # on a Mamba itself PEFT refuses `out_proj`, which its kernels pass over
    inject_adapter_in_model(LoraConfig(target_modules=targets, r=2), holder)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def test_adapters_are_heard_and_trained(model, ids):
    with_adapters(model, TARGETS)

    def run():
        model.zero_grad()
        out = model(ids, labels=ids)
        out.loss.backward()
        return {"logits": out.logits, **{n: p.grad for n, p in model.named_parameters() if p.requires_grad}}

    theirs = run()
    with accelerate(model):
        ours = run()
    assert {name.split(".")[-4] for name in ours if "lora" in name} == set(TARGETS)
    assert all(x.count_nonzero() for x in ours.values())
    assert max(rms_error_ratio(ours[name], theirs[name]) for name in theirs) <= TOLERANCE


def test_an_adapter_of_dt_proj_is_heard(model, ids):
    with_adapters(model, ["dt_proj"])
    with accelerate(model):
        out = model(ids, labels=ids)
        out.loss.backward()
    assert all(p.grad.count_nonzero() for name, p in model.named_parameters() if "lora" in name)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.merge()  # transformers takes the weight alone
    assert rms_error_ratio(model(ids).logits, out.logits) <= TOLERANCE


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # what PEFT asks of a model
@pytest.mark.parametrize("kind", LAYERS)
def test_peft_trains_and_generates(build, kind, ids):
    targets = TARGETS if kind == "jamba" else TARGETS[:2]
    model = get_peft_model(build(kind), LoraConfig(target_modules=targets, r=4, task_type="CAUSAL_LM"))
    assert accelerate(model).layers.keys() == {n for n, m in model.named_modules() if "Mixer" in type(m).__name__}
    optimiser = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=0.01)
    losses = []
    for _ in range(20):
        loss = model(input_ids=ids, labels=ids).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    adapted = model(input_ids=ids).logits
    plain = model.merge_and_unload()
    assert rms_error_ratio(plain(ids).logits, adapted) <= TOLERANCE
    assert plain.generate(ids, max_new_tokens=3, do_sample=False).shape == (3, 16)


def test_trainer(model, tmp_path):
    texts = [{"input_ids": text, "labels": text} for text in torch.randint(1, 50, (8, 11))]
    start = copy.deepcopy(model.state_dict())

    def train():
        model.load_state_dict(start)
        arguments = TrainingArguments(
            tmp_path, max_steps=3, per_device_train_batch_size=4, report_to="none", use_cpu=True, disable_tqdm=True
        )
        Trainer(model, arguments, train_dataset=texts).train()
        return {name: value - start[name] for name, value in model.state_dict().items()}

    theirs = train()
    with accelerate(model):
        ours = train()
    assert max(rms_error_ratio(ours[name], theirs[name]) for name in theirs) <= 0.01  # Adam divides by small numbers


def assert_refused(model, message):
    """Raise unless a model is refused with this message, and every layer left as it was."""
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        accelerate(model)
    assert [type(module) for module in model.modules()] == before


def test_a_model_without_mamba_layers():
    model = Mamba2Model(Mamba2Config(hidden_size=8, num_hidden_layers=1, num_heads=2, head_dim=8, vocab_size=5))
    assert_refused(
        model,
        "accelerate: `model` must hold layers of transformers' MambaMixer, FalconMambaMixer, JambaMambaMixer, got "
        "Mamba2Model with none. Pass a Mamba, Falcon-Mamba or Jamba model, or a module that holds one.",
    )


def test_an_old_transformers(model, monkeypatch):
    monkeypatch.setattr("transformers.__version__", "5.15.1")
    assert_refused(model, "accelerate: transformers must be 5.16 or newer, got 5.15.1. Upgrade it.")


OWN_FORWARD = (
    "accelerate: `backbone.layers.1.mixer` must run the forward of transformers' MambaMixer, got one of its own, from "
    "a subclass or from hooks as of offloading. Accelerate the model before it is changed."
)


def test_a_subclass_with_a_forward_of_its_own(build):
    class Louder(MambaMixer):
        def forward(self, *args, **kwargs):
            return 2 * super().forward(*args, **kwargs)

    model = build("mamba")
    model.backbone.layers[1].mixer.__class__ = Louder
    assert_refused(model, OWN_FORWARD)


def test_a_layer_with_hooks_around_its_forward(build):
    model = build("mamba")
    mixer = model.backbone.layers[1].mixer
    mixer.forward = mixer.forward
    assert_refused(model, OWN_FORWARD)


def test_a_layer_with_parts_that_are_not_known(build):
    model = build("mamba")
    model.backbone.layers[1].mixer.gate = nn.Identity()
    assert_refused(
        model,
        "accelerate: `backbone.layers.1.mixer` must have the parts A_log, D, act, conv1d, dt_proj, in_proj, out_proj, "
        "x_proj, got A_log, D, act, conv1d, dt_proj, gate, in_proj, out_proj, x_proj. This MambaMixer of transformers "
        f"{transformers.__version__} is not known here; look for a newer mmm-core.",
    )


def test_a_forward_with_arguments_that_are_not_known(build, monkeypatch):
    def forward(self, hidden_states, cache=None, attention_mask=None, position_ids=None):
        return hidden_states

    model = build("mamba")
    monkeypatch.setattr(MambaMixer, "forward", forward)
    assert_refused(
        model,
        "accelerate: `backbone.layers.0.mixer` must have the arguments attention_mask, cache, hidden_states, got "
        "attention_mask, cache, hidden_states, position_ids. This MambaMixer of transformers "
        f"{transformers.__version__} is not known here; look for a newer mmm-core.",
    )


def test_a_class_that_another_library_changed(build, ids):
    model = build("mamba")
    acceleration = accelerate(model)
    mixer = model.backbone.layers[1].mixer
    ours = type(mixer)
    mixer.__class__ = type("Sharded", (ours,), {})
    with pytest.raises(RuntimeError) as error:
        acceleration.undo()
    assert str(error.value) == (
        "Acceleration.undo: `backbone.layers.1.mixer` must be as accelerate left it, got Sharded, which another "
        "library made of it. Undo that first."
    )
    mixer.__class__ = ours
    acceleration.undo()
    assert not runs_on_ours(model, ids)
