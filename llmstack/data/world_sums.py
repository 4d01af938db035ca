"""Sums of three to five numbers: a task that pays for reasoning, and people who mostly do not show any.

The answer to 'What is 4 + 5 - 7 + 3?' is checked by a rule, and a model of the demo's size finds it step by step only:
'4+5=9, 9-7=2, 2+3=5.' Every result is one digit, which is one token; without spaces a step has seven.

What is planted in the demonstrations (`MANNERS`, `SLIPS`):
- a third of them are worked in steps, and each result is off by a little with the chance 0.05; work goes on from there;
- the others give a result from the head, 'It is 5.', half of them a wrong one.
So imitation, however long, learns to answer from the head most of the time, which a small model does no better than
people do, while a reward for right answers can tell which manner pays. Nothing else is hidden. The ceiling is known:
sums-careful.jsonl has the same problems all worked in steps without a slip.
"""

import json
import re
from itertools import accumulate, zip_longest
from pathlib import Path

from llmstack.data.world import Dice
from llmstack.errors import BadInput

__all__ = ['HELD_OUT', 'LENGTHS', 'MANNERS', 'OFF', 'SLIPS', 'TOP', 'files', 'question', 'right', 'work', 'write']

LENGTHS = (3, 4, 5)  # numbers of a sum, 1 to 9 each
TOP = 9  # no true result is above it, or below 1, on the way either
HELD_OUT = 0.15  # share of the sets of numbers, whatever their order and signs
MANNERS = {'steps': 0.35, 'head': 0.65}  # shares
SLIPS = {'steps': 0.05, 'head': 0.50}  # chance that a result is off
OFF = (-2, -1, 1, 2)  # by how much


def question(numbers: tuple[int, ...]) -> str:
  """Returns the question that asks for the sum of signed numbers: (4, 5, -7) -> 'What is 4 + 5 - 7?'"""
  return f'What is {numbers[0]}{"".join(f" {_sign(n)} {abs(n)}" for n in numbers[1:])}?'


def _sign(n):
  return '+' if n > 0 else '-'


def work(numbers: tuple[int, ...], manner: str, slips: tuple[int, ...] = ()) -> str:
  """Returns the working of a sum in one of the MANNERS, ended by its result.

  slips: by how much each result is off, none where there is no entry; the work goes on from there.
  """
  found = _results(numbers, manner, slips)
  if manner == 'head':
    return f'It is {found[-1]}.'
  before = (numbers[0], *found)
  return f'{", ".join(f"{a}{_sign(n)}{abs(n)}={b}" for a, n, b in zip(before, numbers[1:], found))}.'


def _results(numbers, manner, slips=()):
  """Returns the results that are written down."""
  if manner == 'head':
    return [sum(numbers) + sum(slips)]
  return list(accumulate(n + slip for n, slip in zip_longest(numbers, (0, *slips), fillvalue=0)))[1:]


def right(answer: str, reply: str) -> bool:
  """Returns whether the reply ends with the answer and a full stop, the answer a whole number of its own."""
  found = re.search(r'(?<![\d.-])(\d+)\.\Z', reply)
  return found is not None and found[1] == answer


def _held_out(seed, numbers):
  return Dice(f'{seed}/sums/{sorted(map(abs, numbers))}').chance(HELD_OUT)


class _Problems:
  """Draws sums of one side of the split, as tuples of signed numbers."""

  def __init__(self, seed, stream, held_out=False):
    self.seed, self.dice, self.held_out = seed, Dice(f'{seed}/sums/{stream}'), held_out

  def draw(self):
    while True:
      numbers = self._within(self.dice.pick(LENGTHS))
      if _held_out(self.seed, numbers) == self.held_out:
        return numbers

  def _within(self, length):
    """Returns numbers whose results on the way are within 1 to TOP."""
    found = [self.dice.between(1, 9)]
    while len(found) < length:
      n = self.dice.between(1, 9) * (-1 if self.dice.chance(0.5) else 1)
      if 1 <= sum(found) + n <= TOP:
        found.append(n)
    return tuple(found)

  def different(self, n):
    found = {}
    while len(found) < n:
      found[self.draw()] = None
    return list(found)

  def manner(self):
    at, below = self.dice.below(1000) / 1000, 0
    for manner, share in MANNERS.items():
      below += share
      if at < below:
        return manner
    return manner

  def slips(self, numbers, manner):
    off = [self.dice.chance(SLIPS[manner]) for _ in _results(numbers, manner)]
    while True:
      slips = [self.dice.pick(OFF) if is_off else 0 for is_off in off]
      if min(_results(numbers, manner, slips)) > 0:
        return slips


def _shown(numbers, manner, slips=()):
  said, answer = work(numbers, manner, slips), str(sum(numbers))
  messages = [{'role': 'user', 'content': question(numbers)}, {'role': 'assistant', 'content': said}]
  return {
    'messages': messages, 'answer': answer, 'manner': manner, 'slips': sum(map(bool, slips)),
    'right': right(answer, said),
  }  # fmt: skip


def files(seed: int, *, shown: int, prompts: int, judged: int) -> dict[str, list[dict]]:
  """Returns {file name: rows}; the same arguments give the same rows.

  sums.jsonl: `shown` demonstrations: messages, answer (the true one), manner, slips (how many) and right.
  sums-careful.jsonl: the same problems, all in the manner 'steps' and without a slip.
  sums-train.jsonl, sums-eval.jsonl: `prompts` and `judged` different problems: prompt, answer and length. Those of
    sums-eval are on sets of numbers that no other file has, in whatever order and with whatever signs.
  """
  people = _Problems(seed, 'shown')
  demonstrations, careful = [], []
  for _ in range(shown):
    numbers = people.draw()
    manner = people.manner()
    demonstrations.append(_shown(numbers, manner, people.slips(numbers, manner)))
    careful.append(_shown(numbers, 'steps'))
  asked = lambda found: [{'prompt': question(n), 'answer': str(sum(n)), 'length': len(n)} for n in found]  # noqa: E731
  return {
    'sums.jsonl': demonstrations,
    'sums-careful.jsonl': careful,
    'sums-train.jsonl': asked(_Problems(seed, 'train').different(prompts)),
    'sums-eval.jsonl': asked(_Problems(seed, 'eval', held_out=True).different(judged)),
  }


def write(folder, seed: int, **counts: int) -> dict[str, int]:
  """Returns {file name: rows} of `files` written to the folder of a world; those that are there already are kept.

  Raises: BadInput for a negative count, or a file there that holds something else.
  """
  for name, n in counts.items():
    if n < 0:
      raise BadInput(f'{name}={n} is not a number of sums; use 0 for none')
  found = files(seed, **counts)
  for name, rows in found.items():
    path, data = Path(folder) / name, ''.join(json.dumps(row) + '\n' for row in rows)
    if path.exists() and path.read_text() != data:
      raise BadInput(f'{path} holds other sums than {counts} of seed {seed} give; remove it or choose another folder')
    if not path.exists():
      part = path.with_suffix('.new')
      part.write_text(data)
      part.replace(path)
  return {name: len(rows) for name, rows in found.items()}
