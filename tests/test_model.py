"""The model function, over every family it spells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FAMILIES, GEMMA_FIRST, VOCAB, batch, close, model, replace, sequence, weights

from llmstack.errors import BadInput
from llmstack.model import forward, init, parameters, train_flops_per_token, unembed
from llmstack.model.attention import attend, visible

T = 24


def logits(cfg, params, tokens, positions, segments):
  hidden, _ = forward(cfg, params, tokens, positions, segments)
  return unembed(cfg, params, hidden)


def loss_and_grad(cfg, params, b):
  def loss(params):
    out = jax.nn.log_softmax(logits(cfg, params, b['tokens'], b['positions'], b['segments']))
    picked = jnp.take_along_axis(out, b['targets'][:, :, None], -1)[:, :, 0]
    return -jnp.sum(picked * b['mask'])

  return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize('name', FAMILIES)
def test_a_token_sees_its_own_past_only(name):
  """Off by one in the causal mask, or attention and positions that leak across packed documents.

  Or padding on the left that moves learned positions (trl#469, #6800, NeMo-Aligner#68).
  """
  cfg = model(name)
  params = weights(cfg)
  run = jax.jit(lambda *a: logits(cfg, params, *a))
  tokens, positions, _ = sequence(2, T)
  segments = np.ones_like(tokens)
  segments[1, 10:] = 2
  positions[1, 10:] -= 10
  base = run(tokens, positions, segments)
  assert base.shape == (2, T, VOCAB) and base.dtype == jnp.float32
  changed = tokens.copy()
  changed[:, 12] = (changed[:, 12] + 1) % VOCAB
  moved = jnp.abs(run(changed, positions, segments) - base).max(-1)
  assert moved[:, :12].max() == 0 and moved[:, 12].min() > 0
  changed = tokens.copy()
  changed[1, 9] = (changed[1, 9] + 1) % VOCAB
  assert jnp.abs(run(changed, positions, segments) - base)[1, 10:].max() == 0, 'leaked into the next document'
  # The second document alone, padded to the same width, scores as it does in the packed row.
  alone = np.zeros((2, T), np.int32), np.zeros((2, T), np.int32), np.zeros((2, T), np.int32)
  for a, x in zip(alone, (tokens, positions, segments)):
    a[1, : T - 10] = x[1, 10:]
  close(run(*alone)[1, : T - 10], base[1, 10:], 2e-6)
  padded = [np.roll(a, 10, 1) for a in alone]
  close(run(*padded)[1, 10:], base[1, 10:], 2e-6)


@pytest.mark.parametrize('name', GEMMA_FIRST)
def test_scan_remat_and_unrolled_are_one_function(name):
  """Layers are scanned in another order, windows are given to the wrong layer, remat drops a residual."""
  cfg = model(name)
  params, b = weights(cfg), batch(3, T)
  value, grads = loss_and_grad(cfg, params, b)
  for changes in (dict(scan=True), dict(remat='full'), dict(scan=True, remat='dots')):
    other, other_grads = loss_and_grad(replace(cfg, **changes), params, b)
    np.testing.assert_allclose(other, value, rtol=2e-6)
    close(other_grads, grads, 2e-5)


@pytest.mark.parametrize('name', FAMILIES)
def test_parameters_are_counted(name):
  """MFU and the printed size are about another model."""
  for tied in (True, False):
    cfg = model(name, tied=tied)
    params = jax.eval_shape(lambda: init(cfg, jax.random.key(0)))  # noqa: B023
    assert parameters(cfg)[0] == sum(x.size for x in jax.tree.leaves(params))
    matmuls = [x for p, x in jax.tree_util.tree_leaves_with_path(params['layers']) if p[-1].key == 'w']
    assert parameters(cfg)[1] == sum(x.size for x in matmuls) + cfg.vocab * cfg.width


def test_flops_count_attended_keys():
  """Attention is counted as if every key were seen, or windows are ignored; worked by hand for T = 4."""
  cfg = model('llama_tiny', layers=2, windows=(2, 0))
  keys = (1 + 2 + 2 + 2) / 4 + (1 + 2 + 3 + 4) / 4
  assert train_flops_per_token(cfg, 4) == 6 * parameters(cfg)[1] + 12 * 4 * 8 * keys


def test_attention_against_loops():
  """A query head reads another kv head, the scale is missing, or the soft-cap comes after the mask."""
  r = np.random.RandomState(0)
  B, T, N, K, H = 2, 5, 4, 2, 6
  q, k, v = r.randn(B, T, N, H), r.randn(B, K, T, H), r.randn(B, K, T, H)
  pos = np.tile(np.arange(T), (B, 1))
  got = attend(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)), visible(pos, pos, 3), softcap=2.0)
  for b in range(B):
    for t in range(T):
      for n in range(N):
        seen = range(max(0, t - 2), t + 1)
        s = np.array([2 * np.tanh(q[b, t, n] @ k[b, n // 2, i] / np.sqrt(H) / 2) for i in seen])
        w = np.exp(s) / np.exp(s).sum()
        np.testing.assert_allclose(got[b, t, n], sum(a * v[b, n // 2, i] for a, i in zip(w, seen)), atol=1e-5)


def test_a_window_forgets():
  """A sliding window of w sees w + 1 tokens, or everything."""
  cfg = model('llama_tiny', layers=1, windows=(4,))
  params = weights(cfg)
  tokens, positions, segments = sequence(1, 12)
  base = logits(cfg, params, tokens, positions, segments)
  changed = tokens.copy()
  changed[0, 2] = (changed[0, 2] + 1) % VOCAB
  moved = jnp.abs(logits(cfg, params, changed, positions, segments) - base).max(-1)[0]
  assert (moved[2:6] > 0).all() and moved[6:].max() == 0


def test_soft_cap_bounds_logits():
  """The final soft-cap is read but not applied."""
  cfg = model('llama_tiny', logit_softcap=0.5)
  assert jnp.abs(logits(cfg, weights(cfg), *sequence(2, 8))).max() <= 0.5


def test_bfloat16_compute_over_float32_parameters():
  """Parameters or logits end up in bfloat16, or the whole model silently computes in float32."""
  cfg = model('llama_tiny')
  params = weights(cfg)
  low = replace(cfg, dtype='bfloat16')
  hidden, _ = forward(low, params, *sequence(2, 8))
  assert hidden.dtype == jnp.bfloat16
  out, ref = logits(low, params, *sequence(2, 8)), logits(cfg, params, *sequence(2, 8))
  assert out.dtype == jnp.float32
  assert 0 < jnp.abs(out - ref).max() < 0.05 * jnp.abs(ref).max()
  _, grads = loss_and_grad(low, params, batch(2, 8))
  assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype('float32')}


def test_dropout_needs_a_key_and_keeps_the_mean():
  """Dropout runs in evaluation, or does not rescale."""
  cfg = model('llama_tiny', dropout=0.5)
  params = weights(cfg)
  plain = forward(cfg, params, *sequence(2, 8))[0]
  close(plain, forward(replace(cfg, dropout=0.0), params, *sequence(2, 8))[0], 0)
  keys = [jax.random.key(i) for i in range(2)]
  a, b = (forward(cfg, params, *sequence(2, 8), rng=k)[0] for k in keys)
  assert jnp.abs(a - b).max() > 0 and jnp.abs(a - forward(cfg, params, *sequence(2, 8), rng=keys[0])[0]).max() == 0
  from llmstack.model.layers import dropout

  x = dropout(jnp.ones((200, 200)), 0.25, keys[0])
  assert abs(x.mean() - 1) < 0.02 and set(np.unique(x)) == {np.float32(0), np.float32(1 / 0.75)}


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(norm='batch'), "model.norm = 'batch': choose one of rms, layer"),
    (dict(heads=3), 'model.heads = 3 is not a multiple of model.kv_heads = 2'),
    (dict(head_width=7), 'model.head_width = 7 must be even'),
    (dict(windows=(-1,)), 'a window is a number of tokens'),
    (dict(layers=0), 'model.layers = 0 must be at least 1'),
  ],
)
def test_impossible_models_are_refused(changes, message):
  """A typo in a config becomes a shape error deep inside a trace."""
  with pytest.raises(BadInput, match=message):
    model('llama_tiny', **changes)
