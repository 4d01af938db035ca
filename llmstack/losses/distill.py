"""Distillation on logits: forward KL, reverse KL and the generalised Jensen-Shannon divergence, per token.

Everything adds up over pieces, so a caller may pass [B,C,V] at a time and never hold [B,T,V] of both models.
"""

import jax
import jax.numpy as jnp

from llmstack.errors import BadInput
from llmstack.losses.common import known, log1mexp, masked_sum, select
from llmstack.shapes import check


def _kl(p, q):
  """Returns KL(p || q) over the last axis, of log-probs. 0 log 0 is 0, also where q is 0 (a masked vocabulary)."""
  held = p > -jnp.inf
  ratio = jnp.where(held, p, 0.0) - jnp.where(held, q, 0.0)
  return jnp.sum(jnp.where(held, jnp.exp(p), 0.0) * ratio, -1)


def _divergence(student, teacher, beta):
  """Returns float[B,T] of two arrays of log-probs, float[B,T,V]; see jsd for beta."""
  if beta == 0:
    return _kl(teacher, student)
  if beta == 1:
    return _kl(student, teacher)
  # logaddexp of two -inf has a NaN gradient; no probability of either is as small as the floor.
  low = jnp.finfo(student.dtype).min / 4
  floor = lambda x: jnp.maximum(x, low)  # noqa: E731
  mixture = jnp.logaddexp(floor(teacher) + jnp.log(beta), floor(student) + jnp.log1p(-beta))
  return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def _finish(student, teacher, mask, beta, scale):
  each = _divergence(student, jax.lax.stop_gradient(teacher), beta)
  sums, weight = {'distill': scale * masked_sum(each, mask)}, mask.astype(jnp.float32).sum()
  agree = jnp.argmax(student, -1) == jnp.argmax(teacher, -1)
  metrics = {'divergence': (masked_sum(each, mask), weight), 'agreement': (masked_sum(agree, mask), weight)}
  return sums, {'distill': weight}, metrics


def _visible(logits, mask):
  """Returns the logits in float32 at least, 0 where nothing is learnt: NaN there has no effect."""
  return select(logits, mask[:, :, None])


def _check_knobs(beta, temperature):
  if not 0 <= beta <= 1:
    raise BadInput(f'beta = {beta} must be in [0, 1]: 0 is KL(teacher || student), 1 KL(student || teacher)')
  if not temperature > 0:
    raise BadInput(f'temperature = {temperature} must be above 0')


def jsd(student, teacher, mask, *, beta, temperature, t_squared):
  """Returns (sums, weights, metrics): b KL(P || M) + (1 - b) KL(Q || M), M = b P + (1 - b) Q, per valid token.

  student, teacher: float[B,T,V] logits of Q and P (the teacher's are detached). mask: float32[B,T].
  beta: 0 is the forward KL(P || Q), 1 the reverse KL(Q || P), as in TRL. They are not the limits of what is between:
    that goes to 0 at both ends, so the loss jumps (2.8 at 0 but 0.003 at 0.001 on the golden inputs; trl#6780,
    ms-swift#10078). Swapping P and Q in M is the other known mistake (trl PR#3043): beta weighs the teacher.
  temperature: divides both logits. t_squared: whether the loss is multiplied by its square, which keeps gradients of
    one size over temperatures: yes for Hinton, no for GKD.

  Source: GKD, 2306.13649; Hinton, 1503.02531, section 2: beta=0 and t_squared=True.
  """
  _check_knobs(beta, temperature)
  if student.shape[-1] != teacher.shape[-1]:
    raise BadInput(f'student has {student.shape[-1]} and teacher {teacher.shape[-1]} entries: one vocabulary is needed')
  check('BTV,BTV,BT', student, teacher, mask)
  q, p = (jax.nn.log_softmax(_visible(x, mask) / temperature) for x in (student, teacher))
  return _finish(q, p, mask, beta, temperature**2 if t_squared else 1.0)


def top_k_jsd(student, teacher_logp, teacher_ids, mask, *, beta, temperature, t_squared, tail):
  """Returns what jsd() does, for a teacher of whom only C entries of the vocabulary were stored.

  student: float[B,T,V] logits. teacher_logp: float[B,T,C], log-probs at temperature 1 of the distinct teacher_ids
    int32[B,T,C]. beta, t_squared: see jsd.
  tail: 'bucket': all other entries are one more outcome, with what is left of either's mass; exact about how much the
    student puts outside, and only for temperature 1: what is left at another is not known. 'renormalise': both are
    conditioned on the stored ids, so mass outside them is never pushed down.

  Raises: BadInput for another tail, and for 'bucket' with another temperature.
  """
  _check_knobs(beta, temperature)
  check('BTV,BT', student, mask)
  check('BTC,BTC,BT', teacher_logp, teacher_ids, mask)
  if known('tail', tail, ('bucket', 'renormalise')) == 'bucket' and temperature != 1:
    raise BadInput(f'temperature = {temperature} with tail = bucket: the tail was stored at 1, use renormalise')
  logits, p = _visible(student, mask), _visible(teacher_logp, mask)
  q = jnp.take_along_axis(logits, teacher_ids, -1)
  if tail == 'renormalise':
    q, p = jax.nn.log_softmax(q / temperature), jax.nn.log_softmax(p / temperature)
  else:
    q = _with_tail(q - jax.nn.logsumexp(logits, -1, keepdims=True))
    p = _with_tail(p)
  return _finish(q, p, mask, beta, temperature**2 if t_squared else 1.0)


def _with_tail(logp):
  rest = log1mexp(jax.nn.logsumexp(logp, -1, keepdims=True))
  return jnp.concatenate([logp, rest], -1)
