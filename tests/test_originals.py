"""Checkpoints in the layouts of the repositories that first published them. None can be had here: their names and
shapes are written down anew, and filled from transformers' model by the way back."""

import importlib.util
import re

import numpy as np
import pytest

from conversion import checkpoint, originals
from conversion.formats import safetensors
from conversion.originals import donut
from conversion.originals.rows import Row
from conversion.rules import Row as StoredRow
from conversion.tables import model_table
from tests import reference
from tests.cases import FIXTURES, PAIRS, WEIGHTS_FILE
from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.errors import CheckpointError

SPECIAL = {"pad_token_id": 1, "eos_token_id": 2}
TROCR = SPECIAL | {"decoder_start_token_id": 2}

# Names and shapes of the originals -----------------------------------------------------------------------------------


def affine(name, *shape, bias=True):
    return {f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if bias else {})


def bart_layers(prefix, layers, width, hidden, read):
    shapes = {}
    for i in range(layers):
        layer = f"{prefix}.layers.{i}"
        for attention, size in (("self_attn", width), ("encoder_attn", read)):
            for name, entering in (("k_proj", size), ("v_proj", size), ("q_proj", width), ("out_proj", width)):
                shapes |= affine(f"{layer}.{attention}.{name}", width, entering)
            shapes |= affine(f"{layer}.{attention}_layer_norm", width)
        shapes |= affine(f"{layer}.fc1", hidden, width) | affine(f"{layer}.fc2", width, hidden)
        shapes |= affine(f"{layer}.final_layer_norm", width)
    return shapes


def trocr_shapes(encoder, decoder, *, distilled=False, learned=True, image=384, patch=16):
    """`encoder`: depth, width, width within the MLP; `decoder`: the same, vocabulary, longest text."""
    depth, width, hidden = encoder
    tokens = (image // patch) ** 2 + 1 + distilled
    shapes = {"encoder.deit.cls_token": (1, 1, width), "encoder.deit.pos_embed": (1, tokens, width)}
    shapes |= affine("encoder.deit.patch_embed.proj", width, 3, patch, patch)
    for i in range(depth):
        block = f"encoder.deit.blocks.{i}"
        shapes |= affine(f"{block}.norm1", width) | affine(f"{block}.attn.qkv", 3 * width, width, bias=distilled)
        shapes |= affine(f"{block}.attn.proj", width, width) | affine(f"{block}.norm2", width)
        shapes |= affine(f"{block}.mlp.fc1", hidden, width) | affine(f"{block}.mlp.fc2", width, hidden)
    shapes |= affine("encoder.deit.norm", width) | affine("encoder.deit.head", 1000, width)
    if distilled:
        shapes |= {"encoder.deit.dist_token": (1, 1, width)} | affine("encoder.deit.head_dist", 1000, width)
    layers, inner, feed, vocabulary, longest = decoder
    shapes |= {"decoder.version": (1,), "decoder.embed_tokens.weight": (vocabulary, inner)}
    if learned:
        shapes |= {"decoder.embed_positions.weight": (longest + 2, inner)}
        shapes |= affine("decoder.layernorm_embedding", inner)
    else:
        shapes["decoder.embed_positions._float_tensor"] = (1,)
    shapes |= bart_layers("decoder", layers, inner, feed, width)
    return shapes | {"decoder.output_projection.weight": (vocabulary, inner)}


def donut_shapes(encoder, decoder, image, *, newer=False):
    """`encoder`: width, depths, heads, window, width within the first MLP; `decoder`: layers, width, width within the
    MLP, vocabulary, longest text. `newer`: as from timm 0.9 on."""
    width, depths, heads, window, hidden = encoder
    shapes = affine("encoder.model.patch_embed.proj", width, 3, 4, 4) | affine("encoder.model.patch_embed.norm", width)
    for stage, depth in enumerate(depths):
        rows, columns = (side // 4 // 2**stage for side in image)
        for i in range(depth):
            block, attn = f"encoder.model.layers.{stage}.blocks.{i}", f"encoder.model.layers.{stage}.blocks.{i}.attn"
            shapes |= affine(f"{block}.norm1", width) | affine(f"{attn}.qkv", 3 * width, width)
            shapes |= {f"{attn}.relative_position_bias_table": ((2 * window - 1) ** 2, heads[stage])}
            shapes |= affine(f"{attn}.proj", width, width) | affine(f"{block}.norm2", width)
            shapes |= affine(f"{block}.mlp.fc1", hidden, width) | affine(f"{block}.mlp.fc2", width, hidden)
            if not newer:
                shapes[f"{attn}.relative_position_index"] = (window**2, window**2)
                if i % 2 and min(rows, columns) > window:
                    shapes[f"{block}.attn_mask"] = (rows * columns // window**2, window**2, window**2)
        if stage + 1 < len(depths):
            merge = f"encoder.model.layers.{stage + newer}.downsample"
            shapes |= affine(f"{merge}.norm", 4 * width)
            shapes |= affine(f"{merge}.reduction", 2 * width, 4 * width, bias=False)
            width, hidden = 2 * width, 2 * hidden
    shapes |= affine("encoder.model.norm", width)
    layers, inner, feed, vocabulary, longest = decoder
    prefix = "decoder.model.model.decoder"
    shapes |= {f"{prefix}.embed_tokens.weight": (vocabulary, inner)}
    shapes |= {f"{prefix}.embed_positions.weight": (longest + 2, inner)}
    shapes |= affine(f"{prefix}.layernorm_embedding", inner) | affine(f"{prefix}.layer_norm", inner)
    shapes |= bart_layers(prefix, layers, inner, feed, inner)
    return shapes | {"decoder.model.lm_head.weight": (vocabulary, inner)}


def window_masks(rows, columns, window):
    """timm's attention mask on a grid of `rows` x `columns` tokens whose windows are shifted by half of one."""
    shift = window // 2

    def parts(side):
        return np.digitize(np.arange(side), [side - window, side - shift])

    regions = 3 * parts(rows)[:, None] + parts(columns)
    windows = regions.reshape(rows // window, window, columns // window, window).swapaxes(1, 2)
    flat = windows.reshape(-1, window * window)
    return np.where(flat[:, :, None] != flat[:, None, :], -100.0, 0.0).astype(np.float32)


# The way back, from Hugging Face's layout ----------------------------------------------------------------------------

VIT = {
    "embeddings.distillation_token": "dist_token",
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "encoder.layer.": "blocks.",
    "attention.output.dense": "attn.proj",
    "attention.attention.query": "attn.qkv",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm.": "norm.",
}
SWIN = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.norm": "patch_embed.norm",
    "encoder.layers": "layers",
    "attention.output.dense": "attn.proj",
    "attention.self.query": "attn.qkv",
    "attention.self.relative": "attn.relative",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


def renamed(name, names):
    for ours, theirs in names.items():
        name = name.replace(ours, theirs)
    return name


def fused(stored, prefix, names, to):
    """An encoder's tensors under timm's names, queries, keys and values in one."""
    tensors = {}
    for name, tensor in stored.items():
        if name.startswith(prefix) and not re.search(r"\.(key|value)\.|pooler|relative_position_index", name):
            if ".query." in name:
                others = [stored[name.replace("query", kind)] for kind in ("key", "value")]
                tensor = np.concatenate([tensor, *others])
            tensors[to + renamed(name.removeprefix(prefix), names)] = tensor
    return tensors


def trocr_original(stored):
    head = stored.get("decoder.output_projection.weight", stored["decoder.model.decoder.embed_tokens.weight"])
    tensors = fused(stored, "encoder.", VIT, "encoder.deit.") | {"decoder.output_projection.weight": head}
    prefix = "decoder.model."
    tensors |= {name.removeprefix(prefix): x for name, x in stored.items() if name.startswith(prefix)}
    for name in [name for name in tensors if ".embed_positions.weights" in name or "._float_tensor" in name]:
        del tensors[name]
    return tensors


def donut_original(stored):
    head = stored.get("decoder.lm_head.weight", stored["decoder.model.decoder.embed_tokens.weight"])
    tensors = fused(stored, "encoder.", SWIN, "encoder.model.") | {"decoder.model.lm_head.weight": head}
    prefix = "decoder.model."
    return tensors | {
        f"decoder.model.{n.removeprefix('decoder.')}": x for n, x in stored.items() if n.startswith(prefix)
    }


# Small models --------------------------------------------------------------------------------------------------------

WIDE = {"decoder_layers": 1, "d_model": 1024, "decoder_attention_heads": 16, "vocab_size": 61}
SMALL = {
    "distilled": (
        trocr_shapes((2, 128, 96), (2, 256, 48, 61, 30), distilled=True, image=32, patch=8),
        {"model_type": "deit", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
        | {"intermediate_size": 96, "patch_size": 8},
        {"model_type": "trocr", "d_model": 256, "decoder_layers": 2, "decoder_attention_heads": 8, "vocab_size": 61}
        | {"decoder_ffn_dim": 48, "max_position_embeddings": 30, "cross_attention_hidden_size": 128}
        | {"activation_function": "relu", "scale_embedding": True, "tie_word_embeddings": False},
    ),
    "learned": (
        trocr_shapes((2, 64, 96), (1, 1024, 40, 61, 30), image=32, patch=8),
        {"model_type": "vit", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "image_size": 32}
        | {"intermediate_size": 96, "patch_size": 8, "qkv_bias": False},
        {"model_type": "trocr", **WIDE, "decoder_ffn_dim": 40, "max_position_embeddings": 30}
        | {"cross_attention_hidden_size": 64},
    ),
    "sinusoidal": (
        trocr_shapes((1, 64, 96), (1, 1024, 40, 61, 1024), learned=False, image=32, patch=8),
        {"model_type": "vit", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 32}
        | {"intermediate_size": 96, "patch_size": 8, "qkv_bias": False},
        {"model_type": "trocr", **WIDE, "decoder_ffn_dim": 40, "max_position_embeddings": 1024}
        | {"cross_attention_hidden_size": 64, "activation_function": "relu", "scale_embedding": True}
        | {"use_learned_position_embeddings": False, "layernorm_embedding": False, "tie_word_embeddings": False},
    ),
    "donut": (
        donut_shapes((512, (2, 1), (4, 8), 3, 64), (1, 1024, 40, 61, 30), (48, 24)),
        {"model_type": "donut-swin", "embed_dim": 512, "depths": [2, 1], "num_heads": [4, 8], "window_size": 3}
        | {"mlp_ratio": 0.125, "image_size": [48, 24]},
        {"model_type": "mbart", **WIDE, "decoder_ffn_dim": 40, "max_position_embeddings": 30, "scale_embedding": True},
    ),
    "donut-untied": (
        donut_shapes((256, (2, 2, 1), (4, 8, 16), 3, 64), (1, 1024, 40, 61, 30), (48, 96)),
        {"model_type": "donut-swin", "embed_dim": 256, "depths": [2, 2, 1], "num_heads": [4, 8, 16], "window_size": 3}
        | {"mlp_ratio": 0.25, "image_size": [48, 96]},
        {"model_type": "mbart", **WIDE, "decoder_ffn_dim": 40, "max_position_embeddings": 30, "scale_embedding": True}
        | {"tie_word_embeddings": False},
    ),
}
"""Of each published kind, small where it is free: the original's names and shapes, and the configs of its halves."""


def later(cases, *slow):
    """The cases, of which the named ones are left to the full run."""
    return [pytest.param(case, marks=[pytest.mark.slow] if case in slow else []) for case in cases]


def config_of(case):
    _, encoder, decoder = SMALL[case]
    tokens = SPECIAL if encoder["model_type"] == "donut-swin" else TROCR
    return VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder, **tokens)


def buffers(case):
    """What only the original has; values that the model must not see are not finite."""
    shapes, encoder, _ = SMALL[case]
    tensors = {}
    for name, shape in shapes.items():
        if name.endswith("attn_mask"):
            stage, window = int(name.split(".")[3]), encoder["window_size"]
            tensors[name] = window_masks(*(side // 4 // 2**stage for side in encoder["image_size"]), window)
            assert tensors[name].shape == shape
        elif re.search(r"head|version|_float_tensor|model\.norm|position_index", name) and "lm_head" not in name:
            tensors[name] = np.full(shape, np.nan, np.float32)
    return tensors


def random_original(case, seed=0):
    """An original of random numbers, whose config is the case's."""
    rng = np.random.default_rng(seed)
    shapes, _, decoder = SMALL[case]
    tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()} | buffers(case)
    if decoder.get("tie_word_embeddings", True):
        head = next(name for name in tensors if "lm_head" in name or "output_projection" in name)
        tensors[head] = next(x for name, x in tensors.items() if "embed_tokens" in name)
    return tensors


def stored_rows(config):
    return {row.stored for row in model_table(config).rows if isinstance(row, StoredRow)}


@pytest.mark.oracle
@pytest.mark.parametrize("case", later(SMALL, "donut-untied"))
def test_an_original_is_the_model_that_it_came_from(case, tmp_path):
    pytest.importorskip("flax")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from ved_flax import FlaxVisionEncoderDecoderModel
    from ved_torch import VisionEncoderDecoderModel

    config = config_of(case)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.VisionEncoderDecoderModel._from_config(
            transformers.VisionEncoderDecoderConfig.from_dict(config.to_dict()), attn_implementation="eager"
        )
    reference.perturbed(model.eval()).save_pretrained(tmp_path / "expected")
    expected = checkpoint.read(tmp_path / "expected")
    inverse = donut_original if case.startswith("donut") else trocr_original
    original = inverse(expected) | buffers(case)
    assert {name: tensor.shape for name, tensor in original.items()} == SMALL[case][0]

    found = originals.translate(original, "model.bin")
    assert found.config == config
    assert found.tensors.keys() == stored_rows(config)
    for name, tensor in found.tensors.items():
        assert tensor.dtype == expected[name].dtype
        assert tensor.tobytes() == expected[name].tobytes(), name

    folder = tmp_path / "found"
    found.config.save_pretrained(folder)
    safetensors.write(folder / WEIGHTS_FILE, found.tensors)
    rng = np.random.default_rng(0)
    height, width = np.broadcast_to(config.encoder.image_size, 2)
    pixels = rng.standard_normal((2, 3, height, width)).astype(np.float32)
    ids = rng.integers(3, 61, (2, 7))
    with torch.no_grad():
        wanted = model(pixel_values=torch.tensor(pixels), decoder_input_ids=torch.tensor(ids)).logits.numpy()
        torch_logits = VisionEncoderDecoderModel.from_pretrained(folder)(pixels, decoder_input_ids=ids).logits.numpy()
    flax_logits = FlaxVisionEncoderDecoderModel.from_pretrained(folder)(pixels, decoder_input_ids=ids).logits
    for logits in (torch_logits, np.asarray(flax_logits)):
        np.testing.assert_allclose(logits, wanted, atol=1e-3 * np.abs(wanted).max())


# Published sizes -----------------------------------------------------------------------------------------------------

LEARNED = {"activation_function": "gelu", "scale_embedding": False, "tie_word_embeddings": True} | {
    "use_learned_position_embeddings": True,
    "layernorm_embedding": True,
    "max_position_embeddings": 512,
}
SINUSOIDAL = {"activation_function": "relu", "scale_embedding": True, "tie_word_embeddings": False} | {
    "use_learned_position_embeddings": False,
    "layernorm_embedding": False,
    "max_position_embeddings": 1024,
}
DISTILLED = LEARNED | {"activation_function": "relu", "scale_embedding": True, "tie_word_embeddings": False}
MILLIONS = {"small": 61.4, "base": 334, "large": 558}
"""Published numbers of parameters; of base and large with a tied head."""


def trocr_published():
    """Name -> shapes, fields of encoder and decoder."""
    for size in ("small", "base", "large"):
        for task in ("stage1", "printed", "handwritten"):
            if size == "small":
                shapes = trocr_shapes((12, 384, 1536), (6, 256, 1024, 64044, 512), distilled=True)
                encoder = {"hidden_size": 384, "num_attention_heads": 6, "qkv_bias": True, "num_hidden_layers": 12}
                decoder = DISTILLED | {"decoder_attention_heads": 8, "cross_attention_hidden_size": 384}
            else:
                depth, width = {"base": (12, 768), "large": (24, 1024)}[size]
                sinusoidal = task == "stage1" or (size, task) == ("large", "printed")
                words = (12, 1024, 4096, 50265, 512)
                shapes = trocr_shapes((depth, width, 4 * width), words, learned=not sinusoidal)
                encoder = {"hidden_size": width, "num_attention_heads": width // 64, "qkv_bias": False}
                encoder |= {"num_hidden_layers": depth}
                decoder = SINUSOIDAL if sinusoidal else LEARNED
                decoder = decoder | {"decoder_attention_heads": 16, "cross_attention_hidden_size": width}
            yield f"trocr-{size}-{task}", (shapes, encoder | {"image_size": 384, "patch_size": 16}, decoder)


def donut_published():
    base = ((128, (2, 2, 14, 2), (4, 8, 16, 32), 10, 512), (4, 1024, 4096))
    proto = ((128, (2, 2, 18, 2), (4, 8, 16, 32), 8, 512), (4, 1024, 4096))
    nougat = ((128, (2, 2, 14, 2), (4, 8, 16, 32), 7, 512), (10, 1024, 4096))
    for name, (encoder, decoder), words, image in (
        ("donut-base", base, (57525, 1536), [2560, 1920]),
        ("donut-proto", proto, (57525, 1536), [2048, 1536]),
        ("donut-base-finetuned-cord-v2", base, (57580, 768), [1280, 960]),
        ("donut-base-finetuned-zhtrainticket", base, (57580, 768), [960, 1280]),
        ("nougat-base", nougat, (50000, 4096), [896, 672]),
    ):
        shapes = donut_shapes(encoder, decoder + words, image)
        fields = {"image_size": image, "depths": list(encoder[1]), "num_heads": [4, 8, 16, 32], "hidden_size": 1024}
        fields |= {"window_size": encoder[3], "embed_dim": 128, "patch_size": 4, "qkv_bias": True, "mlp_ratio": 4.0}
        tied = name != "nougat-base"
        yield (
            name,
            (shapes, fields, {"decoder_attention_heads": 16, "scale_embedding": True} | {"tie_word_embeddings": tied}),
        )
    shapes = donut_shapes(*base[:1], base[1] + (57525, 1536), [2560, 1920], newer=True)
    yield "donut-base-newer-timm", (shapes, {"image_size": [2560, 1920], "window_size": 10}, {"decoder_layers": 4})


PUBLISHED = dict(trocr_published()) | dict(donut_published())


def weightless(shapes, image, tied):
    """Arrays of these shapes that need no memory; masks are marked in the windows of the last row and column."""
    tensors = {}
    for name, shape in shapes.items():
        value = np.float32("lm_head" in name or "output_projection" in name) if not tied else np.float32(0)
        tensors[name] = np.broadcast_to(value, shape)
        if name.endswith("attn_mask"):
            stage, window = int(name.split(".")[3]), round(shape[1] ** 0.5)
            marked = np.zeros([side // 4 // 2**stage // window for side in image], np.float32)
            marked[-1] = marked[:, -1] = -100
            tensors[name] = np.broadcast_to(marked.reshape(-1, 1, 1), shape)
    return tensors


QUICK = ("trocr-small-printed", "trocr-base-handwritten", "donut-base-finetuned-cord-v2")


@pytest.mark.parametrize("name", later(PUBLISHED, *(PUBLISHED.keys() - set(QUICK))))
def test_published_sizes_fit(name):
    shapes, encoder, decoder = PUBLISHED[name]
    tied = decoder.get("tie_word_embeddings", True)
    found = originals.translate(weightless(shapes, encoder["image_size"], tied), name)
    config = found.config
    assert {field: getattr(config.encoder, field) for field in encoder} == encoder
    assert {field: getattr(config.decoder, field) for field in decoder} == decoder
    tokens = {"bos_token_id": 0, **SPECIAL, "decoder_start_token_id": 2 if "trocr" in name else None}
    assert {field: getattr(config.decoder, field) for field in tokens} == tokens
    assert config.decoder_start_token_id == tokens["decoder_start_token_id"]
    assert found.tensors.keys() == stored_rows(config)
    if name.startswith("trocr"):
        count = sum(tensor.size for tensor in found.tensors.values()) / 1e6
        size = name.split("-")[1]
        more = 50265 * 1024 / 1e6 if size != "small" and not tied else 0
        assert count == pytest.approx(MILLIONS[size] + more, rel=0.01)
    for framework in filter(importlib.util.find_spec, ("torch", "flax")):
        checkpoint.from_stored(found.tensors, model_table(config), framework, name)


HEADS = {"learned": "decoder.output_projection", "donut": "decoder.model.lm_head"}

# Variants ------------------------------------------------------------------------------------------------------------


def same_result(changed, case):
    """The translations of a random original and of a changed one, which must be the same."""
    plain = originals.translate(random_original(case), "plain")
    found = originals.translate(changed, "changed")
    assert found.config == plain.config
    assert found.tensors.keys() == plain.tensors.keys()
    for name, tensor in found.tensors.items():
        np.testing.assert_array_equal(tensor, plain.tensors[name], err_msg=name)


def test_timm_has_moved_the_merging_of_patches():
    older = random_original("donut")
    newer = {re.sub(r"(\d)\.downsample", lambda m: f"{int(m[1]) + 1}.downsample", n): x for n, x in older.items()}
    assert newer.keys() != older.keys()
    same_result(newer, "donut")


def test_fairseq_has_renamed_the_vocabulary_head():
    tensors = random_original("sinusoidal")
    tensors["decoder.embed_out"] = tensors.pop("decoder.output_projection.weight")
    tensors["decoder.embed_positions.weights"] = tensors.pop("decoder.embed_positions._float_tensor")
    same_result(tensors, "sinusoidal")


@pytest.mark.parametrize(
    ("case", "head"), [("learned", "decoder.output_projection"), ("donut", "decoder.model.lm_head")]
)
def test_a_tied_head_need_not_be_stored(case, head):
    tensors = random_original(case)
    del tensors[f"{head}.weight"]
    same_result(tensors, case)


@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize("wrapper", ["module.", "model."])
def test_wrappers_are_taken_off(case, wrapper):
    same_result({wrapper + name: tensor for name, tensor in random_original(case).items()}, case)


@pytest.mark.parametrize("case", SMALL)
def test_buffers_may_be_left_out(case):
    tensors = random_original(case)
    for name in buffers(case):
        if not name.endswith("attn_mask"):
            del tensors[name]
    same_result(tensors, case)


def test_without_masks_images_are_of_the_published_size():
    tensors = {name: x for name, x in random_original("donut").items() if not name.endswith("attn_mask")}
    assert originals.translate(tensors, "x").config.encoder.image_size == list(donut.IMAGE_SIZE)


def test_a_given_config_replaces_the_derived_one():
    shapes = trocr_shapes((1, 40, 24), (1, 24, 20, 61, 30), image=32, patch=8)
    shapes = {name: shape for name, shape in shapes.items() if "layernorm_embedding" not in name}
    tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    with pytest.raises(CheckpointError, match=r"patch_embed.proj.weight is of width 40.*Give the config"):
        originals.translate(tensors, "odd.pt")
    encoder = {"model_type": "vit", "hidden_size": 40, "num_hidden_layers": 1, "num_attention_heads": 5}
    encoder |= {"intermediate_size": 24, "image_size": 32, "patch_size": 8, "qkv_bias": False}
    decoder = {"model_type": "trocr", "d_model": 24, "decoder_layers": 1, "decoder_attention_heads": 3}
    decoder |= {"decoder_ffn_dim": 20, "vocab_size": 61, "max_position_embeddings": 30, "layernorm_embedding": False}
    decoder |= {"cross_attention_hidden_size": 40}
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    found = originals.translate(tensors, "odd.pt", config)
    assert found.config is config
    assert found.tensors.keys() == stored_rows(config)

    config.decoder.cross_attention_hidden_size = None
    with pytest.raises(CheckpointError, match=r"set decoder.cross_attention_hidden_size to 40"):
        originals.translate(tensors, "odd.pt", config)
    other = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, {"model_type": "gpt2"})
    with pytest.raises(CheckpointError, match=r"decoder of model_type trocr, its config says gpt2"):
        originals.translate(tensors, "odd.pt", other)


# What is read, and what is not ----------------------------------------------------------------------------------------


class Lazy:
    """A tensor that notes that it was read."""

    def __init__(self, name, array, read):
        self.name, self.array, self.read = name, array, read
        self.shape, self.dtype = array.shape, array.dtype

    def __array__(self, dtype=None, copy=None):
        self.read.append(self.name)
        return self.array


@pytest.mark.parametrize("case", SMALL)
def test_only_what_is_split_or_compared_is_read(case):
    read = []
    tensors = {name: Lazy(name, array, read) for name, array in random_original(case).items()}
    found = originals.translate(tensors, "lazy")
    compared = {name for name in tensors if re.search("embed_tokens|output_projection|lm_head", name)}
    masks = [name for name in tensors if name.endswith("attn_mask")][:1]
    assert set(read) == {name for name in tensors if ".qkv." in name} | compared | set(masks)
    for name, stored in found.became.items():
        for number, part in enumerate(stored):
            if len(stored) == 1:
                assert found.tensors[part] is tensors[name]
            else:
                rows = len(tensors[name].array) // 3
                assert np.shares_memory(found.tensors[part], tensors[name].array)
                np.testing.assert_array_equal(found.tensors[part], tensors[name].array[number * rows :][:rows])
    assert found.became.keys() == tensors.keys()
    assert {name for name, stored in found.became.items() if not stored} >= buffers(case).keys()


# What is none, and what is wrong --------------------------------------------------------------------------------------


def test_what_is_in_hugging_faces_layout_is_no_original():
    assert originals.translate({}, "nothing") is None
    for pair in PAIRS:
        tensors = checkpoint.read(FIXTURES / pair)
        assert originals.translate(tensors, pair) is None
        inside = {re.sub("^encoder.", "encoder.deit.", name): tensor for name, tensor in tensors.items()}
        assert originals.translate(inside, pair) is None


@pytest.mark.parametrize("case", SMALL)
def test_every_missing_tensor_is_named(case):
    tensors = random_original(case)
    may_miss = buffers(case).keys() | {"decoder.model.lm_head.weight"}
    may_miss |= {"decoder.output_projection.weight"} if case == "learned" else set()
    for name in tensors.keys() - may_miss:
        with pytest.raises(CheckpointError, match=r"file\.pt") as caught:
            originals.translate({other: x for other, x in tensors.items() if other != name}, "file.pt")
        assert name.removesuffix(".weight").removesuffix(".bias") in str(caught.value), name


@pytest.mark.parametrize("case", SMALL)
def test_every_mis_shaped_tensor_is_an_error(case):
    tensors, config = random_original(case), config_of(case)
    for name in tensors.keys() - buffers(case).keys():
        wrong = np.concatenate([tensors[name], tensors[name][:1]])
        with pytest.raises(CheckpointError, match=r"file\.pt") as caught:
            originals.translate(tensors | {name: wrong}, "file.pt", config)
        assert name in str(caught.value)
        if "embed_positions" not in name:  # a longer table is that of another model
            with pytest.raises(CheckpointError, match=r"file\.pt"):
                originals.translate(tensors | {name: wrong}, "file.pt")


@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize("name", ["decoder.surprise", "encoder.surprise.weight", "optimizer", "*.9.norm1.weight"])
def test_an_unexpected_tensor_is_named(case, name):
    name = name.replace("*", "encoder.model.layers.0.blocks" if case.startswith("donut") else "encoder.deit.blocks")
    with pytest.raises(CheckpointError, match=rf"file\.pt is no whole.*1 are unexpected: {name}"):
        originals.translate(random_original(case) | {name: np.zeros(3, np.float32)}, "file.pt")


BLOCK = "encoder.model.layers.0.blocks."


def changed(case, **tensors):
    return random_original(case) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (changed("learned", decoder__embed_tokens__weight=np.zeros((61, 512))), r"width 512, with learned positions"),
        (changed("learned", encoder__deit__pos_embed=np.zeros((1, 19, 64))), r"18 entries of encoder.deit.pos_embed"),
        (changed("learned", encoder__deit__pos_embed=np.zeros(64)), r"pos_embed has shape \(64,\)"),
        (changed("learned", decoder__embed_positions__weight=np.zeros((2, 1024))), r"max_position_embeddings = 0"),
        (changed("donut", decoder__model__model__decoder__embed_tokens__weight=np.zeros((61, 768))), r"width 768"),
        (
            changed(
                "donut", encoder__model__layers__0__blocks__0__attn__relative_position_bias_table=np.zeros((24, 4))
            ),
            r"24 entries of encoder.model.layers.0.blocks.0.attn.relative_position_bias_table",
        ),
        (changed("donut", **{f"{BLOCK}1.attn_mask": np.zeros((8, 9, 9))}), r"mask marks no last column of 8 windows"),
    ],
)
def test_unknown_sizes_ask_for_a_config(tensors, message):
    with pytest.raises(CheckpointError, match=rf"file\.pt: .*{message}.*Give the config"):
        originals.translate(tensors, "file.pt")


@pytest.mark.parametrize(
    ("case", "head"), [("learned", "decoder.output_projection"), ("donut", "decoder.model.lm_head")]
)
def test_a_broken_tie_is_named(case, head):
    tensors = random_original(case)
    tensors[f"{head}.weight"] = tensors[f"{head}.weight"] + 1
    found = originals.translate(tensors, "file.pt")
    assert not found.config.decoder.tie_word_embeddings
    with pytest.raises(CheckpointError, match=rf"file\.pt: {head}.weight differs from .*embed_tokens.weight"):
        originals.translate(tensors, "file.pt", config_of(case))


def test_endless_layers_are_refused():
    tensors = {f"encoder.deit.blocks.{i}.norm1.weight": np.zeros(2) for i in range(2000)}
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        originals.translate(random_original("learned") | tensors, "file.pt")


def test_tables_name_nothing_twice():
    for case in SMALL:
        layout = donut if case.startswith("donut") else originals.trocr
        found = originals.Found(random_original(case), case, layout.LAYOUT)
        rows = list(layout.rows(config_of(case), found))
        assert len({row.original for row in rows}) == len(rows)
        stored = [name for row in rows if isinstance(row, Row) for name in row.stored]
        assert len(set(stored)) == len(stored)
