"""One model function for training, scoring, prefill and cached decode.

    params        = init(cfg, key)
    hidden, cache = forward(cfg, params, tokens, positions, segments, cache=None)   # [B,T,D]
    logits        = unembed(cfg, params, hidden)                                    # float32[B,T,V]

`params` is a nested dict of float32 arrays: {'embed': {'w'}, 'layers': {...}, 'final_norm': ...}. Layers
are always stacked on a leading L, whether they are scanned or unrolled, so that a checkpoint does not
know how it was run. A cache is unrolled, because its layers may differ in length; `ready(cfg, params, rows)` does the
same to parameters, for whoever calls `forward` in a loop: slicing them anew for each token would copy every weight.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from llmstack.model.attention import Attention
from llmstack.model.config import ModelConfig
from llmstack.model.layers import MLP, Norm, dropout, rotations
from llmstack.model.linear import plain, transposed
from llmstack.shapes import check
from llmstack.sharding import constrain


class Block(nn.Module):
  """Returns (x, cache entry): x + attention(norm x), then x + mlp(norm x)."""

  cfg: ModelConfig
  shared: int = 0

  @nn.compact
  def __call__(self, x, view, window, layer=None, rng=None):
    c = self.cfg
    norm = functools.partial(Norm, c.norm, c.norm_eps, c.norm == 'layer' and c.bias)
    rngs = (None, None) if rng is None else jax.random.split(rng)
    y, layer = Attention(c, self.shared, name='attn')(norm(name='attn_norm')(x), view, window, layer)
    y = norm(name='post_attn_norm')(y) if c.post_norm else y
    x = constrain(x + dropout(y, c.dropout, rngs[0]), 'BTD')
    y = MLP(c, name='mlp')(norm(name='mlp_norm')(x))
    y = norm(name='post_mlp_norm')(y) if c.post_norm else y
    return constrain(x + dropout(y, c.dropout, rngs[1]), 'BTD'), layer


def final_norm(cfg):
  return Norm(cfg.norm, cfg.norm_eps, cfg.norm == 'layer' and cfg.bias)


def init(cfg, key):
  """Returns fresh parameters. Jit it with out_shardings to create them sharded."""
  cfg = dataclasses.replace(cfg, attention='einsum')  # one token, which is too short for the others
  k_embed, k_pos, k_head, k_layers = jax.random.split(key, 4)
  normal = nn.initializers.normal(cfg.init_std)
  x = jnp.zeros((1, 1, cfg.width), cfg.dtype)
  at = jnp.zeros((1, 1), jnp.int32)
  view = {'positions': at, 'segments': at + 1, 'rope': rotations(at, cfg.head_width, cfg.rope_theta, 1)}
  params = {
    'embed': {'w': normal(k_embed, (cfg.vocab, cfg.width))},
    'layers': jax.vmap(lambda k: Block(cfg).init(k, x, view, 1)['params'])(jax.random.split(k_layers, cfg.layers)),
    'final_norm': final_norm(cfg).init(k_head, x)['params'],
  }
  if cfg.positions == 'learned':
    params['pos_embed'] = {'w': normal(k_pos, (cfg.length, cfg.width))}
  if not cfg.tied:
    params['head'] = {'w': normal(k_head, (cfg.width, cfg.vocab))}
  return params


def forward(cfg, params, tokens, positions, segments, *, cache=None, rng=None, shared=0):
  """Returns (hidden dtype[B,T,D], cache).

  tokens, positions: int32[B,T]; a position restarts at 0 with its segment.
  segments: int32[B,T], 0 = padding. Attention never leaves a segment. With a cache a row is one
    sequence: segments only say which tokens are real (> 0), and the new keys join the cached ones.
  cache: `model.cache.allocate(...)` or None. rng: key for dropout, or None for none.
  shared: int, columns of prompts at the beginning of a row, which the two halves of the rest share
    (attention.shared_prompts); 0 for rows that are none of these. Without a cache.
  """
  check('BT,BT,BT', tokens, positions, segments)
  # Gathered over fsdp before the lookup ('.' has no rule): the rows come out laid out like a batch.
  x = constrain(params['embed']['w'].astype(cfg.dtype), 'V.')[tokens]
  if cfg.scale_embed:
    x *= jnp.asarray(cfg.width**0.5, x.dtype)
  if cfg.positions == 'learned':
    x += params['pos_embed']['w'].astype(cfg.dtype)[positions]
  if rng is not None and cfg.dropout:
    rng, k = jax.random.split(rng)
    x = dropout(x, cfg.dropout, k)
  x = constrain(x, 'BTD')
  view = {'positions': positions, 'segments': segments}
  if cfg.positions == 'rope':
    view['rope'] = rotations(positions, cfg.head_width, cfg.rope_theta, cfg.length)
  rngs = None if rng is None or not cfg.dropout else jax.random.split(rng, cfg.layers)

  scan, windows = cfg.scan and cache is None, cfg.window_of_layer
  mixed = scan and len(set(windows)) > 1  # else a layer's window is an int, which some kernels are compiled for

  # Jitted, so that equal layers are traced, differentiated and lowered once.
  @functools.partial(jax.jit, static_argnums=() if mixed else 3)
  def block(x, view, layer_params, window, layer, rng):
    return Block(cfg, shared).apply({'params': layer_params}, x, view, window, layer, rng)

  if cfg.remat != 'none' and cache is None:
    dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    block = jax.checkpoint(
      block, policy=dots if cfg.remat == 'dots' else None, prevent_cse=not cfg.scan,
      static_argnums=() if mixed else (3,),
    )  # fmt: skip
  if scan:
    per_layer = (params['layers'], jnp.asarray(windows) if mixed else None, rngs)
    x, _ = jax.lax.scan(
      lambda x, l: (block(x, view, l[0], l[1] if mixed else windows[0], None, l[2])[0], None), x, per_layer
    )
  else:
    out = []
    for i, layer_params in enumerate(unroll(cfg, params)):
      layer = None if cache is None else cache[i]
      x, layer = block(x, view, layer_params, windows[i], layer, None if rngs is None else rngs[i])
      out.append(layer)
    cache = None if cache is None else out
  return final_norm(cfg).apply({'params': params['final_norm']}, x), cache


def value_head(cfg):
  """Returns the parameters of a scalar head, zero: every reward is 0 at first."""
  return {'w': jnp.zeros((cfg.width,), jnp.float32)}


def values(cfg, params, hidden):
  """Returns float32[...], one number for each hidden[...,D], by params['value_head']."""
  return jnp.matmul(hidden, params['value_head']['w'].astype(cfg.dtype), preferred_element_type=jnp.float32)


def unroll(cfg, params):
  """Returns the layers as a list; they may be one already."""
  layers = params['layers']
  return layers if isinstance(layers, list) else unstack(layers, cfg.layers)


def ready(cfg, params, rows):
  """Returns parameters as decoding `rows` sequences reads them best; the results are the same but for rounding.

  A list over layers in place of the leading L, packed weights unpacked and adapters merged (in float32, and without
  dropout), weights in cfg.dtype, and for a single row on a CPU those of the layers and of the head transposed
  (linear.py). Parameters that are ready are returned as they are. In bfloat16 a merged weight is rounded as a whole:
  the part of an adapter's update that is smaller than that is lost, which `forward` on combined parameters keeps.
  """
  if isinstance(params['layers'], list):
    return params
  turned = rows == 1 and jax.default_backend() == 'cpu'

  def best(name, scope):
    if not isinstance(scope, dict):
      return scope
    if 'w' not in scope and 'nf4' not in scope:
      return {k: best(k, v) for k, v in scope.items()}
    scope = plain(name, scope, cfg.sizes)
    scope = scope | {'w': scope['w'].astype(cfg.dtype)}
    return transposed(name, scope) if turned and 'embed' not in name else scope

  return best('', params | {'layers': None}) | {'layers': [best('', layer) for layer in unroll(cfg, params)]}


def unembed(cfg, params, hidden):
  """Returns float32[B,T,V] logits of hidden[B,T,D], soft-capped where the config says so."""
  if cfg.tied:
    w = params['embed']['w'].T
  else:
    w = params['head']['wt'].T if 'wt' in params['head'] else params['head']['w']
  logits = jnp.matmul(hidden, w.astype(cfg.dtype), preferred_element_type=jnp.float32)
  logits = constrain(logits, 'BTV')
  return logits if cfg.logit_softcap is None else cfg.logit_softcap * jnp.tanh(logits / cfg.logit_softcap)


def unstack(tree, n):
  """Returns n trees from one with a leading axis of n.

  Leaf by leaf, so that one that has no gradient (a frozen weight, an integer, a key) costs none.
  """
  leaves, shape = jax.tree.flatten(tree)
  rows = [split(x, n) if jnp.issubdtype(x.dtype, jnp.inexact) else list(x) for x in leaves]
  return [jax.tree.unflatten(shape, row) for row in zip(*rows)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def split(x, n):
  """Returns [x[0], ..., x[n - 1]]; the gradient is stacked once, not padded n times."""
  return [x[i] for i in range(n)]


split.defvjp(lambda x, n: (split(x, n), None), lambda n, _, grads: (jnp.stack(grads),))
