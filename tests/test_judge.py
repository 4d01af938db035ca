"""Judges: both orders, labels and what is neither, an endpoint that fails in every way, and the pairs that come out."""

import collections
import http.server
import json
import threading
import time

import jax
import numpy as np
import pytest
from helpers import model, weights
from ml_collections import ConfigDict

from configs import judge as settings
from llmstack import sharding
from llmstack.align import judge as asking
from llmstack.data import chat, records, sources, tokenizer
from llmstack.errors import BadInput, Missed
from llmstack.rewards import Rewards
from llmstack.tasks import judge as task
from llmstack.tasks import judges, rewarded, start

KEY = 'sk-not-a-real-key-4711'
WORDS = 'Which reply is better? Say 1 or 2 and nothing else. The cat sat on the mat, and the dog on the log. ' * 20


def asked(text):
  return [{'role': 'user', 'content': text}]


class Planted:
  """A judge that likes a text by the number in it, leans towards what it reads first, and says what it is told."""

  def __init__(self, lean=0.0, mass=1.0, thoughts='Hm.'):
    self.lean, self.mass, self.thoughts, self.seen = lean, mass, thoughts, []

  def choose(self, conversations, labels):
    self.seen += conversations
    out = []
    for messages in conversations:
      first, second = (float(x.split()[0]) for x in messages[0]['content'].split('=')[1:3])
      p = 1 / (1 + np.exp(second - first - self.lean))
      out.append(np.log(np.array([p, 1 - p]) * self.mass))
    return np.array(out, np.float32).reshape(-1, 2)

  def say(self, conversations):
    self.seen += conversations
    return [self.thoughts] * len(conversations)


SHORT = '{prompt} ={first} ={second} '


def test_both_orders_take_out_what_a_position_adds():
  """The label is the judge's taste for the first place, or an order is read as the other (P(b) for P(a)).

  By hand: sigmoid(0.8) = 0.6900, sigmoid(0.4 + 0.2) = 0.6457, sigmoid(0.4 - 0.2) = 0.5498, their mean 0.5977 against
  sigmoid(0.4) = 0.5987: of the lean 0.2 a thousandth is left, and of half the lean a quarter of that.
  """
  left = []
  for lean in (0.2, 0.1):
    found = asking.pairwise(Planted(lean), [asked('q')], ['0.9'], ['0.5'], template_text=SHORT)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    np.testing.assert_allclose(found.orders, [[sigmoid(0.4 + lean), sigmoid(0.4 - lean)]], atol=1e-6)
    left.append(sigmoid(0.4) - float(found.p[0]))
  assert left[0] == pytest.approx(0.5987 - 0.5977, abs=2e-4) and left[0] / left[1] == pytest.approx(4, rel=0.02)
  # One that only leans: no preference, all of it bias, and every pair is flipped.
  found = asking.pairwise(Planted(2.0), [asked('q')] * 2, ['0.5', '0'], ['0.5', '0'], template_text=SHORT)
  np.testing.assert_allclose(found.p, 0.5, atol=1e-6)
  told = found.summary()
  assert told['position_bias'] == pytest.approx(1 / (1 + np.exp(-2)) - 0.5, abs=1e-6) and told['flipped'] == 1


def test_what_is_asked():
  """The second order repeats the first, the principle of a pair goes to another, or {braces} of a reply are fields."""
  judge = Planted()
  rules = ['Be kind.', 'Be brief.']
  text = '{principle} {prompt} ={first} ={second} '
  asking.pairwise(judge, [asked('q'), asked('{x}')], ['1', '2'], ['3', '4 {b}'], template_text=text, principle=rules)
  said = [m[-1]['content'].split('\n')[0] for m in judge.seen]
  assert said == [
    'Be kind. User: q =1 =3 ', 'Be brief. User: {x} =2 =4 {b} ', 'Be kind. User: q =3 =1 ',
    'Be brief. User: {x} =4 {b} =2 ',
  ]  # fmt: skip
  assert judge.seen[0][-1]['content'].endswith('Say 1 or 2 and nothing else.')


def test_a_chain_of_thought():
  """Behind reasoning a judge is sure of everything (2212.08073): clamped; the verdict is asked behind what it said."""
  judge = Planted()
  found = asking.pairwise(judge, [asked('q')] * 2, ['9', '0'], ['0', '0.1'], template_text=SHORT, thinking=True)
  np.testing.assert_allclose(found.orders, [[0.6, 0.6], [0.475, 0.475]], atol=1e-3)
  assert [m['role'] for m in judge.seen[-1]] == ['user', 'assistant', 'user']
  assert judge.seen[-1][1]['content'] == 'Hm.' and 'Say 1 or 2' not in judge.seen[-1][0]['content']
  silent = asking.pairwise(Planted(thoughts=' '), [asked('q')], ['9'], ['0'], template_text=SHORT, thinking=True)
  assert np.isnan(silent.p[0]) and silent.summary()['failed'] == 1


def test_neither_label():
  """A judge that says neither gets a verdict from noise; one that says one label in one order only has no other."""
  found = asking.pairwise(Planted(mass=0.2), [asked('q')], ['1'], ['0'], template_text=SHORT, floor=0.25)
  assert np.isnan(found.p[0]) and found.summary() | {'neither': 0} == {
    'pairs': 1, 'decided': 0, 'undecided': 1, 'failed': 0, 'position_bias': None, 'flipped': None, 'neither': 0,
  }  # fmt: skip
  assert found.summary()['neither'] == pytest.approx(0.8, abs=1e-6)
  p, mass = asking.shares(np.log([[0.2, 0.2], [1e-9, 3e-9]]), 0.0)
  np.testing.assert_allclose(p, [[0.5, 0.5], [0.25, 0.75]], rtol=1e-6)
  p, mass = asking.shares(np.array([[-np.inf, -np.inf], [np.nan, np.nan], [-np.inf, 0]]), 0.0)
  assert np.isnan(p[:2]).all() and p[2].tolist() == [0, 1] and mass[0] == 0 and np.isnan(mass[1])


class Fixed(Planted):
  def __init__(self, *rows):
    self.rows, self.seen = rows, []

  def choose(self, conversations, labels):
    self.seen += conversations
    with np.errstate(divide='ignore'):
      return np.log(np.array([self.rows[i % len(self.rows)] for i in range(len(conversations))], np.float32))


def test_scales_and_rubrics():
  """A mark is the likeliest label instead of the mean, or weights of questions do not add up to one."""
  marks = asking.scalar(Fixed([0.1, 0.3, 0.0], [0, 0, 0]), [asked('q')] * 2, ['a', 'b'], labels=('1', '5', '10'))
  np.testing.assert_allclose(marks.score, [0.25 * 1 + 0.75 * 5, np.nan], rtol=1e-6)
  assert marks.mass.shape == (2, 1)
  marks = asking.rubric(Fixed([0.3, 0.1]), [asked('q')], ['a'], {'Is it true?': 3.0, 'Is it rude?': -1.0})
  np.testing.assert_allclose(marks.score, [0.75 * (3 - 1) / 4], rtol=1e-6)


BAD = {
  'one label': (lambda: asking.pairwise(Planted(), [], [], [], labels=('1',)), r"labels = \('1',\): give two"),
  'equal labels': (lambda: asking.pairwise(Planted(), [], [], [], labels=('A', 'A')), 'at least two different'),
  'no labels': (lambda: asking.scalar(Planted(), [], [], labels=()), 'at least two different'),
  'a space': (lambda: asking.pairwise(Planted(), [], [], [], labels=('A', ' B')), "label ' B'"),
  'no number': (lambda: asking.scalar(Planted(), [], [], labels=('a', 'b')), 'must be numbers'),
  'no field': (lambda: asking.pairwise(Planted(), [], [], [], template_text='{prompt} {first}'), 'second'),
  'a field more': (lambda: asking.scalar(Planted(), [], [], template_text='{prompt} {reply.x}'), 'reply.x'),
  'a brace': (lambda: asking.scalar(Planted(), [], [], template_text='{prompt} {reply} {'), 'for braces'),
  'no question': (lambda: asking.rubric(Planted(), [], [], {}), 'questions = {}'),
  'weights of 0': (lambda: asking.rubric(Planted(), [], [], {'q': 0}), 'not 0'),
  'a kind': (lambda: judges.comparer(settings.judge('oracle'), None), "judge.kind = 'oracle'"),
  'no key': (lambda: judges.Endpoint('http://h/v1', 'm', key='NO_SUCH_VARIABLE'), 'export it'),
  'a key in place of its name': (lambda: judges.Endpoint('http://h/v1', 'm', key=KEY), 'give its name'),
  'a file': (lambda: judges.Endpoint('file:///etc', 'm'), 'must be like http'),
  'a password': (lambda: judges.Endpoint('http://a:b@h/v1', 'm'), 'without a name'),
  'no model': (lambda: judges.Endpoint('http://h/v1', None), 'judge.model is empty'),
  'patience': (lambda: judges.Endpoint('http://h/v1', 'm', retries=-1), 'retries = -1'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_settings(name):
  """A mistake in the settings is found when the judge has already been paid, or tells the key."""
  make, sentence = BAD[name]
  with pytest.raises(BadInput, match=sentence) as e:
    make()
  assert KEY not in str(e.value)


# --- a checkpoint ---


@pytest.fixture(scope='module')
def words():
  return tokenizer.Tokenizer(tokenizer.train([WORDS], kind='bpe', vocab=300))


@pytest.fixture(scope='module')
def here():
  return sharding.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope='module')
def saved(tmp_path_factory, words):
  """A checkpoint of a language model and one of a reward model, which share what they are."""
  cfg, folder = model('llama_tiny', vocab=words.vocab, layers=1, length=512), tmp_path_factory.mktemp('saved')
  meta = start.record(cfg, ConfigDict(), words) | {'template': 'llmstack'}
  start.save_parameters(str(folder / 'lm'), weights(cfg), meta)
  head = {'value_head': {'w': np.random.RandomState(0).randn(cfg.width).astype(np.float32)}}
  start.save_parameters(str(folder / 'reward'), weights(cfg) | head, meta | {'kind': 'reward'})
  return folder


def test_a_checkpoint_as_the_judge(saved, here, words):
  """A label is scored at the wrong place or without its first token, '1' counts 10 too, or a long prompt is cut."""
  judge = judges.Local(str(saved / 'lm'), here, batch=4, new_tokens=4)
  labels = ('1', '10', 'the cat')
  ids = [judge._ids(label) for label in labels]
  assert [words.decode_plain(x) for x in ids] == list(labels) and ids[1][: len(ids[0])] == ids[0]
  talks = [asked('The cat?'), asked('The dog sat on the log. ' * 100), asked('The dog?')]
  got = judge.choose(talks, labels)
  assert np.isnan(got[1]).all() and np.isfinite(got[[0, 2]]).all()
  assert judge.failed == {'longer than the judge reads': 1}
  # What is sampled says the same: of all answers of one token, this one's share.
  template = chat.template('llmstack', words)
  whole = template.encode([*talks[0], {'role': 'assistant', 'content': 'the cat'}]).ids.tolist()
  at = len(template.prompt(talks[0]))
  from llmstack.infer.score import score

  (one,) = score(judge.cfg, judge.params, [(whole[: at + len(ids[2])], at)], mesh=here, batch=4)
  np.testing.assert_allclose(got[0, 2], one.logp.sum(), rtol=1e-5)
  (one,) = score(judge.cfg, judge.params, [(whole[:at] + ids[1], at)], mesh=here, batch=4)
  np.testing.assert_allclose(np.exp(got[0, 0]), np.exp(one.logp[: len(ids[0])].sum()) - np.exp(got[0, 1]), rtol=1e-4)
  said = judge.say(talks)
  assert isinstance(said[0], str) and said[1] is None and judge.say(talks) == said
  with pytest.raises(BadInput, match='says nothing'):
    judges.Local(str(saved / 'reward'), here, batch=4)


def test_labels_that_begin_others():
  """The mass of '100' is taken from '1' twice."""
  logp = np.log(np.float32([[0.6, 0.3, 0.1, 0.2]]))
  np.testing.assert_allclose(np.exp(asking.disjoint(logp, ['1', '10', '100', '2'])), [[0.3, 0.2, 0.1, 0.2]], rtol=1e-5)


# --- an endpoint ---


class Server:
  """An OpenAI-compatible endpoint whose answers a test writes: `answer(body, attempt) -> (status, headers, bytes)`."""

  def __init__(self, answer):
    outer, self.requests, self.attempts = self, [], collections.Counter()
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        with lock:
          said = body['messages'][-1]['content']
          outer.attempts[said] += 1
          outer.requests.append((self.path, dict(self.headers), body))
          attempt = outer.attempts[said]
        status, headers, data = answer(body, attempt)
        self.send_response(status)
        for name, value in ({'Content-Length': str(len(data))} | headers).items():
          self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

      def log_message(self, *_):
        pass

    self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    self.server.daemon_threads = True
    self.url = f'http://127.0.0.1:{self.server.server_address[1]}/v1'
    threading.Thread(target=self.server.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True).start()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.server.shutdown()
    self.server.server_close()


def reply(text, top=None):
  choice = {'message': {'role': 'assistant', 'content': text}}
  if top is not None:
    first = {'token': text, 'logprob': 0.0, 'top_logprobs': [{'token': t, 'logprob': x} for t, x in top]}
    choice['logprobs'] = {'content': [first]}
  return 200, {}, json.dumps({'choices': [choice]}).encode()


def endpoint(server, **how):
  return judges.Endpoint(server.url, 'm', **{'backoff': 0.001, 'timeout': 10.0, 'retries': 2} | how)


def test_an_endpoint(monkeypatch, capsys, caplog):
  """A failing request takes the others along; the key is written; ' 1' and '1' are two answers; 10 is read as 1."""
  monkeypatch.setenv('JUDGE_KEY', KEY)
  split = {'message': {'content': '10'}, 'logprobs': {'content': [{'token': '1', 'top_logprobs': []}]}}
  split['logprobs']['content'][0]['top_logprobs'] = [{'token': '1', 'logprob': -0.1}]
  answers = {
    'both': reply('1', [('1', np.log(0.5)), (' 1', np.log(0.25)), ('2', np.log(0.125)), ('x', -9.0)]),
    'text': reply('Reply 2, I think.'), 'two named': reply('1 is as good as 2'), 'neither': reply('Neither.'),
    'ten': (200, {}, json.dumps({'choices': [split]}).encode()),
    'bad request': (400, {}, KEY.encode()), 'away': (302, {'Location': 'http://127.0.0.1:9/'}, b''),
    'no chat': (200, {}, b'{"choices": []}'), 'no json': (200, {}, b'<html>'), 'nested': (200, {}, b'[' * 100_000),
    'null': (200, {}, json.dumps({'choices': [{'message': {'content': None}}]}).encode()),
    'short': (200, {'Content-Length': '1000'}, b'{}'), 'broken': (503, {}, b''),
  }  # fmt: skip

  def answer(body, attempt):
    said = body['messages'][-1]['content']
    if said in ('busy', 'down') and attempt < 3:
      return {'busy': 429, 'down': 500}[said], {'Retry-After': '0'} if said == 'busy' else {}, b''
    return answers.get(said, reply('1'))

  names = [*answers, 'busy', 'down']
  with Server(answer) as server:
    judge = endpoint(server, key='JUDGE_KEY')
    got = dict(zip(names, judge.choose([asked(name) for name in names], ('1', '2', '10')).tolist()))
    inf = float('inf')
    np.testing.assert_allclose(got['both'], [np.log(0.75), np.log(0.125), -inf], rtol=1e-6)
    assert got['text'] == [-inf, 0, -inf] and got['ten'] == [-inf, -inf, 0]
    assert got['two named'] == got['neither'] == [-inf] * 3
    assert got['busy'] == got['down'] == [0, -inf, -inf]
    lost = {name for name, row in got.items() if np.isnan(row).all()}
    assert lost == {'bad request', 'away', 'no chat', 'no json', 'nested', 'null', 'short', 'broken'}
    assert judge.failed == {
      'status 400': 1, 'status 302': 1, 'no answer of a chat': 4, 'an answer without text': 1, 'status 503': 1,
    }  # fmt: skip
    tried = {name: server.attempts[name] for name in ('both', 'bad request', 'away', 'broken', 'busy')}
    assert tried == {'both': 1, 'bad request': 1, 'away': 1, 'broken': 3, 'busy': 3}
    path, headers, body = server.requests[0]
    assert path == '/v1/chat/completions' and headers['Authorization'] == f'Bearer {KEY}'
    assert body['model'] == 'm' and body['top_logprobs'] == 20 and body['temperature'] == 0
    assert judge.say([asked('text'), asked('broken')], seeds=[7, 8]) == ['Reply 2, I think.', None]
    assert any(b.get('seed') == 7 for *_, b in server.requests)
    endpoint(server, top_logprobs=0).choose([asked('text')], ('1', '2'))
    assert 'logprobs' not in server.requests[-1][2] and 'Authorization' not in server.requests[-1][1]
  said = capsys.readouterr()
  assert KEY not in said.out + said.err + caplog.text + str(judge.failed)


def test_an_endpoint_that_refuses_or_is_not_there():
  """A wrong key is tried for every row; a server that hangs holds the run; one that is gone ends it in a traceback."""

  def answer(body, attempt):
    if body['messages'][-1]['content'] == 'hang':
      time.sleep(0.5)
    return (401, {}, b'') if body['messages'][-1]['content'] == 'refused' else reply('1')

  with Server(answer) as server:
    with pytest.raises(BadInput, match=r'status 401: correct judge.base_url'):
      endpoint(server, at_once=1).choose([asked('refused')] * 50, ('1', '2'))
    assert len(server.requests) < 50
    judge = endpoint(server, timeout=0.05, retries=0)
    assert np.isnan(judge.choose([asked('hang'), asked('x')], ('1', '2'))).tolist() == [[True] * 2, [False] * 2]
    assert judge.failed == {'no answer within 0.05 s': 1}
  judge = endpoint(server)
  assert np.isnan(judge.choose([asked('x')], ('1', '2'))).all() and judge.failed == {
    'no connection: ConnectionRefusedError': 1
  }


# --- the task, and the reward ---


def config(saved, tmp_path, **judge):
  lines = [{'prompt': f'The cat {i}?', 'margin': 3.0, 'label': 0.1} for i in range(6)] + [{'prompt': ''}]
  (tmp_path / 'prompts.jsonl').write_text(''.join(f'{json.dumps(line)}\n' for line in lines))
  c = settings.get_config('hh')
  c.policy, c.slots, c.new_tokens, c.group = str(saved / 'lm'), 8, 6, 4
  c.data.sources = ConfigDict({'own': settings.prompts((str(tmp_path / 'prompts.jsonl'),))})
  c.judge = settings.judge(**judge)
  return c.lock()


def test_pairs_that_the_trainer_reads(saved, here, tmp_path, capsys):
  """The better one stands as rejected, its label is P(a), or a prompt's own label and margin are taken for it."""
  task.run(config(saved, tmp_path, kind='reward', workdir=str(saved / 'reward'), batch=4), str(tmp_path / 'out'))
  out = capsys.readouterr()
  assert 'left out 1 x empty prompt' in out.err and '6 pairs judged: 6 decided, 0 undecided, 0 failed' in out.out
  rows = [json.loads(line) for line in (tmp_path / 'out/pairs.jsonl').read_text().split('\n') if line]
  scorer = judges.Scorer(str(saved / 'reward'), here, 4)
  for row in rows:
    better, worse = (scorer([row['prompt']], [row[k]])[0] for k in ('chosen', 'rejected'))
    assert better > worse and row['label'] == pytest.approx(1 / (1 + np.exp(worse - better)), abs=1e-5)
  found = [pair for _, pair in records.pairs(sources.Source((str(tmp_path / 'out/pairs.jsonl'),)))]
  assert [p.label for p in found] == [row['label'] for row in rows] and all(p.margin == 0 for p in found)
  told = json.loads((tmp_path / 'out/judge.json').read_text())
  assert told['decided'] == 6 and told['position_bias'] == pytest.approx(0, abs=1e-7)


def test_a_constitution_compares(saved, here, tmp_path, capsys):
  """All pairs are compared by one principle, a row names another than was asked, or one that compares nothing is drawn;
  or a reward model is believed to follow principles."""
  (tmp_path / 'rules.txt').write_text(
    'critique: A?\nrevision: B.\ncomparison: The better reply is short.\n\ncritique: C?\nrevision: D.\n\n'
    'critique: E?\nrevision: F.\ncomparison: The better reply is kind.'
  )
  c = config(saved, tmp_path, kind='model', workdir=str(saved / 'lm'), batch=4)
  with c.unlocked():
    c.constitution = str(tmp_path / 'rules.txt')
  task.run(c, str(tmp_path / 'out'))
  rows = [json.loads(line) for line in (tmp_path / 'out/pairs.jsonl').read_text().split('\n') if line]
  assert {row['principle'] for row in rows} == {'The better reply is short.', 'The better reply is kind.'}
  a, b, rules, prompts = zip(*((r['chosen'], r['rejected'], r['principle'], r['prompt']) for r in rows))
  judge = judges.Local(str(saved / 'lm'), here, batch=4)
  want = asking.pairwise(judge, prompts, a, b, principle=rules)
  np.testing.assert_allclose([row['label'] for row in rows], want.p, atol=1e-5)
  assert np.abs(want.p - asking.pairwise(judge, prompts, a, b, principle=rules[::-1]).p).max() > 1e-4
  with c.unlocked():
    c.judge.kind = 'reward'
  with pytest.raises(BadInput, match='a reward model reads no principles'):
    task.run(c, str(tmp_path / 'out'))
  (tmp_path / 'rules.txt').write_text('critique: A?\nrevision: B.')
  with c.unlocked():
    c.judge.kind = 'model'
  with pytest.raises(BadInput, match='rules.txt compares nothing'):
    task.run(c, str(tmp_path / 'out'))


def test_people_who_compared_already(saved, here, tmp_path, capsys):
  """People's choice always stands first, so that a judge that likes the first place agrees with them."""
  pairs = [{'prompt': f'q{i}', 'chosen': f'cat {i}', 'rejected': f'dog {i}'} for i in range(40)]
  pairs[0]['chosen'] = 'cat ' * 900  # longer than the judge reads
  (tmp_path / 'pairs.jsonl').write_text(''.join(f'{json.dumps(pair)}\n' for pair in pairs))
  c = config(saved, tmp_path, kind='reward', workdir=str(saved / 'reward'), batch=8)
  c.replies, c.data.sources.own.files = 'file', (str(tmp_path / 'pairs.jsonl'),)
  prompts, texts, worth = task.compared(c)
  assert 8 < sum(a.startswith('cat') for a, _ in texts) < 32
  assert worth.tolist() == [[1.0, 0.0] if a.startswith('cat') else [0.0, 1.0] for a, _ in texts]
  assert all(p.messages == asked(f'q{a.split()[1]}') for p, (a, _) in zip(prompts, texts) if len(a) < 99)
  task.run(c, str(tmp_path / 'out'))
  told = json.loads((tmp_path / 'out/judge.json').read_text())
  assert told['truth']['of'] == told['decided'] == 39 and told['failures'] == {'longer than the judge reads': 1}


def test_no_verdict_at_all(saved, tmp_path, monkeypatch):
  """Hours of sampling end in an empty file and status 0; what an endpoint answered, or the key, is lost or kept."""
  monkeypatch.setenv('JUDGE_KEY', KEY)
  with Server(lambda body, attempt: reply('Neither.')) as server:
    c = config(saved, tmp_path, kind='endpoint', base_url=server.url, model='m', key='JUDGE_KEY')
    with pytest.raises(Missed, match='not one of 6 pairs has a verdict'):
      task.run(c, str(tmp_path / 'out'))
  told = json.loads((tmp_path / 'out/judge.json').read_text())
  assert (told['undecided'], told['failed'], told['neither']) == (6, 0, 1.0)
  assert len((tmp_path / 'out/undecided.jsonl').read_text().split('\n')) == 7
  assert not any(KEY in path.read_text() for path in (tmp_path / 'out').iterdir())


def test_how_far_a_judge_is_right():
  """Pairs that are worth the same, or have no verdict, count as right or wrong; a half is a hit."""
  p = np.float32([0.9, 0.2, 0.5, 0.7, np.nan])
  verdicts = asking.Verdicts(p, np.stack([p, p], 1), np.ones((5, 2), np.float32))
  found = task.agreement(verdicts, np.array([[1.0, 0], [1, 0], [1, 0], [2, 2], [0, 9]]))
  assert (found['right'], found['of']) == (1.5, 3) and found['low'] < 0.5 < found['high']
  assert (found['chosen'], found['rejected']) == (1.0, 0.75)


def test_a_judge_as_a_reward(here):
  """A row that the judge does not answer ends the run, or marks 1 to 10 are not -1 to 1."""
  answers = {'good': '10', 'middling': '4', 'odd': 'Well.'}
  asked_for = lambda body: body['messages'][-1]['content'].split('Reply: ')[1].split('\n')[0]  # noqa: E731
  with Server(lambda body, attempt: reply(answers[asked_for(body)])) as server:
    c = ConfigDict()
    options = {'judge': settings.judge('endpoint', base_url=server.url, model='m')}
    c.rewards = ConfigDict({'judge': {'kind': 'judge', 'weight': 1.0, **options}})
    reward = rewarded.rewards(c, None, here)
    assert isinstance(reward, Rewards)
    scored = reward([asked('q')] * 3, list(answers), [{}] * 3)
  np.testing.assert_allclose(scored.total, [1, -1 / 3, np.nan], rtol=1e-6)
  assert scored.failed == {'judge': 1}
  c.rewards.judge.form = 'rubrik'
  with pytest.raises(BadInput, match="form = 'rubrik'"):
    rewarded.rewards(c, None, here)
