"""Config -> optax: the schedule, the optimiser and which parameters decay."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from llmstack.errors import BadInput
from llmstack.sharding import AXES, keys


def schedule(*, kind, lr, warmup, steps, end, decay):
  """Returns step -> learning rate: linear warm-up to `lr`, then `kind` down to `lr * end` at `steps`.

  kind: 'constant' | 'linear' | 'cosine' | 'wsd' (stable, then linear over the last `decay` steps).
  Source: cosine, Loshchilov & Hutter 2017; WSD, MiniCPM 2024.
  """
  if kind not in ('constant', 'linear', 'cosine', 'wsd'):
    raise BadInput(f'optim.schedule = {kind!r}: choose one of constant, linear, cosine, wsd')
  if not 0 <= warmup < steps or not 0 <= decay <= steps - warmup:
    raise BadInput(
      f'optim.warmup = {warmup} and optim.decay = {decay} do not fit into train.steps = {steps}: lower them'
    )
  rest = steps - warmup
  after = {
    'constant': lambda: optax.constant_schedule(lr),
    'linear': lambda: optax.linear_schedule(lr, lr * end, rest),
    'cosine': lambda: optax.cosine_decay_schedule(lr, rest, alpha=end),
    'wsd': lambda: optax.linear_schedule(lr, lr * end, max(decay, 1), transition_begin=rest - decay),
  }[kind]()
  if not warmup:
    return after
  # Starts at lr / warmup, not at 0: a first step that changes nothing is a wasted one.
  return optax.join_schedules([lambda t: lr * (t + 1) / warmup, after], [warmup])


def decays(params):
  """Returns a tree of bools: weights of matmuls and embeddings decay, norms and biases do not."""
  return jax.tree_util.tree_map_with_path(lambda path, _: keys(path)[-1] == 'w', params)


def muon_axes(params):
  """Returns MuonDimensionNumbers for hidden weights, by the arrow of AXES; None (AdamW) for everything else."""

  def one(path, _):
    *scope, role, leaf = keys(path)
    if leaf != 'w' or 'layers' not in scope:
      return None
    ins, outs = AXES[role].split('->')
    axes = tuple(range(1, 1 + len(ins + outs)))  # axis 0 is L: a batch of matrices
    return MuonDimensionNumbers(axes[: len(ins)], axes[len(ins) :])

  return jax.tree_util.tree_map_with_path(one, params)


class Followed(NamedTuple):
  """The state of `followed`."""

  inner: Any
  reference: Any  # parameters that follow the trained ones
  count: jax.Array  # int32[], updates


def followed(tx, *, every, mix):
  """Returns tx with a reference in its state: each `every` updates, reference <- mix * params + (1 - mix) * reference.

  Source: TR-DPO, 2404.09656: mix 0.6 for its soft update, or 1 for the hard one, every 512 steps.
  """

  def init(params):
    return Followed(tx.init(params), jax.tree.map(jnp.copy, params), jnp.zeros((), jnp.int32))

  def update(grads, state, params):
    updates, inner = tx.update(grads, state.inner, params)
    count = state.count + 1
    now = jnp.where(count % every == 0, mix, 0.0)
    moved = jax.tree.map(lambda p, u, r: r + now.astype(r.dtype) * (p + u - r), params, updates, state.reference)
    return updates, Followed(inner, moved, count)

  return optax.GradientTransformation(init, update)


def make(*, name, rate, b1, b2, eps, weight_decay):
  """Returns the optax transformation, without clipping (the step clips). rate: step -> learning rate.

  name: 'adamw' | 'lion' (no eps) | 'muon' (AdamW for embeddings, norms and biases) | 'adafactor' (no b1, b2, eps).
  Source: Loshchilov & Hutter 2019; Chen et al. 2023; Jordan 2024; Shazeer & Stern 2018.
  """
  if name == 'adamw':
    return optax.adamw(rate, b1, b2, eps, weight_decay=weight_decay, mask=decays)
  if name == 'lion':
    return optax.lion(rate, b1, b2, weight_decay=weight_decay, mask=decays)
  # The other two at rate 1, with decay and schedule added here: optax's muon would decay norms and biases too,
  # and its adafactor decays by the whole coefficient each step, whatever the learning rate.
  direction = None
  if name == 'muon':
    direction = muon(
      1.0, beta=b1, adam_b1=b1, adam_b2=b2, eps=eps, adam_weight_decay=0.0,
      muon_weight_dimension_numbers=muon_axes, consistent_rms=0.2,
    )  # fmt: skip
  if name == 'adafactor':
    direction = optax.adafactor(1.0)
  if direction is not None:
    decay = optax.add_decayed_weights(-weight_decay, mask=decays)
    return optax.chain(direction, decay, optax.scale_by_schedule(rate))
  raise BadInput(f'optim.name = {name!r}: choose one of adamw, lion, muon, adafactor')
