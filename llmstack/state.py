"""The state of training: arrays only, created sharded."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llmstack.sharding import laid_out, param_shardings


class TrainState(NamedTuple):
  """Everything that training changes. What it does not change (frozen parameters, data) is elsewhere."""

  step: jax.Array  # int32[], batches consumed; batch k and key fold_in(key(seed), k) follow from it
  params: Any  # nested dict of float32 arrays
  opt_state: Any
  skipped: jax.Array  # int32[], updates skipped because loss or gradient was not finite
  streak: jax.Array  # int32[], of these, how many in a row up to now


def create(params, tx):
  """Returns the state at step 0."""
  zero = lambda: jnp.zeros((), jnp.int32)  # noqa: E731  three buffers: one would be donated three times
  return TrainState(zero(), params, tx.init(params), zero(), zero())


def shapes_of(init_params, tx, mesh):
  """Returns the state as ShapeDtypeStructs that carry their shardings: the target of init and of restore.

  init_params: () -> params, abstractly evaluated.
  """
  shapes = jax.eval_shape(lambda: create(init_params(), tx))
  return laid_out(shapes, param_shardings(shapes.params, mesh, shapes))


def init_sharded(init_params, tx, mesh):
  """Returns a fresh state of which no device ever holds more than its shard."""
  shardings = jax.tree.map(lambda x: x.sharding, shapes_of(init_params, tx, mesh))
  return jax.jit(lambda: create(init_params(), tx), out_shardings=shardings)()


def around(params, tx, mesh):
  """Returns a state at step 0 around given parameters, which are donated to it."""
  shardings = jax.tree.map(lambda x: x.sharding, shapes_of(lambda: params, tx, mesh))
  return jax.jit(lambda params: create(params, tx), out_shardings=shardings, donate_argnums=0)(params)
