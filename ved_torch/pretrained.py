"""`PreTrainedModel`: what a model has and does beside computing, from loading to its vocabulary."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from conversion.checkpoint import fitting, of_part
from conversion.source import asked
from conversion.tables import model_table
from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.generation.config import GenerationConfig
from ved_core.publishing import push_model
from ved_torch import loading, state, warm_start
from ved_torch.decoders.base import Decoder
from ved_torch.encoders.base import Encoder
from ved_torch.layers.attention import set_implementation
from ved_torch.layers.blocks import set_checkpointing
from ved_torch.layers.linear import Linear


class PreTrainedModel(nn.Module):
    """An encoder and a decoder, joined by `ved_torch.model.VisionEncoderDecoderModel`, which computes with them."""

    config: VisionEncoderDecoderConfig
    encoder: Encoder
    decoder: Decoder
    enc_to_dec_proj: Linear | None
    _generation_config: GenerationConfig

    # What belongs to the model beside its parameters ----------------------------------------------------------------

    @property
    def generation_config(self) -> GenerationConfig:
        """Decoding defaults, from generation_config.json."""
        return self._generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig | Mapping[str, Any]) -> None:
        self._generation_config = value if isinstance(value, GenerationConfig) else GenerationConfig.from_dict(value)

    @property
    def carried(self) -> dict[str, np.ndarray]:
        """Stored tensors that decoding never uses (poolers), by their stored names; written back by save_pretrained."""
        halves = (("encoder", self.encoder), ("decoder", self.decoder))
        return {f"{part}.{name}": array for part, half in halves for name, array in half.carried.items()}

    @carried.setter
    def carried(self, value: Mapping[str, np.ndarray]) -> None:
        self.encoder.carried, self.decoder.carried = of_part(value, "encoder"), of_part(value, "decoder")

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.decoder.tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the parameters are kept in."""
        return self.decoder.tokens.weight.dtype

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the parameters hold, a tied head once; of those that train, or outside embedding tables."""
        tables = {id(part.weight) for part in self.modules() if exclude_embeddings and isinstance(part, nn.Embedding)}
        counted = (p for p in self.parameters() if id(p) not in tables and (p.requires_grad or not only_trainable))
        return sum(parameter.numel() for parameter in counted)

    def set_attn_implementation(self, attn_implementation: str) -> None:
        """How attention is computed where its weights are not asked for: by torch's fused kernels ("sdpa") or by plain
        operations ("eager"). Raises ValueError for any other name."""
        set_implementation(self, attn_implementation)

    # Loading and saving ----------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        config: VisionEncoderDecoderConfig | Mapping[str, Any] | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        attn_implementation: str = "sdpa",
        revision: str | None = None,
        subfolder: str | None = None,
        from_pt: bool | None = None,
        from_flax: bool | None = None,
        from_tf: bool | None = None,
        check_digests: bool | None = None,
    ) -> Self:
        """Load a checkpoint from a local folder or, by name, from the Hugging Face hub, in evaluation mode.

        `config` replaces the checkpoint's own. The format is found by looking; `from_pt`, `from_flax` and `from_tf` are
        unneeded, and choose where a checkpoint has several. `dtype`: torch's or its name, float32 by default;
        `torch_dtype` is its older spelling. `check_digests`: whether files are compared with the checkpoint's
        ved_digests.json first, by default yes, unless the environment's VED_CHECK_DIGESTS is 0. Raises
        HubError, ConfigError or CheckpointError, each naming the file and the fix, and ValueError for what is no
        floating-point dtype.
        """
        return loading.load(
            cls,
            name_or_path,
            config=config,
            dtype=state.as_dtype(dtype or torch_dtype or torch.float32),
            device=None if device is None else torch.device(device),
            attn_implementation=attn_implementation,
            revision=revision,
            subfolder=subfolder,
            wanted=asked(from_pt, from_flax, from_tf),
            check_digests=check_digests,
        )

    @classmethod
    def from_encoder_decoder_pretrained(
        cls,
        encoder_pretrained_model_name_or_path: str | Path | None = None,
        decoder_pretrained_model_name_or_path: str | Path | None = None,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        revision: str | None = None,
        subfolder: str | None = None,
        **options: Any,
    ) -> Self:
        """Join two pretrained halves, each out of any checkpoint that contains it: by itself, with other heads, beside
        another half, or in a whole model. What neither has (cross-attention, `enc_to_dec_proj`, a vocabulary head) is
        newly initialised from `generator` or torch's seed and named in one warning of the "ved" logger. The model is in
        evaluation mode.

        `options`: fields of the encoder's and the decoder's config with the prefix encoder_ or decoder_, those of the
        whole one without; encoder_config, encoder_model (a built half), encoder_revision, encoder_subfolder, and the
        same for the decoder; encoder_from_pt and the like, and check_digests, as `from_pretrained` takes them. Raises
        HubError, ConfigError or CheckpointError, each naming the file and the fix.
        """
        return warm_start.load(
            cls,
            encoder_pretrained_model_name_or_path,
            decoder_pretrained_model_name_or_path,
            options | {"revision": revision, "subfolder": subfolder},
            generator=generator,
            dtype=state.as_dtype(dtype or torch_dtype or torch.float32),
            device=None if device is None else torch.device(device),
        )

    def save_pretrained(
        self, folder: str | Path, *, format: str = "safetensors", max_shard_size: int | str | None = None
    ) -> None:
        """Write config.json, generation_config.json and weights under Hugging Face's names, all of them or none.

        `format`: safetensors, torch, flax, tf or orbax; `max_shard_size`: the most bytes in one file, as a number or as
        "2GB". Weights that were in the folder go, other files stay. Raises OSError, CheckpointError.
        """
        loading.save(self, Path(folder), format, max_shard_size)

    def push_to_hub(
        self, repo_id: str, *, format: str = "safetensors", max_shard_size: int | str | None = None, **hub: Any
    ) -> str:
        """save_pretrained to "owner/name" on the Hugging Face hub, in one commit with a model card where there is none;
        returns the commit's address. `hub`: `results`, for the card, and private, token, revision, create_pr,
        commit_message and replace_card of `ved_core.publishing.push`. Raises HubError, CheckpointError."""
        return push_model(self, repo_id, format=format, max_shard_size=max_shard_size, **hub)

    # Training --------------------------------------------------------------------------------------------------------

    def freeze_encoder(self) -> None:
        """Let training leave the encoder as it is."""
        self.encoder.requires_grad_(False)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """In training, compute each layer's activations again instead of keeping them. Arguments: those of
        torch.utils.checkpoint. Raises ValueError for its reentrant variant, which loses gradients."""
        options = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        if options["use_reentrant"]:
            raise ValueError("use_reentrant=True loses the gradients of what is passed in tuples: leave it out")
        set_checkpointing(self, options)

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations."""
        set_checkpointing(self, None)

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """`gradient_checkpointing_enable` under the name that newer releases of transformers call."""
        if every_n_layers != 1 or offload:
            raise ValueError("only every_n_layers=1 without offload is supported")
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs)

    # The vocabulary --------------------------------------------------------------------------------------------------

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding."""
        return self.decoder.tokens

    def get_output_embeddings(self) -> nn.Module:
        """The module whose `weight` (V, D) scores the vocabulary: the token embedding where the head is tied to it."""
        return self.decoder.tokens if self.decoder.head is None else self.decoder.head

    def tie_weights(self) -> None:
        """Let the token embedding serve as the vocabulary head, where config.decoder.tie_word_embeddings says so."""
        if self.config.decoder.tie_word_embeddings:
            self.decoder.tie()

    def untie_weights(self) -> None:
        """Give the vocabulary head a weight of its own, a copy of the token embedding; the config follows."""
        self.decoder.untie()

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
    ) -> nn.Embedding:
        """Cut the vocabulary, or add newly initialised entries; an untied head follows, and config.decoder.vocab_size.

        Returns the token embedding. Call it before an optimizer takes the parameters: they are new ones.
        """
        entries = self.config.decoder.vocab_size if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of is not None:
            entries += -entries % pad_to_multiple_of
        carried = self.carried
        self.decoder.resize_token_embeddings(entries)
        self.carried = fitting(carried, model_table(self.config))
        if self.config.get("vocab_size") is not None:
            self.config.vocab_size = entries
        return self.decoder.tokens
