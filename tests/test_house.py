"""The house rules that a machine can check: who imports whom, who reads which key, and that every config runs."""

import ast
import pathlib
import re

import pytest
from ml_collections import ConfigDict

from configs import sizes
from llmstack import sharding
from llmstack.errors import BadInput
from llmstack.main import TASKS, load
from llmstack.model import ModelConfig, parameters

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / 'llmstack').rglob('*.py'))
CONFIGS = [f'configs/pretrain.py:{s}' for s in ('tiny', 'world', 'books', 'prepared')]
CONFIGS += [f'configs/{n}.py' for n in ('aot', 'convert', 'recall', 'sample', 'shakespeare', 'synthesize', 'world')]
CONFIGS += [f'configs/prepare.py:{s}' for s in ('world', 'shared', 'raw')]
CONFIGS += [f'configs/classify.py:{s}' for s in ('quality', 'toxic', 'spam')]
CONFIGS += [f'configs/{n}.py:{s}' for n in ('sft', 'reward') for s in ('world', 'shared')]
CONFIGS += [f'configs/sft.py:{s}' for s in ('world-lora', 'world-skills', 'world-revised')]
CONFIGS += [
  f'configs/prefer.py:{s}' for s in ('world', 'shared', 'world-cpo', 'world-simpo', 'world-orpo', 'world-kto')
]
CONFIGS += [f'configs/distill.py:{s}' for s in ('world', 'on_policy')]
CONFIGS += [f'configs/rl.py:{s}' for s in ('world-ppo', 'world-grpo', 'math-dr_grpo', 'world-online_dpo')]
CONFIGS += [f'configs/{n}.py' for n in ('assistant', 'constitution', 'evaluate')]
CONFIGS += [f'configs/judge.py:{s}' for s in ('world', 'world-constitution', 'hh')]

# A room may import the rooms to its right; everybody may import errors and shapes.
ALLOWED = {
  'main': 'runtime tasks',
  'tasks': 'tasks align infer model losses data interop '
  'prepare checkpoint lease loop memory metrics optim plan report rewards runtime serve sharding state step',
  'infer': 'infer model sharding', 'interop': 'interop model', 'rewards': 'rewards', 'serve': 'serve data',
  'model': 'model sharding',
  'losses': 'losses',
  'align': 'align',
  'data': 'data', 'prepare': 'prepare data',
  'checkpoint': 'lease sharding', 'loop': 'metrics runtime', 'step': 'state', 'state': 'sharding', 'optim': 'sharding',
  'report': 'report checkpoint lease', 'lease': '', 'memory': '', 'plan': '', 'metrics': '', 'runtime': '',
  'sharding': '', 'shapes': '', 'errors': '', '__init__': '',
}  # fmt: skip
# A third-party library that churns is imported in one room.
OWNERS = {
  'flax': ['model'], 'orbax': ['checkpoint'], 'grain': ['data'], 'sentencepiece': ['data'], 'array_record': ['data'],
  'tensorboardX': ['metrics'], 'matplotlib': ['metrics'], 'optax': ['optim', 'step'], 'pyarrow': ['data', 'prepare'],
  'daft': ['prepare'], 'resiliparse': ['prepare'], 'fastwarc': ['prepare'], 'ftfy': ['prepare'],
  'tokenizers': ['data'], 'math_verify': ['rewards'], 'rapidfuzz': ['prepare'], 'jinja2': ['data'],
  'ml_collections': ['main', 'tasks'], 'absl': ['main'],
}  # fmt: skip


def room(path):
  return path.relative_to(ROOT / 'llmstack').parts[0].removesuffix('.py')


def imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (a.name for a in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      yield from ([f'{node.module}.{a.name}' for a in node.names] if node.module == 'llmstack' else [node.module])


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
  """losses/ learns about the model, or flax leaks out of model/, one convenient import at a time."""
  here = room(path)
  for name in imports(path):
    first, *rest = name.split('.')
    if first == 'llmstack' and rest:
      assert rest[0] in ['errors', 'shapes', *ALLOWED[here].split()], f'{here} imports {name}'
    assert here in OWNERS.get(first, [here]), f'{here} imports {first}'


def test_nothing_unsafe_and_nothing_hidden():
  """A pickle is loaded, a config evaluates code, or an error is swallowed."""
  for path in [*FILES, *(ROOT / 'configs').glob('*.py')]:
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.ExceptHandler):
        assert node.type is not None and ast.unparse(node.type) not in ('Exception', 'BaseException'), path
      if isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        assert name not in ('eval', 'exec', 'torch.load') and 'pickle' not in name and 'yaml' not in name, path
        assert not (name.startswith(('config', 'c.')) and name.endswith('.get')), f'{path}: a default in a reader'


def leaves(config, prefix=''):
  for key, value in config.items():
    if isinstance(value, ConfigDict) and key not in ('sources', 'classifiers', 'rules', 'terms', 'models', 'rewards'):
      yield from leaves(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value


@pytest.mark.parametrize('path', CONFIGS)
def test_every_key_is_read(path):
  """A knob that nobody reads: the experiment in the file is not the one that runs."""
  config = load(str(ROOT / path))
  assert config.task in TASKS and config.is_locked
  text = '\n'.join(file.read_text() for file in (ROOT / 'llmstack').rglob('*.py'))
  fields = {'model': vars(ModelConfig)['__dataclass_fields__'], 'mesh': sharding.MESH_AXES}
  for key, value in leaves(config):
    section, _, leaf = key.rpartition('.')
    # `config.a.b`, or through the short name that a task gives a section.
    short = {'tokenizer': 'c', 'optim': 'o', 'mix': 'c', 'shards': 'c', 'clean': 'c', 'dedup': 'd', 'features': 'f'}
    short |= {'train': 't'} if config.task == 'classify' else {}
    short |= {
      'teacher': 't',
      'objective': 'o',
      'reference': 'r',
      'lora': 'c',
      'data': 'c',
      'eval': 'c',
      'rollout': 'r',
      'kl': 'kl',
      'critic': 'c',
      'judge': 'c',
      'least': 'least',
    }
    spelled = rf'config\.{re.escape(key)}\b'
    if section in short:
      spelled += rf'|\b{short[section]}\.{leaf}\b'
    spelled += rf"|'{leaf}'" if section == 'judge' else ''  # taken by their names, for an endpoint
    by_name = rf"'{re.escape(key)}'" if config.task != 'pretrain' else 'never'
    if config.task == 'prefer' and section == 'objective':  # arguments of the losses
      spelled += rf'|[ (]{leaf}[,=)]'
    assert (
      leaf in fields.get(section, ())
      or key.endswith(('sources', '.terms'))
      or key in ('models', 'rewards')
      or f'**config.{section})' in text  # arguments of a function, which knows them all
      or re.search(f'{spelled}|{by_name}', text)
    ), key
    assert not callable(value) and value != -1, f'{path}: {key} = {value!r}'


@pytest.mark.parametrize('path', ['configs/pretrain.py:world', 'configs/pretrain.py:books', 'configs/shakespeare.py'])
def test_every_training_config_takes_two_steps(path, tmp_path):
  """A config rots until somebody needs it: one layer of its model, its optimiser and samples, on a small text."""
  from llmstack import metrics
  from llmstack.tasks.pretrain import run

  config = load(str(ROOT / path))
  (tmp_path / 'text.txt').write_text(''.join(f'line {i} of a small text, {i * i} words.\n' for i in range(3000)))
  for source in config.data.sources.values():
    source.update(files=(str(tmp_path / 'text.txt'),), split_on='\n', holdout=0.1, holdout_by='document')
  config.update(
    {
      'data': {'folder': str(tmp_path), 'batch': 8}, 'train': {'steps': 2, 'log_every': 1, 'tensorboard': False},
      'optim': {'warmup': 1}, 'eval': {'rows': 1}, 'model': {'layers': 1}, 'tokenizer': {'vocab': 300},
    }
  )  # fmt: skip
  run(config, str(tmp_path / 'run'))
  losses = [r['nll'] for r in metrics.read(tmp_path / 'run') if r['kind'] == 'train']
  assert len(losses) == 2 and all(2 < x < 7 for x in losses)


def test_the_table_of_sizes_spells_the_real_models():
  """A shape is mistyped: parameters of the published models, with their vocabularies."""
  for name, vocab, published in [
    ('gpt2_124m', 50257, 124_439_808), ('llama_1b', 128256, 1_235_814_400), ('llama_8b', 128256, 8_030_261_248),
    ('gemma2_2b', 256000, 2_614_341_888),
  ]:  # fmt: skip
    assert parameters(ModelConfig(**sizes.model(name).to_dict() | {'vocab': vocab}))[0] == published, name
  with pytest.raises(BadInput, match="no model 'lama'"):
    sizes.model('lama')
