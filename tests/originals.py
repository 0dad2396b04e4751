"""Checkpoints in the layouts of the repositories that first published them. None can be had here: their names and
shapes are written down anew, and filled at random or from transformers' model by the way back."""

import re

import numpy as np

from ved_core.configs import VisionEncoderDecoderConfig

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
