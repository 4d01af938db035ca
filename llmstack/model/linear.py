"""The one linear layer: every matmul with a weight of the layers goes through it, adapted, packed or neither."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from llmstack.model import quant
from llmstack.sharding import AXES


class Linear(nn.Module):
  """Returns x @ w (+ bias), contracted as AXES[name] says: 'wq' is 'BTD,DNH->BTNH'.

  Parameters `w` and `bias` are float32; the product is in `dtype`. In place of `w` there may be `wt` (`transposed`) or
  four bits (model/quant.py), and beside it a low-rank adapter (model/lora.py): a [*inputs, R] and b [R, *outputs] add
  (x @ a) @ b, and with `key` and `rate` x is dropped out before that.
  """

  sizes: dict  # letter -> size
  bias: bool
  std: float
  dtype: str

  @nn.compact
  def __call__(self, x):
    ins, outs = AXES[self.name].split('->')
    shape = [self.sizes[c] for c in ins + outs]
    # One 2-D matmul: XLA's CPU backend is slower on the same product with more free axes.
    fan_in = math.prod(shape[: len(ins)])
    rows = x.reshape(-1, fan_in)
    own = self.variables.get('params', {})
    if 'wt' in own:
      y = rows @ own['wt'].T.astype(self.dtype)
    elif 'nf4' in own:
      packed = {k: own[k] for k in quant.LEAVES if k in own}
      y = quant.multiply(rows, packed, (fan_in, math.prod(shape[len(ins) :])))
    else:
      w = self.param('w', nn.initializers.normal(self.std), shape, jnp.float32).reshape(fan_in, -1)
      y = rows @ w.astype(self.dtype)
    if 'a' in own:
      y += adapt(rows, own)
    if self.bias:
      bias = self.param('bias', nn.initializers.zeros, shape[len(ins) :], jnp.float32)
      y += bias.astype(self.dtype).reshape(1, -1)
    return y.reshape(*x.shape[:2], *shape[len(ins) :])


def factors(own):
  """Returns the matrices [inputs, R] and [R, outputs] of an adapter."""
  rank = own['a'].shape[-1]
  return own['a'].reshape(-1, rank), own['b'].reshape(rank, -1)


def adapt(rows, own):
  """Returns (rows @ a) @ b in the dtype of rows [B*T, inputs], which are dropped out where there is a key."""
  a, b = (x.astype(rows.dtype) for x in factors(own))
  if 'key' in own:
    kept = jax.random.bernoulli(own['key'], 1 - own['rate'], rows.shape)
    rows = jnp.where(kept, rows / (1 - own['rate']), 0).astype(rows.dtype)
  return (rows @ a) @ b


def plain(role, own, sizes):
  """Returns {'w'} (and bias) of one layer's Linear: unpacked, and its adapter added in float32, without dropout."""
  own = quant.restored(role, own, sizes)
  if 'a' not in own:
    return own
  delta = jnp.matmul(*factors(own), precision='highest')
  return {k: v for k, v in own.items() if k == 'bias'} | {'w': own['w'] + delta.reshape(own['w'].shape)}


def transposed(role, params):
  """Returns the parameters of a Linear with `wt` [outputs, inputs] in place of `w`.

  XLA multiplies a single row by it at 1.6 times the speed on a CPU, and many rows at 0.8.
  """
  w = params['w']
  fan_in = math.prod(w.shape[: AXES[role].index('->')])
  return {'wt': w.reshape(fan_in, -1).T} | {k: v for k, v in params.items() if k != 'w'}
