"""Reward models: the Bradley-Terry loss, and what tells a good scorer from a lucky one (calibration, length)."""

import jax
import jax.numpy as jnp
import numpy as np

from llmstack.errors import BadInput
from llmstack.losses.common import ranking, select
from llmstack.shapes import check


def bradley_terry(chosen, rejected, valid, *, margin, label_smoothing, centering):
  """Returns (sums, weights, metrics): -(1 - e) log sigma(d) - e log sigma(-d), d = r_w - r_l - m.

  chosen, rejected: float[B,P], the scores r_w and r_l of the last token. valid: float32[B,P], weight of a pair.
  margin: float[B,P] m >= 0, or None. OpenRLHF's log-exp loss ignores it, and is infinite at a gap of 200.
  label_smoothing: e, a number or float[B,P]; 1 - p for a soft label p = P(chosen is better).
  centering: eta of the term eta (r_w + r_l)^2, which keeps scores near 0; 0 for none.

  Source: 2009.01325; margin: Llama 2, 2307.09288, section 3.2.2; centering: 2312.09244, with 0.01.
  """
  check('BP,BP,BP', chosen, rejected, valid)
  chosen, rejected = select(chosen, valid), select(rejected, valid)
  gap = chosen - rejected
  d = gap if margin is None else gap - select(margin, valid)
  e = label_smoothing if isinstance(label_smoothing, int | float) else select(label_smoothing, valid)
  loss = -(1 - e) * jax.nn.log_sigmoid(d) - e * jax.nn.log_sigmoid(-d)
  sums = {'bt': jnp.sum(loss * valid)}
  if centering:
    sums['centering'] = centering * jnp.sum(jnp.square(chosen + rejected) * valid)
  weight = valid.sum()
  metrics = {
    'accuracy': (jnp.sum(ranking(gap, valid)), weight),
    'margin': (jnp.sum(gap * valid), weight),
    'score_chosen': (jnp.sum(chosen * valid), weight),
    'score_rejected': (jnp.sum(rejected * valid), weight),
  }
  return sums, dict.fromkeys(sums, weight), metrics


def calibration(chosen, rejected, *, bins):
  """Returns {'ece': float, 'bins': [{low, high, count, confidence, accuracy}]} of sigma(|r_w - r_l|), on the host.

  chosen, rejected: numpy float[N], scores of labelled pairs. bins: equal ones of [1/2, 1]; empty ones are left out.
  The model's claim is that the answer it scores higher is the better one, with this probability; binning
  sigma(r_w - r_l) itself would compare probabilities with a label that is always 1. A tie is half right.

  Raises: BadInput for no pairs or scores that are not finite.
  Source: expected calibration error of 1706.04599.
  """
  gap = _finite(chosen, 'chosen scores') - _finite(rejected, 'rejected scores')
  confidence = 1 / (1 + np.exp(-np.abs(gap)))
  right = 0.5 * (1 + np.sign(gap))
  which = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
  rows = []
  for i in sorted(set(which.tolist())):
    here = which == i
    rows.append({
      'low': 0.5 + 0.5 * i / bins, 'high': 0.5 + 0.5 * (i + 1) / bins, 'count': int(here.sum()),
      'confidence': float(confidence[here].mean()), 'accuracy': float(right[here].mean()),
    })  # fmt: skip
  ece = sum(row['count'] * abs(row['accuracy'] - row['confidence']) for row in rows) / gap.size
  return {'ece': ece, 'bins': rows}


def length_correlation(scores, lengths):
  """Returns float: Pearson's correlation of scores with lengths in tokens; 0 where either is constant.

  Raises: BadInput for no scores or scores that are not finite.
  """
  x, y = _finite(scores, 'scores'), _finite(lengths, 'lengths')
  x, y = x - x.mean(), y - y.mean()
  spread = np.sqrt((x * x).sum() * (y * y).sum())
  return float((x * y).sum() / spread) if spread > 0 else 0.0


def _finite(values, what):
  values = np.asarray(values, np.float64).reshape(-1)
  if not values.size:
    raise BadInput(f'there are no {what}: give at least one pair')
  if not np.isfinite(values).all():
    raise BadInput(f'{(~np.isfinite(values)).sum()} of {values.size} {what} are not finite: find out why first')
  return values
