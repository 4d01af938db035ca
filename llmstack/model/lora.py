"""Low-rank adapters: w + scale * a b, with w frozen.

    adapters = init_adapters(cfg, lora, key)                    # {'layers': {'attn': {'wq': {'a', 'b'}, ...}}}
    hidden, cache = forward(cfg, combine(base, adapters, lora), tokens, ...)

`base` and `adapters` are two trees of one nesting: optimise and save the second, keep the first in `frozen`. What
`combine` returns is parameters like any others to `forward`; that a matrix is adapted is known to `Linear` alone.
Only matrices of the layers are adapted: not the embedding, the head, biases or norms.

Source: LoRA, Hu et al. 2021 (2106.09685), initialisation as in PEFT; rsLoRA, Kalajdzievski 2023 (2312.03732).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from llmstack.errors import BadInput
from llmstack.model import quant
from llmstack.model.linear import factors
from llmstack.model.transformer import init
from llmstack.sharding import AXES

ROLES = ('wq', 'wk', 'wv', 'wo', 'w_gate', 'w_up', 'w_down')


@dataclasses.dataclass(frozen=True)
class Lora:
  """What is adapted, and how."""

  rank: int  # [R]
  alpha: float
  rs: bool  # scale alpha / sqrt(R) instead of alpha / R: the update keeps its size as R grows
  targets: tuple[str, ...]  # roles
  dropout: float  # on the adapter's input; the path through w has none

  def __post_init__(self):
    object.__setattr__(self, 'targets', tuple(self.targets))
    if self.rank < 1:
      raise BadInput(f'lora.rank = {self.rank} must be at least 1')
    if not 0 <= self.dropout < 1:
      raise BadInput(f'lora.dropout = {self.dropout} must be at least 0 and below 1')
    if not self.targets:
      raise BadInput(f'lora.targets is empty: choose from {", ".join(ROLES)}')
    for role in self.targets:
      if role not in ROLES:
        raise BadInput(f'lora.targets names {role!r}, which has no adapter: choose from {", ".join(ROLES)}')

  @property
  def scale(self):
    """Returns what a b is multiplied with."""
    return self.alpha / (self.rank**0.5 if self.rs else self.rank)


def shapes(cfg, lora):
  """Returns the adapters as ShapeDtypeStructs: a float32[L, *inputs, R], b float32[L, R, *outputs].

  Raises: BadInput for a role that the model has not, or a rank above that of a matrix.
  """

  def walk(tree):
    out = {}
    for name, scope in tree.items():
      if name in lora.targets:
        found.add(name)
        L, *shape = scope['w'].shape
        ins = AXES[name].index('->')
        most = min(math.prod(shape[:ins]), math.prod(shape[ins:]))
        if lora.rank > most:
          raise BadInput(f'lora.rank = {lora.rank} is more than the rank of {name}, {most}: choose at most {most}')
        kinds = {'a': (L, *shape[:ins], lora.rank), 'b': (L, lora.rank, *shape[ins:])}
        out[name] = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in kinds.items()}
      elif isinstance(scope, dict) and (inner := walk(scope)):
        out[name] = inner
    return out

  found = set()
  tree = {'layers': walk(jax.eval_shape(lambda: init(cfg, jax.random.key(0)))['layers'])}
  if missing := [role for role in lora.targets if role not in found]:
    raise BadInput(f'lora.targets names {missing[0]!r}, which this model has not: leave it out')
  return tree


def adapter_parameters(cfg, lora):
  """Returns the number of parameters that are trained."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes(cfg, lora)))


def init_adapters(cfg, lora, key):
  """Returns fresh adapters: a uniform within 1 / sqrt(inputs), b zero, so that nothing changes at first."""

  def one(path, x):
    role, leaf = path[-2].key, path[-1].key
    if leaf == 'b':
      return jnp.zeros(x.shape, x.dtype)
    bound = math.prod(x.shape[1:-1]) ** -0.5
    return jax.random.uniform(jax.random.fold_in(key, ROLES.index(role)), x.shape, x.dtype, -bound, bound)

  return jax.tree_util.tree_map_with_path(one, shapes(cfg, lora))


def join(base, adapters, lora, one):
  """Returns base with one(role, its parameters, its adapter) in place of each adapted Linear's parameters.

  Raises: BadInput for adapters of another base or rank.
  """

  def walk(base, adapter, path):
    if 'a' in adapter:
      check(path, base, adapter, lora)
      return one(path[-1], base, adapter)
    if missing := sorted(set(adapter) - set(base)):
      raise BadInput(f'the adapter is of another base: this one has no {"/".join((*path, missing[0]))}')
    return base | {k: walk(base[k], v, (*path, k)) for k, v in adapter.items()}

  return walk(base, adapters, ())


def check(path, base, adapter, lora):
  """Returns nothing; raises BadInput where the adapter at `path` does not fit."""
  a, b = adapter['a'].shape, adapter['b'].shape
  where = '/'.join(path)
  if a[-1] != lora.rank or b[1] != lora.rank:
    raise BadInput(f'the adapter of {where} has rank {a[-1]}, and lora.rank = {lora.rank}')
  of = a[:-1] + b[2:]
  if 'nf4' in base:
    own, of = base['nf4'].shape, (a[0], -(-math.prod(of[1:]) // quant.BLOCK) * quant.BLOCK // 2)
  else:
    own = base['w'].shape
  if own != of:
    raise BadInput(f'the adapter of {where} is for a matrix {of}, and this base has {own}: another base')


def combine(base, adapters, lora, rng=None):
  """Returns parameters for `forward`: the base, without gradient, and beside each adapted `w` {a, scale * b}.

  rng: key for dropout, or None for none.
  """

  def one(role, own, adapter):
    own = own | {'a': adapter['a'], 'b': adapter['b'] * lora.scale}
    if rng is not None and lora.dropout:
      n = adapter['a'].shape[0]
      keys = jax.random.split(jax.random.fold_in(rng, ROLES.index(role)), n)
      own |= {'key': keys, 'rate': jnp.full((n,), lora.dropout, jnp.float32)}
    return own

  return join(jax.tree.map(jax.lax.stop_gradient, base), adapters, lora, one)


def delta(adapter, lora, shape):
  """Returns scale * a b of all layers, float32[shape]."""
  a, b = jax.vmap(factors)(adapter)
  return lora.scale * jnp.matmul(a, b, precision='highest').reshape(shape)


def merge(base, adapters, lora, sign=1):
  """Returns parameters like the base's, with scale * a b added to each adapted `w` in float32.

  Raises: BadInput for a weight in four bits: it is not this function that decides what may be lost (`repack` does).
  """

  def one(role, own, adapter):
    if 'nf4' in own:
      raise BadInput(f'{role} of the base is in four bits: merge into dequantise(cfg, base), or use repack')
    return own | {'w': own['w'] + sign * delta(adapter, lora, own['w'].shape)}

  return join(base, adapters, lora, one)


def unmerge(params, adapters, lora):
  """Returns the base that `merge` made `params` from, to a rounding of w + delta: about 1e-7 of the larger."""
  return merge(params, adapters, lora, sign=-1)


def repack(cfg, base, adapters, lora):
  """Returns (the packed base with the adapter in it, what that lost): the adapter is added to the unpacked weight.

  Lost is {role: float32[L]}, the error of packing the sum over the size of the adapter's own scale * a b, Frobenius
  norms. From 1 on more is lost than was learnt: keep the adapter beside the base, or the merged weight unpacked.
  """
  lost = {}

  def one(role, own, adapter):
    unpacked = lambda own: quant.restored(role, own, cfg.sizes, quant.unpack_layers)['w']  # noqa: E731
    w = unpacked(own)
    change = delta(adapter, lora, w.shape)
    packed = own | quant.pack_layers(w + change, 'absmax_scale' in own)
    norm = lambda x: jnp.linalg.norm(x.reshape(len(x), -1), axis=1)  # noqa: E731
    lost[role] = norm(unpacked(packed) - w - change) / norm(change)
    return packed

  return join(base, adapters, lora, one), lost
