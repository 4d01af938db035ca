"""Another program's weights as a llmstack checkpoint at step 0, parameters only."""

import os

from llmstack.data.tokenizer import Tokenizer
from llmstack.errors import BadInput
from llmstack.interop import llama2c
from llmstack.model import parameters
from llmstack.tasks import start


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
  where = start.save_parameters(workdir, params, start.record(cfg, config, tokenizer))
  print(f'{parameters(cfg)[0]} parameters written to {where}')
