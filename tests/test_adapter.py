"""`llmstack adapter`: an adapter goes out and comes back, is merged into its base, and stays with it."""

import pathlib

import jax
import numpy as np
import pytest
from helpers import batch, close, model, weights
from ml_collections import ConfigDict
from test_lora import LORA, adapted, logits

from llmstack import sharding
from llmstack.data import tokenizer
from llmstack.errors import BadInput
from llmstack.model import combine, parameters, value_head
from llmstack.tasks import adapter, start

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'peft_tiny'


@pytest.fixture(scope='module')
def cfg():
  return model('llama_tiny', layers=2, vocab=290)


@pytest.fixture(scope='module')
def kept(cfg, tmp_path_factory):
  """A folder with workdirs: a base, adapters of both kinds, and what was exported."""
  folder = tmp_path_factory.mktemp('adapter')
  words = tokenizer.Tokenizer(
    tokenizer.train(['the cat sat on the mat and the dog on the log'] * 9, kind='bpe', vocab=290)
  )
  meta = start.record(cfg, ConfigDict(), words)
  start.save_parameters(str(folder / 'base'), weights(cfg), meta)
  told = meta | start.Trained(str(folder / 'base')).adapter_record(LORA, ()) | {'template': 'llmstack'}
  start.save_parameters(str(folder / 'lora'), adapted(cfg), told)
  head = {'value_head': jax.tree.map(lambda x: x + 2, value_head(cfg))}
  start.save_parameters(str(folder / 'reward'), adapted(cfg) | head, told | {'kind': 'reward'})
  verb(folder, 'export', 'lora', 'peft')
  return folder


def verb(folder, what, source, target, *more):
  adapter.command([what, str(folder / source), str(folder / target), *more])


def params(folder, name):
  return start.Trained(str(folder / name)).params(sharding.make_mesh(devices=jax.devices()[:1]))


def own(folder, name):
  return start.Trained(str(folder / name)).own_params(sharding.make_mesh(devices=jax.devices()[:1]))


def test_what_goes_out_comes_back(kept, cfg, tmp_path):
  """A leaf is transposed, the scale is lost, or the base that an adapter belongs to is forgotten on the way."""
  verb(kept, 'import', 'peft', tmp_path / 'back', '--base', str(kept / 'base'), '--chat', 'llmstack')
  jax.tree.map(np.testing.assert_array_equal, own(kept, tmp_path / 'back'), adapted(cfg))
  was, now = (start.Trained(str(kept / name)) for name in ('lora', tmp_path / 'back'))
  assert now.lora() == was.lora() == LORA and now.meta['adapter'] == was.meta['adapter']
  assert now.template == was.template == 'llmstack'
  verb(kept, 'export', tmp_path / 'back', tmp_path / 'again')
  for name in ('adapter_model.safetensors', 'adapter_config.json'):
    assert (tmp_path / 'again' / name).read_bytes() == (kept / 'peft' / name).read_bytes()


def test_merged_is_the_adapter_on(kept, cfg, tmp_path):
  """The base or another scale is written, what is merged still needs its base, or a reward model loses its head."""
  verb(kept, 'merge', 'lora', tmp_path / 'whole')
  whole, b = start.Trained(str(tmp_path / 'whole')), batch(2, 8)
  assert 'adapter' not in whole.meta and whole.meta['data'] is None
  assert whole.template == 'llmstack' and whole.cfg == cfg and whole.trained() == parameters(cfg)[0]
  on = logits(cfg, combine(weights(cfg), adapted(cfg), LORA), b)
  close(logits(cfg, params(kept, tmp_path / 'whole'), b), on, 1e-5)
  assert np.abs(on - logits(cfg, weights(cfg), b)).max() > 0.1
  verb(kept, 'merge', 'reward', tmp_path / 'judge')
  assert start.Trained(str(tmp_path / 'judge')).kind == 'reward'
  np.testing.assert_array_equal(own(kept, tmp_path / 'judge')['value_head']['w'], 2)


def files(folder):
  return {x: x.read_bytes() for x in folder.rglob('*') if x.is_file() and x.name != 'WRITER'}


def test_what_cannot_be_moved_is_refused(kept, tmp_path):
  """A folder is taken for what it is not, or written over: a sentence, and nothing has changed."""
  before, new, base = files(kept), tmp_path / 'new', ('--base', str(kept / 'base'))
  for what, source, target, more, says in (
    ('export', 'base', new, (), 'base/checkpoints/0 holds whole parameters, no adapter'),
    ('export', 'reward', new, (), 'is a reward model, whose head .* use merge'),
    ('export', 'lora', 'peft', (), 'peft is not empty'),
    ('export', 'none', new, (), 'there are no checkpoints in .*none/checkpoints'),
    ('merge', 'base', new, (), 'no adapter'),
    ('merge', 'lora', 'base', (), 'base already holds checkpoint 0: choose an empty workdir'),
    ('import', 'peft', new, (), 'import needs --base DIR'),
    ('import', 'peft', new, ('--base', str(kept / 'reward')), 'is a reward model'),
    ('import', 'peft', new, ('--base', str(kept / 'none')), 'there are no checkpoints'),
    ('import', 'lora', new, base, 'does not hold adapter_config.json'),
    ('import', 'peft', new, (*base, '--chat', 'none'), "template is 'none': choose from"),
    ('import', GOLDEN, new, base, r'k_proj.lora_A.weight is \(4, 16\) and this base needs \(4, .*another base'),
    ('import', 'peft', 'lora', base, 'lora already holds checkpoint 0'),
    ('swap', 'lora', new, (), r'invalid choice.*swap.*: llmstack adapter export\|import\|merge SOURCE TARGET'),
  ):
    with pytest.raises(BadInput, match=says):
      verb(kept, what, source, target, *more)
  assert files(kept) == before and not new.exists()
