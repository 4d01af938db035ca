"""Rewards for answers that can be checked: equal text, equal numbers, equal mathematics, and the form they come in."""

import collections
import importlib.util
import re
from fractions import Fraction

from llmstack.errors import BadInput
from llmstack.rewards import row
from llmstack.rewards.workers import Workers

# A sign counts where nothing stands before it that it could subtract from. No exponents: '1e999999999' is one number
# that nobody wrote and that fills the memory.
_DIGITS = r'(?:\d{1,3}(?:,\d{3})+(?![\d])|\d+)(?:\.\d+)?|\.\d+'
NUMBER = re.compile(rf'(?:(?<![\w)\]])[-\u2212+]\s?)?[$\u20ac\u00a3]?(?<![\w.])(?:{_DIGITS})(?:/\d+(?![\d/]))?')
LONGEST = 200  # characters of a number

# Each takes time in proportion to the text: a model that repeats '<answer>' to its budget must not hold the run.
MARKERS = (
  re.compile(r'####[ \t]*(.+)'),
  re.compile(r'(?:\banswer(?: is)?[ \t]*[:=]|\banswer is\b|^A:)[ \t]*(.+)', re.I | re.M),
)


def number(text):
  r"""Returns Fraction of a text that is one number, or None: '$1,234.50', '-3/4', '\frac{1}{2}', '50\%' (50), '18.'."""
  text = text.strip().replace('\\$', '$').replace('\\%', '%').replace('{,}', ',').replace('\\!', '')
  if len(text) > 1 and text[0] == text[-1] == '$':
    text = text[1:-1]
  text = re.sub(r'^([-+]?)\\[dt]?frac\{(\d+)\}\{(\d+)\}$', r'\1\2/\3', text.strip())
  text = text.removesuffix('.').removesuffix('%')
  return _fraction(text) if NUMBER.fullmatch(text) else None


def last_number(text):
  """Returns Fraction of the last number in a text, or None."""
  found = collections.deque(NUMBER.finditer(text), maxlen=1)
  return _fraction(found[0][0]) if found else None


def _fraction(text):
  """Returns Fraction of what NUMBER matched, or None for one of absurd length or over zero."""
  above, _, below = re.sub(r'[$\u20ac\u00a3,+\s]', '', text).replace('\u2212', '-').partition('/')
  if len(text) > LONGEST or below and not int(below):
    return None
  return Fraction(above) / int(below or 1)


def final(text):
  r"""Returns what a text says is its answer, or None where it marks nothing.

  The last \boxed{...}; else the last <answer>...</answer>; else what follows the last '####'; else the rest of the last
  line with 'answer:', 'the answer is' or 'A:'.
  """
  if (start := text.rfind('\\boxed{')) >= 0:
    depth, start = 1, start + len('\\boxed{')
    for end in range(start, len(text)):
      depth += {'{': 1, '}': -1}.get(text[end], 0)
      if not depth:
        return text[start:end].strip()
  end = text.rfind('</answer>')
  if 0 <= (start := text.rfind('<answer>', 0, max(end, 0))):
    return text[start + len('<answer>') : end].strip()
  for marker in MARKERS:
    if found := marker.findall(text):
      return found[-1].strip()
  return None


def value(text):
  """Returns Fraction of the number that a text answers with, or None: the marked one, else the last one.

  Of a marked answer that is more than a number it is the first one, behind the last '=' where there is one.
  """
  marked = final(text)
  if marked is None:
    return last_number(text)
  marked = marked.rpartition('=')[2]
  if (whole := number(marked)) is not None:
    return whole
  found = NUMBER.search(marked)
  return _fraction(found[0]) if found else None


def _reference(info):
  if 'answer' not in info:
    raise ValueError(f"info has no 'answer', only {sorted(info)}")
  return str(info['answer'])


def _plain(text):
  return ' '.join(text.casefold().split()).strip(' .,:;!?()"\'*$')


@row
def exact(prompt, completion, info):
  """Returns 1 where the marked answer, or the whole completion, is info['answer']; case, spaces and '(A).' aside."""
  marked = final(completion)
  return float(_plain(completion if marked is None else marked) == _plain(_reference(info)))


@row
def numeric(prompt, completion, info):
  """Returns 1 where the completion answers with the number of info['answer'], exactly: 0.5 is 1/2, and 0.33 is not 1/3.

  Raises: ValueError where info['answer'] has no number.
  """
  wanted = value(_reference(info))
  if wanted is None:
    raise ValueError(f'the reference answer {info["answer"]!r:.80} has no number')
  return float(value(completion) == wanted)


class Mathematics:
  """1 where the completion's answer is mathematically that of info['answer'], by math-verify, in processes of its own.

  Plain numbers are compared here and never get there: it takes 1 to 840 ms a row and seconds to be imported.

  Raises:
    BadInput: math-verify is not installed.
  """

  def __init__(self, *, size=1, seconds=10.0):
    if importlib.util.find_spec('math_verify') is None:
      raise BadInput("the reward of mathematics needs math-verify: pip install 'llmstack[rewards]'")
    self.workers = Workers('llmstack.rewards.symbolic:equal', size=size, seconds=seconds)

  def close(self):
    self.workers.close()

  def __call__(self, prompts, completions, info):
    """Returns [float or Failed]."""
    out = [_quick(completion, each) for completion, each in zip(completions, info)]
    slow = [i for i, known in enumerate(out) if known is None]
    for i, found in zip(slow, self.workers(*([rows[i] for i in slow] for rows in (prompts, completions, info)))):
      out[i] = found
    return out


def _quick(completion, info):
  """Returns float, or None where one of the two is no plain number."""
  wanted, marked = number(_reference(info)), final(completion)
  said = number(marked) if marked is not None else None
  return None if wanted is None or said is None else float(wanted == said)


def matches(pattern):
  """Returns the reward that is 1 where a regular expression is found; `.` is any character, newlines too.

  Raises: BadInput for a pattern that does not compile. One of nested repetitions may take for ever: write none.
  """
  try:
    found = re.compile(pattern, re.S)
  except re.error as error:
    raise BadInput(f'pattern {pattern!r} is no regular expression: {error}') from None
  return row(lambda prompt, completion, info: float(found.search(completion) is not None))


TAGS = ('<think>', '</think>', '<answer>', '</answer>')


@row
def thinks(prompt, completion, info):
  """Returns 1 for <think>...</think><answer>...</answer>, each tag once, nothing around them and an answer in it.

  Source: DeepSeek-R1 (2501.12948), section 2.2.2, its format reward.
  """
  if any(completion.count(tag) != 1 for tag in TAGS):
    return 0.0
  form = re.fullmatch(r'<think>.*</think>\s*<answer>(.*)</answer>', completion.strip(), re.S)
  return float(form is not None and bool(form[1].strip()))
