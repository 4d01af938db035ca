"""The one linear layer: every matmul with a weight of the model goes through it."""

import math

import flax.linen as nn
import jax.numpy as jnp

from llmstack.sharding import AXES


class Linear(nn.Module):
  """Returns x @ w (+ bias), contracted as AXES[name] says: 'wq' is 'BTD,DNH->BTNH'.

  Parameters `w` and `bias` are float32; the product is in `dtype`.
  """

  sizes: dict  # letter -> size
  bias: bool
  std: float
  dtype: str

  @nn.compact
  def __call__(self, x):
    ins, outs = AXES[self.name].split('->')
    shape = [self.sizes[c] for c in ins + outs]
    w = self.param('w', nn.initializers.normal(self.std), shape, jnp.float32).astype(self.dtype)
    # One 2-D matmul: XLA's CPU backend is slower on the same product with more free axes.
    fan_in = math.prod(shape[: len(ins)])
    y = x.reshape(-1, fan_in) @ w.reshape(fan_in, -1)
    if self.bias:
      bias = self.param('bias', nn.initializers.zeros, shape[len(ins) :], jnp.float32)
      y += bias.astype(self.dtype).reshape(1, -1)
    return y.reshape(*x.shape[:2], *shape[len(ins) :])
