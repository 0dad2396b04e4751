"""Model configurations with Hugging Face's field names and defaults."""

from ved_core.configs.bart import BartConfig, MBartConfig
from ved_core.configs.base import Config
from ved_core.configs.bert import BertConfig, CamembertConfig, ElectraConfig, RobertaConfig, XLMRobertaConfig
from ved_core.configs.decoder import DecoderConfig
from ved_core.configs.distilbert import DistilBertConfig
from ved_core.configs.gpt2 import GPT2Config
from ved_core.configs.model import CONFIG_FILE, DECODERS, ENCODERS, EncoderConfig, VisionEncoderDecoderConfig
from ved_core.configs.trocr import TrOCRConfig
from ved_core.configs.vit import DeiTConfig, ViTConfig

__all__ = [
    "CONFIG_FILE",
    "DECODERS",
    "ENCODERS",
    "BartConfig",
    "BertConfig",
    "CamembertConfig",
    "Config",
    "DecoderConfig",
    "DeiTConfig",
    "DistilBertConfig",
    "ElectraConfig",
    "EncoderConfig",
    "GPT2Config",
    "MBartConfig",
    "RobertaConfig",
    "TrOCRConfig",
    "ViTConfig",
    "VisionEncoderDecoderConfig",
    "XLMRobertaConfig",
]
