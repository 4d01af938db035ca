"""The report: what it reads from a workdir, that nothing in it can break out of the page, and what a browser shows."""

import html.parser
import json
import os
import re
import subprocess

import browser
import pytest

from llmstack import report
from llmstack.errors import BadInput
from llmstack.main import cli
from llmstack.report import build

NASTY = '</script><script>document.title="broken"</script><!-- <img src=x onerror=alert(1)> \u2028 \ud800 &amp;'


def train(step, **more):
  """Returns a training row of 64 tokens per step at 32 tokens per second: two seconds per step, a quarter waiting."""
  row = {'step': step, 'kind': 'train', 'nll': 5.0 / step, 'grad_norm': 1.0, 'param_norm': 2.0, 'update_norm': 0.1}
  return row | {'skipped': 0, 'streak': 0, 'tokens_per_s': 32.0, 'input_share': 0.25, 'crc': '00'} | more


def workdir(path, rows, **changes):
  config = {'data': {'batch': 4, 'length': 16, 'sources': {'a': {'weight': 1.0}}}, 'optim': {'clip': 1.0, 'lr': 0.1}}
  config |= {'train': {'steps': 40}, 'tokenizer': {'path': None}} | changes
  path.mkdir(parents=True)
  (path / 'config.json').write_text(json.dumps(config))
  (path / 'metrics.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
  return str(path)


@pytest.fixture
def two(tmp_path):
  """A run that finished with a restart in it, and one that was killed after a skipped update."""
  held = [{'step': s, 'kind': 'eval', 'name': 'a', 'nll': 4.0 / s, 'accuracy': 0.5, 'tokens': 9.0} for s in (20, 40)]
  said = [{'step': s, 'kind': 'sample', 'prompt': NASTY, 'text': f'{s} {NASTY}'} for s in (20, 40)]
  first = [train(1, first_step_s=3.0), train(20), held[0], said[0], train(26, first_step_s=2.0), train(40)]
  one = workdir(tmp_path / 'x' / 'run', [*first, held[1], said[1]])
  bad = [train(1, first_step_s=3.0), train(10), train(20, nll=float('nan'), skipped=2), train(30, skipped=2), said[0]]
  return one, workdir(tmp_path / 'y' / 'run', bad, optim={'clip': 1.0, 'lr': 0.2}, extra=None)


def test_time_tokens_and_events(two):
  """A resumed run's first window is counted as if the lost steps had run in it, or a skipped update is not marked."""
  a, b = report.collect(two, now=0)['runs']
  assert [a['name'], b['name']] == ['x/run', 'y/run'] and [a['state'], b['state']] == ['done', 'stopped']
  assert a['at']['tokens'] == (64, 1280, 1664, 2560)
  # 1, 19, then one step after the restart, then 14: two seconds each.
  assert a['at']['time'] == (2, 40, 42, 70)
  spent = {'first': 3.0, 'train': 49.5, 'input': 17.5, 'eval': None, 'save': None, 'other': None}
  assert a['spent'] == spent
  assert [(e['step'], e['kind']) for e in a['events']] == [(26, 'resumed')]
  assert [(e['step'], e['kind'], e['what']) for e in b['events']] == [(20, 'bad', '2 updates skipped, not finite')]
  assert b['train']['nll']['v'][2] is None and 'crc' not in b['train'] and b['skipped'] == 2
  assert a['eval']['a']['nll'] == {'s': [20, 40], 'v': [0.2, 0.1]}


def test_timed_pauses_and_stamps(tmp_path):
  """Seconds of evaluation or saving, where a run logs them, vanish into training or are counted twice."""
  rows = [train(1, first_step_s=2.0, time=100.0), train(20, time=138.0), {'step': 20, 'kind': 'pause', 'eval_s': 5.0}]
  rows += [{'step': 20, 'kind': 'pause', 'save_s': 1.0, 'time': 144.0}, train(21, first_step_s=2.0, time=244.0)]
  run = report.collect([workdir(tmp_path / 'r', rows)])['runs'][0]
  assert run['spent'] == {'first': 3.0, 'train': 28.5, 'input': 10.5, 'eval': 5.0, 'save': 1.0, 'other': 98.0}
  assert run['at']['time'] == (2, 40, 48) and run['last'] == 244.0


def test_differences_and_comparable(two):
  """A setting that only one run has, null or not, is shown as equal; or losses of two tokenizers as comparable."""
  data = report.collect(two)
  assert data['differ'] == [['extra', [], [None]], ['optim.lr', [0.1], [0.2]]] and data['comparable']
  base = {'tokenizer': {'path': None}, 'data': {'sources': {'a': 1}}}
  assert not build.comparable([base, base | {'data': {'sources': {'b': 1}}}])
  given = base | {'tokenizer': {'path': 't.model'}}
  assert build.comparable([given, given | {'data': {'sources': {'b': 1}}}]) and not build.comparable([base, given])


def test_long_curves_keep_their_spikes():
  """Thinning by every n-th point hides the spike that the page is opened for, or one NaN hides its bucket."""
  values = [1.0] * 100_000
  values[70_001], values[5] = 50.0, float('inf')
  c = build.curve(list(range(100_000)), values)
  assert len(c['s']) == len(c['v']) == build.POINTS and c['s'][::599] == [0, 99_999]
  assert max(c['hi']) == 50 and max(c['v']) < 2 and c['v'][1] == 1
  assert build.few(list(range(1000)), 40)[::39] == [0, 999] and build.curve([1], [float('nan')])['v'] == [None]


class Tags(html.parser.HTMLParser):
  def __init__(self, text):
    super().__init__()
    self.tags, self.scripts = [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    assert not any(k in ('src', 'href', 'action', 'onerror') and v != 'data:,' for k, v in attrs), attrs

  def handle_data(self, text):
    if self.tags and self.tags[-1] == 'script':
      self.scripts.append(text)


def test_nothing_breaks_out_and_nothing_is_fetched(two, tmp_path):
  """A sample with </script> in it runs as code, or the page asks the network for something."""
  data = report.collect(two)
  data['runs'][0]['name'] = '<b>&"'
  text = report.page(data)
  text.encode()
  parsed = Tags(text)
  assert parsed.tags.count('script') == 2 and 'b' not in parsed.tags and 'img' not in parsed.tags
  shown = json.loads(parsed.scripts[0])
  said = NASTY.replace('\ud800', '?')
  assert shown['runs'][0]['samples'] == {said: [[20, f'20 {said}'], [40, f'40 {said}']]}
  assert '{{' not in re.sub(r'<script.*?</script>', '', text, flags=re.S) and "default-src 'none'" in text
  assert not re.search(r'https?://(?!www\.w3\.org/2000/svg)', text)


def test_command(two, tmp_path, capsys):
  """The page lands elsewhere than it says, or a second page of the same workdir fails on the first."""
  for _ in range(2):
    with pytest.raises(SystemExit) as e:
      cli(['llmstack', 'report', *two])
    assert not e.value.code
  path = os.path.join(two[0], 'report.html')
  assert path in capsys.readouterr().out and os.path.getsize(path) < 80_000
  assert not [name for name in os.listdir(two[0]) if name.endswith('.new')]


def broken(tmp_path, text):
  path = workdir(tmp_path / 'r', [train(1)])
  (tmp_path / 'r' / 'metrics.jsonl').write_text(text)
  return [path]


@pytest.mark.parametrize(
  'make, says',
  [
    (lambda p: [str(p / 'no')], 'is not a folder'),
    (lambda p: [str(p)], 'has no metrics.jsonl'),
    (lambda p: broken(p, json.dumps(train(1)) + '\n{"step": 2, "ki\n'), 'line 2 is not a row of a run'),
    (lambda p: broken(p, '[1]\n'), 'line 1 is not a row'),
    (lambda p: broken(p, json.dumps(train(1, tokens_per_s=None)) + '\n'), 'line 1 is not a row'),
    (lambda p: broken(p, json.dumps(train(1))), 'no training step yet'),
    (lambda p: 2 * [workdir(p / 'r', [train(1)])], 'given twice'),
    (lambda p: [workdir(p / 'r', [train(1)]), '--out', str(p)], 'is a folder'),
    (lambda p: [], 'the following arguments are required: workdir'),
  ],
)
def test_bad_input_is_a_sentence(tmp_path, make, says):
  """A wrong folder or a damaged line ends in a traceback, or the rest of the file is silently left out."""
  from llmstack.tasks.report import command

  with pytest.raises(BadInput, match=says):
    command(make(tmp_path))


def test_a_run_being_written(tmp_path):
  """The page of a run in progress fails on the half-written last line, or calls the run stopped."""
  from llmstack.lease import Lease

  path = workdir(tmp_path / 'r', [train(1)])
  with open(os.path.join(path, 'metrics.jsonl'), 'a') as f:
    f.write('{"step": 2, "kind": "tr')
  os.mkdir(os.path.join(path, 'checkpoints'))
  lease = Lease(os.path.join(path, 'checkpoints'))
  run = report.collect([path])['runs'][0]
  assert run['state'] == 'running' and lease.run in run['writer'] and run['step'] == 1
  lease.release()
  (tmp_path / 'r' / 'nonfinite-7-process0.npz').touch()
  assert report.collect([path])['runs'][0]['state'] == 'diverged'


WHY = f'the reward rose and reward/world fell {NASTY}'


@pytest.fixture
def rewarded(tmp_path):
  """A run that learns from rewards, of which the one that counts falls from step 20 on, with an alarm and failures."""
  rows = []
  for step in range(1, 41):
    up, gold = step / 10, 0.5 + min(step, 40 - step) / 100
    rows.append(
      train(step, reward=up - 0.1, entropy=2.0 - up / 4, length=10.0 + step, ended=0.9, kl=up / 40, ratio=1.0)
    )
    rows[-1] |= {'reward/model': up, 'reward/world': gold, 'reward/short': -0.2, 'clip_low': 0.01, 'clip_high': 0.02}
    rows[-1] |= {'gate': 1e-6, 'failed': 3 * (step in (5, 7)), 'loss': 0.0}
    del rows[-1]['nll']
    if step in (5, 7):
      rows.append({'step': step, 'kind': 'failed', 'name': 'model', 'why': f'at {step}: {NASTY}', 'rows': 3})
    if step % 10 == 0:
      held = {'step': step, 'kind': 'eval', 'name': 'a', 'reward': up, 'reward/world': gold, 'completions': 8}
      rows.append(held | {'low/world': gold - 0.1, 'high/world': gold + 0.1, 'length': 9.0})
      rows.append({'step': step, 'kind': 'sample', 'prompt': 'Why?', 'text': NASTY, 'reward': up})
    if step in (31, 36):
      rows.append({'step': step, 'kind': 'alarm', 'why': WHY})
  rows[0]['first_step_s'] = 2.0
  rewards = {'model': {'weight': 1.0}, 'world': {'weight': 0.0}, 'short': {'weight': 0.5}}
  return workdir(tmp_path / 'ppo', rows, rewards=rewards, rollout={'gold': 'world'})


def test_runs_that_learn_from_rewards(rewarded, tmp_path):
  """An alarm is thinned away with the steps, the reward that counts is not known, or a sample loses its reward."""
  run = report.collect([rewarded])['runs'][0]
  assert [(e['step'], e['what']) for e in run['events'] if e['kind'] == 'alarm'] == [(31, WHY), (36, WHY)]
  assert run['gold'] == 'reward/world' and run['weights'] == {'model': 1.0, 'world': 0.0, 'short': 0.5}
  assert run['failures'] == [['model', 6, 2, 5, 7, f'at 7: {NASTY}']]
  assert run['samples']['Why?'] == [[s, NASTY, s / 10] for s in (10, 20, 30, 40)]
  held = run['eval']['a']
  assert held['reward'] == {'s': [10, 20, 30, 40], 'v': [1.0, 2.0, 3.0, 4.0]} and 'completions' not in held
  assert held['low/world']['v'] == [0.5, 0.6, 0.5, 0.4] and held['nll']['v'] == [None] * 4
  bad = [train(k, skipped=k) for k in range(1, 900)] + [{'step': k, 'kind': 'alarm', 'why': 'w'} for k in (7, 9, 11)]
  events = report.collect([workdir(tmp_path / 'many', bad)])['runs'][0]['events']
  assert len(events) == build.POINTS + 3 and [e['step'] for e in events[-3:]] == [7, 9, 11]
  parsed = Tags(report.page(report.collect([rewarded])))
  assert parsed.tags.count('script') == 2 and 'img' not in parsed.tags


@pytest.mark.browser
@pytest.mark.skipif(browser.PATH is None, reason=browser.MISSING)
def test_rewards_in_a_browser(rewarded, two, tmp_path):
  """A part lacks its line, an alarm its mark or its sentence, gold its own scale, or words become markup."""
  panel = lambda title: (  # noqa: E731
    f'Object.fromEntries([...[...document.querySelectorAll("figure")].find((f) => f.querySelector("h3").innerText'
    f'.startsWith({json.dumps(title)})).querySelectorAll("g[data-id]")].map((g) => '
    '[g.dataset.id.replace(/^ppo./, ""), Number(g.querySelector("[data-points]").dataset.points)]))'
  )
  with browser.Browser(tmp_path, (390, 844), touch=True) as page:
    for name, paths in (('one', [rewarded]), ('both', [two[0], rewarded])):
      (tmp_path / f'{name}.html').write_text(report.page(report.collect(paths)))
      page.open(f'file://{tmp_path}/{name}.html')
      assert page.eval(panel('Reward')) == {'train': 40, 'a': 4}
      parts = {'part/reward': 40, 'part/reward/model': 40, 'part/reward/world': 40, 'part/reward/short': 40}
      assert page.eval(panel('Reward and its parts')) == parts
      assert page.eval(panel('Reward against')) == {'against/reward': 40, 'against/gold': 40}
      assert page.eval(panel('Clipped')) == {'clip_low': 40, 'clip_high': 40}
      assert page.eval(panel('EOS rate')) == {'ended': 40} and page.eval(panel('KL to the ref')) == {'kl': 40}
      charts = page.eval('document.querySelectorAll("svg.plot").length')
      assert page.eval('document.querySelectorAll("[data-alarm]").length') == 2 * charts
      assert page.eval('document.querySelectorAll("img, main b b").length') == 0
      said = page.text('.alarms')
      assert '2 alarms' in said and 'step 31' in said and WHY.replace('\ud800', '?') in said.replace('\ufffd', '?')
      assert '6 completions in 2 steps, from 5 to 7, without weight: at 7: <' in page.text('.failed')
      assert 'reward 4' in page.text('#samples') and 'axis on the right' in page.text('#panels')
      assert page.eval('document.documentElement.scrollWidth <= document.documentElement.clientWidth')
      page.click('.alarms button')
      assert 'the reward rose' in page.text('.tip')
    assert page.eval(panel('Loss')) == {'run/train': 4, 'run/a': 2}
    assert 'Loss' not in page.text('#hero figure') and not page.errors
    # The scale of gold is its own: what is 0.1 high there fills the panel, beside a reward forty times that.
    page.open(f'file://{tmp_path}/one.html')
    heights = page.eval('[...document.querySelectorAll("[data-id*=against] .main")].map((p) => p.getBBox().height)')
    assert min(heights) > 0.6 * max(heights)


BROWSERS, BROWSER = browser.BROWSERS, browser.PATH


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason=f'no browser: none of {", ".join(BROWSERS)} is on PATH')
@pytest.mark.parametrize('dark', [False, True])
def test_in_a_browser(two, tmp_path, dark):
  """The script fails, a sample becomes markup, a curve is empty, or another view than the address says is drawn."""
  (tmp_path / 'page.html').write_text(report.page(report.collect(two)))

  def dom(view, *flags):
    command = [BROWSER, '--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={tmp_path}/profile']
    command += ['--enable-logging=stderr', '--virtual-time-budget=2000', '--window-size=390,900', *flags]
    command += ['--blink-settings=preferredColorScheme=0'] * dark + [f'file://{tmp_path}/page.html{view}']
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert not [line for line in done.stderr.splitlines() if 'CONSOLE' in line]
    return done.stdout

  plain = dom('', '--dump-dom')
  assert 'data-ready="7"' in plain and 'broken' not in re.search('<title>(.*?)</title>', plain)[1]
  curves = dict(re.findall(r'data-id="([^"]+)">.*?data-points="(\d+)"', plain, flags=re.S))
  assert curves['x/run/train'] == '4' and curves['y/run/train'] == '3' and curves['x/run/a'] == '2'
  assert 'data-event="20"' in plain and '<img' not in plain and '40 &lt;/script&gt;' in plain
  view = dom('#x=tokens&log=1&off=y/run&off=x/run/a&step=20', '--dump-dom')
  assert 'data-id="y/run/train"' not in view and 'data-id="x/run/a"' not in view
  assert 'data-id="x/run/train"' in view and 'tokens seen' in view
  assert '20 &lt;/script&gt;' in view and '40 &lt;/script&gt;' not in view
  assert plain.count('aria-pressed="true"') != view.count('aria-pressed="true"')
  dom('', f'--screenshot={tmp_path}/page.png')
  assert (tmp_path / 'page.png').stat().st_size > 10_000
