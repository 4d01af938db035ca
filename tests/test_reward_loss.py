"""Bradley-Terry against golden values and by hand; calibration and length correlation of a scorer."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close

from llmstack.errors import BadInput
from llmstack.losses import reward
from llmstack.losses.reward import bradley_terry

OPTIONS = {'margin': None, 'label_smoothing': 0.0, 'centering': 0.0}


def objective(out):
  return sum(out[0][t] / out[1][t] for t in out[0])


@pytest.mark.parametrize('shape', [(5, 1), (1, 5)])
def test_golden(shape):
  """The margin is added, the centre taken of the gap, or a packed row means something else."""
  data = np.load(pathlib.Path(__file__).parent / 'golden' / 'reward.npz')
  chosen, rejected, margin = (data[k].reshape(shape) for k in ('chosen', 'rejected', 'margin'))

  @jax.jit
  @jax.jacrev
  def grads(x):
    return losses(x)

  def losses(x):
    ask = lambda **k: objective(bradley_terry(*x, np.ones(shape, np.float32), **OPTIONS | k))  # noqa: E731
    return {'bt': ask(), 'bt_margin': ask(margin=margin), 'bt_center': ask(centering=0.01)}

  with jax.enable_x64(True):
    for name, value in jax.jit(losses)((chosen, rejected)).items():
      np.testing.assert_allclose(value, data[name], rtol=0, atol=1e-6)
    for name, grad in grads((chosen, rejected)).items():
      np.testing.assert_allclose(np.stack(grad).reshape(-1), data[f'{name}_grad'], rtol=0, atol=1e-6)


def test_by_hand_soft_labels_and_metrics():
  """chosen and rejected swapped; 1 - p for p; a tie counted as wrong (or right): a constant scorer is at chance."""
  chosen, rejected = jnp.log(jnp.array([[3.0, 1.0]])), jnp.zeros((1, 2))
  ones = jnp.ones((1, 2))
  sums, weights, metrics = bradley_terry(chosen, rejected, ones, **OPTIONS | {'centering': 0.5})
  np.testing.assert_allclose(sums['bt'], np.log(4 / 3) + np.log(2), rtol=1e-6)
  np.testing.assert_allclose(sums['centering'], 0.5 * np.log(3) ** 2, rtol=1e-6)
  assert weights == {'bt': 2, 'centering': 2} and metrics['accuracy'] == (1.5, 2)
  soft = bradley_terry(chosen, rejected, ones, **OPTIONS | {'label_smoothing': jnp.array([[0.25, 0.5]])})
  np.testing.assert_allclose(soft[0]['bt'], 0.75 * np.log(4 / 3) + 0.25 * np.log(4) + np.log(2), rtol=1e-6)


@pytest.mark.parametrize('gap', [200.0, 1e4])
def test_large_gaps_are_finite(gap):
  """log(1 + exp(r_l - r_w)) is infinite at a gap of 200 in float32 (OpenRLHF's LogExpLoss, which has no margin too)."""
  f = jax.jit(jax.value_and_grad(lambda x: objective(bradley_terry(x, -x, jnp.ones((1, 1)), **OPTIONS))))
  for sign, loss, slope in ((1, 0, 0), (-1, gap, -2)):
    value, grad = f(jnp.full((1, 1), sign * gap / 2))
    assert value == loss and grad[0, 0] == slope


def test_hidden_pairs_and_splits():
  """NaN at a void pair, in scores, margin or label (OpenRLHF PR#1240); a mean that hides in a sum; rows of padding."""
  r = np.random.RandomState(0)
  valid = np.array([[1, 1, 0], [0, 1, 0], [1, 0.5, 1]], np.float32)
  arrays = [r.rand(3, 3).astype(np.float32) for _ in range(4)]

  @jax.jit
  def f(chosen, rejected, margin, e, valid):
    loss = lambda *x: bradley_terry(*x, valid, margin=margin, label_smoothing=e, centering=0.1)  # noqa: E731
    return loss(chosen, rejected), jax.grad(lambda *x: objective(loss(*x)), (0, 1))(chosen, rejected)

  out, grads = f(*arrays, valid)
  hidden = f(*(np.where(valid != 0, x, np.float32(np.nan)) for x in arrays), valid)
  close(hidden, (out, grads), 0)
  assert all(jnp.abs(g[valid == 0]).max() == 0 and jnp.abs(g[valid != 0]).min() > 0 for g in grads)
  padded = f(*(np.pad(x, ((0, 2), (0, 1))) for x in (*arrays, valid)))
  close((padded[0], [g[:3, :3] for g in padded[1]]), (out, list(grads)), 1e-6)
  parts = [f(*(x[i : i + 1] for x in (*arrays, valid)))[0] for i in range(3)]
  close(jax.tree.map(lambda *x: sum(x), *parts), out, 1e-6)
  empty = f(*arrays, valid * 0)[0]
  assert empty[0]['bt'] == 0 == empty[1]['bt']


def test_calibration_finds_a_planted_temperature():
  """The label is always 1, so binning sigma(r_w - r_l) itself finds nothing; a scorer twice too sure must stand out."""
  r = np.random.RandomState(0)
  gap = r.randn(20000) * 2
  flip = np.where(r.rand(gap.size) < 1 / (1 + np.exp(-gap)), 1, -1)
  honest = reward.calibration(gap * flip, 0 * gap, bins=10)
  boaster = reward.calibration(3 * gap * flip, 0 * gap, bins=10)
  assert honest['ece'] < 0.02 < 0.1 < boaster['ece']
  assert all(row['confidence'] > row['accuracy'] for row in boaster['bins'][2:])
  assert sum(row['count'] for row in honest['bins']) == gap.size


def test_calibration_by_hand():
  """A bin's edges or weights are off: confidences 1/2 (a tie), 3/4 (right), 3/4 (wrong) and 1 (right)."""
  out = reward.calibration([0, np.log(3), 0, 1e5], [0, 0, np.log(3), 0], bins=2)
  assert [row['count'] for row in out['bins']] == [1, 3] and out['bins'][0]['accuracy'] == 0.5
  np.testing.assert_allclose(out['bins'][1]['confidence'], 2.5 / 3)
  np.testing.assert_allclose(out['bins'][1]['accuracy'], 2 / 3)
  np.testing.assert_allclose(out['ece'], 0.75 * 0.5 / 3)


def test_length_correlation():
  """A scorer that counts tokens; one that is constant, where a correlation is 0 / 0."""
  lengths = np.array([3, 7, 9, 20])
  np.testing.assert_allclose(reward.length_correlation(2.0 * lengths - 1, lengths), 1)
  np.testing.assert_allclose(reward.length_correlation(-lengths, lengths), -1)
  assert reward.length_correlation(np.ones(4), lengths) == 0 == reward.length_correlation([1, 0, 0, 1], [2, 1, 2, 1])


def test_bad_scores_are_a_sentence():
  """NaN scores become a NaN calibration that is plotted as nothing."""
  with pytest.raises(BadInput, match='1 of 2 chosen scores are not finite'):
    reward.calibration([0.0, np.nan], [0.0, 0.0], bins=2)
  with pytest.raises(BadInput, match='there are no scores'):
    reward.length_correlation([], [])
