"""Arithmetic that every loss shares. Numerators and denominators stay apart until the step divides once."""

import jax.numpy as jnp


def select(values, mask):
  """Returns float32 values where mask != 0 and exactly 0 elsewhere; even NaN under the mask has no effect.

  A product mask * NaN would be NaN, and so would its gradient: the values are selected away first.
  Callers select *before* arithmetic that can overflow (the double-where rule).
  """
  return jnp.where(mask != 0, values.astype(jnp.float32), 0.0)


def masked_sum(values, mask):
  """Returns float32[] = sum of values * mask, with masked positions selected away."""
  return jnp.sum(select(values, mask) * mask.astype(jnp.float32))
