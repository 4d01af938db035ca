"""A reward model by Bradley-Terry on preference pairs, and its calibration on those held out.

    llmstack --config configs/reward.py:world --workdir runs/reward      # after configs/sft.py:world
    LLMSTACK_DATA=DIR llmstack --config configs/reward.py:shared --workdir runs/books-reward    # after sft.py:shared

A source is JSON lines or parquet with chosen and rejected, and a prompt unless they are whole conversations.
`shared` reads the HH-RLHF pairs of DIR/prefs. Measured: experiments/009-assistant.
"""

import os

from ml_collections import ConfigDict

from configs import tuning
from llmstack.errors import BadInput


def get_config(size='world'):
  if size not in ('world', 'shared'):
    raise BadInput(f'configs/reward.py knows no size {size!r}: choose world or shared')
  data = os.environ.get('LLMSTACK_DATA', 'data')
  world = size == 'world'
  c = ConfigDict()
  c.task = 'reward'
  c.seed = 0
  tuning.common(c, world=world)
  c.checkpoint.init_from = 'runs/sft' if world else 'runs/books-sft'  # workdir of the model to tune

  c.objective = ConfigDict()
  c.objective.margin = False  # subtract the file's margin: for margins that say how much better, as in Llama 2
  c.objective.centering = 0.01  # coefficient of (r_w + r_l)^2, which keeps scores near 0; 0 for none

  if world:
    c.data.sources.pairs = tuning.source(('runs/world-text/pairs.jsonl',), holdout=0.05)
  else:
    c.data.on_error = 'skip'  # nine of them have an empty turn, or two in a row
    c.data.sources.harmless = tuning.source((f'{data}/prefs/hh_harmless_base_a.jsonl.gz',), holdout=0.2)
    c.data.too_long = 'truncate'
  c.data.prompt = tuning.prompt(world)
  c.data.batch = 8 if world else 4  # rows of pairs per step

  c.optim.lr = 1e-3 if world else 1e-4  # peak
  c.optim.warmup = 10
  c.train.steps = 150 if world else 200
  c.train.log_every = 10
  c.eval.prompts = ()  # a reward model says nothing
  return c
