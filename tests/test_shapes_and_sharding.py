"""The alphabet: shape checks, layouts by letter, and the sentences for what does not divide."""

import jax
import jax.numpy as jnp
import pytest
from helpers import model
from jax.sharding import PartitionSpec as P

from llmstack import sharding
from llmstack.errors import BadInput
from llmstack.model import init
from llmstack.shapes import check


def test_check_binds_letters_over_arrays():
  """A target array of another length slips through and broadcasts."""
  assert check('BTV,BT', jnp.zeros((2, 3, 5)), jnp.zeros((2, 3))) == {'B': 2, 'T': 3, 'V': 5}
  with pytest.raises(ValueError, match=r'array 1 should be BT with T \(query positions\) = 3'):
    check('BTV,BT', jnp.zeros((2, 3, 5)), jnp.zeros((2, 4)))
  with pytest.raises(ValueError, match='array 0 should be BT but has shape'):
    check('BT', jnp.zeros((2,)))
  with pytest.raises(ValueError, match='names 2 arrays'):
    check('B,B', jnp.zeros((2,)))


def test_a_mesh_axis_is_used_once_per_array():
  """D of an activation takes fsdp from the batch, or D of a weight stays whole."""
  assert sharding.spec('BTD') == P(('data', 'fsdp'), 'context', None)
  assert sharding.spec('DNH') == P('fsdp', 'tensor', None)
  assert sharding.spec('LFD') == P(None, 'tensor', 'fsdp')


def test_every_parameter_has_letters_of_its_rank():
  """A parameter is silently replicated because the table does not know it."""
  for name in ('gpt2_tiny', 'llama_tiny', 'gemma_tiny'):
    cfg = model(name, tied=False)
    for path, x in jax.tree_util.tree_leaves_with_path(jax.eval_shape(lambda: init(cfg, jax.random.key(0)))):  # noqa: B023
      letters = sharding.letters_of(sharding.keys(path))
      assert [cfg.sizes[c] for c in letters] == list(x.shape), path
  with pytest.raises(KeyError):
    sharding.letters_of(('layers', 'w_unknown', 'w'))


def test_moments_are_laid_out_like_parameters_and_factors_are_not():
  """Adafactor's (1,) placeholders get the layout of a D-sized parameter, and jit fails."""
  mesh = sharding.make_mesh(data=2, fsdp=4)
  params = {'final_norm': {'scale': jax.ShapeDtypeStruct((32,), 'float32')}}
  tree = {'mu': params, 'v_row': {'final_norm': {'scale': jax.ShapeDtypeStruct((1,), 'float32')}}}
  out = sharding.param_shardings(params, mesh, tree)
  assert out['mu']['final_norm']['scale'].spec == P('fsdp')
  assert out['v_row']['final_norm']['scale'].spec == P()


@pytest.mark.parametrize(
  'sizes, letters, message',
  [
    (
      dict(tensor=8),
      {},
      r'[NK] = \d \(parameter layers/attn/wk/w\) is not divisible by mesh tensor = 8.*model.kv_heads',
    ),
    (dict(fsdp=8), dict(B=12), 'B = 12 is not divisible by mesh data x fsdp = 8: change data.batch'),
  ],
)
def test_uneven_splits_are_refused_by_name(sizes, letters, message):
  """XLA pads or fails deep inside with a message about HLO."""
  shapes = jax.eval_shape(lambda: init(model('llama_tiny'), jax.random.key(0)))
  with pytest.raises(BadInput, match=message):
    sharding.check_divisible(shapes, sharding.make_mesh(**sizes), **letters)


def test_mesh_sizes_must_multiply_to_the_devices():
  """A mesh of half the devices trains at half the speed without a word."""
  with pytest.raises(BadInput, match='needs 6 devices and there are 8'):
    sharding.make_mesh(data=2, fsdp=3)
  assert dict(sharding.make_mesh(tensor=2).shape) == dict(data=4, fsdp=1, tensor=2, context=1, expert=1)
