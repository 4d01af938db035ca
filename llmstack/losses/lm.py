"""Next-token cross-entropy.

Every loss of llmstack returns (sums, weights, metrics):
  sums, weights: {term: float32[]}; the objective is the sum over terms of sums[t] / weights[t], divided
    after microbatches and devices have been added up. Weights depend on the batch, never on parameters.
  metrics: {name: (float32[] numerator, float32[] denominator)}, added up the same way, divided when logged.
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


def chunked_cross_entropy(hidden, unembed, targets, mask, *, z_loss, chunk):
  """Returns what cross_entropy(unembed(hidden), ...) does, with logits of only `chunk` positions alive.

  hidden: float[B,T,D]. unembed: [B,C,D] -> [B,C,V]. chunk: positions C, a divisor of T.
  The backward pass computes each chunk's logits again, so neither pass ever holds [B,T,V].
  """
  length = check('BTD,BT,BT', hidden, targets, mask)['T']
  if length % chunk:
    raise ValueError(f'chunk = {chunk} does not divide T = {length}')

  @jax.checkpoint
  def one(total, i):
    h, t, m = (jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk, 1) for x in (hidden, targets, mask))
    return jax.tree.map(jnp.add, total, cross_entropy(unembed(h), t, m, z_loss=z_loss)), None

  zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(
    lambda: cross_entropy(unembed(hidden[:, :chunk]), targets[:, :chunk], mask[:, :chunk], z_loss=z_loss)
  ))  # fmt: skip
  return jax.lax.scan(one, zero, jnp.arange(length // chunk))[0]
