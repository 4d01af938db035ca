"""Weights in four bits: NF4 with the absmax of blocks of 64, itself in eight bits where `double`.

In place of a Linear's `w` [L, *inputs, *outputs] there are, for each layer by itself and in its row-major order,

    nf4            uint8[L, n/2]         two indices into NF4 a byte, the first in the high half
    absmax         float32[L, n/64]      or, doubly quantised, uint8[L, n/64]: indices into DYNAMIC, with
    absmax_scale   float32[L, n/64/256]  the absmax of 256 of them, and
    absmax_offset  float32[L]            their mean

n, the number of elements of a layer, is rounded up to whole blocks. Doubly quantised a weight takes 4.127 bits.
bitsandbytes lays a matrix out as [outputs, inputs], so that its blocks are others for the same weight. On the same
array every `nf4` is equal, and one `absmax` of 400 is the neighbour of its: we take the nearest of DYNAMIC, its CPU
code the nearest after rounding to 16 bits.

Source: QLoRA, Dettmers et al. 2023 (2305.14314), section 3 and appendix E; the map of the second level: 8-bit dynamic
tree quantisation, Dettmers 2015 (1511.04561); conventions of bitsandbytes 0.50.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from llmstack.errors import BadInput
from llmstack.sharding import AXES

BLOCK, ABSMAX_BLOCK = 64, 256
LEAVES = ('nf4', 'absmax', 'absmax_scale', 'absmax_offset')

NF4 = np.array([
  -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
  -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
  0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
], np.float32)  # fmt: skip
PAIRS = np.stack([np.repeat(NF4, 16), np.tile(NF4, 16)], 1)  # what a byte stands for


def dynamic():
  """Returns float32[256], sorted: for e in 0..6, 2^e midpoints of equal parts of 0.1 to 1, times 10^(e - 6), with
  both signs, then 0 and 1."""
  values = [np.float32(0), np.float32(1)]
  for e in range(7):
    edges = np.linspace(0.1, 1, 2**e + 1, dtype=np.float32)
    half = np.float32(10.0 ** (e - 6)) * ((edges[:-1] + edges[1:]) / 2)
    values += [*half, *-half]
  return np.sort(np.array(values, np.float32))


DYNAMIC = dynamic()


def blocks(x, size):
  """Returns (x[n] as [ceil(n / size), size], filled up with zeros; the largest magnitude of each; x over it)."""
  x = jnp.pad(x, (0, -x.size % size)).reshape(-1, size)
  top = jnp.abs(x).max(-1)
  return top, x * (1 / jnp.where(top > 0, top, 1))[:, None]


def pack(w, double):
  """Returns the leaves of one layer. w: float32[...]."""
  absmax, scaled = blocks(w.reshape(-1), BLOCK)
  index = sum((scaled > edge).astype(jnp.uint8) for edge in (NF4[:-1] + NF4[1:]) / 2)
  out = {'nf4': (index[:, ::2] << 4 | index[:, 1::2]).reshape(-1), 'absmax': absmax}
  if double:
    offset = absmax.mean()
    scale, scaled = blocks(absmax - offset, ABSMAX_BLOCK)
    index = jnp.searchsorted((DYNAMIC[:-1] + DYNAMIC[1:]) / 2, scaled.reshape(-1)[: absmax.size])
    out |= {'absmax': index.astype(jnp.uint8), 'absmax_scale': scale, 'absmax_offset': offset}
  return out


def unpack(own, shape):
  """Returns float32[shape], one layer's weight, from its leaves."""
  absmax = own['absmax']
  if 'absmax_scale' in own:
    scale = jnp.repeat(own['absmax_scale'], ABSMAX_BLOCK)[: absmax.size]
    absmax = jnp.asarray(DYNAMIC)[absmax] * scale + own['absmax_offset']
  w = jnp.asarray(PAIRS)[own['nf4']].reshape(-1, BLOCK) * absmax[:, None]
  return w.reshape(-1)[: math.prod(shape)].reshape(shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def multiply(rows, packed, shape):
  """Returns rows[B*T, inputs] @ w in the dtype of rows, w of shape [inputs, outputs]; no gradient for w.

  The backward pass unpacks w again, and either pass only once its other factor is there: else XLA keeps, or makes in
  advance, the unpacked weights of all layers, and the four bits have saved nothing.
  """
  rows, packed = jax.lax.optimization_barrier((rows, packed))
  return rows @ unpack(packed, shape).astype(rows.dtype)


def multiply_backward(shape, packed, grad):
  grad, packed = jax.lax.optimization_barrier((grad, packed))
  return grad @ unpack(packed, shape).astype(grad.dtype).T, None


multiply.defvjp(lambda rows, packed, shape: (multiply(rows, packed, shape), packed), multiply_backward)


def restored(role, own, sizes, unpack=unpack):
  """Returns the parameters of a Linear with float32 `w`, unpacked if it was packed. sizes: letter -> size.

  unpack: of one layer, or `unpack_layers`.
  """
  if 'nf4' not in own:
    return own
  shape = tuple(sizes[c] for c in AXES[role].replace('->', ''))
  rest = {k: v for k, v in own.items() if k not in LEAVES}
  return rest | {'w': unpack({k: own[k] for k in LEAVES if k in own}, shape)}


# Jitted, as `forward` is: a fused multiply-add rounds the absmax otherwise than the two by themselves.
@functools.partial(jax.jit, static_argnums=1)
def unpack_layers(own, shape):
  """Returns float32[L, *shape]."""
  return jax.vmap(lambda own: unpack(own, shape))(own)


@functools.partial(jax.jit, static_argnums=1)
def pack_layers(w, double):
  """Returns the leaves of all layers, made one layer at a time."""
  return jax.lax.map(lambda w: pack(w, double), w)


def walk(tree, one):
  """Returns a tree with one(role, parameters) in place of the parameters of every Linear in it."""
  return {
    k: v if not isinstance(v, dict) else one(k, v) if 'w' in v or 'nf4' in v else walk(v, one) for k, v in tree.items()
  }


def quantise(params, targets, double=True):
  """Returns params with the weights of the layers whose role is in `targets` packed.

  Raises: BadInput for a role that has no weight in the layers.
  """
  found = set()

  def one(role, own):
    if role not in targets or 'w' not in own:
      return own
    found.add(role)
    return {k: v for k, v in own.items() if k != 'w'} | pack_layers(own['w'], double)

  out = params | {'layers': walk(params['layers'], one)}
  if missing := [role for role in targets if role not in found]:
    raise BadInput(f'{missing[0]!r} cannot be quantised: the layers of this model have no such weight, leave it out')
  return out


def dequantise(cfg, params):
  """Returns params with every packed weight in float32, as `forward` multiplies with it."""
  return params | {'layers': walk(params['layers'], lambda role, own: restored(role, own, cfg.sizes, unpack_layers))}


def nbytes(params):
  """Returns the bytes of all arrays of a tree."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
