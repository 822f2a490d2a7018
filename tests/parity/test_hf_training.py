"""`Trainer`, PEFT and `pipeline` on our model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments, pipeline

from mmm_block import MultiModalMamba
from mmm_core.testing import rms_error_ratio

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 210)}
PROJECTIONS = ["in_proj", "x_proj", "out_proj"]
LORA = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=PROJECTIONS, init_lora_weights=True)


def picture(colour):
    noise = np.random.default_rng(7).integers(-20, 20, (16, 16, 3))
    return Image.fromarray((np.array(COLOURS[colour]) + noise).astype(np.uint8))


def examples(count=24):
    """Pictures of one colour, which the text asks for; some have two, some none."""
    kinds = [[colour] for colour in COLOURS] + [["red", "blue"], []]
    return [kinds[index % len(kinds)] for index in range(count)]


@pytest.fixture
def collate(processor):
    def collate(batch):
        asked = "what is <image> ? {} [EOS]"
        texts = ["".join(asked.format(colour) for colour in colours) or "red and blue [EOS]" for colours in batch]
        images = [picture(colour) for colours in batch for colour in colours] or None
        inputs = processor(images=images, text=texts, padding=True, padding_side="right", return_tensors="pt")
        ids = inputs["input_ids"]
        skipped = (inputs["attention_mask"] == 0) | (ids == processor.image_token_id)
        return {**inputs, "labels": ids.masked_fill(skipped, -100)}

    return collate


@pytest.fixture
def model(build_ours):
    return build_ours(vocab_size=11, dim=24, eos_token_id=2, fusion_method="concat")


@pytest.fixture
def train(collate, tmp_path):
    def train(model, data=None, **options):
        options = {"max_steps": 40, "per_device_train_batch_size": 8, "learning_rate": 1e-2, **options}
        arguments = TrainingArguments(
            tmp_path / "run",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
            logging_steps=1,
            **options,
        )
        data = examples() if data is None else data
        trainer = Trainer(model, arguments, data_collator=collate, train_dataset=data, eval_dataset=data)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return trainer, losses

    return train


def test_trainer(model, train, collate, tmp_path):
    trainer, losses = train(model, save_steps=40)
    assert losses[-1] < 0.3 * losses[0]
    measured = trainer.evaluate()["eval_loss"]
    assert measured < 0.3 * losses[0]
    predicted = trainer.predict(examples(3)).predictions
    batch = collate(examples(3))
    assert rms_error_ratio(torch.tensor(predicted), model.eval()(**batch).logits.detach()) <= 1e-5
    core = MultiModalMamba.from_pretrained(tmp_path / "run/checkpoint-40")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert core(ids, batch["pixel_values"], attention_mask=mask).logits.equal(model(**batch).logits)


def test_it_reads_the_pictures(model, train, processor):
    """After training, the words about a picture are those of its colour."""
    train(model, max_steps=80)
    for colour in COLOURS:
        inputs = processor(images=[picture(colour)], text=["what is <image> ?"], return_tensors="pt")
        tokens = model.eval().generate(**inputs, max_new_tokens=1, do_sample=False)
        assert processor.decode(tokens[0, -1]) == colour


def test_a_step_of_several_batches(build_ours, train):
    """Rows of unequal length: the step is that of one large batch, and not the mean of the batches' means."""

    def trained(**options):
        model = build_ours(vocab_size=11, fusion_method="concat")
        _, losses = train(model, examples(5), max_steps=1, optim="sgd", max_grad_norm=0.0, **options)
        return losses[0], model

    loss, whole = trained(per_device_train_batch_size=5)
    other, parts = trained(per_device_train_batch_size=1, gradient_accumulation_steps=5)
    assert other == pytest.approx(loss, rel=1e-4)
    for one, another in zip(whole.parameters(), parts.parameters(), strict=True):
        assert rms_error_ratio(another.detach(), one.detach()) <= 1e-5


def test_trainer_with_checkpointing(model, train):
    _, losses = train(model, activation_checkpointing=True, max_steps=30)
    assert model.is_gradient_checkpointing
    assert losses[-1] < 0.5 * losses[0]


def test_lora_learns(model, train, collate, tmp_path):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = get_peft_model(model, LORA)
    _, losses = train(adapted, max_steps=60, learning_rate=3e-2)
    assert losses[-1] < 0.7 * losses[0]
    learned = {name for name, value in adapted.named_parameters() if value.requires_grad}
    assert len(learned) == 2 * len(PROJECTIONS) * 2
    assert all(adapted.get_parameter(name).abs().sum() > 0 for name in learned)
    base = adapted.get_base_model().state_dict()
    assert all(base[name].equal(value) for name, value in before.items() if name in base)

    batch = collate(examples(5))
    logits = adapted.eval()(**batch).logits
    adapted.save_pretrained(tmp_path / "adapter")
    with adapted.disable_adapter():
        plain = adapted(**batch).logits
    assert rms_error_ratio(logits, plain) > 0.05
    merged = adapted.merge_and_unload()
    assert rms_error_ratio(merged(**batch).logits, logits) <= 1e-5


def test_each_projection_learns(build_ours, collate):
    """In `generate` too: an adapter of each projection acts on the tokens that are read one by one."""
    for projection in PROJECTIONS:
        model = get_peft_model(
            build_ours(vocab_size=11), LoraConfig(r=2, target_modules=[projection], init_lora_weights=False)
        )
        batch = collate(examples(4))
        model.train()
        model(**batch).loss.backward()
        assert all(each.grad.abs().sum() > 0 for each in model.parameters() if each.requires_grad)
        model.eval()
        with torch.no_grad():
            ids = torch.randint(4, 11, (2, 5))
            first = model(ids[:, :4], use_cache=True)
            stepped = model(ids[:, 4:], cache=first.cache).logits
            assert rms_error_ratio(stepped, model(ids).logits[:, 4:]) <= 1e-5
            with model.disable_adapter():
                assert rms_error_ratio(stepped, model(ids).logits[:, 4:]) > 1e-3


@pytest.mark.parametrize("projection", ["qkv", "attn.proj", "fc1", "fc2"])
def test_the_encoder_is_adapted(build_ours, collate, projection):
    model, batch = build_ours(vocab_size=11), collate(examples(4))
    plain = model(**batch).logits
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=[projection], init_lora_weights=False))
    with torch.no_grad():
        assert rms_error_ratio(adapted.eval()(**batch).logits, plain) > 1e-3
    adapted.train()(**batch).loss.backward()
    assert all(each.grad.abs().sum() > 0 for each in adapted.parameters() if each.requires_grad)


def test_adapters_are_saved_and_loaded(build_ours, collate, tmp_path):
    build_ours(vocab_size=11).save_pretrained(tmp_path / "base")
    base = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    adapted = get_peft_model(base, LoraConfig(**{**LORA.to_dict(), "init_lora_weights": False})).eval()
    batch = collate(examples(5))
    logits = adapted(**batch).logits
    tokens = adapted.generate(**{**batch, "labels": None}, max_new_tokens=4, do_sample=False)
    adapted.save_pretrained(tmp_path / "adapter")
    fresh = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    for loaded in (
        PeftModel.from_pretrained(fresh, tmp_path / "adapter"),
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter"),
        AutoModelForImageTextToText.from_pretrained(tmp_path / "adapter"),
    ):
        assert rms_error_ratio(loaded(**batch).logits, logits) <= 1e-5
        again = loaded.generate(**{**batch, "labels": None}, max_new_tokens=4, do_sample=False)
        assert again.tolist() == tokens.tolist()


def test_adapters_with_checkpointing(build_ours, train):
    model = get_peft_model(build_ours(vocab_size=11), LORA)
    _, losses = train(model, activation_checkpointing=True, max_steps=40, learning_rate=3e-2)
    assert losses[-1] < 0.9 * losses[0]


@pytest.fixture
def folder(build_ours, processor, tmp_path):
    build_ours(vocab_size=11, eos_token_id=2).save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    return str(tmp_path / "saved")


def expected(model, processor, text, images):
    inputs = processor(images=images, text=[text], return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    return processor.decode(tokens[0], skip_special_tokens=True)


def test_pipeline_of_images_and_text(folder, processor, monkeypatch):
    monkeypatch.setattr("transformers.pipelines.base.logger.error", pytest.fail)  # of a model that it does not know
    pipe = pipeline("image-text-to-text", model=folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    text, image = "what is <image> ?", picture("red")
    (answer,) = pipe(image, text=text, max_new_tokens=4, generate_kwargs={"do_sample": False}, return_full_text=False)
    wanted = expected(model, processor, text, [image])
    assert answer["generated_text"].strip() == wanted
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "what"}]}]
    (answer,) = pipe(text=messages, max_new_tokens=4, generate_kwargs={"do_sample": False}, return_full_text=False)
    assert answer["generated_text"].strip() == expected(model, processor, "<image>what", [image])


def test_pipeline_of_text(folder, processor, monkeypatch):
    monkeypatch.setattr("transformers.pipelines.base.logger.error", pytest.fail)  # of a model that it does not know
    pipe = pipeline("text-generation", model=folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    texts = ["what is red", "blue"]
    answers = pipe(texts, max_new_tokens=4, do_sample=False, return_full_text=False, batch_size=2)
    for text, (answer,) in zip(texts, answers, strict=True):
        assert answer["generated_text"].strip() == expected(model, processor, text, None)
