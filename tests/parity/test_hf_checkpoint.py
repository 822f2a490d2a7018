"""Folders that one side saves and the other loads, and what is refused."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationConfig,
    MambaConfig,
    PreTrainedConfig,
)

import mmm_fusion
from mmm_block import CheckpointError, ConfigError, MultiModalMamba, MultiModalMambaConfig
from mmm_block.transformers import MultiModalMambaForConditionalGeneration, MultiModalMambaHfConfig

AUTO = [AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText]


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, {"format": "pt"})


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("auto", AUTO)
def test_ours_is_loaded(build_ours, prompts, tmp_path, auto, tied):
    core = build_ours(tie_embeddings=tied, fusion_method="concat").core
    core.save_pretrained(tmp_path)
    model, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model) is MultiModalMambaForConditionalGeneration
    assert not model.training
    assert not any(info.values())
    assert (model.lm_head.weight is model.embedding.weight) == tied
    expected = core(prompts["input_ids"], prompts["pixel_values"], attention_mask=prompts["attention_mask"])
    assert model(**prompts).logits.equal(expected.logits)
    assert model.generation_config.pad_token_id == 0


def test_ours_is_loaded_after_a_crash_while_it_was_saved(build_ours, tmp_path, monkeypatch):
    old, new = build_ours().core, build_ours().core
    torch.nn.init.normal_(new.embedding.weight)
    old.save_pretrained(tmp_path)

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.link", crash)  # at the first file that takes its place
        with pytest.raises(KeyboardInterrupt):
            new.save_pretrained(tmp_path)
    model = MultiModalMambaForConditionalGeneration.from_pretrained(pretrained_model_name_or_path=tmp_path)
    assert model.embedding.weight.equal(new.embedding.weight)


@pytest.mark.parametrize("tied", [True, False])
def test_ours_loads_it(build_ours, prompts, tmp_path, tied):
    model = build_ours(tie_embeddings=tied, fusion_method="concat", dropout=0.25, patch_size=(8, 4))
    model.config.use_cache = False
    model.save_pretrained(tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    assert about["fusion_source"]["distribution"] == "mmm-fusion"
    assert about["packages"].keys() == {"mmm-block", "mmm-fusion", "mmm-vit", "mmm-core", "torch"}
    core = MultiModalMamba.from_pretrained(tmp_path)
    assert core.config == model.config.own()
    assert (core.lm_head.weight is core.embedding.weight) == tied
    logits = core(prompts["input_ids"], prompts["pixel_values"], attention_mask=prompts["attention_mask"]).logits
    assert logits.equal(model(**prompts).logits)


def test_there_and_back(ours, prompts, tmp_path):
    """Files of ours, of theirs and of ours again tell the same."""
    names = ["a", "b", "c"]
    ours.core.save_pretrained(tmp_path / "a")
    AutoModel.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    MultiModalMamba.from_pretrained(tmp_path / "b").save_pretrained(tmp_path / "c")
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in names)
    assert a.keys() == b.keys() == c.keys()
    assert all(a[name].equal(b[name]) and a[name].equal(c[name]) for name in a)
    a, b, c = (json.loads((tmp_path / name / "config.json").read_text()) for name in names)
    assert a == c
    theirs = {"transformers_version", "dtype", "architectures"}
    assert {name: b[name] for name in b.keys() - theirs} == {name: a[name] for name in a.keys() - theirs}
    assert b["architectures"] == ["MultiModalMambaForConditionalGeneration"]


def test_several_files(ours, prompts, tmp_path):
    logits = ours(**prompts).logits
    ours.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    ours.core.save_pretrained(tmp_path / "ours", max_shard_size="20KB")
    for folder in (tmp_path / "theirs", tmp_path / "ours"):
        assert len(list(folder.glob("*.safetensors"))) > 1
        assert AutoModel.from_pretrained(folder)(**prompts).logits.equal(logits)
        core = MultiModalMamba.from_pretrained(folder)
        got = core(prompts["input_ids"], prompts["pixel_values"], attention_mask=prompts["attention_mask"]).logits
        assert got.equal(logits)


def test_a_narrow_dtype(ours, tmp_path):
    ours.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert {each.dtype for each in loaded.parameters()} == {torch.bfloat16}
    assert {each.dtype for each in MultiModalMamba.from_pretrained(tmp_path).parameters()} == {torch.bfloat16}
    wide = AutoModel.from_pretrained(tmp_path, dtype=torch.float32)
    assert {each.dtype for each in wide.parameters()} == {torch.float32}


def test_a_generation_config(build_ours, prompts, tmp_path):
    model = build_ours()
    model.generation_config = GenerationConfig(max_new_tokens=3, pad_token_id=0, do_sample=False)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert loaded.generate(**prompts).shape == (3, 12)
    assert MultiModalMamba.from_pretrained(tmp_path).config == model.config.own()


def test_from_config_draws_as_ours(build_ours):
    config = build_ours().config
    torch.manual_seed(5)
    expected = MultiModalMamba(config.own()).state_dict()
    torch.manual_seed(5)
    got = AutoModelForCausalLM.from_config(config).state_dict()
    assert all(got[name].equal(expected[name]) for name in expected)


def test_config(tmp_path):
    fields = {"vocab_size": 40, "dim": 16, "depth": 2, "image_size": [16, 8], "mixer_options": {"bias": True}}
    config = MultiModalMambaHfConfig(**fields)
    assert config.own() == MultiModalMambaConfig(**fields)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is MultiModalMambaHfConfig
    assert loaded.to_diff_dict() == {**config.to_diff_dict(), "transformers_version": loaded.transformers_version}
    assert loaded.own() == config.own()
    assert '"dim": 16' in repr(config)
    assert (loaded.hidden_size, loaded.num_hidden_layers, loaded.tie_word_embeddings) == (16, 2, True)
    changed = AutoConfig.from_pretrained(tmp_path, hidden_size=24, dropout=0.5)
    assert (changed.own().dim, changed.own().dropout) == (24, 0.5)
    named = MultiModalMambaHfConfig(vocab_size=40, hidden_size=8, num_hidden_layers=1, conv_kernel=3, state_size=5)
    assert named.own() == MultiModalMambaConfig(vocab_size=40, dim=8, depth=1, d_conv=3, d_state=5)


def test_transformers_own_options_of_a_config():
    config = MultiModalMambaHfConfig(vocab_size=40, dim=16, depth=2, use_cache=False, return_dict=False, num_labels=3)
    assert (config.use_cache, config.return_dict, config.num_labels) == (False, False, 3)
    assert isinstance(config, PreTrainedConfig)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depht": 2}, "unknown key 'depht'. Did you mean 'depth'?"),
        ({"depth": 0}, "`depth` must be an int of at least 1, got 0."),
        ({"fusion_contract": 7}, "`fusion_contract` must be 1, which the installed mmm-fusion speaks, got 7."),
        ({"image_token_id": 40}, "`image_token_id` must be a token from 0 to below vocab_size = 40, or None, got 40."),
    ],
)
def test_a_config_that_is_refused(build_ours, tmp_path, values, message):
    build_ours().save_pretrained(tmp_path)
    change_config(tmp_path, **values)
    for load in (AutoConfig.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(ConfigError, match=re.escape(f"MultiModalMambaConfig: {message}")):
            load(tmp_path)
    with pytest.raises(ConfigError, match=r"expected vocab_size, dim, depth, got none\. Add it\."):
        MultiModalMambaHfConfig()


def test_a_value_that_was_set(build_ours):
    model = build_ours()
    model.config.image_token_id = 41
    with pytest.raises(ConfigError, match="`image_token_id` must be a token from 0 to below vocab_size = 40"):
        model(torch.tensor([[5]]))


def test_an_option_of_a_part_that_is_refused(build_ours, tmp_path):
    build_ours().save_pretrained(tmp_path)
    change_config(tmp_path, encoder_options={"widht": 3})
    with pytest.raises(ConfigError, match=r"^MultiModalMambaConfig: `encoder_options` must be of .*, got .*widht"):
        AutoModel.from_pretrained(tmp_path)


def test_a_fusion_method_that_is_not_here(build_ours, tmp_path):
    build_ours().save_pretrained(tmp_path)
    source = {"distribution": "acme-fusion", "version": "0.2"}
    change_config(tmp_path, fusion_method="acme", fusion_source=source)
    with pytest.raises(mmm_fusion.UnknownMethodError, match=r"'acme' is not registered.* install acme-fusion==0\.2"):
        AutoModel.from_pretrained(tmp_path)


def test_a_fusion_method_of_elsewhere(build_ours, tmp_path):
    build_ours().save_pretrained(tmp_path)
    change_config(tmp_path, fusion_source={"distribution": "acme-fusion", "version": "0.2"})
    with pytest.warns(UserWarning, match="was made with fusion method 'mlp' of acme-fusion"):
        AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("backbone.norm_f.weight"), "missing: `backbone.norm_f.weight`"),
        (lambda weights: weights.update(extra=torch.ones(1)), "too many: `extra`"),
        (
            lambda weights: weights.update({"backbone.layers.0.norm.weight": torch.ones(3)}),
            "of another form: `backbone",
        ),
    ],
    ids=["missing", "too many", "another form"],
)
@pytest.mark.parametrize("lenient", [True, False])
def test_weights_that_do_not_fit(build_ours, tmp_path, change, message, lenient):
    build_ours().save_pretrained(tmp_path)
    change_weights(tmp_path, change)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(tmp_path))}: the weights of the model .*; {message}"):
        AutoModel.from_pretrained(tmp_path, ignore_mismatched_sizes=lenient)


@pytest.mark.parametrize("kept", [0, 100, -7])
def test_weights_cut_short(build_ours, tmp_path, kept):
    build_ours().core.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError) as caught:
        AutoModel.from_pretrained(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: whole safetensors files were expected, got one that is damaged: ")


def test_a_pickle_is_left_alone(build_ours, tmp_path):
    model = build_ours()
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModel.from_pretrained(tmp_path)


def test_a_model_of_another_kind(tmp_path):
    MambaConfig().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="model_type must be 'multimodal_mamba', got 'mamba'"):
        MultiModalMamba.from_pretrained(tmp_path)
