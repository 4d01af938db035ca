"""Another program's weights as a llmstack checkpoint at step 0, parameters only."""

import os
from typing import Any, NamedTuple

import jax

from llmstack import errors
from llmstack.checkpoint import Checkpoints
from llmstack.data.tokenizer import Tokenizer
from llmstack.errors import BadInput
from llmstack.interop import llama2c
from llmstack.model import parameters
from llmstack.tasks import start


class Parameters(NamedTuple):
  params: Any


def run(config, workdir):
  for key in ('weights', 'tokenizer'):
    if not os.path.isfile(config[key]):
      raise BadInput(f'{key} = {config[key]!r} is not a file: give one with --config.{key}=PATH')
  cfg, params = llama2c.load(config.weights)
  tokenizer = Tokenizer(config.tokenizer)
  if tokenizer.vocab != cfg.vocab:
    raise BadInput(
      f'{config.tokenizer} has {tokenizer.vocab} entries and {config.weights} {cfg.vocab}: they do not belong together'
    )
  saved = Checkpoints.of(errors.local(workdir, 'workdir'), create=True)
  if saved.latest() is not None:
    raise BadInput(f'{workdir} already holds checkpoint {saved.latest()}: choose an empty workdir')
  meta = start.record(cfg, config, tokenizer) | {'data': None}
  saved.save(0, Parameters(jax.tree.map(jax.numpy.asarray, params)), meta)
  saved.close()
  print(f'{parameters(cfg)[0]} parameters written to {workdir}/checkpoints/0')
