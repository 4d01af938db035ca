"""The one step: the same update on every mesh, for any number of microbatches; never a poisoned state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import GEMMA_FIRST, batch, close, model, replace, weights

from llmstack import optim, sharding, state
from llmstack.checkpoint import digest
from llmstack.errors import BadInput
from llmstack.model import init
from llmstack.step import make_step, ratio, tree_norm
from llmstack.tasks.pretrain import lm_loss

CFG = model('llama_tiny', heads=8, kv_heads=8)
LOSS = lm_loss(CFG, z_loss=1e-3, chunk=8)
SGD = optax.sgd(1.0)


def fresh(tx=SGD):
  return state.create(jax.tree.map(jnp.copy, weights(CFG)), tx)


def updated(microbatches, tx=SGD, clip=np.inf, b=None):
  b = batch(8, 16) if b is None else b
  return jax.jit(make_step(LOSS, tx, seed=0, microbatches=microbatches, clip=clip))(fresh(tx), None, b)


@pytest.fixture(scope='module')
def reference():
  return updated(1)


@pytest.mark.parametrize('microbatches', [2, 4])
def test_microbatches_change_nothing(reference, microbatches):
  """Mean of means: each microbatch divides by its own tokens, and short rows weigh more (transformers#34191)."""
  mask = batch(8, 16)['mask']
  assert len(set(mask.sum(1))) > 3, 'the rows must be ragged for this test to mean anything'
  new, measured = updated(microbatches)
  np.testing.assert_allclose(measured['loss'], reference[1]['loss'], rtol=1e-6)
  np.testing.assert_allclose(measured['accuracy'], reference[1]['accuracy'], rtol=1e-6)
  close(new.params, reference[0].params, 2e-6)  # SGD with rate 1: parameters move by the gradient itself


def test_denominators_cost_no_forward_pass():
  """The pass that adds up the denominators computes the whole model as well; FLOPs of a scan count its body once."""

  def flops(m):
    step = jax.jit(make_step(LOSS, SGD, seed=0, microbatches=m, clip=np.inf))
    return step.lower(fresh(), None, batch(8, 16)).compile().cost_analysis()['flops']

  assert flops(2) < 0.6 * flops(1)


def test_every_mesh_gives_the_same_update(mesh, reference):
  """A loss is averaged per device, a gradient is not summed over an axis, a weight is gathered wrongly."""
  with jax.set_mesh(mesh):
    target = state.shapes_of(lambda: init(CFG, jax.random.key(0)), SGD, mesh)
    st = jax.device_put(fresh(), jax.tree.map(lambda x: x.sharding, target))
    step = jax.jit(
      make_step(LOSS, SGD, seed=0, microbatches=1, clip=np.inf), donate_argnums=0,
      out_shardings=(jax.tree.map(lambda x: x.sharding, target), None),
    )  # fmt: skip
    new, measured = step(st, None, sharding.place(batch(8, 16), mesh))
  np.testing.assert_allclose(measured['loss'], reference[1]['loss'], rtol=1e-6)
  np.testing.assert_allclose(measured['grad_norm'], reference[1]['grad_norm'], rtol=1e-5)
  close(new.params, reference[0].params, 5e-6)
  wq = new.params['layers']['attn']['wq']['w']
  assert wq.addressable_shards[0].data.size * mesh.shape['fsdp'] * mesh.shape['tensor'] == wq.size


@pytest.mark.parametrize('name', GEMMA_FIRST)
def test_the_way_large_models_run_gives_the_same_update(name):
  """Scan, remat, chunked loss and microbatches together on data x fsdp x tensor, as the sizes for TPUs do."""
  cfg = model(name, **({'heads': 4, 'kv_heads': 2} if name == 'gemma_tiny' else {}))
  plain = make_step(lm_loss(cfg, z_loss=1e-3, chunk=None), SGD, seed=0, microbatches=1, clip=np.inf)
  large = lm_loss(replace(cfg, scan=True, remat='dots'), z_loss=1e-3, chunk=8)
  large = make_step(large, SGD, seed=0, microbatches=2, clip=np.inf)
  st = state.create(weights(cfg), SGD)
  want, wanted = jax.jit(plain)(st, None, batch(8, 16))
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  with jax.set_mesh(mesh):
    shardings = jax.tree.map(lambda x: x.sharding, state.shapes_of(lambda: st.params, SGD, mesh))
    new, measured = jax.jit(large)(jax.device_put(st, shardings), None, sharding.place(batch(8, 16), mesh))
  np.testing.assert_allclose(measured['loss'], wanted['loss'], rtol=2e-6)
  close(new.params, want.params, 1e-5)


@pytest.mark.filterwarnings('ignore:.*pmap.*:DeprecationWarning')
def test_data_parallel_pmap_gives_the_same_update(reference):
  """The mesh step means something else than classic data parallelism: sum everywhere, divide once, update."""

  def update(params, b):
    denominators = jax.lax.psum(LOSS(params, None, b, None)[1], 'devices')

    def local(params):
      sums = LOSS(params, None, b, None)[0]
      return sum(ratio(sums[t], denominators[t]) for t in sums)

    grads = jax.lax.psum(jax.grad(local)(params), 'devices')
    updates, _ = SGD.update(grads, SGD.init(params), params)
    return optax.apply_updates(params, updates)

  shards = jax.tree.map(lambda x: x.reshape(8, 1, *x.shape[1:]), batch(8, 16))
  new = jax.pmap(update, 'devices', in_axes=(None, 0))(weights(CFG), shards)
  close(jax.tree.map(lambda x: x[3], new), reference[0].params, 5e-6)


def test_the_norm_does_not_overflow():
  """Squares of 1e30 overflow float32, and clipping then turns every gradient into zero."""
  tree = {'a': jnp.full((3,), 1e30), 'b': jnp.zeros((2, 2))}
  np.testing.assert_allclose(tree_norm(tree), np.sqrt(3) * 1e30, rtol=1e-6)
  assert tree_norm({'a': jnp.zeros(3)}) == 0
  assert not jnp.isfinite(tree_norm({'a': jnp.array([1.0, jnp.inf])}))
  assert jnp.isnan(tree_norm({'a': jnp.array([1.0, jnp.nan])}))


@pytest.mark.parametrize('scale', [1.0, 1e30, 1e37])
def test_clipping_scales_a_huge_finite_gradient(scale):
  """optax.clip_by_global_norm returns zeros for it, and training stands still without a word."""
  loss = lambda p, f, b, r: ({'x': scale * jnp.sum(p['w'] * b)}, {'x': jnp.ones(())}, {})  # noqa: E731
  step = make_step(loss, SGD, seed=0, microbatches=1, clip=0.5)
  st = state.create({'w': jnp.zeros(2)}, SGD)
  new, measured = step(st, None, jnp.array([3.0, 4.0]))
  np.testing.assert_allclose(new.params['w'], [-0.3, -0.4], rtol=1e-5)
  np.testing.assert_allclose(measured['grad_norm'], 5 * scale, rtol=1e-5)
  np.testing.assert_allclose(measured['update_norm'], 0.5, rtol=1e-5)


@pytest.mark.parametrize('poison', [np.nan, np.inf])
def test_a_bad_batch_leaves_the_state_untouched_and_is_counted(poison):
  """NaN reaches the weights or Adam's moments, or is applied after N of them as by optax.apply_if_finite."""
  tx = optax.adam(0.1)
  loss = lambda p, f, b, r: ({'x': jnp.sum(p['w'] * b)}, {'x': jnp.ones(())}, {})  # noqa: E731
  step = jax.jit(make_step(loss, tx, seed=0, microbatches=1, clip=1.0))
  st, _ = step(state.create({'w': jnp.zeros(2)}, tx), None, jnp.ones(2))
  before = digest((st.params, st.opt_state))
  for n in (1, 2, 3, 4):
    st, measured = step(st, None, jnp.array([1.0, poison]))
    assert digest((st.params, st.opt_state)) == before and measured['streak'] == n and st.step == 1 + n
  st, measured = step(st, None, jnp.ones(2))
  assert digest((st.params, st.opt_state)) != before and measured['streak'] == 0 and measured['skipped'] == 4


def test_dropout_differs_between_steps_and_repeats_between_runs():
  """The key is reused every step, or lives outside the state and is lost in a restart."""
  loss = lambda p, f, b, r: ({'x': jnp.sum(p['w'] * 0) + jax.random.uniform(r)}, {'x': jnp.ones(())}, {})  # noqa: E731
  step = make_step(loss, SGD, seed=7, microbatches=1, clip=np.inf)
  a, first = step(state.create({'w': jnp.zeros(2)}, SGD), None, jnp.ones(2))
  _, second = step(a, None, jnp.ones(2))
  _, again = step(state.create({'w': jnp.zeros(2)}, SGD)._replace(step=a.step), None, jnp.ones(2))
  assert first['loss'] != second['loss'] == again['loss']


def test_schedules():
  """Warm-up starts at zero, the end is never reached, or WSD decays from the start."""
  make = lambda kind, decay=0: optim.schedule(kind=kind, lr=1.0, warmup=4, steps=20, end=0.1, decay=decay)  # noqa: E731
  for kind in ('constant', 'linear', 'cosine'):
    np.testing.assert_allclose([make(kind)(t) for t in (0, 3, 4)], [0.25, 1, 1], rtol=1e-6)
  np.testing.assert_allclose([make('linear')(12), make('cosine')(12)], [0.55, 0.55], rtol=1e-6)
  np.testing.assert_allclose([make(k, 8)(20) for k in ('linear', 'cosine', 'wsd')], [0.1] * 3, rtol=1e-5)
  np.testing.assert_allclose([make('wsd', 8)(t) for t in (12, 16)], [1, 0.55], rtol=1e-6)
  with pytest.raises(BadInput, match='optim.warmup = 4 and optim.decay = 17 do not fit'):
    make('wsd', 17)
  with pytest.raises(BadInput, match="optim.schedule = 'cos'"):
    make('cos')


@pytest.mark.parametrize('name', ['adamw', 'lion', 'muon', 'adafactor'])
def test_optimisers_train_and_decay_matmul_weights_only(name):
  """Norms and biases decay, Muon sees stacked layers as one matrix, or an optimiser walks uphill."""
  tx = optim.make(name=name, rate=lambda t: 0.01, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1)
  cfg = model('gpt2_tiny')
  params = weights(cfg)
  zero = jax.tree.map(jnp.zeros_like, params)
  moved = jax.jit(lambda: optax.apply_updates(params, tx.update(zero, tx.init(params), params)[0]))()
  for path, ratio_ in jax.tree_util.tree_leaves_with_path(
    jax.tree.map(lambda a, b: float(jnp.linalg.norm(a) / jnp.maximum(jnp.linalg.norm(b), 1e-9)), moved, params)
  ):
    leaf = path[-1].key
    assert abs(ratio_ - (1 - 0.01 * 0.1)) < 1e-5 if leaf == 'w' else ratio_ in (0, 1), path
  loss = lm_loss(cfg, z_loss=0.0, chunk=None)
  step = jax.jit(make_step(loss, tx, seed=0, microbatches=1, clip=1.0))
  st, losses = state.create(params, tx), []
  for _ in range(8):
    st, measured = step(st, None, batch(4, 16))
    losses.append(float(measured['loss']))
  assert losses[-1] < losses[0] - 0.1, losses


def test_muon_orthogonalises_each_layers_matrix():
  """The head axes are split, or layers are treated as rows: one layer's singular values are then not alike."""
  cfg = model('llama_tiny')
  params = weights(cfg)
  tx = optim.make(name='muon', rate=lambda t: 1.0, b1=0.0, b2=0.95, eps=1e-8, weight_decay=0.0)
  grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.size), p.shape), params)
  updates, _ = jax.jit(lambda: tx.update(grads, tx.init(params), params))()
  for role, shape in (('wq', (32, 32)), ('wo', (32, 32)), ('wk', (32, 16))):
    for layer in range(2):
      s = np.linalg.svd(np.asarray(updates['layers']['attn'][role]['w'][layer]).reshape(shape), compute_uv=False)
      # Five Newton-Schulz steps leave the very smallest behind: look at all but the lowest tenth.
      assert s.max() / np.quantile(s, 0.1) < 2.5, (role, s)
