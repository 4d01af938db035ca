"""Log-probs of given tokens: whole sequences in a few compiled shapes, in windows where they are longer than the model.

Right-padded, because attention is causal; logits exist only where a token is scored. Sums are the caller's, in float64.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llmstack.model import forward, unembed
from llmstack.shapes import check

CHUNK = 64  # positions of logits alive at once


class Scored(NamedTuple):
  """About n tokens, each given all before it in its window."""

  logp: np.ndarray  # float32[n]
  rank: np.ndarray  # int32[n], how many tokens the model prefers; 0 = greedy decoding takes it
  ids: np.ndarray  # int32[n,top], what it prefers, best first
  top: np.ndarray  # float32[n,top], their log-probs


@functools.partial(jax.jit, static_argnames=('cfg', 'top'))
def token_scores(cfg, params, tokens, lengths, at, targets, *, top):
  """Returns Scored of arrays [B,C] and [B,C,top]: targets given tokens[:, :at + 1].

  tokens: int32[B,T] right-padded; lengths: int32[B]; at: int32[B,C] positions; targets: int32[B,C], C whole chunks.
  """
  s = check('BT,B,BC,BC', tokens, lengths, at, targets)
  places = jnp.broadcast_to(jnp.arange(s['T']), tokens.shape)
  hidden, _ = forward(cfg, params, tokens, places, (places < lengths[:, None]).astype(jnp.int32))
  hidden = jnp.take_along_axis(hidden, at[:, :, None], axis=1)
  chunk = min(s['C'], CHUNK)

  def one(start):
    h, t = (jax.lax.dynamic_slice_in_dim(x, start, chunk, 1) for x in (hidden, targets))
    logp = jax.nn.log_softmax(unembed(cfg, params, h).astype(jnp.float32))
    own = jnp.take_along_axis(logp, t[:, :, None], -1)
    # Of equal ones the first, as argmax has it.
    before = jnp.arange(logp.shape[-1])[None, None, :] < t[:, :, None]
    rank = ((logp > own) | ((logp == own) & before)).sum(-1, dtype=jnp.int32)
    best, ids = jax.lax.top_k(logp, top)
    return Scored(own[:, :, 0], rank, ids, best)

  parts = jax.lax.map(one, jnp.arange(0, s['C'], chunk))  # [chunks, B, chunk, ...]
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(*targets.shape, *x.shape[3:]), parts)


def windows(n, start, window, stride):
  """Returns [(begin, first, end)]: tokens first:end are scored given begin:first, each from start to n exactly once.

  window: tokens that the model reads at once, end - begin <= window + 1: the last one is only predicted.
  stride: tokens scored in a window behind the first; each has at least window + 1 - stride before it, where there are.
  """
  out, first = [], start
  while first < n:
    end = min(n, max(first + stride, window + 1))
    out.append((max(0, end - window - 1), first, end))
    first = end
  return out


def bucket(n, least, factor):
  """Returns the first of least, least * factor, ... that is n or more."""
  while least < n:
    least *= factor
  return least


def score(cfg, params, items, *, mesh, batch, window=None, stride=None, top=0):
  """Returns [Scored], about ids[start:] of each item.

  items: [(ids, start)] with 1 <= start < len(ids): the first token of all has nothing to be predicted from.
  batch: rows scored together. window: tokens read at once, None = cfg.length. stride: None = window, so that what fits
    in one window is scored in one.
  """
  window = cfg.length if window is None else window
  assert 0 < (stride or window) <= window <= cfg.length
  # Parameters may be `ready`, whose layers are a list; the choice of a kernel was training's, on its hardware.
  kernel = 'blocks' if jax.default_backend() == 'cpu' else 'einsum'
  cfg = dataclasses.replace(cfg, scan=False, remat='none', attention=kernel)
  rows, shapes = [], {}
  for item, (ids, start) in enumerate(items):
    assert 1 <= start < len(ids), (start, len(ids))
    for begin, first, end in windows(len(ids), start, window, stride or window):
      n = end - first
      shape = min(bucket(end - begin - 1, 16, 2), window), bucket(n, CHUNK, 2) if n > CHUNK else bucket(n, 4, 4)
      shapes.setdefault(shape, []).append(len(rows))
      rows.append((item, begin, first, end))
  batch += -batch % (mesh.shape['data'] * mesh.shape['fsdp'])
  waiting, found = [], [None] * len(rows)
  with jax.set_mesh(mesh):
    for (T, C), members in sorted(shapes.items()):
      for i in range(0, len(members), batch):
        group = members[i : i + batch]
        tokens, at, targets = (np.zeros((batch, n), np.int32) for n in (T, C, C))
        lengths = np.ones(batch, np.int32)
        for row, member in enumerate(group):
          item, begin, first, end = rows[member]
          ids, n = items[item][0], end - first
          lengths[row] = end - begin - 1
          tokens[row, : lengths[row]] = ids[begin : end - 1]
          at[row, :n] = np.arange(first - begin - 1, end - begin - 1)
          targets[row, :n] = ids[first:end]
        waiting.append((group, token_scores(cfg, params, tokens, lengths, at, targets, top=top)))
  for group, out in waiting:
    out = [np.asarray(x) for x in out]
    for row, member in enumerate(group):
      _, _, first, end = rows[member]
      found[member] = [x[row, : end - first] for x in out]
  parts = [[] for _ in items]
  for (item, *_), scored in zip(rows, found):
    parts[item].append(scored)
  return [Scored(*map(np.concatenate, zip(*p))) for p in parts]
