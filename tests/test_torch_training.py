"""Training on PyTorch: gradients, dropout, checkpointed activations, and transformers' Trainer."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tests import cases  # noqa: E402
from tests.reference import perturbed  # noqa: E402
from tests.torch_models import PAIRS, tensors  # noqa: E402
from ved_torch import VisionEncoderDecoderModel  # noqa: E402

BERT_LIKE = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
BART_LIKE = {"dropout": 0.2, "attention_dropout": 0.2, "activation_dropout": 0.2, "decoder_layerdrop": 0.2}
DROPOUT = {
    "encoder": BERT_LIKE,
    "gpt2": {"resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.2},
    "distilbert": {"dropout": 0.2, "attention_dropout": 0.2},
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), BERT_LIKE),
    **dict.fromkeys(("bart", "mbart", "trocr"), BART_LIKE),
}
"""Rates by model_type."""
NO_DROPOUT = {name: dict.fromkeys(values, 0.0) for name, values in DROPOUT.items()}


def training_config(encoder: str, decoder: str, rates: dict[str, Any]) -> dict[str, Any]:
    """A case's config with dropout rates for both halves."""
    config = cases.model_config(encoder, decoder)
    halves = {
        "encoder": config["encoder"] | rates["encoder"],
        "decoder": config["decoder"] | rates[cases.model_type(decoder)],
    }
    return config | halves


def new_model(encoder: str, decoder: str, rates: dict[str, Any] = NO_DROPOUT) -> VisionEncoderDecoderModel:
    """The same model at every call, in training mode."""
    generator = torch.Generator().manual_seed(0)
    config = training_config(encoder, decoder, rates)
    return perturbed(VisionEncoderDecoderModel(config, generator=generator)).train()


def batch(encoder: str, decoder: str, **kwargs: Any) -> dict[str, torch.Tensor]:
    inputs = tensors(cases.model_config(encoder, decoder), **kwargs)
    return {"pixel_values": inputs["pixel_values"], "labels": inputs["labels"]}


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_every_parameter_gets_a_gradient(encoder: str, decoder: str) -> None:
    model = new_model(encoder, decoder)
    model(**batch(encoder, decoder)).loss.backward()
    given = gradients(model)
    without = [name for name in model.state_dict() if name not in given or not given[name].any()]
    # The softmax does not see a bias of the keys: its gradient is zero up to rounding.
    assert [name for name in without if not name.endswith(".k.bias")] == []


@pytest.mark.parametrize("decoder", ["gpt2", "trocr", "bert", "electra", "distilbert", "mbart"])
def test_dropout_is_on_in_training_and_off_in_evaluation(decoder: str) -> None:
    model, inputs = new_model("vit", decoder, DROPOUT), batch("vit", decoder)
    assert not torch.equal(model(**inputs).logits, model(**inputs).logits)
    torch.manual_seed(3)
    first = model(**inputs).loss
    torch.manual_seed(3)
    assert torch.equal(first, model(**inputs).loss)
    model.eval()
    assert torch.equal(model(**inputs).logits, new_model("vit", decoder)(**inputs).logits)


def test_generate_ignores_training_mode_and_gives_it_back() -> None:
    model, pixels = new_model("vit", "gpt2", DROPOUT), batch("vit", "gpt2")["pixel_values"]
    model.encoder.eval()
    ids = model.generate(pixels, max_new_tokens=8)
    assert model.training
    assert model.decoder.blocks[0].training
    assert not model.encoder.blocks[0].training
    assert torch.equal(ids, model.eval().generate(pixels, max_new_tokens=8))
    assert not ids.is_inference()


@pytest.mark.parametrize("decoder", ["gpt2", "trocr"])
def test_gradient_checkpointing_changes_memory_only(decoder: str) -> None:
    model, inputs = new_model("vit", decoder), batch("vit", decoder)
    runs = []
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    hook = model.decoder.blocks[0].norm1.register_forward_hook(count)
    for enabled in (False, True):
        if enabled:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(**inputs).loss.backward()
        runs.append(gradients(model))
    assert calls == 3  # once, and then once forward and once more backward
    hook.remove()
    for name, gradient in runs[0].items():
        torch.testing.assert_close(runs[1][name], gradient, rtol=1e-5, atol=1e-7, msg=name)
    model.gradient_checkpointing_disable()
    assert model.encoder.blocks.checkpointing is None
    with pytest.raises(ValueError, match="use_reentrant"):
        model.gradient_checkpointing_enable({"use_reentrant": True})


def test_freeze_encoder() -> None:
    model = new_model("vit", "gpt2")
    model.freeze_encoder()
    model(**batch("vit", "gpt2")).loss.backward()
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    assert all(parameter.grad is not None for parameter in model.decoder.parameters())


def test_parts_of_a_batch_add_up_to_it() -> None:
    model, inputs = new_model("vit", "trocr"), batch("vit", "trocr", batch=4)
    whole = model(**inputs).loss
    whole.backward()
    expected = gradients(model)
    model.zero_grad()
    items = (inputs["labels"] != -100).sum()
    total = torch.tensor(0.0)
    for row in range(4):
        part = model(**{name: value[row : row + 1] for name, value in inputs.items()}, num_items_in_batch=items).loss
        part.backward()
        total += part.detach()
    torch.testing.assert_close(total, whole.detach(), rtol=1e-6, atol=0)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7, msg=name)


def test_loss_of_nothing_is_zero() -> None:
    inputs = batch("vit", "gpt2")
    assert new_model("vit", "gpt2")(inputs["pixel_values"], labels=torch.full((3, 4), -100)).loss == 0


class Rows(torch.utils.data.Dataset):
    """A batch, row by row."""

    def __init__(self, inputs: dict[str, torch.Tensor]) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs["labels"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: value[index] for name, value in self.inputs.items()}


def trainer(model: VisionEncoderDecoderModel, folder: Path, **arguments: Any) -> Any:
    pytest.importorskip("accelerate")
    import transformers

    rows = Rows(batch("vit", "gpt2", batch=8))
    settings = {
        "output_dir": str(folder),
        "max_steps": 2,
        "learning_rate": 1e-3,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "report_to": [],
        "save_steps": 1,
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return transformers.Trainer(
        model, transformers.TrainingArguments(**settings | arguments), train_dataset=rows, eval_dataset=rows
    )


def test_replicas_return_tuples() -> None:
    model = new_model("vit", "gpt2")
    model._is_replica = True  # what torch's DataParallel sets in its copies, whose outputs it can gather as tuples only
    assert model(**batch("vit", "gpt2"))[0].ndim == 0
    assert isinstance(model(**batch("vit", "gpt2")), tuple)


@pytest.mark.oracle
def test_trainer_accumulates_as_one_large_batch(tmp_path: Path) -> None:
    ends = []
    for size, parts in ((8, 1), (2, 4)):
        work = trainer(
            new_model("vit", "gpt2"),
            tmp_path / str(parts),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
        )
        assert work.model_accepts_loss_kwargs
        work.train()
        losses = [entry["loss"] for entry in work.state.log_history if "loss" in entry]
        ends.append((losses, work.model.state_dict()))
    (losses, state), (losses_in_parts, state_in_parts) = ends
    assert losses_in_parts == pytest.approx(losses, rel=1e-5)
    for name, value in state.items():
        torch.testing.assert_close(state_in_parts[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.oracle
def test_trainer_evaluates_saves_and_resumes(tmp_path: Path) -> None:
    work = trainer(new_model("vit", "gpt2"), tmp_path, gradient_checkpointing=True, per_device_train_batch_size=4)
    work.train()
    trained = {name: value.clone() for name, value in work.model.state_dict().items()}
    assert work.predict(work.eval_dataset).predictions[0].shape == (8, 9, 61)
    assert work.evaluate()["eval_loss"] > 0
    resumed = trainer(new_model("vit", "gpt2"), tmp_path, per_device_train_batch_size=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    for name, value in resumed.model.state_dict().items():
        torch.testing.assert_close(value, trained[name], rtol=1e-5, atol=1e-6, msg=name)
    work.model.save_pretrained(tmp_path / "model")
    again = VisionEncoderDecoderModel.from_pretrained(tmp_path / "model")
    assert all(torch.equal(value, trained[name]) for name, value in again.state_dict().items())
    assert work.model.config.to_json_string() == work.model.config.to_json()
