"""What makes a synthetic text fit to train on. Pure: text -> a share of it that is right, from 0 to 1."""

import re

from llmstack.errors import BadInput

EQUATION = re.compile(r'(?<![\d.+*/-] )(?<![\d.])(\d+) ([+*-]) (\d+) = (-?\d+)(?!\.?\d)')
DOES = {'+': int.__add__, '-': int.__sub__, '*': int.__mul__}


def equations(text):
  """Returns the share of equations of two whole numbers, a + b = c, that hold; 0 where there is none."""
  found = [DOES[sign](int(a), int(b)) == int(c) for a, sign, b, c in EQUATION.findall(text)]
  return sum(found) / len(found) if found else 0.0


def ends(text):
  """Returns 1 where the text ends with the end of a sentence."""
  return float(text.rstrip().endswith(('.', '!', '?', '"', '”')))


VERIFIERS = {'equations': equations, 'ends': ends}


def verifier(name):
  """Returns the function of that name. Raises: BadInput."""
  if name not in VERIFIERS:
    raise BadInput(f'verifier = {name!r}: choose one of {", ".join(VERIFIERS)}')
  return VERIFIERS[name]
