"""`FlaxVisionEncoderDecoderModel`: encode, project, decode, loss."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ved_core.attention_maps import chosen
from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.configs.model import joined_config
from ved_core.errors import InputError
from ved_core.generation.options import start_and_pad
from ved_core.generation.plan import Request
from ved_core.inputs import Given, check_cache, check_vectors
from ved_flax import inputs
from ved_flax.compiled import Params, Steps, jitted, structure
from ved_flax.decoders import build_decoder
from ved_flax.decoders.base import Decoder
from ved_flax.encoders import build_encoder
from ved_flax.encoders.base import Encoder
from ved_flax.generate import ARGUMENTS, CHUNK, Generation, as_given, make_request
from ved_flax.layers.build import Builder
from ved_flax.layers.cache import Cache
from ved_flax.loss import cross_entropy, shift_right
from ved_flax.outputs import EncoderOutput, GenerateOutput, VisionEncoderDecoderOutput
from ved_flax.platforms import platform_of
from ved_flax.pretrained import Attached, Compiled, FlaxPreTrainedModel
from ved_flax.snapshot import Snapshot

ArrayLike = jax.Array | np.ndarray
EncoderOutputs = EncoderOutput | tuple[jax.Array, ...] | jax.Array


class FlaxVisionEncoderDecoderModel(FlaxPreTrainedModel):
    """A vision encoder joined to a text decoder (`transformers`' VisionEncoderDecoderModel, in Flax NNX).

    A new model is in evaluation mode: dropout is off until `model.train()`, and its keys are given with each call.
    """

    def __init__(
        self,
        config: VisionEncoderDecoderConfig | Mapping[str, Any] | None = None,
        encoder: Encoder | None = None,
        decoder: Decoder | None = None,
        *,
        rngs: nnx.Rngs | None = None,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        attn_implementation: str = "auto",
    ) -> None:
        """A model of a config, of two built halves, or of a config and a built half; what is not built is newly
        initialised from `rngs`. `dtype`: computation; `param_dtype`: storage; `attn_implementation`: as
        `set_attn_implementation` takes it.

        Raises ConfigError where a half is of another config than the one given.
        """
        config = joined_config(config, getattr(encoder, "config", None), getattr(decoder, "config", None))
        make = Builder(rngs or nnx.Rngs(0), dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(param_dtype))
        self.attached = Attached(config)
        self.encoder = build_encoder(config.encoder, make) if encoder is None else encoder
        self.decoder = build_decoder(config.decoder, make) if decoder is None else decoder
        self.encoder.config, self.decoder.config = config.encoder, config.decoder
        width_in, width_out = config.encoder.hidden_size, config.decoder.hidden_size
        self.enc_to_dec_proj = make.linear(width_in, width_out) if config.needs_projection else None
        self.set_attn_implementation(attn_implementation)

    # Computing -------------------------------------------------------------------------------------------------------

    def encode(
        self,
        pixel_values: ArrayLike,
        *,
        interpolate_pos_encoding: bool = False,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> EncoderOutput:
        """pixel_values (B, C, H, W) to image tokens (B, P, D). Raises InputError for what are no images that fit."""
        return self.encoder(
            jnp.asarray(inputs.pixels(pixel_values, self.encoder, self.dtype, interpolate_pos_encoding)),
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            rngs=rngs,
        )

    def project(self, encoder_outputs: EncoderOutputs) -> jax.Array:
        """Image tokens in the width that cross-attention reads."""
        hidden = encoded(encoder_outputs)
        return hidden if self.enc_to_dec_proj is None else self.enc_to_dec_proj(hidden)

    def init_cache(self, batch_size: int, max_length: int, encoder_outputs: EncoderOutputs) -> Cache:
        """A cache for `max_length` tokens, with the keys and values of all image tokens: computed once, here."""
        images = self._images(encoder_outputs)
        check_cache(batch_size, max_length, images)
        return self.decoder.init_cache(self.project(encoder_outputs), max_length)

    def decode(
        self,
        decoder_input_ids: ArrayLike | None,
        encoder_outputs: EncoderOutputs,
        *,
        cache: Cache | None = None,
        decoder_attention_mask: ArrayLike | None = None,
        decoder_inputs_embeds: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> VisionEncoderDecoderOutput:
        """Score tokens (B, T) behind those in `cache`, whose successor is in the output, or without a cache.

        Raises InputError for what does not fit. Inside compiled functions, where values are not known, the caller keeps
        within the cache's length, behind which positions are overwritten, and ids that are no tokens give NaN.
        """
        inputs.check_tokens(
            self.decoder,
            cache,
            self._images(encoder_outputs),
            decoder_input_ids=decoder_input_ids,
            decoder_inputs_embeds=decoder_inputs_embeds,
            decoder_attention_mask=decoder_attention_mask,
            labels=labels,
        )
        out = self.decoder(
            as_array(decoder_input_ids),
            inputs_embeds=as_array(decoder_inputs_embeds),
            attention_mask=as_array(decoder_attention_mask),
            encoder_hidden_states=self.project(encoder_outputs) if cache is None else None,
            cache=cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            rngs=rngs,
        )
        if not isinstance(encoder_outputs, EncoderOutput):
            encoder_outputs = EncoderOutput(encoded(encoder_outputs))
        return VisionEncoderDecoderOutput(
            None if labels is None else cross_entropy(out.logits, jnp.asarray(labels)),
            out.logits,
            out.hidden_states,
            out.attentions,
            out.cross_attentions,
            encoder_outputs.last_hidden_state,
            encoder_outputs.hidden_states,
            encoder_outputs.attentions,
            out.cache,
        )

    def __call__(
        self,
        pixel_values: ArrayLike | None = None,
        decoder_input_ids: ArrayLike | None = None,
        decoder_attention_mask: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        encoder_outputs: EncoderOutputs | None = None,
        decoder_inputs_embeds: ArrayLike | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        rngs: nnx.Rngs | None = None,
        *,
        interpolate_pos_encoding: bool = False,
    ) -> VisionEncoderDecoderOutput:
        """Scores of every decoder position, and the loss where `labels` (B, T; -100 is ignored) are given.

        `labels` alone make the decoder inputs. `rngs`: dropout keys, needed in training mode only.
        Raises InputError for what is missing, contradicts or does not fit, ConfigError where `labels` need a token that
        is not set.
        """
        if (pixel_values is None) == (encoder_outputs is None):
            raise InputError("give either pixel_values or encoder_outputs")
        if pixel_values is not None:
            images = inputs.given("pixel_values", pixel_values)
            inputs.pixels(pixel_values, self.encoder, self.dtype, interpolate_pos_encoding)
        else:
            assert encoder_outputs is not None
            images = self._images(encoder_outputs)
        inputs.check_tokens(
            self.decoder,
            None,
            images,
            decoder_input_ids=decoder_input_ids,
            decoder_inputs_embeds=decoder_inputs_embeds,
            decoder_attention_mask=decoder_attention_mask,
            labels=labels,
        )
        if pixel_values is not None:
            encoder_outputs = self.encode(
                pixel_values,
                interpolate_pos_encoding=interpolate_pos_encoding,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
                rngs=rngs,
            )
        assert encoder_outputs is not None
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            labels = jnp.asarray(labels)
            decoder_input_ids = shift_right(labels, *start_and_pad(self.generation_config, self.config))
        return self.decode(
            decoder_input_ids,
            encoder_outputs,
            decoder_attention_mask=decoder_attention_mask,
            decoder_inputs_embeds=decoder_inputs_embeds,
            labels=labels,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            rngs=rngs,
        )

    def _images(self, encoder_outputs: EncoderOutputs) -> Given:
        """What the decoder reads, for the checks. Raises InputError for anything but image tokens of the encoder's."""
        images = inputs.given("encoder_outputs", image_tokens(encoder_outputs))
        check_vectors(images, self.config.encoder.hidden_size)
        return images

    # Decoding --------------------------------------------------------------------------------------------------------

    def generate(
        self,
        pixel_values: ArrayLike | None = None,
        decoder_input_ids: ArrayLike | None = None,
        decoder_attention_mask: ArrayLike | None = None,
        *,
        encoder_outputs: EncoderOutputs | None = None,
        streamer: Any = None,
        chunk_size: int = CHUNK,
        interpolate_pos_encoding: bool = False,
        **options: Any,
    ) -> jax.Array | GenerateOutput:
        """Decode in one compiled loop for each shape and strategy; other numbers need no other compilation.

        `decoder_input_ids` (B, T): prompts; `decoder_attention_mask`: False for their padding, on either side, so that
        each row gives what it gives alone. `streamer`: has `put(ids)`, called for the prompt and then every
        `chunk_size` steps for each column of new tokens, and `end()`.

        `options`: every field of `GenerationConfig`; defaults as transformers takes them. And `generation_config`,
        whose fields stand behind the call's own; `prng_key` for sampling (`jax.random.key(0)` by default); `tokenizer`,
        which stop_strings need; `prefix_allowed_tokens_fn(row, ids)`, which gives the ids that may follow;
        `logits_processor`, one or a list of pure functions of ids (R, L), scores (R, V) and how many columns of ids are
        filled; `prepend_start`: whether the start token stands before the prompt (transformers' rule by default);
        `batch_buckets`: batch sizes, to the next of which a batch is filled up. Or, in place of all options but
        prng_key, `request`: what `generation_request` made of them.

        Returns ids (R, L) int32, num_return_sequences for each image, or a GenerateOutput where
        return_dict_in_generate=True. Raises GenerationError for an option that is missing, contradicting or not
        supported, ConfigError for one of a wrong type.
        """
        options |= {"decoder_input_ids": decoder_input_ids, "decoder_attention_mask": decoder_attention_mask}
        generation = self._generation(pixel_values, encoder_outputs, interpolate_pos_encoding, options)
        generated = generation.search() if streamer is None else generation.streamed(streamer, chunk_size)
        if not generation.request.config.return_dict_in_generate:
            return jax.device_put(generation.sequences(generated)[0])
        return generation.output(generated)

    def stream(
        self,
        pixel_values: ArrayLike | None = None,
        *,
        encoder_outputs: EncoderOutputs | None = None,
        chunk_size: int = CHUNK,
        interpolate_pos_encoding: bool = False,
        **options: Any,
    ) -> Iterator[np.ndarray]:
        """generate(), token by token: yields the ids (R, up to `chunk_size`) that are new, padding for rows that have
        ended. Takes the options of `generate`; beam search, which decides at the end, is refused."""
        generation = self._generation(pixel_values, encoder_outputs, interpolate_pos_encoding, options)
        return (ids for ids, _ in generation.chunks(chunk_size))

    def generate_and_look(
        self,
        pixel_values: ArrayLike,
        *,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        interpolate_pos_encoding: bool = False,
        **options: Any,
    ) -> tuple[GenerateOutput, np.ndarray]:
        """generate(), and where each new token looked: cross-attention (R, N, P) float32, the mean over decoder
        `layers` and `heads`, all by default, negative ones counted from the last. `ved_core.attention_maps.TokenGrid`
        says where the P image tokens lie. Raises as `generate`."""
        layers = chosen("layers", layers, len(self.decoder.blocks))
        heads = chosen("heads", heads, self.decoder.cross_heads)
        options["return_dict_in_generate"] = True
        generation = self._generation(pixel_values, None, interpolate_pos_encoding, options)
        generated = generation.search()
        return generation.output(generated), generation.cross_attention(generated, layers, heads)

    def generation_request(self, batch_size: int, **options: Any) -> Request:
        """What `generate` with these options does for a batch, for the functions of `ved_flax.compiled`: its `plan` is
        compiled, its `numbers` and `rows` are arrays. Raises GenerationError, ConfigError."""
        arguments = {name: options.pop(name) for name in ARGUMENTS if name in options}
        return make_request(self, batch_size, options, **arguments)

    def _generation(
        self,
        pixel_values: ArrayLike | None,
        encoder_outputs: EncoderOutputs | None,
        interpolate_pos_encoding: bool,
        options: dict[str, Any],
    ) -> Generation:
        """A call of `generate`, its images encoded."""
        if (pixel_values is None) == (encoder_outputs is None):
            raise InputError("give either pixel_values or encoder_outputs")
        images: EncoderOutput | None = None
        if pixel_values is not None:
            pixel_values = inputs.pixels(pixel_values, self.encoder, self.dtype, interpolate_pos_encoding, wait=True)
            batch = len(pixel_values)
        else:
            assert encoder_outputs is not None
            self._images(encoder_outputs)
            hidden = encoded(encoder_outputs)
            images = encoder_outputs if isinstance(encoder_outputs, EncoderOutput) else EncoderOutput(hidden)
            batch = len(hidden)
        ready = options.pop("request", None)
        request = self.generation_request(batch, **options) if ready is None else as_given(ready, batch, options)
        steps, params = self._jit_steps(interpolate_pos_encoding)
        return Generation(steps, params, request, pixels=pixel_values, images=images)

    def _jit_steps(self, interpolate_pos_encoding: bool, platform: str | None = None) -> tuple[Steps, Params]:
        """The compiled steps, kept until the model's structure changes, and the parameters. `platform`: where they will
        run, if not where the parameters are."""
        kept = self.attached.compiled
        if kept is None or not kept.snapshot.holds(self):
            graphdef = structure(self)
            steps = {} if kept is None or kept.graphdef != graphdef else kept.steps
            kept = self.attached.compiled = Compiled(Snapshot(self), graphdef, steps)
        kind = interpolate_pos_encoding, platform or platform_of(self.decoder.tokens.embedding.get_value())
        if kind not in kept.steps:
            kept.steps[kind] = jitted(kept.graphdef, *kind)
        return kept.steps[kind], kept.snapshot.parameters()


def as_array(value: ArrayLike | None) -> jax.Array | None:
    """A JAX array of an optional argument."""
    return None if value is None else jnp.asarray(value)


def encoded(encoder_outputs: EncoderOutputs) -> jax.Array:
    """The last hidden state (B, P, D) of an EncoderOutput, of a tuple that begins with it, or the array itself."""
    return jnp.asarray(image_tokens(encoder_outputs))


def image_tokens(encoder_outputs: EncoderOutputs) -> Any:
    """`encoded`, as it was given."""
    if isinstance(encoder_outputs, EncoderOutput):
        return encoder_outputs.last_hidden_state
    return encoder_outputs[0] if isinstance(encoder_outputs, tuple) else encoder_outputs
