"""The reward of unit tests, run on model-written Python in the boxes of `sandbox`."""

import ast
import re

from llmstack.rewards import Failed

FENCE = re.compile(r'```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)', re.S | re.I)


class UnitTests:
  """1 where all tests of a row pass, else 0; with `share`, the share that does. A completion's code that hangs, crashes
  or ends the process passes none.

  box: a sandbox.Sandbox. The tests are those of the row's info, in the forms of `tests`.
  """

  def __init__(self, box, *, share=False):
    self._box, self._share = box, share

  def close(self):
    self._box.close()

  def __call__(self, prompts, completions, info):
    """Returns [float or Failed]. Raises: ValueError where a row has no tests."""
    jobs = [(solution(completion), *tests(each)) for completion, each in zip(completions, info)]
    return [self._reward(verdict) for verdict in self._box.run(jobs)]

  def _reward(self, verdict):
    if isinstance(verdict, Failed):
      return verdict
    return sum(verdict.passed) / len(verdict.passed) if self._share else float(all(verdict.passed))


def solution(completion):
  """Returns the code of a completion: its last fenced block, else all of it."""
  blocks = FENCE.findall(completion)
  return blocks[-1] if blocks else completion


def tests(info):
  """Returns (setup text, [(expression, value that it must have)]) of a record.

  {'tests' or 'test_list': list of texts, 'test_setup_code'?} (MBPP), or {'test', 'entry_point'} (HumanEval).
  Of `assert CALL == VALUE` only the call goes into the box, and the value is compared outside. Any other test is
  judged by code that shares its process with the solution: a solution made to deceive it can.

  Raises: ValueError where there is none, or it does not parse.
  """
  if 'entry_point' in info:
    return info['test'], [(f'check({info["entry_point"]})', None)]
  listed = info.get('tests', info.get('test_list'))
  if not listed or not isinstance(listed, list):
    raise ValueError(f"info has no 'tests', a list of asserts, only {sorted(info)}")
  setup, calls = [info.get('test_setup_code', '')], []
  for i, text in enumerate(listed):
    tree = ast.parse(text)
    pair = _equality(tree.body)
    if pair is None:
      body = ast.unparse(tree).replace('\n', '\n  ')
      pair = f'_test_{i}()', None
      setup.append(f'def _test_{i}():\n  {body}')
    calls.append(pair)
  return '\n'.join(setup), calls


def _equality(body):
  """Returns (expression, value) of one assert that something equals plain data, or None."""
  test = body[0].test if len(body) == 1 and isinstance(body[0], ast.Assert) else None
  if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
    try:
      return ast.unparse(test.left), ast.literal_eval(test.comparators[0])
    except ValueError:
      pass
  return None
