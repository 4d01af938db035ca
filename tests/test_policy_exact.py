"""Policy gradients against enumeration: every completion of a tiny language, its probability, the exact gradient.

Two letters and an end, three tokens at most: 15 completions. The policy is a table, one row of logits per beginning.
The objective is J = E[reward] - beta KL(pi || ref), differentiated as a whole.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import close

from llmstack.losses import policy
from llmstack.losses.policy import clipped_policy, gae, group_advantages, kl_penalty, token_kl, token_rewards

END, LONGEST, BETA = 0, 3, 0.3
OPEN = dict(surrogate='clip', clip_low=1.0, clip_high=np.inf, dual_clip=None)  # no bounds


def language(longest):
  """Returns (tokens int[Y,T], states int[Y,T], mask float[Y,T], number of states): every completion there is."""
  prefixes = [p for n in range(longest) for p in itertools.product((1, 2), repeat=n)]
  number = {p: i for i, p in enumerate(prefixes)}
  whole = [(*p, END) for p in prefixes] + [(*p, x) for p in prefixes if len(p) == longest - 1 for x in (1, 2)]
  tokens, states, mask = (np.zeros((len(whole), longest), int) for _ in range(3))
  for i, y in enumerate(whole):
    tokens[i, : len(y)], mask[i, : len(y)] = y, 1
    states[i, : len(y)] = [number[y[:t]] for t in range(len(y))]
  return tokens, states, mask.astype(float), len(prefixes)


class World:
  """Random tables of policy, reference and an older policy, and a reward for each completion; float64."""

  def __init__(self, longest=LONGEST, seed=0):
    r = np.random.RandomState(seed)
    self.tokens, self.states, self.mask, n = language(longest)
    self.now, self.ref, self.old = (jnp.asarray(r.randn(n, 3)) for _ in range(3))
    self.reward = jnp.asarray(r.randn(len(self.tokens)))
    self.segments = self.mask.astype(int)

  def logp(self, table):
    """Returns float[Y,T]."""
    return jax.nn.log_softmax(table)[self.states, self.tokens] * self.mask

  def chance(self, table):
    return jnp.exp(self.logp(table).sum(1))

  def objective(self, table, beta):
    kl = (self.logp(table) - self.logp(self.ref)).sum(1)
    return jnp.sum(self.chance(table) * (self.reward - beta * kl))

  def expected(self, table, rows, chance, advantages, **how):
    """Returns the sum over completions of chance * loss, `rows` of them with advantages float[n,T]."""
    pick = lambda x: x[rows]  # noqa: E731
    logp, old = pick(self.logp(table)), jax.lax.stop_gradient(pick(self.logp(how.pop('old', table))))
    weight = jnp.broadcast_to(jax.lax.stop_gradient(chance)[:, None], logp.shape)
    how = OPEN | {'ratio': 'token', 'how': 'constant', 'divisor': 1} | how
    sums, _, _ = clipped_policy(logp, old, advantages, pick(self.mask), pick(self.segments), 1, weight=weight, **how)
    return sums['policy']


@pytest.fixture(scope='module')
def world():
  with jax.enable_x64(True):
    assert abs(World().chance(World().now).sum() - 1) < 1e-12
    return World()


@pytest.fixture(autouse=True)
def double():
  with jax.enable_x64(True):
    yield


def everything(w):
  return np.arange(len(w.tokens))


@pytest.mark.parametrize('critic', ['none', 'random', 'exact'])
def test_ppo(world, critic):
  """GAE, or the KL in the reward, is biased: a value of the wrong token, a KL that the future forgets, a reward lost.

  With lam = 1 any baseline leaves the gradient as it is; with lam < 1 the true value function does.
  """
  w, r = world, np.random.RandomState(1)
  kl = token_kl(w.logp(w.now), w.logp(w.ref), w.mask, estimator='k1')
  rewards = token_rewards(w.reward[:, None], kl, w.mask, w.segments, 1, beta=BETA)
  to_go = jnp.cumsum(rewards[:, ::-1], 1)[:, ::-1]
  mean = np.zeros(w.now.shape[0])
  for s in range(len(mean)):
    of = (w.states == s) & (w.mask > 0)
    mean[s] = np.sum(w.chance(w.now)[:, None] * to_go * of) / np.sum(w.chance(w.now)[:, None] * of)
  tables = {'none': 0 * mean, 'random': r.randn(len(mean)), 'exact': mean}
  values = jnp.asarray(tables[critic])[w.states]
  lam = 0.4 if critic == 'exact' else 1.0
  advantages, returns = gae(rewards, values, w.mask, w.segments, gamma=1.0, lam=lam)
  if lam == 1:
    close(returns * w.mask, to_go * w.mask, 1e-10)
  grad = jax.grad(lambda t: w.expected(t, everything(w), w.chance(w.now), advantages))(w.now)
  close(-grad, jax.grad(w.objective)(w.now, BETA), 1e-10)


def pairs(w, table):
  """Returns (rows of both members, probability of each pair), all pairs of independent samples."""
  rows = np.array(list(itertools.product(everything(w), repeat=2)))
  return rows, jnp.prod(w.chance(table)[rows], 1)


@pytest.mark.parametrize('baseline,share', [('leave_one_out', 1.0), ('mean', 0.5), ('greedy', 1.0), ('none', 1.0)])
@pytest.mark.parametrize('old', ['now', 'old'])
def test_groups_of_two(world, baseline, share, old):
  """RLOO's, ReMax's and Dr. GRPO's gradients: a group's own mean makes (M - 1) / M of it, and nothing else may.

  Off-policy, over samples of an older policy, the ratio of whole completions is exact.
  """
  w = world
  old = getattr(w, old)
  rows, chance = pairs(w, old)
  best = {'greedy': jnp.full((len(rows),), 0.7)} if baseline == 'greedy' else {}
  score = w.reward - BETA * (w.logp(w.now) - w.logp(w.ref)).sum(1)  # k1 in the reward
  a = group_advantages(score[rows], jnp.ones(rows.shape), baseline=baseline, scale='none', **best)
  flat, each = rows.ravel(), jnp.broadcast_to(a.ravel()[:, None], (rows.size, LONGEST))
  twice = jnp.repeat(chance, 2) / 2

  def loss(table):
    how = dict(ratio='sequence_sum', how='sequence', divisor=None, old=old)
    # 'sequence' divides by each length what was spread over its tokens.
    return w.expected(table, flat, twice, each, **how)

  close(-jax.grad(loss)(w.now), share * jax.grad(w.objective)(w.now, BETA), 1e-10)


def local_kl(w, table, of):
  """Returns the KL of each state's distributions, weighted by how often the policy at hand comes there."""
  now, ref = jax.nn.log_softmax(table), jax.nn.log_softmax(w.ref)
  first, second = (now, ref) if of == 'reverse' else (ref, now)
  each = jnp.sum(jnp.exp(first) * (first - second), 1)
  return jnp.sum(jax.lax.stop_gradient(w.chance(table))[:, None] * w.mask * each[w.states])


@pytest.mark.parametrize(
  'estimator,gradient,of',
  [('k1', 'ratio', 'reverse'), ('k2', 'plain', 'reverse'), ('k3', 'ratio', 'reverse'), ('k3', 'plain', 'forward')],
)
@pytest.mark.parametrize('longest', [1, LONGEST])
def test_gradient_of_a_kl_in_the_loss(estimator, gradient, of, longest):
  """An estimator of the KL is taken for its gradient (open-instruct#534, trl#4967, PR#4638, PR#6503, NeMo-RL PR#2506):
  k3 differentiated is the forward KL's. Of one token the gradient is exact; of more, each token's given how it came
  there."""
  w = World(longest)
  chance = w.chance(w.now)[:, None]

  def loss(table):
    each = kl_penalty(w.logp(table), w.logp(w.now), w.logp(w.ref), w.mask, estimator=estimator, gradient=gradient)
    return jnp.sum(chance * each)

  got = jax.grad(loss)(w.now)
  close(got, jax.grad(lambda t: local_kl(w, t, of))(w.now), 1e-10)
  if longest == 1 and of == 'reverse':
    whole = jax.grad(lambda t: w.objective(t, 0.0) - w.objective(t, 1.0))(w.now)
    close(got, whole, 1e-10)


def test_k1_in_the_loss_is_nothing(world):
  """A penalty that prints a KL and has no gradient: the default of two libraries (open-instruct#534, trl#3025). It is
  refused (test_policy.py)."""
  w = world
  each = lambda t: token_kl(w.logp(t), w.logp(w.ref), w.mask, estimator='k1')  # noqa: E731
  grad = jax.grad(lambda t: jnp.sum(w.chance(w.now)[:, None] * each(t)))(w.now)
  assert np.abs(grad).max() < 1e-12 < 0.1 < np.abs(jax.grad(w.objective)(w.now, 1.0)).max()


def test_estimators_are_unbiased(world):
  """k1 and k3 estimate KL(pi || ref); k2 does not. A sign, or a reference and a policy swapped."""
  w = world
  chance = w.chance(w.now)[:, None]
  of = {e: jnp.sum(chance * token_kl(w.logp(w.now), w.logp(w.ref), w.mask, estimator=e)) for e in policy.ESTIMATORS}
  kl = jnp.sum(chance[:, 0] * (w.logp(w.now) - w.logp(w.ref)).sum(1))
  close(of['k1'], kl, 1e-12)
  close(of['k3'], kl, 1e-12)
  assert abs(of['k2'] - kl) > 0.1


def test_surrogates_agree_on_policy(world):
  """At the first update every surrogate and every ratio has the policy gradient; GSPO's is each completion's mean."""
  w, a = world, jnp.broadcast_to(world.reward[:, None], world.mask.shape)
  rows, chance = everything(w), w.chance(w.now)

  def grad(**how):
    return jax.grad(lambda t: w.expected(t, rows, chance, a, **how))(w.now)

  tight = dict(clip_low=0.2, clip_high=0.2)
  sapo = dict(surrogate='sapo', tau=(1.0, 1.05))
  per_token = [grad(), grad(**tight), grad(**tight, dual_clip=3.0), grad(surrogate='cispo', **tight), grad(**sapo)]
  for other in per_token[1:]:
    close(other, per_token[0], 1e-12)
  means = dict(how='sequence', divisor=None)
  close(grad(ratio='sequence', **means), grad(**means), 1e-12)


def test_length_is_not_rewarded():
  """A mean per completion makes right answers short and wrong ones long, whatever they say: it moves the chance to
  stop (2503.20783, section 3.1; understand-r1-zero#11). A constant divisor does not. Here all answers of a kind are
  worth the same, so that nothing but the normalisation can move it."""
  w = World()
  first = w.tokens[:, 0]
  w.reward = jnp.asarray(np.where(first == 1, 1.0, -1.0))  # decided by the first token, before any length
  rows, chance = everything(w), w.chance(w.now)
  centred = w.reward - jnp.sum(chance * w.reward)
  a = jnp.broadcast_to(centred[:, None], w.mask.shape)

  def stopping(**how):
    """Returns by how much a step raises the logit of the end after each first letter, against the others."""
    grad = -jax.grad(lambda t: w.expected(t, rows, chance, a, **how))(w.now)
    return [float(grad[w.states[np.flatnonzero(first == x)[-1], 1], END]) for x in (1, 2)]

  constant = stopping(how='constant', divisor=LONGEST)
  assert np.abs(constant).max() < 1e-12
  right, wrong = stopping(how='sequence', divisor=None)
  assert right > 0.002 and wrong < -0.002


@pytest.mark.parametrize('kl', ['reward', 'loss'])
def test_converges_to_the_closed_form(kl):
  """A biased gradient still looks like learning. With enough samples the policy is ref exp(reward / beta) / Z, and
  its reward that one's to within 1 %. A KL in the loss is exact for one token; groups of 16, leave-one-out."""
  w = World(LONGEST if kl == 'reward' else 1, seed=3)
  w.reward = w.reward + 2
  best = jax.nn.softmax(jnp.log(w.chance(w.ref)) + w.reward / BETA)
  tx = optax.adam(optax.cosine_decay_schedule(0.05, 600))

  def step(carry, key):
    table, state = carry
    now = table
    rows = jax.random.categorical(key, jnp.log(w.chance(now)), shape=(16, 16))
    score = w.reward - BETA * (w.logp(now) - w.logp(w.ref)).sum(1) * (kl == 'reward')
    a = group_advantages(score[rows], jnp.ones(rows.shape), baseline='leave_one_out', scale='none')
    flat = rows.ravel()
    each = jnp.broadcast_to(a.ravel()[:, None], (flat.size, w.mask.shape[1]))

    def loss(table):
      pick = lambda x: jnp.asarray(x)[flat]  # noqa: E731
      logp, old = pick(w.logp(table)), pick(w.logp(now))
      how = OPEN | dict(ratio='token', how='constant', divisor=1)
      sums, weights, _ = clipped_policy(logp, old, each, pick(w.mask), pick(w.segments), 1, **how)
      total = sums['policy'] / weights['policy']
      if kl == 'loss':
        penalty = kl_penalty(logp, old, pick(w.logp(w.ref)), pick(w.mask), estimator='k2', gradient='plain')
        total += BETA * jnp.mean(penalty.sum(1))
      return total

    updates, state = tx.update(jax.grad(loss)(table), state)
    return (optax.apply_updates(table, updates), state), None

  start = (w.ref, tx.init(w.ref))
  (table, _), _ = jax.jit(lambda: jax.lax.scan(step, start, jax.random.split(jax.random.key(0), 600)))()
  got, want = float(jnp.sum(w.chance(table) * w.reward)), float(jnp.sum(best * w.reward))
  before = float(jnp.sum(w.chance(w.ref) * w.reward))
  assert abs(got - want) < 0.01 * want and want - before > 0.5
  assert float(jnp.abs(w.chance(table) - best).sum()) < 0.05
