"""Model configurations with Hugging Face's field names and defaults."""

from ved_core.configs.base import Config
from ved_core.configs.decoder import DecoderConfig
from ved_core.configs.gpt2 import GPT2Config
from ved_core.configs.model import CONFIG_FILE, DECODERS, ENCODERS, EncoderConfig, VisionEncoderDecoderConfig
from ved_core.configs.trocr import TrOCRConfig
from ved_core.configs.vit import DeiTConfig, ViTConfig

__all__ = [
    "CONFIG_FILE",
    "DECODERS",
    "ENCODERS",
    "Config",
    "DecoderConfig",
    "DeiTConfig",
    "EncoderConfig",
    "GPT2Config",
    "TrOCRConfig",
    "ViTConfig",
    "VisionEncoderDecoderConfig",
]
