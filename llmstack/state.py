"""The state of training: arrays only, created sharded."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from llmstack.sharding import laid_out, param_shardings


class Recent(NamedTuple):
  """The last W steps, for the spike rule of the step; step k stands at k % W, NaN where nothing is known."""

  loss: jax.Array  # float32[W]
  grad_norm: jax.Array  # float32[W]
  spikes: jax.Array  # int32[], updates skipped by the rule


class TrainState(NamedTuple):
  """Everything that training changes. What it does not change (frozen parameters, data) is elsewhere."""

  step: jax.Array  # int32[], batches consumed; batch k and key fold_in(key(seed), k) follow from it
  params: Any  # nested dict of float32 arrays
  opt_state: Any
  skipped: jax.Array  # int32[], updates skipped: loss or gradient was not finite, or a spike
  streak: jax.Array  # int32[], how many in a row up to now were not finite
  recent: Any = ()  # Recent, or () without the spike rule: no leaf, and nothing in a checkpoint


def history(window):
  """Returns the Recent of a run that remembers nothing yet, () for window 0."""
  unknown = lambda: jnp.full((window,), jnp.nan, jnp.float32)  # noqa: E731
  return Recent(unknown(), unknown(), jnp.zeros((), jnp.int32)) if window else ()


def create(params, tx, window=0):
  """Returns the state at step 0. window: steps that the spike rule looks back on, 0 without it."""
  zero = lambda: jnp.zeros((), jnp.int32)  # noqa: E731  three buffers: one would be donated three times
  return TrainState(zero(), params, tx.init(params), zero(), zero(), history(window))


def shapes_of(init_params, tx, mesh, window=0):
  """Returns the state as ShapeDtypeStructs that carry their shardings: the target of init and of restore.

  init_params: () -> params, abstractly evaluated.
  """
  shapes = jax.eval_shape(lambda: create(init_params(), tx, window))
  return laid_out(shapes, param_shardings(shapes.params, mesh, shapes))


def init_sharded(init_params, tx, mesh, window=0):
  """Returns a fresh state of which no device ever holds more than its shard."""
  shardings = jax.tree.map(lambda x: x.sharding, shapes_of(init_params, tx, mesh, window))
  # A program that runs once: on a CPU, XLA takes 3 s to optimise a generator per weight, and 1 s to translate it.
  quick = {'xla_backend_optimization_level': 1} if jax.default_backend() == 'cpu' else None
  fresh = jax.jit(lambda: create(init_params(), tx, window), out_shardings=shardings, compiler_options=quick)
  return fresh()


def around(params, tx, mesh, window=0):
  """Returns a state at step 0 around given parameters, which are donated to it."""
  shardings = jax.tree.map(lambda x: x.sharding, shapes_of(lambda: params, tx, mesh, window))
  return jax.jit(lambda params: create(params, tx, window), out_shardings=shardings, donate_argnums=0)(params)


def forget(state, mesh, window):
  """Returns the state with an empty history of another length; 0 for none."""
  shardings = jax.tree.map(lambda x: NamedSharding(mesh, PartitionSpec()), history(window))
  return state._replace(recent=jax.device_put(history(window), shardings))
