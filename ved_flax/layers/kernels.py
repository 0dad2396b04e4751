"""Fused attention kernels, and which of them may compute what. None has dropout or gives its weights away."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ved_flax.layers.cache import KeyValue

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "flash")
"""What may be asked for; see `choose`."""

TILE = 128
"""Rows and columns of scores that the TPU kernel takes at least, and multiples of them."""
LARGEST_TILE = 640
"""A whole row of ViT's scores at 384 x 384 pixels; larger squares of scores crowd a TPU core's fast memory."""
LOWEST = -1e30
"""Of a bias in the TPU kernel: above what the kernel itself adds to padding, far below any score."""


def choose(implementation: str, q_BNTH: jax.Array, kv: KeyValue, bias: jax.Array | None) -> str:
    """The implementation that these arrays get: "xla", "cudnn" or "flash".

    "cudnn" (NVIDIA GPUs) and "flash" (TPUs) are taken where they fit, else "xla", which is always right. Asked for on
    other hardware, they fail. "auto" is "xla" on CPU, and on TPU: by the compiler's estimates for a v5e, moving and
    padding to tiles costs "flash" more than it saves at a ViT's 577 tokens; at 1370 it trains in a quarter of the
    memory, and may be worth asking for. On NVIDIA GPUs from Ampere on "auto" is "cudnn" for half-precision attention of
    at least 512 tokens to as many, without a bias, and "xla" for all else.
    """
    if implementation == "auto":
        implementation = "cudnn" if _long(q_BNTH, kv, bias) and _ampere() else "xla"
    return implementation if implementation in FITS and FITS[implementation](q_BNTH, kv, bias) else "xla"


def _long(q_BNTH: jax.Array, kv: KeyValue, bias: jax.Array | None) -> bool:
    return bias is None and min(q_BNTH.shape[-2], kv.k.shape[-2]) >= 512


def _ampere() -> bool:
    if jax.default_backend() != "gpu":
        return False
    device = jax.devices()[0]
    return "cuda" in device.client.platform_version and float(device.compute_capability) >= 8


def fits_cudnn(q_BNTH: jax.Array, kv: KeyValue, bias: jax.Array | None) -> bool:
    """Half precision, more than a decoding step's one token, no windows, heads of 8 to 128 in steps of 8, and with a
    bias even numbers of tokens, which its gradient needs."""
    if q_BNTH.ndim != 4 or q_BNTH.dtype not in (jnp.bfloat16, jnp.float16):
        return False
    *_, tokens, head_width = q_BNTH.shape
    even = tokens % 2 == 0 and kv.k.shape[2] % 2 == 0
    return tokens > 1 and head_width % 8 == 0 and head_width <= 128 and (bias is None or even)


def cudnn(q_BNTH: jax.Array, kv: KeyValue, bias: jax.Array | None, scale: float) -> jax.Array:
    """Attention (B, N, T, H) by cuDNN."""
    if bias is not None:
        # In half precision a mask's value would be infinite, and make NaN of a row that may attend to nothing.
        bias = jnp.maximum(bias, jnp.finfo(q_BNTH.dtype).min).astype(q_BNTH.dtype)
        bias = bias.reshape((1,) * (4 - bias.ndim) + bias.shape)
    q, k, v = (x.swapaxes(1, 2) for x in (q_BNTH, *kv))
    out_BTNH = jax.nn.dot_product_attention(q, k, v, bias, scale=scale, implementation="cudnn")
    return out_BTNH.swapaxes(1, 2)


def fits_flash(q_BNTH: jax.Array, kv: KeyValue, bias: jax.Array | None) -> bool:
    """Floats that a TPU multiplies, no windows, a tile of tokens on both sides, heads of at most 128 or multiples."""
    if q_BNTH.ndim != 4 or q_BNTH.dtype not in (jnp.float32, jnp.bfloat16):
        return False
    *_, tokens, head_width = q_BNTH.shape
    return min(tokens, kv.k.shape[2]) >= TILE and (head_width <= 128 or head_width % 128 == 0)


def flash(q_BNTH: jax.Array, kv: KeyValue, bias: jax.Array | None, scale: float) -> jax.Array:
    """Attention (B, N, T, H) by JAX's Pallas kernel for TPU, on tokens padded to whole tiles."""
    # Importing Pallas takes as long as importing JAX.
    from jax.experimental.pallas.ops.tpu import flash_attention as pallas

    batch, heads, tokens, _ = q_BNTH.shape
    attended = kv.k.shape[2]
    more_q, more_kv = -tokens % TILE, -attended % TILE
    # The kernel scales after it has added the bias: q is scaled here, as in the plain path.
    q, k, v = (
        jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0)))
        for x, more in ((q_BNTH * scale, more_q), (kv.k, more_kv), (kv.v, more_kv))
    )
    if bias is not None:
        bias = jnp.broadcast_to(jnp.maximum(bias, LOWEST), (batch, heads, tokens, attended))
        bias = jnp.pad(bias, ((0, 0), (0, 0), (0, more_q), (0, more_kv)))
    segments = None
    if more_kv:  # nothing attends to padding, but padding itself
        real_BT, real_BS = (
            jnp.broadcast_to(jnp.arange(n + more) < n, (batch, n + more)).astype(jnp.int32)
            for n, more in ((tokens, more_q), (attended, more_kv))
        )
        segments = pallas.SegmentIds(real_BT, real_BS)
    out = pallas.flash_attention(q, k, v, bias, segments, sm_scale=1.0, block_sizes=_blocks(q.shape[2], k.shape[2]))
    return out[:, :, :tokens]


def _blocks(tokens: int, attended: int) -> object:
    """The kernel's tiles, forwards and backwards."""
    from jax.experimental.pallas.ops.tpu.flash_attention import BlockSizes

    rows, columns = _tile(tokens), _tile(attended)
    return BlockSizes(
        block_q=rows,
        block_k_major=columns,
        block_k=columns,
        block_b=1,
        block_q_major_dkv=rows,
        block_k_major_dkv=columns,
        block_k_dkv=columns,
        block_q_dkv=rows,
        block_k_major_dq=columns,
        block_k_dq=columns,
        block_q_dq=rows,
    )


def _tile(length: int) -> int:
    """The largest whole tile that divides a padded length."""
    return next(n for n in range(LARGEST_TILE, 0, -TILE) if length % n == 0)


Kernel = Callable[[jax.Array, KeyValue, jax.Array | None, float], jax.Array]
FITS: dict[str, Callable[[jax.Array, KeyValue, jax.Array | None], bool]] = {"cudnn": fits_cudnn, "flash": fits_flash}
KERNELS: dict[str, Kernel] = {"cudnn": cudnn, "flash": flash}
