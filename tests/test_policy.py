"""Policy gradients: golden values, and what must not change them. tests/test_policy_exact.py enumerates."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close

from llmstack.errors import BadInput
from llmstack.losses import policy
from llmstack.losses.policy import aggregate, clipped_policy, clipped_value, gae, group_advantages, token_kl

PPO = dict(ratio='token', surrogate='clip', clip_low=0.2, clip_high=0.2, dual_clip=None, how='token')
# What each algorithm of the golden files is made of.
GOLDEN = {
  'grpo': {'how': 'sequence'},
  'verl_seq-mean-token-mean': {'how': 'sequence'},
  'bnpo': {'how': 'microbatch'},
  'verl_token-mean': {},
  'dapo': {'clip_high': 0.28},
  'dr_grpo': {'how': 'constant', 'divisor': 16},
  'verl_seq-mean-token-sum': {'how': 'constant', 'divisor': 1},
  'verl_seq-mean-token-sum-norm': {'how': 'constant', 'divisor': 7},
  'gspo': {'how': 'sequence', 'ratio': 'sequence', 'clip_low': 3e-4, 'clip_high': 4e-4},
  'gspo_wide': {'how': 'sequence', 'ratio': 'sequence'},
  'verl_gspo': {'how': 'sequence', 'ratio': 'sequence'},
  'luspo': {'how': 'constant', 'divisor': 1, 'ratio': 'sequence'},
  'cispo': {'surrogate': 'cispo', 'clip_low': 1.0, 'clip_high': 4.0},
  'sapo': {'how': 'sequence', 'surrogate': 'sapo', 'tau': (1.0, 1.05)},
  'two_sided': {'how': 'sequence', 'dual_clip': 1.3},
  'rloo': {'how': 'sequence', 'ratio': 'sequence_sum'},
  'grpo_kl': {'how': 'sequence', 'kl': 'ratio'},
  'grpo_kl_nobias': {'how': 'sequence', 'kl': 'plain'},
}


@functools.cache
def golden(name):
  return dict(np.load(pathlib.Path(__file__).parent / 'golden' / f'{name}.npz'))


def ones(mask):
  return np.ones(mask.shape, np.int32)


def value(logp, data, advantages, mask, segments, n, *, kl=None, **how):
  """Returns the objective: the clipped policy, with 0.04 times a k3 penalty where `kl` names its gradient."""
  how = PPO | how
  sums, weights, _ = clipped_policy(logp, data['old'], advantages, mask, segments, n, **how)
  total = sums['policy'] / weights['policy']
  if kl is None:
    return total
  each = policy.kl_penalty(logp, data['old'], data['ref'], mask, estimator='k3', gradient=kl)
  penalty, count = aggregate(each, mask, segments, n, how=how['how'])
  return total + 0.04 * penalty / count


@pytest.mark.parametrize('name', GOLDEN)
def test_golden_objectives(name):
  """GRPO's normalisations are mistaken for each other (trl#2995, verl#593, verl#2776, understand-r1-zero#11,
  open-instruct#636), a sum is not divided by the batch (trl PR#3138), or a clip is one-sided."""
  data = golden('grpo')
  with jax.enable_x64(True):
    advantages = np.broadcast_to(data['adv'][:, None], data['mask'].shape)
    of = lambda logp: value(logp, data, advantages, data['mask'], ones(data['mask']), 1, **GOLDEN[name])  # noqa: E731
    got, grad = jax.value_and_grad(of)(jnp.asarray(data['new']))
    # verl divides by n + 1e-8; TRL's temperatures of SAPO are float32.
    close(got, data[name], {'v': 2e-9, 's': 1e-7}.get(name[0], 1e-12))
    if f'{name}_grad' in data:
      close(grad, data[f'{name}_grad'], 1e-8)


def test_golden_on_policy():
  """On-policy the value is what the advantages average to: a loss of 0 is no bug, a gradient of 0 is (trl#2703,
  open-r1#239)."""
  data = golden('grpo')
  with jax.enable_x64(True):
    advantages = np.broadcast_to(data['adv'][:, None], data['mask'].shape)

    def of(logp, centre):
      a = advantages - centre * np.sum(advantages * data['mask']) / data['mask'].sum()
      return value(logp, data | {'old': logp}, a, data['mask'], ones(data['mask']), 1)

    got, grad = jax.value_and_grad(of)(jnp.asarray(data['new']), 0.0)
    close(got, data['onpolicy'], 1e-12)
    close(grad, data['onpolicy_grad'], 1e-12)
    got, grad = jax.value_and_grad(of)(jnp.asarray(data['new']), 1.0)
    assert abs(got) < 1e-12 < 1e-3 < np.abs(grad).max()


@pytest.mark.parametrize(
  'name,how',
  # OPO's baseline is the mean weighted by lengths: of completions of one length, as here, the mean.
  [(n, ('mean', 'none')) for n in ('dr_grpo', 'opo')]
  + [('grpo', ('mean', 'group')), ('rloo', ('leave_one_out', 'none'))],
)
def test_golden_advantages(name, how):
  """The standard deviation lacks Bessel's correction, or RLOO's baseline holds the completion itself."""
  with jax.enable_x64(True):
    rewards = jnp.array([[1.0, 0, 0, 1], [3, 3, 3, 3]])
    got = group_advantages(rewards, jnp.ones((2, 4)), baseline=how[0], scale=how[1], eps=1e-6)
    close(got.ravel(), golden('grpo')[f'adv_{name}'], 1e-12)


def test_golden_whitened_baseline():
  """REINFORCE++ whitens completions, where it should whiten tokens: long ones weigh more. Three tokens each here."""
  with jax.enable_x64(True):
    rewards = jnp.array([[1.0, 0, 0, 1], [3, 3, 3, 3]])
    gap = group_advantages(rewards, jnp.ones((2, 4)), baseline='mean', scale='none').reshape(8, 1)
    got = policy.whiten(jnp.broadcast_to(gap, (8, 3)), jnp.ones((8, 3)), ddof=1)
    close(got[:, 0], golden('grpo')['adv_rf++baseline'], 1e-8)


def test_golden_ppo():
  """GAE, whitening, the place of the reward, dual clip or the value's clip differ from everybody else's."""
  data = golden('ppo')
  mask, segments = data['mask'], ones(data['mask'])
  with jax.enable_x64(True):
    for estimator in policy.ESTIMATORS:
      close(token_kl(data['old'], data['ref'], mask, estimator=estimator), data[f'kl_{estimator}'] * mask, 1e-12)
    # verl's fourth, |k1|, estimates no KL and is none of ours.
    close(jnp.abs(token_kl(data['old'], data['ref'], mask, estimator='k1')), data['kl_abs'] * mask, 1e-12)
    rewards = policy.token_rewards(data['score'][:, None], data['kl_k1'], mask, segments, 1, beta=0.05)
    close(rewards, data['rew'], 1e-12)
    for gamma, lam in ((1.0, 0.95), (0.99, 0.9), (1.0, 1.0)):
      advantages, returns = gae(rewards, data['val'], mask, segments, gamma=gamma, lam=lam)
      close(policy.whiten(advantages, mask, ddof=1), data[f'adv_{gamma}_{lam}'] * mask, 2e-9)  # sqrt(var + 1e-8) there
      close(returns, data[f'ret_{gamma}_{lam}'] * mask, 1e-12)
    close(gae(rewards, data['val'], mask, segments, gamma=1.0, lam=0.95)[0], data['adv_raw'] * mask, 1e-12)
    of = lambda logp: value(logp, data, data['adv_1.0_0.95'], mask, segments, 1, dual_clip=3.0)  # noqa: E731
    got, grad = jax.value_and_grad(of)(jnp.asarray(data['new']))
    close(got, data['pg'], 1e-12)
    close(grad, data['pg_grad'], 1e-12)

    def error(values):
      how = dict(clip=0.2, coefficient=1.0)
      sums, weights, _ = clipped_value(values, data['val'], data['ret_1.0_0.95'], mask, **how)
      return sums['value'] / weights['value']

    got, grad = jax.value_and_grad(error)(jnp.asarray(data['vpred']))
    close(got, data['vf'], 1e-12)
    close(grad, data['vf_grad'], 1e-12)


def ragged(seed=0, rows=4, width=14):
  """Returns float64 arrays of packed rows with two completions each, gaps in the mask, the last row's second absent."""
  r = np.random.RandomState(seed)
  segments, mask = np.zeros((rows, width), np.int32), np.zeros((rows, width))
  for b in range(rows):
    a, c = sorted(r.choice(np.arange(4, width), 2, replace=False))
    segments[b, :a], segments[b, a:c] = 1, 2 * (b < rows - 1)
    mask[b] = (r.rand(width) < 0.7) & (segments[b] > 0)
    mask[b, [1, a - 1]] = 1
  arrays = {k: -2 * r.rand(rows, width) for k in ('logp', 'old', 'ref')}
  arrays |= {k: r.randn(rows, width) for k in ('advantages', 'values', 'rewards', 'old_values', 'returns')}
  return arrays | {'mask': mask, 'segments': segments}


OBJECTIVES = {k: v for k, v in GOLDEN.items() if not k.startswith('verl') and k != 'bnpo'}


def totals(d, name):
  """Returns {term: (sum, weight)} of everything that learns at once: policy, KL and value."""
  how = PPO | {k: v for k, v in GOLDEN[name].items() if k != 'kl'}
  sums, weights, _ = clipped_policy(d['logp'], d['old'], d['advantages'], d['mask'], d['segments'], 2, **how)
  each = policy.kl_penalty(d['logp'], d['old'], d['ref'], d['mask'], estimator='k3', gradient='ratio')
  out = {'policy': (sums['policy'], weights['policy'])}
  out['kl'] = aggregate(each, d['mask'], d['segments'], 2, how=how['how'], divisor=how.get('divisor'))
  sums, weights, _ = clipped_value(d['values'], d['old_values'], d['returns'], d['mask'], clip=0.2, coefficient=0.1)
  return out | {'value': (sums['value'], weights['value'])}


@pytest.mark.parametrize('name', OBJECTIVES)
def test_additive_immune_and_independent_of_padding(name):
  """A mean of microbatches' means (trl#3021, #5619, verl#7200, #7321, ms-swift#10117), mask * NaN (OpenRLHF PR#1240),
  or a divisor that is this batch's padded width (verl#3741, PR#5366, trl PR#3138)."""
  with jax.enable_x64(True):
    d = {k: jnp.asarray(v) for k, v in ragged().items()}
    whole = totals(d, name)
    halves = [totals({k: v[i : i + 2] for k, v in d.items()}, name) for i in (0, 2)]
    for term in whole:
      for a, b, c in zip(whole[term], halves[0][term], halves[1][term]):
        close(a, b + c, 1e-12)
    learnt = ('logp', 'values')

    def loss(free, fixed):
      return sum(s / w for s, w in totals(fixed | free, name).values())

    grad = jax.grad(loss)({k: d[k] for k in learnt}, d)
    # NaN wherever nothing was sampled, and five more columns of it.
    wide = {k: jnp.pad(v, ((0, 0), (0, 5))) for k, v in d.items()}
    hidden = wide['mask'] == 0
    dirty = {k: v if k in ('mask', 'segments') else jnp.where(hidden, jnp.nan, v) for k, v in wide.items()}
    got, again = jax.value_and_grad(loss)({k: dirty[k] for k in learnt}, dirty)
    close(got, loss({}, d), 1e-12)
    for k in learnt:
      close(again[k][:, :-5], grad[k], 1e-12)
      assert not np.any(again[k][hidden])


def test_packed_rows_are_their_completions_alone():
  """Two completions in a row share a ratio, a divisor, or the end of their rewards."""
  with jax.enable_x64(True):
    d = ragged()
    scores = np.array([[1.0, 2], [3, 4], [5, 6], [7, 99]])
    alone, count = {k: [] for k in d}, []
    for b in range(4):
      for p in (1, 2):
        inside = d['segments'][b] == p
        if inside.any():
          count.append((b, p - 1))
          for k in d:
            row = d[k][b][inside]
            alone[k].append(np.pad(row if k != 'segments' else np.ones_like(row), (0, 14 - len(row))))
    alone = {k: jnp.asarray(np.stack(v)) for k, v in alone.items()}
    d = {k: jnp.asarray(v) for k, v in d.items()}
    for name in OBJECTIVES:
      for one, two in zip(totals(d, name).values(), totals(alone, name).values()):
        close(one[0], two[0], 1e-12)
        close(one[1], two[1], 1e-12)
    kl = d['logp'] - d['ref']
    packed = policy.token_rewards(jnp.asarray(scores), kl, d['mask'], d['segments'], 2, beta=0.1)
    both = gae(packed, d['values'], d['mask'], d['segments'], gamma=0.9, lam=0.8)
    own = jnp.asarray([[scores[i]] for i in count])
    single = policy.token_rewards(own, alone['logp'] - alone['ref'], alone['mask'], alone['segments'], 1, beta=0.1)
    singles = gae(single, alone['values'], alone['mask'], alone['segments'], gamma=0.9, lam=0.8)
    for a, b in ((packed, single), *zip(both, singles)):
      rows = [np.pad(a[i][d['segments'][i] == p + 1], (0, 14))[:14] for i, p in count]
      close(np.stack(rows), b, 1e-12)


def test_gae_carries_over_gaps():
  """A gap in the mask, a tool's answer, cuts credit off or bootstraps from what was never sampled (verl PR#50,
  PR#2337, #7278; ROLL PR#447; miles PR#1827): 1e6 there changes nothing, and the gap might as well be cut out."""
  with jax.enable_x64(True):
    mask = np.array([[1.0, 1, 0, 0, 1, 1, 1, 0]])
    r = np.random.RandomState(0)
    rewards, values, segments = r.randn(1, 8), r.randn(1, 8), np.array([[1, 1, 1, 1, 1, 1, 1, 0]])
    wild = [jnp.asarray(np.where(mask == 0, 1e6, x)) for x in (rewards, values)]
    advantages, returns = gae(*wild, mask, segments, gamma=0.9, lam=0.8)
    kept = mask[0] > 0
    short = [jnp.asarray(x[:, kept]) for x in (rewards, values, mask, segments)]
    for got, want in zip((advantages, returns), gae(*short, gamma=0.9, lam=0.8)):
      close(got[:, kept], want, 1e-12)
      assert not np.any(got[:, ~kept])


def test_reward_lies_on_the_last_sampled_token():
  """The reward lies on the padding behind the EOS, or on the row's last column (trl#3750, trl PR#5338, #1893); or it is
  an integer, as in tunix 0.1.7 (no thread)."""
  mask = jnp.array([[0.0, 1, 1, 0, 1, 1, 0, 0]])
  segments = jnp.array([[1, 1, 1, 2, 2, 2, 2, 0]])
  got = policy.token_rewards(jnp.array([[3.0, 5.0]]), None, mask, segments, 2, beta=0)
  assert got.tolist() == [[0, 0, 3, 0, 0, 5, 0, 0]]
  # A score like 0.7 or -1.6 is not rounded to an integer (tunix adds it to zeros of the ids' dtype).
  got = policy.token_rewards(jnp.array([[0.7, -1.6]]), None, mask, segments, 2, beta=0)
  close(got, np.array([[0, 0, 0.7, 0, 0, -1.6, 0, 0]]), 1e-7)


def test_failed_rewards_stay_alone():
  """One NaN reward makes its group's mean NaN, and with it every advantage (trl PR#5598, #5640, #5775, #7068)."""
  rewards, valid = jnp.array([[1.0, 0, jnp.nan, 0], [2, 2, 2, jnp.inf]]), jnp.array([[1.0, 1, 0, 1], [1, 1, 1, 0]])
  for baseline in ('mean', 'leave_one_out', 'none'):
    for scale in policy.SCALES:
      got = group_advantages(rewards, valid, baseline=baseline, scale=scale)
      assert np.isfinite(got).all() and got[0, 2] == got[1, 3] == 0
      if (baseline, scale) != ('none', 'batch'):
        alone = group_advantages(rewards[:1, [0, 1, 3]], jnp.ones((1, 3)), baseline=baseline, scale='none')
        same = group_advantages(rewards, valid, baseline=baseline, scale='none')
        close(same[0, [0, 1, 3]], alone[0], 1e-6)
  # Equal rewards, and a group of one: nothing to learn, and no division by zero (trl#7068).
  close(group_advantages(jnp.full((1, 4), 3.0), jnp.ones((1, 4)), baseline='mean', scale='group'), np.zeros((1, 4)), 0)
  for baseline in ('mean', 'leave_one_out'):
    alone = group_advantages(jnp.array([[3.0, jnp.nan]]), jnp.array([[1.0, 0]]), baseline=baseline, scale='group')
    assert not np.any(alone)


def test_empty_batch_is_zero():
  """Every completion is masked, as overlong ones are, and the loss is 0 / 0 (trl PR#6439, PR#3248)."""
  d = {k: jnp.asarray(v, jnp.int32 if k == 'segments' else jnp.float32) for k, v in ragged().items()}
  d['mask'] = jnp.zeros_like(d['mask'])
  for name in GOLDEN:
    assert all(np.isfinite(s) and s == 0 for s, _ in totals(d, name).values())
  sums, weights, _ = clipped_policy(d['logp'], d['old'], d['advantages'], d['mask'], d['segments'], 2, **PPO)
  assert sums['policy'] == weights['policy'] == 0


def test_wild_ratios_stay_finite():
  """k3 overflows to infinity at a log-ratio of -100 (trl#3015, trl PR#6637), and a sequence's ratio sooner."""
  mask, segments = jnp.ones((1, 6)), jnp.ones((1, 6), jnp.int32)
  far = jnp.full((1, 6), -100.0)

  def of(logp, old, how):
    sums, _, _ = clipped_policy(logp, old, mask, mask, segments, 1, **PPO | {'ratio': how})
    return sums['policy'] + policy.kl_penalty(logp, old, old, mask, estimator='k3', gradient='ratio').sum()

  for how in policy.RATIOS:
    for logp, old in ((far, 0 * far), (0 * far, far)):
      got, grad = jax.value_and_grad(of)(logp, old, how)
      assert np.isfinite(got) and np.isfinite(grad).all()
  assert np.isfinite(
    policy.truncated_weights(0 * far, far, mask, segments, 1, cap=3.0, level='token', beyond='mask')
  ).all()


def test_truncated_weights():
  """Weights of whole completions explode with length (trl#4772, PR#4530, PR#5815, verl PR#2953): bounded, or gone.
  Hand-worked: ratios 2 and 1/2, 4."""
  logp, old = jnp.log(jnp.array([[0.4, 0.2, 0.8, 0.8]])), jnp.log(jnp.array([[0.2, 0.4, 0.4, 0.4]]))
  mask, segments = jnp.ones((1, 4)), jnp.array([[1, 1, 2, 2]])
  of = lambda **how: policy.truncated_weights(logp, old, mask, segments, 2, cap=3.0, **how)[0]  # noqa: E731
  close(of(level='token', beyond='truncate'), np.array([2, 0.5, 2, 2]), 1e-6)
  close(of(level='sequence', beyond='truncate'), np.array([1, 1, 3, 3]), 1e-6)
  close(of(level='sequence', beyond='mask'), np.array([1, 1, 0, 0]), 1e-6)


def test_adaptive_coefficient():
  """The controller runs away, or is proportional to a KL summed over another number of completions."""
  of = lambda kl: policy.adapted(0.1, kl, target=6.0, horizon=1000, n=100)  # noqa: E731
  close([of(6.0), of(6.6), of(600.0), of(0.0)], [0.1, 0.1 * 1.01, 0.1 * 1.02, 0.1 * 0.98], 1e-9)


@pytest.mark.parametrize(
  'call,word',
  [
    (lambda: policy.check_kl('k1', 'loss', 'plain'), 'expected gradient'),
    (lambda: policy.check_kl('k4', 'loss', 'plain'), 'k4'),
    (lambda: group_advantages(jnp.ones((1, 2)), jnp.ones((1, 2)), baseline='greedy', scale='none'), 'greedy'),
    (lambda: group_advantages(jnp.ones((1, 2)), jnp.ones((1, 2)), baseline='median', scale='none'), 'median'),
    (lambda: value(*bad(), dual_clip=1.1), 'dual_clip = 1.1'),
    (lambda: value(*bad(), how='constant'), 'divisor = None'),
    (lambda: value(*bad(), surrogate='sapo'), 'tau = None'),
    (lambda: policy.token_rewards(jnp.ones((1, 1)), None, *bad()[3:], beta=0.1), 'beta = 0.1'),
  ],
)
def test_bad_arguments_end_in_a_sentence(call, word):
  """A combination that cannot work is taken in silence: k1 in the loss is tunix's default (open-instruct#534, PR#535,
  trl#3025)."""
  with pytest.raises(BadInput, match=word):
    call()


def bad():
  x = jnp.ones((1, 3))
  return x, {'old': x}, x, x, x.astype(jnp.int32), 1
