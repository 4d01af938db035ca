"""Contracts of the losses: additive, immune to what is masked, right in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close

from llmstack.losses import lm

B, T, V, D = 3, 8, 11, 6
R = np.random.RandomState(0)
HIDDEN, HEAD = R.randn(B, T, D).astype(np.float32), R.randn(D, V).astype(np.float32)
TARGETS = R.randint(0, V, (B, T)).astype(np.int32)
MASK = (R.rand(B, T) < [[0.2], [0.6], [1.0]]).astype(np.float32)


def unembed(head):
  return lambda h: jnp.einsum('BTD,DV->BTV', h, head)


def plain(hidden, head, targets=TARGETS, mask=MASK, z_loss=0.01):
  return lm.cross_entropy(unembed(head)(hidden), targets, mask, z_loss=z_loss)


def chunked(hidden, head, targets=TARGETS, mask=MASK, z_loss=0.01, chunk=2):
  return lm.chunked_cross_entropy(hidden, unembed(head), targets, mask, z_loss=z_loss, chunk=chunk)


def total(out):
  return sum(out[0].values())


def test_worked_by_hand():
  """The sign, the base of the logarithm or the z term is wrong: two tokens, logits (0, ln 3)."""
  logits = jnp.array([[[0.0, np.log(3.0)], [0.0, np.log(3.0)]]])
  sums, weights, metrics = lm.cross_entropy(logits, jnp.array([[1, 0]]), jnp.ones((1, 2)), z_loss=0.5)
  np.testing.assert_allclose(sums['nll'], np.log(4 / 3) + np.log(4), rtol=1e-6)
  np.testing.assert_allclose(sums['z'], 0.5 * 2 * np.log(4) ** 2, rtol=1e-6)
  assert weights == {'nll': 2, 'z': 2} and metrics['accuracy'] == (1, 2)


@pytest.mark.parametrize('loss', [plain, chunked])
def test_additive_over_splits(loss):
  """A mean hides inside the loss: microbatches of different length then weigh the same (transformers#34191)."""
  whole = loss(HIDDEN, HEAD)
  parts = [loss(HIDDEN[i : i + 1], HEAD, TARGETS[i : i + 1], MASK[i : i + 1]) for i in range(B)]
  close(jax.tree.map(lambda *x: sum(x), *parts), whole, 1e-5)


@pytest.mark.parametrize('loss', [plain, chunked])
def test_nan_under_the_mask_changes_nothing(loss):
  """mask * NaN is NaN, and so is its gradient (OpenRLHF PR#1240)."""
  bad = np.where(MASK[..., None] != 0, HIDDEN, np.nan)
  f = jax.value_and_grad(lambda h: total(loss(h, HEAD)))
  (value, grad), (ref, ref_grad) = f(bad), f(HIDDEN)
  assert value == ref and jnp.array_equal(grad, ref_grad)
  assert jnp.abs(ref_grad[MASK == 0]).max() == 0 and jnp.isfinite(ref_grad).all()


def test_gradient_against_finite_differences():
  """A stop_gradient or a select in the wrong place; float64 central differences in a random direction."""
  with jax.enable_x64(True):
    h, direction = HIDDEN.astype(np.float64), R.randn(B, T, D)

    def value(h):
      x = h @ HEAD.astype(np.float64)
      z = np.log(np.exp(x).sum(-1))
      p = np.take_along_axis(x, TARGETS[..., None], -1)[..., 0] - z
      return (-p * MASK).sum() + 0.01 * (z**2 * MASK).sum()

    numeric = (value(h + 1e-5 * direction) - value(h - 1e-5 * direction)) / 2e-5
  grad = jax.grad(lambda h: total(plain(h, HEAD)))(HIDDEN)
  np.testing.assert_allclose((grad * direction).sum(), numeric, rtol=1e-4)


@pytest.mark.parametrize('chunk', [1, 4, 8])
def test_chunked_is_plain(chunk):
  """A chunk is dropped, counted twice, or its head gradient lost."""
  f = jax.jit(jax.value_and_grad(lambda h, w: total(plain(h, w)), (0, 1)))
  g = jax.jit(jax.value_and_grad(lambda h, w: total(chunked(h, w, chunk=chunk)), (0, 1)))
  close(g(HIDDEN, HEAD), f(HIDDEN, HEAD), 1e-5)
  close(chunked(HIDDEN, HEAD, chunk=chunk), plain(HIDDEN, HEAD), 1e-5)


def test_chunked_never_holds_all_logits():
  """The chunks are computed and then kept for the backward pass."""
  big = [jnp.zeros((4, 64, 16)), jnp.zeros((16, 1000)), jnp.zeros((4, 64), jnp.int32), jnp.ones((4, 64))]

  def memory(loss):
    f = jax.jit(jax.grad(lambda h, w, t, m: total(loss(h, w, t, m)), (0, 1)))
    return f.lower(*big).compile().memory_analysis().temp_size_in_bytes

  logits = 4 * 64 * 1000 * 4
  assert memory(lambda *a: chunked(*a, chunk=8)) < logits < memory(plain)
  with pytest.raises(ValueError, match='chunk = 3 does not divide T = 8'):
    chunked(HIDDEN, HEAD, chunk=3)


def test_empty_mask_is_a_finite_zero():
  """0 / 0 in a batch of which every row is prompt or padding (trl PR#3248)."""
  sums, weights, _ = plain(HIDDEN, HEAD, mask=MASK * 0)
  assert total((sums,)) == 0 and all(w == 0 for w in weights.values())
