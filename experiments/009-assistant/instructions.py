"""The instruction sets of configs/sft.py:shared as one source, so that the fill of its rows is that of every batch."""

from configs import sft, tuning


def get_config():
  c = sft.get_config('shared')
  files = [f for source in c.data.sources.values() for f in source.files]
  del c.data.sources
  c.data.sources = {'all': tuning.source(tuple(files), holdout=0.0)}
  c.train.steps, c.train.log_every = 40, 10
  c.eval.prompts = ()
  return c
