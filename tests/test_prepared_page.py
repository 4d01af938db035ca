"""The page of a preparation: that nothing in a document can break out of it, and what a browser shows."""

import json
import math
import re
import subprocess

import pytest
from test_report import BROWSER, BROWSERS, NASTY, Tags, workdir
from test_report import train as row

from llmstack import report
from llmstack.errors import BadInput
from llmstack.tasks.report import command

PAGE = 'Home > Shop > Shoes\n\nBUY NOW!!! BEST PRICES ON ALL SHOES!!!\n\tClick here. Click here. Click here.\n'
STORY = (
  'The harbour of Port Emmet was built in 1874 by the brothers Hale, who had made their money in slate. '
  'It held forty boats until the storm of 1911, and eleven of them were never found.\n\n'
)
RULES = {  # name: low, high, what it says, where it is from, share of each source that it takes
  'language': (0.65, None, 'probability of the languages wanted', 'fastText', (0.11, 0.0, 0.002, 0.0)),
  'words': (50, 100_000, 'words', 'Gopher', (0.09, 0.001, 0.02, 0.0)),
  'word_length': (3, 10, 'mean word length, characters', 'Gopher', (0.012, 0.0, 0.03, 0.0)),
  'symbols': (None, 0.1, '# and ellipses per word', 'Gopher', (0.008, 0.0, 0.06, 0.0)),
  'alphabetic': (0.8, None, 'share of words with a letter', 'Gopher', (0.03, 0.002, 0.19, 0.0)),
  'stop_words': (2, None, 'how many of the, be, to, of, and, that, have, with', 'Gopher', (0.041, 0.0, 0.08, 0.0)),
  'duplicate_lines': (None, 0.3, 'share of lines seen before', 'Gopher', (0.021, 0.0, 0.004, 0.0)),
  'top_2gram': (None, 0.2, 'share of characters in the most frequent 2-gram', 'Gopher', (0.006, 0.0, 0.001, 0.0)),
  'line_ends': (0.12, None, 'share of lines that end with punctuation', 'FineWeb', (0.05, 0.004, 0.0, 0.0)),
  'capitals': (None, 0.3, 'share of letters that are capitals', 'llmstack', (0.004, 0.0, 0.0, 0.0)),
  'exact duplicate': (None, None, '', '', (0.05, 0.01, 0.03, 0.002)),
  'near duplicate': (None, None, '', '', (0.13, 0.03, 0.06, 0.04)),
}
SOURCES = {'web': (48_211, 3_400), 'books': (612, 410_000), 'code': (9_870, 2_900), 'made': (4_000, 1_200)}


def funnel(i, documents, size):
  """Returns the rows of source i: what each rule takes, then what is left."""
  rows = [['read', documents, documents * size], ['cleaned', documents, int(documents * size * 0.93)]]
  for rule, (*_, shares) in RULES.items():
    if gone := round(documents * shares[i]):
      rows.append([f'- {rule}', -gone, -int(gone * size * 0.7)])
  gone = [sum(row[k] for row in rows[2:]) for k in (1, 2)]
  return [*rows, ['kept', documents + gone[0], rows[1][2] + gone[1]]]


def histogram(rule):
  """Returns a bell that the rule's limits cut, over 40 bins, or 48 that grow by factors."""
  low, high, says, origin, _ = RULES[rule]
  top = {'word_length': 14, 'stop_words': 8}.get(rule, 1)
  edges = [round(10 ** (k / 8), 3) for k in range(49)] if rule == 'words' else [top * k / 40 for k in range(41)]
  middle = 20 if rule == 'words' else 40 * (high * 0.4 if low is None else min(top, low * 1.4)) / top
  bell = [round(12_000 * math.exp(-((k - middle) ** 2) / 30)) for k in range(len(edges) - 1)]
  inside = [(low is None or a >= low * 0.99) and (high is None or a < high) for a in edges]
  kept = [c * good for c, good in zip(bell, inside)]
  gone = [c // 9 if good else c + 40 * (k % 3 > 0) for k, (c, good) in enumerate(zip(bell, inside))]
  return dict(edges=edges, kept=kept, removed=gone, low=low, high=high, says=says, origin=origin)


def example(k, rule):
  low, high = RULES[rule][:2]
  text = NASTY + '\n\u202etfel\x1b[31m ' + PAGE if k % 4 == 0 else (PAGE * (k % 3 + 1) + STORY)[:700]
  out = {'id': f'web/part-{k:03d}.jsonl.zst:{k * 977}', 'source': 'web', 'value': 0.4213 + k / 90, 'text': text}
  out |= {'low': low, 'high': high, 'of': '', 'of_text': ''}
  if 'duplicate' in rule and low is high:
    out |= {'text': STORY * 3, 'of': 'books/a.jsonl:7', 'of_text': STORY.replace('slate', 'wool') * 3}
  return out


def made(name='shelf'):
  """Returns the data of a preparation of four sources by twelve rules."""
  jaccard = [k / 50 for k in range(51)]
  before = 'Write to anna.ek@example.org or call +46 8 123 45 67.\nWe use cookies. Accept all.\nThe cafÃ© opens.'
  edits = {'repair': ('cafÃ©', 'café'), 'lines': ('We use cookies. Accept all.\n', '')}
  edits['PII masked'] = ('anna.ek@example.org', '<email>')
  mixture = []
  for source, weight in zip(SOURCES, (0.5, 0.3, 0.15, 0.05)):
    row = {'stage': 'main', 'source': source, 'weight': weight, 'documents': SOURCES[source][0], 'bytes': 10**7}
    row |= {'tokens': 2_500_000, 'share': weight, 'epochs': 160 * weight, 'drawn_tokens': 4e8 * weight}
    mixture.append(row | {'capped': source == 'made'})
  fertility = [
    {'tokenizer': t, 'source': s, 'bytes_per_token': 4.4 - k / 5 - m / 3 * (k < 2), 'tokens_per_word': 1.3 + k / 9}
    | {'unknown_or_byte_share': 0.0004 * k}
    for m, t in enumerate(('bpe 32768', 'unigram 32768', 'llama 128256'))
    for k, s in enumerate(SOURCES)
  ]
  shard = {'rows': 9000, 'tokens': 18_400_000, 'documents': 4000, 'fill': 0.997, 'files': 2, 'bytes': 73_000_000}
  ids = [f'web/part-{k}.jsonl.zst:1' for k in range(9)]
  return {
    'kind': 'prepare', 'made': 1.79e9, 'name': name, 'raw_bytes': 445_000_000,
    'config': {'task': 'prepare', 'filter': {'rules': {'words': [50, float('inf')]}}, 'seed': 0},
    'seconds': {'1-read': 41.2, '2-judged': 388.0, '3-reasons': 61.5, 'documents': 22.9, 'packed': 118.0},
    'sources': {
      s: {'funnel': funnel(i, *sizes), 'synthetic': s == 'made'} for i, (s, sizes) in enumerate(SOURCES.items())
    },
    'examples': {r: [example(4 * i + k, r) for k in range(1 + 7 * (i == 9))] for i, r in enumerate(RULES)},
    'edits': {
      step: [{'id': 'web/a:1', 'source': 'web', 'before': before, 'after': before.replace(*change)}]
      for step, change in edits.items()
    },
    'histograms': {rule: histogram(rule) for rule in list(RULES)[:10]},
    'clusters': {
      'sizes': [[2, 1804], [3, 512], [4, 201], [7, 61], [12, 14], [318, 1]],
      'largest': [{'size': 318, 'text': PAGE, 'ids': ids}, {'size': 12, 'text': STORY, 'ids': ids}],
    },
    'curve': {'bands': 14, 'rows': 9, 'threshold': 0.8, 'confirm': 0.7, 'jaccard': jaccard}
    | {'found': [1 - (1 - j**9) ** 14 for j in jaccard]},
    'languages': {'web': {'en': 40_100, 'de': 3_100, 'fr': 2000, 'ru': 900, NASTY: 608}, 'books': {'en': 612}},
    'leaks': [{'id': ids[3], 'source': 'web', 'eval': 'arc.jsonl', 'ngram': 'Which of these is a trait? ' + NASTY}],
    'leaked': {'arc.jsonl': 14, 'gsm8k.jsonl': 0},
    'mixture': {'tokens': 4e8, 'rows': mixture},
    'tokenizer': {'rows': fertility},
    'skipped': [{'source': 'web', 'kind': 'not UTF-8', 'count': 12, 'places': ['part-001.jsonl.zst:88', NASTY]}],
    'shards': dict.fromkeys(SOURCES, shard),
  }  # fmt: skip


def bare():
  """Returns the least that a preparation writes."""
  keys = ('kind', 'made', 'name', 'config', 'seconds', 'raw_bytes', 'sources')
  return {k: v for k, v in made('bare').items() if k in keys}


def test_nothing_breaks_out_and_nothing_is_fetched():
  """A document with </script> in it runs as code, or an infinite limit makes the page invalid JSON."""
  text = report.prepared(made(NASTY))
  text.encode()
  parsed = Tags(text)
  assert parsed.tags.count('script') == 2 and 'img' not in parsed.tags
  shown = json.loads(parsed.scripts[0])
  assert shown['languages']['web'][NASTY.replace('\ud800', '?')] == 608
  assert shown['config']['filter']['rules']['words'] == [50, 'inf']
  assert "default-src 'none'" in text and not re.search(r'https?://(?!www\.w3\.org/2000/svg)', text)
  limit = made() | {'examples': {'words': [{'low': -math.inf, 'high': math.nan}]}}
  assert '"low":null,"high":null' in report.prepared(limit)


def test_command(tmp_path, capsys):
  """A preparation is drawn as a training run, a run beside an old report.json as a preparation, or two at once."""
  one, two = tmp_path / 'one', tmp_path / 'two'
  for path in (one, two):
    path.mkdir()
    (path / 'report.json').write_text(json.dumps(made()))
  assert command([str(one)]) == 0 and 'report.html' in capsys.readouterr().out
  assert 'id="funnel"' in (one / 'report.html').read_text()
  with pytest.raises(BadInput, match='one workdir at a time'):
    command([str(one), str(two)])
  workdir(tmp_path / 'run', [row(1)])
  (tmp_path / 'run' / 'report.json').write_text('{}')
  assert command([str(tmp_path / 'run')]) == 0 and 'id="curves"' in (tmp_path / 'run' / 'report.html').read_text()
  for text, says in (('{"kind": "prep', 'not JSON'), ('[1]', 'not the report of a preparation')):
    (one / 'report.json').write_text(text)
    with pytest.raises(BadInput, match=says):
      command([str(one)])


# Reads what a person would notice; the page itself lets no other script run.
PROBE = """<script>
const wide = document.documentElement.scrollWidth > document.documentElement.clientWidth
const cut = [...document.querySelectorAll('main *')].filter((n) => n.getBoundingClientRect().right > innerWidth + 1 && !n.closest('.wide, pre, svg'))
document.querySelector('#funnel button:nth-child(3)').click()
document.documentElement.dataset.probe = [wide, cut.length, document.querySelector('.funnel td strong').textContent]
</script>"""  # noqa: E501


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason=f'no browser: none of {", ".join(BROWSERS)} is on PATH')
@pytest.mark.parametrize('data, dark', [(made, False), (made, True), (bare, False)])
def test_in_a_browser(tmp_path, data, dark):
  """The script fails, where keys are absent above all, a document becomes markup, or the page scrolls sideways."""
  page = report.prepared(data())
  (tmp_path / 'page.html').write_text(page)
  (tmp_path / 'open.html').write_text(re.sub('<meta http-equiv.*', '', page, count=1) + PROBE)

  def dom(name):
    command = [BROWSER, '--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={tmp_path}/profile']
    command += ['--enable-logging=stderr', '--virtual-time-budget=2000', '--window-size=390,900', '--dump-dom']
    command += ['--blink-settings=preferredColorScheme=0'] * dark + [f'file://{tmp_path}/{name}.html']
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert not [line for line in done.stderr.splitlines() if 'CONSOLE' in line]
    return done.stdout

  text = dom('page')
  drawn = text[: text.index('<script type')]
  assert f'data-ready="{len(RULES)}"' in text and '<img' not in text
  assert 'broken' not in re.search('<title>(.*?)</title>', text)[1]
  assert ('No mixture was computed' in drawn) == ('No example was recorded' in drawn) == (data is bare)
  if data is made:
    assert drawn.count('&lt;/script&gt;') >= 14 and '⟨202e⟩tfel⟨001b⟩[31m' in drawn and '\n\tClick here' in drawn
    assert '<mark class="gone">slate.</mark>' in drawn and '<mark class="new">wool.</mark>' in drawn
    assert drawn.count('<svg class="plot"') == 11 and '≤ 0.3' in drawn
  assert 'data-probe="false,0,612"' in dom('open')
