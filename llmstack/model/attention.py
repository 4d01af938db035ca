"""Causal self-attention with grouped queries, over a packed row or over a cache."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from llmstack.model import cache as kv
from llmstack.model import kernels
from llmstack.model.config import ModelConfig
from llmstack.model.layers import Norm, rotate
from llmstack.model.linear import Linear
from llmstack.sharding import constrain


def visible(query_pos, key_pos, window):
  """Returns bool[B,T,S]: keys at or before the query and less than `window` behind it; key_pos -1 never."""
  distance = query_pos[:, :, None] - key_pos[:, None, :]
  return (distance >= 0) & (distance < window) & (key_pos >= 0)[:, None, :]


def attend(q, k, v, mask, *, softcap):
  """Returns float[B,T,N,H]: softmax(q k / sqrt(H)) v with scores and softmax in float32.

  q: [B,T,N,H]; k, v: [B,K,S,H] as the cache has them, query head n reads kv head n // (N/K); mask: bool[B,T,S].
  A query that sees no key gets the mean of v: finite, and of no use to anyone.
  """
  B, T, N, H = q.shape
  K = k.shape[1]
  q = q.reshape(B, T, K, N // K, H)
  scores = jnp.einsum('BTKGH,BKSH->BKGTS', q, k, preferred_element_type=jnp.float32) * H**-0.5
  if softcap is not None:
    scores = softcap * jnp.tanh(scores / softcap)
  scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  y = jnp.einsum('BKGTS,BKSH->BKGTH', weights, v)
  return jnp.swapaxes(y.reshape(B, N, T, H), 1, 2)


def einsum(q, k, v, positions, segments, *, window, softcap):
  """The reference kernel (model/kernels.py says what a kernel is): `attend` under the mask of a packed row."""
  mask = visible(positions, positions, window) & (segments[:, :, None] == segments[:, None, :])
  return attend(q, jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), mask, softcap=softcap)


def blocks(q, k, v, positions, segments, *, window, softcap):
  """The reference by blocks of queries, each against the keys it may see at all: on a CPU, twice as fast.

  Needs rows of which segments are runs of columns, as packed ones are. Blocks above the diagonal or left of the
  window are never computed; within one, softmax divides after the product with v, over H numbers, not over S.
  Scores, exponentials and sums are float32.
  """
  B, T, N, H = q.shape
  K = k.shape[2]
  side = max(64, -(-T // 16))  # at most 16 blocks: each is compiled on its own
  q = jnp.swapaxes(q * H**-0.5, 1, 2).reshape(B, K, N // K, T, H)
  k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
  out = []
  for start in range(0, T, side):
    stop = min(start + side, T)
    first = max(0, start - window + 1) // side * side
    scores = jnp.einsum(
      'BKGTH,BKSH->BKGTS', q[:, :, :, start:stop], k[:, :, first:stop], preferred_element_type=jnp.float32
    )
    if softcap is not None:
      scores = softcap * jnp.tanh(scores / softcap)
    distance = jnp.arange(start, stop)[:, None] - jnp.arange(first, stop)[None, :]
    near = ((distance >= 0) & (distance < window))[None]
    mask = near & (segments[:, start:stop, None] == segments[:, None, first:stop])
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    y = jnp.einsum('BKGTS,BKSH->BKGTH', weights.astype(v.dtype), v[:, :, first:stop])
    out.append((y / weights.sum(-1, keepdims=True)).astype(v.dtype))
  return jnp.swapaxes(jnp.concatenate(out, 3).reshape(B, N, T, H), 1, 2)


KERNELS = {'blocks': blocks, 'einsum': einsum, 'xla': kernels.xla, 'cudnn': kernels.cudnn, 'splash': kernels.splash}
MASKED = ('einsum', 'xla', 'cudnn')  # the window is a mask to them; to the others it decides what is compiled


def packed(cfg, window, q, k, v, positions, segments):
  """Returns dtype[B,T,N,H] by the kernel that the config names. window: int, or int32[] inside a scan over layers."""
  kernel = functools.partial(KERNELS[cfg.attention], softcap=cfg.attn_softcap)
  if isinstance(window, int) or cfg.attention in MASKED:
    return kernel(q, k, v, positions, segments, window=window)
  windows = sorted(set(cfg.window_of_layer))
  branches = [functools.partial(kernel, window=w) for w in windows]
  which = jnp.searchsorted(jnp.asarray(windows), window)
  return jax.lax.switch(which, branches, q, k, v, positions, segments)


class Attention(nn.Module):
  """Returns (y[B,T,D], cache entry or None)."""

  cfg: ModelConfig

  @nn.compact
  def __call__(self, x, view, window, layer=None):
    c = self.cfg
    q = constrain(Linear(c.sizes, c.bias, c.init_std, c.dtype, name='wq')(x), 'BTNH')
    k = constrain(Linear(c.sizes, c.bias, c.init_std, c.dtype, name='wk')(x), 'BTKH')
    v = constrain(Linear(c.sizes, c.bias, c.init_std, c.dtype, name='wv')(x), 'BTKH')
    if c.qk_norm:
      q = Norm('rms', c.norm_eps, False, name='q_norm')(q)
      k = Norm('rms', c.norm_eps, False, name='k_norm')(k)
    if c.positions == 'rope':
      q, k = rotate(q, *view['rope']), rotate(k, *view['rope'])
    positions, segments = view['positions'], view['segments']
    if layer is None:
      y = packed(c, window, q, k, v, positions, segments)
    else:
      layer, k, v, key_pos = kv.update(layer, k, v, positions, segments > 0)
      y = attend(q, k, v, visible(positions, key_pos, window), softcap=c.attn_softcap)
    y = constrain(y, 'BTNH')
    return Linear(c.sizes, c.bias, c.init_std / (2 * c.layers) ** 0.5, c.dtype, name='wo')(y), layer
