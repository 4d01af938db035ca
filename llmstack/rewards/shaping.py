"""Rewards that shape how a completion is written, whatever it says. All count tokens, of info['tokens'] and ['ids']."""

from llmstack.errors import BadInput
from llmstack.rewards import row


def overlong(*, limit, buffer):
  """Returns the reward: 0 up to limit - buffer tokens, from there falling to -1 at `limit`, and -1 beyond.

  Source: DAPO (2503.14476), equation 13; L_max is limit, L_cache is buffer.
  """
  if not 0 < buffer <= limit:
    raise BadInput(f'overlong: buffer = {buffer} must be from 1 to limit = {limit} tokens')
  return row(lambda prompt, completion, info: -min(max(info['tokens'] - (limit - buffer), 0) / buffer, 1.0))


@row
def length(prompt, completion, info):
  """Returns the number of tokens; give it a negative weight, per token."""
  return float(info['tokens'])


@row
def unended(prompt, completion, info):
  """Returns 1 for a completion that the budget ended and not itself; give it a negative weight.

  Source: 2403.17031, detail 23 (a penalty where EOS is missing); there it replaces the reward, here it is added.
  """
  return float(not info['ended'])


def repetition(n=4):
  """Returns the reward: the share of a completion's n-grams of tokens that occurred in it before, from 0 to below 1.

  Give it a negative weight. Source: the repetition penalty of 2502.03373, whole completions instead of tokens.
  """
  if n < 1:
    raise BadInput(f'repetition: n = {n} must be at least 1')

  def share(prompt, completion, info):
    ids = info['ids']
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0

  return row(share)
