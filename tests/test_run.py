"""Whole runs of the command line in this process: learning, resuming, and each bad input with its sentence."""

import gzip
import json

import numpy as np
import pytest

from llmstack import metrics
from llmstack.checkpoint import Checkpoints
from llmstack.data import sources, tokenizer
from llmstack.main import cli
from llmstack.tasks.train import checksum

TEXT = 'the cat sat on the mat and the dog sat on the log; ' * 400


class Run:
  """A command line on one small text, in its own folder."""

  def __init__(self, folder, capsys=None):
    self.folder, self.capsys = folder, capsys
    self.text = folder / 'text.txt'
    if not self.text.exists():
      self.text.write_text(TEXT)

  def __call__(self, workdir='run', text=None, config='configs/pretrain.py:tiny', **settings):
    """Returns the exit status."""
    settings = {
      'data.folder': self.folder / 'rows', 'data.sources.readme.files': repr((str(text or self.text),)),
      'train.steps': 4, 'optim.warmup': 1, 'train.tensorboard': False, 'eval.every': 100, 'checkpoint.every': 2,
      'model.layers': 1, 'tokenizer.vocab': 290, 'eval.rows': 8, 'eval.prompts': "('the cat',)",
    } | settings if 'pretrain' in config else settings  # fmt: skip
    argv = ['llmstack', '--config', config, '--workdir', str(self.folder / workdir)]
    try:
      cli(argv + [f'--config.{k}={v}' for k, v in settings.items()])
    except SystemExit as e:
      return e.code
    return 0

  def refused(self, *words, **kwargs):
    """Asserts that the run exits with 78 and one message that holds each of the words."""
    self.capsys.readouterr()
    assert self(**kwargs) == 78
    message = self.capsys.readouterr().err.split('error: ')[-1]
    for word in words:
      assert word in message, message
    assert 'Traceback' not in message


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp('trained')
  run = Run(folder)
  assert run() == 0
  return folder


@pytest.fixture
def run(tmp_path, capsys):
  return Run(tmp_path, capsys)


@pytest.fixture
def again(trained, capsys):
  return Run(trained, capsys)


def test_a_run_learns_and_says_so(run):
  """The optimiser is not wired, targets are not shifted, or metrics.jsonl misses what the report needs."""
  settings = {'train.steps': 100, 'train.log_every': 5, 'train.tensorboard': True, 'data.packing': 'concat'}
  assert run(**settings, **{'model.layers': 2, 'checkpoint.every': 50, 'train.loss_chunk': 16, 'optim.lr': 0.01}) == 0
  rows = metrics.read(run.folder / 'run')
  train = [r for r in rows if r['kind'] == 'train']
  assert [r['step'] for r in train] == [1, *range(5, 101, 5)]
  assert train[-1]['nll'] < 0.2 < 4 < train[0]['nll']
  wanted = {
    'lr',
    'loss',
    'nll',
    'accuracy',
    'grad_norm',
    'param_norm',
    'update_norm',
    'tokens_per_s',
    'input_share',
    'mfu',
  }
  assert wanted <= set(train[-1]) and 0 <= train[-1]['input_share'] < 1 and 'first_step_s' in train[0]
  [held_out] = [r for r in rows if r['kind'] == 'eval']
  [sample] = [r for r in rows if r['kind'] == 'sample']
  assert held_out['nll'] < 0.3 and sample['text'].startswith((' sat on the', ' and the dog'))
  assert list((run.folder / 'run/tensorboard').iterdir()) and metrics.plot(run.folder / 'run').endswith('curves.png')
  saved = Checkpoints(str(run.folder / 'run/checkpoints'))
  assert saved.latest() == 100 and saved.meta()[1]['data']['step'] == 100


def test_stopped_and_resumed_is_one_run(again, trained):
  """A resumed run logs steps twice, starts over, or reads other batches."""
  assert again('whole', **{'train.steps': 6, 'train.log_every': 1}) == 0
  assert again('parts', **{'train.steps': 4, 'train.log_every': 1, 'optim.schedule': 'constant'}) == 0
  assert again('parts', **{'train.steps': 6, 'train.log_every': 1, 'optim.schedule': 'constant'}) == 0
  crc = lambda name: [(r['step'], r['crc']) for r in metrics.read(trained / name) if r['kind'] == 'train']  # noqa: E731
  assert crc('parts') == crc('whole') and len(crc('whole')) == 6


def test_resume_from_and_init_from(again, trained):
  """init_from continues the step count, or resume_from forgets it."""
  origin = str(trained / 'run')
  assert again('r', **{'checkpoint.resume_from': origin, 'train.steps': 6}) == 0
  assert [r['step'] for r in metrics.read(trained / 'r') if r['kind'] == 'train'] == [5, 6]
  assert again('i', **{'checkpoint.init_from': origin, 'train.steps': 2, 'seed': 5, 'optim.lr': 0.0}) == 0
  first, start = (metrics.read(trained / name) for name in ('i', 'run'))
  assert first[0]['step'] == 1 and first[0]['nll'] < start[0]['nll'] - 0.5


def test_divergence_stops_with_the_batch_and_an_untouched_checkpoint(run, capsys):
  """NaN is trained on to the end, or saved over the last good checkpoint; or another batch is named than the last."""
  settings = {'optim.lr': 1e38, 'train.steps': 20, 'checkpoint.every': 1, 'optim.warmup': 0, 'train.bad_steps': 5}
  assert run(**settings) == 1
  message = capsys.readouterr().err.split('stopped: ')[-1]
  assert 'not finite in 5 updates in a row, the last at step 5' in message and 'lower optim.lr' in message
  [dump] = (run.folder / 'run').glob('nonfinite-*.npz')
  batch = np.load(dump)
  assert set(batch) == {'tokens', 'targets', 'segments', 'positions', 'mask'}
  assert f'crc {int(checksum(batch)):08x}' in message
  assert Checkpoints(str(run.folder / 'run/checkpoints')).latest() < int(dump.name.split('-')[1])
  rows = [r for r in metrics.read(run.folder / 'run') if r['kind'] == 'train']
  assert [r['skipped'] for r in rows] == [1, 2, 3, 4] and len({r['param_norm'] for r in rows}) == 1


@pytest.mark.parametrize(
  'words, settings',
  [
    (["the config has no setting 'lrr'", "did you mean 'lr'?"], {'optim.lrr': 1}),
    (["no setting 'modl'", "did you mean 'model'?"], {'modl.width': 1}),
    (['--config.train.steps=3.5', 'invalid literal for int'], {'train.steps': 3.5}),
    (['B = 6', 'mesh data x fsdp = 8', 'change data.batch or config.mesh'], {'data.batch': 6}),
    (['microbatches = 3'], {'train.microbatches': 3}),
    (['B = 2', 'not divisible by mesh'], {'train.microbatches': 4}),
    (['K = 2', 'not divisible by mesh tensor = 8', 'model.kv_heads'], {'mesh.tensor': 8, 'model.vocab': 296}),
    (['needs 6 devices and there are 8'], {'mesh.fsdp': 3, 'mesh.data': 2}),
    (['data.length = 128 is longer than model.length = 64'], {'data.length': 128}),
    (['model.vocab = 100 is smaller than the tokenizer'], {'model.vocab': 100}),
    (['loss_chunk = 5 does not divide'], {'train.loss_chunk': 5}),
    (["optim.name = 'adam'", 'adamw, lion, muon, adafactor'], {'optim.name': 'adam'}),
    (['optim.warmup = 9', 'train.steps = 4'], {'optim.warmup': 9}),
    (['eval.new_tokens = 63', 'model.length = 64'], {'eval.new_tokens': 63}),
    (['eval.rows = 0 must be at least 1'], {'eval.rows': 0}),
    (['checkpoint.keep = 0 must be at least 1'], {'checkpoint.keep': 0}),
    (['train.microbatches = 0 must be'], {'train.microbatches': 0}),
    (['model.dropout = 1.0'], {'model.dropout': 1.0}),
    (['is a URL'], {'data.folder': 'gs://bucket/rows'}),
    (['ftpx://nowhere cannot be opened'], {'tokenizer.path': 'ftpx://nowhere'}),
    (['Is a directory', 'give another path'], {'tokenizer.path': '.'}),
    (['vocab=4000 is too large'], {'tokenizer.vocab': 4000}),
    (['nowhere.model does not exist'], {'tokenizer.path': 'nowhere.model'}),
    (['no checkpoints in', 'nowhere'], {'checkpoint.init_from': 'nowhere'}),
    (["config.task = 'fly'"], {'task': 'fly'}),
  ],
)  # fmt: skip
def test_a_wrong_setting_is_refused_with_its_fix(run, words, settings):
  """A typo trains another experiment, or ends in a traceback about HLO."""
  run.refused(*words, **settings)


def test_command_lines_that_miss_something_are_refused(run, capsys):
  """A missing flag prints absl's help, or starts anyway."""
  for argv, word in [
    (['--config', 'configs/pretrain.py:tiny'], 'two flags are needed'),
    (['--config', 'configs/nothing.py', '--workdir', 'x'], 'configs/nothing.py is not a config file'),
    (['--config', 'README.md', '--workdir', 'x'], 'README.md is not a config file'),
    (['--config', 'configs/sizes.py', '--workdir', 'x'], 'has no get_config()'),
    (['--config', 'configs/world.py', '--workdir', 'README.md'], 'README.md'),
    (
      ['--config', 'configs/pretrain.py:huge', '--workdir', 'x'],
      "no size 'huge': choose tiny, world, books or prepared",
    ),
    (['--config', 'configs/sample.py:tiny', '--workdir', 'x'], 'has no sizes'),
    (['--config', 'configs/sample.py', '--workdir', 'x', 'extra'], 'extra is not a flag'),
    (['--config', 'configs/sample.py', '--workdir', 'x', '--wrkdir=y'], "'wrkdir'"),
  ]:
    with pytest.raises(SystemExit) as e:
      cli(['llmstack', *argv])
    assert e.value.code == 78 and word in capsys.readouterr().err


@pytest.mark.parametrize(
  'name, content, words',
  [
    ('e.txt', b'', ['e.txt', 'empty']),
    ('l.txt', b'good \xff bad', ['l.txt', 'UTF-8']),
    ('t.jsonl.gz', gzip.compress(b'{"text": "a"}\n' * 9000)[:-20], ['t.jsonl.gz', 'ends in the middle']),
    ('j.jsonl', b'{"text": "a"}\n{"text": \n', ['j.jsonl:2', 'not JSON']),
    ('m.jsonl', b'{"text": "a"}\n{"body": "b"}\n', ['m.jsonl:2', 'text', 'body']),
    ('x.doc', b'hello', ['x.doc', 'unknown suffix']),
  ],
)  # fmt: skip
def test_a_bad_file_is_refused_with_its_place(run, name, content, words):
  """A truncated or mislabelled file is trained on as far as it goes."""
  path = run.folder / name
  path.write_bytes(content)
  run.refused(*words, text=path)
  run.refused('missing.txt', text=run.folder / 'missing.txt')


def test_bad_lines_can_be_skipped_and_are_counted(run, capsys):
  """on_error=skip skips in silence."""
  path = run.folder / 'mixed.jsonl'
  path.write_text(''.join(json.dumps({'text': TEXT[:700]}) + '\n' for _ in range(9)) + '{"text": \n{"body": "b"}\n')
  settings = {'data.on_error': 'skip', 'train.steps': 1, 'optim.warmup': 0, 'tokenizer.vocab': 280}
  assert run(text=path, **settings, **{'data.sources.readme.holdout': 0.2}) == 0
  manifests = [json.loads(p.read_text()) for p in run.folder.glob('rows/readme-train-*/manifest.json')]
  assert [sum(m['skipped'].values()) for m in manifests] == [2]
  assert 'skipped 1 x' in capsys.readouterr().err


def test_another_model_data_or_tokenizer_is_not_resumed(again, trained, tmp_path):
  """A checkpoint is continued on other data, or with weights that mean something else."""
  for key, was, now in [('width', 32, 64), ('layers', 1, 2), ('vocab', 290, 320), ('tied', True, False)]:
    again.refused('holds another model', f'model.{key}: {was} -> {now}', **{f'model.{key}': now, 'train.steps': 6})
  other = tmp_path / 'other.txt'
  other.write_text(TEXT.replace('cat', 'cow'))
  prints = [json.loads(p.read_text())['fingerprint'] for p in trained.glob('rows/readme-train-*/manifest.json')]
  again.refused('the data is not what the checkpoint was trained on', prints[0], 'now', text=other)
  other.write_text(TEXT + TEXT[:1000])
  again.refused('fingerprints readme: checkpoint', 'now', text=other)  # more rows
  both = {'data.sources.readme.files': repr((str(trained / 'text.txt'), str(other)))}
  again.refused('fingerprints readme: checkpoint', 'now', **both)
  again.refused('batch', 'checkpoint 8, now 16', **{'data.batch': 16, 'train.steps': 6})
  again.refused('seed', 'checkpoint 0, now 1', **{'seed': 1, 'train.steps': 6})
  path = tmp_path / 'other.model'
  path.write_bytes(tokenizer.train([TEXT.upper()], kind='bpe', vocab=288))
  again.refused('was trained with tokenizer', 'of 290 entries', 'of 288', **{'tokenizer.path': path})
  again.refused('another tokenizer', 'tokenizer.vocab: 290 -> 300', **{'tokenizer.vocab': 300})
  assert Checkpoints(str(trained / 'run/checkpoints')).latest() == 4, 'something was lost'


def test_sampling_from_a_run(again, trained, capsys, monkeypatch):
  """The prompt is repeated or lost, a long prompt wraps, or one bad line ends the conversation."""
  sample = dict(config='configs/sample.py', new_tokens=8, temperature=0.0)
  assert again(**sample, prompt='the cat', samples=2) == 0
  lines = capsys.readouterr().out.split('\n\n')
  assert lines[0] == lines[1] and lines[0].startswith('the cat')
  assert again(config='configs/sample.py') == 0  # with its own defaults, on a short model
  assert len(capsys.readouterr().out) > 60
  said = lines[0].removeprefix('the cat')
  stop = said[3:6]
  assert again(**sample, prompt='the cat', stop=repr((stop,))) == 0
  assert capsys.readouterr().out == 'the cat' + said[: said.index(stop)] + '\n'
  again.refused('prompt 0 has', 'tokens and the cache has room for 56', **sample, prompt='the dog ' * 40)
  again.refused('there are no checkpoints', **sample, workdir='nowhere')
  again.refused('has no checkpoint 3: it has [2, 4]', **sample, step=3)
  again.refused('top_p = 7', **sample, top_p=7.0)
  questions = iter(['the dog ' * 40 + '\n', 'the cat\n', '\n'])
  monkeypatch.setattr(
    'sys.stdin', type('Lines', (), {'readline': lambda _: next(questions), 'isatty': lambda _: False})()
  )
  assert again(**sample, interactive=True) == 0
  out, err = capsys.readouterr()
  assert 'error: prompt 0 has' in err and out == lines[0].removeprefix('the cat') + '\n'


def test_a_converted_checkpoint_starts_a_run_and_is_not_resumed(again, trained, tmp_path):
  """init_from trips over a checkpoint without data position, or resume_from counts its steps."""
  import test_interop

  from llmstack.data.tokenizer import Tokenizer

  proto = tokenizer.train([TEXT], kind='bpe', vocab=280)
  (trained / 'c.model').write_bytes(proto)
  vocab = Tokenizer(proto).vocab
  test_interop.write(trained / 'c.bin', vocab=vocab)
  files = dict(weights=trained / 'c.bin', tokenizer=trained / 'c.model')
  assert again('converted', config='configs/convert.py', **files) == 0
  again.refused('already holds checkpoint 0', workdir='converted', config='configs/convert.py', **files)
  shape = dict(width=12, ff=20, layers=2, heads=3, kv_heads=1, head_width=4, tied=True)
  settings = {f'model.{k}': v for k, v in shape.items()} | {'train.steps': 2}
  assert again('tuned', **settings, **{'checkpoint.init_from': trained / 'converted'}) == 0
  assert metrics.read(trained / 'tuned')[-1]['step'] == 2
  again.refused('holds parameters only', workdir='t2', **settings, **{'checkpoint.resume_from': trained / 'converted'})


def test_synthetic_text_is_verified_and_marked(again, capsys):
  """What a model wrote is trained on unchecked or unmarked, or a run that was broken off writes it twice."""
  prompts = again.folder / 'prompts.txt'
  prompts.write_text('the cat\nthe dog sat\n')
  settings = {
    'model': again.folder / 'run',
    'prompts': '()',
    'files': repr((str(prompts),)),
    'new_tokens': 8,
    'batch': 3,
    'samples': 2,
  }
  settings |= {'verifier': 'ends', 'least': 0.0, 'finished': False}
  synthesize = lambda **more: again(workdir='synthetic', config='configs/synthesize.py', **settings | more)  # noqa: E731
  assert synthesize() == 0 and '4 of 4 completions accepted' in capsys.readouterr().out
  parts = sorted((again.folder / 'synthetic').glob('part-*.zst'))
  rows = [r for p in parts for _, r in sources.objects(sources.Source((str(p),)))]
  assert [r['seed'] for r in rows] == [0, 1, 0, 1] and all(r['synthetic'] and r['step'] == 4 for r in rows)
  assert all(r['text'].startswith(r['prompt']) and len(r['text']) > len(r['prompt']) for r in rows)
  before = [p.stat().st_mtime_ns for p in parts]
  assert synthesize() == 0 and [p.stat().st_mtime_ns for p in parts] == before
  again.refused(
    'was made with another least', workdir='synthetic', config='configs/synthesize.py', **settings | {'least': 0.5}
  )
  assert (
    again(workdir='none', config='configs/synthesize.py', **settings | {'verifier': 'equations', 'least': 1.0}) == 0
  )
  assert '0 of 4 completions accepted' in capsys.readouterr().out
