"""The DPO family, ORPO, CPO, SimPO, AlphaPO and KTO: golden values, and what must not change them."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close

from llmstack.errors import BadInput
from llmstack.losses import common, preference
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


SIGMOID = {'terms': {'sigmoid': 1.0}}
SIMPO = {'beta': 2.0, 'gamma': 1.0, 'label_smoothing': 0.0, 'nll': 0.0}
NAMED = (
  'sigmoid',
  'hinge',
  'nca_pair',
  'bco_pair',
  'sppo_hard',
  'apo_zero',
  'apo_down',
  'discopop',
  'aot_unpaired',
  'sft',
)


def named(loss, *names):
  """Returns {name: value}, each term alone."""
  sums, weights, _ = loss(dict.fromkeys(names, 1.0))
  return {name: sums[name] / weights[name] for name in names}


def golden_dpo(*a):
  return (
    named(lambda terms: dpo(*a, **PLAIN, terms=terms), *NAMED, 'sft')
    | named(lambda terms: dpo(*a, **PLAIN | {'label_smoothing': 0.1}, terms=terms), 'robust', 'aot')
    | named(lambda terms: dpo(*a, **PLAIN | {'label_smoothing': 1e-3}, terms=terms), 'exo_pair')
    | named(lambda terms: dpo(*a, **MEAN, terms=terms), 'ipo')
    | {
      'sigmoid_norm': objective(dpo(*a, **MEAN, **SIGMOID)),
      'sigmoid_forward_kl': objective(dpo(*a, **PLAIN, **SIGMOID, divergence='forward_kl')),
      'sigmoid_js_divergence': objective(dpo(*a, **PLAIN, **SIGMOID, divergence='js')),
      'sigmoid_alpha_divergence': objective(dpo(*a, **PLAIN, **SIGMOID, divergence='alpha', alpha=0.5)),
      'ld_dpo_0.5': objective(dpo(*a, **PLAIN, **SIGMOID, ld_alpha=0.5)),
      'mpo': objective(dpo(*a, **PLAIN, terms={'sigmoid': 0.8, 'bco_pair': 0.2, 'sft': 1.0})),
    }
  )


def golden_cdpo(*a):
  return {
    'dpo': objective(dpo(*a, **PLAIN, **SIGMOID)),
    'cdpo': objective(dpo(*a, **PLAIN | {'label_smoothing': 0.1}, **SIGMOID)),
    'ipo': objective(dpo(*a, **PLAIN, terms={'ipo': 1.0})),
  }


def golden_orpo_simpo(logp, ref_logp, *a):
  odds = orpo(logp, *a, lambda_or=0.1, nll_mask=a[0], nll_per_pair=False)
  return {
    'simpo': objective(simpo(logp, *a, **SIMPO)),
    'simpo_ls': objective(simpo(logp, *a, **SIMPO | {'label_smoothing': 0.1})),
    'alphapo': objective(simpo(logp, *a, **SIMPO, alpha=0.25)),
    'cpo': objective(cpo(logp, *a, **PLAIN, **SIGMOID)),
    'cpo_ipo': objective(cpo(logp, *a, **MEAN | {'beta': 2.0}, terms={'ipo': 1.0})),
    'orpo_or': odds[0]['odds_ratio'] / odds[1]['odds_ratio'],
  }


@pytest.mark.parametrize(
  'losses,layout',
  [(golden_dpo, packed), (golden_cdpo, packed), (golden_cdpo, unpacked), (golden_orpo_simpo, unpacked)],
)
def test_golden(losses, layout):
  """A sign, a detached term or a length is wrong, or one packed pair leaks into the next.

  IPO on sums (OpenRLHF, torchtune, its authors) taken for TRL's on means, or back (trl PR#1265, #1677, #1033,
  torchtune#1291); gamma divided by beta once more, or CPO's NLL in SimPO (trl PR#1703, PR#1760, SimPO#4). To 1e-6 in
  value and gradient, 1e-5 where the reference's is float32.
  """
  data = golden(losses.__name__.removeprefix('golden_'))
  logp, *rest = pairs(data, layout)
  mask = rest[1]
  with jax.enable_x64(True):
    f = lambda x: (lambda out: (out, out))(losses(x, *rest))  # noqa: E731
    grads, values = jax.jit(jax.jacrev(f, has_aux=True))(logp)
  expected = {name: data[name] for name in values}
  assert len(values) >= 3 and set(data) - set(values) <= set(OTHERS) | {f'{name}_grad' for name in values}
  for name, grad in grads.items():
    theirs = data.get(f'{name}_grad')
    tol = 1e-5 if theirs is not None and theirs.dtype == np.float32 else 1e-6
    np.testing.assert_allclose(values[name], expected[name], rtol=0, atol=tol, err_msg=name)
    assert grad.dtype == jnp.float64 and np.abs(grad[mask == 0]).max() == 0, name
    if theirs is not None:
      np.testing.assert_allclose(grad[mask != 0], layout(theirs)[mask != 0], rtol=0, atol=tol, err_msg=name)


# The inputs, and what needs the model that was behind them.
OTHERS = ('ids', 'att', 'comp', 'pol', 'ref', 'orpo_full', 'orpo_full_nll', 'simpo_full', 'cpo_full')


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
  loss = jax.jit(lambda w, l: getattr(preference, name)(w, l, **options))(LN3, 0.0)
  np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_sequences_by_hand():
  """A mean where a sum is meant: two pairs in a row, weights, a gap, padding; the SFT terms on top."""
  logp = -np.array([[[1, 2, 3, 4, 9], [9, 5, 6, 7, 9]]], np.float32)
  mask = np.array([[[1, 1, 0, 1, 0], [0, 1, 1, 0.5, 0]]], np.float32)
  segments = np.array([[[1, 1, 2, 2, 0], [1, 1, 1, 2, 0]]], np.int32)
  sums = jax.jit(common.sequence_sums, static_argnums=3)(logp, mask, segments, 3)
  np.testing.assert_array_equal(sums, [[[-3, -4, 0], [-11, -3.5, 0]]])
  # The shorter of pair 1 has two tokens, of pair 2 one.
  full = np.array([[[1, 1, 1, 1, 0], [0, 1, 1, 0.5, 0]]], np.float32)
  longer = jax.jit(preference.shared_length_sums, static_argnums=3)(logp, full, segments, 2, 0.1)
  np.testing.assert_allclose(longer, [[[-3, -3.4], [-11, -3.5]]], rtol=1e-6)
  loss = jax.jit(lambda *a: dpo(*a, **PLAIN, terms={'sft': 2.0, 'sft_per_pair': 1.0}))
  sums, weights, metrics = loss(logp, logp, mask, segments, np.ones((1, 2), np.float32))
  assert sums == {'sft': 2 * 7, 'sft_per_pair': 1.5 + 4} and weights == {'sft': 3, 'sft_per_pair': 2}
  assert metrics['logp_chosen'] == (-7, 2) and metrics['logp_rejected'] == (-14.5, 2)


def test_policy_equal_to_the_reference():
  """Dropout, or a reference in another mode or dtype (trl#744, PR#5542, #1962): ln 2, ties at chance, and a gradient.

  Also trl#800: chosen and rejected log-probs are both in the metrics.
  """
  logp, _, *rest = single(batch())
  value, (grad, ref_grad), metrics = sigmoid_at(logp, logp, *rest)
  assert value == np.float32(LN2) and jnp.abs(grad).max() > 0 == jnp.abs(ref_grad).max()
  assert metrics['accuracy'] == 0.5 and metrics['margin'] == metrics['log_ratio_chosen'] == 0
  assert {'logp_chosen', 'logp_rejected', 'reward_chosen', 'reward_rejected'} <= set(metrics)


@jax.jit
def sigmoid_at(logp, ref_logp, *arrays):
  """Returns (loss, gradients of policy and reference, metrics divided) of plain DPO."""
  f = lambda *x: (lambda out: (objective(out), out[2]))(dpo(*x, *arrays, **PLAIN, **SIGMOID))  # noqa: E731
  (value, metrics), grad = jax.value_and_grad(f, (0, 1), has_aux=True)(logp, ref_logp)
  return value, grad, {name: a / b for name, (a, b) in metrics.items()}


def test_gradient_identity():
  """The gradient is not -beta sigma(-beta h) (grad logp_w - grad logp_l) per pair: 2305.18290, section 4."""
  logp, ref_logp, mask, segments, valid = batch()
  with jax.enable_x64(True):
    grad = np.asarray(sigmoid_at(logp, ref_logp, mask, segments, valid)[1][0])
  for p in range(2):
    rho = ((logp - ref_logp) * mask * (segments == p + 1)).sum(-1)
    h = rho[:, 0] - rho[:, 1]
    slope = 0.1 / (1 + np.exp(0.1 * h)) * valid[:, p] / valid.sum()
    for m, sign in enumerate((-1, 1)):
      expected = sign * slope[:, None] * mask[:, m]
      np.testing.assert_allclose(np.where(segments[:, m] == p + 1, grad[:, m] - expected, 0), 0, atol=1e-12)


SMOOTH = {'beta': 0.3, 'label_smoothing': 0.1}
SUMS, MEANS = SMOOTH | {'normalise': False}, SMOOTH | {'normalise': True}


def everything(logp, ref_logp, mask, segments, valid):
  """Returns one dict of sums, of weights and of metrics: what the golden gradients do not cover, and all terms."""
  rest = (mask, segments, valid)
  outs = {
    'dpo': dpo(logp, ref_logp, *rest, **SUMS, terms=ALL),
    'ld': dpo(logp, ref_logp, *rest, **SUMS, **SIGMOID, ld_alpha=0.3),
    'alphapo': simpo(logp, *rest, **SMOOTH, gamma=0.4, nll=0.5, alpha=0.25),
    'orpo': orpo(logp, *rest, lambda_or=0.7, nll_mask=mask, nll_per_pair=False),
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


def padded(arrays, rows=8, columns=17):
  """Returns the arrays with void rows and columns behind."""
  width = lambda x: ((0, rows - len(x)),) + ((0, 0),) * (x.ndim - 2) + ((0, columns - 14 if x.ndim == 3 else 0),)  # noqa: E731
  return [np.pad(x, width(x)) for x in arrays]


def test_gradients_against_finite_differences():
  """A stop_gradient or a select in the wrong place, in the losses without golden gradients as in the others."""
  logp, *rest = batch()
  direction = np.random.RandomState(1).randn(*logp.shape)
  with jax.enable_x64(True):
    (_, (up, *_)), _ = slopes(logp + 1e-6 * direction, *rest)
    (_, (down, *_)), _ = slopes(logp - 1e-6 * direction, *rest)
    grad = np.asarray(slopes(logp, *rest)[1])
  numeric = sum(float(up[name]) - float(down[name]) for name in up) / 2e-6
  np.testing.assert_allclose((grad * direction).sum(), numeric, rtol=1e-6)


def test_nothing_hidden_has_an_effect():
  """mask * NaN is NaN, and so is its gradient (OpenRLHF PR#1240): prompts, padding, void pairs, their soft labels."""
  logp, ref_logp, *rest = batch()
  seen = visible(*rest)
  with jax.enable_x64(True):
    (value, out), grad = slopes(*(np.where(seen, x, np.nan) for x in (logp, ref_logp)), *rest)
    (ref, ref_out), ref_grad = slopes(logp, ref_logp, *rest)
  grad, ref_grad = np.asarray(grad), np.asarray(ref_grad)
  assert float(value) == float(ref) and np.array_equal(grad, ref_grad) and np.isfinite(grad).all()
  assert np.abs(grad[~seen]).max() == 0 and np.abs(grad[seen]).min() > 0
  close(out, ref_out, 0)

  logp, ref_logp, *rest = single(batch())
  options = {'beta': 0.1, 'normalise': False, 'terms': dict.fromkeys(preference.SMOOTHED, 1.0)}
  f = lambda x, e, w: objective(dpo(x, ref_logp, *rest, **options, label_smoothing=e, weight=w))  # noqa: E731
  soft = np.where(rest[2] != 0, np.float32(0.2), np.float32(np.nan))
  f = jax.jit(jax.value_and_grad(f))
  close(f(logp, soft, 5 * soft), f(logp, np.full_like(soft, 0.2), np.ones_like(soft)), 1e-6)


def test_padding_has_no_effect():
  """A width or a row count in a denominator: more columns, rows and places for pairs (trl PR#6439)."""
  with jax.enable_x64(True):
    out, grad = slopes(*batch())
    wide_out, wide_grad = slopes(*padded(batch()))
  close(wide_out, out, 1e-9)
  wide_grad = np.array(wide_grad)
  close(wide_grad[:4, :, :14], grad, 1e-9)
  wide_grad[:4, :, :14] = 0
  assert np.abs(wide_grad).max() == 0


def test_additive_over_splits_and_the_same_over_devices():
  """A mean hides in a loss: microbatches weigh the same whatever they hold (transformers#34191, trl#3021).

  Or a sum or a sort is taken per device. AOT sorts, so it does not add up over microbatches, but over devices it does.
  """
  arrays = padded(batch(rows=8))
  mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  with jax.enable_x64(True):
    (_, whole), _ = slopes(*arrays)
    halves = [slopes(*padded([x[i : i + 4] for x in arrays], columns=14))[0][1] for i in (0, 4)]
    sharded = [jax.device_put(x, jax.NamedSharding(mesh, jax.P('data'))) for x in arrays]
    close(jax.jit(everything)(*sharded), whole, 1e-9)
  added, whole = jax.tree.map(lambda *x: sum(map(float, x)), *halves), jax.tree.map(float, whole)
  apart = {name for name in whole[0] if abs(added[0][name] - whole[0][name]) > 1e-5}
  assert apart == {'dpo.aot', 'dpo.aot_unpaired'}
  for out in (added, whole):
    for name in apart:
      del out[0][name]
  close(added, whole, 1e-9)


def test_completions_without_tokens_are_finite():
  """0 / 0 where a completion, or every completion, is masked away (trl PR#3248, IPO's all-masked row)."""
  logp, ref_logp, mask, segments, valid = batch()
  for hidden in (mask * (np.arange(4) > 0)[:, None, None], mask * 0):
    with jax.enable_x64(True):
      out = slopes(logp, ref_logp, hidden.astype(np.float32), segments, valid)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(out))


def test_wild_log_ratios_are_finite():
  """exp(-rho) of f-divergences and DiscoPOP's exponential overflow in float32: inf - inf and inf * 0 (trl#3015)."""
  ones, terms = np.ones((1, 2, 1), np.float32), {'sigmoid': 1.0, 'discopop': 1.0}
  rest = (-ones, ones, ones.astype(np.int32), ones[:, :, 0][:, :1])

  def f(logp):
    options = SUMS | {'terms': terms}
    divergences = (('reverse_kl', None), ('forward_kl', None), ('js', None), ('alpha', 0.2))
    return jnp.stack([objective(dpo(logp, *rest, **options, divergence=d, alpha=a)) for d, a in divergences])

  both = jax.jit(lambda logp: (f(logp), jax.jacrev(f)(logp)))
  for rho in (-1e3, 1e3):
    out = both(-ones + np.array([[[rho], [0]]], np.float32))
    assert all(jnp.isfinite(x).all() for x in out), (rho, out)


def test_one_step_prefers_the_chosen():
  """A loss is finite, smooth, and points the wrong way: a step on random logits lowers it and raises the margin."""
  r = np.random.RandomState(0)
  logits, targets = jnp.asarray(r.randn(4, 2, 5, 7), jnp.float32), r.randint(0, 7, (4, 2, 5))
  score = lambda x: jnp.take_along_axis(jax.nn.log_softmax(x), targets[..., None], -1)[..., 0]  # noqa: E731
  rest = (np.ones((4, 2, 5), np.float32), np.ones((4, 2, 5), np.int32), np.ones((4, 1), np.float32))
  names = [t for t in preference.TERMS if t not in preference.NLL]

  @jax.jit
  def step(x, behind, which):
    def loss(x):
      ref_logp = jax.lax.stop_gradient(score(logits)).at[:, 1].add(behind)
      out = dpo(score(x), ref_logp, *rest, **SUMS, terms={name: which[i] for i, name in enumerate(names)})
      return objective(out), out[2]['margin'][0]

    return jax.value_and_grad(loss, has_aux=True)(x)

  for i, name in enumerate(names):
    # DiscoPOP's gradient is reversed near beta h = 0 (its docstring), so that one starts from beta h = 3.
    settings = (jnp.float32(2.0 if name == 'discopop' else 0.0), jax.nn.one_hot(i, len(names)))
    (before, start), grad = step(logits, *settings)
    (after, end), _ = step(logits - 0.1 * grad / jnp.abs(grad).max(), *settings)
    assert end > start and after < before, name


def test_discopop_is_reversed_near_zero():
  """Somebody starts DiscoPOP from its reference and wonders: the docstring's interval is measured here."""
  slope = jax.jit(jax.vmap(jax.grad(lambda h: preference.discopop(h, 0.0, beta=1.0))))
  assert (slope(jnp.array([-0.03, 0.0, 0.03])) > 0).all() and (slope(jnp.array([-0.3, 0.2, 1.0])) < 0).all()


def test_aot_sorts_valid_pairs_only():
  """A void pair's 0 takes part in the sort, or in the denominator."""
  logp, ref_logp, mask, segments, valid = batch()
  options = PLAIN | {'terms': {'aot': 1.0, 'aot_unpaired': 1.0}}
  sums, weights, _ = jax.jit(lambda *a: dpo(*a, **options))(*single(batch()))
  rho = ((logp - ref_logp) * mask)[..., None, :] * (segments[..., None, :] == np.array([[1], [2]]))
  w, l = (rho.sum(-1)[:, m][valid > 0] for m in (0, 1))
  expected = np.log1p(np.exp(-0.1 * (np.sort(w) - np.sort(l)))).sum()
  np.testing.assert_allclose(sums['aot_unpaired'], expected, rtol=1e-5)
  assert weights['aot'] == weights['aot_unpaired'] == 7


def one_pair(chosen, rejected):
  """Returns (logp, mask, segments, valid) of one pair: two chosen tokens, and the first of two rejected ones."""
  logp, mask = (np.array([x], np.float32) for x in (np.log([chosen, rejected]), [[1, 1], [1, 0]]))
  return logp, mask, np.ones((1, 2, 2), np.int32), np.ones((1, 1), np.float32)


def test_wpo_weight_by_hand():
  """The weight is differentiated, above 1, or in the denominator."""
  logp, *rest = one_pair([0.5, 0.5], [0.25, 1.0])

  @jax.jit
  def f(logp, collision):
    weigh = lambda x: preference.wpo_weight(x, collision, *rest)  # noqa: E731
    out = dpo(logp, logp, *rest, **PLAIN, **SIGMOID, weight=weigh(logp))
    return weigh(logp)[0, 0], jax.grad(lambda x: weigh(x).sum())(logp), objective(out), out[1]

  weight, grad, loss, weights = f(logp, np.zeros((1, 2, 2), np.float32))
  np.testing.assert_allclose((weight, loss), (0.5 * 0.25, LN2 / 8), rtol=1e-6)
  assert f(logp, np.full((1, 2, 2), -9, np.float32))[0] == 1 and jnp.abs(grad).max() == 0 and weights == {'sigmoid': 1}


def test_simpo_gamma():
  """gamma divided by beta twice or not at all: chosen leads by 1 nat a token, beta is 2, so sigma(2 - gamma)."""
  arrays = one_pair([np.exp(-2), np.exp(-2)], [np.exp(-3), 1.0])

  @functools.partial(jax.jit, static_argnames=('nll', 'alpha'))
  def f(gamma, nll=0.0, alpha=0.0):
    return objective(simpo(*arrays, beta=2.0, gamma=gamma, label_smoothing=0.0, nll=nll, alpha=alpha))

  np.testing.assert_allclose(f(0.5), np.log1p(np.exp(-1.5)), rtol=1e-6)
  np.testing.assert_allclose(f(preference.gamma_from_ratio(0.5, 2.0)), np.log1p(np.exp(-1.0)), rtol=1e-6)
  np.testing.assert_allclose(f(0.5, nll=0.1) - f(0.5), 0.1 * 2, rtol=1e-5)  # the NLL only if asked for (SimPO#32)
  np.testing.assert_allclose(f(0.0, alpha=1e-3), f(0.0), atol=0.01)


def test_orpo_by_hand_and_at_certainty():
  """log(1 - p) is -inf at p = 1, and a select after it leaves NaN in the gradient (trl#1473, PR#1491).

  Also the NLL's span, with and without the prompt (trl#1676, trl PR#2502).
  """
  logp, mask, *rest = one_pair([0.75, 0.75], [0.5, 0.5])

  @jax.jit
  def f(logp, nll_mask):
    loss = lambda x: orpo(x, mask, *rest, lambda_or=0.1, nll_mask=nll_mask, nll_per_pair=False)  # noqa: E731
    return loss(logp), jax.grad(lambda x: objective(loss(x)))(logp)

  for last in (0.0, 1.0):
    (sums, weights, _), _ = f(logp, np.array([[[1, last], [0, 0]]], np.float32))
    np.testing.assert_allclose(sums['odds_ratio'], 0.1 * np.log(4 / 3), rtol=1e-6)  # odds of 3 and 1
    np.testing.assert_allclose(sums['nll'], -(1 + last) * np.log(0.75), rtol=1e-6)
    assert weights == {'nll': 1 + last, 'odds_ratio': 1}
  for x in (0.0, -1e-9, -1e-6, -100.0, -1e30):
    out = f(np.full((1, 2, 2), x, np.float32), mask)
    assert all(np.isfinite(y).all() for y in jax.tree.leaves(out)), x
  x = -np.logspace(-6, 1.5, 20).astype(np.float32)
  np.testing.assert_allclose(jax.jit(log1mexp)(x), np.log1p(-np.exp(x.astype(np.float64))), rtol=1e-6)


LABELS = {'bal': [1, 1, 1, 0, 0, 0], 'imb': [1, 0, 0, 0, 0, 0], 'imb_w': [1, 0, 0, 0, 0, 0], 'all_bad': [0] * 6,
          'neg_kl': [1, 1, 1, 0, 0, 0], 'apo': [1, 1, 1, 0, 0, 0]}  # fmt: skip


@pytest.mark.parametrize('packed', [False, True])
def test_kto_golden(packed):
  """The mean is over one kind, so none of it is 0 / 0; the baseline is not clamped or not detached (trl PR#1380)."""
  data = golden('kto')
  mask = data['comp'][:, 1:].astype(np.float32)
  segments = np.broadcast_to(np.arange(6)[:, None] + 1 if packed else 1, mask.shape).astype(np.int32)
  tokens, examples = ((1, -1), (1, 6)) if packed else ((6, -1), (6, 1))
  logp, *rest = (x.reshape(tokens) for x in (data['pol'], data['ref'], mask, segments))
  ones = np.ones((6, 1), np.float32)

  @jax.jit
  @jax.value_and_grad
  def f(logp, labels, lambda_d, kl_shift):
    kl = (data['kl_pol'][:, None] + kl_shift, data['kl_ref'][:, None])
    kl = preference.kto_baseline(*kl, ones, ones.astype(np.int32), ones)
    options = {'beta': 0.1, 'lambda_d': lambda_d, 'lambda_u': 1.0, 'z0': kl[0] / kl[1]}
    return objective(kto(logp, *rest, ones.reshape(examples), labels, **options))

  with jax.enable_x64(True):
    for name, labels in LABELS.items():
      # apo_zero_unpaired has no baseline, which is a baseline of 0.
      shift = {'neg_kl': -5.0, 'apo': -9.0}.get(name, 0.0)
      labels = np.array(labels, np.float32).reshape(examples)
      value, grad = f(logp, labels, 5.0 if name == 'imb_w' else 1.0, shift)
      np.testing.assert_allclose(value, data[name], rtol=0, atol=1e-6, err_msg=name)
      grad = np.asarray(grad).reshape(6, -1)
      np.testing.assert_allclose(grad[mask != 0], data[f'{name}_grad'][mask != 0], rtol=0, atol=1e-6, err_msg=name)
      assert np.abs(grad[mask == 0]).max() == 0


def test_kto_hidden_split_and_by_hand():
  """NaN in a prompt or a void example; a mean inside; lambda on the wrong side; z0 with a gradient."""
  single = lambda x: np.array(x, np.float32)  # noqa: E731
  logp = single([[LN3, np.nan, 0, np.nan], [LN3, 0, np.nan, np.nan]])
  mask, segments = single([[1, 0, 1, 1], [1, 1, 0, 0]]), np.array([[1, 1, 2, 3], [1, 2, 2, 0]], np.int32)
  valid, labels = single([[1, 1, 0], [1, 1, 0]]), single([[1, 0, 1], [0, 1, 0]])
  ref = np.where(np.isnan(logp), logp, np.float32(0))
  arrays = (logp, ref, mask, segments, valid, labels)

  @jax.jit
  def f(*arrays, z0=0.0):
    def loss(x, ref_logp, z0):
      out = kto(x, ref_logp, *arrays[2:], beta=1.0, lambda_d=2.0, lambda_u=3.0, z0=z0)
      return objective(out), out

    (_, out), slopes = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*arrays[:2], z0)
    return out, slopes

  (sums, weights, metrics), (grad, ref_grad, slope) = f(*arrays)
  np.testing.assert_allclose(sums['kto'], 2 / 4 + 3 / 2 + 3 * 3 / 4 + 2 / 2, rtol=1e-6)
  assert weights['kto'] == 4 and metrics['reward_desirable'] == (np.float32(LN3), 2)
  parts = [f(*(x[i : i + 1] for x in arrays))[0] for i in (0, 1)]
  close(jax.tree.map(jnp.add, *parts), (sums, weights, metrics), 1e-6)
  assert jnp.isfinite(grad).all() and (grad[jnp.isnan(logp)] == 0).all()
  assert grad[0, 0] < 0 < grad[1, 0]  # the desirable one up, the undesirable one down
  assert slope == f(*arrays, z0=1.0)[1][2] == jnp.abs(ref_grad).max() == 0
  assert jax.jit(preference.kto_baseline)(*arrays[:5]) == (np.float32(2 * LN3), 4)


def test_bad_input_is_a_sentence():
  """A knob that nothing reads, a term that does not exist, a divergence without its number."""
  arrays = batch()
  rest = arrays[2:]
  ask = lambda **k: dpo(*arrays, **PLAIN | {'terms': {'sigmoid': 1.0}} | k)  # noqa: E731
  cases = [
    (lambda: ask(terms={'sigmod': 1.0}), "term = 'sigmod' is unknown"),
    (lambda: ask(divergence='kl'), "divergence = 'kl' is unknown"),
    (lambda: ask(divergence='alpha'), 'alpha = None with divergence = alpha'),
    (lambda: ask(terms={'hinge': 1.0}, label_smoothing=0.1), 'none of hinge reads it'),
    (lambda: ask(terms={'robust': 1.0}, label_smoothing=0.5), '0.5 must be at least 0 and below 0.5'),
    (lambda: ask(terms={'exo_pair': 1.0}), '0.0 must be in'),
    (lambda: ask(normalise=True, ld_alpha=0.5), 'drop one'),
    (lambda: ask(terms={'aot': 1.0}, weight=arrays[-1]), 'neither weights nor soft labels'),
    (lambda: ask(terms={'aot': 1.0}, divergence='js'), 'use reverse_kl'),
    (lambda: cpo(arrays[0], *rest, **PLAIN, terms={'aot': 1.0}), "term = 'aot' is unknown"),
  ]
  for call, sentence in cases:
    with pytest.raises(BadInput, match=sentence):
      call()
  with pytest.raises(ValueError, match='M = 1'):
    dpo(*(x[:, :1] for x in arrays[:4]), arrays[4], **PLAIN, terms={'sigmoid': 1.0})
