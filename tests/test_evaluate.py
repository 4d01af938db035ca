"""Log-likelihoods are those of a forward pass by hand, and scores follow from them as the harness defines them."""

import functools
import gzip
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import VOCAB, model, replace, weights
from ml_collections import ConfigDict

from configs import assistant as stages
from configs import evaluate as settings
from llmstack import sharding
from llmstack.data import questions, tokenizer
from llmstack.errors import BadInput
from llmstack.infer import score as scoring
from llmstack.infer.score import score, windows
from llmstack.model import forward, ready, unembed
from llmstack.tasks import assistant, evaluate, sample, start
from llmstack.tasks.evaluate import Model, bits, choose, extract, match, right, wilson, win_rate

ONE = sharding.make_mesh(devices=jax.devices()[:1])
R = np.random.RandomState(0)
ROWS = [(R.randint(0, VOCAB, n).tolist(), at) for n, at in ((2, 1), (9, 5), (65, 1), (17, 16), (41, 1), (9, 8))]
WORDS = 'the cat sat on the mat and the dog sat on the log; a beginning is a begin and an end. ' * 20


@pytest.fixture(scope='module')
def words():
  return tokenizer.Tokenizer(tokenizer.train([WORDS], kind='bpe', vocab=300))


@pytest.fixture(scope='module')
def cfg(words):
  return model('llama_tiny', vocab=words.vocab, layers=1)  # one for all, each program is compiled once


@functools.partial(jax.jit, static_argnums=0)
def log_probs(cfg, params, tokens):
  at = jnp.arange(tokens.shape[1])[None]
  return jax.nn.log_softmax(unembed(cfg, params, forward(cfg, params, tokens, at, at * 0 + 1)[0])[0])


def by_hand(cfg, params, ids):
  """Returns float64[n-1,V]: log-probs of ids[1:], by one forward pass of the row alone."""
  tokens = np.zeros((1, cfg.length), np.int32)  # one shape; what is behind a token is not seen
  tokens[0, : len(ids) - 1] = ids[:-1]
  return np.asarray(log_probs(replace(cfg, attention='einsum'), params, tokens), np.float64)[: len(ids) - 1]


@pytest.mark.parametrize('batch, made', [(1, False), (4, True)])
def test_scores_are_those_of_a_forward_pass(cfg, batch, made):
  """Targets are off by one, padding or the rows beside it change a row, or rank 0 is not the greedy token."""
  params = weights(cfg)
  got = score(cfg, ready(cfg, params, 2) if made else params, ROWS, mesh=ONE, batch=batch, top=3)
  for (ids, first), one in zip(ROWS, got):
    logp = by_hand(cfg, params, ids)[first - 1 :]
    own = np.take_along_axis(logp, np.array(ids[first:])[:, None], 1)
    np.testing.assert_allclose(one.logp, own[:, 0], atol=2e-5)
    np.testing.assert_array_equal(one.rank, (logp > own).sum(1))
    np.testing.assert_array_equal(one.ids, np.argsort(-logp, 1)[:, :3])
    np.testing.assert_allclose(one.top, -np.sort(-logp, 1)[:, :3], atol=2e-5)


@pytest.mark.slow
def test_scores_on_a_mesh():
  """Scoring needs gathered parameters, or the rows that fill the last device are counted."""
  cfg = model('llama_tiny', layers=1, heads=8, kv_heads=4, scan=True, remat='full')
  params = weights(cfg)
  alone = score(cfg, params, ROWS[:2], mesh=ONE, batch=4)
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  there = score(cfg, jax.device_put(params, sharding.param_shardings(params, mesh)), ROWS[:2], mesh=mesh, batch=3)
  for a, b in zip(alone, there, strict=True):
    np.testing.assert_allclose(a.logp, b.logp, atol=3e-5)
    np.testing.assert_array_equal(a.rank, b.rank)


def test_all_continuations_of_a_length_are_certain_together():
  """What is called a log-likelihood is no distribution: a token counts twice, or is given itself."""
  cfg = model('llama_tiny', vocab=5, layers=1)
  for n in (1, 3):
    items = [([1, 3, *c], 2) for c in itertools.product(range(5), repeat=n)]
    total = sum(np.exp(s.logp.sum(dtype=np.float64)) for s in score(cfg, weights(cfg), items, mesh=ONE, batch=128))
    assert abs(total - 1) < 1e-5


@pytest.mark.parametrize('n, first, window, stride', [(200, 1, 16, 16), (200, 1, 16, 1), (67, 5, 16, 7), (67, 60, 16, 4), (9, 2, 16, 8), (18, 17, 16, 16)])  # fmt: skip # noqa: E501
def test_each_token_is_scored_once_and_has_its_context(n, first, window, stride):
  """Tokens at the borders of windows are scored twice, never, or without the context that was promised."""
  seen = []
  for begin, at, end in windows(n, first, window, stride):
    assert 0 <= begin < at < end <= n and end - begin <= window + 1
    assert at - begin >= min(at, window + 1 - stride)
    seen += range(at, end)
  assert seen == list(range(first, n))


@pytest.mark.parametrize('stride', [16, 5])
def test_text_longer_than_the_model(cfg, stride):
  """Windows are not what they are said to be: with stride = window, blocks side by side."""
  params, ids = weights(cfg), R.randint(0, VOCAB, 60).tolist()
  [got] = score(cfg, params, [(ids, 1)], mesh=ONE, batch=4, window=16, stride=stride)
  expected = []
  for at in range(1, 60):  # brute force: each token by itself
    # The first window is full; those behind it end `stride` further each.
    end = min(60, 17 if at < 17 else 17 + -(-(at - 16) // stride) * stride)
    part = ids[max(0, end - 17) : end]
    expected.append(by_hand(cfg, params, part)[at - max(0, end - 17) - 1, ids[at]])
  np.testing.assert_allclose(got.logp, expected, atol=2e-5)


def test_a_uniform_model(cfg, words):
  """Bits per byte divide by tokens or characters, and a tie goes to the first choice, which BLiMP's answer is."""
  blind = Model(cfg, jax.tree.map(jnp.zeros_like, weights(cfg)), words, mesh=ONE, batch=4)
  texts = ['the cat sät on the mat and', 'a log ' * 60]
  got = bits(blind, texts, window=64, stride=32)
  tokens, size = sum(len(words.encode(t)) for t in texts), len(''.join(texts).encode())
  assert (got['tokens'], got['bytes'], got['documents'], got['lossy']) == (tokens, size, 2, 0)
  assert got['bits_per_byte'] == pytest.approx(np.log2(cfg.vocab) * tokens / size, rel=1e-6)
  assert got['perplexity'] == pytest.approx(cfg.vocab, rel=1e-5)
  assert got['compressors']['gzip -9'] == 8 * len(gzip.compress(''.join(texts).encode(), 9)) / size
  extra = got['bits_per_byte_with_model'] - got['bits_per_byte']
  count = sum(x.size for x in jax.tree.leaves(blind.params))
  assert extra == pytest.approx(8 * (4 * count + len(words.proto)) / size)
  same = {'sentence_good': 'the cat', 'sentence_bad': 'the cat'}
  found = choose(blind, [questions.question(same, 'x:1', questions.CHOICES[3], ' ')])
  assert found['acc'] == found['acc_norm'] == found['acc_token'] == 0.5 == found['chance']
  broken = Model(cfg, jax.tree.map(lambda x: x * jnp.nan, weights(cfg)), words, mesh=ONE, batch=4)
  with pytest.raises(BadInput, match='2 of 2 scores are not finite'):
    bits(broken, texts, window=64, stride=32)
  assert right(np.array([1.0, 3.0, 3.0]), 2) == 0.5 and right(np.array([1.0, 3.0]), 0) == 0


def test_choices_are_the_sums_of_their_tokens(cfg, words):
  """acc divides by a length, acc_norm by tokens or with the space, a long context is cut on the wrong side."""
  params = weights(cfg)
  m = Model(cfg, params, words, mesh=ONE, batch=4)
  wrong = 0
  for query, choices in (('the cat', ['sat on the mat', 'log;']), ('the log ' * 80 + 'and', ['the', 'a dog sat', 'an end.'])):  # fmt: skip # noqa: E501
    sums, tokens = [], []
    for c in choices:
      ids = [words.bos, *words.encode(query), *words.encode(' ' + c)]
      n = len(words.encode(' ' + c))
      ids = ids[-cfg.length - 1 :]
      sums.append(by_hand(cfg, params, ids)[np.arange(-n, 0), ids[-n:]].sum())
      tokens.append(n)
    sums, tokens, size = np.array(sums), np.array(tokens), np.array([len(c) for c in choices])
    for gold in range(len(choices)):
      [q] = [questions.question(dict(query=query, choices=choices, gold=gold), 'x', questions.CHOICES[0], ' ')]
      got = choose(m, [q])
      assert got['acc'] == (sums.argmax() == gold) and got['acc_norm'] == ((sums / size).argmax() == gold)
      assert got['acc_token'] == ((sums / tokens).argmax() == gold)
      assert got['cut'] == (len(query) > 80)
      wrong += not got['acc']
  assert wrong == 3
  [q] = [questions.question(dict(context='the cat', continuation='sat on'), 'x', questions.CHOICES[4], ' ')]
  got = choose(m, [q])
  ids, first, _ = m.pair(*q.pairs[0])
  logp = by_hand(cfg, params, ids)[first - 1 :]
  assert got['perplexity'] == pytest.approx(np.exp(-logp[np.arange(len(logp)), ids[first:]].sum()), rel=1e-4)
  assert got['exact'] == (logp.argmax(1) == ids[first:]).all() == False  # noqa: E712
  best = by_hand(cfg, params, [words.bos, *words.encode('the cat'), 0])[-1].argmax()
  [s] = score(cfg, params, [([words.bos, *words.encode('the cat'), int(best)], 1)], mesh=ONE, batch=1)
  assert s.rank[-1] == 0


def test_a_token_never_reaches_from_the_context_into_what_is_scored(words, cfg):
  """'a' + 't' is one token together, and the harness's split then scores other text than the continuation."""
  m = Model(cfg, None, words, mesh=ONE, batch=1)
  whole = [words.bos, *words.encode('the ca'), *words.encode('t')]
  assert words.encode('the cat').tolist() != whole[1:], 'the vocabulary does not have the case'
  ids, first, merged = m.pair('the ca', 't')
  assert merged and ids == whole and words.decode(ids[first:]) == 't'
  ids, first, merged = m.pair(*questions.split_space('the cat ', 'sat'))
  assert not merged and words.decode(ids[:first]) == 'the cat' and ids == words.prompt('the cat sat')
  assert m.pair('', 'the cat') == (words.prompt('the cat'), 1, False)


FORMATS = [
  (dict(query='Q?', choices=['a', 'b'], gold=1), [('Q?', ' a'), ('Q?', ' b')], 1),
  (dict(query='Q?\n', choices=['a', ' b'], gold='0'), [('Q?', '\n a'), ('Q?', '\n b')], 0),
  (
    dict(activity_label='Pole', ctx_a='Run. [substeps] Far.', ctx_b='A Woman', endings=['go [x] on', 'is'], label=1),
    [('Pole: Run. Far. A woman', ' go on'), ('Pole: Run. Far. A woman', ' is')], 1,
  ),
  (dict(context_options=['Sam', 'Ann'], continuation='won.', gold=0), [('Sam', ' won.'), ('Ann', ' won.')], 0),
  (dict(sentence_good='I am.', sentence_bad='I is.'), [('', 'I am.'), ('', 'I is.')], 0),
  (dict(context='25 - 1 =', continuation=' 24'), [('25 - 1 =', ' 24')], 0),
]  # fmt: skip


def lines(path, *records):
  path.write_text(''.join(json.dumps(r) + '\n' for r in records))
  return str(path)


def test_formats(tmp_path):
  """A format is taken for another, the space is lost or doubled, or a label is read as text."""
  for i, (record, pairs, gold) in enumerate(FORMATS):
    [q], fields = questions.questions(lines(tmp_path / f'{i}.jsonl', record | {'more': 1}))
    assert (list(q.pairs), q.gold) == (pairs, gold) and set(fields) <= set(record)
    assert q.sizes == tuple(len(b.strip()) for _, b in pairs)
  [q], _ = questions.questions(lines(tmp_path / 'a.jsonl', FORMATS[0][0]), join='\nAnswer: ')
  assert q.pairs[0] == ('Q?\nAnswer:', ' a')
  many = lines(tmp_path / 'm.jsonl', *(dict(prompt=str(i), answer='x') for i in range(10)))
  assert [a.prompt for a in questions.asked(many, limit=3)] == ['0', '3', '6']


@pytest.mark.parametrize('says, record', [
  ('none of these sets', dict(query='Q?', choices=['a', 'b'])),
  ('the right answer is 2, and there are 2 choices', dict(query='Q?', choices=['a', 'b'], gold=2)),
  ('the right answer is True', dict(query='Q?', choices=['a', 'b'], gold=True)),
  ('the right answer is -1', dict(query='Q?', choices=['a', 'b'], gold=-1)),
  ('choice 1 is empty', dict(query='Q?', choices=['a', ' '], gold=0)),
  ('has 1 choices', dict(query='Q?', choices=['a'], gold=0)),
  ("choices is 'ab', not a list of texts", dict(query='Q?', choices='ab', gold=0)),
  ('query is 7, not text', dict(query=7, choices=['a', 'b'], gold=0)),
])  # fmt: skip
def test_questions_that_cannot_be_scored_are_refused(tmp_path, says, record):
  """A wrong line scores 0 and nobody knows why the model is so bad."""
  with pytest.raises(BadInput, match=says) as e:
    questions.questions(lines(tmp_path / 'q.jsonl', FORMATS[0][0], record))
  assert 'q.jsonl:2' in str(e.value)


def test_answers_are_extracted():
  """A number in the working counts, a thousands separator or '18.0' makes a right answer wrong."""
  assert extract('\n  yes \nbut', 'first_line') == 'yes' and extract('', 'first_line') == ''
  assert extract('3 + 4 = 7\n#### 1,018.', 'number') == '1018' and extract('is -2.50', 'number') == '-2.5'
  assert extract('18.0', 'number') == '18' and extract('100', 'number') == '100' and extract('none', 'number') == ''
  assert extract('The answer is ( B ).', r'answer is \((.*?)\)') == 'B' and extract('so', 'no') == ''
  scorer = match([questions.Asked('x', 'p', '7'), questions.Asked('x', 'q', 'none')], 'number')
  assert scorer(['p', 'p', 'q'], ['is 7', 'is 8', 'none']).tolist() == [1, 0, 0]
  with pytest.raises(BadInput, match='with another answer'):
    match([questions.Asked('x', 'p', '7'), questions.Asked('y', 'p', '8')], 'number')


def test_win_rate():
  """A tie is a loss, the interval is of something else than prompts, or the seed does not hold."""
  a, b = np.array([1.0, 2, 3, 4, 5, 0]), np.array([0.0, 2, 3, 5, 1, 0])
  rate, low, high = win_rate(a, b, 0)
  assert rate == (2 + 1.5) / 6 and low < rate < high and win_rate(a, b, 0) == (rate, low, high)
  assert win_rate(b, a, 0)[0] == pytest.approx(1 - rate) and win_rate(a, a, 0) == (0.5, 0.5, 0.5)
  r = np.random.default_rng(1)
  a, b = r.integers(0, 4, 80), r.integers(0, 3, 80)
  rate, low, high = win_rate(a, b, 3)
  wins = (a > b) + 0.5 * (a == b)  # by brute force: prompts themselves are drawn
  drawn = wins[r.integers(0, 80, (20_000, 80))].mean(1)
  np.testing.assert_allclose([rate, low, high], [wins.mean(), *np.percentile(drawn, (2.5, 97.5))], atol=0.008)
  inside = 0
  for seed in range(300):
    won = np.random.default_rng(seed).random(150) < 0.7
    _, low, high = win_rate(won, ~won, seed)
    inside += low <= 0.7 <= high
  assert 0.91 < inside / 300 < 0.985
  for wrong, says in ((([1.0], [1.0, 2.0]), 'one of each'), (([np.nan], [1.0]), '1 of 1'), (([], []), 'one of each')):
    with pytest.raises(BadInput, match=says):
      win_rate(*wrong, 0)
  assert wilson(0, 40)[0] == 0 and wilson(40, 40)[1] == 1


def save(folder, words, seed=0, **changes):
  """Returns a workdir, as str, with a model of random weights."""
  cfg = model('llama_tiny', vocab=words.vocab, layers=1, **changes)
  start.save_parameters(str(folder), weights(cfg, seed), start.record(cfg, ConfigDict(), words))
  return str(folder)


def test_a_run(words, tmp_path, capsys):
  """A section is not reported, a long prompt ends the run, or a refusal comes after minutes of work."""
  c, saved = settings.get_config(), tmp_path / 'run'
  save(saved, words)
  (tmp_path / 'a.txt').write_text(WORDS)
  c.text.sources.world = settings.text((str(tmp_path / 'a.txt'),), holdout=0.2, holdout_by='tail')
  for i, (record, *_) in enumerate(FORMATS):
    c.questions.sources[f'f{i}'] = settings.choices(lines(tmp_path / f'{i}.jsonl', record))
  asked = [dict(prompt='the cat', answer='x'), dict(prompt=WORDS, answer='y')]
  c.prompts.sources.asked = settings.prompts(lines(tmp_path / 'p.jsonl', *asked), new_tokens=4)
  c.prompts.against, c.batch, c.mesh.data = str(saved), 8, 8
  evaluate.run(c.lock(), str(saved))
  found = json.loads((saved / 'evaluation.json').read_text())
  printed = capsys.readouterr().out
  assert found['text']['world']['bytes'] == round(len(WORDS) * 0.2) and len(found['questions']) == 6
  assert found['prompts']['asked']['win_rate'] == 0.5 and found['prompts']['asked']['too_long'] == 1
  for said in ('zstd -19', 'acc_norm', 'ties half', '1 prompts leave no room', 'per second'):
    assert said in printed
  for change, says in [
    (dict(limit=0), 'limit = 0'), ({'prompts.scorer': 'taste'}, "prompts.scorer = 'taste'"),
    ({'text.window': 65}, 'window = 65'), ({'prompts.sources.asked.extract': '('}, 'no regular expression'),
    ({'text.sources': {}, 'questions.sources': {}, 'prompts.sources': {}}, 'nothing to evaluate'),
    ({'questions.sources.f0.files': str(tmp_path / 'none.jsonl')}, 'matches no file'),
  ]:  # fmt: skip
    other = ConfigDict(json.loads(c.to_json_best_effort()))
    for key, value in change.items():
      section, _, leaf = key.rpartition('.')
      target = other
      for part in filter(None, section.split('.')):
        target = target[part]
      target[leaf] = ConfigDict() if value == {} else value
    with pytest.raises(BadInput, match=says):
      evaluate.run(other, str(saved))


def test_sampling_ends_at_any_of_several_ids(cfg, words):
  """Only EOS ends a completion: a chat model goes on to write the user's part; or the end is shown as text."""
  how = dict(mesh=ONE, new_tokens=12, seeds=[0], temperature=0.0)
  ids = words.prompt('the cat')
  [free] = sample.complete_ids(cfg, weights(cfg), words, [ids], eos=[words.bos, words.eos], **how)
  end = int(free.tokens[4])
  first = free.tokens.tolist().index(end)
  [cut] = sample.complete_ids(cfg, weights(cfg), words, [ids], eos=[end, words.eos], **how)
  assert cut.done and cut.tokens.tolist() == free.tokens[: first + 1].tolist()
  said = words.decode(ids + free.tokens[:first].tolist())[len(words.decode(ids)) :]
  assert cut.text == said
  pieces = sample.stream(cfg, weights(cfg), words, ids, new_tokens=12, seed=0, temperature=0.0, eos=[end, words.eos])
  assert ''.join(pieces) == said


def test_shapes_are_few(cfg):
  """Every length is compiled anew: minutes for a file of questions."""
  items = [(R.randint(0, VOCAB, n).tolist(), max(1, n - 5)) for n in range(2, 60)]
  before = scoring.token_scores._cache_size()
  score(cfg, weights(cfg), items, mesh=ONE, batch=4)
  assert scoring.token_scores._cache_size() - before <= 6


def test_a_conversation_that_is_too_long_loses_its_beginning(words, capsys):
  """The second turn forgets the first, the last question is cut away, or an answer is left without its question."""
  template = sample.template_for('llmstack', words)
  turn = [*sample.asked('the cat'), {'role': 'assistant', 'content': 'sat on'}]
  messages = [*turn, *turn, *sample.asked('the dog')]
  whole = template.prompt(messages)
  assert sample.fitting(template, messages, len(whole)) == (messages, whole) and not capsys.readouterr().err
  kept, ids = sample.fitting(template, messages, len(whole) - 1)
  assert kept == messages[2:] and ids == template.prompt(kept) and 'first 1 exchanges' in capsys.readouterr().err
  assert sample.fitting(template, messages, 1)[0] == messages[4:]
  assert sample.template_for(None, words) is None and set(template.stops) >= {words.eos}


def test_stages_are_there_before_any_is_measured(words, tmp_path):
  """The last stage of an assistant was never trained, and minutes of measuring the others end in a traceback."""
  c, saved = stages.get_config(), save(tmp_path / 'run', words)
  c.world = str(tmp_path)
  with pytest.raises(BadInput, match='manifest.json does not exist: make the world with'):
    assistant.run(c, str(tmp_path / 'out'))
  (tmp_path / 'manifest.json').write_text('{"seed": 0}')
  (tmp_path / 'questions.jsonl').write_text('')
  for name in c.models:
    c.models[name] = saved
  with pytest.raises(BadInput, match='models.reward = .*run is no reward model'):
    assistant.run(c, str(tmp_path / 'out'))
  c.models.distilled = str(tmp_path / 'none')
  del c.models.reward
  with pytest.raises(BadInput, match='models.distilled = .*none: there are no checkpoints'):
    assistant.run(c, str(tmp_path / 'out'))
