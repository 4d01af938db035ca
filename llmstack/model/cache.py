"""The static key/value cache of decoding, one entry per layer.

A layer's entry is {'k', 'v': dtype[B,K,S,H], 'pos': int32[B,S]}: `pos` is the position stored in a slot, -1 for none.
The slots of a head are neighbours, so that attention reads them as they lie. Position p lives in slot p % S. A layer
with a sliding window of w tokens has S = min(w, length), so its slots roll; all others have S = length. Rows are
independent: each has its own length, and a slot is visible to a query by its position alone, so padding never needs a
mask.
"""

import jax.numpy as jnp


def allocate(cfg, batch, length):
  """Returns an empty cache: a list over layers. length: positions that a row may reach, tokens."""

  def layer(window):
    shape = (batch, cfg.kv_heads, min(window, length), cfg.head_width)
    # Two buffers: a cache is donated to the step that updates it, and one buffer cannot be given twice.
    k, v = jnp.zeros(shape, cfg.dtype), jnp.zeros(shape, cfg.dtype)
    return {'k': k, 'v': v, 'pos': jnp.full((batch, shape[2]), -1, jnp.int32)}

  return [layer(w) for w in cfg.window_of_layer]


def update(layer, k, v, positions, valid):
  """Returns (layer, k, v, pos): the entry with T new keys, and the keys that their queries may look at.

  k, v: dtype[B,T,K,H]; positions: int32[B,T], increasing along a row; valid: bool[B,T], false writes nothing.
  The T new keys may evict slots of a rolling layer that the first of their own queries still see, so
  for T > 1 the queries look at the old slots and the new keys side by side; a single query can look
  at the written slots, because what it evicts lies outside its window.
  """
  slots, length = layer['k'].shape[2], positions.shape[1]
  k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
  # Only the last `slots` valid keys of a row survive; the others are sent out of range and dropped.
  last = jnp.max(jnp.where(valid, positions, -1), axis=1, keepdims=True)
  slot = jnp.where(valid & (positions > last - slots), positions % slots, slots)
  rows, heads = jnp.arange(slot.shape[0])[:, None], jnp.arange(k.shape[1])[:, None]
  # A head at a time: from one write of all heads XLA makes a dynamic-update-slice for B = 1, and copies the cache.
  write = lambda cached, x: cached.at[rows[:, None], heads, slot[:, None]].set(x, mode='drop')  # noqa: E731
  new = {
    'k': write(layer['k'], k),
    'v': write(layer['v'], v),
    'pos': layer['pos'].at[rows, slot].set(positions, mode='drop'),
  }
  if length == 1:
    return new, new['k'], new['v'], new['pos']
  old = jnp.where(layer['pos'] < jnp.where(valid, positions, 2**30).min(1, keepdims=True), layer['pos'], -1)
  return (
    new,
    jnp.concatenate([layer['k'], k], 2),
    jnp.concatenate([layer['v'], v], 2),
    jnp.concatenate([old, jnp.where(valid, positions, -1)], 1),
  )
