"""Text decoders by model_type."""

from typing import Any

from flax import nnx

from ved_core.configs import DecoderConfig
from ved_flax.decoders.bart import BartDecoder, MBartDecoder, TrOCRDecoder
from ved_flax.decoders.base import Decoder
from ved_flax.decoders.bert import BertDecoder, RobertaDecoder
from ved_flax.decoders.distilbert import DistilBertDecoder
from ved_flax.decoders.gpt2 import GPT2Decoder
from ved_flax.layers.build import Builder

DECODERS: dict[str, Any] = {
    "bart": BartDecoder,
    "bert": BertDecoder,
    "camembert": RobertaDecoder,
    "distilbert": DistilBertDecoder,
    "electra": BertDecoder,
    "gpt2": GPT2Decoder,
    "mbart": MBartDecoder,
    "roberta": RobertaDecoder,
    "trocr": TrOCRDecoder,
    "xlm-roberta": RobertaDecoder,
}


def build_decoder(cfg: DecoderConfig, make: Builder | None = None) -> Decoder:
    """The decoder that a config describes, newly initialised."""
    return DECODERS[cfg.model_type](cfg, Builder(nnx.Rngs(0)) if make is None else make)
