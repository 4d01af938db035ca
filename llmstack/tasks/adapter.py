"""`llmstack adapter`: adapters of LoRA to and from PEFT's format, and merged into their base.

llmstack adapter export WORKDIR FOLDER             # adapter_model.safetensors and adapter_config.json
llmstack adapter import FOLDER WORKDIR --base DIR [--chat llmstack]  # an adapter of DIR's newest checkpoint
llmstack adapter merge WORKDIR OUT                 # a checkpoint of whole parameters
"""

import argparse
import os

import jax

from llmstack import errors, sharding
from llmstack.data import chat
from llmstack.errors import BadInput
from llmstack.interop import peft
from llmstack.model import describe
from llmstack.tasks import start


def of_adapter(workdir):
  """Returns the Trained of an adapter. Raises: BadInput where it is none."""
  model = start.Trained(workdir)
  if 'adapter' not in model.meta:
    raise BadInput(f'{model.where} holds whole parameters, no adapter: give the workdir of a run with lora.rank')
  return model


def export(given):
  model = of_adapter(given.source)
  if model.kind == 'reward':
    raise BadInput(f'{model.where} is a reward model, whose head such a file cannot hold: use merge, which keeps it')
  os.makedirs(errors.local(given.target, 'FOLDER'), exist_ok=True)
  if os.listdir(given.target):
    raise BadInput(f'{given.target} is not empty: choose another folder')
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  peft.export(model.own_params(mesh), model.lora(), model.cfg, given.target, model.meta['adapter']['base'])
  print(f'{given.target}/adapter_model.safetensors')


def take(given):
  if given.base is None:
    raise BadInput('import needs --base DIR: the workdir of the model that the adapter was trained on')
  base = start.Trained(given.base)
  if base.kind == 'reward':
    raise BadInput(f'{base.where} is a reward model, and such adapters are of language models: give the one it was')
  lora, adapters = peft.load(given.source, base.cfg)
  meta = {k: base.meta[k] for k in ('config', 'tokenizer')} | {'model': describe(base.cfg), 'kind': 'lm'}
  name = given.chat or base.template
  if name is None:
    start.say(f'{given.source} says no chat template, nor does the base: give --chat if it was tuned on conversations')
  else:
    chat.template(name, base.tokenizer)
  meta |= base.adapter_record(lora, ()) | {'template': name}
  print(start.save_parameters(given.target, adapters, meta))


def merge(given):
  model = of_adapter(given.source)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  meta = {k: v for k, v in model.meta.items() if k not in ('adapter', 'tree')}
  print(start.save_parameters(given.target, model.params(mesh), meta))


VERBS = {'export': export, 'import': take, 'merge': merge}


def command(argv):
  parser = argparse.ArgumentParser('llmstack adapter', description='Adapters in and out, and merged.')

  def refuse(message):
    raise BadInput(f'{message}: llmstack adapter export|import|merge SOURCE TARGET [--base DIR] [--chat llmstack]')

  parser.error = refuse
  parser.add_argument('what', choices=VERBS)
  parser.add_argument('source')
  parser.add_argument('target')
  parser.add_argument('--base', help='of import: workdir of the base model')
  parser.add_argument('--chat', help="of import: chat template that the adapter was tuned with; by default the base's")
  given = parser.parse_args(argv)
  VERBS[given.what](given)
