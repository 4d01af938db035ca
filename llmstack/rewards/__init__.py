"""Rewards: functions of prompts and completions, added up under names, each row for itself.

A reward is a function (prompts, completions, info) -> float[n]:
  prompts: list of n lists of messages {'role', 'content'}.
  completions: list of n texts, special tokens removed.
  info: list of n dicts, the other fields of the prompt's record ('answer', 'tests'), and of the completion its 'ids'
    (list of int), 'tokens' (int, their number, with EOS) and 'ended' (bool: by itself, not by the budget).
`row` makes one of a function (prompt, completion, info) -> float, `workers.Workers` one that may hang or crash.

What is in which module: `answers` mathematics and formats, `shaping` length and repetition, `code` unit tests in the
boxes of `sandbox`.
"""

from typing import NamedTuple

import numpy as np

from llmstack.errors import BadInput, exhausted

# Whatever a reward's own code may run into; not what stops the process, and not BadInput, which is about all rows.
FAULTS = (
  ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, NameError, OSError, RuntimeError,
  StopIteration, SyntaxError, TypeError, ValueError,
)  # fmt: skip
LARGEST = float(np.finfo(np.float32).max)


class Failed(str):
  """Why a row has no reward; stands where its number would."""


class Scored(NamedTuple):
  """Rewards of n completions.

  total: float32[n], the sum of weight * part over the parts whose weight is not 0; NaN where one of them is.
  parts: {name: float32[n]}, before the weights; NaN where it failed.
  failed: {name: rows of it that failed}.
  reasons: {name: the sentence of its first failed row}, of the names that failed.
  """

  total: np.ndarray
  parts: dict
  failed: dict
  reasons: dict


class Rewards:
  """Named rewards with weights. A part of weight 0 is only logged.

  parts: {name: (weight, function)}.

  Raises:
    BadInput: no part; a weight that is not a finite number; a function that cannot be called.
  """

  def __init__(self, parts):
    if not parts:
      raise BadInput('rewards has no part: name at least one reward')
    for name, (weight, function) in parts.items():
      if not _number(weight) or not abs(weight) <= LARGEST or not callable(function):
        raise BadInput(f'reward {name} is ({weight!r}, {function!r}): give a finite weight and a function')
    self._parts = dict(parts)

  def __call__(self, prompts, completions, info):
    """Returns Scored. A row that raises, or is no finite number, fails alone.

    Raises:
      ValueError: lists of different lengths. BadInput: a function says that its settings are wrong.
    """
    n = len(completions)
    if len(prompts) != n or len(info) != n:
      raise ValueError(f'{len(prompts)} prompts, {n} completions and {len(info)} infos must be as many')
    total, parts, failed, reasons = np.zeros(n, np.float32), {}, {}, {}
    for name, (weight, function) in self._parts.items():
      values = [_finite(value) for value in _ask(function, prompts, completions, info)]
      wrong = [value for value in values if isinstance(value, Failed)]
      parts[name] = np.array([np.nan if isinstance(v, Failed) else v for v in values], np.float32)
      failed[name] = len(wrong)
      if wrong:
        reasons[name] = str(wrong[0])
      if weight:
        total += np.float32(weight) * parts[name]
    return Scored(total, parts, failed, reasons)

  def close(self):
    """Ends the processes of the parts that have some."""
    for _, function in self._parts.values():
      if hasattr(function, 'close'):
        function.close()


def row(function):
  """Returns the reward, over rows, of a function (prompt, completion, info) -> float."""
  return lambda prompts, completions, info: [function(*each) for each in zip(prompts, completions, info)]


def _ask(function, prompts, completions, info):
  """Returns [value or Failed] of n rows: of one call, and where that raises or has another shape, row by row."""
  n = len(completions)
  if not n:
    return []
  try:
    values = function(prompts, completions, info)
    values = values if isinstance(values, list | tuple) else list(np.asarray(values))
    if len(values) == n:
      return values
    reason = f'{len(values)} rewards for {n} rows'
  except BadInput:
    raise
  except FAULTS as error:
    if exhausted(error):
      raise
    reason = f'{type(error).__name__}: {error}'
  if n == 1:
    return [Failed(reason)]
  return [_ask(function, prompts[i : i + 1], completions[i : i + 1], info[i : i + 1])[0] for i in range(n)]


def _number(value):
  return isinstance(value, int | float)


def _finite(value):
  """Returns float of a reward of one row that float32 can hold, or Failed."""
  if isinstance(value, Failed):
    return value
  value = value.item() if getattr(value, 'ndim', None) == 0 else value  # numpy's, or an accelerator's
  if not _number(value) or not abs(value) <= LARGEST:
    return Failed(f'the reward is {value!r:.80}, not a finite number')
  return float(value)
