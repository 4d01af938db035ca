"""Answers of several checkpoints -> one self-contained page, on which a token's colour is its probability."""

import math

from llmstack.report.build import fill

LEVELS = (0.9, 0.5, 0.2, 0.05, 0.01)  # probabilities at which the colour changes


def level(logp):
  """Returns 0 for the most likely tokens to len(LEVELS) for the least."""
  return sum(math.exp(logp) < p for p in LEVELS)


def compared(data):
  """Returns the HTML of what `llmstack compare` found.

  data: {'made': unix seconds, 'chat', 'temperature', 'seed', 'new_tokens', 'models': [{'name', 'path', 'step',
    'parameters', 'tokenizer'}], 'prompts': [{'prompt', 'answers': [{'text', 'done', 'under': [view of each model, or
    None]}]}]}; a view is {'tokens': [[text, special, logp, rank, [[text, logp], ...]]], 'total', 'anew', 'cut'}, and
    answers are in the order of their authors.
  """
  title = ', '.join(m['name'] for m in data['models'])
  return fill('compared', title, data | {'levels': LEVELS}, own_style=True)
