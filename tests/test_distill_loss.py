"""Forward and reverse KL and the generalised JSD: golden values, top-k teachers, and what must not change them."""

import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close

from llmstack.errors import BadInput
from llmstack.losses.distill import jsd, top_k_jsd

B, T, V = 3, 6, 9
R = np.random.RandomState(0)
STUDENT, TEACHER = R.randn(2, B, T, V).astype(np.float32)
MASK = (R.rand(B, T) < 0.6).astype(np.float32)
OPTIONS = {'beta': 0.3, 'temperature': 1.0, 't_squared': False}


def objective(out):
  return sum(out[0][t] / out[1][t] for t in out[0])


@functools.partial(jax.jit, static_argnames=('loss', 'beta', 'temperature', 't_squared', 'tail'))
def run(student, *teacher, mask, loss=jsd, **options):
  """Returns ((sums, weights, metrics), gradient of the sum)."""
  f = lambda x: (lambda out: (out[0]['distill'], out))(loss(x, *teacher, mask, **options))  # noqa: E731
  grad, out = jax.grad(f, has_aux=True)(student)
  return out, grad


def test_golden():
  """Teacher and student swapped, in the mixture or at an end (trl PR#3043, verl-recipe#151); the temperature unused."""
  data = np.load(pathlib.Path(__file__).parent / 'golden' / 'gkd.npz')
  mask = (data['lab'] != -100).astype(np.float32)
  settings = list(itertools.product((0.0, 0.1, 0.5, 0.9, 1.0), (1.0, 0.9)))

  def losses(student):
    ask = lambda b, t: objective(jsd(student, data['Te'], mask, beta=b, temperature=t, t_squared=False))  # noqa: E731
    out = {f'jsd_{b}_{t}': ask(b, t) for b, t in settings}
    return out, out

  with jax.enable_x64(True):
    grads, values = jax.jit(jax.jacrev(losses, has_aux=True))(data['S'])
  for name, value in values.items():
    np.testing.assert_allclose(value, data[name], rtol=0, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(grads[name], data[f'{name}_grad'], rtol=0, atol=1e-6, err_msg=name)


def by_hand(beta, temperature=1.0, t_squared=False, **more):
  """Returns the loss of one token: teacher (3/4, 1/4), student (1/2, 1/2)."""
  student, teacher = jnp.zeros((1, 1, 2)), jnp.log(jnp.array([[[3.0, 1.0]]]))
  options = {'beta': beta, 'temperature': temperature, 't_squared': t_squared, **more}
  return run(student, teacher, mask=jnp.ones((1, 1)), **options)[0][0]['distill']


def test_by_hand():
  """KL the other way round at beta 0, a mixture weighted the other way round, T^2 missing or unasked for (Hinton)."""
  kl = lambda p, q: sum(a * np.log(a / b) for a, b in zip(p, q))  # noqa: E731
  teacher, student, mixture = (0.75, 0.25), (0.5, 0.5), (0.7, 0.3)
  np.testing.assert_allclose(by_hand(0.0), kl(teacher, student), rtol=1e-5)
  np.testing.assert_allclose(by_hand(1.0), kl(student, teacher), rtol=1e-5)
  np.testing.assert_allclose(by_hand(0.8), 0.8 * kl(teacher, mixture) + 0.2 * kl(student, mixture), rtol=1e-4)
  soft = np.array((3**0.5, 1)) / (3**0.5 + 1)
  for t_squared, factor in ((False, 1), (True, 4)):
    np.testing.assert_allclose(by_hand(0.0, 2.0, t_squared), factor * kl(soft, student), rtol=1e-5)


def test_the_ends_are_not_limits():
  """Somebody anneals beta to 0: the loss falls to 0 there, while beta = 0 itself is the forward KL (trl#6780)."""
  near, end = (run(STUDENT, TEACHER, mask=MASK, **OPTIONS | {'beta': b})[0][0]['distill'] for b in (1e-3, 0.0))
  assert near < 0.01 * end


@pytest.mark.parametrize('beta', [0.0, 0.3, 1.0])
def test_hidden_positions_chunks_and_rows(beta):
  """NaN under the mask (OpenRLHF PR#1240), padding as a vote (tunix has no mask here), or a mean inside
  (transformers#34191): pieces of T and B must add up; nothing to learn is a finite zero (trl PR#3248)."""
  options = OPTIONS | {'beta': beta, 'temperature': 1.5, 't_squared': True}
  out, grad = run(STUDENT, TEACHER, mask=MASK, **options)
  bad = [np.where(MASK[..., None] != 0, x, np.float32(np.nan)) for x in (STUDENT, TEACHER)]
  close(run(*bad, mask=MASK, **options), (out, grad), 0)
  assert jnp.abs(grad[MASK == 0]).max() == 0 and jnp.abs(grad[MASK != 0]).max() > 0
  parts = [run(STUDENT[:, i : i + 2], TEACHER[:, i : i + 2], mask=MASK[:, i : i + 2], **options) for i in (0, 2, 4)]
  close(jax.tree.map(lambda *x: sum(x), *(part[0] for part in parts)), out, 1e-5)
  close(jnp.concatenate([part[1] for part in parts], 1), grad, 1e-6)
  empty, grad = run(STUDENT, TEACHER, mask=MASK * 0, **options)
  assert empty[0]['distill'] == empty[1]['distill'] == jnp.abs(grad).max() == 0


@pytest.mark.parametrize('beta', [0.0, 0.3, 1.0])
def test_a_masked_vocabulary_is_finite(beta):
  """0 * -inf where both models exclude an entry, or only the student's or teacher's probability of it is 0."""
  excluded = [x.copy() for x in (STUDENT, TEACHER)]
  for x in excluded:
    x[..., -1] = -np.inf
  options = OPTIONS | {'beta': beta}
  out, grad = run(*excluded, mask=MASK, **options)
  ref, ref_grad = run(STUDENT[..., :-1], TEACHER[..., :-1], mask=MASK, **options)
  close((out, grad[..., :-1]), (ref, ref_grad), 1e-6)
  assert jnp.abs(grad[..., -1]).max() == 0
  if beta < 1:  # the reverse KL is infinite where the student may what the teacher may not
    out, grad = run(STUDENT, excluded[1], mask=MASK, **options)
    assert jnp.isfinite(out[0]['distill']) and jnp.isfinite(grad).all()


def test_no_gradient_to_the_teacher_and_a_step_helps():
  """The teacher is trained towards the student; or the sign is wrong."""
  f = jax.jit(jax.grad(lambda t: run(STUDENT, t, mask=MASK, **OPTIONS)[0][0]['distill']))
  assert jnp.abs(f(TEACHER)).max() == 0
  for beta in (0.0, 0.3, 1.0):
    out, grad = run(STUDENT, TEACHER, mask=MASK, **OPTIONS | {'beta': beta})
    better, _ = run(STUDENT - 0.1 * np.asarray(grad), TEACHER, mask=MASK, **OPTIONS | {'beta': beta})
    assert better[0]['distill'] < out[0]['distill']


def stored(k):
  """Returns (teacher_logp, teacher_ids) of the k likeliest entries."""
  logp = TEACHER - np.log(np.exp(TEACHER).sum(-1, keepdims=True))
  ids = np.argsort(-logp, -1)[..., :k].astype(np.int32)
  return np.take_along_axis(logp, ids, -1), ids


@pytest.mark.parametrize('beta', [0.0, 0.3, 1.0])
@pytest.mark.parametrize('tail', ['bucket', 'renormalise'])
def test_top_k_of_everything_is_everything(tail, beta):
  """ids and log-probs out of step, a bucket that is 0 / 0 when nothing is left, NaN under the mask."""
  options = OPTIONS | {'beta': beta}
  out, grad = run(STUDENT, TEACHER, mask=MASK, **options)
  logp, ids = stored(V)
  got = run(STUDENT, logp, ids, mask=MASK, loss=top_k_jsd, tail=tail, **options)
  wild = ids.copy()
  wild[MASK == 0, -1] = V + 5
  close(got, (out, grad), 2e-5)  # the bucket's floor of 1e-7
  bad = (
    np.where(MASK[..., None] != 0, STUDENT, np.float32(np.nan)),
    np.where(MASK[..., None] != 0, logp, np.float32(np.nan)),
  )
  close(run(*bad, wild, mask=MASK, loss=top_k_jsd, tail=tail, **options), got, 0)


def test_top_k_by_hand():
  """Student (1/4, 1/4, 1/2), teacher (3/4, 1/8, 1/8) of whom the first is stored: the bucket holds 3/4 and 1/4."""
  student, mask = jnp.log(jnp.array([[[1.0, 1.0, 2.0]]])), jnp.ones((1, 1))
  rest = (jnp.log(jnp.array([[[0.75]]])), jnp.array([[[0]]]))
  ask = lambda *a, **k: run(student, *a, mask=mask, loss=top_k_jsd, **OPTIONS | {'beta': 0.0} | k)[0][0]['distill']  # noqa: E731
  np.testing.assert_allclose(ask(*rest, tail='bucket'), 0.75 * np.log(3) + 0.25 * np.log(1 / 3), rtol=1e-5)
  assert ask(*rest, tail='renormalise') == 0  # one outcome
  rest = (jnp.log(jnp.array([[[0.75, 0.125]]])), jnp.array([[[0, 2]]]))
  expected = 6 / 7 * np.log(6 / 7 * 3) + 1 / 7 * np.log(1 / 7 * 3 / 2)
  np.testing.assert_allclose(ask(*rest, tail='renormalise'), expected, rtol=1e-5)


@pytest.mark.parametrize('tail', ['bucket', 'renormalise'])
def test_top_k_finite_differences(tail):
  """The tail's gradient is dropped: no library's golden value has one."""
  logp, ids = stored(3)
  options = OPTIONS | {'loss': top_k_jsd, 'tail': tail, 'mask': MASK}
  direction = np.random.RandomState(1).randn(B, T, V)
  with jax.enable_x64(True):
    up, down = (run(STUDENT + s * direction, logp, ids, **options)[0][0]['distill'] for s in (1e-6, -1e-6))
    grad = np.asarray(run(STUDENT.astype(np.float64), logp, ids, **options)[1])
    np.testing.assert_allclose((grad * direction).sum(), (up - down) / 2e-6, rtol=1e-6)


def test_bad_input_is_a_sentence():
  """Another vocabulary, a beta outside [0, 1], a temperature at which the stored tail is not known."""
  logp, ids = stored(3)
  cases = [
    (lambda: jsd(STUDENT, TEACHER[..., 1:], MASK, **OPTIONS), 'student has 9 and teacher 8 entries'),
    (lambda: jsd(STUDENT, TEACHER, MASK, **OPTIONS | {'beta': 1.5}), 'beta = 1.5 must be in'),
    (lambda: jsd(STUDENT, TEACHER, MASK, **OPTIONS | {'temperature': 0.0}), 'temperature = 0.0 must be above 0'),
    (lambda: top_k_jsd(STUDENT, logp, ids, MASK, **OPTIONS, tail='drop'), "tail = 'drop' is unknown"),
    (lambda: top_k_jsd(STUDENT, logp, ids, MASK, **OPTIONS | {'temperature': 2.0}, tail='bucket'), 'temperature = 2.0'),
  ]
  for call, sentence in cases:
    with pytest.raises(BadInput, match=sentence):
      call()
