"""rewards/: one row's fault is its own, workers that crash and hang, answers as people write them, shaping."""

import importlib.util
import os
import time

import numpy as np
import pytest

from llmstack.errors import BadInput
from llmstack.rewards import Failed, Rewards, answers, code, row, shaping
from llmstack.rewards.workers import Workers

ASKED = [{'role': 'user', 'content': 'q'}]


def score(function, *completions, info=None, weight=1.0):
  """Returns Scored of one reward named r."""
  n = len(completions)
  return Rewards({'r': (weight, function)})([ASKED] * n, list(completions), info or [{}] * n)


def one(function, completion, **info):
  scored = score(function, completion, info=[info])
  assert not scored.failed['r'], scored.reasons
  return float(scored.total[0])


# Functions of one row; the workers find them by this module's name.


def measure(prompt, completion, info):
  print('what a reward prints is no answer')
  if completion == 'hang':
    time.sleep(60)
  if completion == 'lie':
    os.write(3, b'no number\n')
  if completion == 'leave':
    os._exit(0)
  return len(completion) / info.get('divisor', 1)


def raising(prompts, completions, info):
  return [1 / len(completion) for completion in completions]


BROKEN = {
  'one raises': (raising, 'ZeroDivisionError: division by zero'),
  'one is NaN': (row(lambda p, c, i: 1.0 if c else float('nan')), 'the reward is nan, not a finite number'),
  'one is infinite': (row(lambda p, c, i: 1.0 if c else -float('inf')), 'the reward is -inf'),
  'one is beyond float32': (row(lambda p, c, i: 1.0 if c else 1e39), 'the reward is 1e+39'),
  'one is an int beyond all floats': (row(lambda p, c, i: 1 if c else 10**400), 'the reward is 1000'),
  'one is an array': (row(lambda p, c, i: np.float16(1) if c else np.ones(1)), 'the reward is array([1.])'),
  'one is text': (row(lambda p, c, i: 1.0 if c else '1'), "the reward is '1'"),
  'one is None': (row(lambda p, c, i: 1.0 if c else None), 'the reward is None'),
  'one is a list': (row(lambda p, c, i: 1.0 if c else [1.0]), 'the reward is [1.0]'),
  'an array has NaN': (lambda p, c, i: np.array([1.0 if x else np.nan for x in c]), 'the reward is'),
  'one is missing': (lambda p, c, i: np.ones(sum(map(bool, c))), '0 rewards for 1 rows'),
  'an array of rows and one': (lambda p, c, i: np.ones((2, 2)) if '' in c else np.ones(len(c)), '2 rewards for 1 rows'),
  'one failed': (row(lambda p, c, i: 1.0 if c else Failed('no judge')), 'no judge'),
}


@pytest.mark.parametrize('name', BROKEN)
def test_a_fault_is_its_rows_own(name):
  """A reward that raises, or is NaN, takes the whole group with it (trl#7068), or becomes a silent 0."""
  function, reason = BROKEN[name]
  scored = Rewards({'good': (2.0, row(lambda p, c, i: 1)), 'r': (0.5, function)})([ASKED] * 3, ['x', '', 'y'], [{}] * 3)
  np.testing.assert_array_equal(scored.total, np.float32([2.5, np.nan, 2.5]))
  np.testing.assert_array_equal(scored.parts['r'], np.float32([1, np.nan, 1]))
  np.testing.assert_array_equal(scored.parts['good'], np.float32([1, 1, 1]))
  assert scored.failed == {'good': 0, 'r': 1} and list(scored.reasons) == ['r']
  assert scored.total.dtype == scored.parts['r'].dtype == np.float32
  assert scored.reasons['r'].startswith(reason)


def test_weights_and_what_is_only_logged():
  """0 * NaN: a part that is only logged takes rows out of training. No row at all, or lists of different lengths."""
  scored = score(raising, '', 'ab', weight=0.0)
  np.testing.assert_array_equal(scored.total, np.float32([0, 0]))
  assert scored.failed == {'r': 1} and np.isnan(scored.parts['r'][0])
  assert score(raising).total.shape == (0,)
  with pytest.raises(ValueError, match='1 prompts, 2 completions and 1 infos'):
    Rewards({'r': (1, raising)})([ASKED], ['a', 'b'], [{}])
  for parts in ({}, {'r': (float('nan'), raising)}, {'r': ('1', raising)}, {'r': (1, 'raising')}):
    with pytest.raises(BadInput):
      Rewards(parts)

  def misconfigured(prompts, completions, info):
    raise BadInput('no such judge')

  with pytest.raises(BadInput, match='no such judge'):
    score(misconfigured, 'a')


def test_workers_outlive_what_runs_in_them():
  """A reward that hangs holds the run for ever, one that ends its process or prints to stdout loses other rows."""
  with Workers(f'{__name__}:measure', size=2, seconds=1.5) as workers:
    scored = score(
      workers, 'abc', 'hang', 'ab', 'leave', 'x', 'abcd', info=[{}, {}, {'divisor': 0}, {}, {'ids': np.arange(9)}, {}]
    )
    np.testing.assert_array_equal(scored.total, np.float32([3, np.nan, np.nan, np.nan, 1, 4]))
    assert scored.failed == {'r': 3} and scored.reasons['r'] == 'no answer within 1.5 s'
    assert workers([ASKED], ['ab'], [{'divisor': 0}]) == ['ZeroDivisionError: division by zero']
    assert workers([ASKED], ['leave'], [{}]) == ['the process ended without an answer']
    assert workers([ASKED], ['lie'], [{}]) == ["the answer is b'no number', not JSON"]
    assert workers([ASKED], ['a' * 10**6], [{}]) == [1e6]  # more than a pipe holds


def test_no_process_to_give():
  """Where a worker cannot be replaced the pool is one short, and in the end waits for ever."""
  with Workers(f'{__name__}:measure', seconds=5) as workers:
    command, workers._command = workers._command, ['/no/such/program']
    assert workers([ASKED], ['leave'], [{}]) == ['the process ended without an answer']
    assert workers([ASKED], ['a'], [{}]) == ['no process could be started']
    workers._command = command
    assert workers([ASKED], ['a'], [{}]) == [1.0]


def test_workers_that_cannot_start():
  """A misspelt reward is seen in the first step of training, as n failed rows."""
  for name, sentence in [
    ('lent', 'write package.module:function'), (f'{__name__}:lent', "AttributeError: module 'test_rewards' has no"),
    ('no_such_module:f', 'ModuleNotFoundError'),
  ]:  # fmt: skip
    with pytest.raises(BadInput, match=sentence):
      Workers(name)


NUMBERS = {
  '42': '42', ' -7 ': '-7', '1,234': '1234', '$1,234.50': '1234.5', '-$5': '-5', '18.': '18', '3.0': '3', '.5': '1/2',
  '50%': '50', '3/4': '3/4', '-3/4': '-3/4', '\u22125': '-5', '\\frac{1}{2}': '1/2', '-\\dfrac{1}{3}': '-1/3',
  '\\$18': '18', '$18$': '18', '50\\%': '50', '1{,}000': '1000', '007': '7', '+3': '3',
}  # fmt: skip
NONE = (
  '',
  '.',
  '-',
  'x',
  '1e9',
  '12,34',
  '1 2',
  '3 dollars',
  '1/0',
  '1.2.3',
  '1/2/3',
  '\u0664\u0662x',
  '9' * 201,
  '0x10',
)


def test_numbers():
  """A comma, a dollar, a trailing dot or a fraction makes a right answer wrong; 1e999999999 fills the memory."""
  for text, wanted in NUMBERS.items():
    assert answers.number(text) == answers.Fraction(wanted), text
  for text in (*NONE, '1e999999999', '1/0'):
    assert answers.number(text) is None, text


LAST = {
  'She has 5-3 apples': '3', '16 - 3 - 4 = 9': '9', 'It is -4.': '-4', 'a 1,234, b': '1234', 'x=-2': '-2', '(-2)': '-2',
  'from 3-5': '5', '$-5 left': '-5', 'it costs $5.00.': '5', 'at 3:45 pm': '45', 'one 12th': '12', 'half': None,
  '1,2': '2', 'in 2 H2O': '2', '5kg': '5', '<<5*2=10>>10': '10',
}  # fmt: skip


def test_last_number():
  """A minus that subtracts is read as a sign, or the dot that ends a sentence as part of the number."""
  for text, wanted in LAST.items():
    assert answers.last_number(text) == (None if wanted is None else answers.Fraction(wanted)), text


FINAL = {
  'so \\boxed{\\frac{1}{2}} is it': '\\frac{1}{2}', '\\boxed{1} and \\boxed{2}': '2', '\\boxed{open': None,
  'work\n#### 1,000': '1,000', '#### 1\n#### 2': '2', '<think>1</think><answer> 4 </answer>': '4', 'Answer: 3\n': '3',
  'The answer is 7.': '7.', 'A: 26': '26', 'the answer is: 8': '8', 'Final Answer = x': 'x', 'nothing': None,
  'No answer: #### 5': '5', '': None,
}  # fmt: skip


def test_marked_answers():
  """A number behind the marked answer, or before it, is taken for the answer."""
  for text, wanted in FINAL.items():
    assert answers.final(text) == wanted, text
  assert one(answers.numeric, '3 + 4 = 7\n#### 7 apples in 2 days', answer='7') == 1
  assert one(answers.numeric, 'Answer: 3 + 4 = 7', answer='7') == 1
  assert one(answers.numeric, '#### 8\nand 7', answer='7') == 0
  assert one(answers.numeric, '', answer='7') == 0
  assert one(answers.numeric, 'Answer: seven', answer='7') == 0
  assert one(answers.numeric, '0.33', answer='1/3') == 0


def test_degenerate_completions():
  """A completion that repeats itself to its budget holds the run for minutes (this test then does not end)."""
  pieces = (
    '<answer>|</answer><answer>|<think></think><answer> |\\boxed{|1,111|,111|9|#### |-|.1|answer is |A:\n|1/|$| |{,}'
  )
  for piece in f'{pieces}|```python\n|a '.split('|'):
    for text in (piece * (100_000 // len(piece)), piece * (100_000 // len(piece)) + '!'):
      for reward in (answers.numeric, answers.exact, answers.thinks):
        assert one(reward, text, answer='4') == 0, piece
      code.solution(text)


def test_a_reference_that_is_none():
  """A record without an answer, or with one that is no number, counts every completion as wrong."""
  scored = score(answers.numeric, '1', '1', '1', info=[{'answer': '1'}, {'answer': 'B'}, {}])
  np.testing.assert_array_equal(scored.total, np.float32([1, np.nan, np.nan]))
  assert scored.failed == {'r': 2} and "'B' has no number" in scored.reasons['r']


def test_exact_and_forms():
  """Case, a full stop or brackets around the letter fail a right answer; a format reward is had twice or by halves."""
  for said in ('B', 'b.', '(B)', 'Answer: **B**', '<answer>B</answer>', '\\boxed{B}'):
    assert one(answers.exact, said, answer='B') == 1, said
  for said in ('', 'C', 'B or C', 'AB'):
    assert one(answers.exact, said, answer='B') == 0, said
  ends = answers.matches(r'Answer: \S+\s*$')
  assert one(ends, 'x\nAnswer: 5\n') == 1 and one(ends, 'Answer: 5, or so') == 0
  with pytest.raises(BadInput, match='no regular expression'):
    answers.matches('(')
  assert one(answers.thinks, '<think>a\nb</think>\n<answer>4</answer>') == 1
  for said in ('<answer>4</answer>', '<think></think><answer> </answer>', '<think>a</think><answer>4</answer> more',
               '<think><answer>3</answer></think><answer>4</answer>', '<think>a<answer>4</answer>'):  # fmt: skip
    assert one(answers.thinks, said) == 0, said


@pytest.mark.slow
def test_mathematics():
  """Equal mathematics in another form is wrong; the import of seconds counts as a time-out of the first row."""
  if importlib.util.find_spec('math_verify') is None:
    with pytest.raises(BadInput, match='rewards'):
      answers.Mathematics()
    pytest.skip("math-verify is not installed: pip install 'llmstack[rewards]'")
  reward = answers.Mathematics(seconds=5)
  with reward.workers:
    said = ['\\boxed{\\frac{\\sqrt{8}}{2}}', '$x^2+2x+1$', '\\boxed{(1, 2)}', '\\boxed{3}', '\\boxed{2^{2^{2^{99}}}}']
    wanted = ['\\sqrt{2}', '(x+1)^2', '(1,3)', '3.0', '5']
    out = reward([ASKED] * 5, said, [{'answer': x} for x in wanted])
    assert out[:4] == [1, 1, 0, 1] and (out[4] == 0 or isinstance(out[4], Failed))


def test_overlong():
  """tunix's penalty counts characters and has no lower bound (no thread; read in its source): a runaway of 10 windows
  outweighs every other reward."""
  reward = shaping.overlong(limit=100, buffer=20)
  for tokens, wanted in [(0, 0), (80, 0), (81, -0.05), (90, -0.5), (100, -1), (101, -1), (1000, -1)]:
    assert one(reward, 'x' * 999, tokens=tokens) == np.float32(wanted), tokens
  for limit, buffer in [(100, 0), (10, 20)]:
    with pytest.raises(BadInput, match='buffer'):
      shaping.overlong(limit=limit, buffer=buffer)


def test_shaping():
  """A completion shorter than n tokens, or an empty one, divides by zero; repetition is counted in words of text."""
  assert one(shaping.length, '', tokens=7) == 7
  assert one(shaping.unended, '', ended=True) == 0 and one(shaping.unended, '', ended=False) == 1
  for ids, wanted in [([], 0), ([1, 2, 3], 0), ([1, 2, 3, 4], 0), ([1, 2] * 4, 3 / 5), ([5] * 103, 0.99)]:
    assert one(shaping.repetition(4), '', ids=ids) == np.float32(wanted), ids
  with pytest.raises(BadInput, match='n = 0'):
    shaping.repetition(0)
