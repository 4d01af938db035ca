"""Rows of T+1 tokens -> the arrays a train step eats. numpy only."""

from typing import TypedDict

import numpy as np

from llmstack.shapes import check


class Batch(TypedDict):
  """One training batch; padding is token 0, segment 0, position 0, mask 0.

  tokens: int32[B,T] inputs.
  targets: int32[B,T] the token after each input; meaningful where mask is 1.
  segments: int32[B,T] document number within the row, from 1; 0 = padding.
  positions: int32[B,T] place within the segment, from 0.
  mask: float32[B,T] loss weight: 1 where input and target belong to the same document.
  """

  tokens: np.ndarray
  targets: np.ndarray
  segments: np.ndarray
  positions: np.ndarray
  mask: np.ndarray


def loss_mask(segments):
  """Returns bool[B,T]: whether the token at t+1 is a target, i.e. continues the document at t.

  segments: int[B,T+1] document number within the row, 0 = padding.
  """
  return (segments[:, :-1] == segments[:, 1:]) & (segments[:, 1:] != 0)


def targets(tokens, segments):
  """Returns the Batch of these rows.

  tokens: int32[B,T+1] with 0 where segments is 0.
  segments: int32[B,T+1] document number within the row, 0 = padding.
  """
  check('BT,BT', tokens, segments)
  inputs = np.ascontiguousarray(segments[:, :-1])
  column = np.arange(inputs.shape[1], dtype=np.int32)
  first = np.ones(inputs.shape, bool)
  first[:, 1:] = inputs[:, 1:] != inputs[:, :-1]
  positions = column - np.maximum.accumulate(np.where(first, column, 0), axis=1)
  return Batch(
    tokens=np.ascontiguousarray(tokens[:, :-1]),
    targets=np.ascontiguousarray(tokens[:, 1:]),
    segments=inputs,
    positions=np.where(inputs == 0, 0, positions).astype(np.int32),
    mask=loss_mask(segments).astype(np.float32),
  )
