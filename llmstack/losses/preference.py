"""Losses on preferences: the DPO family, the reference-free ones (ORPO, CPO, SimPO, AlphaPO), and KTO.

Pairs share one forward pass. Row b holds P pairs or fewer, as float[B,M,T] with M = 2: index 0 is the chosen, index 1
the rejected completion. `segments` int32[B,M,T] numbers the pairs from 1 (0 = padding): pair p is segment p + 1 of
[b,0] and of [b,1]. Without packing P = 1. `logp` is the log-prob of each target, `mask` is 1 where that target is a
token of the completion (the end of turn included, the prompt not), `valid` float32[B,P] is the weight of a pair, 0
where there is none. What is masked, or belongs to no valid pair, changes neither value nor gradient, NaN included.

The losses per pair are pure functions of rho_w and rho_l, float[B,P]: log pi - log ref of the chosen (w, "winner") and
the rejected (l) completion. `label_smoothing` is the probability that a label is wrong, a number or float[B,P]: for a
soft label p = P(chosen is better), pass 1 - p. `beta` is 1 / temperature of the implicit reward beta * rho.

With dropout on, or a reference in another mode, step 0 is not ln 2 (trl#744, trl PR#5542). The chosen log-prob usually
falls in DPO, the rejected one just falls faster (trl#800, eric-mitchell#32): both are logged.
"""

import jax
import jax.numpy as jnp

from llmstack.errors import BadInput
from llmstack.losses.common import by_segment, known, log1mexp, ranking, select, sequence_sums
from llmstack.shapes import check

log_sigmoid, sigma = jax.nn.log_sigmoid, jax.nn.sigmoid


def _exp(x):
  # float32 ends at exp(88); held there, a wild log-ratio gives a huge loss and no NaN (inf - inf).
  return jnp.exp(jnp.minimum(x, 80.0))


# ---- one number per pair ----


def sigmoid(rho_w, rho_l, *, beta, label_smoothing):
  """Returns float[B,P]: DPO, -(1 - e) log sigma(beta h) - e log sigma(-beta h) with h = rho_w - rho_l.

  Source: 2305.18290, equation 7; e > 0 is cDPO (ericmitchell.ai/cdpo.pdf), also the soft labels of RLAIF.
  """
  h = beta * (rho_w - rho_l)
  return -(1 - label_smoothing) * log_sigmoid(h) - label_smoothing * log_sigmoid(-h)


def robust(rho_w, rho_l, *, beta, label_smoothing):
  """Returns float[B,P]: unbiased under labels flipped with probability e < 1/2. Source: 2403.00409."""
  if isinstance(label_smoothing, float) and not 0 <= label_smoothing < 0.5:
    raise BadInput(f'label_smoothing = {label_smoothing} must be at least 0 and below 0.5 for robust')
  h = beta * (rho_w - rho_l)
  right, wrong = -log_sigmoid(h), -log_sigmoid(-h)
  return ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)


def exo_pair(rho_w, rho_l, *, beta, label_smoothing):
  """Returns float[B,P]: KL(softmax(beta rho) || (1 - e, e)); TRL takes e = 1e-3. Source: 2402.00856."""
  if isinstance(label_smoothing, float) and not 0 < label_smoothing < 1:
    raise BadInput(f'label_smoothing = {label_smoothing} must be in (0, 1) for exo_pair, for example 1e-3')
  h = beta * (rho_w - rho_l)
  right = sigma(h) * (log_sigmoid(h) - jnp.log(1 - label_smoothing))
  return right + sigma(-h) * (log_sigmoid(-h) - jnp.log(label_smoothing))


def hinge(rho_w, rho_l, *, beta):
  """Returns float[B,P]: relu(1 - beta h). Source: SLiC as in RSO, 2309.06657."""
  return jax.nn.relu(1 - beta * (rho_w - rho_l))


def ipo(rho_w, rho_l, *, beta):
  """Returns float[B,P]: (h - 1 / (2 beta))^2; beta is the paper's tau.

  Source: 2310.12036, equation 17, where rho is summed, as with OpenRLHF and the DPO authors; TRL divides rho by the
  length first (trl PR#1265, trl#1677), which is `normalise=True` of dpo().
  """
  return jnp.square(rho_w - rho_l - 0.5 / beta)


def nca_pair(rho_w, rho_l, *, beta):
  """Returns float[B,P]. Source: 2402.05369."""
  w, l = beta * rho_w, beta * rho_l
  return -log_sigmoid(w) - 0.5 * log_sigmoid(-w) - 0.5 * log_sigmoid(-l)


def bco_pair(rho_w, rho_l, *, beta):
  """Returns float[B,P]: chosen and rejected classified apart. Source: 2404.04656; without its running shift delta."""
  return -log_sigmoid(beta * rho_w) - log_sigmoid(-beta * rho_l)


def sppo_hard(rho_w, rho_l, *, beta):
  """Returns float[B,P]: each rho pulled to +-1 / (2 beta). Source: 2405.00675, with win rates of 1 and 0."""
  return jnp.square(rho_w - 0.5 / beta) + jnp.square(rho_l + 0.5 / beta)


def apo_zero(rho_w, rho_l, *, beta):
  """Returns float[B,P]: chosen up, rejected down; for a policy worse than the chosen answers. Source: 2408.06266."""
  return sigma(-beta * rho_w) + sigma(beta * rho_l)


def apo_down(rho_w, rho_l, *, beta):
  """Returns float[B,P]: both down, rejected more; for a policy better than the chosen answers. Source: 2408.06266."""
  return sigma(beta * rho_w) + sigma(-beta * (rho_w - rho_l))


def discopop(rho_w, rho_l, *, beta, tau=0.05):
  """Returns float[B,P]: logistic and exponential loss, mixed by sigma(beta h / tau). Source: 2406.08414.

  The exponential is multiplied in log space: alone it is infinite where its weight is 0.
  It is not convex: for beta h in (-0.12, 0.07), as in the first steps from a reference, its gradient lowers h.
  """
  h = beta * (rho_w - rho_l)
  return -log_sigmoid(h) * sigma(-h / tau) + _exp(log_sigmoid(h / tau) - h)


SMOOTHED = {f.__name__: f for f in (sigmoid, robust, exo_pair)}
PLAIN = {f.__name__: f for f in (hinge, ipo, nca_pair, bco_pair, sppo_hard, apo_zero, apo_down, discopop)}
# These sort over the whole batch: two halves do not add up to it, so a step must not split it into microbatches.
SORTED = ('aot', 'aot_unpaired')
# Not of pairs: the chosen completions' NLL, as the mean over tokens (MPO, TRL) or over pairs of each one's mean (RPO).
NLL = ('sft', 'sft_per_pair')
TERMS = (*SMOOTHED, *PLAIN, *SORTED, *NLL)


def in_order(a, b, valid):
  """Returns (a, b, valid), float[B,P] each: a and b sorted apart, over valid pairs only, which come first.

  The optimal transport of AOT: the i-th smallest of a meets the i-th smallest of b. valid becomes 0 or 1.
  Source: 2406.05882.
  """
  count = (valid != 0).sum()
  ahead = (jnp.arange(valid.size) < count).reshape(valid.shape)

  def one(x):
    x = jnp.where(valid != 0, x, jnp.inf)  # last
    return select(jnp.sort(x, axis=None).reshape(x.shape), ahead)

  return one(a), one(b), ahead.astype(jnp.float32)


# ---- from tokens to pairs ----


def shared_length_sums(values, mask, segments, n, ld_alpha):
  """Returns float[B,M,P]: sequence_sums with what is beyond the shorter completion of a pair weighted by ld_alpha.

  Source: LD-DPO, 2409.06411; as in TRL, reference and policy alike.
  """
  place = jnp.cumsum(by_segment((mask != 0).astype(jnp.int32), segments, n), -1)
  shared = place[..., -1:].min(1, keepdims=True)
  weight = jnp.where(place <= shared, 1.0, ld_alpha)
  return jnp.sum(by_segment(select(values, mask) * mask, segments, n) * weight, -1)


def _mean(sums, lengths):
  return sums / jnp.where(lengths > 0, lengths, 1.0)


def _pairs(sums, valid):
  """Returns (chosen, rejected), float[B,P] each, of sums float[B,M,P]; 0 where there is no pair."""
  return select(sums[:, 0], valid), select(sums[:, 1], valid)


def _lengths(mask, segments, valid):
  return _pairs(sequence_sums(jnp.ones_like(mask), mask, segments, valid.shape[1]), valid)


def _check_pairs(valid, *arrays):
  sizes = check(','.join(['BP'] + ['BMT'] * len(arrays)), valid, *arrays)
  if sizes['M'] != 2:
    raise ValueError(f'a pair is 2 completions, chosen and rejected, but M = {sizes["M"]}')


def _smoothing(label_smoothing, valid):
  """Returns a float, or float[B,P] with a harmless number where there is no pair."""
  if isinstance(label_smoothing, int | float):
    return float(label_smoothing)
  check('BP,BP', valid, label_smoothing)
  return jnp.where(valid != 0, label_smoothing, 0.25)


def _add_up(terms, w, l, valid, nll, *, beta, label_smoothing, weight=None, sorts=None):
  """Returns (sums, weights) of the mixture `terms` = {name: coefficient}.

  w, l: float[B,P], rho of chosen and rejected. nll: (sum over tokens, tokens), float[B,P] each, of the chosen.
  sorts: {name of SORTED: the two float[B,P] that it sorts}.
  """
  for name in terms:
    known('term', name, TERMS if sorts else [t for t in TERMS if t not in SORTED])
  e = _smoothing(label_smoothing, valid)
  smoothed = [t for t in terms if t in SMOOTHED or t in SORTED]
  if not smoothed and not (isinstance(e, float) and e == 0):
    raise BadInput(f'label_smoothing is given, but none of {", ".join(terms)} reads it: set it to 0')
  if any(t in SORTED for t in terms) and (weight is not None or not isinstance(e, float)):
    raise BadInput('aot sorts over the batch, so it can have neither weights nor soft labels of pairs')
  sums, weights = {}, {}
  for name, coefficient in terms.items():
    over, each = valid, valid  # what multiplies the loss, and what the denominator adds up
    if name in NLL:
      loss, each = (nll[0], valid * nll[1]) if name == 'sft' else (_mean(*nll), valid)
    elif name in SORTED:
      a, b, over = in_order(*sorts[name], valid)
      loss, each = sigmoid(a, b, beta=beta, label_smoothing=e), over
    else:
      over = valid if weight is None else select(weight, valid) * valid
      smoothing = {'label_smoothing': e} if name in SMOOTHED else {}
      loss = (SMOOTHED | PLAIN)[name](w, l, beta=beta, **smoothing)
    sums[name] = coefficient * jnp.sum(loss * over)
    weights[name] = each.sum()
  return sums, weights


def _metrics(w, l, logp_w, logp_l, valid, beta):
  """Returns the metrics of implicit rewards beta * w, beta * l, and the log-probs of whole completions (trl#800)."""
  mean = lambda x: (jnp.sum(x * valid), valid.sum())  # noqa: E731
  return {
    'accuracy': (jnp.sum(ranking(w - l, valid)), valid.sum()),
    'margin': mean(beta * (w - l)),
    'reward_chosen': mean(beta * w),
    'reward_rejected': mean(beta * l),
    'logp_chosen': mean(logp_w),
    'logp_rejected': mean(logp_l),
  }


# ---- with a reference ----


def f_divergence(rho, *, divergence, alpha):
  """Returns float[B,P]: f'(pi / ref), which takes the place of rho = log(pi / ref). Source: 2309.16240.

  divergence: 'reverse_kl' (DPO: rho itself), 'forward_kl' 1 - e^-rho, 'js' log 2 + log sigma(rho) or 'alpha'
    (e^((alpha - 1) rho) - 1) / (alpha - 1), with alpha as in TRL; the paper's is 1 - alpha. Constants cancel in h, but
    not in a loss that looks at one completion alone: each of them is 0 at rho = 0.
  """
  known('divergence', divergence, ('reverse_kl', 'forward_kl', 'js', 'alpha'))
  if (divergence == 'alpha') != (alpha is not None) or alpha == 1:
    raise BadInput(f'alpha = {alpha} with divergence = {divergence}: only alpha needs one, not 1 (that is reverse_kl)')
  if divergence == 'forward_kl':
    return 1 - _exp(-rho)
  if divergence == 'js':
    return jnp.log(2.0) + log_sigmoid(rho)
  return (_exp((alpha - 1) * rho) - 1) / (alpha - 1) if divergence == 'alpha' else rho


def wpo_weight(logp, log_collision, mask, segments, valid):
  """Returns float[B,P], detached: min(1, exp(mean a_w + mean a_l)), a = logp - log_collision: how on-policy a pair is.

  log_collision: float[B,M,T], log sum_v pi(v)^2 = logsumexp(2 logits) - 2 logsumexp(logits) at each position.
  Source: WPO, 2406.11827; the bound of 1 is TRL's.
  """
  _check_pairs(valid, logp, log_collision, mask, segments)
  sums = _pairs(sequence_sums(logp - log_collision, mask, segments, valid.shape[1]), valid)
  w, l = (_mean(s, n) for s, n in zip(sums, _lengths(mask, segments, valid)))
  return jax.lax.stop_gradient(jnp.exp(jnp.minimum(w + l, 0.0)))


def dpo(
  logp, ref_logp, mask, segments, valid,
  *, terms, beta, label_smoothing, normalise, divergence='reverse_kl', alpha=None, ld_alpha=None, weight=None,
):  # fmt: skip
  """Returns (sums, weights, metrics) of a mixture of losses of the DPO family.

  logp, ref_logp: float[B,M,T] of policy and reference. mask, segments, valid: see the top of the file.
  terms: {name: coefficient}, names of TERMS; DPO is {'sigmoid': 1.0}, MPO {'sigmoid': .8, 'bco_pair': .2, 'sft': 1.0}.
    AOT sorts over the batch: it is the one loss here that does not add up over microbatches.
  normalise: whether rho is divided by the completion's length, for all terms: no in the papers; yes for TRL's ipo and
    sigmoid_norm and for dpo_norm of open-instruct (2411.15124, beta 5).
  divergence, alpha: see f_divergence. ld_alpha: see shared_length_sums, None for 1. weight: float[B,P] on each pair's
    loss but not on its denominator, see wpo_weight, None for 1.

  Raises: BadInput for a term, divergence or number that does not exist, or a knob that none of the terms reads.
  """
  _check_pairs(valid, logp, ref_logp, mask, segments)
  n = valid.shape[1]
  if ld_alpha is not None and normalise:
    raise BadInput('ld_alpha weighs sums, normalise asks for means: no source says what both would be, drop one')
  if divergence != 'reverse_kl' and any(t in SORTED for t in terms):
    raise BadInput(f'aot sorts log-ratios, so divergence = {divergence} has no meaning for it: use reverse_kl')
  ref_logp = jax.lax.stop_gradient(ref_logp)
  policy = _pairs(sequence_sums(logp, mask, segments, n), valid)
  reference = _pairs(sequence_sums(ref_logp, mask, segments, n), valid)
  lengths = _lengths(mask, segments, valid)
  if ld_alpha is not None:
    pi, ref = (_pairs(shared_length_sums(x, mask, segments, n, ld_alpha), valid) for x in (logp, ref_logp))
  elif normalise:
    pi, ref = ([_mean(s, m) for s, m in zip(x, lengths)] for x in (policy, reference))
  else:
    pi, ref = policy, reference
  w, l = (f_divergence(a - b, divergence=divergence, alpha=alpha) for a, b in zip(pi, ref))
  sorts = {'aot': (pi[0] - pi[1], ref[0] - ref[1]), 'aot_unpaired': (w, l)}
  sums, weights = _add_up(
    terms, w, l, valid, (-policy[0], lengths[0]),
    beta=beta, label_smoothing=label_smoothing, weight=weight, sorts=sorts,
  )  # fmt: skip
  metrics = _metrics(w, l, *policy, valid, beta)
  for name, a, b in zip(('log_ratio_chosen', 'log_ratio_rejected'), policy, reference):
    metrics[name] = (jnp.sum((a - b) * valid), valid.sum())
  return sums, weights, metrics


# ---- without a reference ----


def cpo(logp, mask, segments, valid, *, terms, beta, label_smoothing, normalise):
  """Returns (sums, weights, metrics) of dpo() with a uniform reference: rho is the log-prob itself.

  terms: CPO is {'sigmoid': 1.0, 'sft': 1.0} with normalise=False, TRL's cpo_ipo {'ipo': 1.0} with normalise=True. The
    NLL is there only if it is named: TRL's cpo_alpha = 1 adds it unasked, and so to SimPO (trl PR#1703).
  normalise: whether the log-prob is divided by the length. Source: 2401.08417, its NLL a token mean.
  """
  score = _mean if normalise else lambda sums, lengths: sums
  return _reference_free(logp, mask, segments, valid, score, 0.0, terms, beta, label_smoothing)


def simpo(logp, mask, segments, valid, *, beta, gamma, label_smoothing, nll, alpha=0.0):
  """Returns (sums, weights, metrics): -log sigma(beta (r_w - r_l) - gamma) with r the mean log-prob per token.

  gamma: the margin in units of beta * r, as in the paper and TRL (which computes it as beta * (h - gamma / beta); trl
    PR#1703, PR#1760, SimPO#4); open-instruct and the authors' configs give gamma / beta, see gamma_from_ratio.
  nll: coefficient of the chosen's token-mean NLL; the paper has none, 0.
  alpha: AlphaPO's r = (1 - p^-alpha) / alpha, p = exp(mean log-prob), 0 for its limit SimPO.

  Source: 2405.14734, equation 6 (beta 2.5, gamma / beta 0.55); AlphaPO, 2501.03884.
  """

  def score(sums, lengths):
    mean = _mean(sums, lengths)
    return (1 - _exp(-alpha * mean)) / alpha if alpha else mean

  terms = {'sigmoid': 1.0} | ({'sft': nll} if nll else {})
  return _reference_free(logp, mask, segments, valid, score, gamma / beta, terms, beta, label_smoothing)


def gamma_from_ratio(ratio, beta):
  """Returns the gamma of simpo() where a configuration gives gamma / beta, such as 0.3 or 0.55."""
  return ratio * beta


def _reference_free(logp, mask, segments, valid, score, shift, terms, beta, label_smoothing):
  """Returns (sums, weights, metrics); score: of sums and lengths, float[B,P]; shift: what chosen must lead by."""
  _check_pairs(valid, logp, mask, segments)
  sums = _pairs(sequence_sums(logp, mask, segments, valid.shape[1]), valid)
  lengths = _lengths(mask, segments, valid)
  w, l = (score(s, n) for s, n in zip(sums, lengths))
  added = _add_up(
    terms, w - shift, l, valid, (-sums[0], lengths[0]), beta=beta, label_smoothing=label_smoothing
  )  # fmt: skip
  return *added, _metrics(w, l, *sums, valid, beta)


def orpo(logp, mask, segments, valid, *, lambda_or, nll_mask, nll_per_pair):
  """Returns (sums, weights, metrics): NLL(chosen) - lambda log sigma(log odds_w - log odds_l).

  odds = p / (1 - p) with p = exp(mean log-prob per token); finite in value and gradient as p -> 1 (trl#1473, PR#1491).
  lambda_or: the paper's lambda, 0.1 (TRL calls it beta).
  nll_mask: float[B,M,T], the targets of the NLL, of which [:,0] is read: `mask` for the completion only, 1 on prompt
    and completion for the paper and TRL. Threads disagree (trl#1676, trl PR#2502), so there is no default.
  nll_per_pair: False for the mean over all tokens (TRL), True for the mean of each pair's mean (tunix).

  Source: 2403.07691.
  """
  _check_pairs(valid, logp, mask, nll_mask, segments)
  n = valid.shape[1]
  sums = _pairs(sequence_sums(logp, mask, segments, n), valid)
  w, l = (_mean(s, m) for s, m in zip(sums, _lengths(mask, segments, valid)))
  log_odds = (w - log1mexp(w)) - (l - log1mexp(l))
  nll = -_pairs(sequence_sums(logp, nll_mask, segments, n), valid)[0]
  lengths = _lengths(nll_mask, segments, valid)[0]
  if nll_per_pair:
    nll, lengths = _mean(nll, lengths), jnp.ones_like(lengths)
  total = {
    'nll': jnp.sum(nll * valid),
    'odds_ratio': lambda_or * jnp.sum(-log_sigmoid(log_odds) * valid),
  }
  weights = {'nll': jnp.sum(lengths * valid), 'odds_ratio': valid.sum()}
  metrics = _metrics(w, l, *sums, valid, lambda_or) | {
    'nll': (total['nll'], weights['nll']), 'log_odds_ratio': (jnp.sum(log_odds * valid), valid.sum())
  }  # fmt: skip
  return total, weights, metrics


# ---- unpaired ----


def kto(logp, ref_logp, mask, segments, valid, desirable, *, beta, lambda_d, lambda_u, z0):
  """Returns (sums, weights, metrics): lambda_D (1 - sigma(beta (rho - z0))), lambda_U (1 - sigma(beta (z0 - rho))).

  logp, ref_logp, mask: float[B,T]. segments: int32[B,T]. valid, desirable: float32[B,P]; desirable is 1 or 0.
  lambda_d, lambda_u: choose them so that lambda_d n_d : lambda_u n_u is in [1, 4/3]. The mean is over all examples, so
    a batch with none of one kind is no 0 / 0.
  z0: float[], the mean of rho over mismatched prompts and completions (kto_baseline); clamped at 0 and detached here.
    A constant 0.0 is TRL's apo_zero_unpaired.

  Source: 2402.01306.
  """
  check('BT,BT,BT,BT,BP,BP', logp, ref_logp, mask, segments, valid, desirable)
  n = valid.shape[1]
  policy = select(sequence_sums(logp, mask, segments, n), valid)
  rho = policy - select(sequence_sums(jax.lax.stop_gradient(ref_logp), mask, segments, n), valid)
  z0 = jax.lax.stop_gradient(jnp.maximum(z0, 0.0))
  gain = beta * (rho - z0)
  good, bad = valid * (desirable != 0), valid * (desirable == 0)
  total = lambda_d * jnp.sum(sigma(-gain) * good) + lambda_u * jnp.sum(sigma(gain) * bad)
  metrics = {'z0': (z0 * valid.sum(), valid.sum())}
  for name, kind in (('desirable', good), ('undesirable', bad)):
    metrics[f'reward_{name}'] = (jnp.sum(beta * rho * kind), kind.sum())
    metrics[f'logp_{name}'] = (jnp.sum(policy * kind), kind.sum())
  return {'kto': total}, {'kto': valid.sum()}, metrics


def kto_baseline(kl_logp, kl_ref_logp, mask, segments, valid):
  """Returns (numerator, denominator), float[] each, to be added up over microbatches; z0 of kto() is their quotient.

  kl_logp, kl_ref_logp: float[B,T] of prompts followed by another one's completion, detached here.
  The quotient of one microbatch is a noisier z0, and another loss than that of the whole batch (trl PR#2153).
  """
  check('BT,BT,BT,BT,BP', kl_logp, kl_ref_logp, mask, segments, valid)
  rho = select(sequence_sums(kl_logp - kl_ref_logp, mask, segments, valid.shape[1]), valid)
  return jax.lax.stop_gradient(jnp.sum(rho * valid)), valid.sum()
