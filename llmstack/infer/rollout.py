"""Completions of a queue of prompts, a few rows at a time: a row that ends is replaced from the queue.

A batch that waits for its longest answer computes rows that ended long ago. Here `advance` decodes on the device until
enough rows are free; the host then copies the next prompts into them (`place`), and when the queue is empty it moves
the rows that are left into a smaller batch (`resize`). The cache is as long as the longest row needs, in a few
lengths, because attention reads all of it. A prompt is read once (`read`), however often it is sampled.

What a row says depends on its prompt and its seed alone: a draw is keyed by (seed, position), as in decode.generate.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from llmstack.errors import BadInput
from llmstack.infer.sampling import NEVER
from llmstack.model import allocate, forward, ready, unembed
from llmstack.sharding import constrain

SHORTEST = 32  # slots of a cache: below that attention costs little beside the weights
LEAST = 4  # batches and caches are at least 1 / LEAST of the largest: each pair that is reached is compiled


class Rollout(NamedTuple):
  """What was sampled, on the host; columns after the end hold `pad` and 0."""

  tokens: np.ndarray  # int32[Q,T], EOS included where it was sampled
  logp: np.ndarray  # float32[Q,T] under the model, at temperature 1
  sampling_logp: np.ndarray  # float32[Q,T] under the sampling distribution; 0 for greedy rows
  lengths: np.ndarray  # int32[Q], sampled tokens, at least 1
  done: np.ndarray  # bool[Q], ended by EOS or a stop sequence; false where the budget ended it


class Rows(NamedTuple):
  """The rows being decoded. A free row is one that ended or was never filled."""

  cache: Any  # model.cache, of S slots
  token: jax.Array  # int32[B], sampled and not yet read
  positions: jax.Array  # int32[B], the position of `token`
  seeds: jax.Array  # uint32[B]
  tail: jax.Array  # int32[B,w], the last sampled tokens, for stop sequences
  budget: jax.Array  # int32[B], tokens that the row may have
  count: jax.Array  # int32[B], tokens that it has
  done: jax.Array  # bool[B], an EOS or stop sequence was sampled
  tokens: jax.Array  # int32[B,T]
  logp: jax.Array  # float32[B,T]
  sampling_logp: jax.Array  # float32[B,T]

  @property
  def live(self):
    return ~self.done & (self.count < self.budget)


LETTERS = Rows(None, 'B', 'B', 'B', 'BT', 'B', 'B', 'B', 'BT', 'BT', 'BT')


def laid_out(rows):
  """Returns the rows laid out as every program takes and gives them, so that each is compiled once."""
  put = lambda x, letters: constrain(x, letters.replace('T', '.'))  # noqa: E731
  cache = jax.tree.map(lambda x: put(x, 'BKSH' if x.ndim == 4 else 'BS'), rows.cache)
  return Rows(cache, *map(put, rows[1:], LETTERS[1:]))


@functools.partial(jax.jit, static_argnames=('cfg', 'batch', 'slots', 'new_tokens', 'stop_width', 'pad'))
def empty(cfg, batch, slots, new_tokens, stop_width, pad):
  """Returns Rows without a live one."""
  zero = lambda dtype=jnp.int32, *more: jnp.zeros((batch, *more), dtype)  # noqa: E731
  tokens = zero(jnp.int32, new_tokens) + pad
  logp = zero(jnp.float32, new_tokens)
  return laid_out(Rows(
    allocate(cfg, batch, slots), zero(), zero(), zero(jnp.uint32), zero(jnp.int32, stop_width), zero(), zero(),
    zero(bool), tokens, logp, logp + 0,
  ))  # fmt: skip


def draw(logits, seeds, positions, temperature):
  """Returns (token int32[B], logp float32[B], sampling_logp float32[B]) as sampling.sample draws without cuts.

  logits: float32[B,V]; positions: int32[B] that the tokens will take; temperature: static, 0 is greedy.
  """
  at = lambda x, token: jnp.take_along_axis(jax.nn.log_softmax(x, -1), token[:, None], -1)[:, 0]  # noqa: E731
  if temperature == 0:
    token = jnp.argmax(logits, -1).astype(jnp.int32)
    return token, at(logits, token), jnp.zeros(token.shape)
  keys = jax.vmap(lambda seed, position: jax.random.fold_in(jax.random.key(seed), position))(seeds, positions)
  scaled = jnp.maximum(logits / jnp.float32(temperature), NEVER)
  token = jax.vmap(jax.random.categorical)(keys, scaled).astype(jnp.int32)
  logp = at(logits, token)
  return token, logp, logp if temperature == 1 else at(scaled, token)


def ended(tail, stops):
  """Returns bool[B]: the last tokens are a stop sequence. stops: int32[n,w], -1 matches anything."""
  return ((tail[:, None, :] == stops[None]) | (stops < 0)[None]).all(-1).any(-1)


@functools.partial(jax.jit, static_argnames=('cfg', 'temperature'), donate_argnames='rows')
def advance(cfg, params, rows, stops, wanted, last, *, temperature):
  """Returns (Rows, live bool[B], positions int32[B]), decoded until `wanted` rows are free or one needs more slots.

  last: int32, the first position that has no slot.
  """
  batch = rows.token.shape[0]
  at = jnp.arange(batch)

  def go(rows):
    live = rows.live
    return live.any() & (batch - live.sum() < wanted) & ~(live & (rows.positions >= last)).any()

  def one(rows):
    live = rows.live
    segments = live[:, None].astype(jnp.int32)
    hidden, cache = forward(cfg, params, rows.token[:, None], rows.positions[:, None], segments, cache=rows.cache)
    new = draw(unembed(cfg, params, hidden)[:, 0], rows.seeds, rows.positions + 1, temperature)
    column = jnp.where(live, rows.count, rows.tokens.shape[1])  # out of range: dropped
    write = lambda x, y: x.at[at, column].set(y, mode='drop')  # noqa: E731
    tail = jnp.concatenate([rows.tail, new[0][:, None]], 1)[:, 1:]
    return laid_out(Rows(
      cache, new[0], rows.positions + live, rows.seeds, tail, rows.budget, rows.count + live,
      rows.done | (live & ended(tail, stops)), *map(write, rows[-3:], new),
    ))  # fmt: skip

  rows = jax.lax.while_loop(go, one, rows)
  return rows, constrain(rows.live, '.'), constrain(rows.positions, '.')


class Bank(NamedTuple):
  """Prompts that were read: the first slots of their caches, and the logits of what follows."""

  cache: Any
  logits: jax.Array  # float32[C,V]


@functools.partial(jax.jit, static_argnames=('cfg', 'batch', 'width'))
def empty_bank(cfg, batch, width):
  """Returns a Bank with room for `batch` prompts of `width` tokens, whole on each device but for heads."""
  cache = jax.tree.map(lambda x: constrain(x, '.K..' if x.ndim == 4 else '..'), allocate(cfg, batch, width))
  return Bank(cache, constrain(jnp.zeros((batch, cfg.vocab)), '..'))


@functools.partial(jax.jit, static_argnames='cfg', donate_argnames='bank')
def read(cfg, params, bank, tokens, lengths, to):
  """Returns the Bank with the prompts int32[U,width] of `lengths` at `to` int32[U]; one out of range is dropped."""
  batch, width = tokens.shape
  at = jnp.broadcast_to(jnp.arange(width), tokens.shape)
  real = (at < lengths[:, None]).astype(jnp.int32)
  hidden, cache = forward(cfg, params, tokens, at * real, real, cache=allocate(cfg, batch, width))
  last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
  write = lambda x, y: constrain(x.at[to].set(y, mode='drop'), '.K..' if x.ndim == 4 else '..')  # noqa: E731
  return jax.tree.map(write, bank, Bank(cache, unembed(cfg, params, last)[:, 0]))


@functools.partial(jax.jit, static_argnames=('temperature', 'pad'), donate_argnames='rows')
def place(rows, bank, source, to, lengths, seeds, budget, stops, *, temperature, pad):
  """Returns the Rows with R new ones, of which the first token is sampled.

  source: int32[R], where the Bank has the prompt; to: int32[R], the row; out of range is dropped.
  lengths, budget: int32[R], tokens; seeds: uint32[R].
  """

  def slots(x, prompt):
    """Returns x[B,...,S,...] with prompts of the bank in the first slots of the rows."""
    prompt = prompt[source]
    if x.ndim == 4:
      return x.at[to, :, : prompt.shape[2]].set(prompt, mode='drop')
    # Positions: those of the row that was there are gone.
    whole = jnp.pad(prompt, ((0, 0), (0, x.shape[1] - prompt.shape[1])), constant_values=-1)
    return x.at[to].set(whole, mode='drop')

  cache = jax.tree.map(slots, rows.cache, bank.cache)
  new = draw(bank.logits[source], seeds, lengths, temperature)
  tail = jnp.full((to.shape[0], rows.tail.shape[1]), -1, jnp.int32).at[:, -1].set(new[0])
  first = lambda x, y, fill: jnp.full((to.shape[0], x.shape[1]), fill, x.dtype).at[:, 0].set(y)  # noqa: E731
  fresh = (
    new[0], lengths, seeds, tail, budget, jnp.ones(to.shape, jnp.int32), ended(tail, stops),
    first(rows.tokens, new[0], pad), first(rows.logp, new[1], 0), first(rows.sampling_logp, new[2], 0),
  )  # fmt: skip
  put = lambda x, y: x.at[to].set(y, mode='drop')  # noqa: E731
  return laid_out(Rows(cache, *map(put, rows[1:], fresh)))


prepared = jax.jit(ready, static_argnums=(0, 2))


@functools.partial(jax.jit, static_argnames=('cfg', 'slots'))
def resize(cfg, rows, kept, slots):
  """Returns the Rows `kept` int32[B], with caches of at most `slots` slots: more than any live row's position."""

  def cut(x, like):
    x, axis = x[kept], x.ndim // 2  # of slots: [B,K,S,H] and [B,S]
    x = jax.lax.slice_in_dim(x, 0, min(like.shape[axis], x.shape[axis]), axis=axis)
    more = [(0, like.shape[i] - x.shape[i] if i == axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, more, constant_values=-1 if x.ndim == 2 else 0)

  like = jax.eval_shape(lambda: allocate(cfg, len(kept), slots))
  return laid_out(Rows(jax.tree.map(cut, rows.cache, like), *(x[kept] for x in rows[1:])))


def sizes(most, least, multiple=1):
  """Returns ascending sizes: `most` and its halves, rounded up to `multiple`, that are at least `least`."""
  half = -(-most // (2 * multiple)) * multiple
  return [most] if half < least or half == most else [*sizes(half, least, multiple), most]


def at_least(sizes, n):
  """Returns the first of ascending sizes that is at least n."""
  return next(size for size in sizes if size >= n)


def power(n):
  """Returns the smallest power of two that is at least n."""
  return 1 << (n - 1).bit_length()


def checked(cfg, prompts, seeds, ways, *, slots, refill, new_tokens, temperature, width):
  """Returns the width of the prompts. Raises: BadInput."""
  if slots < 1 or slots % ways:
    raise BadInput(f'slots = {slots} must be a multiple of {ways}, the devices that mesh data x fsdp gives the batch')
  if not 1 <= refill <= slots:
    raise BadInput(f'refill = {refill} must be between 1 and slots = {slots}')
  if new_tokens < 1 or temperature < 0:
    raise BadInput(f'new_tokens = {new_tokens} must be at least 1 and temperature = {temperature} at least 0')
  if len(seeds) != len(prompts):
    raise BadInput(f'there are {len(prompts)} prompts and {len(seeds)} seeds: give each row its own')
  for i, p in enumerate(prompts):
    if not len(p):
      raise BadInput(f'prompt {i} is empty: give it a token to start from')
    if len(p) >= cfg.length:
      raise BadInput(
        f'prompt {i} has {len(p)} tokens, which leaves nothing of model.length = {cfg.length}: shorten it or drop it'
      )
  longest = max(map(len, prompts), default=1)
  if width is None:
    width = min(-(-longest // 16) * 16, cfg.length)
  if not longest <= width <= cfg.length:
    raise BadInput(f'width = {width} must be between the longest prompt, {longest}, and model.length = {cfg.length}')
  return width


class Queue:
  """The prompts that wait, and which of them the Bank holds."""

  def __init__(self, cfg, prompts, slots, width, pad):
    number = {}
    self.which = [number.setdefault(tuple(p), len(number)) for p in prompts]  # of a row's prompt among the different
    self.prompts, self.width, self.pad = list(number), width, pad
    # The samples of a prompt one after the other, so that few prompts are held at a time.
    self.waiting = sorted(range(len(prompts)), key=lambda i: self.which[i])
    self.held = [None] * power(min(slots, len(number)))
    self.bank = empty_bank(cfg, len(self.held), width)

  def take(self, cfg, params, n, ways):
    """Returns (the next n rows, where the Bank has the prompt of each), the prompts having been read."""
    taken, self.waiting = self.waiting[:n], self.waiting[n:]
    needed = {self.which[i] for i in taken}
    new = sorted(needed - set(self.held))
    if new:
      spare = [c for c, p in enumerate(self.held) if p not in needed]
      # A few shapes, of which the mesh divides each.
      batch = ways * power(-(-len(new) // ways))
      tokens, lengths = np.full((batch, self.width), self.pad, np.int32), np.ones(batch, np.int32)
      to = np.full(batch, len(self.held), np.int32)  # out of range: dropped
      for j, (p, c) in enumerate(zip(new, spare)):
        lengths[j], to[j], self.held[c] = len(self.prompts[p]), c, p
        tokens[j, : lengths[j]] = self.prompts[p]
      self.bank = read(cfg, params, self.bank, tokens, lengths, to)
    return taken, [self.held.index(self.which[i]) for i in taken]


def rollout(
  cfg, params, prompts, seeds, *, mesh, slots, refill, new_tokens, temperature, stops, pad, width=None
):  # fmt: skip
  """Returns a Rollout of Q completions, row by row what decode.generate says without cuts.

  prompts: Q lists of ids; equal ones are read once. seeds: uint32[Q], what a row draws with.
  params: as forward takes them, or made ready for `slots` rows.
  slots: rows that are decoded at a time. refill: free rows that are waited for before the queue is looked at.
  new_tokens: at most so many; a row whose prompt is long has as many as model.length leaves.
  temperature: 0 is greedy. There is no top-k and no top-p: the learner's log-probs are those of the whole distribution,
    and a ratio to what was cut is biased (trl#6789).
  stops: int32[n,w] as decode.stop_table makes it. pad: id behind the end of a row; nothing is read from it.
  width: columns for prompts, tokens; None rounds the longest up to a multiple of 16.
  Raises: BadInput naming the prompt that is empty or fills model.length; for slots that the mesh cannot split.
  """
  ways = mesh.shape['data'] * mesh.shape['fsdp']
  width = checked(
    cfg, prompts, seeds, ways,
    slots=slots, refill=refill, new_tokens=new_tokens, temperature=temperature, width=width,
  )  # fmt: skip
  Q = len(prompts)
  out = Rollout(
    np.full((Q, new_tokens), pad, np.int32), np.zeros((Q, new_tokens), np.float32),
    np.zeros((Q, new_tokens), np.float32), np.zeros(Q, np.int32), np.zeros(Q, bool),
  )  # fmt: skip
  if not Q:
    return out
  seeds, lengths = np.asarray(seeds, np.uint32), np.array([len(p) for p in prompts], np.int32)
  budgets = np.minimum(new_tokens, cfg.length - lengths).astype(np.int32)
  full = min(width + new_tokens, cfg.length, max(cfg.window_of_layer))
  batches = sizes(slots, max(slots // LEAST, ways), ways)
  caches = sizes(full, max(width + 1, full // LEAST, SHORTEST))
  # What the host decides by is the same on every host.
  fetch = functools.partial(multihost_utils.process_allgather, tiled=True)

  with jax.set_mesh(mesh):
    params = prepared(cfg, params, slots)
    queue = Queue(cfg, prompts, slots, width, pad)
    batch, size = at_least(batches, min(Q, slots)), caches[0]
    rows = empty(cfg, batch, size, new_tokens, stops.shape[1], pad)
    owner, live, positions = np.full(batch, -1), np.zeros(batch, bool), np.zeros(batch, np.int32)
    while True:
      free = np.flatnonzero(~live)
      turn = queue.waiting and len(free) >= min(refill, len(queue.waiting))
      fewer = batch if queue.waiting else at_least(batches, max(live.sum(), 1))
      over = free[owner[free] >= 0]
      if len(over) and (turn or fewer < batch or not live.any()):
        got = fetch((rows.tokens, rows.logp, rows.sampling_logp, rows.count, rows.done))
        for x, y in zip(out, got):
          x[owner[over]] = y[over]
        owner[over] = -1
      if turn:
        taken, source = queue.take(cfg, params, len(free), ways)
        for start in range(0, len(taken), refill):
          some = slice(start, start + refill)
          to = free[: len(taken)][some]
          fill = lambda x, value: np.pad(x, (0, refill - len(x)), constant_values=value).astype(np.int32)  # noqa: E731
          which = fill(taken[some], taken[0])
          rows = place(
            rows, queue.bank, fill(source[some], 0), fill(to, batch), lengths[which], seeds[which], budgets[which],
            stops, temperature=temperature, pad=pad,
          )  # fmt: skip
          owner[to], live[to], positions[to] = taken[some], True, lengths[taken[some]]
      elif not live.any():
        return out
      fits = at_least(caches, min(positions[live].max() + 1, full))
      if fewer < batch or fits > size:
        kept = np.argsort(~live, kind='stable')[:fewer].astype(np.int32)
        rows, size, batch = resize(cfg, rows, kept, fits), fits, len(kept)
        owner, live = owner[kept], live[kept]
      wanted = min(refill, len(queue.waiting)) or batch - max([n for n in batches if n < batch], default=0)
      last = size if size < full else 2**30
      rows, live, positions = advance(cfg, params, rows, stops, wanted, last, temperature=temperature)
      live, positions = map(np.array, fetch((live, positions)))  # to write to


__all__ = ['Rollout', 'power', 'rollout']
