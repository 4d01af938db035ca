"""Small models and ragged batches that the tests share."""

import dataclasses
import functools
import zlib

import jax
import numpy as np
import pytest

from configs import sizes
from llmstack.data.batch import targets
from llmstack.model import ModelConfig, init

FAMILIES = ('gpt2_tiny', 'llama_tiny', 'gemma_tiny')
# Gemma, which has every feature, by default; the others where there is time.
GEMMA_FIRST = ('gemma_tiny', *(pytest.param(name, marks=pytest.mark.slow) for name in ('gpt2_tiny', 'llama_tiny')))
VOCAB = 48


def model(name, **changes):
  """Returns a ModelConfig of configs/sizes.py with VOCAB entries and weights large enough to matter."""
  values = sizes.model(name).to_dict() | {'vocab': VOCAB, 'init_std': 0.3} | changes
  return ModelConfig(**values)


@functools.cache
def weights(cfg, seed=0):
  return jax.jit(lambda: init(cfg, jax.random.key(seed)))()


def replace(cfg, **changes):
  return dataclasses.replace(cfg, **changes)


def batch(B, T, seed=0):
  """Returns a Batch of ragged packed rows: one to three documents and padding, different in every row."""
  r = np.random.RandomState(seed)
  segments = np.zeros((B, T + 1), np.int32)
  for row in range(B):
    ends = np.sort(r.choice(np.arange(2, T + 1), size=1 + row % 3, replace=False))
    for i, (a, b) in enumerate(zip([0, *ends], ends)):
      segments[row, a:b] = i + 1
  return targets(r.randint(0, VOCAB, (B, T + 1)).astype(np.int32) * (segments > 0), segments)


def sequence(B, T, seed=0):
  """Returns (tokens, positions, segments), one full document per row."""
  tokens = np.random.RandomState(seed).randint(0, VOCAB, (B, T)).astype(np.int32)
  return tokens, np.tile(np.arange(T, dtype=np.int32), (B, 1)), np.ones((B, T), np.int32)


def close(a, b, tol):
  """Asserts that two trees agree to `tol`, relative to the larger of 1 and the largest element."""
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    np.testing.assert_allclose(x, y, rtol=0, atol=tol * max(1.0, np.abs(y).max()))


def crc(batch):
  """Returns int: crc32 of tokens, targets and mask; equal for a batch and its exact replay."""
  value = 0
  for name in ('tokens', 'targets', 'mask'):
    value = zlib.crc32(np.ascontiguousarray(batch[name]), value)
  return value
