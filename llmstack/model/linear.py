"""The one linear layer: every matmul with a weight of the model goes through it."""

import math

import flax.linen as nn
import jax.numpy as jnp

from llmstack.sharding import AXES


class Linear(nn.Module):
  """Returns x @ w (+ bias), contracted as AXES[name] says: 'wq' is 'BTD,DNH->BTNH'.

  Parameters `w` and `bias` are float32; the product is in `dtype`. In place of `w` there may be `wt` (`transposed`).
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
    if self.has_variable('params', 'wt'):
      w = self.get_variable('params', 'wt').T
    else:
      w = self.param('w', nn.initializers.normal(self.std), shape, jnp.float32).reshape(fan_in, -1)
    y = x.reshape(-1, fan_in) @ w.astype(self.dtype)
    if self.bias:
      bias = self.param('bias', nn.initializers.zeros, shape[len(ins) :], jnp.float32)
      y += bias.astype(self.dtype).reshape(1, -1)
    return y.reshape(*x.shape[:2], *shape[len(ins) :])


def transposed(role, params):
  """Returns the parameters of a Linear with `wt` [outputs, inputs] in place of `w`.

  XLA multiplies a single row by it at 1.6 times the speed on a CPU, and many rows at 0.8.
  """
  w = params['w']
  fan_in = math.prod(w.shape[: AXES[role].index('->')])
  return {'wt': w.reshape(fan_in, -1).T} | {k: v for k, v in params.items() if k != 'w'}
