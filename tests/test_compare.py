"""Answers side by side: that the numbers are the models', that no answer breaks the page, and what a browser shows."""

import itertools
import json
import re
import subprocess

import numpy as np
import pytest
from helpers import model, weights
from test_evaluate import WORDS, by_hand, save
from test_report import BROWSER, BROWSERS, NASTY, Tags

from llmstack import report
from llmstack.data import tokenizer
from llmstack.errors import BadInput
from llmstack.report.compared import level
from llmstack.tasks import compare
from llmstack.tasks.compare import SHADES, command, printed, wrapped


@pytest.fixture(scope='module')
def words():
  return tokenizer.Tokenizer(tokenizer.train([WORDS], kind='char', vocab=99))  # without bytes, which make no text


@pytest.fixture(scope='module')
def three(tmp_path_factory, words):
  """Returns the workdirs of two models of one vocabulary, and of a shorter one of another."""
  folder = tmp_path_factory.mktemp('three')
  other = tokenizer.Tokenizer(tokenizer.train([WORDS.lower() + '!?'], kind='char', vocab=99))
  return [
    save(folder / 'base', words),
    save(folder / 'sft', words, seed=1),
    save(folder / 'small', other, seed=2, length=40),
  ]


def test_numbers_are_the_models(three, words, capsys, tmp_path):
  """An answer is scored behind another prompt, by its author's weights, or in tokens that nobody said."""
  prompts = ['the cat', 'a dog sat on']
  given = compare.flags(['--prompt', prompts[0], '--prompt', prompts[1], '--new-tokens', '20', *three])
  data = json.loads(json.dumps(compare.compare(three, given)))
  assert [m['name'] for m in data['models']] == ['base', 'sft', 'small']
  cfg = model('llama_tiny', vocab=words.vocab, layers=1)
  params = [weights(cfg, seed) for seed in (0, 1)]
  said = lambda text: re.sub('<.*?>| ⁇ |[!?]', '', text)  # noqa: E731
  for prompt, found in zip(prompts, data['prompts']):
    for author, answer in enumerate(found['answers']):
      views = answer['under']
      assert [v['anew'] for v in views] == [(author == 2) != (m == 2) for m in range(3)]
      for view in views:
        assert said(''.join(t for t, *_ in view['tokens'])) == said(answer['text'])
        assert view['total'] == pytest.approx(sum(t[2] for t in view['tokens']), abs=0.01)
        for text, _, logp, rank, others in view['tokens']:
          assert len(others) == 5 and [o[1] for o in others] == sorted((o[1] for o in others), reverse=True)
          assert rank > 4 or others[rank] == [text, logp]
      assert all(t[3] == 0 for t in views[author]['tokens'])
      if author == 2:
        continue
      # The author's own tokens, found again by greedy decoding of a plain forward pass.
      ids = words.prompt(prompt)
      n, k = len(ids), len(views[author]['tokens'])
      for _ in range(k):
        ids.append(int(by_hand(cfg, params[author], [*ids, 0])[-1].argmax()))
      for m in range(2):
        expected = by_hand(cfg, params[m], ids)[np.arange(n - 1, n - 1 + k), ids[n:]]
        np.testing.assert_allclose([t[2] for t in views[m]['tokens']], expected, atol=2e-4)
  page = tmp_path / 'page.html'
  assert (
    command(['--prompt', 'the', '--prompt', 'a', '--new-tokens', '20', '--html', str(page), '--verbose', *three[:2]])
    == 0
  )
  out = capsys.readouterr().out
  assert 'base says' in out and 'sft says' in out and '#1 ' in out and '\x1b' not in out
  assert page.stat().st_size > 20_000 and not (tmp_path / 'page.html.new').exists()


@pytest.mark.slow
def test_chat(three, capsys):
  """The prompt is continued, although a template was asked for, or an answer goes on behind its end."""
  assert command(['--prompt', 'the cat', '--chat', 'llmstack', '--new-tokens', '8', three[0]]) == 0
  plain = command(['--prompt', 'the cat', '--new-tokens', '8', three[0]])
  assert plain == 0
  chat, plain = capsys.readouterr().out.split('> the cat')[1:]
  assert chat != plain and 'says' not in chat


@pytest.mark.parametrize('argv, says', [
  (['base'], 'the following arguments are required: --prompt'), (['--prompt', ' ', 'base'], '--prompt is empty'),
  (['--prompt', 'a'], 'the following arguments are required: workdir'),
  (['--prompt', 'a', 'nowhere'], 'there are no checkpoints in nowhere'),
  (['--prompt', 'a', 'base', 'base'], 'the same workdir is given twice'),
  (['--prompt', 'the cat ' * 30, 'base'], 'base: prompt 0 has'),
  (['--prompt', 'a', '--new-tokens', '0', 'base'], '--new-tokens 0'),
  (['--prompt', 'a', '--seed', '-1', 'base'], 'seed'),
  (['--prompt', 'a', '--html', 'no/such/page.html', 'base'], 'cannot be written'),
  (['--prompt', 'a', '--temperature', '-1', 'base'], 'temperature = -1'),
  (['--prompt', 'a', '--chat', 'alpaca', 'base'], "template is 'alpaca'"),
  (['--prompt', 'a', '--top', 'base'], '--top'),
])  # fmt: skip
def test_bad_input(three, monkeypatch, argv, says):
  """A traceback instead of a sentence, or one that comes after the models have answered."""
  monkeypatch.chdir(three[0].removesuffix('base'))
  with pytest.raises(BadInput, match=re.escape(says)):
    command(argv)


def test_lines_of_a_terminal():
  """A wide character or an escape code shifts the columns, or an answer's control characters reach the terminal."""
  tokens = [['One', False, -0.01], [' cold\x1b[2J day', False, -3.0], ['\n', False, -0.5], ['日本語' * 5, False, -9.0]]
  for colour, width in itertools.product((False, True), (12, 20)):
    lines = wrapped(tokens, width, colour)
    bare = [re.sub('\x1b\\[[0-9;]*m', '', line) for line in lines]
    assert all(sum(compare.cells(c) for c in line) == width for line in bare) and '\x1b[2J' not in ''.join(lines)
    assert (f'48;5;{SHADES[level(-9.0)]}m日' in ''.join(lines)) == colour
    assert ''.join(bare).replace(' ', '') == 'Onecold\\x1b[2Jday' + '日本語' * 5
  data = made()
  side, below = (list(printed(data, width, False, False)) for width in (160, 60))
  assert any('base, step 1200' in line and 'sft, step 300' in line for line in side)
  assert not any('base, step 1200' in line and 'sft, step 300' in line for line in below)
  assert [level(np.log(p)) for p in (1, 0.9, 0.89, 0.3, 0.06, 0.02, 0.001)] == [0, 0, 1, 2, 3, 4, 5]


def made():
  """Returns what three models answered to two prompts, with what would break a page."""
  texts = [[' Paris', '.', '<eos>'], [' I', ' like', '\n', NASTY], ['\u202etfel', ' it', ' is', ' Rome']]
  models = [
    dict(name=n, path=f'runs/{n}', step=s, parameters=675_712, tokenizer='ab' if n != 'dpo</script>' else 'cd')
    for n, s in (('base', 1200), ('sft', 300), ('dpo</script>', 90))
  ]
  probabilities = [0.95, 0.6, 0.3, 0.1, 0.03, 1e-9]

  def view(author, m, shift):
    tokens = []
    for k, text in enumerate(texts[author]):
      logp = float(np.log(probabilities[(k + author + shift) % 6]))
      others = [[text, logp], *([f' other{i}', logp - 1 - i] for i in range(4))]
      rank = 0 if m == author else 7
      tokens.append([text, text == '<eos>', logp, rank, others if not rank else [['The', -0.1], *others[1:]]])
    return dict(tokens=tokens, total=sum(t[2] for t in tokens), anew=(author == 2) != (m == 2), cut=author == 1)

  answers = lambda shift: [  # noqa: E731
    dict(text=''.join(t), done=a == 0, under=[view(a, m, shift + m) for m in range(3)]) for a, t in enumerate(texts)
  ]
  prompts = [
    dict(prompt=p, answers=answers(i)) for i, p in enumerate(('The capital of France is', NASTY + ' word' * 40))
  ]
  return dict(
    made=1_700_000_000.0, chat='llmstack', temperature=0.7, seed=0, new_tokens=48, models=models, prompts=prompts
  )


def test_nothing_breaks_out_of_the_page():
  """What a model says ends the script, or the page asks somebody else for something."""
  data = made()
  page = report.compared(data)
  assert Tags(page).tags.count('script') == 2
  held = re.search('<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1]
  assert json.loads(held)['prompts'][0]['answers'][2]['text'] == data['prompts'][0]['answers'][2]['text']
  assert page.count('<script') == 2 and '<img' not in page and "default-src 'none'" in page
  assert not re.search(r'(?:src|href)="(?!data:)|@import|url\(', page)


PROBE = """<script>
const $$ = (s) => [...document.querySelectorAll(s)]
const tokens = () => $$('.answer:first-child .token')
const colour = (n) => getComputedStyle(n).backgroundColor
const out = {}
out.wide = document.documentElement.scrollWidth > innerWidth
out.levels = $$('.token').every((n) => n.classList.contains('p' + [0.9, 0.5, 0.2, 0.05, 0.01].filter((p) => Math.exp(n.dataset.logp) < p).length))
out.colours = new Set($$('.token').map((n) => n.className.match(/p\\d/)[0] + colour(n))).size
const first = tokens()[0]
first.dispatchEvent(new PointerEvent('pointerover', { bubbles: true, pointerType: 'mouse' }))
out.hover = document.getElementById('tip').innerText
first.parentNode.dispatchEvent(new PointerEvent('pointerleave', { pointerType: 'mouse' }))
out.gone = document.getElementById('tip').hidden
first.focus()
first.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight', bubbles: true }))
out.walked = document.activeElement === tokens()[1] && !document.getElementById('tip').hidden
out.live = document.getElementById('live').textContent
dispatchEvent(new KeyboardEvent('keydown', { key: 'Escape' }))
out.closed = document.getElementById('tip').hidden
const before = tokens().map(colour).join()
$$('.cross button')[1].click()
out.read = tokens().map(colour).join() !== before && $$('.answer select')[0].value === '1' && $$('.cross button')[1].ariaPressed === 'true'
out.other = $$('.answer:first-child .other').length
tokens()[1].click()
out.tapped = document.getElementById('tip').innerText
const box = document.getElementById('tip').getBoundingClientRect()
out.inside = box.left >= 0 && box.right <= innerWidth && box.bottom <= innerHeight + 1
document.documentElement.dataset.probe = JSON.stringify(out)
</script>"""  # noqa: E501


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason=f'no browser: none of {", ".join(BROWSERS)} is on PATH')
@pytest.mark.parametrize('size, dark', [('1280,900', False), ('390,900', True)])
def test_in_a_browser(tmp_path, size, dark):
  """A colour is not the token's probability, the alternatives are hidden from mouse, keys or finger, or it scrolls."""
  page = report.compared(made())
  (tmp_path / 'page.html').write_text(page)
  (tmp_path / 'open.html').write_text(re.sub('<meta http-equiv.*', '', page, count=1) + PROBE)

  def dom(name):
    command = [BROWSER, '--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={tmp_path}/profile']
    command += ['--enable-logging=stderr', '--virtual-time-budget=2000', f'--window-size={size}', '--dump-dom']
    command += ['--blink-settings=preferredColorScheme=0'] * dark + [f'file://{tmp_path}/{name}.html']
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert not [line for line in done.stderr.splitlines() if 'CONSOLE' in line]
    return done.stdout

  text = dom('page')
  drawn = text[: text.index('<script type')]
  assert 'data-ready="22"' in text and drawn.count('class="token ') == 22 and '<img' not in drawn
  assert '⟨202e⟩tfel' in drawn and '&lt;/script&gt;' in drawn and '*' in drawn
  out = json.loads(re.search('data-probe="(.*?)"', dom('open'))[1].replace('&quot;', '"'))
  assert not out['wide'] and out['levels'] and out['colours'] == 6 and out['gone'] and out['walked'] and out['closed']
  for said in ('␣Paris', '95 %', 'log-prob −0.051', 'the first choice of base', '␣other0', '␣other3', 'sft', '60 %'):
    assert said in out['hover'], said
  assert out['live'].startswith('.: 60 %') and out['read'] and out['other'] == 3 and out['inside']
  assert 'the 8th choice of sft' in out['tapped'] and 'The' in out['tapped']
