"""Rows of T+1 tokens -> the arrays a train step eats. numpy only.

`...` is B, or B,M for rows of preference pairs: M = 2 completions of the same prompts, the chosen one first.
"""

from typing import NotRequired, TypedDict

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


class Pairs(Batch):
  """A batch of preference pairs, [B,M,T] each, mask 1 on the targets that belong to a completion.

  Pair j of row b has its chosen completion in segment j + 1 of [b,0] and its rejected one in that of [b,1].

  margin: float32[B,P] by how much the chosen one is better, 0 where nobody says.
  label: float32[B,P] probability that the chosen one is better.
  valid: float32[B,P] 1 where there is a pair.

  Where the two share their prompts (data.prompt), there are three arrays more, int32[B,data.prompt] each, of the
  prompts without their last tokens, with which the sides begin. A side's positions go on where its prompt's end.

  prompt, prompt_segments, prompt_positions: as tokens, segments and positions. A prompt of one token has none here.
  """

  margin: np.ndarray
  label: np.ndarray
  valid: np.ndarray
  prompt: NotRequired[np.ndarray]
  prompt_segments: NotRequired[np.ndarray]
  prompt_positions: NotRequired[np.ndarray]


LETTERS = {'margin': 'BP', 'label': 'BP', 'valid': 'BP', 'beta': 'BP'}  # of fields that are no [B,T] or [B,M,T]


def loss_mask(segments):
  """Returns bool[...,T]: whether the token at t+1 is a target, i.e. continues the document at t.

  segments: int[...,T+1] document number within the row, 0 = padding.
  """
  return (segments[..., :-1] == segments[..., 1:]) & (segments[..., 1:] != 0)


def letters(name, ndim):
  """Returns the letters of a field of a batch."""
  return LETTERS.get(name, ('', 'B', 'BT', 'BMT')[ndim])


def make(rows):
  """Returns the Batch or the Pairs of rows as `Rows.read` gives them, {field: array}."""
  rows = dict(rows)
  out = targets(rows.pop('tokens'), rows.pop('segments'))
  if 'mask' in rows:
    out['mask'] *= rows.pop('mask')[..., 1:]
  if 'label' in rows:
    out['valid'] = (out['segments'].max((1, 2))[:, None] > np.arange(rows['label'].shape[1])).astype(np.float32)
  if 'prompt' in rows:
    before = rows['prompt_segments']
    rows['prompt_positions'] = positions(before)
    length = np.stack([(before == s).sum(1) for s in range(1 + out['segments'].max(initial=0))], 1)
    length[:, 0] = 0  # padding is nobody's
    out['positions'] += np.take_along_axis(length[:, None], out['segments'], 2).astype(np.int32)
  return out | rows


def positions(segments):
  """Returns int32[...,T]: the place of each column within its segment, from 0; 0 at padding."""
  column = np.arange(segments.shape[-1], dtype=np.int32)
  first = np.ones(segments.shape, bool)
  first[..., 1:] = segments[..., 1:] != segments[..., :-1]
  place = column - np.maximum.accumulate(np.where(first, column, 0), axis=-1)
  return np.where(segments == 0, 0, place).astype(np.int32)


def targets(tokens, segments):
  """Returns the Batch of these rows.

  tokens: int32[...,T+1] with 0 where segments is 0.
  segments: int32[...,T+1] document number within the row, 0 = padding.
  """
  check('BMT,BMT' if tokens.ndim == 3 else 'BT,BT', tokens, segments)
  inputs = np.ascontiguousarray(segments[..., :-1])
  return Batch(
    tokens=np.ascontiguousarray(tokens[..., :-1]),
    targets=np.ascontiguousarray(tokens[..., 1:]),
    segments=inputs,
    positions=positions(inputs),
    mask=loss_mask(segments).astype(np.float32),
  )
