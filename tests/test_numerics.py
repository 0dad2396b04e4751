"""Half precision and masks at the edges: numbers stay finite in both frameworks."""

import numpy as np
import pytest

from tests.cases import READER, model_config

FRAMEWORKS = ["flax", "torch"]
DTYPES = ["float32", "bfloat16", "float16"]


def masked_attention(framework, dtype, implementation, size, tokens):
    """Output and gradients of q, k and v where a row sees nothing, another image sees nothing at all."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 2, tokens, 8)).astype(np.float32) * size for _ in range(3))
    k = -np.sign(q) * np.abs(k)  # low scores, to which a mask is added
    visible = np.ones((2, tokens, tokens), bool)
    visible[0] = visible[1, 1] = False
    if framework == "flax":
        import jax
        import jax.numpy as jnp
        from flax import nnx

        from ved_flax.layers.attention import attend, visible_bias
        from ved_flax.layers.cache import KeyValue

        def call(q, k, v):
            dropout = nnx.Dropout(0.0, deterministic=True)
            kept = {
                "implementation": "xla",
                "dropout": dropout,
                "rngs": None,
                "need_weights": implementation == "plain",
            }
            return attend(q, KeyValue(k, v), visible_bias(visible), 8**-0.5, **kept)[0]

        arrays = [jnp.asarray(x, dtype) for x in (q, k, v)]
        out, backward = jax.vjp(call, *arrays)
        return [np.asarray(x, np.float32) for x in (out, *backward(jnp.ones_like(out)))]
    import torch

    from ved_torch.layers.attention import attend, visible_bias
    from ved_torch.layers.cache import KeyValue

    kind = getattr(torch, dtype)
    tensors = [torch.tensor(x).to(kind).requires_grad_() for x in (q, k, v)]
    bias = visible_bias(torch.tensor(visible), kind)
    out, _ = attend(tensors[0], KeyValue(*tensors[1:]), bias, 8**-0.5, need_weights=implementation == "plain")
    out.backward(torch.ones_like(out))
    return [x.detach().float().numpy() for x in (out, *(x.grad for x in tensors))]


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("implementation", ["fused", "plain"])
@pytest.mark.parametrize("size", [1, 30])
@pytest.mark.parametrize("tokens", [3, 40])  # from 32 on, bfloat16's scores are computed again in Flax
def test_a_row_that_sees_nothing_is_finite_and_so_are_its_gradients(framework, dtype, implementation, size, tokens):
    pytest.importorskip(framework)
    for array in masked_attention(framework, dtype, implementation, size, tokens):
        assert np.isfinite(array).all()


def edges(shape):
    """Images at the edges of what image processors make: black, white, both in turn, and all alike."""
    high, wide = np.indices(shape[1:])
    boards = [np.full(shape, value) for value in (-1.0, 1.0, 0.0, 2.7)] + [np.where((high + wide) % 2, 1.0, -1.0)]
    return np.stack([np.broadcast_to(board, shape) for board in boards]).astype(np.float32)


def generated(model, pixels, **options):
    """Log-probabilities and confidences."""
    out = model.generate(pixels, **options, return_dict_in_generate=True)
    return [np.asarray(x, np.float32) for x in (out.token_log_probs, out.confidences)]


def check(model, pixels, vocabulary):
    """Greedy decoding, beams, and prompts at the vocabulary's edges with padding."""
    last = vocabulary - 1
    prompt = np.array([[0, last, 0], [last, last, last]] * len(pixels))[: len(pixels)]
    mask = np.array([[0, 0, 1], [1, 1, 1]] * len(pixels))[: len(pixels)]
    for options in (
        {"max_new_tokens": 6},
        {"num_beams": 3, "max_new_tokens": 6},
        {"decoder_input_ids": prompt, "decoder_attention_mask": mask, "prepend_start": False, "max_new_tokens": 4},
    ):
        for array in generated(model, pixels, **options):
            assert np.isfinite(array).all(), options


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_the_reader_in_half_precision(framework, dtype):
    pytest.importorskip(framework)
    name = "FlaxVisionEncoderDecoderModel" if framework == "flax" else "VisionEncoderDecoderModel"
    model = getattr(__import__(f"ved_{framework}"), name).from_pretrained(READER, dtype=dtype)
    check(model, edges((3, 48, 48)), model.config.decoder.vocab_size)


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize(
    "pair",
    [("swin", "bert"), ("swinv2", "mbart"), ("beit", "trocr"), ("dinov2-swiglu", "electra"), ("deit", "roberta")],
)
def test_architectures_in_half_precision(framework, dtype, pair):
    pytest.importorskip(framework)
    config = model_config(*pair)
    if framework == "flax":
        from ved_flax import FlaxVisionEncoderDecoderModel

        model = FlaxVisionEncoderDecoderModel(config, dtype=dtype, param_dtype=dtype)
    else:
        import torch

        from ved_torch import VisionEncoderDecoderModel

        model = VisionEncoderDecoderModel(config, dtype=getattr(torch, dtype)).eval()
    encoder = config["encoder"]
    side = np.broadcast_to(encoder["image_size"], 2)
    check(model, edges((encoder.get("num_channels", 3), *side)), config["decoder"]["vocab_size"])
