"""Decoder layers in BART's manner, whose tensors fairseq and Hugging Face name alike."""

from conversion.originals.rows import Rows, linear, norm
from ved_core.configs.bart import BartDecoderConfig


def layers(original: str, stored: str, cfg: BartDecoderConfig, encoder_width: int) -> Rows:
    """All layers, from `original` to `stored`; cross-attention reads vectors of `encoder_width`."""
    width, hidden = cfg.d_model, cfg.decoder_ffn_dim
    for i in range(cfg.decoder_layers):
        layer, place = f"{original}.layers.{i}", f"{stored}.layers.{i}"
        for attention, read in (("self_attn", width), ("encoder_attn", encoder_width)):
            for projection, size in (("k_proj", read), ("v_proj", read), ("q_proj", width), ("out_proj", width)):
                name = f"{attention}.{projection}"
                yield from linear(f"{layer}.{name}", f"{place}.{name}", shape=(width, size))
            yield from norm(f"{layer}.{attention}_layer_norm", f"{place}.{attention}_layer_norm", width)
        yield from linear(f"{layer}.fc1", f"{place}.fc1", shape=(hidden, width))
        yield from linear(f"{layer}.fc2", f"{place}.fc2", shape=(width, hidden))
        yield from norm(f"{layer}.final_layer_norm", f"{place}.final_layer_norm", width)
