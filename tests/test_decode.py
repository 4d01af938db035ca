"""Cached decode is the full forward, row by row, whatever surrounds the row."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FAMILIES, VOCAB, close, model, sequence, weights

from llmstack import sharding
from llmstack.errors import BadInput
from llmstack.infer import decode
from llmstack.infer.sampling import Sampling
from llmstack.model import allocate, forward, ready, unembed

CASES = [*((f, {}) for f in FAMILIES), ('llama_tiny', dict(windows=(5, 0))), ('gpt2_tiny', dict(windows=(7,)))]
LENGTHS = np.array([3, 11, 8], np.int32)
PROMPTS = sequence(3, 11, seed=3)[0]
NONE = decode.stop_table([])


def scored(cfg, params, tokens, lengths, new_tokens):
  """Returns float32[B,new_tokens,V]: log-probs of what follows each prompt, by one uncached forward pass.

  tokens: int32[B,T] whole rows, prompt and completion, right-padded: causal, so the padding is harmless.
  """

  @jax.jit
  def full(params, tokens):
    at = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return jax.nn.log_softmax(unembed(cfg, params, forward(cfg, params, tokens, at, at * 0 + 1)[0]))

  rows = np.asarray(lengths)[:, None] - 1 + np.arange(new_tokens)
  return np.take_along_axis(np.asarray(full(params, tokens)), rows[:, :, None], 1)


def whole(out):
  """Returns int32[B,T]: each prompt with its completion right behind it."""
  rows = [np.concatenate([p[:n], t]) for p, n, t in zip(PROMPTS, LENGTHS, out.tokens)]
  return np.stack([np.pad(r, (0, 31 - len(r))) for r in rows])


def run(cfg, params, prompts, lengths, seeds, *, new_tokens=20, stops=NONE, **how):
  return decode.generate(
    cfg, params, jnp.asarray(prompts), jnp.asarray(lengths), decode.row_keys(seeds),
    Sampling.of(len(prompts), VOCAB, **how), stops, new_tokens=new_tokens, pad=0,
  )  # fmt: skip


@pytest.mark.parametrize('name, changes', CASES)
def test_cached_decode_is_the_full_forward(name, changes):
  """A rolling slot is evicted too early, a padded prompt is attended to, positions or window are off by one: what is
  sampled is not what is scored (trl PR#3867, verl PR#2953)."""
  cfg = model(name, **changes)
  params = weights(cfg)
  out = run(cfg, params, PROMPTS, LENGTHS, [1, 2, 3], temperature=1.0)
  assert out.sampled.all() and not out.done.any()
  expected = np.take_along_axis(scored(cfg, params, whole(out), LENGTHS, 20), out.tokens[:, :, None], -1)[:, :, 0]
  np.testing.assert_allclose(out.logp, expected, atol=1e-5)
  np.testing.assert_allclose(out.sampling_logp, out.logp, atol=1e-5)  # temperature 1, nothing cut


@pytest.mark.parametrize(
  'name, changes', [c if c[0] == 'gemma_tiny' else pytest.param(*c, marks=pytest.mark.slow) for c in CASES]
)
def test_a_row_alone_is_the_row_in_a_batch(name, changes):
  """A draw depends on the batch size, the padding or the row's place (vLLM and TRL seeds do)."""
  cfg = model(name, **changes)
  params = weights(cfg)
  how = dict(temperature=0.9, top_p=0.95, top_k=30)
  together = run(cfg, params, PROMPTS, LENGTHS, [1, 2, 3], **how)
  for row, n in enumerate(LENGTHS):
    alone = run(cfg, params, PROMPTS[row : row + 1, :n], LENGTHS[row : row + 1], [row + 1], **how)
    np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
    np.testing.assert_allclose(alone.logp[0], together.logp[row], atol=1e-5)


def test_the_cache_takes_any_number_of_tokens_at_a_time():
  """Chunked prefill or a second turn overwrites keys that its own first queries still see."""
  cfg = model('gemma_tiny')
  params = weights(cfg)
  tokens, at, ones = sequence(2, 40)
  full, _ = forward(cfg, params, tokens, at, ones)
  cache, parts, start = allocate(cfg, 2, 40), [], 0
  step = jax.jit(functools.partial(forward, cfg))
  for width in (3, 13, 1, 1, 13, 9):
    window = (slice(None), slice(start, start + width))
    hidden, cache = step(params, tokens[window], at[window], ones[window], cache=cache)
    parts.append(hidden)
    start += width
  close(jnp.concatenate(parts, 1), full, 5e-6)
  assert [x['k'].shape[2] for x in cache] == [8, 8, 40]


@pytest.mark.parametrize('name', ['llama_tiny', 'gpt2_tiny'])
def test_parameters_made_ready_compute_the_same(name):
  """A weight is transposed with its axes mixed up, a norm is cast, or one row is decoded with other weights."""
  cfg = model(name, bias=True)
  params = weights(cfg)
  for rows, tolerance in ((1, 2e-6), (2, 0)):
    tokens, at, ones = sequence(rows, 9)
    made = ready(cfg, params, rows)
    assert ready(cfg, made, rows) is made and isinstance(made['layers'], list)
    assert ('wt' in made['layers'][0]['attn']['wq']) == (rows == 1)
    both = [unembed(cfg, p, forward(cfg, p, tokens, at, ones)[0]) for p in (params, made)]
    close(both[1], both[0], tolerance)
  half = dataclasses.replace(cfg, dtype='bfloat16')
  made = ready(half, params, 2)
  assert made['layers'][1]['mlp']['w_up']['w'].dtype == 'bfloat16' and made['final_norm']['scale'].dtype == 'float32'
  both = [unembed(half, p, forward(half, p, tokens, at, ones)[0]) for p in (params, made)]
  np.testing.assert_array_equal(*both)


def test_eos_and_stop_sequences_end_a_row_and_only_that_row():
  """A stop is matched across the prompt, matched one token late, or ends the whole batch."""
  cfg = model('llama_tiny')
  params = weights(cfg)
  free = run(cfg, params, PROMPTS, LENGTHS, [1, 2, 3], temperature=1.0)
  eos, pair = int(free.tokens[0, 4]), [int(t) for t in free.tokens[1, 6:8]]

  def end_of(row):
    """Returns how many tokens the row has once it stops at the first EOS or pair."""
    tokens = free.tokens[row].tolist()
    ends = [i + 1 for i, t in enumerate(tokens) if t == eos or tokens[max(i - 1, 0) : i + 1] == pair]
    return min(ends, default=20)

  ends = [end_of(row) for row in range(3)]
  out = run(cfg, params, PROMPTS, LENGTHS, [1, 2, 3], temperature=1.0, stops=decode.stop_table([[eos], pair]))
  assert ends[0] <= 5 and ends[1] <= 8
  for row, end in enumerate(ends):
    np.testing.assert_array_equal(out.tokens[row, :end], free.tokens[row, :end])
    assert out.sampled[row].tolist() == [True] * end + [False] * (20 - end)
    assert (out.tokens[row, end:] == 0).all() and (out.logp[row, end:] == 0).all()
    assert out.done[row] == (end < 20 or out.tokens[row, -1] == eos)


def test_a_stop_must_be_sampled():
  """The prompt's own last tokens complete a stop sequence."""
  cfg = model('llama_tiny')
  params = weights(cfg)
  free = run(cfg, params, PROMPTS[:1], LENGTHS[:1], [1], temperature=1.0)
  across = [int(PROMPTS[0, LENGTHS[0] - 1]), int(free.tokens[0, 0])]
  out = run(cfg, params, PROMPTS[:1], LENGTHS[:1], [1], temperature=1.0, stops=decode.stop_table([across]))
  np.testing.assert_array_equal(out.tokens[0, :5], free.tokens[0, :5])


def test_greedy_is_argmax_of_the_full_forward():
  """Greedy decode draws, or takes the second token."""
  cfg = model('llama_tiny')
  params = weights(cfg)
  out = run(cfg, params, PROMPTS, LENGTHS, [1, 2, 3], temperature=0.0)
  np.testing.assert_array_equal(scored(cfg, params, whole(out), LENGTHS, 20).argmax(-1), out.tokens)


def test_decode_on_a_mesh():
  """Generation needs gathered parameters, or draws other tokens on more devices."""
  cfg = model('llama_tiny', heads=8, kv_heads=4)
  params = weights(cfg)
  prompts, lengths = np.tile(PROMPTS[1:2], (4, 1)), np.tile(LENGTHS[1:2], 4)
  alone = run(cfg, params, prompts, lengths, [1, 2, 3, 4], temperature=1.0)
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  with jax.set_mesh(mesh):
    placed = jax.device_put(params, sharding.param_shardings(params, mesh))
    out = run(cfg, placed, prompts, lengths, [1, 2, 3, 4], temperature=1.0)
  np.testing.assert_array_equal(out.tokens, alone.tokens)
  np.testing.assert_allclose(out.logp, alone.logp, atol=2e-5)


def test_prompts_that_do_not_fit_are_refused():
  """A prompt longer than the cache wraps around and overwrites its own beginning."""
  with pytest.raises(BadInput, match='prompt 1 has 9 tokens and the cache has room for 8'):
    decode.pad_prompts([[1], list(range(9))], limit=8, pad=0)
  with pytest.raises(BadInput, match='prompt 0 is empty'):
    decode.pad_prompts([[]], limit=8, pad=0)
  with pytest.raises(BadInput, match='a stop sequence is empty'):
    decode.stop_table([[1], []])
  tokens, lengths = decode.pad_prompts([[1, 2], [3]], limit=40, pad=9)
  assert tokens.shape == (2, 16) and tokens[1, 1] == 9 and lengths.tolist() == [2, 1]


def test_parameters_are_arguments():
  """Parameters are baked into the compiled decode as constants: a trained policy would sample like the first one."""
  cfg = model('llama_tiny')
  a = run(cfg, weights(cfg, 0), PROMPTS, LENGTHS, [1, 2, 3], temperature=1.0)
  b = run(cfg, weights(cfg, 1), PROMPTS, LENGTHS, [1, 2, 3], temperature=1.0)
  assert (a.tokens != b.tokens).any()
