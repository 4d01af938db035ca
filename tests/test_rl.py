"""Learning from reward: one model for sampler and learner, one loss on every layout, and runs as a whole."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import FAMILIES, close, model, weights

from configs import rl as config_file
from llmstack import metrics, sharding
from llmstack import step as steps
from llmstack.checkpoint import digest
from llmstack.data import batch as batches
from llmstack.data import chat
from llmstack.data import prompts as asked
from llmstack.errors import BadInput, Diverged
from llmstack.infer.decode import stop_table
from llmstack.infer.rollout import Rollout, rollout
from llmstack.main import cli, load
from llmstack.model import Lora, combine, init_adapters, unembed, value_head
from llmstack.model import values as values_of
from llmstack.rewards import Rewards, row
from llmstack.tasks import online, rl, start, tune
from llmstack.tasks.reward import Scorer
from tests.test_tune import Run, write

ONE = {'devices': jax.devices()[:1]}
STOPS = stop_table([[3]])


class Bare:
  """What rl.Policy asks of a tuned model, without a workdir: parameters as they are, and a head on its own hidden."""

  critic, lora = 'none', None

  def __init__(self, cfg):
    self.cfg = cfg

  def policy(self, params):
    return {k: v for k, v in params.items() if k not in start.CRITIC}

  def hidden(self, params, frozen, batch, rng):
    return params, tune.hidden_of(self.cfg, params, batch, rng)

  worth = rl.Tuned.worth


def sampled(cfg, params, *, prompts=4, samples=2, temperature=1.0, new_tokens=9, mesh=None, rewards=None, stops=STOPS):
  """Returns a Sampled of ragged prompts; rewards: float[Q], or a few different ones."""
  r = np.random.RandomState(1)
  ids = [r.randint(4, cfg.vocab, 2 + 3 * i).tolist() for i in range(prompts) for _ in range(1)]
  ids = [p for p in ids for _ in range(samples)]
  out = rollout(
    cfg, params, ids, online.seeds(0, 0, 0, len(ids)), mesh=mesh or sharding.make_mesh(**ONE), slots=8, refill=2,
    new_tokens=new_tokens, temperature=temperature, stops=stops, pad=0,
  )  # fmt: skip
  total = np.float32(r.randn(len(ids)) if rewards is None else rewards)
  scored = Rewards({'all': (1.0, lambda p, c, i: total)})(ids, [''] * len(ids), [{}] * len(ids))
  return online.Sampled(ids, out, [''] * len(ids), scored, np.isfinite(total), np.zeros(len(ids), np.float32))


def settings(kind='grpo', **changes):
  """Returns the config of configs/rl.py:world-KIND for rows of 48 tokens."""
  config = load(f'{os.path.dirname(config_file.__file__)}/rl.py:world-{kind}')
  rows = 4 if kind == 'online_dpo' else 8
  small = {'data.length': 48, 'rollout.prompts': 4, 'rollout.samples': 2, 'data.batch': rows}
  with config.unlocked():
    config.update_from_flattened_dict(small | changes)
  return config


# --- one model ---


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('temperature', [0.7, 1.0, 1.3])
@pytest.mark.parametrize('packed', [False, True])
def test_sampler_and_learner_are_one_model(family, temperature, packed):
  """A second engine, a forgotten temperature (trl#4159, OpenRLHF PR#853), padding that shifts positions (trl#469,
  #6800, NeMo-Aligner#68), a sliding window or packing that one of the two sees otherwise, a draw from another
  distribution than is scored (trl#235, #925, #6789): the ratio is not 1 (trl PR#3867, #4772, verl PR#2953, #2996).

  Gemma: windows, soft caps, grouped queries; GPT-2: learned positions.
  """
  cfg = model(family, length=48)
  params = weights(cfg)
  got = sampled(cfg, params, temperature=temperature)
  batch, _ = online.lay_out(got, width=47, packed=packed, multiple=2)
  hidden = Bare(cfg).hidden(params, {}, batch, None)[1]
  logp = rl.logps(cfg, params, hidden, batch, temperature=temperature, chunk=None)
  assert float(rl.gap(logp, batch['old_logp'], batch['mask'])) < 1e-4
  assert batch['mask'].sum() == got.out.lengths.sum()
  if packed:
    assert len(batch['tokens']) < len(got.prompts)
  other = rl.logps(cfg, params, hidden, batch, temperature=1.1 * temperature, chunk=None)
  assert float(rl.gap(other, batch['old_logp'], batch['mask'])) > 1e-2


def test_a_prompt_that_fills_the_window():
  """The last token that fits is drawn at a position that the learner cuts off, or lacks (learned positions)."""
  cfg = model('gpt2_tiny', length=20)
  got = sampled(cfg, weights(cfg), new_tokens=9)  # the longest prompt has 11
  sizes = [len(p) + n for p, n in zip(got.prompts, got.out.lengths)]
  assert max(len(p) for p in got.prompts) + 9 == 20
  batch, _ = online.lay_out(got, width=20, packed=False, multiple=1)
  logp = rl.logps(
    cfg, weights(cfg), Bare(cfg).hidden(weights(cfg), {}, batch, None)[1], batch, temperature=1.0, chunk=None
  )
  assert float(rl.gap(logp, batch['old_logp'], batch['mask'])) < 1e-4, sizes


def test_sampler_merges_what_the_learner_adapts():
  """The sampler forgets the adapter, or merges it twice."""
  cfg = model('gemma_tiny', length=48)
  lora = Lora(rank=2, alpha=8.0, rs=False, targets=('wq', 'wv', 'w_up', 'w_down'), dropout=0.0)
  noise = lambda x: 0.3 * jax.random.normal(jax.random.key(1), x.shape)  # noqa: E731
  adapters = jax.tree.map(noise, init_adapters(cfg, lora, jax.random.key(0)))
  whole = combine(weights(cfg), adapters, lora, None)
  batch, _ = online.lay_out(sampled(cfg, whole), width=47, packed=True, multiple=1)
  for params, small in ((whole, True), (weights(cfg), False)):
    hidden = Bare(cfg).hidden(params, {}, batch, None)[1]
    logp = rl.logps(cfg, params, hidden, batch, temperature=1.0, chunk=None)
    assert (float(rl.gap(logp, batch['old_logp'], batch['mask'])) < 1e-4) == small


def test_bfloat16_differs_by_more():
  """The bound of float32 is asked of bfloat16, whose cached and packed attention round differently. Largest of four
  prompts here: 0.11; rollout.gate is to be set by what a first step says."""
  cfg = model('llama_tiny', length=48, dtype='bfloat16')
  batch, _ = online.lay_out(sampled(cfg, weights(cfg), new_tokens=20), width=47, packed=False, multiple=1)
  hidden = Bare(cfg).hidden(weights(cfg), {}, batch, None)[1]
  logp = rl.logps(cfg, weights(cfg), hidden, batch, temperature=1.0, chunk=None)
  assert 1e-4 < float(rl.gap(logp, batch['old_logp'], batch['mask'])) < 0.3


# --- one loss ---

LAYOUTS = {  # of all others the loss is a composition of these; tests/test_policy.py has each
  'grpo': {'kl.placement': 'loss', 'kl.gradient': 'ratio', 'objective.entropy': 0.01}, 'dr_grpo': {}, 'dapo': {},
  'gspo': {}, 'rloo': {}, 'sapo': {}, 'ppo': {'objective.old': 'learner', 'objective.importance': 2.0},
}  # fmt: skip


def made(kind, got, tuned, params, frozen, *, packed, multiple=4, width=47, **changes):
  """Returns (rl.Policy, batch with advantages) of a rollout."""
  how = {'data.packing': 'best_fit' if packed else 'padded', 'data.length': width} | changes
  if kind == 'dr_grpo':
    how['objective.divisor'] = 9
  config = settings(kind, **how)
  learner = rl.Policy(config, tuned)
  batch, places = learner.lay_out(got, width, multiple=multiple)
  known = {k: np.asarray(v) for k, v in learner.read(params, frozen, batch).items()} if learner.reads else {}
  return learner, learner.prepare(batch, places, got, known, 0.3, online.Scale())[0]


@pytest.mark.parametrize(
  'kind', [k if k in ('grpo', 'rloo', 'ppo') else pytest.param(k, marks=pytest.mark.slow) for k in LAYOUTS]
)
def test_layout_changes_nothing(kind):
  """Padding, packing, microbatches or devices change what is learnt: a mean of means (trl#3021, #5619, verl#7200,
  ms-swift#10117), a divisor that is the padded width (verl#3741), a baseline of another row."""
  cfg = model('llama_tiny', length=64)
  tuned, params = Bare(cfg), weights(cfg)
  frozen = {'ref': weights(cfg, 1)}
  if kind == 'ppo':
    tuned.critic = 'shared'
    head = 0.3 * jax.random.normal(jax.random.key(2), value_head(cfg)['w'].shape)
    params = params | {'value_head': {'w': head}}
  got = sampled(cfg, tuned.policy(params), rewards=[1.0, 0, 2, -1, 3, np.nan, 0.5, 0.5])
  moved = jax.tree.map(lambda x: 1.02 * x, params)  # as after some updates: ratios are not 1
  found = {}
  for name, packed, width, parts, shape in (
    ('plain', False, 47, 1, None), ('packed, wider, in parts, on eight devices', True, 63, 2, (2, 2, 2)),
  ):  # fmt: skip
    mesh = sharding.make_mesh(**ONE) if shape is None else sharding.make_mesh(data=2, fsdp=2, tensor=2)
    learner, batch = made(kind, got, tuned, params, frozen, packed=packed, width=width, multiple=8, **LAYOUTS[kind])
    with jax.set_mesh(mesh):
      where = sharding.param_shardings(moved, mesh)
      args = jax.device_put(moved, where), jax.tree.map(jnp.asarray, frozen)
      place = sharding.place(batch, mesh, batches.letters)
      run = jax.jit(lambda p, f, b, n=parts, l=learner: steps.accumulate(l.loss, p, f, b, jax.random.key(0), n))
      loss, measured, grads = run(*args, place)
      found[name] = float(loss), jax.device_get(grads)
  loss, grads = found['plain']
  assert abs(loss) > 1e-4
  scale = max(float(np.abs(x).max()) for x in jax.tree.leaves(grads))
  for name, (other, more) in found.items():
    assert abs(other - loss) < 1e-5 * max(1, abs(loss)), name
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(more), strict=True):
      assert np.abs(a - b).max() < 1e-4 * scale, name


@pytest.mark.slow
def test_layout_of_pairs_changes_nothing():
  """Online DPO: padding, microbatches or devices change what is learnt of a pair (trl#5619, PR#6024)."""
  cfg = model('llama_tiny', length=64)
  got = sampled(cfg, weights(cfg), rewards=[1.0, 0, 2, -1, 3, np.nan, 0.5, 0.5])
  lora = SimpleNamespace(cfg=cfg, lora=None, hidden=Bare(cfg).hidden, policy=Bare(cfg).policy)
  learner, moved = rl.Pairs(settings('online_dpo'), lora), weights(cfg, 1)
  found = []
  for width, parts, mesh in ((47, 1, sharding.make_mesh(**ONE)), (63, 2, sharding.make_mesh(data=2, fsdp=2, tensor=2))):
    batch, _ = learner.lay_out(got, width, multiple=8)
    with jax.set_mesh(mesh):
      args = jax.device_put(moved, sharding.param_shardings(moved, mesh)), {'ref': weights(cfg)}
      run = jax.jit(lambda p, f, b, n=parts: steps.accumulate(learner.loss, p, f, b, jax.random.key(0), n))
      loss, _, grads = run(*args, sharding.place(batch, mesh, batches.letters))
      found.append((float(loss), jax.device_get(grads)))
  (loss, grads), (other, more) = found
  assert abs(loss - np.log(2)) > 1e-3 and abs(other - loss) < 1e-5 * abs(loss)
  scale = max(float(np.abs(x).max()) for x in jax.tree.leaves(grads))
  for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(more), strict=True):
    assert np.abs(a - b).max() < 1e-4 * scale


def test_failed_rewards_teach_nothing_and_truncation_may():
  """A NaN reward reaches the loss (trl PR#5598), a masked completion the denominator (trl PR#6439), or a cut-off one is
  given an EOS that was never drawn (OpenRLHF#238)."""
  cfg = model('llama_tiny', length=48)
  got = sampled(cfg, weights(cfg), rewards=[1.0, 0, np.nan, np.nan, 3, np.nan, 0.5, 0.5])
  assert not got.out.done.all()
  for mask, kept in ((False, got.valid), (True, got.valid & got.out.done)):
    _, batch = made('grpo', got, Bare(cfg), weights(cfg), {}, packed=False,
                    **{'objective.mask_truncated': mask, 'kl.placement': 'none'})  # fmt: skip
    assert np.isfinite(batch['advantages']).all()
    assert not batch['advantages'][4].any()  # the other of its group failed: it is its group's mean, and not half of it
    assert ((batch['mask'].sum(1) > 0) == kept).all() and batch['valid'].sum() == kept.sum()
  for i, (n, done) in enumerate(zip(got.out.lengths, got.out.done)):
    assert (got.out.tokens[i, n - 1] == 3) == done


def test_kl_is_where_it_is_said_to_be():
  """KL in reward and loss at once, or silently nowhere (OpenRLHF#768, #777, slime#397)."""
  cfg = model('llama_tiny', length=48)
  got, frozen = sampled(cfg, weights(cfg)), {'ref': weights(cfg, 1)}
  of = {}
  for where in ('none', 'watch', 'reward', 'loss'):
    how = {'kl.placement': where, 'kl.estimator': 'k1', 'kl.gradient': 'ratio'}
    learner, batch = made('dr_grpo', got, Bare(cfg), weights(cfg), frozen, packed=False, **how)
    assert learner.reads == (where != 'none')
    sums, _, _ = learner.loss(weights(cfg), frozen, batch, None)
    of[where] = batch['advantages'], 'kl' in sums
  assert [of[k][1] for k in of] == [False, False, False, True]
  close(of['none'][0], of['watch'][0], 0)
  close(of['none'][0], of['loss'][0], 0)
  assert np.abs(of['reward'][0] - of['none'][0]).max() > 0.1


def test_one_temperature():
  """The reference or the entropy is that of temperature 1 and the policy's is not (trl#4159, OpenRLHF PR#1319, miles
  PR#1345): a policy that is its own reference has a KL, and the bonus is another distribution's."""
  cfg = model('llama_tiny', length=48)
  tuned, params, frozen = Bare(cfg), weights(cfg), {'ref': weights(cfg)}
  got = sampled(cfg, params, temperature=0.7)
  how = {'rollout.temperature': 0.7, 'objective.old': 'learner', 'objective.entropy': 0.1}
  learner, batch = made('dapo', got, tuned, params, frozen, packed=False, **how)
  known = learner.read(params, frozen, batch)
  close(known['ref_logp'], known['logp'], 1e-6)
  sums, _, _ = learner.loss(params, frozen, batch, None)
  logp = jax.nn.log_softmax(unembed(cfg, params, tuned.hidden(params, frozen, batch, None)[1]) / 0.7)
  close(sums['entropy'], 0.1 * np.sum(np.sum(np.exp(logp) * logp, -1) * batch['mask']), 1e-4)


def update(learner, frozen):
  """Returns (params, batch) -> (loss, norm of its gradient), finite: one update's, without the optimiser."""
  run = jax.jit(lambda p, b: steps.accumulate(learner.loss, p, frozen, b, jax.random.key(0), 1))

  def of(params, batch):
    loss, _, grads = run(params, batch)
    assert np.isfinite(loss) and all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    return float(loss), float(optax.tree.norm(grads))

  return of


def test_equal_rewards_and_a_kl():
  """Whether a group of equal rewards still has the KL's gradient is nobody's choice (trl PR#5598, #5775): it has, where
  the KL is in the loss, and rollout.dynamic leaves such groups out; in the reward a KL makes them unequal."""
  cfg = model('llama_tiny', length=48)
  params, frozen = weights(cfg), {'ref': weights(cfg, 1)}
  got = sampled(cfg, params, rewards=np.full(8, 3.0))
  for where in ('watch', 'loss', 'reward'):
    learner, batch = made('dr_grpo', got, Bare(cfg), params, frozen, packed=False, **{'kl.placement': where})
    assert batch['valid'].sum() == 8 and np.any(batch['advantages']) == (where == 'reward')
    if where != 'reward':
      norm = update(learner, frozen)(params, batch)[1]
      assert (norm > 0.1) if where == 'loss' else (norm == 0)


@pytest.mark.parametrize('kind', ['grpo', 'ppo'])
def test_an_end_alone_and_no_end_at_all(kind):
  """An answer that is its EOS and nothing else is lost, or divides by 0; so does a batch in which all were cut off and
  none is to be learnt from (trl PR#6439, PR#3248), which then teaches nothing, exactly."""
  cfg = model('llama_tiny', length=48)
  tuned, params = Bare(cfg), weights(cfg)
  if kind == 'ppo':
    tuned.critic, params = 'shared', params | {'value_head': {'w': 0.1 + value_head(cfg)['w']}}
  of = None
  for learnt, stops in ((8, [[i] for i in range(cfg.vocab)]), (0, [[2**30]])):
    got = sampled(cfg, tuned.policy(params), stops=stop_table(stops))
    assert got.out.lengths.tolist() == [1 if learnt else 9] * 8 and (got.out.done == (learnt > 0)).all()
    learner, batch = made(kind, got, tuned, params, {}, packed=False, multiple=1, **{
      'objective.mask_truncated': True, 'kl.placement': 'none', 'kl.estimator': 'k1'})  # fmt: skip
    assert batch['mask'].sum() == learnt and not (batch['mask'] * (batch['targets'] != got.out.tokens[:, :1])).any()
    of = of or update(learner, {})
    loss, norm = of(params, batch)
    assert (norm > 1e-3) if learnt else (loss == 0 == norm)


# --- the pieces ---


def test_seeds():
  """Two rows of a rollout, two rounds or two steps draw the same numbers; or a resumed run draws others."""
  every = np.concatenate([online.seeds(s, k, t, 64) for s in (0, 1) for k in (0, 1, 2) for t in (-1, 0, 1)])
  assert len(np.unique(every)) == every.size
  assert online.seeds(0, 3, 1, 2).tolist() == online.seeds(0, 3, 1, 5)[:2].tolist()


def test_seeds_are_those_of_older_runs():
  """Another hash, and every run that is resumed by a newer version draws other completions."""
  assert online.seeds(0, 0, 0, 3).tolist() == [3977569025, 2705101200, 1371715701]
  assert online.seeds(7, 2, 1, 2).tolist() == [3520393328, 269259039]


@pytest.mark.parametrize('packed', [False, True])
def test_lay_out_by_hand(packed):
  """A mask off by one learns the prompt's last token or loses the end of turn; a row's log-probs land on another's;
  padding behind a completion is scored (trl#1005, #1161)."""
  ids = [[10, 11], [20, 21, 22]]
  tokens = np.array([[12, 13, 99], [23, 99, 99]], np.int32)
  logp = np.array([[-1.0, -2, -9], [-3, -9, -9]], np.float32)
  out = SimpleNamespace(tokens=tokens, lengths=np.array([2, 1]), sampling_logp=logp)
  batch, places = online.lay_out(SimpleNamespace(prompts=ids, out=out), width=7, packed=packed, multiple=2)
  assert batch['tokens'].shape == (2, 7) and not np.isin(batch['tokens'], 99).any()
  assert batch['mask'].sum() == 3
  for (at, columns, segment), said, logps in zip(places, [[12, 13], [23]], [[-1, -2], [-3]]):
    assert batch['targets'][at, columns].tolist() == said and batch['old_logp'][at, columns].tolist() == logps
    assert (batch['segments'][at, columns] == segment).all() and (batch['mask'][at, columns] == 1).all()
  assert len({at for at, *_ in places}) == (1 if packed else 2)
  shown = online.spread(places, [5.0, -7.0], batch)
  assert sorted(shown[shown != 0].tolist()) == [-7, 5, 5] and ((shown != 0) == (batch['mask'] != 0)).all()


def test_pairs_are_the_best_and_the_worst():
  """A prompt with one known reward, or equal ones, is learnt as a pair; a NaN is taken for the worst."""
  r = np.float32([1, 3, 2, np.nan, 4, np.nan, np.nan, np.nan, np.nan, 5, 5, 5])
  n = len(r)
  tokens = np.arange(100, 100 + n, dtype=np.int32)[:, None]
  length, logp = np.ones(n, np.int32), np.zeros((n, 1), np.float32)
  out = Rollout(tokens, logp, logp, length, np.ones(n, bool))
  scored = Rewards({'all': (1.0, lambda p, c, i: r)})([0] * n, [''] * n, [{}] * n)
  got = online.Sampled([[7, 8]] * n, out, [''] * n, scored, np.isfinite(r), np.zeros(n, np.float32))
  one = SimpleNamespace(samples=3)
  batch, _ = rl.Pairs.lay_out(one, got, 5, multiple=8)
  assert batch['valid'].ravel().tolist() == [1, 0, 0, 0] + [0] * 4
  assert batch['targets'][0, :, 1].tolist() == [101, 100]
  r[3:5] = 2, 4  # a NaN that counts as 0 would be the worst
  got = got._replace(scored=scored._replace(total=r), valid=np.isfinite(r))
  batch, _ = rl.Pairs.lay_out(one, got, 5, multiple=8)
  assert batch['valid'].ravel().tolist() == [1, 1, 0, 0] + [0] * 4
  assert batch['targets'][1, :, 1].tolist() == [104, 103]


def test_stream_goes_on():
  """Prompts depend on how many are taken at a time; an epoch leaves one out or has one twice."""
  stream = online.Stream(online.Listed(list('abcdefg'), 'f'), asked.order(7, 3), 3, 2)
  whole = stream.take(0, 21)
  assert whole == [x for i in range(0, 21, 3) for x in stream.take(i, 3)]
  assert (
    all(sorted(whole[i : i + 7]) == list('abcdefg') for i in (0, 7, 14))
    and len({*map(str, [whole[:7], whole[7:14]])}) == 2
  )
  for name, other in (('prompts', ('g', 3, 2)), ('seed', ('f', 4, 2)), ('batch', ('f', 3, 4))):
    with pytest.raises(BadInput, match=f'  {name}: '):
      online.Stream(online.Listed([], other[0]), None, *other[1:]).check(stream.position(0))


def test_scale():
  """The running spread is another one than numpy's, or does not survive the checkpoint."""
  r = np.random.RandomState(0).randn(40).astype(np.float32)
  scale = online.Scale()
  scale(r[:20])
  scale = online.Scale(json.loads(json.dumps(scale.state())))
  got = scale(np.append(r[20:], np.float32(np.nan)))
  close(got[:-1], (r[20:] - r.mean()) / (r.std(ddof=1) + 1e-4), 1e-5)
  assert np.isnan(got[-1]) and scale.n == 40


@pytest.mark.parametrize(
  'gold,agreement,fell',
  [(-0.05, 0, 'gold'), (0.05, 0, None), (0, 0, None), (-1e-4, 0, None), (0, -0.05, 'agreement'), (0.05, -0.05, None)],
)
def test_alarm(gold, agreement, fell):
  """The reward is exploited and nobody says so; noise alone sounds the alarm; or answers that are all good do."""
  r, t = np.random.RandomState(0), np.arange(40)
  history = {'reward': 0.05 * t + 0.1 * r.randn(40)}
  history |= {'gold': gold * t + 0.1 * r.randn(40), 'agreement': agreement * t + 0.1 * r.randn(40)}
  assert online.diverging(history, 20) == fell
  assert not online.diverging({name: x[:39] for name, x in history.items()}, 20)


def test_agreement_by_hand():
  """Ties of the gold reward count as agreement, a failed reward as disagreement, or pairs go across prompts."""
  nan = np.nan
  proxy, gold = np.float32([1, 2, 3, 5, 5, nan, 0, 0, 9]), np.float32([0, 1, 1, 1, 0, 7, 4, 4, 4])
  # (1, 2) and (1, 3) of the first agree; of the second (5, 5) is a tie; the third has one gold reward.
  assert online.agreement(proxy, gold, 3) == pytest.approx((1 + 1 + 0.5) / 3)
  assert online.agreement(proxy, -gold, 3) == pytest.approx(0.5 / 3)
  assert math.isnan(online.agreement(proxy[6:], gold[6:], 3))


def test_gate_stops():
  """Sampler and learner drift apart and training goes on: every ratio is wrong by as much."""
  one = SimpleNamespace(config=SimpleNamespace(rollout=SimpleNamespace(gate=1e-4)))
  online.Online.gate(one, 9e-5, 3)
  for gap in (2e-4, float('nan')):
    with pytest.raises(Diverged, match='step 4: the log-prob'):
      online.Online.gate(one, gap, 3)


# --- whole runs ---


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('rl')
  write(path / 'asked.jsonl', [{'prompt': f'cat {i}?', 'answer': str(i % 7)} for i in range(16)])
  write(path / 'held.jsonl', [{'prompt': f'dog {i}?', 'answer': str(i % 7)} for i in range(4)])
  write(path / 'long.jsonl', [{'prompt': 'cat ' * 60, 'answer': '1'}])
  assert Run(path).base() == 0
  return path


@pytest.fixture(scope='module')
def scorer(folder):
  """A reward model of random weights, with the base's tokens."""
  base = start.Trained(str(folder / 'base'))
  head = jax.random.normal(jax.random.key(0), value_head(base.cfg)['w'].shape)
  meta = {k: base.meta[k] for k in ('model', 'config', 'tokenizer')} | {'kind': 'reward', 'template': 'llmstack'}
  params = base.params(sharding.make_mesh(**ONE)) | {'value_head': {'w': head}}
  start.save_parameters(str(folder / 'scorer'), params, meta)


REWARD = """
import math, os, signal, time

def share(prompt, completion, info):
  return sum(i % 2 for i in info['ids']) / len(info['ids'])

def same(prompt, completion, info):
  return 2.0

def rare(prompt, completion, info):
  return float(info['ids'][0] % 2)

def raises(prompt, completion, info):
  if info['ids'][0] % 2:
    raise KeyError('no such thing')
  return share(prompt, completion, info)

def hangs(prompt, completion, info):
  if info['answer'] == '1':
    time.sleep(60)
  return share(prompt, completion, info)

def nan(prompt, completion, info):
  return math.nan if info['answer'] == '2' else math.inf if info['answer'] == '3' else share(prompt, completion, info)

def text(prompt, completion, info):
  return 'good'

def kills(prompt, completion, info):
  path = os.environ['COUNT']
  with open(path, 'a') as f:
    f.write('.')
  if os.path.getsize(path) == int(os.environ['DIES']):
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)
  return share(prompt, completion, info)
"""


@pytest.fixture(scope='module')
def own(folder):
  (folder / 'own_rewards.py').write_text(REWARD)
  sys.path.append(str(folder))
  yield
  sys.path.remove(str(folder))


PPO = {
  'critic.kind': 'shared', 'kl.placement': 'reward', 'kl.estimator': 'k1', 'kl.beta': 0.3, 'objective.epochs': 2,
  'objective.whiten': True, 'objective.aggregate': 'token',
}  # fmt: skip


class Learn(Run):
  """`llmstack --config configs/rl.py:world-KIND` on a tiny base; a completion is worth its share of odd ids."""

  def __call__(self, kind, workdir, **more):
    more = PPO | more if kind == 'ppo' else more
    size = 'grpo' if kind == 'ppo' else kind
    files = {'sums': 'asked.jsonl', 'held_out': 'held.jsonl'}
    how = {f'data.sources.{n}.files': repr((str(self.folder / f),)) for n, f in files.items()}
    how |= {'rewards.answer.kind': 'own_rewards:share', 'train.steps': 2, 'eval.prompts': '()'}
    how |= {
      'rollout.prompts': 8 if kind == 'online_dpo' else 4,
      'rollout.samples': 2,
      'rollout.new_tokens': 6,
      'rollout.slots': 8,
    }
    how |= {
      'rollout.refill': 4, 'data.length': 32, 'data.batch': 8, 'eval.new_tokens': 6, 'data.packing': 'padded',
    }  # fmt: skip
    return super().__call__(f'configs/rl.py:world-{size}', workdir, **how | more)


@pytest.fixture
def run(folder, own, capsys):
  return Learn(folder, capsys)


def values(run, workdir, kind='train'):
  """Returns the rows of a kind without what depends on the clock."""
  clock = ('time', 'tokens_per_s', 'input_share', 'first_step_s', 'rollout_s', 'update_s')
  return [{k: v for k, v in r.items() if k not in clock} for r in run.logged(workdir, kind)]


def params(run, workdir):
  return digest(start.Trained(str(run.folder / workdir)).own_params(sharding.make_mesh(**ONE)))


@pytest.mark.parametrize('kind', config_file.ALGORITHMS)
def test_every_algorithm_has_a_loss(kind):
  """An algorithm's settings do not fit together, which its first user finds out."""
  config = settings(kind, **{'checkpoint.init_from': 'somewhere'})
  rl.check(config)
  cfg = model('llama_tiny', length=48)
  tuned = Bare(cfg)
  tuned.critic = config.critic.kind
  learner = (rl.Pairs if kind == 'online_dpo' else rl.Policy)(config, tuned)
  whole = weights(cfg) | ({'value_head': value_head(cfg)} if tuned.critic == 'shared' else {})
  batch = learner.empty(8, 47)
  sums, weights_of, measured = jax.eval_shape(lambda: learner.loss(whole, {'ref': weights(cfg)}, batch, None))
  assert set(sums) == set(weights_of) and 'gate' in measured and measured['gate'].shape == ()


STATEFUL = {
  'ppo': {
    'rollout.prompts': 8,  # 16 rows: two minibatches, twice
    'kl.target': 0.1,
    'kl.horizon': 50,
    'objective.scale_rewards': True,
    'rollout.gold': 'answer',
  },
  'dapo': {'rollout.rounds': 8, 'rewards.answer.kind': 'own_rewards:rare'},
}


@pytest.mark.parametrize('kind', STATEFUL)
def test_resumed_is_never_stopped(run, kind):
  """A resumed run forgets which prompts it took, the KL's coefficient or the scale of rewards, draws anew, or deals its
  minibatches otherwise. And before the first update the KL is 0, not negative (trl#235, #925, #1005, #1161, #469)."""
  more = STATEFUL[kind] | {'checkpoint.every': 2, 'checkpoint.keep': 2, 'optim.schedule': 'constant'}
  assert run(kind, f'{kind}-whole', **more | {'train.steps': 4}) == 0
  shutil.copytree(run.folder / f'{kind}-whole', run.folder / f'{kind}-parts')
  shutil.rmtree(run.folder / f'{kind}-parts/checkpoints/4')  # as if it had been killed on the way there
  assert start.Trained(str(run.folder / f'{kind}-parts')).step == 2
  assert run(kind, f'{kind}-parts', **more | {'train.steps': 4}) == 0
  whole, parts = values(run, f'{kind}-whole'), values(run, f'{kind}-parts')
  assert len(whole) == 4 and whole == parts
  assert params(run, f'{kind}-whole') == params(run, f'{kind}-parts')
  told = start.Trained(str(run.folder / f'{kind}-whole')).meta['online']
  if kind == 'ppo':
    assert told['beta'] != 0.3 and told['scale'][0] == 64 and told['taken'] == 32
    assert abs(whole[0]['kl']) < 1e-4 < abs(whole[-1]['kl'])  # the policy began as the reference
  else:
    assert told['taken'] > 16 and any(r['dropped'] for r in whole)  # others were drawn in place of equal groups
  assert all(r['gate'] < 1e-4 and abs(r['old_kl']) < 1e-2 for r in whole)


def test_first_ratio_is_one_and_the_loss_is_not_the_gradient(run):
  """ "loss is 0" is taken for a bug on-policy (trl#2703, open-r1#239); the gradient says whether anything is learnt."""
  assert run('grpo', 'first', **{'train.steps': 1, 'optim.warmup': 0}) == 0
  (row,) = run.logged('first')
  assert abs(row['ratio'] - 1) < 1e-4 and row['old_kl'] < 1e-8 and abs(row['loss']) < 1e-5 < 1e-2 < row['grad_norm']


@pytest.mark.parametrize(
  'kind,more',
  [
    ('grpo', {'lora.rank': 2, 'kl.placement': 'loss', 'rollout.temperature': 0.7}), ('online_dpo', {}),
    ('ppo', {'critic.kind': 'separate', 'critic.workdir': 'scorer', 'rollout.temperature': 1.3}), ('remax', {}),
  ],
)  # fmt: skip
def test_runs_and_can_be_used(run, scorer, kind, more):
  """Sampler and learner part at a temperature other than 1 (trl#4159), the reference of online DPO is not the policy at
  first (trl#744, #1962: ln 2), a critic that begins as a reward model does not, or is in the way of whoever samples
  from the policy, or tunes it."""
  where = f'{kind}-use'
  more = {k: run.folder / v if k == 'critic.workdir' else v for k, v in more.items()}
  assert run(kind, where, **more) == 0
  rows = run.logged(where)
  assert len(rows) == 2 and all(np.isfinite(r['loss']) and 0 < r['gate'] < 1e-4 for r in rows)
  # What the report makes seconds of, with tokens_per_s: those that were sampled, not the places of a batch.
  assert all(r['tokens_per_step'] == r['tokens'] for r in rows)
  if kind == 'online_dpo':
    assert abs(rows[0]['loss'] - np.log(2)) < 1e-6
  if kind == 'ppo':
    assert abs(rows[0]['value']) > 0.1  # a new head says 0
  trained, one = start.Trained(str(run.folder / where)), sharding.make_mesh(**ONE)
  whole = trained.params(one)
  assert not set(whole) & {'critic', 'value_head'}
  assert (trained.critic is None) == (kind != 'ppo')
  for config in ('sft', 'prefer'):
    config = load(f'{os.path.dirname(config_file.__file__)}/{config}.py:world')
    with config.unlocked():
      config.checkpoint.init_from, config.data.length = str(run.folder / where), 32
    tuned = tune.Tuned(config, SimpleNamespace(resumes=False, meta=None, check_model=lambda cfg: None))
    close(tuned.loaded(one), whole, 0)


@pytest.mark.slow
@pytest.mark.parametrize('critic', ['shared', 'separate'])
def test_a_critic_stays_behind(run, critic):
  """`llmstack` samples from, tunes and compares with what PPO left, through whole runs."""
  where = f'ppo-{critic}-behind'
  assert run('ppo', where, **{'critic.kind': critic}) == 0
  tuning, how = Run(run.folder), {'checkpoint.init_from': run.folder / where, 'train.steps': 1, 'optim.warmup': 0}
  said = [{'role': 'user', 'content': 'cat?'}, {'role': 'assistant', 'content': 'the mat'}]
  write(run.folder / 'chats.jsonl', [{'messages': [said[0] | {'content': f'cat {i}?'}, said[1]]} for i in range(16)])
  write(run.folder / 'text.jsonl', [{'text': f'the cat sat on {i}'} for i in range(16)])
  write(run.folder / 'pairs.jsonl', [{'prompt': f'cat {i}?', 'chosen': 'mat', 'rejected': 'no'} for i in range(16)])
  assert tuning.chats(f'{where}-sft', **how) == 0
  assert tuning.pairs(f'{where}-dpo', **how) == 0
  assert abs(run.logged(f'{where}-dpo')[0]['loss'] - np.log(2)) < 1e-6
  run.capsys.readouterr()
  cli(['llmstack', '--config', 'configs/sample.py', '--workdir', str(run.folder / where), '--config.new_tokens=4'])
  assert run.capsys.readouterr().out


@pytest.mark.parametrize(
  'kind,lr',
  [('grpo', 2e-2), *(pytest.param(*x, marks=pytest.mark.slow) for x in (('ppo', 2e-2), ('grpo', 0.0)))],
)
def test_learns(run, kind, lr):
  """The sign of the advantage, or of the loss, is wrong: what is worth less becomes likelier. Or chance, or anything
  but the updates, would do it: without a learning rate nothing is learnt."""
  more = {'train.steps': 6, 'optim.lr': lr, 'rollout.samples': 8, 'data.batch': 32, 'rollout.slots': 32}
  more |= {'kl.beta': 0.01} if kind == 'ppo' else {}
  assert run(kind, f'{kind}-{lr}-learns', **more) == 0
  reward = [r['reward'] for r in run.logged(f'{kind}-{lr}-learns')]
  assert (np.mean(reward[-2:]) > np.mean(reward[:2]) + 0.15) == (lr > 0), reward


@pytest.mark.parametrize('name', ['raises', 'nan'])
def test_bad_rewards_lose_their_rows_alone(run, name):
  """A reward that raises, or is no number, ends the run or poisons its group (trl PR#5598, #5640, #5775)."""
  assert run('grpo', name, **{'rewards.answer.kind': f'own_rewards:{name}'}) == 0
  rows = run.logged(name)
  assert any(r['failed'] for r in rows) and all(np.isfinite(r['loss']) and r['failed'] < 8 for r in rows)
  assert run.logged(name, 'failed')


def test_no_reward_at_all(run):
  """Every row fails and the run goes on, learning nothing."""
  run.capsys.readouterr()
  assert run('grpo', 'text', **{'rewards.answer.kind': 'own_rewards:text'}) == 1
  assert 'not one of 8 completions has a reward' in run.capsys.readouterr().err


@pytest.mark.faults
def test_hanging_reward(run):
  """A reward that hangs stops the run for ever; here it has 10 s."""
  how = {'rewards.answer.kind': 'own_rewards:hangs', 'train.steps': 1, 'optim.warmup': 0}
  assert run('grpo', 'hangs', **how) == 0
  (row,) = run.logged('hangs')
  assert row['failed'] and np.isfinite(row['loss'])


@pytest.mark.parametrize(
  'words,more',
  [
    (('expected gradient of k1',), {'kl.placement': 'loss', 'kl.estimator': 'k1'}),
    (('rewards.answer.kind', 'nonsense', 'numeric'), {'rewards.answer.kind': 'nonsense'}),
    (('rollout.samples = 1', 'use more'), {'rollout.samples': 1, 'data.batch': 4}),
    (('no prompt is left', 'too long'), {'data.sources.sums.files': '(FOLDER + "/long.jsonl",)'}),
    (('data.batch = 3', 'minibatches'), {'data.batch': 3}),

    (('temperature = 0.0',), {'rollout.temperature': 0.0}),
    (('rollout.gold', 'wisdom'), {'rollout.gold': 'wisdom'}),
    (('no part of (answer)',), {'rewards.answer.weight': 0.0}),
    (('dual_clip = 1.1',), {'objective.dual_clip': 1.1}),
    (('kl.target = 0.0', 'positive'), {'kl.target': 0.0, 'kl.placement': 'loss'}),
    (('kl.target = 1.0', 'kl.placement = watch'), {'kl.target': 1.0}),
    (('model.dropout = 0.1', 'lora.dropout = 0.0'), {'model.dropout': 0.1}),
    (('lora.dropout = 0.1',), {'lora.rank': 2, 'lora.dropout': 0.1}),
    (('kl.horizon = 0',), {'kl.target': 1.0, 'kl.horizon': 0, 'kl.placement': 'loss'}),
  ],
)  # fmt: skip
def test_bad_settings_end_in_a_sentence(run, words, more):
  """What cannot work is found out late, or never: k1 in the loss has no gradient (open-instruct#534, trl#3025), and
  with dropout no first ratio is 1 (trl#744, trl PR#5542)."""
  more = {k: repr((str(run.folder / 'long.jsonl'),)) if 'FOLDER' in str(v) else v for k, v in more.items()}
  run.refused(*words, run=lambda workdir, **s: run('grpo', workdir, **s), **more)


@pytest.mark.parametrize(
  'how', [{'kl.placement': 'reward'}, {'kl.placement': 'loss'}, {'objective.mask_truncated': True}]
)
def test_online_dpo_refuses_what_it_would_ignore(run, how):
  """A KL that is asked for and silently nowhere (OpenRLHF#768, slime#397)."""
  run.refused('objective.beta', 'kl.placement', run=lambda workdir, **s: run('online_dpo', workdir, **s), **how)


@pytest.mark.slow
@pytest.mark.parametrize(
  'words,base',
  [
    (('another tokenizer',), {'tokenizer.vocab': 280}),
    (('16 tokens', 'data.length = 32'), {'data.length': 16, 'model.length': 16}),
  ],
)
def test_a_critic_that_cannot_read_the_policy(run, words, base):
  """A critic with other tokens, or with a window that is shorter than the rows it is to read."""
  name = f'critic{len(words)}'
  files = repr((str(run.folder / 'text.txt'),))
  how = {'data.sources.readme.files': files, 'tokenizer.vocab': 290, 'data.length': 64, 'train.steps': 1}
  how |= {'checkpoint.init_from': None, 'eval.prompts': '()', 'optim.warmup': 0} | base
  assert Run.__call__(run, 'configs/pretrain.py:tiny', name, **how) == 0
  more = {'critic.kind': 'separate', 'critic.workdir': run.folder / name}
  run.refused(*words, run=lambda workdir, **s: run('ppo', f'{workdir}-{name}', **s), **more)


@pytest.mark.parametrize('how', [{'kl.placement': 'none'}, {'objective.old': 'learner'}])
def test_the_gate_ends_a_run(run, how):
  """The gate is not asked: read before the updates, or in the first of them."""
  run.capsys.readouterr()
  assert run('grpo', f'gate-{len(how)}-{list(how)[0]}', **how | {'rollout.gate': 1e-12}) == 1
  assert 'step 1: the log-prob of a sampled token differs' in run.capsys.readouterr().err


NOTHING = {
  'same': {'rewards.answer.kind': 'own_rewards:same'},
  'cut': {'rollout.new_tokens': 1, 'objective.mask_truncated': True},
}


@pytest.mark.parametrize('why', NOTHING)
def test_what_teaches_nothing_moves_nothing(run, why):
  """A group whose rewards are all equal divides by 0, or still moves the parameters (trl#5640); so does a batch in
  which every completion was cut off, and none is to be learnt from (trl PR#6439, PR#3248)."""
  assert run('grpo', why, **NOTHING[why], **{'optim.warmup': 0, 'train.steps': 1}) == 0
  (row,) = run.logged(why)
  assert (row['same'], row['reward']) == (1, 2) if why == 'same' else (row['ended'], row['length']) == (0, 1)
  assert row['loss'] == 0 == row['grad_norm'] and params(run, why) == params(run, 'base')


def test_other_prompts_are_refused(run):
  """A resumed run continues on another file as if nothing had happened."""
  assert run('grpo', 'prompts', **{'train.steps': 1, 'optim.warmup': 0}) == 0
  other = {'data.sources.sums.files': repr((str(run.folder / 'held.jsonl'),)), 'optim.warmup': 0}
  run.capsys.readouterr()
  assert run('grpo', 'prompts', **other) == 78
  assert 'the prompts are not those' in run.capsys.readouterr().err


@pytest.mark.faults
def test_killed_in_the_middle_of_a_rollout(run):
  """SIGKILL while rewards are asked for: the run that goes on is the one that was never killed, bit for bit."""

  def go(workdir, dies):
    f = run.folder
    how = {
      'data.packing': 'padded', 'data.folder': f / 'rows', 'data.length': 32, 'data.batch': 8, 'train.steps': 4,
      'train.log_every': 1,
      'train.tensorboard': False, 'optim.warmup': 1, 'eval.every': 100, 'eval.rows': 4, 'eval.new_tokens': 6,
      'checkpoint.every': 1, 'checkpoint.init_from': f / 'base', 'rollout.prompts': 4, 'rollout.samples': 2,
      'rollout.new_tokens': 6, 'rollout.slots': 8, 'rollout.refill': 4, 'rewards.answer.kind': 'own_rewards:kills',
      'data.sources.sums.files': repr((str(f / 'asked.jsonl'),)),
      'data.sources.held_out.files': repr((str(f / 'held.jsonl'),)),
    }  # fmt: skip
    argv = [sys.executable, '-m', 'llmstack.main', '--config', 'configs/rl.py:world-grpo', '--workdir', f / workdir]
    env = os.environ | {
      'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '1', 'COUNT': str(f / f'{workdir}.count'), 'DIES': str(dies),
      'PYTHONPATH': os.pathsep.join([os.getcwd(), str(f)]),
    }  # fmt: skip
    argv += [f'--config.{k}={v}' for k, v in how.items()]
    return subprocess.run(argv, env=env, capture_output=True, text=True)

  assert (done := go('never', -1)).returncode == 0, done.stderr[-2000:]
  assert go('killed', 21).returncode == -signal.SIGKILL  # in the third of four rollouts
  assert 1 <= max(r['step'] for r in metrics.read(run.folder / 'killed')) <= 2
  assert (done := go('killed', -1)).returncode == 0, done.stderr[-2000:]
  assert values(run, 'killed') == values(run, 'never') and params(run, 'killed') == params(run, 'never')


def test_rewards_are_given_what_was_sampled(run):
  """Text is encoded again for a reward model or a length (trl#5224): ids go through as they were drawn."""
  seen = []
  keep = row(lambda prompt, completion, info: float(not seen.append(info)))
  cfg = model('llama_tiny', length=48)

  class Template:
    stops = (3,)

    def reply(self, ids):
      return ' '.join(map(str, ids))

  tuned = SimpleNamespace(cfg=cfg, template=Template(), tokenizer=SimpleNamespace(pad=0), join=lambda p, f: p)
  sampler = online.Sampler(tuned, Rewards({'keep': (1.0, keep)}), sharding.make_mesh(**ONE), settings())
  prompts = [SimpleNamespace(ids=[5, 6, i], messages=[{'role': 'user', 'content': 'x'}], info={'answer': i})
             for i in (7, 8)]  # fmt: skip
  got = sampler(weights(cfg), {}, prompts, 2, online.seeds(0, 0, 0, 4), temperature=1.0, new_tokens=5)
  for i, info in enumerate(seen):
    n = got.out.lengths[i]
    assert info['ids'] == got.out.tokens[i, :n].tolist() and info['tokens'] == n and info['ended'] == got.out.done[i]
    assert info['prompt_ids'] == got.prompts[i] and info['answer'] == prompts[i // 2].info['answer']


def test_tokens_in_tokens_out(run):
  """Text is encoded again between sampler and learner, who learns other tokens than were drawn (trl#5224, sglang
  PR#26555, cs336#15). Most of what a random model says its tokenizer would spell otherwise."""
  base, one, told = start.Trained(str(run.folder / 'base')), sharding.make_mesh(**ONE), []
  template = chat.template('llmstack', base.tokenizer)
  keep = row(lambda prompt, completion, info: float(not told.append((completion, info['ids']))))
  tuned = SimpleNamespace(cfg=base.cfg, template=template, tokenizer=base.tokenizer, join=lambda p, f: p)
  sampler = online.Sampler(tuned, Rewards({'keep': (1.0, keep)}), one, settings())
  messages = [[{'role': 'user', 'content': f'cat {i}?'}] for i in range(2)]
  prompts = [SimpleNamespace(ids=template.prompt(m), messages=m, info={}) for m in messages]
  got = sampler(base.params(one), {}, prompts, 4, online.seeds(0, 0, 0, 8), temperature=1.5, new_tokens=8)
  batch, places = online.lay_out(got, width=47, packed=True, multiple=1)
  for (at, columns, _), (_, ids) in zip(places, told, strict=True):
    assert batch['targets'][at, columns].tolist() == ids
  assert any(base.tokenizer.encode_plain(text).tolist() != ids for text, ids in told)
  hidden = tune.hidden_of(base.cfg, base.params(one), batch)
  logp = rl.logps(base.cfg, base.params(one), hidden, batch, temperature=1.5, chunk=None)
  assert float(rl.gap(logp, batch['old_logp'], batch['mask'])) < 1e-4  # what was drawn, and nothing else


def test_a_reward_model_reads_to_the_end(run, scorer):
  """It is asked at the first pad id or the first end of turn, and a conversation has those in its middle
  (transformers#35352, trl PR#7318, gpt-neox PR#1285)."""
  scorer = Scorer(str(run.folder / 'scorer'), sharding.make_mesh(**ONE), 4)
  pad, stops, cfg = scorer.template.tokenizer.pad, scorer.template.stops, scorer.cfg
  ids = [[9, pad, 8, *stops, 7], [9, *stops, pad, pad], [9] * 20]
  for x, got in zip(ids, scorer.of_ids(ids)):
    alone = {'tokens': np.array([x]), 'positions': np.arange(len(x))[None], 'segments': np.ones((1, len(x)), np.int32)}
    hidden = tune.hidden_of(cfg, scorer.params, alone)
    close(got, values_of(cfg, scorer.params, hidden)[0, -1], 1e-4)
