"""How far several raters agree on which of two replies is better, beyond what chance gives.

A verdict is one of three: the first reply, a tie, the second. They are names without an order, so a tie against a side
is as much a disagreement as one side against the other. Which reply is called the first means nothing (raters see them
in random order), so that each pair is counted in both orders, and chance agreement does not depend on what it was.
"""

import collections
import math
from typing import NamedTuple

import numpy as np

from llmstack.data import records, sources
from llmstack.errors import BadInput
from llmstack.serve.label import digest

FIRST, TIE, SECOND = range(3)
DRAWS = 2000  # of the bootstrap


class Estimate(NamedTuple):
  """A number with its 95 % interval; NaN where it is not defined, as where chance alone agrees always."""

  value: float
  low: float
  high: float


def cohen(counts):
  """Returns Cohen's kappa float64[...] of float64[..., 3, 3], how often two raters said what.

  Source: Cohen 1960, (p_o - p_e) / (1 - p_e), where p_e is of the raters' own shares of each verdict.
  """
  total = counts.sum((-2, -1))
  same = np.trace(counts, axis1=-2, axis2=-1) / total
  chance = (counts.sum(-1) * counts.sum(-2)).sum(-1) / total**2
  return _quotient(same - chance, 1 - chance)


def krippendorff(differ, counts):
  """Returns Krippendorff's alpha float64[...] for nominal verdicts.

  differ: float64[...], the sum over units of pairs of unequal verdicts over (verdicts - 1), ordered pairs.
  counts: float64[..., 3], how often each verdict was given on units with at least two.
  Source: Krippendorff 2011, 1 - D_o / D_e: differ / n over the share of unequal pairs of all n verdicts.
  """
  n = counts.sum(-1)
  chance = (n**2 - (counts**2).sum(-1)) / (n - 1)
  return 1 - _quotient(differ, chance)


def _quotient(a, b):
  return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=np.abs(b) > 1e-12)


def read(path):
  """Returns {rater: {unit: (verdict, left)}} of a file of pairs; without `rater`, the file's name is the rater.

  unit: (id or '', digest); an id is `llmstack label`'s own digest where the pairs had none, and then it is left out.
  verdict: by label, above 0.5 for chosen; the first reply is the one whose text comes first in the alphabet.
  left: the verdict that the reply on the left would have got, None where the file does not say.
  Raises: BadInput, with the place, for what is no pair, and where a rater judged a unit twice.
  """
  found = collections.defaultdict(dict)
  for where, row in sources.rows(sources.Source((path,))):
    pair = records.compared(where, row)
    same = digest(pair.prompt, pair.chosen, pair.rejected)
    rater, id = str(row.get('rater', path)), str(row.get('id', same))
    unit = '' if id == same else id, same
    if unit in found[rater]:
      raise BadInput(f'{where}: {rater} judged this pair before: leave one of the two, or give them ids')
    first = min(pair.chosen, pair.rejected, key=repr) == pair.chosen
    verdict = TIE if pair.label == 0.5 else FIRST if (pair.label > 0.5) == first else SECOND
    left = None
    if row.get('left') in ('a', 'b') and row.get('verdict') in ('a', 'b'):
      left = verdict if row['left'] == row['verdict'] else SECOND - verdict
    found[rater][unit] = verdict, left
  return dict(found)


def table(raters):
  """Returns int[U,R]: verdicts of R raters, {unit: (verdict, left)} each, on the U units; -1 for none."""
  units = sorted({unit for said in raters for unit in said})
  return np.array([[said.get(unit, (-1,))[0] for said in raters] for unit in units]).reshape(len(units), len(raters))


def agreement(verdicts, seed=0, draws=DRAWS):
  """Returns {'units', 'verdicts', 'raw', 'decided', 'alpha', 'kappa'}; the last four are Estimates.

  verdicts: int[U,R], -1 for none. units: how many have at least two; verdicts: how many those are given.
  raw: the mean over these units of the share of equal verdicts among all pairs of raters.
  decided: the same without ties, over the units that still have two verdicts.
  kappa: Cohen's, of two raters; None for more.
  Intervals: units are drawn anew, `draws` times, and the middle 95 % is given; draws in which a number is undefined
  are left out.
  """
  counts = (verdicts[..., None] == np.arange(3)).sum(1).astype(np.float64)  # [U,3]
  keep = counts.sum(1) > 1
  verdicts, counts = verdicts[keep], counts[keep]
  U = len(counts)
  out = {'units': U, 'verdicts': int(counts.sum())}
  if not U:
    nothing = Estimate(math.nan, math.nan, math.nan)
    return (
      out | dict.fromkeys(('raw', 'decided', 'alpha'), nothing) | {'kappa': nothing if verdicts.shape[1] == 2 else None}
    )

  # Every number is a function of sums over units: one matrix product serves all draws.
  r = np.random.default_rng(seed)
  weights = np.concatenate([np.ones((1, U)), r.multinomial(U, np.full(U, 1 / U), draws)])

  def share(counts):
    m = counts.sum(1)
    pairs = m * (m - 1)
    equal = _quotient((counts * (counts - 1)).sum(1), pairs)
    some = pairs > 0
    return _quotient(weights[:, some] @ equal[some], weights[:, some].sum(1))

  m = counts.sum(1)
  differ = weights @ ((m * (m - 1) - (counts * (counts - 1)).sum(1)) / (m - 1))
  both = weights @ (counts + counts[:, ::-1])
  out |= {'raw': _estimate(share(counts)), 'decided': _estimate(share(counts * [1, 0, 1]))}
  out |= {'alpha': _estimate(krippendorff(2 * differ, both)), 'kappa': None}
  if verdicts.shape[1] == 2:
    each = np.zeros((U, 3, 3))
    each[np.arange(U), verdicts[:, 0], verdicts[:, 1]] = 1
    each += each[:, ::-1, ::-1]
    out['kappa'] = _estimate(cohen(np.tensordot(weights, each, 1)))
  return out


def _estimate(values):
  """Returns the Estimate of [all units, draw, draw, ...]."""
  drawn = values[1:][np.isfinite(values[1:])]
  low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (math.nan, math.nan)
  return Estimate(float(values[0]), float(low), float(high))
