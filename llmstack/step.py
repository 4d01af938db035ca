"""The one training step: accumulate, divide once, clip, update.

loss_fn(params, frozen, batch, rng) -> (sums, weights, metrics)      (losses/lm.py says what they are)
step(state, frozen, batch)          -> (state, measurements)
"""

import jax
import jax.numpy as jnp
import optax

from llmstack.state import Recent, TrainState


def tree_norm(tree):
  """Returns float32[]: the global L2 norm, scaled by the largest element so that 1e38 does not overflow."""
  leaves = [x.astype(jnp.float32) for x in jax.tree.leaves(tree)]
  top = jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in leaves]))
  unit = jnp.where((top > 0) & jnp.isfinite(top), top, 1.0)
  return unit * jnp.sqrt(sum(jnp.sum(jnp.square(x / unit)) for x in leaves))


def ratio(total, weight):
  """Returns total / weight, and 0 for an empty denominator."""
  return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1.0), 0.0)


def objective(loss_fn, params, frozen, batch, rng, weights):
  """Returns (loss, (weights, metrics)); weights: the global ones, or None to use this batch's own."""
  sums, own, metrics = loss_fn(params, frozen, batch, rng)
  weights = jax.lax.stop_gradient(own if weights is None else weights)
  return sum(ratio(sums[t], weights[t]) for t in sums), (own, metrics)


def split(batch, microbatches):
  """Returns the batch as [microbatches, B / microbatches, ...]; rows are dealt in turn.

  Microbatch j holds rows j, j + m, ...: each is spread over all devices of the batch axes.
  """
  return jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch)


def together(a, b):
  """Returns the metrics of two parts of a batch: numerators and denominators added, single numbers the larger one."""
  return {k: tuple(map(jnp.add, a[k], b[k])) if isinstance(a[k], tuple) else jnp.maximum(a[k], b[k]) for k in a}


def accumulate(loss_fn, params, frozen, batch, rng, microbatches):
  """Returns (loss, metrics, grads) of the whole batch, the same for any number of microbatches (dropout aside).

  Denominators come first: the weights do not depend on parameters, so XLA drops the forward pass from
  the scan that adds them up, and each microbatch can be divided by the global denominator at once.
  """
  loss_fn = jax.jit(loss_fn)  # traced once for all three uses
  grad = jax.value_and_grad(lambda *a: objective(loss_fn, *a), has_aux=True)
  if microbatches == 1:
    (loss, (_, metrics)), grads = grad(params, frozen, batch, rng, None)
    return loss, metrics, grads
  parts = (split(batch, microbatches), jax.random.split(rng, microbatches))
  weights = jax.lax.map(lambda part: loss_fn(params, frozen, *part)[1], parts)
  weights = jax.tree.map(lambda w: w.sum(0), weights)

  def body(total, part):
    (loss, (_, metrics)), grads = grad(params, frozen, *part, weights)
    return (total[0] + loss, together(total[1], metrics), jax.tree.map(jnp.add, total[2], grads)), None

  first = jax.tree.map(lambda x: x[0], parts)
  shapes = jax.eval_shape(lambda: grad(params, frozen, *first, weights))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[0][0], shapes[0][1][1], shapes[1]))
  return jax.lax.scan(body, zeros, parts)[0]


def above(value, history, sigma):
  """Returns bool[]: value > mean + sigma * standard deviation of the history, once half of it is known.

  history: float32[W], NaN where nothing is known.
  """
  known = jnp.isfinite(history)
  n = jnp.maximum(known.sum(), 1).astype(jnp.float32)
  mean = jnp.where(known, history, 0).sum() / n
  spread = jnp.sqrt(jnp.where(known, jnp.square(history - mean), 0).sum() / n)
  # A constant history has no spread but the rounding of its mean.
  spread = jnp.maximum(spread, 1e-5 * jnp.abs(mean))
  return (2 * n >= history.size) & (value > mean + sigma * spread)


def watch(recent, step, loss, norm, finite, sigma):
  """Returns (bool[] whether this step is a spike, the history with this step in it).

  A value that is skipped goes into the history all the same: a level that persists is accepted after about
  W / (1 + sigma^2) steps, 4 for a window of 128 and 6 sigma. The price is that the rule is blind to smaller spikes
  until a large one has left the window.

  Source: SkipStepOptimizer of OLMo-core and SkipStep of levanter, both with 128 and 6 sigma. Different here: nothing
  is skipped for being far *below* the mean (OLMo-core does), half a window is enough (OLMo-core waits for 20 steps at
  least), and a value that is not finite is not remembered (an infinite one makes levanter skip nothing, and
  OLMo-core everything, until it has left the window).
  """
  spike = finite & (above(loss, recent.loss, sigma) | above(norm, recent.grad_norm, sigma))
  slot = step % recent.loss.size
  record = lambda history, x: history.at[slot].set(jnp.where(finite, x, jnp.nan))  # noqa: E731
  spikes = recent.spikes + spike.astype(jnp.int32)
  return spike, Recent(record(recent.loss, loss), record(recent.grad_norm, norm), spikes)


def make_step(loss_fn, tx, *, seed, microbatches, clip, spike_sigma=None):
  """Returns step(state, frozen, batch) -> (state, measurements); jit it with `state` donated.

  tx: optax transformation without clipping. clip: largest global gradient norm, inf for none.
  spike_sigma: skip updates whose loss or gradient norm is a spike (`watch`); None for none. The state then has a
    history, and the measurements have `spikes`.
  measurements: float32[] each: loss, the metrics divided, grad_norm, param_norm, update_norm, skipped, streak.

  A non-finite loss or gradient norm leaves parameters and optimiser as they were and is counted in `skipped` and
  `streak`; optax.apply_if_finite would apply it in the end, and optax.clip_by_global_norm turns an infinite
  norm into zero gradients. So is a clipped norm whose square overflows: Adam's second moment would be infinite, and
  its update zero, for ever. A spike is counted in `skipped` and `spikes`, and ends a streak: it is finite.
  """

  def step(state, frozen, batch):
    rng = jax.random.fold_in(jax.random.key(seed), state.step)
    loss, metrics, grads = accumulate(loss_fn, state.params, frozen, batch, rng, microbatches)
    norm = tree_norm(grads)
    # Twice the root: clip / norm itself is subnormal for a norm of 1e38, and flushed to zero.
    root = jnp.minimum(1.0, clip**0.5 / jnp.sqrt(jnp.maximum(norm, 1e-30)))
    grads = jax.tree.map(lambda g: g * root.astype(g.dtype) * root.astype(g.dtype), grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    update_norm = tree_norm(updates)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(update_norm)
    finite &= jnp.isfinite(jnp.square(jnp.minimum(norm, clip)))
    good, recent = finite, state.recent
    if spike_sigma is not None:
      spike, recent = watch(recent, state.step, loss, norm, finite, spike_sigma)
      good &= ~spike
    bad = 1 - finite.astype(jnp.int32)
    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)  # noqa: E731
    new = TrainState(
      state.step + 1, keep(params, state.params), keep(opt_state, state.opt_state),
      state.skipped + 1 - good.astype(jnp.int32), (state.streak + bad) * bad, recent,
    )  # fmt: skip
    measured = {name: ratio(*x) if isinstance(x, tuple) else x for name, x in metrics.items()}
    measured |= {
      'loss': loss,
      'grad_norm': norm,
      'param_norm': tree_norm(new.params),
      'update_norm': update_norm,
    }
    if spike_sigma is not None:
      measured['spikes'] = recent.spikes
    return new, measured | {'skipped': new.skipped, 'streak': new.streak}

  return step


def make_eval(loss_fn):
  """Returns evaluate(params, frozen, batch) -> {name: (numerator, denominator)}; add these up, then divide."""

  def evaluate(params, frozen, batch):
    return loss_fn(params, frozen, batch, None)[2]

  return evaluate
