"""Four-bit weights: bitsandbytes' bytes, the dequantised model's logits, and what merging into them costs."""

import pathlib

import jax
import numpy as np
import pytest
from helpers import batch, close, model, replace, weights
from test_lora import LORA, adapted, logits, nll

from llmstack import sharding
from llmstack.errors import BadInput
from llmstack.model import combine, dequantise, merge, nbytes, quantise, ready, repack
from llmstack.model.lora import ROLES
from llmstack.model.quant import multiply, pack, unpack

GOLDEN = np.load(pathlib.Path(__file__).parent / 'golden' / 'nf4.npz')


pack = jax.jit(pack, static_argnums=1)
unpack = jax.jit(unpack, static_argnums=1)


def unpacked(w, double):
  return np.asarray(unpack(pack(w, double), w.shape))


def test_bytes_are_those_of_bitsandbytes():
  """The halves of a byte are swapped, ties round the other way, or the mean of absmax is left out."""
  w = GOLDEN['W']
  once, twice = pack(w, False), pack(w, True)
  np.testing.assert_array_equal(once['nf4'], GOLDEN['nf4_packed'][:, 0])
  np.testing.assert_array_equal(twice['nf4'], GOLDEN['nf4_packed'][:, 0])
  np.testing.assert_array_equal(once['absmax'], GOLDEN['nf4_absmax'])
  np.testing.assert_array_equal(unpack(once, w.shape), GOLDEN['nf4_deq'])
  np.testing.assert_allclose(unpack(twice, w.shape), GOLDEN['nf4dq_deq'], atol=5e-7)
  assert np.abs(GOLDEN['nf4dq_deq'] - GOLDEN['nf4_deq']).max() > 1e-4  # the second level is one


def test_the_error_is_that_of_the_data_type():
  """A codebook entry is mistyped or a second-level block is scaled by its neighbour: RMSE on N(0, 1) of NF4, doubly
  quantised too, is .0914 (int4 with 15 levels: .1076), and on a matrix of another scale every 256 blocks likewise."""
  w = np.random.RandomState(0).randn(2**18).astype('f4')
  rms = lambda x: float(np.sqrt(np.square(x).mean()))  # noqa: E731
  top = np.abs(w.reshape(-1, 64)).max(-1, keepdims=True)
  int4 = np.round(w.reshape(-1, 64) / top * 7) / 7 * top
  errors = rms(unpacked(w, False) - w), rms(unpacked(w, True) - w), rms(int4.reshape(-1) - w)
  np.testing.assert_allclose(errors, (0.0914, 0.0914, 0.1076), atol=4e-4)
  w *= np.repeat(10.0 ** np.arange(16), 2**14).astype('f4')
  np.testing.assert_allclose([rms((unpacked(w, True) - w)[i::16]) / rms(w[i::16]) for i in range(16)], 0.0914, rtol=0.1)


def test_a_length_that_is_no_multiple_of_64_and_zeros():
  """The last block is dropped or takes its absmax from what lies behind it; a block of zeros is 0 / 0."""
  w = np.random.RandomState(0).randn(7, 11).astype('f4')
  assert pack(w, True)['nf4'].shape == (64,) and pack(w, True)['absmax'].shape == (2,)
  np.testing.assert_array_equal(unpacked(w, False).reshape(-1)[:64], unpacked(w.reshape(-1)[:64], False))
  np.testing.assert_array_equal(unpacked(w, False).reshape(-1)[64:], unpacked(w.reshape(-1)[64:], False))
  for double in (False, True):
    np.testing.assert_array_equal(unpacked(np.zeros((3, 100), 'f4'), double), 0)


def test_bytes():
  """Indices are stored a byte each, or the second level in float32: 4 + 8 / 64 + 32 / (64 * 256) bits and an offset."""
  own = pack(np.random.RandomState(0).randn(512, 1024).astype('f4'), True)
  assert 4.12 < 8 * nbytes(own) / (512 * 1024) < 4.13
  cfg = model('llama_tiny', width=64, ff=256)
  base = weights(cfg)
  packed = quantise(base, ROLES)
  matrices = lambda p: {s: p['layers'][s] for s in ('attn', 'mlp')}  # noqa: E731
  assert nbytes(matrices(packed)) < nbytes(matrices(base)) * 4.15 / 32
  assert packed['embed']['w'] is base['embed']['w'] and packed['layers']['mlp_norm'].keys() == {'scale'}
  assert nbytes(dequantise(cfg, packed)) == nbytes(base)
  assert 'w' in quantise(base, ('wq',))['layers']['attn']['wk']


@pytest.mark.parametrize('double', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_packed_model_is_the_dequantised_one(double):
  """A layer reads another's absmax, blocks are cut along another axis than they were packed, or decoding differs."""
  cfg = model('gpt2_tiny') if double else model('llama_tiny')  # one with biases
  roles = [role for role in ROLES if cfg.gated or role != 'w_gate']
  packed = quantise(weights(cfg), roles, double)
  plain, b = dequantise(cfg, packed), batch(2, 16)
  run = jax.jit(logits, static_argnums=0)
  for how in (replace(cfg, dtype='bfloat16'), replace(cfg, scan=True))[: 1 if double else 2]:
    np.testing.assert_array_equal(run(how, packed, b), run(how, plain, b))
  made = jax.jit(ready, static_argnums=(0, 2))
  for rows in (1, 2):
    jax.tree.map(np.testing.assert_array_equal, made(cfg, packed, rows), made(cfg, plain, rows))
  np.testing.assert_array_equal(plain['layers']['mlp']['w_up']['w'][1], unpack(
    pack(weights(cfg)['layers']['mlp']['w_up']['w'][1], double), (cfg.width, cfg.ff)
  ))  # fmt: skip


def test_no_weight_is_kept_unpacked():
  """Each layer's float weight lives until the backward pass, so that four bits save nothing; or integers get a gradient
  and jax.grad raises."""
  cfg = model('llama_tiny')
  base, adapters, b = quantise(weights(cfg), ROLES), adapted(cfg), batch(2, 8)
  loss = lambda x, base: nll(cfg, combine(base, x, LORA), b)  # noqa: E731
  kept = lambda base: {  # noqa: E731
    x.shape for x in jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(lambda x: loss(x, base), x)[1], adapters))
  }
  weight = {(cfg.width, cfg.ff), (cfg.ff, cfg.width)}
  assert weight <= kept(dequantise(cfg, base)) and not weight & kept(base)


def test_the_product_and_its_gradient():
  """x is multiplied with w where the gradient is with its transpose, or in another order than w was packed in."""
  r = np.random.RandomState(0)
  own, x = pack(r.randn(5, 40).astype('f4'), True), r.randn(3, 5).astype('f4')
  w = unpack(own, (5, 40))
  y, back = jax.vjp(lambda x: multiply(x, own, (5, 40)), x)
  np.testing.assert_array_equal(y, x @ w)
  np.testing.assert_allclose(back(y)[0], y @ w.T, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('scan', [False, True])
def test_adapters_learn_as_on_the_dequantised_base(scan):
  """The backward pass multiplies with another layer's weight, or with w where it should with its transpose."""
  cfg = replace(model('llama_tiny'), scan=scan)
  base, adapters, b = quantise(weights(cfg), ROLES), adapted(cfg), batch(2, 8)
  grad = jax.jit(jax.grad(lambda x, base: nll(cfg, combine(base, x, LORA), b)))
  close(grad(adapters, base), grad(adapters, dequantise(cfg, base)), 2e-5)


def test_merging_into_four_bits_says_what_it_loses():
  """The adapter vanishes in the rounding without a word (peft#2321, #2105, #1043, transformers#31293): it is added to
  the dequantised weight, and what packing the sum again loses is measured against what was learnt."""
  cfg = model('llama_tiny')
  lora = replace(LORA, targets=('wk', 'w_up'))
  base, adapters = quantise(weights(cfg), ROLES), adapted(cfg, lora)
  with pytest.raises(BadInput, match='wk of the base is in four bits'):
    merge(base, adapters, lora)
  want = merge(dequantise(cfg, base), adapters, lora)
  merging, losses = jax.jit(lambda base, x: repack(cfg, base, x, lora)), []
  for size in (0.01, 1, 100):
    some = jax.tree.map(lambda x: x * size**0.5, adapters)  # noqa: B023
    again, lost = merging(base, some)
    assert set(lost) == {'wk', 'w_up'} and lost['wk'].shape == (cfg.layers,)
    losses.append(float(lost['wk'][0]))
  assert losses[0] > 1 > losses[1] > losses[2] and 0.05 < losses[2] < 0.15
  again, lost = merging(base, adapters)
  assert jax.tree.map(lambda x: x.dtype, again) == jax.tree.map(lambda x: x.dtype, base)
  own = dequantise(cfg, again)['layers']['mlp']['w_up']['w'] - want['layers']['mlp']['w_up']['w']
  delta = want['layers']['mlp']['w_up']['w'] - dequantise(cfg, base)['layers']['mlp']['w_up']['w']
  norm = lambda x: np.linalg.norm(np.asarray(x).reshape(cfg.layers, -1), axis=1)  # noqa: E731
  np.testing.assert_allclose(lost['w_up'], norm(own) / norm(delta), rtol=1e-3)


@pytest.mark.slow
def test_packed_weights_on_a_mesh():
  """A flat array of bytes is split like the matrix it came from, through the middle of its blocks."""
  cfg, mesh = model('llama_tiny', layers=1), sharding.make_mesh(data=2, fsdp=2, tensor=2)
  base, adapters, b = quantise(weights(cfg), ROLES), adapted(cfg), batch(8, 16)
  for path, x in jax.tree_util.tree_leaves_with_path(base):
    assert len(sharding.letters_of(sharding.keys(path))) == x.ndim, path
  sharding.check_divisible(base, mesh, B=8)
  grad = jax.jit(jax.grad(lambda x, base, b: nll(cfg, combine(base, x, LORA), b)))
  want = grad(adapters, base, b)
  split = [jax.device_put(x, sharding.param_shardings(x, mesh)) for x in (adapters, base)]
  with jax.set_mesh(mesh):
    close(grad(*split, sharding.place(dict(b), mesh)), want, 2e-5)


def test_what_cannot_be_packed_is_refused():
  """A misspelt role leaves the model in float32 and the memory table wrong; an adapter of another base is broadcast."""
  cfg = model('gpt2_tiny')
  with pytest.raises(BadInput, match="'w_gate' cannot be quantised"):
    quantise(weights(cfg), ROLES)
  with pytest.raises(BadInput, match='layers/attn/wk is for a matrix'):
    combine(quantise(weights(model('llama_tiny')), ROLES), adapted(model('llama_tiny', width=64)), LORA)
