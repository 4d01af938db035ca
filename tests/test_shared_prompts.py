"""Pairs of which the prompt is computed once are those of which it is computed twice: rows, attention, losses."""

import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import VOCAB, close, model, replace, weights

from llmstack import sharding
from llmstack import step as steps
from llmstack.data import batch as batches
from llmstack.data import chat, packing, pipeline, sources, tuning
from llmstack.data.tokenizer import Tokenizer, train
from llmstack.errors import BadInput
from llmstack.losses import lm
from llmstack.main import load
from llmstack.model import check_attention
from llmstack.model.attention import KERNELS, shared_prompts
from llmstack.model.kernels import seen
from llmstack.tasks import inspect, prefer, reward, tune

LENGTH, PROMPT = 28, 12  # T, and what of it is for prompts
AXES = ('data', 'fsdp', 'tensor')
SLOW = pytest.mark.slow


def examples(n=9, seed=0):
  """Returns [(prompt, [chosen, rejected], margin)]: prompts of one token, of two, of some, and more than find room."""
  r = np.random.RandomState(seed)
  draw = lambda size: r.randint(1, VOCAB, size)  # noqa: E731
  sizes = [1, 2, PROMPT + 1, PROMPT + 4, *r.randint(1, 9, n)][:n]
  return [(draw(size), [draw(r.randint(1, 7)) for _ in range(2)], r.rand()) for size in sizes]


def laid_out(pairs, prompt, packed):
  """Returns the Pairs of these examples; prompt: columns that are shared, 0 for the layout of two whole sides."""
  made = []
  for before, completions, margin in pairs:
    sides = [
      (np.concatenate([before, own]), np.repeat([0, 1], [len(before), len(own)]).astype(np.uint8))
      for own in completions
    ]
    made.append(tuning.apart(sides, prompt) | {'margin': margin, 'label': 1.0})
  rows, n = tuning.arranged(made, length=LENGTH, packed=packed, prompt=prompt)
  names = packing.row_dtype(LENGTH - prompt + 1, VOCAB, 'pairs', n, prompt).names
  return batches.make({name: np.stack(field) for name, field in zip(names, zip(*rows), strict=True)})


def even(batch, n):
  """Returns the batch with rows of padding until n divides their number."""
  short = -len(batch['tokens']) % n
  return {k: np.pad(x, ((0, short), *[(0, 0)] * (x.ndim - 1))) for k, x in batch.items()}


DPO = dict(beta=0.1, label_smoothing=0.1, normalise=False)
ALL = {
  'dpo': ('dpo', DPO | {'terms': {'sigmoid': 1.0, 'sft': 0.2}}),
  'ipo': ('dpo', DPO | {'terms': {'ipo': 1.0, 'bco_pair': 0.5}, 'normalise': True, 'label_smoothing': 0.0}),
  'ld': ('dpo', DPO | {'terms': {'robust': 1.0}, 'ld_alpha': 0.3}),
  'wpo': ('dpo', DPO | {'terms': {'sigmoid': 1.0}, 'wpo': True}),
  'cpo': ('cpo', DPO | {'terms': {'sigmoid': 1.0, 'sft': 1.0}}),
  'simpo': ('simpo', dict(beta=2.0, gamma=1.0, label_smoothing=0.0, nll=0.1)),
  'orpo': ('orpo', dict(lambda_or=0.1, nll_per_pair=False)),
}


class Told(prefer.Objective):
  """An objective that is told its log-probs, so that one forward pass is enough for all."""

  def logp(self, params, frozen, batch, rng, also=None):
    return (batch['logp'], batch['collision']) if also else batch['logp']


def losses(cfg, ref):
  """Returns the loss function of all objectives at once, each term a metric as well, of one forward pass."""

  def loss_fn(params, frozen, batch, rng):
    hidden = tune.hidden_of(cfg, params, batch)
    tuned = types.SimpleNamespace(cfg=cfg, hidden=lambda *_: (params, hidden))
    logp, collision = prefer.logps(cfg, params, hidden, batch, chunk=None, also=lm.collision)
    objectives = {name: Told(tuned, kind, chunk=None, soft_labels=False, **how) for name, (kind, how) in ALL.items()}
    told = batch | {'logp': logp, 'collision': collision}
    told['ref_logp'] = objectives['dpo'].ref_logp({'ref': ref}, batch)
    fns = {name: o.loss for name, o in objectives.items()} | {'reward': reward.loss(tuned, margin=True, centering=0.01)}
    sums, weights = {}, {}
    for i, (name, fn) in enumerate(fns.items()):
      own, over, _ = fn(params, frozen, told, rng)
      sums |= {f'{name} {term}': (0.5 + 0.3 * i) * x for term, x in own.items()}
      weights |= {f'{name} {term}': x for term, x in over.items()}
    return sums, weights, {k: (sums[k], weights[k]) for k in sums}

  return loss_fn


def values_and_grads(cfg, batch, mesh=None, parts=1):
  """Returns ({objective and term: value}, the gradient of their sum)."""
  policy, ref = (dict(weights(replace(cfg, **PLAIN), seed)) for seed in (0, 1))
  policy['value_head'] = {'w': jnp.linspace(-1, 1, cfg.width)}
  run = jax.jit(lambda p, b: steps.accumulate(losses(cfg, ref), p, {}, b, jax.random.key(0), parts)[1:])
  if mesh is None:
    found, grads = run(policy, batch)
  else:
    with jax.set_mesh(mesh):
      policy = jax.device_put(policy, sharding.param_shardings(policy, mesh))
      found, grads = run(policy, sharding.place(batch, mesh, batches.letters))
  return {name: steps.ratio(*pair) for name, pair in found.items()}, grads


PLAIN = dict(attention='einsum', scan=False, remat='none')


@functools.cache
def two_sided(family, **changes):
  """Returns the losses and gradients of whole sides, one pair to a row, with the reference kernel."""
  return values_and_grads(model(family, length=LENGTH, **changes | PLAIN), laid_out(examples(), 0, False))


@pytest.mark.parametrize('family, changes, how, packed, over', [
  ('gpt2_tiny', {}, dict(attention='blocks'), True, 2),
  ('llama_tiny', dict(windows=(5, 0)), dict(attention='blocks', scan=True, remat='dots'), True, (2, 2, 2)),
  pytest.param('llama_tiny', {}, dict(attention='blocks'), True, 1, marks=SLOW),
  pytest.param('llama_tiny', {}, dict(attention='xla'), False, 3, marks=SLOW),
  pytest.param('llama_tiny', {}, dict(attention='einsum'), True, (8, 1, 1), marks=SLOW),
  pytest.param('gemma_tiny', {}, dict(attention='blocks', scan=True), True, 1, marks=SLOW),
  pytest.param('gpt2_tiny', {}, dict(attention='einsum', scan=True), False, 1, marks=SLOW),
])  # fmt: skip
def test_every_loss_is_that_of_two_whole_sides(family, changes, how, packed, over):
  """A side begins at position 0, sees the prompt of its neighbour or the other side, or counts the prompt's last token
  as its own: values and gradients of every objective, packed and not, in microbatches or over eight devices."""
  batch = laid_out(examples(), PROMPT, packed)
  assert packed == (len(batch['tokens']) < len(examples()))
  mesh, parts = (None, over) if isinstance(over, int) else (sharding.make_mesh(**dict(zip(AXES, over))), 1)
  cfg = model(family, length=LENGTH, **changes, **how)
  found = values_and_grads(cfg, even(batch, parts if mesh is None else 8), mesh, parts)
  want = two_sided(family, **changes)
  assert {k.split()[0] for k in want[0]} == {*ALL, 'reward'}
  for name in want[0]:
    close(found[0][name], want[0][name], 5e-6)
  close(found[1], want[1], 5e-5)


@pytest.mark.parametrize('window, softcap', [(40, 5.0), pytest.param(1000, None, marks=SLOW)])
def test_attention_of_a_row_of_three_parts(window, softcap):
  """Blocks of queries lose the prompts before a window, or take wrong columns: against one mask over all columns."""
  P, C = 70, 150  # C is three blocks of queries
  r = np.random.RandomState(0)
  ends = (np.array([30, 66, 70]), np.array([20, 110, 140]))
  segments = [np.searchsorted(end, np.arange(n), 'right') + 1 for end, n in zip(ends, (P, C))]
  segments = [np.where(s > len(ends[0]), 0, s) for s in segments]
  segments = np.tile(np.concatenate([segments[0], segments[1], segments[1]]), (2, 1)).astype(np.int32)
  columns = np.arange(P + 2 * C)
  part = np.where(columns < P, 0, 1 + (columns >= P + C))
  place = batches.positions(np.where(part == 1, segments, segments + 9 * part) + 100 * part)  # within part and segment
  before = np.array([0, *(np.sum(segments[0, :P] == s) for s in (1, 2, 3))])
  positions = np.where(segments > 0, place + np.where(part > 0, before[segments], 0), 0).astype(np.int32)
  q, k, v = (jnp.asarray(r.randn(2, P + 2 * C, n, 8), jnp.float32) for n in (4, 2, 2))
  apart = (part[:, None] == part[None, :]) | (part == 0)[None, :]

  def whole(q, k, v, positions, segments, *, window):
    mask = seen(positions, segments, q.shape[1], window) & apart[None]
    from llmstack.model.attention import attend

    return attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask, softcap=softcap)

  def run(kernel):
    def f(q, k, v):
      y = kernel(q, k, v, positions, segments, window=window) * (segments > 0)[:, :, None, None]
      return jnp.sum(jnp.sin(y) * jnp.arange(1.0, 9.0)[None, None, None]), y

    (_, y), grads = jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True))(q, k, v)
    return y, *grads

  want = run(whole)
  for name in ('blocks', 'einsum'):
    kernel = functools.partial(shared_prompts, functools.partial(KERNELS[name], softcap=softcap), P)
    for got, right in zip(run(kernel), want):
      close(got, right, 1e-5)


@pytest.fixture(scope='module')
def template():
  texts = ['the cat sat on the mat; is the dog on the log? yes, no 0123456789 ' * 40]
  return chat.template('llmstack', Tokenizer(train(texts, kind='bpe', vocab=300)))


def rows_of(tmp_path, template, records, **changes):
  """Returns the pipeline.Rows of these records."""
  path = tmp_path / 'records.jsonl'
  path.write_text(''.join(json.dumps(r) + '\n' for r in records))
  how = dict(kind='pairs', length=48, packed=True, too_long='drop', train_on='assistant', seed=0, prompt=20) | changes
  source = sources.Source((str(path),), holdout=0.0)
  return pipeline.Rows(tuning.prepare('records', source, template, folder=str(tmp_path / 'rows'), split='train', **how))


def whole(read):
  """Returns the sorted [(chosen ids, learnt of them, rejected ids, ...)] of rows, prompts and sides put together."""
  out = []
  for i in range(len(read['tokens'])):
    for s in range(1, read['segments'][i].max() + 1):
      ahead = read['prompt'][i][read['prompt_segments'][i] == s].tolist() if 'prompt' in read else []
      sides = []
      for side in range(2):
        here = read['segments'][i, side] == s
        sides += [
          ahead + read['tokens'][i, side][here].tolist(),
          [0] * len(ahead) + read['mask'][i, side][here].tolist(),
        ]
      out.append(sides)
  return sorted(out)


def test_rows_hold_the_same_pairs(tmp_path, template, capsys):
  """Packing under two budgets loses a pair, gives it its neighbour's prompt, or counts its prompt twice."""
  records = [{'prompt': f'{"cat " * (i % 5)}{i}?', 'chosen': 'the mat' + ' yes' * (i % 3), 'rejected': f'log {i}'}
             for i in range(20)]  # fmt: skip
  split, two = (rows_of(tmp_path, template, records, prompt=p) for p in (20, 0))
  assert split.folder != two.folder and len(split) < 14
  read = split.read(range(len(split)))
  assert read['tokens'].shape[1:] == (2, 29) and read['prompt'].shape[1:] == (20,)
  assert (read['segments'][..., -1] == 0).all()  # the last token of every completion is an input
  assert whole(read) == whole(two.read(range(len(two))))
  assert split.manifest['targets'] == two.manifest['targets'] and split.manifest['tokens'] < two.manifest['tokens']
  assert split.manifest['fill'] == split.manifest['tokens'] / (len(split) * (20 + 2 * 29))
  assert inspect.command([split.folder, '--rows', '0:1']) == 0
  shown = capsys.readouterr().out
  assert all(f'row 0, {name}' in shown for name in ('prompts', 'chosen', 'rejected'))
  with pytest.raises(BadInput, match='components differ in prompt'):
    pipeline.Mixture({'a': rows_of(tmp_path, template, records, prompt=19, length=47), 'b': split}, dict(a=1, b=1),
                     seed=0, batch=2)  # fmt: skip


def test_what_does_not_fit(tmp_path, template):
  """A prompt that is longer than its part is lost where its pair has room for it, or a completion is cut unsaid."""
  pair = lambda cats, dogs: {'prompt': 'cat ' * cats + '?', 'chosen': 'dog ' * dogs, 'rejected': 'no'}  # noqa: E731
  fits = [pair(1, 1), pair(10, 3)]
  rows, two = (rows_of(tmp_path, template, fits, prompt=p) for p in (20, 0))
  assert rows.manifest['too_long_rows'] == 0 and whole(rows.read(range(2))) == whole(two.read(range(2)))
  for records in ([*fits, pair(60, 1)], [*fits, pair(1, 40)]):
    assert rows_of(tmp_path, template, records).manifest['too_long_rows'] == 1
    with pytest.raises(
      BadInput, match=r'jsonl:3 has \d+ tokens behind \d+ of its prompt and data.length - data.prompt'
    ):
      rows_of(tmp_path, template, records, too_long='refuse')
    cut = rows_of(tmp_path, template, records, too_long='truncate')
    assert cut.manifest['too_long_rows'] == 1 and cut.manifest['documents'] == 3
    pairs = whole(cut.read(range(len(cut))))
    assert len(pairs) == 3 and all(p[0][0] == template.tokenizer.bos and sum(p[1]) and sum(p[3]) for p in pairs)
    assert max(len(p[0]) for p in pairs) <= 48


def config(path='configs/prefer.py:world', **settings):
  c = load(path)
  c.update_from_flattened_dict({'data.length': 64, 'data.prompt': 24, 'checkpoint.init_from': 'x'} | settings)
  return c


@pytest.mark.parametrize('path, settings, words', [
  ('configs/prefer.py:world-kto', {}, 'kto reads a completion at a time'),
  ('configs/prefer.py:world-orpo', {}, 'orpo reads the log-probs of prompts'),
  ('configs/prefer.py:world', {'data.prompt': 64}, 'leaves nothing of data.length = 64'),
  ('configs/prefer.py:world', {'train.loss_chunk': 16}, 'does not divide data.length - data.prompt = 40'),
  ('configs/sft.py:world', {}, 'which task sft does not read'),
])  # fmt: skip
def test_where_prompts_cannot_be_shared(path, settings, words):
  """ORPO's NLL loses its prompts, KTO computes a side that nobody asked for, or a setting is read by nobody."""
  c = config(path, **settings)
  with pytest.raises(BadInput, match=words):
    (prefer.check if c.task == 'prefer' else tune.check)(c)


def test_kernels_and_meshes_that_cannot():
  """A kernel that takes the row for a packed one lets the rejected completion see the chosen one."""
  cpu = sharding.make_mesh(devices=jax.devices()[:1])
  for name in ('cudnn', 'splash'):
    with pytest.raises(BadInput, match=f"'{name}' computes no prompt .* set data.prompt to None"):
      check_attention(model('llama_tiny', attention=name), cpu, 64, 24)
  with pytest.raises(BadInput, match='mesh.context = 2 cuts rows up'):
    check_attention(model('llama_tiny', attention='blocks'), sharding.make_mesh(context=2), 64, 24)
  check_attention(model('llama_tiny', attention='blocks'), cpu, 64, 24)
