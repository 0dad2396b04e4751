"""generate(): a call's arguments to a request, compiled steps, and the outputs that were asked for."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ved_core.errors import GenerationError
from ved_core.generation.config import GenerationConfig
from ved_core.generation.options import Options
from ved_core.generation.plan import Plan, Request, check_request, check_streamable
from ved_core.generation.requests import plan_decoding
from ved_flax.compiled import ArrayLike, Params, Steps
from ved_flax.generation.loop import Generated, result, running
from ved_flax.generation.state import State
from ved_flax.outputs import EncoderOutput, GenerateOutput

if TYPE_CHECKING:
    from ved_flax.model import FlaxVisionEncoderDecoderModel

ARGUMENTS = (
    "decoder_input_ids",
    "decoder_attention_mask",
    "generation_config",
    "prng_key",
    "logits_processor",
    "prefix_allowed_tokens_fn",
    "tokenizer",
    "prepend_start",
    "batch_buckets",
)
"""What a call may have beside the fields of GenerationConfig."""
CHUNK = 4
"""Tokens between two looks at a stream."""


def make_request(
    model: "FlaxVisionEncoderDecoderModel",
    batch: int,
    options: Mapping[str, Any],
    *,
    decoder_input_ids: Any = None,
    decoder_attention_mask: Any = None,
    generation_config: Any = None,
    prng_key: jax.Array | None = None,
    logits_processor: Any = None,
    prefix_allowed_tokens_fn: Callable[[int, np.ndarray], Sequence[int]] | None = None,
    tokenizer: Any = None,
    prepend_start: bool | None = None,
    batch_buckets: Sequence[int] | None = None,
) -> Request:
    """What `generate` with these arguments does for a batch. Raises GenerationError, ConfigError."""
    given = None if generation_config is None else GenerationConfig.of(generation_config)
    request = plan_decoding(
        Options(options, model.generation_config, model.config, given),
        model.config,
        batch,
        longest=model.decoder.max_positions,
        prompt=decoder_input_ids,
        mask=decoder_attention_mask,
        prepend_start=prepend_start,
        tokenizer=tokenizer,
        logits_processor=logits_processor,
        prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
        batch_buckets=batch_buckets,
    )
    request.numbers["key"] = jax.random.key(0) if prng_key is None else prng_key
    return request


def as_given(request: Request, batch: int, options: Mapping[str, Any]) -> Request:
    """A request that was made before, with this call's key. Raises GenerationError."""
    others = {name: value for name, value in options.items() if name != "prng_key"}
    request = check_request(request, batch, others)
    key = options.get("prng_key")
    return request if key is None else dataclasses.replace(request, numbers=request.numbers | {"key": key})


class Generation:
    """One call of generate(): the images, encoded, and the request."""

    def __init__(
        self, steps: Steps, params: Params, request: Request, *, pixels: ArrayLike | None, images: EncoderOutput | None
    ) -> None:
        """`images`: what the encoder made of the pixels, where there are none."""
        self.steps, self.params, self.request = steps, params, request
        self.batch = len(request.prompt)
        config = request.config
        extras = bool(config.output_attentions), bool(config.output_hidden_states)
        if images is None:
            pixels = self._filled(pixels)
            if config.return_dict_in_generate and any(extras):
                images = steps.encode_all(params, pixels, *extras)
            else:
                images = EncoderOutput(steps.encode(params, pixels))
        self.images = jax.tree.map(self._filled, images)
        self.encoded = self.images.last_hidden_state

    def _filled(self, array: Any) -> Any:
        """With the last image repeated, as the request's rows are."""
        added = len(self.request.rows.row_B) - len(array)
        library = np if isinstance(array, np.ndarray) else jnp
        return library.concatenate([array, array[-1:].repeat(added, axis=0)]) if added else array

    @property
    def plan(self) -> Plan:
        return self.request.plan

    def search(self) -> Generated:
        """The whole loop in one program."""
        with self._host_errors():
            generated = self.steps.search(self.params, self.encoded, self.request.rows, self.request.numbers, self.plan)
            return jax.block_until_ready(generated) if self.plan.allowed else generated

    def chunks(self, size: int) -> Iterator[tuple[np.ndarray, State]]:
        """The loop by and by: new ids (R, up to `size`) and the state behind them."""
        check_streamable(self.plan, size)
        return self._chunks(size)

    def _chunks(self, size: int) -> Iterator[tuple[np.ndarray, State]]:
        rows, numbers = self.request.rows, self.request.numbers
        state = self.steps.start(self.params, self.encoded, rows, numbers, self.plan)
        while bool(running(state, self.plan)):
            before = int(state.new)
            with self._host_errors():
                state = self.steps.advance(self.params, state, rows, numbers, before + size, self.plan)
                new = int(state.new)
            first = self.plan.prompt + before
            # On the host: on the device, each place would be a slice that is compiled.
            ids = np.asarray(state.sequences.ids_BKL)[: self.batch, :, first : self.plan.prompt + new]
            yield ids.reshape(-1, ids.shape[2]), state

    @contextlib.contextmanager
    def _host_errors(self) -> Iterator[None]:
        """What the caller's function raised on the host reaches us in the runtime's words."""
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if self.plan.allowed is None:
                raise
            reason = str(error).strip().splitlines()[-1]
            raise GenerationError(f"prefix_allowed_tokens_fn failed: {reason}") from error

    def streamed(self, streamer: Any, size: int) -> Generated:
        """The loop with `streamer.put` called for the prompt and every column of new tokens (B,), then `end`."""
        streamer.put(self.request.prompt)
        state = None
        for ids, reached in self.chunks(size):
            state = reached
            for column in ids.T:
                streamer.put(column)
        streamer.end()
        assert state is not None
        return result(state, self.plan)

    def sequences(self, generated: Generated) -> tuple[np.ndarray, np.ndarray]:
        """Ids (R, L) of the images that were given, no column behind the longest row's last token, and how many tokens
        each row has that were generated. On the host: there, cutting needs no compilation."""
        rows = self.batch * self.plan.returned
        lengths = (np.asarray(generated.path_RS)[:rows] >= 0).sum(axis=1)
        new = int(lengths.max()) if self.plan.beams else int(generated.steps)
        ids = np.asarray(generated.ids_RL)[:rows, : self.plan.prompt + new]
        if self.plan.masked:
            prompt = self.request.prompt.astype(np.int32).repeat(self.plan.returned, axis=0)
            ids = np.concatenate([prompt, ids[:, self.plan.prompt :]], axis=1)
        return ids, lengths

    def output(self, generated: Generated) -> GenerateOutput:
        """Everything that was asked for."""
        plan, config = self.plan, self.request.config
        ids, lengths = self.sequences(generated)
        rows, new = len(ids), ids.shape[1] - plan.prompt
        log_probs = np.asarray(generated.log_probs_RS)[:rows, :new]
        path = np.asarray(generated.path_RS)[:rows, :new]
        first = (np.arange(rows) // plan.returned * plan.streams)[:, None]
        inside = None
        if config.output_attentions or config.output_hidden_states:
            inside = self.steps.inspect(
                self.params,
                self.encoded,
                generated.ids_RL[:, : plan.prompt + new],
                self.request.rows,
                plan,
                bool(config.output_attentions),
                bool(config.output_hidden_states),
            )
            inside = jax.tree.map(lambda x: x[:rows], inside)
        images = jax.tree.map(lambda x: x[: self.batch], self.images)
        return GenerateOutput(
            jax.device_put(ids),
            jax.device_put(log_probs),
            jax.device_put(np.exp(log_probs.sum(axis=1) / np.maximum(lengths, 1))),
            None if generated.scores_R is None else generated.scores_R[:rows],
            self._records(generated.records.scores, int(generated.steps)),
            self._records(generated.records.logits, int(generated.steps)),
            jax.device_put(np.where(path < 0, -1, path + first)) if plan.beams else None,
            None if inside is None else inside.attentions,
            None if inside is None else inside.cross_attentions,
            None if inside is None else inside.hidden_states,
            images.attentions,
            images.hidden_states,
        )

    def cross_attention(
        self, generated: Generated, layers: tuple[int, ...] | None, heads: tuple[int, ...] | None
    ) -> np.ndarray:
        """Where each generated token looked, (R, N, P) float32, the mean of these layers and heads: one more pass over
        the finished sequences, at the longest length that they could have, so that one program serves all."""
        ids, _ = self.sequences(generated)
        request, plan = self.request, self.plan
        weights = self.steps.attend(self.params, self.encoded, generated.ids_RL, request.rows, plan, layers, heads)
        return np.asarray(weights)[: len(ids), : ids.shape[1] - plan.prompt]

    def _records(self, values: jax.Array | None, steps: int) -> tuple[jax.Array, ...] | None:
        return None if values is None else tuple(values[:steps, : self.batch * self.plan.streams])
