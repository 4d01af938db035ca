"""Generation with a static cache: `prefill`, `decode_one`, and `generate`, a while-loop of them.

`State` is the documented carry of the loop; whoever streams or serves holds the same one and calls
`decode_one` itself. All shapes are fixed by (B, prompt width, new tokens), so one compilation serves
every prompt of that shape, and nothing is allocated while decoding.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llmstack.errors import BadInput
from llmstack.infer.sampling import Sampling, sample
from llmstack.model import allocate, forward, ready, unembed
from llmstack.shapes import check


class State(NamedTuple):
  """The carry. Row b has consumed positions[b] tokens; `logits` are about the next one."""

  cache: Any  # model.cache
  logits: jax.Array  # float32[B,V]
  positions: jax.Array  # int32[B], position that the next token will take
  tail: jax.Array  # int32[B,w], the last w sampled tokens, -1 before there were any: for stop sequences
  done: jax.Array  # bool[B], an EOS or stop sequence was sampled


class Completion(NamedTuple):
  """What was sampled; positions after the end hold `pad`, 0 and False."""

  tokens: jax.Array  # int32[B,T], EOS included, stop sequences included
  logp: jax.Array  # float32[B,T] under the model
  sampling_logp: jax.Array  # float32[B,T] under the sampling distribution
  sampled: jax.Array  # bool[B,T]
  done: jax.Array  # bool[B], false where the budget ended the row


def prefill(cfg, params, tokens, lengths, cache, *, stop_width=1):
  """Returns the State after each row's prompt.

  tokens: int32[B,T], right-padded; lengths: int32[B] >= 1, real tokens of each row. Padding is never written.
  cache: `model.allocate(cfg, B, S)` with S >= the longest prompt plus what will be sampled.
  """
  sizes = check('BT,B', tokens, lengths)
  at = jnp.broadcast_to(jnp.arange(sizes['T']), tokens.shape)
  real = (at < lengths[:, None]).astype(jnp.int32)
  hidden, cache = forward(cfg, params, tokens, at * real, real, cache=cache)
  last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
  tail = jnp.full((sizes['B'], stop_width), -1, jnp.int32)
  return State(cache, unembed(cfg, params, last)[:, 0], lengths, tail, jnp.zeros(lengths.shape, bool))


def decode_one(cfg, params, state, keys, sampling, stops):
  """Returns (State, (token, logp, sampling_logp, sampled)), one token per row further.

  keys: key[B], the row's own; the draw is keyed by fold_in(key, position), so that it does not depend
    on the batch, the padding, or how many tokens are decoded at a time.
  params: best `model.ready`, or each call copies every weight of the layers.
  stops: int32[n,w] sequences that end a row, left-padded with -1; EOS is one of length 1.
  """
  token, logp, sampling_logp = sample(state.logits, jax.vmap(jax.random.fold_in)(keys, state.positions), sampling)
  live = ~state.done
  token, logp, sampling_logp = (jnp.where(live, x, 0) for x in (token, logp, sampling_logp))
  tail = jnp.where(live[:, None], jnp.concatenate([state.tail, token[:, None]], 1)[:, 1:], state.tail)
  hit = ((tail[:, None, :] == stops[None]) | (stops < 0)[None]).all(-1).any(-1)
  hidden, cache = forward(
    cfg, params, token[:, None], state.positions[:, None], live[:, None].astype(jnp.int32), cache=state.cache
  )
  logits = unembed(cfg, params, hidden)[:, 0]
  state = State(cache, logits, state.positions + live, tail, state.done | hit)
  return state, (token, logp, sampling_logp, live)


@functools.partial(jax.jit, static_argnames=('cfg', 'new_tokens', 'pad'))
def generate(cfg, params, tokens, lengths, keys, sampling, stops, *, new_tokens, pad):
  """Returns a Completion of at most `new_tokens` tokens per row; stops as soon as every row is done.

  tokens: int32[B,T] right-padded prompts; lengths: int32[B]; keys: key[B]; sampling: Sampling;
  stops: int32[n,w] as in decode_one (`stop_table`).
  """
  B, T = tokens.shape
  params = ready(cfg, params, B)  # before the loop, once
  state = prefill(cfg, params, tokens, lengths, allocate(cfg, B, T + new_tokens), stop_width=stops.shape[1])
  out = (
    jnp.full((B, new_tokens), pad, jnp.int32), jnp.zeros((B, new_tokens)), jnp.zeros((B, new_tokens)),
    jnp.zeros((B, new_tokens), bool),
  )  # fmt: skip

  def body(carry):
    i, state, out = carry
    state, (token, logp, sampling_logp, live) = decode_one(cfg, params, state, keys, sampling, stops)
    new = (jnp.where(live, token, pad), logp, sampling_logp, live)
    return i + 1, state, jax.tree.map(lambda o, n: o.at[:, i].set(n), out, new)

  first = (jnp.zeros((), jnp.int32), state, out)
  _, state, out = jax.lax.while_loop(lambda c: (c[0] < new_tokens) & ~c[1].done.all(), body, first)
  return Completion(*out, state.done)


def stop_table(sequences):
  """Returns int32[n,w]: token sequences left-padded with -1; an impossible one where there are none."""
  sequences = [list(s) for s in sequences] or [[2**30]]  # no token has this id
  width = max(map(len, sequences))
  if not min(map(len, sequences)):
    raise BadInput('a stop sequence is empty: leave it out')
  return np.array([[-1] * (width - len(s)) + s for s in sequences], np.int32)


def pad_prompts(prompts, *, limit, pad, multiple=16):
  """Returns (tokens int32[B,T], lengths int32[B]): T is rounded up, so that few widths are ever compiled.

  limit: the longest prompt allowed, tokens. Raises: BadInput naming the prompt that is empty or too long.
  """
  for i, p in enumerate(prompts):
    if len(p) > limit:
      raise BadInput(
        f'prompt {i} has {len(p)} tokens and the cache has room for {limit} besides the new tokens: '
        'shorten it, or ask for fewer new tokens'
      )
    if not len(p):
      raise BadInput(f'prompt {i} is empty and this tokenizer has no BOS to start from: give it a token')
  width = min(-(-max(map(len, prompts)) // multiple) * multiple, limit)
  tokens = np.full((len(prompts), width), pad, np.int32)
  for row, p in zip(tokens, prompts):
    row[: len(p)] = p
  return tokens, np.array([len(p) for p in prompts], np.int32)


def row_keys(seeds):
  """Returns key[B] from a seed per row."""
  return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


__all__ = [
  'Completion', 'Sampling', 'State', 'decode_one', 'generate', 'pad_prompts', 'prefill', 'row_keys', 'stop_table',
]  # fmt: skip
