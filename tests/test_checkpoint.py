"""Checkpoints: bit-exact on the same mesh and on another, refused where they do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import batch, model

from llmstack import sharding, state
from llmstack.checkpoint import Checkpoints, differences, digest
from llmstack.errors import BadInput
from llmstack.model import init
from llmstack.step import make_step
from llmstack.tasks.pretrain import lm_loss

CFG = model('llama_tiny', heads=8, kv_heads=8)
TX = optax.adamw(1e-2)
LOSS = lm_loss(CFG, z_loss=0.0, chunk=None)
META = {'data': {'step': 3, 'note': 'ä'}, 'config': {'x': [1, None]}}


def fresh():
  return init(CFG, jax.random.key(0))


def trained(mesh, st=None, steps=2):
  """Returns (state, losses) after some steps on the mesh."""
  with jax.set_mesh(mesh):
    target = state.shapes_of(fresh, TX, mesh)
    st = state.init_sharded(fresh, TX, mesh) if st is None else st
    out = (jax.tree.map(lambda x: x.sharding, target), None)
    step = jax.jit(make_step(LOSS, TX, seed=0, microbatches=1, clip=1.0), out_shardings=out)
    losses = []
    for _ in range(steps):
      st, measured = step(st, None, sharding.place(batch(8, 16, seed=int(st.step)), mesh))
      losses.append(float(measured['loss']))
  return st, losses


def one():
  return sharding.make_mesh(devices=jax.devices()[:1])


def test_restored_bit_for_bit_on_another_mesh(tmp_path):
  """A restore casts, averages, or permutes shards; 1 -> 8 -> 2x4 devices, and the loss goes on within 1e-5."""
  st, _ = trained(one())
  want, (_, going_on) = digest(st), trained(one(), st)
  for i, mesh in enumerate((sharding.make_mesh(data=8), sharding.make_mesh(fsdp=2, tensor=4))):
    saved = Checkpoints(str(tmp_path / str(i)), create=True)
    saved.save(2, st, META)
    saved.close()
    st, meta = Checkpoints(str(tmp_path / str(i))).restore(state.shapes_of(fresh, TX, mesh))
    assert digest(st) == want and meta['data'] == META['data'] and meta['config'] == META['config']
    assert st.params['layers']['attn']['wq']['w'].sharding.mesh == mesh
    assert jax.tree.structure(st.opt_state) == jax.tree.structure(TX.init(st.params))
    np.testing.assert_allclose(trained(mesh, st)[1], going_on, atol=1e-5)


def test_digest_sees_every_bit():
  """Two states that differ in the last bit of one weight, a dtype or a name count as the same."""
  a = {'w': jnp.ones(3), 'b': jnp.zeros(2)}
  others = [
    {'w': a['w'].at[1].set(np.nextafter(np.float32(1), 2)), 'b': a['b']},
    {'w': a['w'].astype(jnp.bfloat16), 'b': a['b']},
    {'v': a['w'], 'b': a['b']},
    {'w': a['w'], 'b': -a['b']},
  ]
  assert len({digest(x) for x in [a, *others]}) == 5 and digest(a) == digest(jax.tree.map(jnp.copy, a))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = str(tmp_path_factory.mktemp('checkpoints'))
  saved = Checkpoints(path, keep=2, create=True)
  for k in (1, 2, 3):
    saved.save(k, state.create(fresh(), TX), META)
  saved.close()
  return path


def test_newest_are_kept_and_parameters_come_alone(folder):
  """keep is ignored, or sampling has to load the optimiser as well."""
  saved = Checkpoints(folder)
  assert saved.latest() == 3 and saved.meta()[0] == 3
  with pytest.raises(BadInput, match=r'has no checkpoint 1: it has \[2, 3\]'):
    saved.meta(1)
  target = state.shapes_of(fresh, TX, one()).params
  out, _ = saved.restore({'params': target})
  assert list(out) == ['params'] and digest(out['params']) == digest(fresh())


def test_what_does_not_fit_is_named(folder):
  """orbax casts float32 into bfloat16 silently, and reports a wrong shape with a page of internals."""
  target = state.shapes_of(fresh, TX, one())

  def restore(change):
    embed = {'w': change(target.params['embed']['w'])}
    Checkpoints(folder).restore({'params': target.params | {'embed': embed}})

  with pytest.raises(BadInput, match=r'params/embed/w: float32\[48, 32\] in the checkpoint, bfloat16\[48, 32\] wanted'):
    restore(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding))
  with pytest.raises(BadInput, match=r'float32\[49, 32\] wanted'):
    restore(lambda x: jax.ShapeDtypeStruct((49, 32), x.dtype, sharding=x.sharding))
  with pytest.raises(BadInput, match='opt_state/.*: not in the checkpoint(.|\n)*... and .* more'):
    Checkpoints(folder).restore(state.shapes_of(fresh, optax.chain(optax.sgd(1.0), optax.adafactor(1.0)), one()))
  with pytest.raises(BadInput, match='there are no checkpoints in'):
    Checkpoints(folder + '-nowhere')


def test_differences_are_listed_by_key():
  """A resume with another model prints two dictionaries and leaves the reader to compare them."""
  a, b = {'x': {'y': 1, 'z': 2}, 'gone': 0}, {'x': {'y': 1, 'z': 3}, 'new': 0}
  assert differences(a, b) == ["  gone: 0 -> '(absent)'", "  new: '(absent)' -> 0", '  x.z: 2 -> 3']
