"""The page on which people judge: blind, on disk at once, closed to strangers; and the numbers of agreement by hand."""

import contextlib
import http.client
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading

import browser
import numpy as np
import pytest

from llmstack.data import records, sources
from llmstack.errors import BadInput
from llmstack.serve import agreement, label
from llmstack.tasks.label import command, compare

NASTY = '</script><img src=x onerror=alert(1)> \u202eevil'
ROWS = [
  {'id': 'dpo-or-sft', 'prompt': 'Capital of France?', 'completions': ['Paris.', 'Lyon.'], 'model': 'dpo'},
  {'prompt': [{'role': 'user', 'content': 'Twice two?'}], 'a': [{'role': 'assistant', 'content': '4'}], 'b': '5'},
  {'prompt': NASTY, 'chosen': 'no', 'rejected': NASTY},
  {'chosen': '\n\nHuman: Hi\n\nAssistant: Hello', 'rejected': '\n\nHuman: Hi\n\nAssistant: Go away'},
]


def wrote(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


@pytest.fixture
def pairs(tmp_path):
  return wrote(tmp_path / 'pairs.jsonl', ROWS)


@contextlib.contextmanager
def labelling(pairs, out, rater='anna', **how):
  """Yields Labels that are closed at the end."""
  with contextlib.closing(label.Labels(label.read(pairs), str(out), rater, **how)) as labels:
    yield labels


@contextlib.contextmanager
def serving(labels, **how):
  with label.Server(labels, **how) as server:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
      yield server
    finally:
      server.shutdown()
      thread.join()


def ask(server, method, path, body=None, **headers):
  """Returns (status, headers, text) of a request; a POST looks like the page's own unless `headers` says otherwise."""
  connection = http.client.HTTPConnection('127.0.0.1', server.port, timeout=20)
  own = {'Host': f'127.0.0.1:{server.port}'}
  if method == 'POST':
    own |= {'Origin': f'http://127.0.0.1:{server.port}', 'Content-Type': 'application/json'}
  own |= {k.replace('_', '-'): v for k, v in headers.items()}
  body = json.dumps(body) if isinstance(body, dict) else body
  connection.request(method, path, body, {k: v for k, v in own.items() if v is not None})
  answer = connection.getresponse()
  text = answer.read().decode()
  connection.close()
  return answer.status, answer.headers, text


def judge(labels, *verdicts):
  for verdict in verdicts:
    assert labels.judge(labels.state()['item'], verdict)[0]


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize('seed', [0, 1])  # the first two as they are, and swapped
def test_what_is_written_is_what_was_meant(pairs, tmp_path, seed):
  """Left becomes chosen although the sides were swapped, a skip or an undone verdict trains, or a tie has a side."""
  out = tmp_path / 'labels.jsonl'
  said = {}
  with labelling(pairs, out, seed=seed) as labels:
    for verdict in ('left', 'right', 'tie', 'skip'):
      state = labels.state()
      said[verdict] = state['left'], state['right']
      judge(labels, verdict)
    assert labels.state()['k'] == 4 and labels.state()['skipped'] == 1 and labels.state()['item'] is None
  rows = lines(out)
  assert [r['label'] for r in rows] == [1.0, 1.0, 0.5] and [r['id'] for r in rows][0] == 'dpo-or-sft'
  assert (rows[0]['chosen'], rows[0]['rejected']) == said['left']
  assert (rows[1]['rejected'], rows[1]['chosen']) == said['right']
  counts = sources.collections.Counter()
  read = [pair for _, pair in records.pairs(sources.Source((str(out),)), counts)]
  assert [p.label for p in read] == [1.0, 1.0, 0.5] and not counts
  assert read[2].prompt[0]['content'] == NASTY and read[1].prompt[0] == {'role': 'user', 'content': 'Twice two?'}
  with labelling(pairs, out, seed=seed) as labels:
    for k in (3, 2, 1):  # the skip, the tie, and one more
      taken, state = labels.undo(labels.state()['undo'])
      assert taken and state['k'] == k and len(lines(out)) == k
    judge(labels, 'right')
  assert [r['label'] for r in lines(out)] == [1.0, 1.0]
  journal = [r['verdict'] for r in lines(tmp_path / 'labels.jsonl.journal')]
  assert journal[2:7] == ['tie', 'skip', 'undo', 'undo', 'undo'] and len(journal) == 8
  assert lines(out)[1]['chosen'] == said['right'][1]


def test_order_is_a_fair_coin_that_stays(pairs, tmp_path):
  """The order differs after a restart, is the same for every rater, or one side is seen more often."""
  flips = np.array([[label.swapped(seed, str(i), rater) for i in range(2000)] for seed in (0, 1) for rater in 'ab'])
  assert (np.abs(flips.mean(1) - 0.5) < 0.05).all()
  assert (np.abs(np.corrcoef(flips)[np.triu_indices(4, 1)]) < 0.08).all()
  assert [label.swapped(0, str(i), 'anna') for i in range(8)] == [False, False, True, False, False, True, False, True]
  shown = []
  for n in range(2):
    with labelling(pairs, tmp_path / f'{n}.jsonl') as labels:
      shown.append(labels.state()['left'])
  assert shown[0] == shown[1]


def test_blind(pairs, tmp_path):
  """An id, a file name or a field of the record tells the browser which model it looks at."""
  with labelling(pairs, tmp_path / 'labels.jsonl') as labels, serving(labels) as server:
    told = ask(server, 'GET', '/state')[2]
    assert 'Paris.' in told and 'Lyon.' in told
    for path in ('/', '/label.css', '/label.js'):
      told += ask(server, 'GET', path)[2]
    told += ask(
      server, 'POST', '/verdict', {'item': json.loads(ask(server, 'GET', '/state')[2])['item'], 'verdict': 'tie'}
    )[2]
  assert (
    'dpo' not in told and 'sft' not in told and 'pairs.jsonl' not in told and label.read(pairs)[0].digest not in told
  )


def test_goes_on_where_it_was_killed(pairs, tmp_path):
  """Half a line swallows the next one, a pair is asked twice or trains without its verdict, or nobody is told."""
  out, journal = tmp_path / 'labels.jsonl', tmp_path / 'labels.jsonl.journal'
  with labelling(pairs, out) as labels:
    judge(labels, 'left', 'skip', 'right')
  whole = out.read_bytes(), journal.read_bytes()
  two = [b''.join(text.splitlines(keepends=True)[:-1]) for text in whole]
  for name, left, k in (
    ('half a pair', (whole[0][:-20], two[1]), 2),
    ('a pair without its verdict', (whole[0], two[1]), 2),
    ('half a verdict', (whole[0], whole[1][:-9]), 2),
    ('a verdict without its end', (whole[0], whole[1][:-1]), 2),
  ):
    out.write_bytes(left[0])
    journal.write_bytes(left[1])
    with labelling(pairs, out) as labels:
      assert labels.state()['k'] == k and labels.notes and labels.notes[0].startswith(str(tmp_path)), name
      judge(labels, 'right')
    assert out.read_bytes()[: len(two[0])] == two[0] and len(lines(out)) == 2 and len(lines(journal)) == 3, name
  with labelling(pairs, out) as labels:
    assert labels.state()['k'] == 3 and not labels.notes


def test_only_grows(pairs, tmp_path):
  """A verdict rewrites what was there, so that a kill or a full disk in the middle takes all of it."""
  out, journal = tmp_path / 'labels.jsonl', tmp_path / 'labels.jsonl.journal'
  with labelling(pairs, out) as labels:
    inodes, before = [os.stat(p).st_ino for p in (out, journal)], (b'', b'')
    for verdict in ('left', 'tie', 'skip', 'right'):
      judge(labels, verdict)
      now = out.read_bytes(), journal.read_bytes()
      assert all(n.startswith(b) for n, b in zip(now, before)) and now[1] != before[1]
      before = now
    assert inodes == [os.stat(p).st_ino for p in (out, journal)]


def test_full_disk(pairs, tmp_path):
  """Half a line stays behind a failed write, or the rater is told that it was taken down."""
  out = tmp_path / 'labels.jsonl'
  script = f"""
import resource, signal, sys
sys.path.insert(0, {os.getcwd()!r})
from llmstack.serve import label
labels = label.Labels(label.read({pairs!r}), {str(out)!r}, 'anna')
labels.judge(labels.state()['item'], 'left')
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({{}}, resource.RLIM_INFINITY))
try:
  labels.judge(labels.state()['item'], 'left')
except OSError as e:
  print(e.errno, labels.state()['k'])
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
labels.judge(labels.state()['item'], 'tie')
"""
  with labelling(pairs, out) as labels:
    judge(labels, 'left')
  sizes = os.path.getsize(out), os.path.getsize(f'{out}.journal')
  for limit in (sizes[0] + 30, sizes[1] + 30):  # the pair does not fit; the pair fits, were it not larger; never half
    out.unlink()
    os.unlink(f'{out}.journal')
    done = subprocess.run([sys.executable, '-c', script.format(limit)], capture_output=True, text=True, check=True)
    assert re.fullmatch(r'(27|28) 1\n', done.stdout)
    assert [r['label'] for r in lines(out)] == [1.0, 0.5] and len(lines(tmp_path / 'labels.jsonl.journal')) == 2


def test_two_windows(pairs, tmp_path):
  """A second window, or a key pressed twice, judges the next pair unseen, or an undo takes back another's."""
  with labelling(pairs, tmp_path / 'labels.jsonl') as labels, serving(labels) as server:
    first = labels.state()['item']
    assert ask(server, 'POST', '/verdict', {'item': first, 'verdict': 'left'})[0] == 200
    status, _, text = ask(server, 'POST', '/verdict', {'item': first, 'verdict': 'left'})
    assert status == 409 and json.loads(text)['k'] == 1 and labels.state()['undo'] == first
    judge(labels, 'left')
    assert ask(server, 'POST', '/undo', {'item': first})[0] == 409 and labels.state()['k'] == 2
    with pytest.raises(BadInput, match='is being written by another process'):
      label.Labels(label.read(pairs), str(tmp_path / 'labels.jsonl'), 'anna')


def test_strangers_are_refused(pairs, tmp_path):
  """Another site's page reads the pairs or votes, by a name bent to this address, a form, or a frame."""
  with labelling(pairs, tmp_path / 'labels.jsonl') as labels, serving(labels) as server:
    for host in (
      'evil.example',
      f'evil.example:{server.port}',
      f'127.0.0.1.evil.example:{server.port}',
      '192.0.2.1',
      '',
    ):
      assert ask(server, 'GET', '/state', Host=host)[0] == 421, host
    for host in ('localhost', 'LOCALHOST:1', '[::1]:9', f'127.0.0.1:{server.port}'):
      assert ask(server, 'GET', '/state', Host=host)[0] == 200, host
    vote = {'item': labels.state()['item'], 'verdict': 'left'}
    own = f'http://127.0.0.1:{server.port}'
    for origin in (None, 'null', 'http://evil.example', own + '0', f'http://localhost:{server.port}'):
      assert ask(server, 'POST', '/verdict', vote, Origin=origin)[0] == 403, origin
    assert ask(server, 'POST', '/verdict', vote, Content_Type='text/plain')[0] == 415
    for body in ('', '[]', '{"verdict": "left"}', '\x80', '[' * 4000):
      assert ask(server, 'POST', '/verdict', body)[0] == 400, body
    assert ask(server, 'POST', '/verdict', vote | {'verdict': 'best'})[0] == 400
    assert ask(server, 'POST', '/verdict', 'x' * 5000)[0] == 413
    assert ask(server, 'POST', '/verdict', iter([b'x']), Transfer_Encoding='chunked')[0] == 411
    assert ask(server, 'POST', '/verdict', vote, Content_Length='-1')[0] == 411
    for path in ('/labels.jsonl', '/../pairs.jsonl', '/%2e%2e/pairs.jsonl', '/label.py', '/verdict'):
      assert ask(server, 'GET', path)[0] == 404, path
    assert ask(server, 'POST', '/label.js', vote)[0] == 404
    _, headers, _ = ask(server, 'GET', '/')
    assert "default-src 'none'" in headers['Content-Security-Policy'] and headers['Cache-Control'] == 'no-store'
    assert "frame-ancestors 'none'" in headers['Content-Security-Policy'] and 'Python' not in headers['Server']
    assert labels.state()['k'] == 0
    assert ask(server, 'POST', '/verdict', vote)[0] == 200


def test_token(pairs, tmp_path, capfd):
  """A page is served to whoever has no token, the token reaches a log or the cookie, or it travels on in a link."""
  secret = 'correct-horse-battery'
  with labelling(pairs, tmp_path / 'labels.jsonl') as labels:
    with pytest.raises(BadInput, match='--host 0.0.0.0 can be reached from other machines'):
      label.Server(labels, '0.0.0.0')
    for short in ('', 'secret', secret + ' ', 'ü' * 20):
      with pytest.raises(BadInput, match='the token must be at least 16 printable'):
        label.Server(labels, token=short)
    with serving(labels, token=secret) as server:
      vote = {'item': labels.state()['item'], 'verdict': 'left'}
      for path in ('/', '/state', '/label.js', '/nothing', '/state?token=' + secret, '/?token='):
        assert ask(server, 'GET', path)[0] == 401, path
      assert ask(server, 'POST', '/verdict', vote)[0] == 401 and labels.state()['k'] == 0
      assert ask(server, 'GET', '/?token=' + secret[:-1])[0] == 401
      assert ask(server, 'GET', '/state', Authorization='Bearer ' + secret + 'y')[0] == 401
      status, headers, _ = ask(server, 'GET', '/?token=' + secret)
      cookie = headers['Set-Cookie']
      assert status == 303 and headers['Location'] == '/' and secret not in cookie
      assert 'HttpOnly' in cookie and 'SameSite=Strict' in cookie and headers['Referrer-Policy'] == 'no-referrer'
      cookie = cookie.split(';')[0]
      assert ask(server, 'GET', '/state', Cookie=cookie[:-1])[0] == 401
      assert ask(server, 'GET', '/state', Cookie=f'other=1; {cookie}')[0] == 200
      assert ask(server, 'GET', '/state', Host='192.0.2.1', Authorization=f'Bearer {secret}')[0] == 200
      assert ask(server, 'GET', '/state', Host='evil.example', Cookie=cookie)[0] == 421
      assert ask(server, 'POST', '/verdict', vote, Cookie=cookie, Origin='http://evil.example')[0] == 403
      assert ask(server, 'POST', '/verdict', vote, Cookie=cookie)[0] == 200
  assert secret not in ''.join(capfd.readouterr())


PAIR = {'prompt': 'p', 'a': 'x', 'b': 'y'}


@pytest.mark.parametrize('rows, says', [
  ([], 'is empty'), ([{'prompt': 'p', 'a': 'x'}], "pairs.jsonl:1 has fields ['a', 'prompt'], where prompt with"),
  ([{'prompt': 'p', 'completions': ['x']}], 'completions is [\'x\']: give a list of two'),
  ([{'a': 'x', 'b': 'y'}], 'replies without their prompt'), ([PAIR | {'b': 'x'}], 'are the same: drop the pair'),
  ([PAIR, PAIR], 'pairs.jsonl:2: id '), ([PAIR, {'prompt': 'p', 'a': 'y', 'b': 'x'}], 'came before'),
  ([PAIR | {'id': 1}, PAIR | {'id': '1'}], 'id 1 came before'), ([PAIR | {'id': []}], 'id is []'),
  ([PAIR | {'b': ' '}], 'without text'), ([PAIR | {'b': 7}], '7'), ([PAIR | {'prompt': '\ud800'}], 'surrogate'),
])  # fmt: skip
def test_bad_pairs(tmp_path, rows, says):
  """A traceback, or a pair on the page that no trainer can read afterwards."""
  path = wrote(tmp_path / 'pairs.jsonl', rows)
  with pytest.raises(BadInput, match=re.escape(says)):
    label.read(path)
  good = {'prompt': 'q', 'a': 'x', 'b': 'y'}
  counts = sources.collections.Counter()
  assert label.read(wrote(tmp_path / 'pairs.jsonl', [*rows, good]), 'skip', counts)[-1].b[0]['content'] == 'y'
  assert sum(counts.values()) == (1 if rows else 0)


def test_bad_input(pairs, tmp_path):
  """A traceback instead of a sentence, another rater's verdicts as one's own, or a file overwritten."""
  out = tmp_path / 'labels.jsonl'
  go = [pairs, '--out', str(out), '--rater', 'anna']
  (tmp_path / 'short').write_text('secret\n')
  (tmp_path / 'other.jsonl').write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
  with labelling(pairs, out) as labels:
    judge(labels, 'left', 'left')
    with serving(labels) as server, pytest.raises(BadInput, match='cannot be listened at'):
      label.Server(labels, port=server.port)
  for argv, says in (
    ([], 'give either pairs to judge or --agreement'), ([pairs], '--out and --rater are needed'),
    ([*go[:-1], ' '], '--out and --rater are needed'), ([*go, '--agreement', 'x'], 'give either'),
    ([pairs, '--out', pairs, '--rater', 'a'], 'is the file of the pairs'),
    (['nowhere.jsonl', *go[1:]], 'nowhere.jsonl is not a file'), ([*go, '--port', '-1'], '--port -1 cannot be'),
    ([*go, '--port', 'x'], '--port'), ([*go, '--host', 'no.such.name.invalid'], 'can be reached from other'),
    ([*go, '--token-file', str(tmp_path / 'short')], 'the token must be'), ([*go[:-1], 'ben'], "of rater 'anna', and"),
    ([pairs, '--out', str(tmp_path / 'no' / 'x'), '--rater', 'a'], 'in a folder that exists'),
    ([pairs, '--out', str(tmp_path / 'other.jsonl'), '--rater', 'a'], 'other.jsonl.journal is not: bring that back'),
    ([str(tmp_path / 'other.jsonl'), *go[1:]], 'which is not among these'),
    (['--agreement', str(out)], 'verdicts of 1 rater'), (['--agreement', str(out), str(out)], 'give each file once'),
  ):  # fmt: skip
    with pytest.raises(BadInput, match=re.escape(says)):
      command(argv)
  whole = out.read_bytes()
  out.write_bytes(whole.replace(b'Paris', b'Porto'))
  with pytest.raises(BadInput, match='does not hold what .* says'):
    command(go)
  out.write_bytes(whole)
  (tmp_path / 'labels.jsonl.journal').write_text('{"id": 1}\n')
  with pytest.raises(BadInput, match='line 1 is not what llmstack label writes'):
    command(go)
  assert out.read_bytes() == whole


def test_ends_by_ctrl_c(pairs, tmp_path):
  """Ctrl-C is a traceback, or the port of a server that ended cannot be used again."""
  argv = f'[{pairs!r}, "--out", {str(tmp_path / "l.jsonl")!r}, "--rater", "anna", "--port", "0"]'
  # What a script starts in the background ignores SIGINT, and so does all that it starts.
  heard = 'signal.signal(signal.SIGINT, signal.default_int_handler)'
  code = f'import signal, sys; {heard}; from llmstack.tasks.label import command; sys.exit(command({argv}))'
  process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  assert process.stdout.readline() == 'anna: 0 of 4 pairs judged; Ctrl-C ends it\n'
  assert re.fullmatch(r'http://127\.0\.0\.1:\d+/\n', process.stdout.readline())
  process.send_signal(signal.SIGINT)
  out, err = process.communicate(timeout=30)
  assert process.returncode == 0 and '0 of 4 pairs judged, 0 of them skipped' in out and not err


def test_kappa_and_alpha_by_hand():
  """A textbook's table gives another number than the textbook."""
  # Cohen's: 20 and 15 agreements of 50, shares of yes 0.5 and 0.6: (0.7 - 0.5) / (1 - 0.5).
  assert agreement.cohen(np.array([[20.0, 5, 0], [10, 15, 0], [0, 0, 0]])) == pytest.approx(0.4)
  # Krippendorff 2011, example C without its fourth category's name: 2 observers, 12 units with values 0 and 1, 10
  # units: values of A 0100000000, of B 1110010010: D_o = 6 / 10, D_e = 2 * 14 * 6 / (20 * 19): alpha 0.095.
  a, b = np.array([0, 1, 0, 0, 0, 0, 0, 0, 0, 0]), np.array([1, 1, 1, 0, 0, 1, 0, 0, 1, 0])
  counts = np.bincount(np.concatenate([a, b]), minlength=3).astype(float)
  assert agreement.krippendorff(2.0 * (a != b).sum(), counts) == pytest.approx(0.095, abs=5e-4)
  assert math.isnan(agreement.cohen(np.diag([5.0, 0, 0])))


def test_agreement_by_hand():
  """A tie counts for a side, a pair of one verdict counts, or the number depends on which reply is called the first."""
  F, T, S, N = agreement.FIRST, agreement.TIE, agreement.SECOND, -1
  two = np.array([[F, F], [S, S], [F, S], [T, T], [T, F], [S, S], [F, N], [N, S]])
  found = agreement.agreement(two)
  # Six units, four agree. Shares after a swap of sides: A 2/6, 2/6, 2/6; B 5/12, 1/6, 5/12: chance 1/3.
  assert found['units'] == 6 and found['verdicts'] == 12 and found['raw'].value == pytest.approx(4 / 6)
  assert found['decided'].value == pytest.approx(3 / 4)
  assert found['kappa'].value == pytest.approx((4 / 6 - 1 / 3) / (1 - 1 / 3))
  # Each unit twice: n = 24 verdicts, 9 T-free sides each, 6 T; D_o = 8/24, D_e = (24^2 - 2 * 81 - 36) / (24 * 23).
  assert found['alpha'].value == pytest.approx(1 - (8 / 24) / ((576 - 198) / (24 * 23)))
  assert found['raw'].low <= found['raw'].value <= found['raw'].high and found['raw'].low < found['raw'].high
  flipped = two.copy()
  flipped[:3] = np.where(two[:3] < 0, -1, 2 - two[:3])
  assert agreement.agreement(flipped) == found == agreement.agreement(two)
  # Three raters on one unit: one of three pairs agrees. A second unit, where all agree.
  three = agreement.agreement(np.array([[F, F, S], [T, T, T]]))
  assert three['raw'].value == pytest.approx((1 / 3 + 1) / 2) and three['kappa'] is None
  assert three['decided'].value == pytest.approx(1 / 3)
  always = agreement.agreement(np.full((5, 2), T))
  assert always['raw'].value == 1 and math.isnan(always['kappa'].value) and math.isnan(always['alpha'].value)
  assert agreement.agreement(np.array([[F, N], [N, S]]))['units'] == 0


def test_interval_covers():
  """The interval is of the standard error's size, or of single verdicts instead of pairs."""
  r = np.random.default_rng(1)
  held = []
  for seed in range(60):
    truth = r.integers(0, 2, 150) * 2
    said = np.stack([np.where(r.random(150) < 0.85, truth, 2 - truth) for _ in 'ab'], 1)
    held.append(agreement.agreement(said, seed, 400)['raw'])
  share = np.mean([e.low <= 0.745 <= e.high for e in held])  # 0.85^2 + 0.15^2
  assert 0.85 <= share <= 1.0
  assert np.mean([e.high - e.low for e in held]) == pytest.approx(2 * 1.96 * math.sqrt(0.745 * 0.255 / 150), rel=0.1)


def test_raters_are_compared_by_text(pairs, tmp_path):
  """Agreement depends on the order that each rater saw or that each file has, or a judge's file cannot take part."""
  choice = {'anna': 'Paris. 4 no Hello', 'ben': 'Paris. 5 no Go away', 'cy': 'Lyon. 5'}
  files = []
  for rater, said in choice.items():
    path = tmp_path / f'{rater}.jsonl'
    with labelling(pairs, path, rater, seed=len(rater)) as labels:
      while (state := labels.state())['item'] and labels.state()['k'] < (2 if rater == 'cy' else 4):
        judge(labels, 'left' if state['left'][0]['content'] in said else 'right')
    files.append(str(path))
  out = list(compare(files[:2], 0))
  assert out[2].startswith('4 pairs judged by at least two, 8 verdicts')
  assert out[3].startswith('raw agreement       50.0% (') and out[5].startswith("Cohen's kappa       0.000 (")
  out = '\n'.join(compare(files, 0))
  assert 'anna and cy: 2 pairs, 0.0%' in out and 'ben and cy: 2 pairs, 50.0%' in out and 'kappa' in out
  # A judge's soft labels on the three pairs without an id; 0.2 means the one called rejected.
  judged = [{'prompt': 'Twice two?', 'chosen': '5', 'rejected': '4', 'label': 0.2}, ROWS[2] | {'label': 0.5}]
  out = list(compare([files[0], wrote(tmp_path / 'judge.jsonl', judged)], 0))
  assert out[1] == f'{tmp_path}/judge.jsonl: 2 judged, 1 ties' and '2 pairs judged by at least two' in out[2]
  assert out[3].startswith('raw agreement       50.0%')
  with pytest.raises(BadInput, match='judged this pair before'):
    list(compare([files[0], wrote(tmp_path / 'judge.jsonl', [judged[0], judged[0]])], 0))


@pytest.mark.browser
@pytest.mark.skipif(browser.PATH is None, reason=browser.MISSING)
@pytest.mark.parametrize('dark, touch', [(False, False), (True, True)])
def test_in_a_browser(tmp_path, dark, touch):
  """A key or a button says something else, a reply becomes markup, a held key votes on, or it scrolls sideways."""
  rows = [{'prompt': f'{i} {NASTY}', 'a': f'left? {NASTY * 20}', 'b': 'word ' * 400} for i in range(14)]
  out = tmp_path / 'labels.jsonl'
  size = (390, 844) if touch else (1280, 900)
  labels = label.Labels(label.read(wrote(tmp_path / 'pairs.jsonl', rows)), str(out), 'anna')
  with contextlib.closing(labels), serving(labels) as server, browser.Browser(tmp_path, size, dark, touch) as page:
    at = lambda k: page.wait(f'document.documentElement.dataset.ready === "{k}"')  # noqa: E731
    page.open(server.address)
    at(0)
    assert page.eval('document.images.length + document.querySelectorAll("main script, main b").length') == 0
    assert NASTY.replace('\u202e', '⟨202e⟩') in page.text('main') and '0 of 14' in page.text('header')
    paper = page.eval('getComputedStyle(document.documentElement).backgroundColor')
    assert paper == ('rgb(20, 22, 26)' if dark else 'rgb(255, 255, 255)')
    said = []
    for key, verdict in zip(
      ('ArrowLeft', '1', 'ArrowRight', '2', ' ', '0', 's', 'S'), 'left left right right tie tie skip skip'.split()
    ):
      page.key(key)
      said.append(verdict)
      at(len(said))
    for button in ('left', 'tie', 'right', 'skip'):
      page.click(f'#{button}')
      said.append(button)
      at(len(said))
    page.key(' ')  # after a click, space still says tie
    said.append('tie')
    at(13)
    page.key('u')
    at(12)
    page.click('#undo')
    at(11)
    assert 'Taken back' in page.text('#said') and page.eval('scrollX + scrollY') == 0
    for key in ('a', 'Enter', 'Tab'):
      page.key(key)
    page.key('1', repeat=True)
    assert page.eval('fetch("/state").then((r) => r.json()).then((s) => s.k)') == 11
    assert not page.eval('document.documentElement.scrollWidth > innerWidth')
    boxes = page.eval(
      '[...document.querySelectorAll(".reply")].map((n) => n.getBoundingClientRect()).map((b) => [b.x, b.y])'
    )
    assert (boxes[0][0] == boxes[1][0]) == touch and (boxes[0][1] == boxes[1][1]) != touch
    for k in (12, 13, 14):
      page.key('ArrowLeft')
      at(k)
    assert 'That was the last one' in page.text('main') and page.eval('document.querySelector("#left").disabled')
    page.key('1')
    page.open(server.address)
    at(14)
    assert not page.errors
    page.screenshot(tmp_path / 'page.png')
  said = said[:11] + ['left'] * 3
  items = {item.id: item for item in label.read(str(tmp_path / 'pairs.jsonl'))}
  expected = [v for v in said if v != 'skip']
  assert len(lines(out)) == len(expected)
  for row, verdict in zip(lines(out), expected):
    chosen = 'b' if (verdict == 'left') == label.swapped(0, row['id'], 'anna') else 'a'
    assert row['verdict'] == ('tie' if verdict == 'tie' else chosen)
    assert verdict == 'tie' or row['chosen'] == getattr(items[row['id']], chosen)
