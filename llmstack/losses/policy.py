"""Policy gradients: advantages, KL to a reference, clipped objectives, the value loss. PPO and GRPO compose them.

Rows are packed: row b holds P completions or fewer, completion p in the columns where segments int32[B,T] is p + 1
(0 = padding); without packing P = 1. `logp` float[B,T] is the log-prob of each target under the policy being trained,
`old_logp` at sampling time, `ref_logp` of the reference, all at the temperature of sampling (a temperature that is
forgotten in one of them is a ratio other than 1 at the first update: trl#4159, OpenRLHF PR#853). `mask` float32[B,T] is
1 where the target was sampled, the end of turn included. What is masked changes neither value nor gradient, NaN
included (OpenRLHF PR#1240).

A published algorithm is a set of arguments:

    PPO          gae; ratio token, aggregate token; clipped_value
    GRPO         group_advantages mean, group; ratio token, aggregate sequence; KL k3 in the loss
    Dr. GRPO     mean, none; aggregate constant with divisor = the longest completion allowed (2503.20783)
    DAPO         as GRPO; aggregate token, clip_high 0.28 (2503.14476)
    BNPO         as DAPO; aggregate microbatch
    GSPO         as GRPO; ratio sequence, clip_low 3e-4, clip_high 4e-4 (2507.18071)
    LUSPO        as GSPO; aggregate constant with divisor 1
    CISPO        surrogate cispo (2506.13585)
    SAPO         surrogate sapo with tau (1, 1.05) (2511.20347)
    RLOO         leave_one_out, none; ratio sequence_sum, aggregate sequence; KL k1 in the reward (2402.14740)
    REINFORCE++  none, none, whitened over all tokens; with baseline: mean, none, whitened (2501.03262)
    ReMax        greedy, none (2310.10505)

On-policy the value of the objective is 0, or what the advantages average to, and its gradient is not (trl#2703,
open-r1#239): watch the reward.
"""

import jax
import jax.numpy as jnp

from llmstack.errors import BadInput
from llmstack.losses.common import known, masked_sum, select, sequence_sums, spread
from llmstack.shapes import check

FAR = 20.0  # log-ratios are held within +-FAR: exp(FAR) is still finite after any sum (trl#3015, trl PR#6637)

BASELINES = ('mean', 'leave_one_out', 'greedy', 'none')
SCALES = ('group', 'batch', 'none')
ESTIMATORS = ('k1', 'k2', 'k3')
RATIOS = ('token', 'sequence', 'sequence_sum')
SURROGATES = ('clip', 'cispo', 'sapo')
AGGREGATES = ('token', 'sequence', 'constant', 'microbatch')


# ---- advantages ----


def group_advantages(rewards, valid, *, baseline, scale, greedy=None, eps=1e-4):
  """Returns float[P,M]: rewards less a baseline, divided by a standard deviation; 0 where valid is 0.

  rewards: float[P,M], M completions of each of P prompts. valid: float[P,M], 0 for one without a reward: NaN there
    touches neither its group nor the batch (trl PR#5598).
  baseline: 'mean' of the group; 'leave_one_out', of its others; 'greedy', float[P], the reward of the greedy answer;
    'none'. The mean holds the completion itself, which makes its expected gradient (M - 1) / M of the true one.
  scale: 'group', the group's standard deviation; 'batch', that of all rewards less the baseline; 'none'. Bessel's, as
    in TRL, verl and OpenRLHF. Dividing by the group's weighs prompts by their difficulty (2503.20783).
  eps: added to it: 1e-4 in TRL, 1e-6 in verl, 1e-9 in OpenRLHF. A group of equal rewards has advantage 0 with any.

  Source: GRPO, 2402.03300, section 4.1; RLOO, 2402.14740, equation 8; ReMax, 2310.10505, algorithm 1.
  """
  check('PM,PM', rewards, valid)
  known('baseline', baseline, BASELINES)
  known('scale', scale, SCALES)
  if (baseline == 'greedy') != (greedy is not None):
    raise BadInput(
      f'baseline = {baseline} with{"" if greedy is not None else "out"} greedy rewards: give both, or none'
    )
  there = (valid != 0).astype(jnp.promote_types(rewards.dtype, jnp.float32))
  rewards = select(rewards, there)
  count = there.sum(1, keepdims=True)
  total = rewards.sum(1, keepdims=True)
  of = {
    'mean': lambda: total / jnp.maximum(count, 1),
    # One alone in its group has nobody to be compared with: its advantage is 0.
    'leave_one_out': lambda: jnp.where(count > 1, (total - rewards) / jnp.maximum(count - 1, 1), rewards),
    'greedy': lambda: greedy[:, None],
    'none': lambda: jnp.zeros_like(total),
  }
  gap = select(rewards - of[baseline](), there)
  if scale == 'none':
    return gap
  axis = 1 if scale == 'group' else None
  n = there.sum(axis, keepdims=True)
  centre = gap.sum(axis, keepdims=True) / jnp.maximum(n, 1)
  spread_ = jnp.square(select(gap - centre, there)).sum(axis, keepdims=True) / jnp.maximum(n - 1, 1)
  return gap / (jnp.sqrt(spread_) + eps)


def whiten(values, mask, *, ddof, shift_mean=True, eps=1e-8):
  """Returns float[B,T]: (values - mean) / sqrt(var + eps) over all that mask selects, 0 elsewhere.

  ddof: 1 is Bessel's variance (TRL, verl), 0 the population's (OpenRLHF). shift_mean: whether the mean is taken away;
  whitened *rewards* keep theirs.
  """
  kept = (mask != 0).astype(jnp.promote_types(values.dtype, jnp.float32))
  n = kept.sum()
  mean = masked_sum(values, kept) / jnp.maximum(n, 1)
  var = masked_sum(jnp.square(select(values, kept) - mean), kept) / jnp.maximum(n - ddof, 1)
  white = select((select(values, kept) - mean) * jax.lax.rsqrt(var + eps), kept)
  return white if shift_mean else select(white + mean, kept)


def _backwards(a, b):
  """Returns x[B,T] of x[t] = b[t] + a[t] x[t + 1], x = 0 behind the end; in log T steps."""
  after = lambda l, r: (l[0] * r[0], r[1] + r[0] * l[1])  # noqa: E731
  return jax.lax.associative_scan(after, (a, b), reverse=True, axis=1)[1]


def _continues(segments):
  """Returns bool[B,T]: the next column belongs to the same segment."""
  return jnp.pad(segments[:, 1:] == segments[:, :-1], ((0, 0), (0, 1)))


def gae(rewards, values, mask, segments, *, gamma, lam):
  """Returns (advantages, returns), float[B,T]: A[t] = sum_k (gamma lam)^k delta[t + k], returns = A + V; 0 under mask.

  delta = r + gamma V' - V, where V' is the value at the *next sampled token* of the completion, and 0 behind its last:
  tokens between turns that were not sampled pass both on, untouched by what the value head says there (verl PR#2337,
  ROLL PR#447; TRL and OpenRLHF take V = 0 in such a gap, which is the same for a mask without gaps).
  rewards, values: float[B,T]. Detached: neither is differentiated.

  Source: 1506.02438, equations 11 to 16.
  """
  check('BT,BT,BT,BT', rewards, values, mask, segments)
  kept = mask != 0
  r, v = (jax.lax.stop_gradient(select(x, mask)) for x in (rewards, values))
  same = _continues(segments)
  here = _backwards(
    jnp.where(same & ~kept, 1.0, 0.0).astype(v.dtype), v
  )  # the value here, or at the next sampled token
  following = jnp.where(same, jnp.pad(here[:, 1:], ((0, 0), (0, 1))), 0)
  delta = select(r + gamma * following - v, mask)
  advantages = select(_backwards(jnp.where(same, jnp.where(kept, gamma * lam, 1.0), 0.0).astype(v.dtype), delta), mask)
  return advantages, select(advantages + v, mask)


def token_rewards(scores, kl, mask, segments, n, *, beta):
  """Returns float[B,T]: -beta kl at every sampled token, and a completion's score at its last one (trl#3750).

  scores: float[B,P]. kl: float[B,T] of `token_kl`, or None with beta 0. n: P.
  That token is the EOS where the completion ended by itself; never the padding behind it (trl PR#5338).
  """
  if (kl is None) != (beta == 0):
    raise BadInput(f'beta = {beta} with{"out" if kl is None else ""} a KL: the reward takes both, or neither')
  total = sequence_sums(jnp.ones_like(mask), (mask != 0).astype(mask.dtype), segments, n)
  place = jnp.cumsum((mask != 0).astype(mask.dtype), 1)
  before = jnp.cumsum(total, 1) - total  # sampled tokens of the row's earlier completions
  last = (mask != 0) & (place - spread(before, segments) == spread(total, segments))
  rewards = jnp.where(last, spread(scores, segments), 0)
  return rewards if kl is None else rewards - beta * select(jax.lax.stop_gradient(kl), mask)


# ---- KL to the reference ----


def token_kl(logp, ref_logp, mask, *, estimator):
  """Returns float[B,T], an estimate of KL(pi || ref) at each sampled token, 0 under mask.

  d = logp - ref_logp. estimator: k1 = d, unbiased, may be negative (trl#235); k2 = d^2 / 2, biased; k3 = e^-d - 1 + d,
  unbiased and positive, of small variance where both are close. d is held within +-20, or k3 overflows (trl#3015).
  The gradient of an estimate is another matter: see kl_penalty. Source: Schulman, "Approximating KL divergence", 2020.
  """
  known('estimator', estimator, ESTIMATORS)
  d = jnp.clip(select(logp, mask) - select(ref_logp, mask), -FAR, FAR)
  return {'k1': lambda: d, 'k2': lambda: 0.5 * jnp.square(d), 'k3': lambda: jnp.expm1(-d) + d}[estimator]()


def check_kl(estimator, placement, gradient):
  """Returns nothing; raises BadInput for a KL that would not regularise, or an unknown word.

  placement: 'loss' | 'reward' | 'watch', which is measured and not learnt from | 'none'.
  gradient, of one in the loss: 'plain' | 'ratio'.
  """
  known('estimator', estimator, ESTIMATORS)
  known('gradient', gradient, ('plain', 'ratio'))
  kind = known('placement', placement, ('loss', 'reward', 'watch', 'none'))
  if kind == 'loss' and (estimator, gradient) == ('k1', 'plain'):
    raise BadInput(
      'kl.estimator = k1 with kl.placement = loss and kl.gradient = plain: the expected gradient of k1 over the '
      "policy's own samples is 0, whatever the reference; take gradient = ratio, estimator = k2, or placement = reward"
    )


def kl_penalty(logp, old_logp, ref_logp, mask, *, estimator, gradient):
  """Returns float[B,T]: the KL estimate as a loss, whose *gradient* is that of the KL it claims, or not.

  gradient 'plain' differentiates the estimate. Over the policy's own samples its expectation is, for k1: 0, so that is
  refused (open-instruct#534: a default elsewhere); k2: the gradient of KL(pi || ref); k3: that of KL(ref || pi), the
  other way round. 'ratio' multiplies by pi / old, for both k1 and k3 the gradient of KL(pi || ref), and right
  off-policy (2512.02556, section 3.1; TRL's use_bias_correction_kl). k2 with 'ratio' is that of E[d^2 / 2], no KL.
  """
  check_kl(estimator, 'loss', gradient)
  each = token_kl(logp, ref_logp, mask, estimator=estimator)
  return each * jnp.exp(_log_ratio(logp, old_logp, mask)) if gradient == 'ratio' else each


def adapted(beta, kl, *, target, horizon, n):
  """Returns the next coefficient of the KL: beta (1 + clip(kl / target - 1, -0.2, 0.2) n / horizon).

  kl: nats per completion of this iteration. n: completions in it. horizon: in completions. Source: 1909.08593, 2.2.
  """
  return beta * (1 + min(max(kl / target - 1, -0.2), 0.2) * n / horizon)


# ---- objectives ----


def _log_ratio(logp, old_logp, mask):
  return jnp.clip(select(logp, mask) - jax.lax.stop_gradient(select(old_logp, mask)), -FAR, FAR)


def aggregate(each, mask, segments, n, *, how, divisor=None):
  """Returns (sum, weight) of a loss float[B,T] per token; the step divides once, over microbatches and devices.

  how: 'token', the mean over all tokens of the batch (DAPO); 'sequence', each completion's mean, then their mean
    (GRPO); 'constant', each one's sum / divisor, then their mean (Dr. GRPO; `divisor` is the longest completion that
    is allowed, not this batch's width, which padding would change: verl#3741); 'microbatch', the mean over a
    microbatch's tokens, then over microbatches (BNPO: the one objective that depends on how the batch is split).
  A completion without a sampled token, or masked whole, is not counted: an empty batch is 0 (trl PR#3248).
  """
  known('aggregate', how, AGGREGATES)
  if (how == 'constant') != (divisor is not None):
    raise BadInput(f'aggregate = {how} with divisor = {divisor}: constant needs one, and the others have their own')
  tokens = mask.astype(jnp.float32).sum()
  if how in ('token', 'microbatch'):
    total = masked_sum(each, mask)
    if how == 'token':
      return total, tokens
    return total / jnp.maximum(tokens, 1), jnp.ones_like(tokens)
  sums = sequence_sums(each, mask, segments, n)
  lengths = sequence_sums(jnp.ones_like(mask), mask, segments, n)
  there = (lengths > 0).astype(jnp.float32)
  by = divisor if how == 'constant' else jnp.where(lengths > 0, lengths, 1.0)
  return jnp.sum(sums / by * there), there.sum()


def clipped_policy(
  logp, old_logp, advantages, mask, segments, n, *, ratio, surrogate, clip_low, clip_high, dual_clip, how,
  divisor=None, tau=None, weight=None,
):  # fmt: skip
  """Returns (sums, weights, metrics) of -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), aggregated.

  advantages: float[B,T], detached. n: P, completions a row has room for. how, divisor: see aggregate.
  ratio: 'token', pi / old of each token; 'sequence', the geometric mean over the completion (GSPO); 'sequence_sum',
    that of the whole completion (RLOO).
  surrogate: 'clip', or 'cispo', -clip(rho) A log pi with rho detached: no token loses its gradient; TRL's absolute
    bound of 5 is clip_high = 4 with clip_low = 1. Or 'sapo', -4 / t sigmoid(t (rho - 1)) A, which has no bounds but a
    temperature t, tau[0] for A > 0 and tau[1] for the others; the clip fractions are then only reported.
  dual_clip: c > 1, for A < 0 the loss is at most -c A (1912.09729); TRL's two-sided `delta` is the same. None for none.
  weight: float[B,T], detached: of samples that another policy drew (`truncated_weights`); None for 1.

  metrics: ratio, clip_low and clip_high (shares of tokens whose gradient the bound took away), and old_kl, the k3 of
    policy and sampler.
  Source: PPO, 1707.06347, equation 7; the others in the module's docstring.
  """
  check('BT,BT,BT,BT,BT', logp, old_logp, advantages, mask, segments)
  known('ratio', ratio, RATIOS)
  known('surrogate', surrogate, SURROGATES)
  if (surrogate == 'sapo') != (tau is not None):
    raise BadInput(f'surrogate = {surrogate} with tau = {tau}: sapo needs two temperatures, the others none')
  if dual_clip is not None and not dual_clip > 1 + clip_high:
    raise BadInput(f'dual_clip = {dual_clip} must be above 1 + clip_high = {1 + clip_high}; None for none')
  a = jax.lax.stop_gradient(select(advantages, mask))
  log_ratio = each_token = _log_ratio(logp, old_logp, mask)
  if ratio != 'token':
    whole = sequence_sums(each_token, mask, segments, n)
    if ratio == 'sequence':
      lengths = sequence_sums(jnp.ones_like(mask), mask, segments, n)
      whole = whole / jnp.where(lengths > 0, lengths, 1.0)
    log_ratio = jnp.clip(spread(whole, segments), -FAR, FAR)
  rho = jnp.exp(log_ratio)
  held = jnp.clip(rho, 1 - clip_low, 1 + clip_high)
  if surrogate == 'cispo':
    each = -jax.lax.stop_gradient(held) * a * select(logp, mask)
  elif surrogate == 'sapo':
    t = jnp.where(a > 0, *jnp.asarray(tau, a.dtype))
    each = -4 / t * jax.nn.sigmoid(t * (rho - 1)) * a
  else:
    each = jnp.maximum(-rho * a, -held * a)
    if dual_clip is not None:
      each = jnp.where(a < 0, jnp.minimum(each, -dual_clip * a), each)
  if weight is not None:
    each = each * jax.lax.stop_gradient(select(weight, mask))
  total, count = aggregate(each, mask, segments, n, how=how, divisor=divisor)
  tokens = mask.astype(jnp.float32).sum()
  share = lambda x: (masked_sum(x, mask), tokens)  # noqa: E731
  metrics = {
    'ratio': share(rho),
    'clip_low': share((a < 0) & (rho < 1 - clip_low)),
    'clip_high': share((a > 0) & (rho > 1 + clip_high)),
    'old_kl': share(jnp.expm1(each_token) - each_token),
  }
  return {'policy': total}, {'policy': count}, metrics


def truncated_weights(logp, sampling_logp, mask, segments, n, *, cap, level, beyond):
  """Returns float[B,T], detached: pi / sampler, bounded, for tokens that the sampler's own policy drew.

  logp: float[B,T] of the learner before its first update on them. level: 'token', or 'sequence', of whole completions,
    whose weights grow and vanish with length (trl#4772). beyond: 'truncate' to cap, or 'mask', 0 for what is above it
    (TRL's sequence_mask with 3).
  """
  known('level', level, ('token', 'sequence'))
  known('beyond', beyond, ('truncate', 'mask'))
  d = _log_ratio(logp, sampling_logp, mask)
  if level == 'sequence':
    d = jnp.clip(spread(sequence_sums(d, mask, segments, n), segments), -FAR, FAR)
  w = jax.lax.stop_gradient(jnp.exp(d))
  return select(jnp.minimum(w, cap) if beyond == 'truncate' else jnp.where(w > cap, 0, w), mask)


def clipped_value(values, old_values, returns, mask, *, clip, coefficient):
  """Returns (sums, weights, metrics): coefficient max((V - R)^2, (old + clip(V - old, +-clip) - R)^2) / 2, token mean.

  values, old_values, returns: float[B,T]; the last two detached. clip: inf for none. coefficient: beside the policy
  loss of a shared trunk, 0.1 in TRL and 2403.17031.
  """
  check('BT,BT,BT,BT', values, old_values, returns, mask)
  v, old, r = select(values, mask), *(jax.lax.stop_gradient(select(x, mask)) for x in (old_values, returns))
  held = old + jnp.clip(v - old, -clip, clip)
  each = 0.5 * jnp.maximum(jnp.square(v - r), jnp.square(held - r))
  tokens = mask.astype(jnp.float32).sum()
  share = lambda x: (masked_sum(x, mask), tokens)  # noqa: E731
  metrics = {'value_error': share(jnp.square(v - r)), 'value_clip': share(jnp.abs(v - old) > clip), 'value': share(v)}
  return {'value': coefficient * masked_sum(each, mask)}, {'value': tokens}, metrics
