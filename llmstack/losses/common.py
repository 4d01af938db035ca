"""Arithmetic that every loss shares. Numerators and denominators stay apart until the step divides once."""

import jax.numpy as jnp

from llmstack.errors import BadInput


def select(values, mask):
  """Returns values where mask != 0 and exactly 0 elsewhere; even NaN under the mask has no effect.

  In float32 at least: bfloat16 is raised to it, float64 (the tests of golden values) stays.
  A product mask * NaN would be NaN, and so would its gradient: the values are selected away first.
  Callers select *before* arithmetic that can overflow (the double-where rule).
  """
  return jnp.where(mask != 0, values.astype(jnp.promote_types(values.dtype, jnp.float32)), 0.0)


def masked_sum(values, mask):
  """Returns float32[] = sum of values * mask, with masked positions selected away."""
  return jnp.sum(select(values, mask) * mask.astype(jnp.float32))


def by_segment(values, segments, n):
  """Returns [...,P,T]: the values of segment p + 1 in row p, 0 elsewhere. Selected: NaN stays in its own segment."""
  ids = jnp.arange(1, n + 1).reshape((1,) * (segments.ndim - 1) + (n, 1))
  return jnp.where(segments[..., None, :] == ids, values[..., None, :], 0)


def sequence_sums(values, mask, segments, n):
  """Returns float[...,P]: the sum of values * mask in each segment 1..n = P, 0 for a segment that is not there.

  values, mask: float[...,T]. segments: int32[...,T]. A comparison and a sum rather than a scatter, so it shards.
  """
  return by_segment(select(values, mask) * mask, segments, n).sum(-1)


def spread(values, segments):
  """Returns [...,T]: at each column the number float[...,P] of its segment, 0 in padding. The other way of a sum."""
  n = values.shape[-1]
  return jnp.take_along_axis(jnp.pad(values, ((0, 0),) * (values.ndim - 1) + ((1, 0),)), jnp.minimum(segments, n), -1)


def log1mexp(x):
  """Returns log(1 - exp(x)) for x <= 0, with a finite value and gradient up to and including x = 0.

  x is held below -1e-7, where float32 still tells exp(x) from 1. Two branches, each fed with a harmless number where
  the other is taken: where an accelerator's exp rounds to 1 all the same, a select after the logarithm would leave
  NaN in the gradient (trl#1473).
  Source: Maechler 2012, "Accurately computing log(1 - exp(-|a|))"; its switch is at ln 2.
  """
  x = jnp.minimum(x, -1e-7)
  small = x > -0.6931472
  near, far = jnp.where(small, x, -1.0), jnp.where(small, -1.0, x)
  return jnp.where(small, jnp.log(-jnp.expm1(near)), jnp.log1p(-jnp.exp(far)))


def ranking(gap, valid):
  """Returns float[...]: 1 where the better one scores higher, 0 where lower, 1/2 for a tie, times valid.

  At step 0 policy and reference agree, and every gap of DPO is a tie: that is chance, not 0 % right.
  """
  return 0.5 * (1 + jnp.sign(select(gap, valid))) * valid


def known(name, value, choices):
  """Returns value; raises BadInput where it is not one of the choices."""
  if value not in choices:
    raise BadInput(f'{name} = {value!r} is unknown: choose from {", ".join(sorted(choices))}')
  return value
