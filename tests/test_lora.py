"""Adapters: the identity at first, only they learn, and merged is unmerged."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import batch, close, model, replace, sequence, weights
from jax.extend.core import jaxprs_in_params
from jax.sharding import PartitionSpec as P

from llmstack import sharding
from llmstack.errors import BadInput
from llmstack.model import allocate, forward, ready, unembed
from llmstack.model.linear import adapt
from llmstack.model.lora import ROLES, Lora, adapter_parameters, combine, init_adapters, merge, shapes, unmerge
from llmstack.optim import decays

LORA = Lora(rank=3, alpha=6.0, rs=False, targets=ROLES, dropout=0.0)
UNGATED = tuple(role for role in ROLES if role != 'w_gate')


def adapted(cfg, lora=LORA, seed=1):
  """Returns adapters as after training: b is not zero."""
  fresh = init_adapters(cfg, lora, jax.random.key(seed))
  r = np.random.RandomState(seed)
  return jax.tree.map(lambda x: x + r.randn(*x.shape).astype('f4') * 0.1, fresh)


def logits(cfg, params, b, **how):
  hidden, _ = forward(cfg, params, b['tokens'], b['positions'], b['segments'], **how)
  return unembed(cfg, params, hidden)


def nll(cfg, params, b, **how):
  logp = jax.nn.log_softmax(logits(cfg, params, b, **how))
  return -jnp.sum(jnp.take_along_axis(logp, b['targets'][:, :, None], -1)[:, :, 0] * b['mask'])


made_ready = jax.jit(ready, static_argnums=(0, 2))
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ('gpt2_tiny', 'gemma_tiny')]


@pytest.mark.parametrize('name', ['llama_tiny', *OTHERS])
def test_fresh_adapters_change_nothing(name):
  """b starts at random, or the adapter's path rounds the base's logits: bit for bit, packed, scanned and decoded."""
  cfg = model(name)
  lora = LORA if cfg.gated else replace(LORA, targets=UNGATED)
  base, b = weights(cfg), batch(3, 16)
  params = combine(base, init_adapters(cfg, lora, jax.random.key(0)), lora)
  run = jax.jit(logits, static_argnums=0)
  for how in (cfg, replace(cfg, scan=True)):
    np.testing.assert_array_equal(run(how, params, b), run(how, base, b))
  tokens, at, ones = sequence(2, 9)
  cached = jax.jit(lambda p: forward(cfg, p, tokens, at, ones, cache=allocate(cfg, 2, 9))[0])
  np.testing.assert_array_equal(cached(params), cached(base))
  for rows in (1, 2):
    close(made_ready(cfg, params, rows), made_ready(cfg, base, rows), 0)


def test_merged_is_unmerged():
  """The scale is applied twice or not at all, a b is transposed, or `unmerge` leaves the adapter in."""
  cfg = model('llama_tiny')
  base, adapters, b = weights(cfg), adapted(cfg), batch(2, 16)
  whole = merge(base, adapters, LORA)
  run = jax.jit(lambda p: logits(cfg, p, b))
  want = run(combine(base, adapters, LORA))
  close(run(whole), want, 2e-5)
  assert np.abs(run(base) - want).max() > 0.1
  a, bb = adapters['layers']['attn']['wo']['a'], adapters['layers']['attn']['wo']['b']
  delta = 2.0 * np.einsum('LNHR,LRD->LNHD', a, bb)
  np.testing.assert_allclose(whole['layers']['attn']['wo']['w'] - base['layers']['attn']['wo']['w'], delta, atol=1e-6)
  close(unmerge(whole, adapters, LORA), base, 1e-6)
  # Decoding merges; with `rng` too, because nothing is dropped out while sampling.
  for rows in (1, 2):
    for params in (combine(base, adapters, LORA), combine(base, adapters, LORA, jax.random.key(0))):
      close(made_ready(cfg, params, rows), made_ready(cfg, whole, rows), 1e-6)


@pytest.mark.parametrize('scan', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_gradients_are_those_of_the_merged_weight(scan):
  """An adapter gets another layer's gradient, the scale is missing from it, or the base is trained along."""
  cfg = replace(model('llama_tiny'), scan=scan)
  base, adapters, b = weights(cfg), adapted(cfg), batch(2, 16)
  both = jax.jit(jax.grad(lambda base, x: nll(cfg, combine(base, x, LORA), b), (0, 1)))
  frozen, got = both(base, adapters)
  assert not any(np.any(g) for g in jax.tree.leaves(frozen))
  full = jax.jit(jax.grad(lambda p: nll(cfg, p, b)))(merge(base, adapters, LORA))
  for scope, role, letters in (('attn', 'wk', 'LDKH,LDR,LRKH'), ('attn', 'wo', 'LNHD,LNHR,LRD')):
    w, a, b_ = letters.split(',')
    dw, own = full['layers'][scope][role]['w'], adapters['layers'][scope][role]
    want = {
      'a': 2.0 * jnp.einsum(f'{w},{b_}->{a}', dw, own['b']), 'b': 2.0 * jnp.einsum(f'{w},{a}->{b_}', dw, own['a'])
    }  # fmt: skip
    close(got['layers'][scope][role], want, 2e-4)


def multiplications(jaxpr):
  """Returns the multiplications of all matmuls of a jaxpr, those of a scan times its length."""
  total = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      (contracted, _), _ = eqn.params['dimension_numbers']
      x = eqn.invars[0].aval.shape
      total += math.prod(eqn.outvars[0].aval.shape) * math.prod(x[i] for i in contracted)
    times = eqn.params['length'] if eqn.primitive.name == 'scan' else 1
    total += times * sum(map(multiplications, jaxprs_in_params(eqn.params)))
  return total


@pytest.mark.parametrize('changes', [{}, dict(scan=True), dict(scan=True, remat='full')])
def test_the_gradient_of_a_frozen_weight_is_never_computed(changes):
  """LoRA takes the time of full training: dW is a third of it, and one custom_vjp over all leaves asks for every dW."""
  cfg = replace(model('llama_tiny', width=64, ff=256, tied=False), **changes)
  lora = replace(LORA, rank=1)
  base, b = weights(cfg), batch(2, 16)
  adapters = init_adapters(cfg, lora, jax.random.key(0))
  grad = jax.grad(lambda x: nll(cfg, combine(base, x, lora), b))
  few = multiplications(jax.make_jaxpr(grad)(adapters).jaxpr)
  all_ = multiplications(jax.make_jaxpr(jax.grad(lambda p: nll(cfg, p, b)))(base).jaxpr)
  forward_only = multiplications(jax.make_jaxpr(lambda p: nll(cfg, p, b))(base).jaxpr)
  again = 1 if cfg.remat == 'full' else 0  # remat runs the layers twice
  assert all_ > (2.9 + 0.7 * again) * forward_only
  assert few < (2.2 + again) * forward_only, (few / forward_only, all_ / forward_only)


def test_dropout_of_adapters():
  """It is on where it should be off (trl#744, trl PR#5542), drops the base's input too, or alike in all layers."""
  cfg = model('llama_tiny')
  lora = replace(LORA, dropout=0.5)
  base, b, key = weights(cfg), batch(2, 16), jax.random.key(7)
  run = jax.jit(logits, static_argnums=0)
  jax.tree.map(np.testing.assert_array_equal, combine(base, adapted(cfg), lora), combine(base, adapted(cfg), LORA))
  fresh = combine(base, init_adapters(cfg, lora, key), lora, key)
  np.testing.assert_array_equal(run(cfg, fresh, b), run(cfg, base, b))  # a ratio to the reference is 1 at step 0
  dropped = combine(base, adapted(cfg), lora, key)
  once = run(cfg, dropped, b)
  np.testing.assert_allclose(run(replace(cfg, scan=True), dropped, b), once, atol=2e-5)
  assert np.abs(once - run(cfg, combine(base, adapted(cfg), lora, jax.random.key(8)), b)).max() > 0.1
  keys = jnp.stack([jax.random.key_data(x['key']) for x in dropped['layers']['attn'].values()])
  assert len(np.unique(keys.reshape(-1, keys.shape[-1]), axis=0)) == 4 * cfg.layers
  # One Linear by itself: the mean over masks is the product without dropout.
  own = {'a': np.eye(8, dtype='f4'), 'b': np.eye(8, dtype='f4'), 'rate': np.float32(0.25)}
  x = np.arange(1, 9, dtype='f4')[None]
  out = jax.vmap(lambda k: adapt(x, own | {'key': k}) / x)(jax.random.split(key, 4000))
  np.testing.assert_allclose(np.unique(np.round(out, 4)), [0, 4 / 3], atol=1e-4)
  np.testing.assert_allclose(out.mean(0), 1, atol=0.05)


def test_scale_and_count():
  """rsLoRA is applied as alpha / R: PEFT 0.21 scales by 2 and by 4 for R = 4, alpha = 8; `a` is wider than PEFT's."""
  lora = Lora(4, 8.0, False, ('wq', 'w_down'), 0.0)
  assert lora.scale == 2 and replace(lora, rs=True).scale == 4
  cfg = model('llama_tiny')
  adapters = init_adapters(cfg, lora, jax.random.key(0))
  L, D, F = cfg.layers, cfg.width, cfg.ff
  assert adapter_parameters(cfg, lora) == sum(x.size for x in jax.tree.leaves(adapters)) == L * 4 * (3 * D + F)
  a = np.asarray(adapters['layers']['mlp']['w_down']['a'])
  assert a.shape == (L, F, 4) and 0.99 * F**-0.5 < np.abs(a).max() < F**-0.5
  np.testing.assert_allclose(a.std(), (3 * F) ** -0.5, rtol=0.1)
  alone = init_adapters(cfg, replace(lora, targets=('wq',)), jax.random.key(0))
  close(alone['layers']['attn'], adapters['layers']['attn'], 0)  # whatever else is adapted


def test_adapters_are_laid_out_like_their_weight():
  """The rank takes a mesh axis, moments are replicated, or adapters decay."""
  cfg, mesh = model('llama_tiny'), sharding.make_mesh(data=2, fsdp=2, tensor=2)
  adapters = adapted(cfg)
  for path, x in jax.tree_util.tree_leaves_with_path(adapters):
    letters = sharding.letters_of(sharding.keys(path))
    assert [(cfg.sizes | {'R': 3})[c] for c in letters] == list(x.shape), path
  assert sharding.letters_of(('layers', 'attn', 'wo', 'a')) == 'LNHR'
  layout = sharding.param_shardings(adapters, mesh, optax.adam(1e-2).init(adapters))
  assert layout[0].mu['layers']['attn']['wq']['b'].spec == sharding.spec('LRNH') == P(None, None, 'tensor', None)
  assert not any(jax.tree.leaves(decays(adapters)))


@pytest.mark.slow
def test_adapters_on_a_mesh():
  """A split adapter computes something else."""
  cfg, mesh = model('llama_tiny', layers=1), sharding.make_mesh(data=2, fsdp=2, tensor=2)
  base, adapters, b = weights(cfg), adapted(cfg), batch(8, 16)
  grad = jax.jit(jax.grad(lambda x, base, b: nll(cfg, combine(base, x, LORA), b)))
  want = grad(adapters, base, b)
  split = [jax.device_put(x, sharding.param_shardings(x, mesh)) for x in (adapters, base)]
  with jax.set_mesh(mesh):
    close(grad(*split, sharding.place(dict(b), mesh)), want, 2e-5)


@pytest.mark.parametrize(
  'values, message',
  [
    (dict(rank=0), 'lora.rank = 0 must be at least 1'),
    (dict(dropout=1.0), 'lora.dropout = 1.0 must be at least 0 and below 1'),
    (dict(targets=('wq', 'q_proj')), "names 'q_proj', which has no adapter: choose from wq, wk"),
    (dict(targets=()), 'lora.targets is empty'),
    (dict(rank=17), 'lora.rank = 17 is more than the rank of wk, 16: choose at most 16'),
  ],
)
def test_what_cannot_be_adapted_is_refused(values, message):
  """A rank above the matrix's trains for nothing, and a misspelt target leaves nothing to train."""
  with pytest.raises(BadInput, match=message):
    shapes(model('llama_tiny'), replace(LORA, **values))


def test_an_adapter_of_another_base_is_refused():
  """It is broadcast into shape, cut, or its rank is scaled by another's alpha."""
  cfg = model('llama_tiny')
  base, adapters = weights(cfg), adapted(cfg)
  other = adapted(replace(cfg, width=64))
  with pytest.raises(
    BadInput, match=r'layers/attn/wk is for a matrix \(2, 64, 2, 8\), and this base has \(2, 32, 2, 8\)'
  ):
    combine(base, other, LORA)
  with pytest.raises(BadInput, match='has rank 3, and lora.rank = 4'):
    merge(base, adapters, replace(LORA, rank=4))
  with pytest.raises(BadInput, match="names 'w_gate', which this model has not"):
    init_adapters(model('gpt2_tiny'), LORA, jax.random.key(0))
  with pytest.raises(BadInput, match='this one has no layers/mlp/w_gate'):
    combine(weights(model('gpt2_tiny')), {'layers': {'mlp': adapters['layers']['mlp']}}, LORA)
