"""Next-token cross-entropy.

Every loss of llmstack returns (sums, weights, metrics):
  sums, weights: {term: float32[]}; the objective is the sum over terms of sums[t] / weights[t], divided
    after microbatches and devices have been added up. Weights depend on the batch, never on parameters.
  metrics: {name: (float32[] numerator, float32[] denominator)}, added up the same way, divided when logged; or
    {name: float32[]}, at least 0, of which the largest counts.
"""

import jax
import jax.numpy as jnp

from llmstack.losses.common import masked_sum, select
from llmstack.shapes import check


def token_logp(logits, targets):
  """Returns (logp, log_z), float32[B,T]: log-prob of each target and the log-partition."""
  check('BTV,BT', logits, targets)
  logits = logits.astype(jnp.float32)
  log_z = jax.nn.logsumexp(logits, axis=-1)
  return jnp.take_along_axis(logits, targets[:, :, None], axis=-1)[:, :, 0] - log_z, log_z


def cross_entropy(logits, targets, mask, *, z_loss):
  """Returns (sums, weights, metrics) of the masked next-token loss.

  logits: float[B,T,V]. targets: int32[B,T]. mask: float32[B,T] weights, 0 = no loss.
  z_loss: coefficient of log(Z)^2, 0 for none. Source: PaLM, section 5 (1e-4 there).
  """
  check('BTV,BT,BT', logits, targets, mask)
  # Selecting the logits, not the loss, keeps NaN out of the backward pass as well.
  logp, log_z = token_logp(jnp.where(mask[:, :, None] != 0, logits, 0.0), targets)
  correct = select(jnp.argmax(logits, -1) == targets, mask)
  weight = mask.astype(jnp.float32).sum()
  sums = {'nll': masked_sum(-logp, mask)}
  if z_loss:
    sums['z'] = z_loss * masked_sum(jnp.square(log_z), mask)
  metrics = {'nll': (sums['nll'], weight), 'accuracy': (jnp.sum(correct * mask), weight)}
  return sums, dict.fromkeys(sums, weight), metrics


def collision(logits, log_z):
  """Returns float32[B,T]: log sum_v p(v)^2, not differentiated."""
  twice = jax.nn.logsumexp(2 * jax.lax.stop_gradient(logits), axis=-1)
  return twice - 2 * jax.lax.stop_gradient(log_z)


def entropy(logits, log_z):
  """Returns float32[B,T]: -sum_v p(v) log p(v), nats."""
  return log_z - jnp.sum(jnp.exp(logits - log_z[:, :, None]) * logits, -1)


def chunked_logp(hidden, unembed, targets, mask, *, chunk, also=None):
  """Returns float32[B,T], the log-prob of each target, 0 under the mask; logits of only `chunk` positions are alive.

  hidden, unembed, chunk: as for chunked_cross_entropy; chunk None holds all logits.
  also: collision or entropy, to return (logp, what it says of the logits) instead; None for neither.
  """
  length = check('BTD,BT,BT', hidden, targets, mask)['T']
  if length % (chunk or length):
    raise ValueError(f'chunk = {chunk} does not divide T = {length}')

  def one(h, t, m):
    logits = jnp.where(m[:, :, None] != 0, unembed(h), 0.0)
    logp, log_z = token_logp(logits, t)
    return select(logp, m) if also is None else (select(logp, m), select(also(logits, log_z), m))

  if chunk is None:
    return one(hidden, targets, mask)
  parts = [x.reshape(x.shape[0], -1, chunk, *x.shape[2:]).swapaxes(0, 1) for x in (hidden, targets, mask)]
  out = jax.lax.map(lambda part: jax.checkpoint(one)(*part), tuple(parts))
  return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(targets.shape), out)


def in_chunks(f, arrays, chunk):
  """Returns what f(*arrays) does, a tree of sums over positions, with only `chunk` of them alive; None for all at once.

  arrays: [B,T,...] each. The backward pass computes each chunk again.
  """
  length = arrays[0].shape[1]
  if chunk is None:
    return f(*arrays)
  if length % chunk:
    raise ValueError(f'chunk = {chunk} does not divide T = {length}')

  @jax.checkpoint
  def one(total, i):
    part = (jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk, 1) for x in arrays)
    return jax.tree.map(jnp.add, total, f(*part)), None

  shapes = jax.eval_shape(lambda: f(*(x[:, :chunk] for x in arrays)))
  zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  return jax.lax.scan(one, zero, jnp.arange(length // chunk))[0]


def chunked_cross_entropy(hidden, unembed, targets, mask, *, z_loss, chunk):
  """Returns what cross_entropy(unembed(hidden), ...) does, with logits of only `chunk` positions alive.

  hidden: float[B,T,D]. unembed: [B,C,D] -> [B,C,V]. chunk: positions C, a divisor of T, or None for all of them.
  """
  check('BTD,BT,BT', hidden, targets, mask)
  one = lambda h, t, m: cross_entropy(unembed(h), t, m, z_loss=z_loss)  # noqa: E731
  return in_chunks(one, (hidden, targets, mask), chunk)
