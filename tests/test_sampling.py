"""Sampling against a sort, and its keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmstack.errors import BadInput
from llmstack.infer.sampling import NEVER, Sampling, largest_threshold, ordered, restrict, sample

V = 50
LOGITS = jax.random.normal(jax.random.key(0), (6, V)) * 3


def kept(**how):
  """Returns bool[B,V] of what restrict leaves."""
  return np.asarray(restrict(LOGITS, Sampling.of(6, V, **how)) > NEVER)


def by_sorting(temperature=1.0, top_k=V, top_p=1.0, min_p=0.0):
  """Returns the same by sorting: the textbook's way, one row at a time."""
  out = []
  for row in np.asarray(LOGITS, np.float64) / temperature:
    order = np.argsort(-row)
    keep = np.zeros(V, bool)
    keep[order[:top_k]] = True
    p = np.where(keep, np.exp(row - row.max()), 0)
    p /= p.sum()
    n = np.searchsorted(np.cumsum(p[order]), top_p) + 1
    nucleus = np.zeros(V, bool)
    nucleus[order[:n]] = True
    out.append(keep & nucleus & (p >= min_p * p.max()))
  return np.array(out)


@pytest.mark.parametrize(
  'how',
  [
    dict(top_k=1),
    dict(top_k=7),
    dict(top_p=0.9),
    dict(top_p=0.1),
    dict(min_p=0.2),
    dict(temperature=0.5, top_k=20, top_p=0.8, min_p=0.05),
    dict(temperature=2.0, top_k=1000),
  ],
)
def test_bisection_is_sorting(how):
  """A threshold one token off, the filters in another order, or p not renormalised after top-k."""
  expected = by_sorting(**how | {'top_k': min(how.get('top_k', V), V)})
  assert (kept(**how) == expected).all()


def test_the_distribution_is_the_restricted_softmax():
  """log-probs are of the full softmax, or of logits before the temperature; 40,000 draws agree with them."""
  how = dict(temperature=0.7, top_k=5)
  n = 40_000
  row = jnp.broadcast_to(LOGITS[:1], (n, V))
  token, logp, sampling_logp = jax.jit(sample)(row, jax.random.split(jax.random.key(1), n), Sampling.of(n, V, **how))
  p = np.asarray(jax.nn.softmax(restrict(LOGITS[:1], Sampling.of(1, V, **how))))[0]
  assert (p > 0).sum() == 5
  counts = np.bincount(token, minlength=V) / n
  assert np.abs(counts - p).max() < 4 * np.sqrt(0.25 / n)
  np.testing.assert_allclose(sampling_logp, np.log(p[token]), atol=1e-5)
  np.testing.assert_allclose(logp, jax.nn.log_softmax(LOGITS[0])[token], atol=1e-5)


def test_ties_are_kept_and_the_order_of_bits_is_that_of_floats():
  """Negative logits sort backwards, -0.0 and 0.0 differ, or one of two equal tokens is dropped at random."""
  x = jnp.array([[-1e30, -2.0, -1e-3, 0.0, 1e-30, 3.0, 1e30]])
  assert (jnp.diff(ordered(x[0]).astype(jnp.uint32)) > 0).all()
  logits = jnp.array([[1.0, 2.0, 2.0, 0.0]])
  np.testing.assert_array_equal(largest_threshold(logits, lambda k: k.sum(-1) >= 1), [[False, True, True, False]])


def test_greedy_rows_and_sampled_rows_share_a_batch():
  """Temperature 0 divides by zero, or one row's choice is applied to all."""
  how = Sampling.of(6, V)._replace(temperature=jnp.array([0.0, 1, 0, 1, 0, 1]), top_k=jnp.array([V, 1, V, 1, V, 1]))
  token, logp, sampling_logp = sample(LOGITS, jax.random.split(jax.random.key(0), 6), how)
  np.testing.assert_array_equal(token, LOGITS.argmax(-1))
  assert jnp.isfinite(logp).all() and (sampling_logp == 0).all()


def test_minus_infinity_logits_are_never_drawn():
  """A vocabulary masked by -inf yields NaN probabilities."""
  logits = jnp.full((6, V), -jnp.inf).at[:, 3].set(0.0)
  for how in (dict(), dict(top_p=0.5), dict(top_k=2), dict(min_p=0.1)):
    token, logp, _ = sample(logits, jax.random.split(jax.random.key(0), 6), Sampling.of(6, V, **how))
    assert (token == 3).all() and (logp == 0).all()


@pytest.mark.parametrize('how', [dict(temperature=-1), dict(top_k=0), dict(top_p=0.0), dict(top_p=1.5), dict(min_p=2)])
def test_impossible_settings_are_refused(how):
  """top_p = 0 leaves nothing to draw from."""
  with pytest.raises(BadInput, match='use temperature >= 0, top_k >= 1, 0 < top_p <= 1, 0 <= min_p <= 1'):
    Sampling.of(1, V, **how)
