"""Every attention kernel against the reference, einsum: values and gradients."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FAMILIES, VOCAB, batch, close, model, replace, weights

from llmstack import sharding
from llmstack.errors import BadInput
from llmstack.main import load
from llmstack.model import check_attention, describe, described, forward, unembed
from llmstack.model.attention import KERNELS

SLOW = pytest.mark.slow


def qkv(T, N, K):
  """Returns (q, k, v, positions, segments) of three ragged rows."""
  r, b = np.random.RandomState(0), batch(3, T)
  q, k, v = (jnp.asarray(r.randn(3, T, n, 8), jnp.float32) for n in (N, K, K))
  return q, k, v, b['positions'], b['segments']


def run(kernel, q, k, v, positions, segments, **how):
  """Returns (output at real tokens, gradients of a number made of it)."""

  def f(q, k, v):
    y = kernel(q, k, v, positions, segments, **how) * (segments > 0)[:, :, None, None]
    return jnp.sum(jnp.sin(y) * jnp.arange(1.0, 9.0)[None, None, None]), y

  (_, y), grads = jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True))(q, k, v)
  return y, *grads


@pytest.mark.parametrize(
  'name, T, N, K, window, softcap',
  [
    ('xla', 24, 4, 2, 5, None),
    ('blocks', 200, 4, 2, 90, 5.0),  # 4 blocks, the last one short, of which two are outside the window
    pytest.param('splash', 384, 4, 2, 150, 5.0, marks=SLOW),  # 3 x 3 blocks, of which one is outside the window
    *(
      pytest.param(*case, marks=SLOW)
      for case in [
        ('blocks', 200, 4, 4, 200, None), ('blocks', 1100, 2, 1, 65, None), ('blocks', 64, 4, 1, 1, 2.0),
        ('xla', 24, 4, 4, 24, None), ('xla', 24, 4, 1, 1, None), ('splash', 128, 4, 4, 128, None),
        ('splash', 128, 4, 1, 7, None), ('splash', 256, 2, 2, 256, 2.0), ('splash', 384, 4, 1, 384, None),
        ('splash', 1024, 2, 1, 100, None), ('splash', 384, 4, 2, 1, 3.0),
      ]
    ),
  ],
)  # fmt: skip
def test_a_kernel_is_the_reference(name, T, N, K, window, softcap):
  """A kernel's window is one off, it looks into the next document, caps after masking, or mixes up kv heads."""
  args, how = qkv(T, N, K), dict(window=window, softcap=softcap)
  for got, want in zip(run(KERNELS[name], *args, **how), run(KERNELS['einsum'], *args, **how)):
    close(got, want, 1e-5)


def loss_and_grad(cfg, params, b):
  def loss(params):
    hidden, _ = forward(cfg, params, b['tokens'], b['positions'], b['segments'])
    logp = jax.nn.log_softmax(unembed(cfg, params, hidden))
    return -jnp.sum(jnp.take_along_axis(logp, b['targets'][:, :, None], -1)[:, :, 0] * b['mask'])

  return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize(
  'family, changes, T, size',
  [
    ('llama_tiny', dict(attention='splash', scan=True, remat='full', windows=(9, 0), attn_softcap=4.0), 128, (2, 2, 2)),
    *(
      pytest.param(family, dict(attention=name, scan=scan, remat=remat) | cap, T, size, marks=SLOW)
      for family in FAMILIES
      for name, T, cap in [('blocks', 130, {}), ('xla', 24, dict(attn_softcap=None)), ('splash', 128, {})]
      for scan, remat in [(True, 'dots'), (False, 'none'), (False, 'full')]
      for size in [None, (2, 2, 2)]
      if family != 'gemma_tiny' or size is None  # one kv head
    ),
  ],
)
def test_a_model_with_a_kernel_is_the_model(family, changes, T, size):
  """A layer's window goes to another layer under scan, remat traces it away, or a device attends with other rows."""
  cfg = model(family, **changes)
  params, b = weights(replace(cfg, attention='einsum')), batch(4, T)
  value, grads = loss_and_grad(replace(cfg, attention='einsum', scan=False, remat='none'), params, b)
  if size is None:
    other, other_grads = loss_and_grad(cfg, params, b)
  else:
    mesh = sharding.make_mesh(data=size[0], fsdp=size[1], tensor=size[2])
    with jax.set_mesh(mesh):
      placed = jax.device_put(params, sharding.param_shardings(params, mesh))
      other, other_grads = loss_and_grad(cfg, placed, sharding.place(b, mesh))
  np.testing.assert_allclose(other, value, rtol=1e-5)
  close(other_grads, grads, 2e-5)


def device(kind, **values):
  """Returns a mesh, as far as `check_attention` looks at it, of devices that are not here."""
  context = values.pop('context', 1)
  one = types.SimpleNamespace(device_kind=kind, **values)
  return types.SimpleNamespace(devices=np.array([one], object), shape={'context': context})


CPU = device('cpu', platform='cpu')
TPU = device('TPU v5 lite', platform='tpu')
SPLIT = device('TPU v5 lite', platform='tpu', context=2)
T4 = device('NVIDIA T4', platform='gpu', compute_capability='7.5')
A100 = device('NVIDIA A100', platform='gpu', compute_capability='8.0')
H100 = device('NVIDIA H100', platform='gpu', compute_capability='9.0')


@pytest.mark.parametrize(
  'changes, mesh, length, message',
  [
    (dict(attention='splash'), CPU, 128, "'splash' runs on TPUs and this is a cpu: use einsum"),
    (dict(attention='splash'), TPU, 100, 'data.length = 100 to be a multiple of 128'),
    (dict(attention='splash'), SPLIT, 128, 'mesh.context = 2: use einsum, or context'),
    (dict(attention='cudnn'), CPU, 128, 'needs an NVIDIA GPU of compute capability 8.0 or more and this is a cpu'),
    (dict(attention='cudnn'), T4, 128, 'and this is a NVIDIA T4'),
    (dict(attention='cudnn'), A100, 128, "computes in bfloat16 and model.dtype = 'float32'"),
    (dict(attention='cudnn', dtype='bfloat16', head_width=256), A100, 128, 'model.head_width = 256 .* up to 128'),
    (dict(attention='cudnn', attn_softcap=5.0), H100, 128, 'no soft-cap and model.attn_softcap = 5.0: use einsum'),
    (dict(attention='xla', attn_softcap=5.0), CPU, 128, 'no soft-cap and model.attn_softcap = 5.0: use einsum'),
    (dict(attention='cudnn', dtype='bfloat16', head_width=256), H100, 128, None),
    (dict(attention='splash', attn_softcap=5.0, windows=(9, 0)), TPU, 256, None),
  ],
)  # fmt: skip
def test_a_kernel_that_cannot_run_is_refused(changes, mesh, length, message):
  """A kernel is missing on this machine, or drops the soft-cap, and the first step says so in a foreign traceback."""
  cfg = model('llama_tiny', **changes)
  if message is None:
    return check_attention(cfg, mesh, length)
  with pytest.raises(BadInput, match=message):
    check_attention(cfg, mesh, length)


def test_a_task_refuses_before_it_packs(tmp_path):
  """The check is there and no task calls it."""
  from llmstack.tasks.pretrain import run

  config = load('configs/pretrain.py:tiny')
  config.update({'model': {'attention': 'splash'}, 'data': {'folder': str(tmp_path), 'length': 64}})
  with pytest.raises(BadInput, match="model.attention = 'splash' runs on TPUs"):
    run(config, str(tmp_path / 'run'))


def test_a_checkpoint_from_before_the_choice_is_read():
  """A run saved before `attention` was a setting can no longer be sampled."""
  cfg = model('gemma_tiny', vocab=VOCAB)
  old = {k: v for k, v in describe(cfg).items() if k != 'attention'}
  assert described(old) == replace(cfg, attention='einsum') and described(describe(cfg)) == cfg
