"""Causal self-attention with grouped queries, over a packed row or over a cache."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from llmstack.model import cache as kv
from llmstack.model import kernels
from llmstack.model.config import ModelConfig
from llmstack.model.kernels import seen, visible
from llmstack.model.layers import Norm, rotate
from llmstack.model.linear import Linear
from llmstack.sharding import constrain


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
  mask = seen(positions, segments, q.shape[1], window)
  return attend(q, jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), mask, softcap=softcap)


def blocks(q, k, v, positions, segments, *, window, softcap):
  """The reference by blocks of queries, each against the keys it may see at all: on a CPU, twice as fast.

  Needs rows of which segments are runs of columns, as packed ones are. Blocks above the diagonal or left of the
  window are never computed; within one, softmax divides after the product with v, over H numbers, not over S.
  Scores, exponentials and sums are float32.
  """
  B, T, N, H = q.shape
  K, ahead = k.shape[2], k.shape[1] - T  # columns that are no query's own, seen by position
  side = max(64, -(-T // 16))  # at most 16 blocks: each is compiled on its own
  q = jnp.swapaxes(q * H**-0.5, 1, 2).reshape(B, K, N // K, T, H)
  k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
  out = []
  for start in range(0, T, side):
    stop = min(start + side, T)
    first = max(0, start - window + 1) // side * side

    def past(x, axis, first=first, stop=stop):
      """Returns of x[...,S,...] what is ahead, and the queries' own columns from `first` on."""
      own = jax.lax.slice_in_dim(x, ahead + first if first else 0, ahead + stop, axis=axis)
      return jnp.concatenate([jax.lax.slice_in_dim(x, 0, ahead, axis=axis), own], axis) if ahead and first else own

    scores = jnp.einsum('BKGTH,BKSH->BKGTS', q[:, :, :, start:stop], past(k, 2), preferred_element_type=jnp.float32)
    if softcap is not None:
      scores = softcap * jnp.tanh(scores / softcap)
    distance = jnp.arange(start, stop)[:, None] - jnp.arange(first, stop)[None, :]
    near = ((distance >= 0) & (distance < window))[None]
    if ahead:
      before = visible(positions[:, ahead + start : ahead + stop], positions[:, :ahead], window)
      near = jnp.concatenate([before, jnp.broadcast_to(near, (B, *near.shape[1:]))], 2)
    mask = near & (segments[:, ahead + start : ahead + stop, None] == past(segments, 1)[:, None, :])
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    y = jnp.einsum('BKGTS,BKSH->BKGTH', weights.astype(v.dtype), past(v, 2))
    out.append((y / weights.sum(-1, keepdims=True)).astype(v.dtype))
  return jnp.swapaxes(jnp.concatenate(out, 3).reshape(B, N, T, H), 1, 2)


KERNELS = {'blocks': blocks, 'einsum': einsum, 'xla': kernels.xla, 'cudnn': kernels.cudnn, 'splash': kernels.splash}
MASKED = ('einsum', 'xla', 'cudnn')  # the window is a mask to them; to the others it decides what is compiled


def shared_prompts(kernel, shared, q, k, v, positions, segments, *, window):
  """Returns dtype[B,T,N,H] of rows that are `shared` columns of prompts and two sides of (T - shared) / 2 each.

  Each part is a packed row, and a segment of a side goes on where that of the prompts ends, in its positions too. A
  side sees the prompts and itself: the other one is never among its keys, so that no score is computed in vain.

  Source: Wang & Hegde 2024, Accelerating DPO with Prefix Sharing, section 3: prompt, chosen and rejected as one
    sequence. There a mask keeps the sides apart, in a kernel that skips blocks; here they are rows of their own.
  """
  B, T = positions.shape
  sides = lambda x: x[:, shared:].reshape(B, 2, (T - shared) // 2, *x.shape[2:])  # noqa: E731

  def behind(x):
    prompts = jnp.broadcast_to(x[:, None, :shared], (B, 2, shared, *x.shape[2:]))
    whole = jnp.concatenate([prompts, sides(x)], 2)
    return whole.reshape(2 * B, *whole.shape[2:])

  first = kernel(*(x[:, :shared] for x in (q, k, v, positions, segments)), window=window)
  own = sides(q)
  rest = kernel(own.reshape(2 * B, *own.shape[2:]), *map(behind, (k, v, positions, segments)), window=window)
  return jnp.concatenate([first, rest.reshape(B, T - shared, *q.shape[2:])], 1)


def packed(cfg, window, q, k, v, positions, segments, shared=0):
  """Returns dtype[B,T,N,H] by the kernel that the config names. window: int, or int32[] inside a scan over layers."""
  kernel = functools.partial(KERNELS[cfg.attention], softcap=cfg.attn_softcap)
  if shared:
    assert cfg.attention in kernels.AHEAD, 'check() refuses this'
    kernel = functools.partial(shared_prompts, kernel, shared)
  if isinstance(window, int) or cfg.attention in MASKED:
    return kernel(q, k, v, positions, segments, window=window)
  windows = sorted(set(cfg.window_of_layer))
  branches = [functools.partial(kernel, window=w) for w in windows]
  which = jnp.searchsorted(jnp.asarray(windows), window)
  return jax.lax.switch(which, branches, q, k, v, positions, segments)


class Attention(nn.Module):
  """Returns (y[B,T,D], cache entry or None)."""

  cfg: ModelConfig
  shared: int = 0

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
      y = packed(c, window, q, k, v, positions, segments, self.shared)
    else:
      layer, k, v, key_pos = kv.update(layer, k, v, positions, segments > 0)
      y = attend(q, k, v, visible(positions, key_pos, window), softcap=c.attn_softcap)
    y = constrain(y, 'BTNH')
    return Linear(c.sizes, c.bias, c.init_std / (2 * c.layers) ** 0.5, c.dtype, name='wo')(y), layer
