"""The function of `answers.Mathematics`: runs in worker processes, the only ones that import sympy."""

from math_verify import parse, verify


def equal(prompt, completion, info):
  """Returns 1 where the completion's answer is that of info['answer'], else 0; NaN for a reference that is no formula.

  Without math-verify's own time limits, which take the alarm signal: the worker has one.
  """
  wanted = parse(f'${info["answer"]}$', parsing_timeout=None)
  if not wanted:
    return float('nan')
  return float(verify(wanted, parse(completion, parsing_timeout=None), timeout_seconds=None))
