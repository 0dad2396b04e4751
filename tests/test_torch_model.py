"""The PyTorch model: against reference numbers, transformers' class and the Flax model, and its own promises."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import ml_dtypes  # noqa: E402
import transformers  # noqa: E402

from conversion import checkpoint  # noqa: E402
from conversion.tables import model_table  # noqa: E402
from tests import cases  # noqa: E402
from tests.reference import new as oracle  # noqa: E402
from tests.reference import perturbed, runnable  # noqa: E402
from tests.torch_models import PAIRS, ours, tensors  # noqa: E402
from ved_core.configs import VisionEncoderDecoderConfig  # noqa: E402
from ved_core.errors import CheckpointError, ConfigError  # noqa: E402
from ved_torch import ImageToText, VisionEncoderDecoderModel, state  # noqa: E402
from ved_torch.decoders import build_decoder  # noqa: E402
from ved_torch.encoders import build_encoder  # noqa: E402

REFERENCE = {"rtol": 0, "atol": 1e-4}
SAME = {"rtol": 0, "atol": 1e-5}
EVERYTHING = {"output_attentions": True, "output_hidden_states": True}


def new(encoder: str = "vit", decoder: str = "gpt2", **options: Any) -> VisionEncoderDecoderModel:
    """The same model at every call."""
    options = {"generator": torch.Generator().manual_seed(0), **options}
    return perturbed(VisionEncoderDecoderModel(cases.model_config(encoder, decoder), **options)).eval()


def new_inputs(encoder: str = "vit", decoder: str = "gpt2", **kwargs: Any) -> dict[str, torch.Tensor]:
    return tensors(cases.model_config(encoder, decoder), **kwargs)


def stored_gradients(model: VisionEncoderDecoderModel) -> dict[str, np.ndarray]:
    """Gradients under the names and in the layouts of a checkpoint."""
    arrays = {name: state.to_numpy(parameter.grad) for name, parameter in model.named_parameters()}
    return checkpoint.to_stored(checkpoint.Weights(arrays, {}), model_table(model.config), "torch")


# Against reference numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cases.PAIRS)
@pytest.mark.parametrize("weights", [False, True], ids=["fused", "plain"])
def test_fixture_outputs(name: str, weights: bool) -> None:
    folder, expected, _ = cases.fixture(name)
    model = VisionEncoderDecoderModel.from_pretrained(folder)
    with torch.no_grad():
        output = model(
            expected["pixel_values"],
            expected["decoder_input_ids"],
            expected["decoder_attention_mask"],
            output_attentions=weights,
            output_hidden_states=True,
        )
    found = {
        "logits": output.logits,
        "encoder_last_hidden_state": output.encoder_last_hidden_state,
        "decoder_hidden_last": output.decoder_hidden_states[-1],
    }
    if weights:
        found["cross_attention_last"] = output.cross_attentions[-1]
        found["decoder_attention_last"] = output.decoder_attentions[-1]
    for key, value in found.items():
        np.testing.assert_allclose(value.numpy(), expected[key], err_msg=key, **REFERENCE)


@pytest.mark.parametrize("name", cases.PAIRS)
def test_fixture_loss_and_gradients(name: str) -> None:
    folder, expected, norms = cases.fixture(name)
    model = VisionEncoderDecoderModel.from_pretrained(folder).train()
    model.decoder.eval()
    model.encoder.eval()
    output = model(expected["pixel_values"], labels=expected["labels"])
    output.loss.backward()
    np.testing.assert_allclose(output.loss.item(), expected["loss"], **REFERENCE)
    np.testing.assert_allclose(output.logits.detach().numpy(), expected["label_logits"], **REFERENCE)
    found = {key: float(np.linalg.norm(gradient)) for key, gradient in stored_gradients(model).items()}
    wanted = {key: norm for key, norm in norms.items() if norm >= 0}
    assert found.keys() <= norms.keys()
    missing = wanted.keys() - found.keys()
    assert all(".decoder." in key or "lm_head" in key or "output_projection" in key for key in missing), missing
    for key, norm in found.items():
        assert norm == pytest.approx(max(norms[key], 0), rel=1e-4, abs=1e-6), key


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_agrees_with_transformers(encoder: str, decoder: str, tmp_path: Path) -> None:
    theirs = oracle(encoder, decoder)
    model = ours(theirs, tmp_path)
    inputs = new_inputs(encoder, decoder)
    labels = inputs.pop("labels")
    with torch.no_grad():
        expected, found = theirs(**inputs, **EVERYTHING), model(**inputs, **EVERYTHING)
    for key in ("logits", "encoder_last_hidden_state"):
        torch.testing.assert_close(found[key], expected[key], **SAME)
    for key in ("hidden_states", "attentions"):
        for side in (f"decoder_{key}", f"encoder_{key}"):
            torch.testing.assert_close(found[side], expected[side], **SAME)
    torch.testing.assert_close(found.cross_attentions, expected.cross_attentions, **SAME)

    expected, found = (m(inputs["pixel_values"], labels=labels).loss for m in (theirs, model))
    torch.testing.assert_close(found, expected, **SAME)
    expected.backward()
    found.backward()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    theirs.save_pretrained(tmp_path / "gradients")
    stored = checkpoint.read(tmp_path / "gradients")
    for key, gradient in stored_gradients(model).items():
        np.testing.assert_allclose(gradient, stored[key], rtol=1e-3, atol=1e-5, err_msg=key)


@pytest.mark.oracle
@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_saved_model_is_transformers(encoder: str, decoder: str, tmp_path: Path) -> None:
    model = new(encoder, decoder)
    model.save_pretrained(tmp_path)
    theirs, report = transformers.VisionEncoderDecoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    runnable(theirs.eval(), decoder)
    inputs = new_inputs(encoder, decoder)
    inputs.pop("labels")
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, theirs(**inputs).logits, **SAME)
    ids = theirs.generate(inputs["pixel_values"], max_new_tokens=12, do_sample=False)
    assert torch.equal(model.generate(inputs["pixel_values"], max_new_tokens=12), ids)
    again = VisionEncoderDecoderModel.from_pretrained(tmp_path)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())
    assert again.config.encoder == model.config.encoder


@pytest.mark.oracle
def test_other_image_sizes_as_transformers(tmp_path: Path) -> None:
    theirs = oracle("vit", "gpt2")
    model = ours(theirs, tmp_path)
    inputs = {"pixel_values": torch.randn(2, 3, 41, 24), "decoder_input_ids": torch.tensor([[2, 5], [2, 7]])}
    with pytest.raises(ValueError, match="interpolate_pos_encoding"):
        model(**inputs)
    with torch.no_grad():
        expected, found = (m(**inputs, interpolate_pos_encoding=True).logits for m in (theirs, model))
    torch.testing.assert_close(found, expected, **SAME)


# Caches ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", cases.DECODERS)
@pytest.mark.parametrize("padded", [False, True])
def test_cached_is_full(decoder: str, padded: bool) -> None:
    model, inputs = new(decoder=decoder), new_inputs(decoder=decoder)
    ids, mask = inputs["decoder_input_ids"].flip(1), inputs["decoder_attention_mask"].flip(1)
    if hasattr(model.decoder, "pad"):
        # Positions that leave out padding know only that of the new tokens, in transformers too.
        ids[ids == model.decoder.pad] = 9
    # Padding in front, as in prompts of several lengths.
    masks = [mask, mask[:, :4]] if padded else [None, None]
    seen = mask[:, :4].bool() if padded else torch.ones(3, 4, dtype=torch.bool)
    with torch.no_grad():
        full = model(inputs["pixel_values"], ids, masks[0])
        step = model(inputs["pixel_values"], ids[:, :4], masks[1], use_cache=True)
        torch.testing.assert_close(step.logits[seen], full.logits[:, :4][seen], **SAME)
        for place in (slice(4, 5), slice(5, 8), slice(8, 9)):
            given = mask[:, : place.stop] if padded else None
            past, last = step.past_key_values, place.stop == 9
            step = model(None, ids[:, place], given, past_key_values=past, output_attentions=last)
            torch.testing.assert_close(step.logits, full.logits[:, place], **SAME)
    assert step.past_key_values.get_seq_length() == 9
    assert step.decoder_attentions[0].shape[2:] == (1, 9)


def test_cache_grows_and_decoding_stops_at_the_last_position() -> None:
    model, inputs = new(), new_inputs(tokens=40)
    with torch.no_grad():
        encoded = model.encode(inputs["pixel_values"])
        cache = model.init_cache(3, 2, encoded)
        full = model.decode(inputs["decoder_input_ids"], encoded)
        for place in (slice(0, 2), slice(2, 3), slice(3, 40)):
            step = model.decode(inputs["decoder_input_ids"][:, place], encoded, cache=cache)
            cache = step.past_key_values
            torch.testing.assert_close(step.logits, full.logits[:, place], **SAME)
        with pytest.raises(ValueError, match="41 decoder tokens"):
            model.decode(inputs["decoder_input_ids"][:, :1], encoded, cache=cache)
    with pytest.raises(ValueError, match="batch_size = 2"):
        model.init_cache(2, 2, encoded)


def test_cache_keeps_its_buffers_and_the_images() -> None:
    model, inputs = new(), new_inputs()
    with torch.no_grad():
        first = model(inputs["pixel_values"], inputs["decoder_input_ids"][:, :3], use_cache=True).past_key_values
        second = model(None, inputs["decoder_input_ids"][:, 3:4], past_key_values=first).past_key_values
    assert second.self_kv[0].k.data_ptr() == first.self_kv[0].k.data_ptr()
    assert second.cross_kv[0].k is first.cross_kv[0].k


def test_gradients_flow_through_a_cache() -> None:
    model, inputs = new(), new_inputs()
    ids, mask = inputs["decoder_input_ids"].flip(1), inputs["decoder_attention_mask"].flip(1)
    model(inputs["pixel_values"], ids, mask).logits[:, -1].sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    step = model(inputs["pixel_values"], ids[:, :4], mask[:, :4], use_cache=True)
    step = model(None, ids[:, 4:5], mask[:, :5], past_key_values=step.past_key_values)
    model(None, ids[:, 5:], mask, past_key_values=step.past_key_values).logits[:, -1].sum().backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


# Outputs and arguments ------------------------------------------------------------------------------------------------


def test_output_reads_like_transformers() -> None:
    model, inputs = new(), new_inputs()
    with torch.no_grad():
        output = model(inputs["pixel_values"], labels=inputs["labels"])
        without = model(inputs["pixel_values"], inputs["decoder_input_ids"])
        as_tuple = model(inputs["pixel_values"], labels=inputs["labels"], return_dict=False)
    assert output[0] is output.loss
    assert output["logits"] is output.logits
    assert without[0] is without.logits
    assert list(output) == output.keys() == ["loss", "logits", "encoder_last_hidden_state"]
    assert "loss" not in without
    assert without.get("loss") is None
    assert len(without) == 2
    assert output[1:] == output.to_tuple()[1:]
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[1], output.logits)
    with pytest.raises(KeyError):
        without["loss"]
    fields = transformers.modeling_outputs.Seq2SeqLMOutput.__dataclass_fields__
    assert list(output.__dataclass_fields__) == list(fields)


def test_encoder_outputs_and_embeddings_replace_inputs() -> None:
    model, inputs = new(), new_inputs()
    ids = inputs["decoder_input_ids"]
    with torch.no_grad():
        expected = model(inputs["pixel_values"], ids).logits
        encoded = model.encode(inputs["pixel_values"])
        hidden = encoded.last_hidden_state
        theirs = transformers.modeling_outputs.BaseModelOutput(last_hidden_state=hidden)
        for given in (encoded, (hidden,), hidden, theirs):
            assert torch.equal(model(None, ids, encoder_outputs=given).logits, expected)
        embeds = model.get_input_embeddings()(ids)
        assert torch.equal(model(inputs["pixel_values"], decoder_inputs_embeds=embeds).logits, expected)
        assert torch.equal(model(inputs["pixel_values"].double().numpy(), ids.int().numpy()).logits, expected)


def test_arguments_that_cannot_be() -> None:
    model, inputs = new(), new_inputs()
    pixels, ids = inputs["pixel_values"], inputs["decoder_input_ids"]
    hidden = model.encode(pixels)
    for arguments in (
        {"decoder_input_ids": ids},
        {"pixel_values": pixels},
        {"pixel_values": pixels, "encoder_outputs": hidden, "decoder_input_ids": ids},
        {"pixel_values": pixels, "use_cache": True},
        {"pixel_values": pixels[:, :2], "decoder_input_ids": ids},
        {"pixel_values": pixels, "decoder_input_ids": ids, "decoder_attention_mask": ids[:, :3]},
    ):
        with pytest.raises(ValueError, match=r"give|should be|columns"):
            model(**arguments)
    with pytest.raises(ValueError, match="at least one image"):
        model.generate(pixels[:0])
    del model.config
    model.config = VisionEncoderDecoderConfig.from_dict(
        {"encoder": cases.ENCODERS["vit"], "decoder": cases.DECODERS["gpt2"]}
    )
    with pytest.raises(ConfigError, match="decoder_start_token_id"):
        model(pixels, labels=ids)
    model.config.decoder_start_token_id, model.config.pad_token_id = 2, 1
    assert model(pixels, labels=ids).loss > 0


def test_start_token_does_not_end_a_sequence() -> None:
    model, pixels = new(), new_inputs()["pixel_values"]
    ids = model.generate(pixels, eos_token_id=2, decoder_start_token_id=2, max_new_tokens=4)
    assert ids.shape[1] > 1
    first = int(ids[0, 1])
    output = model.generate(pixels, eos_token_id=first, max_new_tokens=6, return_dict_in_generate=True)
    row, log_probs = output.sequences[0], output.token_log_probs[0]
    assert int(row[1]) == first
    assert (row[2:] == 1).all()
    assert (log_probs[1:] == 0).all()
    torch.testing.assert_close(output.confidences[0], log_probs[0].exp())


# Precision, devices, compilation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("decoder", ["gpt2", "trocr-plain"])
def test_lower_precision(dtype: Any, decoder: str, tmp_path: Path) -> None:
    model, inputs = new(decoder=decoder), new_inputs(decoder=decoder)
    # The first row's mask hides all that its first tokens may see.
    inputs["decoder_attention_mask"] = inputs["decoder_attention_mask"].flip(1)
    model.save_pretrained(tmp_path / "full")
    half = VisionEncoderDecoderModel.from_pretrained(tmp_path / "full", torch_dtype=str(dtype).removeprefix("torch."))
    assert {parameter.dtype for parameter in half.parameters()} == {half.dtype} == {dtype}
    with torch.no_grad():
        full, low = model(**inputs), half(**inputs)
        with torch.autocast("cpu", dtype):
            mixed = model(**inputs)
    for output in (low, mixed):
        assert output.logits.dtype == output.loss.dtype == torch.float32
        torch.testing.assert_close(output.logits[1], full.logits[1], rtol=0, atol=0.1)
        assert output.logits.isfinite().all()
    assert half.generate(inputs["pixel_values"], max_new_tokens=3).shape == (3, 4)
    half.save_pretrained(tmp_path / "half")
    assert json.loads((tmp_path / "half/config.json").read_text())["torch_dtype"] == str(dtype).removeprefix("torch.")
    again = VisionEncoderDecoderModel.from_pretrained(tmp_path / "half", dtype=dtype)
    assert all(torch.equal(value, half.state_dict()[key]) for key, value in again.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float16, torch.float32, torch.float64])
def test_arrays_go_both_ways(dtype: Any) -> None:
    tensor = torch.tensor([[0.0, -0.0, 1.5], [0.25, 448.0, -0.0625]]).to(dtype)
    array = state.to_numpy(tensor)
    assert array.dtype.name == str(dtype).removeprefix("torch.")
    assert array.shape == (2, 3)
    assert array.tobytes() == state.to_numpy(state.to_tensor(array, dtype)).tobytes()
    assert state.to_numpy(tensor.T).tolist() == array.T.tolist()


def test_rounding_is_torchs() -> None:
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    assert torch.equal(state.to_tensor(values, torch.bfloat16), torch.from_numpy(values).bfloat16())
    brain = values.astype(ml_dtypes.bfloat16)
    assert torch.equal(state.to_tensor(brain, torch.float32), torch.from_numpy(brain.astype(np.float32)))


def test_compiled_training_is_eager() -> None:
    torch._dynamo.reset()
    model, inputs = new("vit", "gpt2-unscaled-1layer"), new_inputs("vit", "gpt2-unscaled-1layer")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    arguments = {"pixel_values": inputs["pixel_values"], "labels": inputs["labels"]}
    found = compiled(**arguments)
    found.loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    expected = model(**arguments)
    expected.loss.backward()
    torch.testing.assert_close(found.logits, expected.logits, **SAME)
    torch.testing.assert_close(gradients, [parameter.grad for parameter in model.parameters()], **SAME)


def test_compiled_decoding_is_eager() -> None:
    torch._dynamo.reset()
    model, inputs = new("vit-nobias-1layer", "trocr"), new_inputs("vit-nobias-1layer", "trocr")
    pixels, ids, mask = (inputs[name] for name in ("pixel_values", "decoder_input_ids", "decoder_attention_mask"))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        full = model(pixels, ids, mask).logits
        step = compiled(pixels, ids[:, :5], mask[:, :5], use_cache=True)
        for place in range(5, 9):
            past = step.past_key_values
            step = compiled(None, ids[:, place : place + 1], mask[:, : place + 1], past_key_values=past)
            torch.testing.assert_close(step.logits, full[:, place : place + 1], **SAME)


# Construction ---------------------------------------------------------------------------------------------------------


def test_new_parameters_follow_the_config_and_the_seed() -> None:
    config = cases.model_config("deit", "gpt2")
    config["decoder"] |= {"n_embd": 96, "n_layer": 8, "initializer_range": 0.05}
    generator = torch.Generator().manual_seed(1)
    model = VisionEncoderDecoderModel(config, generator=generator)
    again = VisionEncoderDecoderModel(config, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(4)
    other = VisionEncoderDecoderModel(config)
    torch.manual_seed(4)
    same = VisionEncoderDecoderModel(config)
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
        assert torch.equal(other.state_dict()[key], same.state_dict()[key]), key
        if key.endswith("bias"):
            assert not value.any(), key
        elif "norm" in key:
            assert (value == 1).all(), key
    assert not torch.equal(model.decoder.tokens.weight, other.decoder.tokens.weight)
    for layer, std in (
        (model.decoder.tokens, 0.05),
        (model.decoder.blocks[3].attn.q, 0.05),
        (model.decoder.blocks[3].attn.out, 0.05 / 4),
        (model.decoder.blocks[3].cross_attn.out, 0.05 / 4),
        (model.decoder.blocks[3].mlp.down, 0.05 / 4),
        (model.enc_to_dec_proj, 0.02),
    ):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.1)
    assert model.encoder.patches.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.training


def test_two_built_halves() -> None:
    config = VisionEncoderDecoderConfig.from_dict(cases.model_config("vit", "gpt2"))
    encoder, decoder = build_encoder(config.encoder), build_decoder(config.decoder)
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)
    assert model.encoder is encoder
    assert model.decoder is decoder
    assert model.enc_to_dec_proj is not None
    assert model.config.decoder.add_cross_attention
    assert decoder.config is model.config.decoder
    assert VisionEncoderDecoderModel(config, encoder=encoder).encoder is encoder
    other = VisionEncoderDecoderConfig.from_dict(cases.model_config("deit", "gpt2"))
    with pytest.raises(ConfigError, match="encoder"):
        VisionEncoderDecoderModel(other, encoder=encoder)
    with pytest.raises(ConfigError, match="give a config"):
        VisionEncoderDecoderModel(encoder=encoder)


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_state_dict_is_what_the_tables_name(encoder: str, decoder: str) -> None:
    model = state.abstract(lambda: VisionEncoderDecoderModel(cases.model_config(encoder, decoder)))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    named = [name for row in model_table(model.config).rows if hasattr(row, "names") for name in row.names("torch")]
    assert sorted(model.state_dict()) == sorted(named)
    storages = {id(parameter) for parameter in model.parameters()}
    assert len(storages) == len(named)


def test_loading_says_what_is_wrong(tmp_path: Path) -> None:
    new().save_pretrained(tmp_path)
    config = VisionEncoderDecoderConfig.from_pretrained(tmp_path)
    config.decoder.n_layer = 3
    with pytest.raises(ValueError, match="floating-point"):
        VisionEncoderDecoderModel.from_pretrained(tmp_path, dtype="int8")
    with pytest.raises(CheckpointError, match="missing"):
        VisionEncoderDecoderModel.from_pretrained(tmp_path, config=config)


@pytest.mark.parametrize("decoder", ["gpt2", "gpt2-untied-scaled"])
def test_resize_token_embeddings(decoder: str, tmp_path: Path) -> None:
    model, inputs = new(decoder=decoder), new_inputs(decoder=decoder)
    model.tie_weights()
    with torch.no_grad():
        before = model(**inputs).logits
        table = model.resize_token_embeddings(65, pad_to_multiple_of=4)
        after = model(**inputs).logits
    assert table is model.get_input_embeddings()
    assert table.weight.shape[0] == 68 == table.num_embeddings
    assert model.config.decoder.vocab_size == 68 == model.get_output_embeddings().weight.shape[0]
    torch.testing.assert_close(after[..., :61], before, **SAME)
    assert 0 < table.weight[61:].std() < 0.04
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.save_pretrained(tmp_path)
    again = VisionEncoderDecoderModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, after)
        assert model.resize_token_embeddings(60).weight.shape[0] == 60
        assert model.resize_token_embeddings().weight.shape[0] == 60
        assert model(inputs["pixel_values"], inputs["decoder_input_ids"].clamp(max=59)).logits.shape == (3, 9, 60)


def test_tied_heads_are_untied_and_tied_again(tmp_path: Path) -> None:
    model, inputs = new(), new_inputs()
    assert model.get_output_embeddings() is model.get_input_embeddings()
    count = model.num_parameters()
    with torch.no_grad():
        before = model(**inputs).logits
        model.untie_weights()
        assert torch.equal(model(**inputs).logits, before)
        head = model.get_output_embeddings()
        head.weight *= 2
    assert not model.config.decoder.tie_word_embeddings
    assert model.num_parameters() == count + head.weight.numel()
    assert head.weight.requires_grad
    model.save_pretrained(tmp_path)
    again = VisionEncoderDecoderModel.from_pretrained(tmp_path)
    assert torch.equal(again.decoder.head.weight, 2 * again.decoder.tokens.weight)
    model.tie_weights()
    assert model.decoder.head is head
    model.config.decoder.tie_word_embeddings = True
    model.tie_weights()
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, before)


@pytest.mark.oracle
def test_parameter_counts_are_transformers() -> None:
    theirs = oracle("vit", "gpt2")
    model = VisionEncoderDecoderModel(cases.model_config("vit", "gpt2"))
    pooler = 32 * 32 + 32
    assert model.num_parameters() == theirs.num_parameters() - pooler
    assert model.num_parameters(exclude_embeddings=True) == theirs.num_parameters(exclude_embeddings=True) - pooler
    model.freeze_encoder()
    assert model.num_parameters(only_trainable=True) == model.num_parameters() - sum(
        parameter.numel() for parameter in model.encoder.parameters()
    )


def test_reads_images() -> None:
    samples = json.loads((cases.DIGITS / "expected.json").read_text())["samples"]
    reader = ImageToText.from_pretrained(cases.READER)
    readings = reader([cases.DIGITS / Path(sample["image"]).name for sample in samples])
    assert [reading.text for reading in readings] == [sample["greedy_text"] for sample in samples]
    assert all(0.5 < reading.confidence <= 1 for reading in readings)


IMPORTS = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "jaxlib", "flax", "ved_flax"):
            raise ImportError(f"{name} is not for ved_torch")

sys.meta_path.insert(0, Blocked())
import ved_torch
assert "transformers" not in sys.modules
import numpy as np
model = ved_torch.VisionEncoderDecoderModel.from_pretrained(sys.argv[1])
output = model.generate(np.zeros((2, 3, 32, 32), np.float32), max_new_tokens=3, return_dict_in_generate=True)
model.save_pretrained(sys.argv[1])
assert not {"jax", "flax", "transformers"} & sys.modules.keys()
print(tuple(output.sequences.shape))
"""


def test_needs_neither_jax_nor_transformers_models(tmp_path: Path) -> None:
    new().save_pretrained(tmp_path)
    command = [sys.executable, "-c", IMPORTS, str(tmp_path)]
    result = subprocess.run(command, cwd=cases.ROOT, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "(2, 4)", result.stderr
