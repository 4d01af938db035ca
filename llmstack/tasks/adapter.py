"""`llmstack adapter`: adapters of LoRA to and from PEFT's format, and merged into their base.

llmstack adapter export WORKDIR FOLDER             # adapter_model.safetensors and adapter_config.json
llmstack adapter import FOLDER WORKDIR --base DIR     # a checkpoint of ours, an adapter of DIR's newest checkpoint
llmstack adapter merge WORKDIR OUT                 # a checkpoint of whole parameters
"""

import argparse
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llmstack import errors, sharding
from llmstack.checkpoint import Checkpoints
from llmstack.errors import BadInput
from llmstack.interop import peft
from llmstack.model import describe
from llmstack.tasks import start


class Parameters(NamedTuple):
  params: Any


def write(workdir, params, meta):
  """Saves parameters as step 0 of an empty workdir."""
  saved = Checkpoints.of(errors.local(workdir, 'workdir'), create=True)
  if saved.latest() is not None:
    raise BadInput(f'{workdir} already holds checkpoint {saved.latest()}: choose an empty workdir')
  saved.save(0, Parameters(jax.tree.map(jnp.asarray, params)), meta | {'data': None})
  saved.close()
  print(f'{workdir}/checkpoints/0')


def of_adapter(workdir):
  """Returns the Trained of an adapter. Raises: BadInput where it is none."""
  model = start.Trained(workdir)
  if 'adapter' not in model.meta:
    raise BadInput(f'{model.where} holds whole parameters, no adapter: give the workdir of a run with lora.rank')
  return model


def export(given):
  model = of_adapter(given.source)
  os.makedirs(errors.local(given.target, 'FOLDER'), exist_ok=True)
  if os.listdir(given.target):
    raise BadInput(f'{given.target} is not empty: choose another folder')
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  adapters = {k: v for k, v in model.own_params(mesh).items() if k != 'value_head'}
  peft.export(adapters, model.lora(), model.cfg, given.target, model.meta['adapter']['base'])
  print(f'{given.target}/adapter_model.safetensors')


def take(given):
  if given.base is None:
    raise BadInput('import needs --base DIR: the workdir of the model that the adapter was trained on')
  base = start.Trained(given.base)
  lora, adapters = peft.load(given.source, base.cfg)
  kept = {k: base.meta[k] for k in ('config', 'tokenizer')} | {'model': describe(base.cfg)}
  write(given.target, adapters, kept | base.adapter_record(lora, ()) | {'kind': 'lm', 'template': base.template})


def merge(given):
  model = of_adapter(given.source)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  write(given.target, model.params(mesh), {k: v for k, v in model.meta.items() if k not in ('adapter', 'tree')})


VERBS = {'export': export, 'import': take, 'merge': merge}


def command(argv):
  parser = argparse.ArgumentParser('llmstack adapter', description='Adapters in and out, and merged.')

  def refuse(message):
    raise BadInput(f'{message}: llmstack adapter export|import|merge SOURCE TARGET [--base DIR]')

  parser.error = refuse
  parser.add_argument('what', choices=VERBS)
  parser.add_argument('source')
  parser.add_argument('target')
  parser.add_argument('--base', help='of import: workdir of the base model')
  given = parser.parse_args(argv)
  VERBS[given.what](given)
