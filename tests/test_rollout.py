"""A rollout says row by row what decode.generate says, whatever shares its batch, and in whatever order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import VOCAB, model, weights

from llmstack import sharding
from llmstack.errors import BadInput
from llmstack.infer import decode
from llmstack.infer.rollout import rollout
from llmstack.infer.sampling import Sampling
from llmstack.model import Lora, combine, init_adapters
from llmstack.model.lora import ROLES

ONE = sharding.make_mesh(devices=jax.devices()[:1])
STOPS = decode.stop_table([[5], [7, 9]])  # a row has 20 tokens or so
SLOW = pytest.mark.slow
CFG = model('llama_tiny', layers=1, length=108)  # 54 slots of its cache, then all of them


def asked(n, samples):
  """Returns n prompts of 1 to 12 tokens, each as often as there are samples, and a seed for each row."""
  r = np.random.RandomState(0)
  prompts = [r.randint(0, VOCAB, 1 + int(r.randint(12))).tolist() for _ in range(n)]
  return [p for p in prompts for _ in range(samples)], np.arange(n * samples) + 7


def run(cfg, params, prompts, seeds, mesh=ONE, **how):
  how = dict(slots=4, refill=1, new_tokens=24, temperature=1.0, stops=STOPS, pad=0) | how
  return rollout(cfg, params, prompts, seeds, mesh=mesh, **how)


def same(got, cfg, params, prompts, seeds, *, temperature=1.0, new_tokens=24):
  """Asserts that decode.generate says the same, all rows in one batch."""
  tokens, lengths = decode.pad_prompts(prompts, limit=cfg.length - new_tokens, pad=0)
  want = decode.generate(
    cfg, params, jnp.asarray(tokens), jnp.asarray(lengths), decode.row_keys(seeds),
    Sampling.of(len(tokens), VOCAB, temperature=temperature), STOPS, new_tokens=new_tokens, pad=0,
  )  # fmt: skip
  np.testing.assert_array_equal(got.tokens, want.tokens)
  np.testing.assert_allclose(got.logp, want.logp, atol=1e-5)
  np.testing.assert_allclose(got.sampling_logp, want.sampling_logp, atol=1e-5)
  np.testing.assert_array_equal(got.lengths, np.asarray(want.sampled).sum(1))
  np.testing.assert_array_equal(got.done, want.done)
  return got


@pytest.mark.parametrize(
  'slots, refill', [(4, 3), *(pytest.param(*x, marks=SLOW) for x in ((4, 1), (8, 2), (16, 16), (1, 1)))]
)
def test_slots_and_refill_change_nothing(slots, refill):
  """A freed row keeps the cache, the stop tail or the count of the row before it; a draw depends on the place in the
  batch, or is one of the likeliest only (trl#6789, PR#7269, vllm#42259); a row is lost when the batch shrinks, or its
  keys when the cache grows."""
  params = weights(CFG)
  prompts, seeds = asked(5, 3)
  got = run(CFG, params, prompts, seeds, slots=slots, refill=refill, new_tokens=96)
  same(got, CFG, params, prompts, seeds, new_tokens=96)
  assert got.lengths.max() > 54 and got.lengths.min() < 5  # the cache grew, and rows were replaced


@SLOW
@pytest.mark.parametrize(
  'name, changes, temperature',
  [
    ('gemma_tiny', {}, 0.7), ('gemma_tiny', {}, 0.0), ('gpt2_tiny', {}, 1.0), ('gpt2_tiny', dict(windows=(7,)), 0.7),
    ('llama_tiny', dict(windows=(5, 0), tied=False), 1.0),
  ],
)  # fmt: skip
def test_every_model_and_temperature(name, changes, temperature):
  """A prompt's rolling slots land elsewhere in a longer cache; learned positions, a separate head or greedy decoding
  differ from those of generate."""
  cfg = model(name, **changes)
  prompts, seeds = asked(3, 3)
  got = run(cfg, weights(cfg), prompts, seeds, slots=2, temperature=temperature)
  same(got, cfg, weights(cfg), prompts, seeds, temperature=temperature)


@SLOW
def test_adapters():
  """Rollouts are those of the base, without the adapter that is trained."""
  cfg, lora = model('llama_tiny'), Lora(rank=3, alpha=6.0, rs=False, targets=ROLES, dropout=0.0)
  adapters = jax.tree.map(lambda x: x + 0.1, init_adapters(cfg, lora, jax.random.key(0)))
  params = combine(weights(cfg), adapters, lora)
  prompts, seeds = asked(3, 3)
  got = same(run(cfg, params, prompts, seeds), cfg, params, prompts, seeds)
  assert (got.tokens != run(cfg, weights(cfg), prompts, seeds).tokens).any()


@SLOW
def test_meshes(mesh):
  """Rows are refilled on one device only, or the programs disagree on where the cache lies."""
  cfg = model('llama_tiny', layers=1, heads=8, kv_heads=8)
  prompts, seeds = asked(4, 3)
  placed = jax.device_put(weights(cfg), sharding.param_shardings(weights(cfg), mesh))
  got = run(cfg, placed, prompts, seeds, mesh=mesh, slots=8, refill=3)
  same(got, cfg, weights(cfg), prompts, seeds)


def test_the_end_of_a_row():
  """A cut-off row gets an EOS that was never sampled (OpenRLHF#238), an answer of EOS alone is lost, or a prompt near
  the end of the window runs over it."""
  params, how = weights(CFG), dict(new_tokens=96, refill=3)
  prompts, seeds = [[1, 2, 3], [1, 2, 3], [1] * 16], np.arange(3)
  free = run(CFG, params, prompts, seeds, stops=np.full((2, 2), 2**30), **how)
  assert free.lengths.tolist() == [96, 96, 108 - 16] and not free.done.any() and free.logp[:, :92].all()
  assert free.tokens.max() < VOCAB  # no stop was put in place of what was drawn last
  first = int(free.tokens[1, 0])
  out = run(CFG, params, prompts, seeds, stops=np.array([[-1, first]] * 2), pad=40, **how)
  assert out.lengths[1] == 1 and out.done[1] and out.tokens[1].tolist() == [first] + [40] * 95
  for row, n in enumerate(out.lengths):
    np.testing.assert_array_equal(out.tokens[row, :n], free.tokens[row, :n])
    assert out.done[row] == (out.tokens[row, n - 1] == first) and (out.done[row] or n == free.lengths[row])


def test_bad_input():
  """A prompt that fills the window wraps around in the cache; slots that the mesh cannot split fail inside XLA."""
  cfg = model('llama_tiny')
  for message, prompts, changes in (
    ('prompt 1 has 64 tokens, which leaves nothing of model.length = 64', [[1], [1] * 64], {}),
    ('prompt 1 is empty', [[1], []], {}),
    ('there are 1 prompts and 2 seeds', [[1]], {}),
    ('refill = 5 must be between 1 and slots = 4', [[1], [1]], dict(refill=5)),
    ('slots = 4 must be a multiple of 8', [[1], [1]], dict(mesh=sharding.make_mesh(data=2, fsdp=4))),
    ('width = 2 must be between the longest prompt, 3', [[1], [1] * 3], dict(width=2)),
    ('temperature = -1', [[1], [1]], dict(temperature=-1)),
  ):
    with pytest.raises(BadInput, match=message):
      run(cfg, None, prompts, [0, 1], **changes)
  assert run(cfg, None, [], []).tokens.shape == (0, 24)
