"""Tuning end to end, in this process: SFT, reward model, the preference objectives and distillation on a tiny base."""

import dataclasses
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmstack import metrics, sharding
from llmstack import step as steps
from llmstack.checkpoint import Checkpoints
from llmstack.data import batch as batches
from llmstack.data import pipeline
from llmstack.main import cli, load
from llmstack.model import unembed
from llmstack.tasks import distill, prefer, reward, sft, start, tune
from tests.helpers import close

TEXT = 'the cat sat on the mat and the dog sat on the log; ' * 200
WORDS = 'cat dog mat log sat the and on'.split()


def write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def say(i, n):
  return ' '.join(WORDS[(i * 7 + k * (i + 3)) % len(WORDS)] for k in range(n))


class Run:
  """A command line in one folder, with a tiny base model in it."""

  def __init__(self, folder, capsys=None):
    self.folder, self.capsys = folder, capsys

  def __call__(self, config, workdir, **settings):
    """Returns the exit status."""
    f = self.folder
    tiny = {
      'data.folder': f / 'rows', 'data.length': 64, 'data.batch': 8, 'train.steps': 3, 'train.log_every': 1,
      'train.tensorboard': False, 'optim.warmup': 1, 'eval.every': 100, 'eval.rows': 4, 'eval.new_tokens': 4,
      'checkpoint.every': 100, 'checkpoint.init_from': f / 'base',
    }  # fmt: skip
    argv = ['llmstack', '--config', config, '--workdir', str(f / workdir)]
    try:
      cli(argv + [f'--config.{k}={v}' for k, v in (tiny | settings).items() if v is not None])
    except SystemExit as e:
      return e.code
    return 0

  def base(self):
    (self.folder / 'text.txt').write_text(TEXT)
    return self(
      'configs/pretrain.py:tiny', 'base',
      **{
        'data.sources.readme.files': repr((str(self.folder / 'text.txt'),)), 'tokenizer.vocab': 290, 'optim.lr': 1e-2,
        'eval.prompts': "('the cat',)", 'checkpoint.init_from': None, 'data.length': 64,
      },
    )  # fmt: skip

  def chats(self, workdir='sft', **settings):
    files = self.files('chats', 'chats.jsonl') | self.files('documents', 'text.jsonl')
    return self('configs/sft.py:world', workdir, **files | self.asks() | settings)

  def pairs(self, workdir='dpo', kind='', **settings):
    files = self.files('rated' if kind == '-kto' else 'pairs', 'pairs.jsonl')
    plain = {} if kind else {'objective.terms.sft': 0.0}  # DPO alone, which begins at ln 2
    plain |= {} if kind in ('-kto', '-orpo') else {'data.prompt': 20}
    return self(f'configs/prefer.py:world{kind}', workdir, **files | self.asks() | plain | settings)

  def reward(self, workdir='reward', **settings):
    files = self.files('pairs', 'pairs.jsonl')
    return self('configs/reward.py:world', workdir, **files | {'data.prompt': 20} | settings)

  def asks(self):
    return {'eval.prompts': "('cat?',)"}

  def files(self, name, file):
    return {f'data.sources.{name}.files': repr((str(self.folder / file),)), f'data.sources.{name}.holdout': 0.2}

  def refused(self, *words, run, **settings):
    """Asserts that the run exits with 78 and one sentence that holds each of the words."""
    self.capsys.readouterr()
    assert run('bad', **settings) == 78
    message = self.capsys.readouterr().err.split('error: ')[-1]
    for word in words:
      assert word in message, message
    assert 'Traceback' not in message

  def logged(self, workdir, kind='train'):
    return [r for r in metrics.read(self.folder / workdir) if r['kind'] == kind]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A base model and files of conversations, pairs and rated answers."""
  path = tmp_path_factory.mktemp('tune')
  chats = [[{'role': 'user', 'content': f'{say(i, 1)} {i}?'}, {'role': 'assistant', 'content': say(i, 1 + i % 4)}]
           for i in range(24)]  # fmt: skip
  write(path / 'chats.jsonl', [{'messages': m} for m in chats])
  pairs = [{'prompt': f'{say(i, 1)} {i}?', 'chosen': say(i, 1 + i % 4), 'rejected': 'no ' + say(i + 1, 2)}
           for i in range(24)]  # fmt: skip
  write(path / 'pairs.jsonl', pairs)
  rated = [{'prompt': p['prompt'], 'completion': p[k], 'label': k == 'chosen'} for p in pairs
           for k in ('chosen', 'rejected')]  # fmt: skip
  write(path / 'rated.jsonl', rated)
  write(path / 'text.jsonl', [{'text': say(i, 6)} for i in range(30)])
  assert Run(path).base() == 0
  return path


@pytest.fixture
def run(folder, capsys):
  return Run(folder, capsys)


def job(run, path, **settings):
  """Returns (config, Tuned, batch of all training rows) of a config, without running it."""
  config = load(path)
  names = ({'data.prompt': 20} if config.data.prompt else {}) | settings
  kind = {'sft': 'chat', 'distill': 'chat', 'reward': 'pairs'}.get(config.task, 'rated' if '-kto' in path else 'pairs')
  file = {'chat': 'chats', 'pairs': 'pairs', 'rated': 'rated'}[kind]
  with config.unlocked():
    if 'documents' in config.data.sources:
      del config.data.sources['documents']
    config.update_from_flattened_dict({
      'data.folder': str(run.folder / 'rows'), 'data.length': 64, 'checkpoint.init_from': str(run.folder / 'base'),
      f'data.sources.{file}.files': (str(run.folder / f'{file}.jsonl'),), f'data.sources.{file}.holdout': 0.0,
    } | names)  # fmt: skip

  class Origin:
    resumes, meta = False, None

    def check_model(self, cfg):
      pass

  tuned = tune.Tuned(config, Origin(), reward=config.task == 'reward')
  rows = [pipeline.Rows(f) for f in tune.folders(config, tuned.template, kind, 'train').values()]
  return config, tuned, batches.make(rows[0].read(range(len(rows[0]))))


def params_of(tuned, noise=0.0, seed=0):
  """Returns (trainable parameters, frozen) of a Tuned, with noise so that policy and reference differ."""
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  params, frozen = tuned.loaded(mesh), tuned.frozen(mesh)
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  leaves = [x + noise * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
  return jax.tree.unflatten(tree, leaves), frozen | {'ref': tuned.base.params(mesh)}


def value_and_grad(loss_fn, params, frozen, batch, microbatches=1, size=None):
  """Returns (loss, gradient) of a step on one device, or laid out as a run does on size = (data, fsdp, tensor)."""
  devices = jax.devices()[: math.prod(size or [1])]
  mesh = sharding.make_mesh(**dict(zip(('data', 'fsdp', 'tensor'), size or ())), devices=devices)
  split = lambda x: jax.device_put(x, sharding.param_shardings(x, mesh)) if isinstance(x, dict) else x  # noqa: E731
  run = lambda *a: steps.accumulate(loss_fn, *a, jax.random.key(0), microbatches)  # noqa: E731
  with jax.set_mesh(mesh):
    placed = sharding.place(batch, mesh, batches.letters)
    loss, _, grads = jax.jit(run)(split(params), {k: split(x) for k, x in frozen.items()}, placed)
  return loss, grads


def even(batch, n):
  """Returns the batch with rows of padding until n divides their number."""
  short = -len(batch['tokens']) % n
  return {k: np.pad(x, ((0, short), *[(0, 0)] * (x.ndim - 1))) for k, x in batch.items()}


OBJECTIVES = ('configs/sft.py:world', 'configs/reward.py:world', 'configs/distill.py:world', *(
  f'configs/prefer.py:world{k}' for k in ('', '-cpo', '-simpo', '-orpo', '-kto')))  # fmt: skip


def loss_of(path, config, tuned):
  if config.task == 'sft':
    return sft.loss(tuned, z_loss=0.0, chunk=None)
  if config.task == 'distill':
    return distill.loss(tuned, tuned.base, config)
  if config.task == 'reward':
    return reward.loss(tuned, margin=False, centering=0.01)
  return prefer.Objective.of(config, tuned).loss


@pytest.mark.parametrize('path', OBJECTIVES)
def test_packed_is_padded_whatever_the_microbatches_and_devices(run, path):
  """Conversations of one row see each other (trl#1230, #3067), or a mean of means weighs rows, microbatches or devices
  (transformers#34191, #37766, trl#3021): packed or one to a row, in parts, over eight devices, it is one loss and one
  gradient."""
  found = []
  for packing, ways in (('padded', ((5, (8, 1, 1)),)), ('best_fit', ((2, (2, 2, 2)), (1, None)))):
    config, tuned, batch = job(run, path, **{'data.packing': packing})
    tuned.cfg = dataclasses.replace(tuned.cfg, scan=True)
    params, frozen = params_of(tuned, noise=0.05)
    frozen |= {'z0': jnp.float32(0.1), 'teacher': frozen['ref']}
    for parts, size in ways:
      rows = even(batch, parts * math.prod(size or (1,)))
      found.append(value_and_grad(loss_of(path, config, tuned), params, frozen, rows, parts, size))
  assert len(batch['tokens']) < 24  # packed at all
  loss, grads = found.pop()
  for other in found:
    close(other[0], loss, 2e-6)
    close(other[1], grads, 2e-5)


def test_the_five_ways_of_packing(run):
  """trl#1230, #3067, #805: rows without a mask between conversations, and a label over the border, are other losses."""
  config, tuned, packed = job(run, 'configs/sft.py:world')
  params, frozen = params_of(tuned, noise=0.05)
  loss_fn = loss_of('', config, tuned)
  right = value_and_grad(loss_fn, params, frozen, packed)[0]
  joined = dict(packed, segments=(packed['segments'] > 0).astype(np.int32))
  joined['positions'] = np.cumsum(joined['segments'], 1) - joined['segments']
  assert abs(value_and_grad(loss_fn, params, frozen, joined)[0] - right) > 1e-4
  border = (packed['segments'] > 0) & (np.roll(packed['segments'], -1, 1) != packed['segments'])
  leaky = dict(packed, mask=np.maximum(packed['mask'], border.astype(np.float32)))
  assert abs(value_and_grad(loss_fn, params, frozen, leaky)[0] - right) > 1e-4
  rows = [{k: v[i : i + 1] for k, v in packed.items()} for i in range(len(packed['tokens']))]
  means = np.mean([value_and_grad(loss_fn, params, frozen, row)[0] for row in rows])
  assert abs(means - right) > 1e-4


def test_the_loss_is_on_what_the_assistant_says(run):
  """pad == eos hides the end of a turn from a mask made from ids (trl#1623, #2059), and the model never stops."""
  _, tuned, batch = job(run, 'configs/sft.py:world')
  learnt = batch['targets'][batch['mask'] > 0]
  ends = np.isin(learnt, tuned.template.stops).sum()
  assert ends == 24  # one end of turn per conversation, each trained on
  text = tuned.tokenizer.decode([i for i in learnt if i not in tuned.template.stops])
  assert '?' not in text and 'cat' in text


@pytest.mark.parametrize('lora', [None, 2])
@pytest.mark.parametrize('terms', [{'sigmoid': 1.0}, {'robust': 1.0}, {'bco_pair': 0.5}])
def test_step_0_is_ln_2(run, terms, lora):
  """Dropout or another mode in the reference (trl#744, PR#5542): the policy is the reference at first, exactly."""
  config, tuned, batch = job(run, 'configs/prefer.py:world', **{'lora.rank': lora})
  with config.unlocked():
    config.objective.terms = terms
  params, frozen = params_of(tuned)
  if lora:
    frozen = {'base': frozen['base']}
  loss = value_and_grad(prefer.Objective.of(config, tuned).loss, params, frozen, batch)[0]
  assert abs(float(loss) - math.log(2)) < 5e-7  # a float32 mean of ln 2; every log-ratio is 0


def test_reward_is_of_the_last_token(run):
  """Pooling at the first pad id, or at an end of turn within the prompt (transformers#35352, trl PR#7318)."""
  config, tuned, batch = job(run, 'configs/reward.py:world', **{'data.packing': 'padded'})
  params, frozen = params_of(tuned, noise=0.05)
  whole, hidden = tuned.hidden(params, frozen, jax.tree.map(jnp.asarray, batch), None)
  got = reward.scores(tuned.cfg, whole, hidden, jnp.asarray(batch['segments']), 1)
  lengths = (batch['segments'] > 0).sum(-1)
  want = np.einsum('bmtd,d->bmt', hidden, params['value_head']['w'])
  want = np.take_along_axis(want, lengths[..., None] - 1, -1)
  np.testing.assert_allclose(got, want, atol=1e-5)
  ends = np.take_along_axis(batch['tokens'], lengths[..., None] - 1, -1)
  assert np.isin(ends, tuned.template.stops).all()  # trl#931: an answer that was not cut off ends in its stop


def test_the_baseline_of_kto_is_of_the_whole_batch(run):
  """z0 of a microbatch or device instead of the batch (trl PR#2153), or of matched pairs (trl#1911)."""
  config, tuned, batch = job(run, 'configs/prefer.py:world-kto', **{'data.packing': 'padded'})
  objective = prefer.Objective.of(config, tuned)
  params, frozen = params_of(tuned, noise=0.1)
  batch, mesh = even(batch, 16), sharding.make_mesh(data=4, fsdp=2)
  baseline = jax.jit(objective.baseline, static_argnums=3)
  found = [baseline(params, frozen, jax.tree.map(jnp.asarray, batch), n) for n in (1, 4)]
  with jax.set_mesh(mesh):
    split = [jax.device_put(x, sharding.param_shardings(x, mesh)) for x in (params, frozen['ref'])]
    found.append(baseline(split[0], {'ref': split[1]}, sharding.place(batch, mesh, batches.letters), 2))
  assert found[0] != 0
  close(found[1:], [found[0]] * 2, 1e-6)
  real = np.asarray(batch['valid'])[:, 0] > 0
  own, other = (np.where(batch['mask'][:, side] > 0, batch['targets'][:, side], 0) for side in (0, 1))
  assert (own != other).any(1)[real].all()
  prompts = np.where(batch['mask'] > 0, 0, batch['tokens'])
  first = np.argmax(np.asarray(batch['mask'])[:, 0] > 0, 1)
  for row in np.flatnonzero(real):
    np.testing.assert_array_equal(prompts[row, 0, : first[row]], prompts[row, 1, : first[row]])


def test_the_students_own_answers_are_what_it_sampled(run):
  """On-policy distillation re-encodes the answer's text (trl#5224), forces EOS onto an answer that was cut off
  (OpenRLHF#238), learns the prompt, or scores other text than was sampled (trl PR#3867)."""
  config, tuned, batch = job(run, 'configs/distill.py:on_policy')
  with config.unlocked():
    config.objective.update(new_tokens=6, sampling_temperature=0.0)
  params, frozen = params_of(tuned, noise=0.1)
  batch = {k: jnp.asarray(np.concatenate([x[:12], 0 * x[:1]])) for k, x in batch.items()}
  own = jax.jit(distill.rollout(tuned, config))(params, frozen, batch, jax.random.key(0))
  logits = jax.jit(lambda own: unembed(tuned.cfg, *tuned.hidden(params, frozen, own, None)))(own)
  best = np.asarray(jnp.argmax(logits, -1))
  own, batch = (jax.tree.map(np.asarray, x) for x in (own, batch))
  learnt, odd, cut = own['mask'] > 0, 0, 0
  np.testing.assert_array_equal(own['targets'][learnt], best[learnt])
  for row in range(12):
    prompt = np.argmax(batch['mask'][row] > 0) + 1
    places = np.flatnonzero(learnt[row])
    np.testing.assert_array_equal(own['tokens'][row, :prompt], batch['tokens'][row, :prompt])
    np.testing.assert_array_equal(places, prompt - 1 + np.arange(len(places)))
    assert own['segments'][row].sum() == prompt + len(places)
    said = own['targets'][row, places].tolist()
    assert 1 <= len(said) <= 6 and not np.isin(said[:-1], tuned.template.stops).any()
    assert len(said) == 6 or said[-1] in tuned.template.stops
    cut += said[-1] not in tuned.template.stops
    odd += tuned.tokenizer.encode_plain(tuned.tokenizer.decode_plain(said)).tolist() != said
  assert cut and odd and not learnt[12].any() and not own['segments'][12].any()


def test_a_run_of_everything(run):
  """A task that trains and cannot be used: SFT, then LoRA, reward, DPO of each, and distillation, from one another."""
  assert run.chats('a-sft') == 0
  row = run.logged('a-sft', 'sample')[-1]
  assert row['prompt'] == 'cat?' and isinstance(row['text'], str)
  assert run.chats('a-lora', **{'lora.rank': 2, 'optim.lr': 1e-2}) == 0
  small = sum(x.stat().st_size for x in (run.folder / 'a-lora/checkpoints/3').rglob('*') if x.is_file())
  tree = Checkpoints.of(run.folder / 'a-lora').meta()[1]['tree']
  assert all(k.split('/')[-1] in ('a', 'b') for k in tree if k.startswith('params/')) and small < 1_000_000
  settings = {'checkpoint.init_from': run.folder / 'a-lora'}  # the base of what follows may be an adapter
  assert run.pairs('a-dpo', **settings) == 0
  assert abs(run.logged('a-dpo')[0]['loss'] - math.log(2)) < 1e-6
  assert run.reward('a-reward', **settings) == 0
  table = json.loads((run.folder / 'a-reward/calibration.json').read_text())['pairs']
  assert table['pairs'] > 0 and 0 <= table['accuracy'] <= 1 and 0 <= table['ece'] <= 1
  judge = reward.Scorer(run.folder / 'a-reward', sharding.make_mesh(devices=jax.devices()[:1]), 4)
  assert judge(['cat?', 'dog?'], ['the mat', '']).shape == (2,)


@pytest.mark.parametrize('how', [
  pytest.param({}, marks=pytest.mark.slow), {'lora.rank': 2, 'lora.quantise': True},
])  # fmt: skip
def test_a_resumed_adapter_is_never_stopped(run, how):
  """The reference, the base or the data position is not the same after a resume."""
  name = '-'.join(['resume', *map(str, how.values())])
  assert run.pairs(f'{name}-whole', **how, **{'train.steps': 4}) == 0
  settings = {'train.steps': 4, 'checkpoint.every': 2, 'checkpoint.keep': 2}
  assert run.pairs(f'{name}-parts', **how, **settings) == 0
  parts = run.folder / f'{name}-parts'
  shutil.rmtree(parts / 'checkpoints/4')  # as if it had been killed on the way there
  assert (parts / 'checkpoints/2').exists()
  assert run.pairs(f'{name}-parts', **how, **settings) == 0
  assert sum('first_step_s' in r for r in metrics.read(parts)) == 2  # it went on
  digests = []
  for folder in (run.folder / f'{name}-whole', parts):
    rows = [r for r in metrics.read(folder) if r['kind'] == 'train' and r['step'] == 4]
    digests.append((rows[-1]['loss'], rows[-1]['crc'], rows[-1]['param_norm']))
  assert digests[0] == digests[1]


def test_reference_log_probs_are_stored_beside_the_rows(run):
  """Precomputed log-probs differ from the frozen copy's, or those of another model or of other rows are used."""
  assert run.pairs('p-frozen') == 0
  assert run.pairs('p-stored', **{'reference.kind': 'precomputed'}) == 0
  a, b = ([r['loss'] for r in run.logged(name)] for name in ('p-frozen', 'p-stored'))
  np.testing.assert_allclose(a, b, atol=2e-6)
  files = sorted((run.folder / 'rows').glob('pairs-*/ref-*.json'))
  assert len(files) == 2  # train and held out
  settings = {'reference.kind': 'precomputed'}
  told = json.loads(files[0].read_text())
  told['of']['model'] = 'f' * 32
  files[0].write_text(json.dumps(told))
  run.refused('other model', 'remove it', run=run.pairs, **settings)
  files[0].write_text('{"of": {')
  run.refused('damaged', 'remove it', run=run.pairs, **settings)
  files[0].unlink()
  assert run.pairs('p-again', **settings) == 0
  stored = next(files[0].parent.glob('ref-*.npy'))
  stored.write_bytes(stored.read_bytes()[:200])
  run.refused('damaged', str(stored.parent), run=run.pairs, **settings)
  files[0].unlink()


def test_a_reference_that_follows(run):
  """TR-DPO: the reference of a resumed run is the first one again, or it moves at every step."""
  settings = {'reference.every': 2, 'reference.mix': 1.0, 'optim.lr': 1e-2, 'train.steps': 5}
  assert run.pairs('tr', **settings) == 0
  assert run.pairs('tr-not', **settings | {'reference.every': None}) == 0
  moved, still = ([r['loss'] for r in run.logged(name)] for name in ('tr', 'tr-not'))
  assert moved[:2] == still[:2] and abs(moved[2] - math.log(2)) < 1e-6 < abs(still[2] - math.log(2))
  assert abs(moved[4] - math.log(2)) < 1e-6 < abs(moved[3] - math.log(2))


@pytest.mark.parametrize('how', [
  {'objective.beta': 0.5}, {'teacher.top_k': 8},
  pytest.param({'teacher.top_k': 8, 'objective.tail': 'renormalise'}, marks=pytest.mark.slow),
  {'objective.on_policy': True, 'data.packing': 'padded', 'objective.new_tokens': 8, 'objective.beta': 1.0},
])  # fmt: skip
def test_a_student_learns(run, how):
  """A teacher that is never read, or answers of which the prompt is trained on."""
  name = 'student-' + '-'.join(str(v) for v in how.values())
  if not (run.folder / 'teacher').exists():
    assert run.chats('teacher', **{'optim.lr': 3e-2, 'train.steps': 30}) == 0
  settings = {'checkpoint.init_from': run.folder / 'base', 'teacher.workdir': run.folder / 'teacher', 'optim.lr': 1e-2}
  settings |= {'student.layers': '(1,)', 'train.steps': 12} | run.files('chats', 'chats.jsonl') | run.asks() | how
  size = 'on_policy' if 'objective.on_policy' in how else 'world'
  settings |= run.files('documents', 'text.jsonl') if size == 'world' else {}
  assert run(f'configs/distill.py:{size}', name, **settings) == 0
  lines = [r['divergence'] for r in run.logged(name)]
  assert lines[-1] < 0.9 * lines[0]
  assert len(Checkpoints.of(run.folder / name).meta()[1]['model']['windows']) == 0


def test_bad_input_gets_a_sentence(run):
  """A setting or a model that does not fit fails in the middle, or is silently taken for another."""
  f = run.folder
  refused = run.refused
  refused('data.length = 8', 'too long', run=run.chats, **{'data.length': 8})
  refused('raise it', 'drop or truncate', run=run.chats, **{'data.length': 16, 'data.too_long': 'refuse'})
  refused('longer than model.length', run=run.chats, **{'data.length': 128})
  refused('lora.rank = 999', 'rank', run=run.chats, **{'lora.rank': 999})
  refused('lora.rank = 0', 'at least 1', run=run.chats, **{'lora.rank': 0})
  refused('lora.quantise needs lora.rank', run=run.chats, **{'lora.quantise': True})
  refused("'wz'", run=run.chats, **{'lora.rank': 2, 'lora.targets': "('wz',)"})
  refused('nope', 'choose from', run=run.chats, **{'chat.template': 'nope'})
  refused('best_fit', 'padded', run=run.chats, **{'data.packing': 'loose'})
  refused('reference.every = 2', run=run.pairs, **{'reference.every': 2, 'lora.rank': 2})
  refused('objective.kind', run=run.pairs, **{'objective.kind': 'ppo'})
  refused('no pair of pairs says its margin', run=run.reward, **{'objective.margin': True})
  refused('no pair of pairs says its label', run=run.pairs, **{'reference.soft_labels': True})
  for name, row, words in [
    ('equal', {'prompt': 'a?', 'chosen': 'b', 'rejected': 'b'}, ('equal.jsonl:1', 'chosen')),
    ('nan', {'prompt': 'a?', 'chosen': 'b', 'rejected': 'c', 'margin': float('nan')}, ('nan.jsonl:1', 'margin')),
    ('label', {'prompt': 'a?', 'chosen': 'b', 'rejected': 'c', 'label': 3}, ('label.jsonl:1', 'label')),
    ('prompts', {'chosen': '\n\nHuman: a\n\nAssistant: b', 'rejected': '\n\nHuman: x\n\nAssistant: c'}, ('prompts',)),
  ]:  # fmt: skip
    write(f / f'{name}.jsonl', [row])
    settings = {'data.sources.pairs.files': repr((str(f / f'{name}.jsonl'),))}
    refused(*words, run=run.pairs, **settings)
    refused(*words, run=run.reward, **settings)
  for name, messages, words in [
    ('twice', [('user', 'a'), ('user', 'b'), ('assistant', 'c')], ('twice.jsonl:1', 'user')),
    ('empty', [('user', 'a'), ('assistant', ' ')], ('empty.jsonl:1', 'empty')),
    ('end', [('user', 'a'), ('assistant', 'b'), ('user', 'c')], ('end.jsonl:1',)),
  ]:
    write(f / f'{name}.jsonl', [{'messages': [{'role': r, 'content': c} for r, c in messages]}])
    refused(*words, run=run.chats, **{'data.sources.chats.files': repr((str(f / f'{name}.jsonl'),))})


def test_an_adapter_stays_with_its_base(run):
  """An adapter is resumed on, or merged into, another base than it was trained on; or DPO goes on against another."""
  f = run.folder
  assert run.chats('ad-sft') == 0 and run.chats('ad-other', **{'optim.lr': 1e-3}) == 0

  shutil.copytree(f / 'ad-sft', f / 'ad-base')
  settings = {'lora.rank': 2, 'checkpoint.init_from': f / 'ad-base', 'train.steps': 2}
  assert run.chats('ad', **settings) == 0
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  start.Trained(f / 'ad').params(mesh)
  run.capsys.readouterr()
  assert run.chats('ad', **settings | {'train.steps': 3, 'checkpoint.init_from': f / 'ad-other'}) == 78
  assert 'adapter for another base' in run.capsys.readouterr().err
  settings = {'checkpoint.init_from': f / 'ad-sft', 'train.steps': 2}
  assert run.pairs('ad-dpo', **settings) == 0
  run.capsys.readouterr()
  settings |= {'train.steps': 3}
  assert run.pairs('ad-dpo', **settings | {'checkpoint.init_from': f / 'ad-other'}) == 78
  assert 'ad-other/checkpoints/3: give that one again' in run.capsys.readouterr().err
  assert not (f / 'ad-dpo/checkpoints/WRITER').exists(), 'the folder is still held by a run that was refused'
  shutil.rmtree(f / 'ad-base')
  with pytest.raises(ValueError, match='which is not there|cannot be read'):
    start.Trained(f / 'ad').params(mesh)
  shutil.copytree(f / 'ad-other', f / 'ad-base')
  with pytest.raises(ValueError, match='another base'):
    start.Trained(f / 'ad').params(mesh)
