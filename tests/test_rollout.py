"""A rollout says row by row what decode.generate says, whatever shares its batch, and in whatever order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import VOCAB, model, weights

from llmstack import sharding
from llmstack.infer import decode
from llmstack.infer.rollout import rollout
from llmstack.infer.sampling import Sampling

ONE = sharding.make_mesh(devices=jax.devices()[:1])
NEW = 40
EOS = decode.stop_table([[5], [11], [7, 9]])


def asked(n, samples, seed=0, longest=13):
  """Returns n prompts of 1 to `longest` tokens, each as often as there are samples."""
  r = np.random.RandomState(seed)
  prompts = [r.randint(0, VOCAB, 1 + int(r.randint(longest))).tolist() for _ in range(n)]
  return [p for p in prompts for _ in range(samples)]


def expected(cfg, params, prompts, seeds, temperature, stops=EOS, new_tokens=NEW):
  """Returns decode.generate of all rows in one batch."""
  tokens, lengths = decode.pad_prompts(prompts, limit=cfg.length - new_tokens, pad=0)
  return decode.generate(
    cfg, params, jnp.asarray(tokens), jnp.asarray(lengths), decode.row_keys(seeds),
    Sampling.of(len(tokens), VOCAB, temperature=temperature), stops, new_tokens=new_tokens, pad=0,
  )  # fmt: skip


def same(got, want):
  np.testing.assert_array_equal(got.tokens, want.tokens)
  np.testing.assert_allclose(got.logp, want.logp, atol=1e-5)
  np.testing.assert_allclose(got.sampling_logp, want.sampling_logp, atol=1e-5)
  np.testing.assert_array_equal(got.lengths, np.asarray(want.sampled).sum(1))
  np.testing.assert_array_equal(got.done, want.done)


def run(cfg, params, prompts, seeds, mesh=ONE, **how):
  how = dict(slots=4, refill=1, new_tokens=NEW, temperature=1.0, stops=EOS, pad=0) | how
  return rollout(cfg, params, prompts, seeds, mesh=mesh, **how)


@pytest.mark.parametrize('slots, refill', [(4, 1), (4, 3), (8, 2), (16, 16), (1, 1)])
def test_slots_and_refill_change_nothing(slots, refill):
  cfg = model('llama_tiny')
  params = weights(cfg)
  prompts = asked(5, 3)
  seeds = np.arange(len(prompts)) + 7
  same(run(cfg, params, prompts, seeds, slots=slots, refill=refill), expected(cfg, params, prompts, seeds, 1.0))


@pytest.mark.parametrize(
  'name, changes',
  [
    ('gpt2_tiny', {}),
    ('gemma_tiny', {}),
    ('llama_tiny', dict(windows=(5, 0))),
    ('gpt2_tiny', dict(windows=(7,))),
    ('llama_tiny', dict(tied=False)),
  ],
)
@pytest.mark.parametrize('temperature', [0.0, 0.7])
def test_models(name, changes, temperature):
  cfg = model(name, **changes)
  params = weights(cfg)
  prompts = asked(5, 3)
  seeds = np.arange(len(prompts)) + 7
  same(
    run(cfg, params, prompts, seeds, refill=2, temperature=temperature),
    expected(cfg, params, prompts, seeds, temperature),
  )


def test_mesh(mesh):
  cfg = model('llama_tiny', heads=8, kv_heads=8, vocab=48)
  params = weights(cfg)
  prompts = asked(7, 3)
  seeds = np.arange(len(prompts)) + 7
  placed = jax.device_put(params, sharding.param_shardings(params, mesh))
  same(run(cfg, placed, prompts, seeds, mesh=mesh, slots=16, refill=2), expected(cfg, params, prompts, seeds, 1.0))
