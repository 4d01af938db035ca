"""Norms, rotary positions, feed-forward and dropout."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from llmstack.model.config import ModelConfig
from llmstack.model.linear import Linear
from llmstack.sharding import constrain


class Norm(nn.Module):
  """Returns x normalised over its last axis in float32, times `scale` (plus `bias`), in x's dtype.

  Source: RMSNorm, Zhang & Sennrich 2019; LayerNorm, Ba et al. 2016. Gemma stores scale - 1; we store scale.
  """

  kind: str
  eps: float
  bias: bool

  @nn.compact
  def __call__(self, x):
    y = x.astype(jnp.float32)
    if self.kind == 'layer':
      y -= y.mean(-1, keepdims=True)
    y *= jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
    per_channel = lambda p: jnp.expand_dims(p, range(x.ndim - 1))  # noqa: E731
    y *= per_channel(self.param('scale', nn.initializers.ones, x.shape[-1:], jnp.float32))
    if self.bias:
      y += per_channel(self.param('bias', nn.initializers.zeros, x.shape[-1:], jnp.float32))
    return y.astype(x.dtype)


def rotations(positions, head_width, theta, length):
  """Returns (cos, sin), float32[B,T,1,H/2], of position * theta^(-2i/H).

  length: what positions are below. More positions than that are looked up in a table of them: XLA's CPU backend would
    compute each sine anew in every layer and for every head.
  Source: RoFormer, Su et al. 2021, with Llama's Hugging Face layout: pairs are (i, i + H/2).
  """
  if positions.size > length:
    table = rotations(jnp.arange(length)[None], head_width, theta, length)
    return jax.tree.map(lambda x: x[0][positions], table)
  freqs = theta ** (-jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width)
  angles = positions[:, :, None, None].astype(jnp.float32) * freqs[None, None, None, :]
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x, cos, sin):
  """Returns x[B,T,N,H] with each pair (i, i + H/2) rotated by its angle, in x's dtype."""
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def dropout(x, rate, rng):
  """Returns x with elements zeroed at `rate` and the rest scaled up; x itself where rng is None."""
  if rng is None or rate == 0:
    return x
  return jnp.where(jax.random.bernoulli(rng, 1 - rate, x.shape), x / (1 - rate), 0).astype(x.dtype)


class MLP(nn.Module):
  """Returns w_down(act(w_gate x) * w_up x), or w_down(act(w_up x)) when not gated; [B,T,D]."""

  cfg: ModelConfig

  @nn.compact
  def __call__(self, x):
    c = self.cfg
    act = {'silu': nn.silu, 'gelu': nn.gelu}[c.act]
    up = Linear(c.sizes, c.bias, c.init_std, c.dtype, name='w_up')(x)
    y = act(Linear(c.sizes, c.bias, c.init_std, c.dtype, name='w_gate')(x)) * up if c.gated else act(up)
    y = constrain(y, 'BTF')
    return Linear(c.sizes, c.bias, c.init_std / (2 * c.layers) ** 0.5, c.dtype, name='w_down')(y)
