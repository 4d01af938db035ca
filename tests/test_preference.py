"""The DPO family, ORPO, CPO, SimPO, AlphaPO and KTO: golden values, and what must not change them."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close

from llmstack.errors import BadInput
from llmstack.losses import preference
from llmstack.losses.common import log1mexp
from llmstack.losses.preference import cpo, dpo, kto, orpo, simpo

LN2, LN3 = np.log(2.0), np.log(3.0)
PLAIN = {'beta': 0.1, 'label_smoothing': 0.0, 'normalise': False}
MEAN = PLAIN | {'normalise': True}
ALL = {name: 0.3 + 0.1 * i for i, name in enumerate(preference.TERMS)}
ADDITIVE = {name: c for name, c in ALL.items() if name not in preference.SORTED}


@functools.cache
def golden(name):
  return dict(np.load(pathlib.Path(__file__).parent / 'golden' / f'{name}.npz'))


def objective(out):
  sums, weights, _ = out
  return sum(sums[t] / weights[t] for t in sums)


def unpacked(x):
  """Returns [3,2,T] of golden rows [chosen; rejected]."""
  return np.stack([x[:3], x[3:]], 1)


def packed(x):
  """Returns [1,2,3*T]: the three pairs one after the other in one row."""
  return unpacked(x).swapaxes(0, 1).reshape(1, 2, -1)


def pairs(data, layout):
  """Returns (policy, reference, mask, segments, valid) of a golden file; all of a pair's columns are its segment."""
  mask = data['comp'][:, 1:].astype(np.float32)
  number = np.tile(np.arange(3)[:, None] if layout is packed else 0, (2 if layout is packed else 6, 1)) + 1
  segments = np.broadcast_to(number, mask.shape).astype(np.int32)
  valid = np.ones((1, 3) if layout is packed else (3, 1), np.float32)
  return [layout(x) for x in (data['pol'], data['ref'], mask, segments)] + [valid]


def batch(rows=4, seed=0):
  """Returns float64 (logp, ref_logp, mask, segments, valid): ragged, two pairs a row, the last row's second is void."""
  r = np.random.RandomState(seed)
  B, T = rows, 14
  segments = np.zeros((B, 2, T), np.int32)
  for b in range(B):
    for m in range(2):
      a, c = sorted(r.choice(np.arange(3, T), 2, replace=False))
      segments[b, m, :a], segments[b, m, a:c] = 1, 2
  mask = ((r.rand(B, 2, T) < 0.8) & (segments > 0)).astype(np.float32)
  valid = np.ones((B, 2), np.float32)
  valid[-1, 1] = 0
  return -r.rand(B, 2, T) * 2, -r.rand(B, 2, T) * 2, mask, segments, valid


def visible(mask, segments, valid):
  """Returns bool[B,M,T]: completion tokens of valid pairs."""
  return (mask != 0) & (np.take_along_axis(np.pad(valid, ((0, 0), (1, 0)))[:, None], segments, -1) > 0)


# name of the golden value: (file, loss, tolerance)
DPO = {
  'hinge': PLAIN, 'nca_pair': PLAIN, 'bco_pair': PLAIN, 'sppo_hard': PLAIN, 'apo_zero': PLAIN, 'apo_down': PLAIN,
  'discopop': PLAIN, 'sigmoid': PLAIN, 'aot_unpaired': PLAIN, 'ipo': MEAN, 'sft': PLAIN,
  'robust': PLAIN | {'label_smoothing': 0.1}, 'aot': PLAIN | {'label_smoothing': 0.1},
  'exo_pair': PLAIN | {'label_smoothing': 1e-3},
  'sigmoid_norm': MEAN | {'terms': {'sigmoid': 1.0}},
  'sigmoid_forward_kl': PLAIN | {'terms': {'sigmoid': 1.0}, 'divergence': 'forward_kl'},
  'sigmoid_js_divergence': PLAIN | {'terms': {'sigmoid': 1.0}, 'divergence': 'js'},
  'sigmoid_alpha_divergence': PLAIN | {'terms': {'sigmoid': 1.0}, 'divergence': 'alpha', 'alpha': 0.5},
  'ld_dpo_0.5': PLAIN | {'terms': {'sigmoid': 1.0}, 'ld_alpha': 0.5},
  'mpo': PLAIN | {'terms': {'sigmoid': 0.8, 'bco_pair': 0.2, 'sft': 1.0}},
}  # fmt: skip
CDPO = {
  'dpo': PLAIN | {'terms': {'sigmoid': 1.0}},
  'cdpo': PLAIN | {'terms': {'sigmoid': 1.0}, 'label_smoothing': 0.1},
  'ipo': PLAIN,
}
SIMPO = {'beta': 2.0, 'gamma': 1.0, 'label_smoothing': 0.0, 'nll': 0.0}
FREE = {
  'simpo': lambda *a: simpo(*a, **SIMPO),
  'simpo_ls': lambda *a: simpo(*a, **SIMPO | {'label_smoothing': 0.1}),
  'alphapo': lambda *a: simpo(*a, **SIMPO, alpha=0.25),
  'cpo': lambda *a: cpo(*a, **PLAIN, terms={'sigmoid': 1.0}),
  'cpo_ipo': lambda *a: cpo(*a, **MEAN | {'beta': 2.0}, terms={'ipo': 1.0}),
  'orpo_or': lambda *a: orpo(*a, lambda_or=0.1, nll_mask=jnp.zeros_like(a[1]), nll_per_pair=False),
}


def against_golden(data, name, loss, layout):
  """Asserts value and gradient; where the reference is float32 (float64 of its value aside) to 1e-5, else to 1e-6."""
  logp, ref_logp, mask, segments, valid = pairs(data, layout)
  grad = data.get(f'{name}_grad')
  tol = 1e-5 if grad is not None and grad.dtype == np.float32 else 1e-6
  with jax.enable_x64(True):

    @jax.jit
    def f(x):
      sums, weights, _ = loss(x, ref_logp, mask, segments, valid)
      return sum(s / jnp.where(weights[t] > 0, weights[t], 1) for t, s in sums.items())

    value, ours = jax.value_and_grad(f)(logp)
    np.testing.assert_allclose(value, data[name], rtol=0, atol=tol)
    assert ours.dtype == jnp.float64 and np.abs(ours[mask == 0]).max() == 0
    if grad is not None:
      np.testing.assert_allclose(ours[mask != 0], layout(grad)[mask != 0], rtol=0, atol=tol)


@pytest.mark.parametrize('layout', [unpacked, packed])
@pytest.mark.parametrize('name', DPO)
def test_dpo_family_golden(name, layout):
  """A sign, a detached term or a length is wrong, or one packed pair leaks into the next."""
  options = {'terms': {name: 1.0}} | DPO[name]
  against_golden(golden('dpo'), name, lambda *a: dpo(*a, **options), layout)


@pytest.mark.parametrize('name', CDPO)
def test_ipo_and_cdpo_on_sums_golden(name):
  """IPO on sums (OpenRLHF, torchtune, the authors) taken for TRL's on means, or back (trl PR#1265, #1677, #1033)."""
  options = {'terms': {name: 1.0}} | CDPO[name]
  against_golden(golden('cdpo'), name, lambda *a: dpo(*a, **options), unpacked)


@pytest.mark.parametrize('layout', [unpacked, packed])
@pytest.mark.parametrize('name', FREE)
def test_reference_free_golden(name, layout):
  """gamma is not divided by beta once more (trl PR#1703, PR#1760, SimPO#4), CPO's NLL is not there unasked."""
  loss = FREE[name]
  against_golden(golden('orpo_simpo'), name, lambda x, _, *rest: loss(x, *rest), layout)


E3 = {'beta': 1.0, 'label_smoothing': 0.25}
BY_HAND = {
  'sigmoid': (E3, 0.75 * np.log(4 / 3) + 0.25 * np.log(4)),
  'robust': (E3, 2 * (0.75 * np.log(4 / 3) - 0.25 * np.log(4))),
  'exo_pair': ({'beta': 1.0, 'label_smoothing': 0.5}, 0.75 * np.log(1.5) + 0.25 * np.log(0.5)),
  'hinge': ({'beta': 0.5}, 1 - 0.5 * LN3),
  'ipo': ({'beta': 0.25}, (LN3 - 2) ** 2),
  'nca_pair': ({'beta': 1.0}, np.log(4 / 3) + 0.5 * np.log(4) + 0.5 * LN2),
  'bco_pair': ({'beta': 1.0}, np.log(4 / 3) + LN2),
  'sppo_hard': ({'beta': 0.25}, (LN3 - 2) ** 2 + 4),
  'apo_zero': ({'beta': 1.0}, 1 / 4 + 1 / 2),
  'apo_down': ({'beta': 1.0}, 3 / 4 + 1 / 4),
  'discopop': ({'beta': 1.0, 'tau': 1.0}, 0.25 * np.log(4 / 3) + 0.75 / 3),
}


@pytest.mark.parametrize('name', BY_HAND)
def test_pairs_by_hand(name):
  """chosen and rejected, or beta and 1 / beta swapped: rho = (ln 3, 0), so that sigma(rho_w - rho_l) is 3/4."""
  options, expected = BY_HAND[name]
  loss = getattr(preference, name)(jnp.full((1, 1), LN3), jnp.zeros((1, 1)), **options)
  np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_sequences_by_hand():
  """A mean where a sum is meant: two pairs in a row, weights, a gap, padding; the SFT terms on top."""
  logp = -jnp.array([[[1.0, 2, 3, 4, 9], [9.0, 5, 6, 7, 9]]])
  mask = jnp.array([[[1.0, 1, 0, 1, 0], [0.0, 1, 1, 0.5, 0]]])
  segments = jnp.array([[[1, 1, 2, 2, 0], [1, 1, 1, 2, 0]]])
  np.testing.assert_array_equal(
    preference.sequence_sums(logp, mask, segments, 3), [[[-3, -4, 0], [-11, -3.5, 0]]]
  )  # fmt: skip
  # The shorter of pair 1 has two tokens, of pair 2 one.
  longer = preference.shared_length_sums(logp, mask.at[0, 0, 2].set(1), segments, 2, 0.1)
  np.testing.assert_allclose(longer, [[[-3, -3.4], [-11, -3.5]]], rtol=1e-6)
  valid = jnp.array([[1.0, 1.0]])
  sums, weights, metrics = dpo(logp, logp, mask, segments, valid, **PLAIN, terms={'sft': 2.0, 'sft_per_pair': 1.0})
  assert sums == {'sft': 2 * 7, 'sft_per_pair': 1.5 + 4} and weights == {'sft': 3, 'sft_per_pair': 2}
  assert metrics['logp_chosen'] == (-7, 2) and metrics['logp_rejected'] == (-14.5, 2)


def test_policy_equal_to_the_reference():
  """Dropout, or a reference in another mode or dtype (trl#744, PR#5542, #1962): ln 2, ties at chance, and a gradient.

  Also trl#800: chosen and rejected log-probs are both in the metrics.
  """
  logp, _, *rest = batch()
  logp = jnp.asarray(logp, jnp.float32)
  f = lambda x: dpo(x, logp, *rest, **PLAIN, terms={'sigmoid': 1.0})  # noqa: E731
  assert objective(f(logp)) == np.float32(LN2) and jnp.abs(jax.grad(lambda x: objective(f(x)))(logp)).max() > 0
  metrics = {k: n / d for k, (n, d) in f(logp)[2].items()}
  assert metrics['accuracy'] == 0.5 and metrics['margin'] == metrics['log_ratio_chosen'] == 0
  assert {'logp_chosen', 'logp_rejected', 'reward_chosen', 'reward_rejected'} <= set(metrics)


def test_gradient_identity():
  """The gradient is not -beta sigma(-beta h) (grad logp_w - grad logp_l) per pair: 2305.18290, section 4."""
  logp, ref_logp, mask, segments, valid = batch()
  with jax.enable_x64(True):
    f = lambda x: objective(dpo(x, ref_logp, mask, segments, valid, **PLAIN, terms={'sigmoid': 1.0}))  # noqa: E731
    grad = np.asarray(jax.jit(jax.grad(f))(logp))
  for p in range(2):
    rho = ((logp - ref_logp) * mask * (segments == p + 1)).sum(-1)
    h = rho[:, 0] - rho[:, 1]
    slope = 0.1 / (1 + np.exp(0.1 * h)) * valid[:, p] / valid.sum()
    for m, sign in enumerate((-1, 1)):
      expected = sign * slope[:, None] * mask[:, m]
      np.testing.assert_allclose(np.where(segments[:, m] == p + 1, grad[:, m] - expected, 0), 0, atol=1e-12)


SMOOTH = {'beta': 0.3, 'label_smoothing': 0.1}
VARIANTS = {
  'sums': {'normalise': False},
  'means': {'normalise': True},
  'ld': {'normalise': False, 'ld_alpha': 0.3},
  'forward_kl': {'normalise': True, 'divergence': 'forward_kl'},
  'js': {'normalise': False, 'divergence': 'js'},
  'alpha': {'normalise': False, 'divergence': 'alpha', 'alpha': 0.3},
}


def everything(logp, ref_logp, mask, segments, valid):
  """Returns all losses of pairs in one dict of sums, of weights and of metrics."""
  rest = (mask, segments, valid)
  outs = {
    'dpo': dpo(logp, ref_logp, *rest, **SMOOTH, normalise=False, terms=ALL),
    'ld': dpo(logp, ref_logp, *rest, **SMOOTH, terms={'sigmoid': 1.0}, normalise=False, ld_alpha=0.3),
    'cpo': cpo(logp, *rest, **SMOOTH, terms={'ipo': 1.0, 'sigmoid': 1.0}, normalise=True),
    'alphapo': simpo(logp, *rest, **SMOOTH, gamma=0.4, nll=0.5, alpha=0.25),
    'orpo': orpo(logp, *rest, lambda_or=0.1, nll_mask=mask, nll_per_pair=False),
    'orpo_per_pair': orpo(logp, *rest, lambda_or=0.1, nll_mask=mask, nll_per_pair=True),
  }
  return [{f'{k}.{t}': x for k, out in outs.items() for t, x in out[i].items()} for i in range(3)]


@jax.jit
@functools.partial(jax.value_and_grad, has_aux=True)
def slopes(logp, ref_logp, mask, segments, valid):
  """Returns ((sum of all sums, (sums, weights, metrics)), gradient) of everything(); compiled once for one shape."""
  out = everything(logp, ref_logp, mask, segments, valid)
  return sum(out[0].values()), out


def single(arrays):
  return [x.astype(np.float32) if x.dtype == np.float64 else x for x in arrays]


@pytest.mark.parametrize('name', VARIANTS)
def test_gradients_against_finite_differences(name):
  """A stop_gradient or a select in the wrong place, in the losses without golden gradients as in the others."""
  logp, *rest = batch()
  options = SMOOTH | VARIANTS[name] | {'terms': ALL if 'divergence' not in VARIANTS[name] else ADDITIVE}
  with jax.enable_x64(True):
    differences(lambda x: objective(dpo(x, *rest, **options)), logp)


def differences(f, x, step=1e-6):
  """Asserts the gradient in a random direction against float64 central differences."""
  f, direction = jax.jit(f), np.random.RandomState(1).randn(*x.shape)
  numeric = (f(x + step * direction) - f(x - step * direction)) / (2 * step)
  np.testing.assert_allclose((jax.grad(f)(x) * direction).sum(), numeric, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('per_pair', [False, True])
def test_orpo_gradient_against_finite_differences(per_pair):
  """The NLL of ORPO, over prompt and completion, has no golden gradient."""
  logp, _, mask, segments, valid = batch()
  with jax.enable_x64(True):
    span = (segments > 0).astype(np.float32)
    loss = lambda x: orpo(x, mask, segments, valid, lambda_or=0.7, nll_mask=span, nll_per_pair=per_pair)  # noqa: E731
    differences(lambda x: objective(loss(x)), logp)


def test_additive_over_splits():
  """A mean hides in a loss: microbatches weigh the same whatever they hold. AOT sorts, so for it this cannot hold."""
  arrays = single(batch())
  (_, whole), grad = slopes(*arrays)
  halves = [slopes(*(x[i : i + 2] for x in arrays)) for i in (0, 2)]
  added = jax.tree.map(jnp.add, *(out for (_, out), _ in halves))
  apart = {name for name in whole[0] if abs(added[0][name] - whole[0][name]) > 1e-3}
  assert apart == {'dpo.aot', 'dpo.aot_unpaired'}
  for out in (added, whole):
    for name in apart:
      del out[0][name]
  close(added, whole, 1e-5)


def test_nothing_hidden_has_an_effect():
  """mask * NaN is NaN, and so is its gradient (OpenRLHF PR#1240): prompts, padding, void pairs, their soft labels."""
  logp, ref_logp, *rest = single(batch())
  seen = visible(*rest)
  (value, out), grad = slopes(*(np.where(seen, x, np.float32(np.nan)) for x in (logp, ref_logp)), *rest)
  (ref, ref_out), ref_grad = slopes(logp, ref_logp, *rest)
  assert value == ref and jnp.array_equal(grad, ref_grad) and jnp.isfinite(grad).all()
  assert jnp.abs(grad[~seen]).max() == 0 and jnp.abs(grad[seen]).min() > 0
  close(out, ref_out, 0)

  options = {'beta': 0.1, 'normalise': False, 'terms': dict.fromkeys(preference.SMOOTHED, 1.0)}
  f = lambda x, e, w: objective(dpo(x, ref_logp, *rest, **options, label_smoothing=e, weight=w))  # noqa: E731
  soft = np.where(rest[2] != 0, np.float32(0.2), np.float32(np.nan))
  f = jax.jit(jax.value_and_grad(f))
  close(f(logp, soft, 5 * soft), f(logp, np.full_like(soft, 0.2), np.ones_like(soft)), 1e-6)


def test_padding_has_no_effect():
  """A width or a row count in a denominator: more columns, rows and empty places for pairs (trl PR#6439)."""
  arrays = single(batch())
  (value, out), grad = slopes(*arrays)
  wider = [np.pad(x, ((0, 2),) + ((0, 0),) * (x.ndim - 2) + ((0, 3),)) for x in arrays]
  (padded, padded_out), padded_grad = slopes(*wider)
  close((padded, padded_out), (value, out), 1e-5)
  close(padded_grad[:4, :, :14], grad, 1e-5)
  assert jnp.abs(padded_grad[4:]).max() == 0 and jnp.abs(padded_grad[..., 14:]).max() == 0


def test_sharded_over_eight_devices():
  """A sum or AOT's sort is taken per device."""
  arrays = single(batch())
  arrays = [np.concatenate([x, x[::-1]]) for x in arrays]
  mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  sharded = [jax.device_put(x, jax.NamedSharding(mesh, jax.P('data'))) for x in arrays]
  close(slopes(*sharded), slopes(*arrays), 1e-5)


def test_completions_without_tokens_are_finite():
  """0 / 0 where a completion, or every completion, is masked away (trl PR#3248, IPO's all-masked row)."""
  logp, ref_logp, mask, segments, valid = single(batch())
  for hidden in (mask * (np.arange(4) > 0)[:, None, None], mask * 0):
    out = slopes(logp, ref_logp, hidden.astype(np.float32), segments, valid)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(out))


def test_wild_log_ratios_are_finite():
  """exp(-rho) of f-divergences and DiscoPOP's exponential overflow in float32: inf - inf and inf * 0 (trl#3015)."""
  for rho in (-1e3, 1e3):
    for divergence, alpha in (('reverse_kl', None), ('forward_kl', None), ('js', None), ('alpha', 0.2)):
      options = SMOOTH | {'terms': {'sigmoid': 1.0, 'discopop': 1.0}, 'normalise': False}
      logp, rest = jnp.full((1, 2, 1), -1.0).at[0, 0].add(rho), (jnp.ones((1, 2, 1)), jnp.ones((1, 2, 1), int))
      loss = lambda x: objective(  # noqa: E731
        dpo(x, jnp.full((1, 2, 1), -1.0), *rest, jnp.ones((1, 1)), **options, divergence=divergence, alpha=alpha)  # noqa: B023
      )  # fmt: skip
      assert all(jnp.isfinite(x).all() for x in jax.value_and_grad(loss)(logp)), (rho, divergence)


@pytest.mark.parametrize('name', [t for t in preference.TERMS if t not in preference.NLL])
def test_one_step_prefers_the_chosen(name):
  """The loss is finite, smooth, and points the wrong way: a step on random logits raises the margin."""
  r = np.random.RandomState(0)
  logits, targets = jnp.asarray(r.randn(4, 2, 5, 7), jnp.float32), r.randint(0, 7, (4, 2, 5))
  score = lambda x: jnp.take_along_axis(jax.nn.log_softmax(x), targets[..., None], -1)[..., 0]  # noqa: E731
  rest = (jnp.ones((4, 2, 5)), jnp.ones((4, 2, 5), jnp.int32), jnp.ones((4, 1)))
  # DiscoPOP's gradient is reversed near beta h = 0 (its docstring), so that one starts from h = 10.
  ref_logp = score(logits).at[:, 1].add(2.0 if name == 'discopop' else 0.0)
  options = PLAIN | {'label_smoothing': 0.1 if name in preference.SMOOTHED else 0.0, 'terms': {name: 1.0}}

  @jax.jit
  def margin(x):
    out = dpo(score(x), ref_logp, *rest, **options)
    return objective(out), out[2]['margin'][0]

  (before, start), grad = jax.value_and_grad(margin, has_aux=True)(logits)
  after, end = margin(logits - 0.1 * grad / jnp.abs(grad).max())
  assert end > start and after < before


def test_discopop_is_reversed_near_zero():
  """Somebody starts DiscoPOP from its reference and wonders: the docstring's interval is measured here."""
  slope = jax.vmap(jax.grad(lambda h: preference.discopop(h, 0.0, beta=1.0)))
  assert (slope(jnp.array([-0.03, 0.0, 0.03])) > 0).all() and (slope(jnp.array([-0.3, 0.2, 1.0])) < 0).all()


def test_aot_sorts_valid_pairs_only():
  """A void pair's 0 takes part in the sort; the halves of a batch are not its whole."""
  logp, ref_logp, mask, segments, valid = batch()
  options = PLAIN | {'terms': {'aot': 1.0, 'aot_unpaired': 1.0}}
  sums, weights, _ = dpo(logp, ref_logp, mask, segments, valid, **options)
  rho = ((logp - ref_logp) * mask)[..., None, :] * (segments[..., None, :] == np.array([[1], [2]]))
  w, l = (rho.sum(-1)[:, m][valid > 0] for m in (0, 1))
  expected = np.log1p(np.exp(-0.1 * (np.sort(w) - np.sort(l)))).sum()
  np.testing.assert_allclose(sums['aot_unpaired'], expected, rtol=1e-5)
  assert weights['aot'] == weights['aot_unpaired'] == 7
  assert abs(sum(dpo(*(x[i : i + 1] for x in batch()), **options)[0]['aot'] for i in range(4)) - sums['aot']) > 1e-3


def test_wpo_weight_by_hand():
  """The weight is differentiated, above 1, or in the denominator."""
  logp, collision = jnp.log(jnp.array([[[0.5, 0.5]], [[0.25, 1.0]]])).reshape(1, 2, 2), jnp.zeros((1, 2, 2))
  rest = (jnp.array([[[1.0, 1], [1, 0]]]), jnp.ones((1, 2, 2), jnp.int32), jnp.ones((1, 1)))
  f = lambda x, c: preference.wpo_weight(x, c, *rest).sum()  # noqa: E731
  np.testing.assert_allclose(f(logp, collision), 0.5 * 0.25, rtol=1e-6)
  assert f(logp, collision - 9) == 1 and jnp.abs(jax.grad(f)(logp, collision)).max() == 0
  out = dpo(logp, logp, *rest, **PLAIN, terms={'sigmoid': 1.0}, weight=preference.wpo_weight(logp, collision, *rest))
  np.testing.assert_allclose(objective(out), LN2 / 8, rtol=1e-6)
  assert out[1]['sigmoid'] == 1


def test_simpo_gamma():
  """gamma divided by beta twice or not at all: 3 - 2 nats a token, beta 2, so sigma(2 - gamma)."""
  logp = jnp.array([[[-2.0, -2.0], [-3.0, -9.0]]])
  rest = (jnp.array([[[1.0, 1], [1, 0]]]), jnp.ones((1, 2, 2), jnp.int32), jnp.ones((1, 1)))
  ask = lambda **k: objective(simpo(logp, *rest, **{'beta': 2.0, 'label_smoothing': 0.0, 'nll': 0.0} | k))  # noqa: E731
  np.testing.assert_allclose(ask(gamma=0.5), np.log1p(np.exp(-1.5)), rtol=1e-6)
  np.testing.assert_allclose(ask(gamma=preference.gamma_from_ratio(0.5, 2.0)), np.log1p(np.exp(-1.0)), rtol=1e-6)
  np.testing.assert_allclose(ask(gamma=0.5, nll=0.1) - ask(gamma=0.5), 0.1 * 2, rtol=1e-5)  # SimPO#32
  np.testing.assert_allclose(ask(gamma=0.0, alpha=1e-3), ask(gamma=0.0), atol=0.02)


def test_orpo_by_hand_and_at_certainty():
  """log(1 - p) is -inf at p = 1, and a select after it leaves NaN in the gradient (trl#1473, PR#1491)."""
  half, ones = jnp.log(jnp.array([[[0.75, 0.5], [0.5, 0.5]]])), jnp.ones((1, 2, 2))
  rest = (jnp.array([[[1.0, 0], [1, 0]]]), jnp.ones((1, 2, 2), jnp.int32), jnp.ones((1, 1)))
  for nll_mask, nll in ((rest[0], -np.log(0.75)), (ones, -np.log(0.75 * 0.5) / 2)):
    sums, weights, _ = orpo(half, *rest, lambda_or=0.1, nll_mask=nll_mask, nll_per_pair=False)
    np.testing.assert_allclose(sums['nll'] / weights['nll'], nll, rtol=1e-6)
    np.testing.assert_allclose(sums['odds_ratio'], 0.1 * np.log(4 / 3), rtol=1e-6)  # odds 3 : 1
  for x in (0.0, -1e-9, -1e-6, -100.0, -1e30):
    loss = lambda x: objective(  # noqa: E731
      orpo(jnp.full((1, 2, 2), x), *rest, lambda_or=0.1, nll_mask=ones, nll_per_pair=False)
    )
    assert all(jnp.isfinite(y).all() for y in jax.value_and_grad(loss)(x)), x
  x = -np.logspace(-6, 1.5, 20)
  np.testing.assert_allclose(log1mexp(jnp.asarray(x)), np.log1p(-np.exp(x)), rtol=2e-6)


KTO = {'beta': 0.1, 'lambda_d': 1.0, 'lambda_u': 1.0}
LABELS = {'bal': [1, 1, 1, 0, 0, 0], 'imb': [1, 0, 0, 0, 0, 0], 'imb_w': [1, 0, 0, 0, 0, 0], 'all_bad': [0] * 6,
          'neg_kl': [1, 1, 1, 0, 0, 0], 'apo': [1, 1, 1, 0, 0, 0]}  # fmt: skip


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('name', LABELS)
def test_kto_golden(name, packed):
  """The mean is over one kind, so none of it is 0 / 0; the baseline is not clamped or not detached (trl PR#1380)."""
  data = golden('kto')
  mask, labels = data['comp'][:, 1:].astype(np.float32), np.array(LABELS[name], np.float32)
  segments = np.broadcast_to(np.arange(6)[:, None] + 1 if packed else 1, mask.shape).astype(np.int32)
  shape = (1, -1) if packed else (6, -1)
  arrays = [x.reshape(shape) for x in (data['pol'], data['ref'], mask, segments)]
  shape = (1, 6) if packed else (6, 1)
  with jax.enable_x64(True):
    ones = np.ones((6, 1), np.float32)
    kl = data['kl_pol'] - (5 if name == 'neg_kl' else 0), data['kl_ref']
    kl = preference.kto_baseline(*(x[:, None] for x in kl), ones, ones.astype(np.int32), ones)
    z0 = 0.0 if name == 'apo' else kl[0] / kl[1]
    weights = KTO | {'lambda_d': 5.0 if name == 'imb_w' else 1.0}
    f = (
      lambda x: objective(  # noqa: E731
        kto(x, *arrays[1:], ones.reshape(shape), labels.reshape(shape), **weights, z0=z0)
      )
    )
    value, grad = jax.jit(jax.value_and_grad(f))(arrays[0])
  np.testing.assert_allclose(value, data[name], rtol=0, atol=1e-6)
  grad = np.asarray(grad).reshape(6, -1)
  np.testing.assert_allclose(grad[mask != 0], data[f'{name}_grad'][mask != 0], rtol=0, atol=1e-6)
  assert np.abs(grad[mask == 0]).max() == 0


def test_kto_hidden_split_and_by_hand():
  """NaN in a prompt or a void example; a mean inside; lambda on the wrong side; z0 with a gradient."""
  logp = jnp.array([[LN3, np.nan, 0, np.nan], [LN3, 0, np.nan, np.nan]], jnp.float32)
  mask = jnp.array([[1.0, 0, 1, 1], [1, 1, 0, 0]])
  segments = jnp.array([[1, 1, 2, 3], [1, 2, 2, 0]])
  valid, labels = jnp.array([[1.0, 1, 0], [1, 1, 0]]), jnp.array([[1.0, 0, 1], [0, 1, 0]])
  ref = jnp.where(jnp.isnan(logp), jnp.nan, 0)
  arrays = (logp, ref, mask, segments, valid, labels)
  options = {'beta': 1.0, 'lambda_d': 2.0, 'lambda_u': 3.0, 'z0': 0.0}
  sums, weights, metrics = kto(*arrays, **options)
  np.testing.assert_allclose(sums['kto'], 2 / 4 + 3 / 2 + 3 * 3 / 4 + 2 / 2, rtol=1e-6)
  assert weights['kto'] == 4 and metrics['reward_desirable'] == (np.float32(LN3), 2)
  parts = [kto(*(x[i : i + 1] for x in arrays), **options) for i in (0, 1)]
  close(jax.tree.map(jnp.add, *parts), (sums, weights, metrics), 1e-6)
  grad = jax.grad(lambda x: objective(kto(x, *arrays[1:], **options)))(logp)
  assert jnp.isfinite(grad).all() and (grad[jnp.isnan(logp)] == 0).all()
  assert grad[0, 0] < 0 < grad[1, 0]  # the desirable one up, the undesirable one down
  assert jax.grad(lambda z: objective(kto(*arrays, **options | {'z0': z})))(1.0) == 0
  assert preference.kto_baseline(*arrays[:5]) == (np.float32(2 * LN3), 4)


@pytest.mark.parametrize('n', [2, 3, 7])
def test_kto_mismatch_leaves_nobody_matched(n):
  """Reversing an odd batch keeps its middle example matched (trl#1911)."""
  other = preference.kto_mismatch(n)
  assert sorted(other) == list(range(n)) and (other != np.arange(n)).all()


def test_bad_input_is_a_sentence():
  """A knob that nothing reads, a term that does not exist, a divergence without its number."""
  arrays = batch()
  rest = arrays[2:]
  ask = lambda **k: dpo(*arrays, **PLAIN | {'terms': {'sigmoid': 1.0}} | k)  # noqa: E731
  cases = [
    (lambda: ask(terms={'sigmod': 1.0}), "a term = 'sigmod' is unknown"),
    (lambda: ask(divergence='kl'), "divergence = 'kl' is unknown"),
    (lambda: ask(divergence='alpha'), 'alpha = None with divergence = alpha'),
    (lambda: ask(terms={'hinge': 1.0}, label_smoothing=0.1), 'none of hinge reads it'),
    (lambda: ask(terms={'robust': 1.0}, label_smoothing=0.5), '0.5 must be at least 0 and below 0.5'),
    (lambda: ask(terms={'exo_pair': 1.0}), '0.0 must be in'),
    (lambda: ask(normalise=True, ld_alpha=0.5), 'drop one'),
    (lambda: ask(terms={'aot': 1.0}, weight=arrays[-1]), 'neither weights nor soft labels'),
    (lambda: ask(terms={'aot': 1.0}, divergence='js'), 'use reverse_kl'),
    (lambda: cpo(arrays[0], *rest, **PLAIN, terms={'aot': 1.0}), "a term = 'aot' is unknown"),
    (lambda: preference.kto_mismatch(1), 'the batch has 1: at least 2'),
  ]
  for call, sentence in cases:
    with pytest.raises(BadInput, match=sentence):
      call()
  with pytest.raises(ValueError, match='M = 1'):
    dpo(*(x[:, :1] for x in arrays[:4]), arrays[4], **PLAIN, terms={'sigmoid': 1.0})
