"""TrOCR as the unilm repository publishes it: a timm DeiT or ViT and a fairseq decoder (arXiv:2109.10282).

Sizes are the tensors' own. What no tensor shows is that of the published models, as they are in Hugging Face's layout.
"""

import dataclasses

from conversion.originals import bart
from conversion.originals.found import Found
from conversion.originals.rows import Copy, Dropped, Rows, dropped, embedding, linear, norm, parameter
from conversion.tensors import equal
from ved_core.configs import DeiTConfig, TrOCRConfig, VisionEncoderDecoderConfig, ViTConfig
from ved_core.configs.fields import as_pair

LAYOUT = "TrOCR of the unilm repository"
MARKS = ("encoder.deit.blocks.", "encoder.deit.patch_embed.")
"""What some names of this layout begin with, and none of another."""
ENCODERS = ("vit", "deit")
DECODERS = ("trocr",)

HEAD_WIDTH = 64
"""Of every encoder's attention."""
OFFSET = 2
"""Rows of a learned position table before the first token's: fairseq counts from behind the padding token, 1."""
TOKENS = {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}


@dataclasses.dataclass(frozen=True)
class Family:
    """What a decoder's tensors do not show. `tied`: whether one that stores no vocabulary head shares the token
    embedding; `positions`: the longest text of one without learned positions."""

    heads: int
    activation: str
    scaled: bool
    tied: bool
    positions: int = 0


FAMILIES = {
    # small
    (True, True, 256): Family(heads=8, activation="relu", scaled=True, tied=False),
    # base, and large for handwriting: RoBERTa with cross-attention
    (True, True, 1024): Family(heads=16, activation="gelu", scaled=False, tied=True),
    # stage1 of base and large, and large for print
    (False, False, 1024): Family(heads=16, activation="relu", scaled=True, tied=False, positions=1024),
}
"""(learned positions, a normalisation behind them, width) -> the decoder."""


def derived(found: Found) -> VisionEncoderDecoderConfig:
    """The config that names and shapes tell. Raises CheckpointError where they are of no published kind."""
    encoder = encoder_config(found)
    return VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        encoder, decoder_config(found, encoder.hidden_size), **TOKENS
    )


def encoder_config(found: Found) -> ViTConfig:
    """The encoder's config: a DeiT where it has a distillation token."""
    patches = "encoder.deit.patch_embed.proj.weight"
    width, channels, height, side = found.shape(patches, 4)
    if width % HEAD_WIDTH:
        raise found.unknown(f"{patches} is of width {width}")
    distilled = found.has("encoder.deit.dist_token", "encoder.deit.head_dist.")
    kind = DeiTConfig if distilled else ViTConfig
    table = "encoder.deit.pos_embed"
    grid = found.square(table, found.shape(table, 3)[1] - kind.extra_tokens)
    square = height == side
    return kind(
        image_size=grid * side if square else [grid * height, grid * side],
        patch_size=side if square else [height, side],
        num_channels=channels,
        hidden_size=width,
        num_hidden_layers=found.count("encoder.deit.blocks."),
        num_attention_heads=width // HEAD_WIDTH,
        intermediate_size=found.shape("encoder.deit.blocks.0.mlp.fc1.weight", 2)[0],
        qkv_bias=any(name.endswith(".attn.qkv.bias") for name in found.tensors),
    )


def decoder_config(found: Found, encoder_width: int) -> TrOCRConfig:
    """The decoder's config."""
    vocabulary, width = found.shape("decoder.embed_tokens.weight", 2)
    table = "decoder.embed_positions.weight"
    learned = table in found.tensors
    normed = found.has("decoder.layernorm_embedding.")
    family = FAMILIES.get((learned, normed, width))
    if family is None:
        raise found.unknown(
            f"a decoder of width {width}, {'with' if learned else 'without'} learned positions ({table}) and "
            f"{'with' if normed else 'without'} a normalisation behind them (decoder.layernorm_embedding)"
        )
    embedded, projected = found.tensors["decoder.embed_tokens.weight"], found.tensors.get(head(found))
    return TrOCRConfig(
        vocab_size=vocabulary,
        d_model=width,
        decoder_layers=found.count("decoder.layers."),
        decoder_attention_heads=family.heads,
        decoder_ffn_dim=found.shape("decoder.layers.0.fc1.weight", 2)[0],
        cross_attention_hidden_size=encoder_width,
        activation_function=family.activation,
        scale_embedding=family.scaled,
        max_position_embeddings=found.shape(table, 2)[0] - OFFSET if learned else family.positions,
        use_learned_position_embeddings=learned,
        layernorm_embedding=normed,
        tie_word_embeddings=family.tied if projected is None else equal(embedded, projected),
    )


def head(found: Found) -> str:
    """The vocabulary head's name: older releases of fairseq have another."""
    older = "decoder.embed_out"
    return older if older in found.tensors else "decoder.output_projection.weight"


def rows(config: VisionEncoderDecoderConfig, found: Found) -> Rows:
    """All tensors of a model of this layout."""
    yield from encoder_rows(config.encoder)
    yield from decoder_rows(config.decoder, config.encoder.hidden_size, head(found))


def encoder_rows(cfg: ViTConfig) -> Rows:
    """timm's ViT, from `encoder.deit`."""
    width, hidden = cfg.hidden_size, cfg.intermediate_size
    height, side = cfg.grid
    tokens = cfg.extra_tokens + height * side
    yield from parameter("encoder.deit.cls_token", "encoder.embeddings.cls_token", (1, 1, width))
    if isinstance(cfg, DeiTConfig):
        yield from parameter("encoder.deit.dist_token", "encoder.embeddings.distillation_token", (1, 1, width))
    yield from parameter("encoder.deit.pos_embed", "encoder.embeddings.position_embeddings", (1, tokens, width))
    yield from linear(
        "encoder.deit.patch_embed.proj",
        "encoder.embeddings.patch_embeddings.projection",
        shape=(width, cfg.num_channels, *as_pair(cfg.patch_size)),
    )
    for i in range(cfg.num_hidden_layers):
        block, layer = f"encoder.deit.blocks.{i}", f"encoder.encoder.layer.{i}"
        attention = f"{layer}.attention.attention"
        yield from norm(f"{block}.norm1", f"{layer}.layernorm_before", width)
        yield from linear(
            f"{block}.attn.qkv",
            *(f"{attention}.query", f"{attention}.key", f"{attention}.value"),
            shape=(3 * width, width),
            bias=cfg.qkv_bias,
        )
        yield from linear(f"{block}.attn.proj", f"{layer}.attention.output.dense", shape=(width, width))
        yield from norm(f"{block}.norm2", f"{layer}.layernorm_after", width)
        yield from linear(f"{block}.mlp.fc1", f"{layer}.intermediate.dense", shape=(hidden, width))
        yield from linear(f"{block}.mlp.fc2", f"{layer}.output.dense", shape=(width, hidden))
    yield from norm("encoder.deit.norm", "encoder.layernorm", width)
    # Of image classification, before the encoder was taken from there.
    yield from dropped("encoder.deit.head", "encoder.deit.head_dist")


def decoder_rows(cfg: TrOCRConfig, encoder_width: int, stored_head: str) -> Rows:
    """fairseq's decoder."""
    stored = "decoder.model.decoder"
    vocabulary, width = cfg.vocab_size, cfg.d_model
    yield from embedding("decoder.embed_tokens", f"{stored}.embed_tokens", (vocabulary, width))
    if cfg.use_learned_position_embeddings:
        positions = (cfg.max_position_embeddings + OFFSET, width)
        yield from embedding("decoder.embed_positions", f"{stored}.embed_positions", positions)
    else:
        yield Dropped("decoder.embed_positions._float_tensor")
        yield Dropped("decoder.embed_positions.weights")
    if cfg.layernorm_embedding:
        yield from norm("decoder.layernorm_embedding", f"{stored}.layernorm_embedding", width)
    yield from bart.layers("decoder", stored, cfg, encoder_width)
    if cfg.tie_word_embeddings:
        yield Copy(stored_head, "decoder.embed_tokens.weight")
    else:
        yield from parameter(stored_head, "decoder.output_projection.weight", (vocabulary, width))
    yield Dropped("decoder.version")
