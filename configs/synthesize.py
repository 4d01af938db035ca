"""Synthetic text: completions of a checkpoint that a verifier accepts, to be mixed like any other source.

    llmstack --config configs/synthesize.py --workdir runs/synthetic     # after `make demo`

Then a source of configs/prepare.py: source('runs/synthetic/part-*.jsonl.zst', id='id', synthetic=True).
"""

from ml_collections import ConfigDict, config_dict

from configs import sizes


def get_config():
  c = ConfigDict()
  c.task = 'synthesize'
  c.seed = 0  # of the first sample of each prompt
  c.model = 'runs/world'  # workdir of the checkpoint
  c.step = config_dict.placeholder(int)  # None takes the newest
  c.prompts = ('One cold day', 'Question: What is the capital of', 'Once there was a')
  c.files = ()  # of more prompts, one a line, or JSON lines
  c.field = 'text'  # of JSON lines
  c.samples = 4  # completions of each prompt
  c.batch = 32  # completions at once
  c.new_tokens = 64  # at most
  c.temperature = 0.8
  c.top_k = config_dict.placeholder(int)  # None keeps all
  c.top_p = 1.0
  c.stop = ()  # strings that end a completion, besides EOS
  c.verifier = 'ends'  # equations | ends, of llmstack.prepare.verify; '' = none
  c.judge = ''  # classifier.npz of configs/classify.py, in place of a verifier
  c.least = 1.0  # score that is accepted
  c.finished = True  # completions that new_tokens cut short are rejected
  c.mesh = sizes.mesh()
  return c
