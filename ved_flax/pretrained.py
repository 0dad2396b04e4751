"""`FlaxPreTrainedModel`: what a model has and does beside computing, from loading to its vocabulary."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import jax.numpy as jnp
import numpy as np
from flax import nnx

from conversion.checkpoint import fitting, of_part
from conversion.source import asked
from conversion.tables import model_table
from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.generation.config import GenerationConfig
from ved_core.publishing import push_model
from ved_flax import loading, state, warm_start
from ved_flax.compiled import Graph, Steps
from ved_flax.decoders.base import Decoder
from ved_flax.encoders.base import Encoder
from ved_flax.layers.attention import set_implementation
from ved_flax.layers.blocks import Checkpointing, Policy, set_checkpointing, set_scanning
from ved_flax.snapshot import Snapshot


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What `generate` keeps: the steps, by whether positions are interpolated and by platform, of a model of this
    structure."""

    snapshot: Snapshot
    graphdef: Graph
    """In evaluation mode, whatever mode the model is in."""
    steps: dict[tuple[bool, str | None], Steps]


class Attached:
    """What belongs to a model and is no part of its graph."""

    def __init__(self, config: VisionEncoderDecoderConfig) -> None:
        self.config = config
        self.generation_config = GenerationConfig()
        self.compiled: Compiled | None = None
        self.new: frozenset[str] = frozenset()
        """Parameters that joining two checkpoints newly initialised, by dotted name."""


class FlaxPreTrainedModel(nnx.Module):
    """An encoder and a decoder, joined by `ved_flax.model.FlaxVisionEncoderDecoderModel`, which computes with them."""

    attached: Attached
    encoder: Encoder
    decoder: Decoder
    enc_to_dec_proj: nnx.Linear | None

    # What belongs to the model beside its parameters ----------------------------------------------------------------

    @property
    def config(self) -> VisionEncoderDecoderConfig:
        """The model's configuration; token ids and lengths may be assigned at any time."""
        return self.attached.config

    @config.setter
    def config(self, value: VisionEncoderDecoderConfig | Mapping[str, Any]) -> None:
        if not isinstance(value, VisionEncoderDecoderConfig):
            value = VisionEncoderDecoderConfig.from_dict(value)
        self.attached.config = value
        self.encoder.config, self.decoder.config = value.encoder, value.decoder

    @property
    def generation_config(self) -> GenerationConfig:
        """Decoding defaults, from generation_config.json."""
        return self.attached.generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig | Mapping[str, Any]) -> None:
        self.attached.generation_config = (
            value if isinstance(value, GenerationConfig) else GenerationConfig.from_dict(value)
        )

    @property
    def carried(self) -> dict[str, np.ndarray]:
        """Stored tensors that decoding never uses (poolers), by their stored names; written back by save_pretrained."""
        halves = (("encoder", self.encoder), ("decoder", self.decoder))
        return {f"{part}.{name}": array for part, half in halves for name, array in half.carried.items()}

    def carry(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Set `carried`."""
        self.encoder.carry(of_part(tensors, "encoder"))
        self.decoder.carry(of_part(tensors, "decoder"))

    @property
    def dtype(self) -> jnp.dtype:
        """What layers compute in."""
        return jnp.dtype(self.decoder.tokens.dtype)

    @property
    def param_dtype(self) -> jnp.dtype:
        """What parameters are kept in."""
        return jnp.dtype(self.decoder.tokens.embedding.dtype)

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the parameters hold, a tied head once; of those that train, or outside embedding tables."""
        return state.parameter_count(self, only_trainable, exclude_embeddings)

    def set_attn_implementation(self, attn_implementation: str) -> None:
        """How attention is computed: "xla"; "cudnn" or "flash", fused kernels for NVIDIA GPUs and TPUs, taken where
        shapes fit and neither weights nor dropout on them are asked for; or "auto", one of these that is known not to
        be slower (`ved_flax.layers.kernels.choose` says where). Raises ValueError for any other name."""
        set_implementation(self, attn_implementation)

    # Loading and saving ----------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        config: VisionEncoderDecoderConfig | Mapping[str, Any] | None = None,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        attn_implementation: str = "auto",
        revision: str | None = None,
        subfolder: str | None = None,
        from_pt: bool | None = None,
        from_flax: bool | None = None,
        from_tf: bool | None = None,
        check_digests: bool | None = None,
    ) -> Self:
        """Load a checkpoint from a local folder or, by name, from the Hugging Face hub.

        `config` replaces the checkpoint's own. The format is found by looking; `from_pt`, `from_flax` and `from_tf` are
        unneeded, and choose where a checkpoint has several. `check_digests`: whether files are compared with the
        checkpoint's ved_digests.json first, by default yes, unless the environment's VED_CHECK_DIGESTS is 0. Raises
        HubError, ConfigError or CheckpointError, each naming the file and the fix.
        """
        return loading.load(
            cls,
            name_or_path,
            config=config,
            dtype=jnp.dtype(dtype),
            param_dtype=jnp.dtype(param_dtype),
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
        rngs: nnx.Rngs | None = None,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        revision: str | None = None,
        subfolder: str | None = None,
        **options: Any,
    ) -> Self:
        """Join two pretrained halves, each out of any checkpoint that contains it: by itself, with other heads, beside
        another half, or in a whole model. What neither has (cross-attention, `enc_to_dec_proj`, a vocabulary head) is
        newly initialised from `rngs` and named in one warning of the "ved" logger.

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
            rngs=nnx.Rngs(0) if rngs is None else rngs,
            dtype=jnp.dtype(dtype),
            param_dtype=jnp.dtype(param_dtype),
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
        """Let training leave the encoder as it is: its parameters are no nnx.Param from here on, which is what nnx.grad
        and nnx.Optimizer(model, optimizer, wrt=nnx.Param) ask for. Call it before making an optimizer."""
        state.freeze(self.encoder)

    def gradient_checkpointing_enable(self, policy: Policy | None = None) -> None:
        """Compute each layer's activations again in the backward pass instead of keeping them, but for those that a
        policy of `jax.checkpoint_policies` keeps."""
        set_checkpointing(self, Checkpointing(policy))

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations."""
        set_checkpointing(self, None)

    def scan_layers(self, on: bool = True) -> None:
        """Compile equal layers once, as a loop, where no cache and no single layer's output is asked for: large models
        compile faster, and each step takes the time to copy the parameters. Raises ConfigError where layers differ."""
        set_scanning(self, on)

    # The vocabulary --------------------------------------------------------------------------------------------------

    def get_input_embeddings(self) -> nnx.Embed:
        """The token embedding."""
        return self.decoder.tokens

    def get_output_embeddings(self) -> nnx.Module:
        """The module that scores the vocabulary: the token embedding (its `embedding` is (V, D)) where the head is tied
        to it, else a linear map (its `kernel` is (D, V))."""
        return self.decoder.tokens if self.decoder.head is None else self.decoder.head

    def tie_weights(self) -> None:
        """Let the token embedding serve as the vocabulary head, where config.decoder.tie_word_embeddings says so."""
        if self.config.decoder.tie_word_embeddings:
            self.decoder.tie()

    def untie_weights(self) -> None:
        """Give the vocabulary head a kernel of its own, a copy of the token embedding; the config follows."""
        self.decoder.untie()

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, *, rngs: nnx.Rngs | None = None
    ) -> nnx.Embed:
        """Cut the vocabulary, or add entries newly initialised from `rngs`; an untied head follows, and
        config.decoder.vocab_size.

        Returns the token embedding. Call it before an optimizer takes the parameters: they are new ones.
        """
        entries = self.config.decoder.vocab_size if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of is not None:
            entries += -entries % pad_to_multiple_of
        carried = self.carried
        self.decoder.resize_token_embeddings(entries, rngs or nnx.Rngs(0))
        self.carry(fitting(carried, model_table(self.config)))
        if self.config.get("vocab_size") is not None:
            self.config.vocab_size = entries
        return self.decoder.tokens
