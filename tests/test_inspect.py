"""What `llmstack inspect` shows of rows and documents is what the model gets, and bad input is a sentence."""

import json
import os
import pty
import re
import shutil

import numpy as np
import pytest

from llmstack.data import packing, pipeline, sources
from llmstack.data.batch import targets
from llmstack.data.tokenizer import EOS, Tokenizer, train
from llmstack.errors import BadInput
from llmstack.main import cli
from llmstack.tasks.inspect import command, visible

TEXTS = [f'The harbour of Port {i} was built.\nIt held {i * i} boats.\x1b[31m red\u202e' for i in range(30)]
TEXTS.append('A long tale without an end. ' * 30)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """Returns (workdir, packed folder): documents, a tokenizer beside the rows, rows of 97 tokens."""
  workdir = tmp_path_factory.mktemp('work')
  (workdir / 'a.jsonl').write_text(''.join(json.dumps({'text': t}) + '\n' for t in TEXTS))
  proto = train(TEXTS, kind='bpe', vocab=340)
  (workdir / 'tokenizer.model').write_bytes(proto)
  source = sources.Source((str(workdir / 'a.jsonl'),))
  where = dict(length=97, method='best_fit', seed=0, folder=str(workdir), split='train')
  return str(workdir), packing.prepare('a', source, Tokenizer(proto), **where)


@pytest.fixture
def copy(made, tmp_path):
  """Returns a packed folder to damage."""
  return shutil.copytree(made[1], tmp_path / 'rows')


def shown(capsys, *argv):
  status = command([str(a) for a in argv])
  out = capsys.readouterr().out
  assert '\x1b' not in out and '\u202e' not in out
  return status, out


def test_rows_are_those_that_train(made, capsys):
  """The mask shown is off by one from the one in the loss, or a piece's text is another row's."""
  folder = made[1]
  rows = pipeline.Rows(folder)
  status, out = shown(capsys, folder, '--rows', '0:')
  assert status == 0 and f'{len(rows)} rows of 97 tokens' in out and '31 documents' in out and 'split train' in out
  blocks = re.split(r'\nrow ', out)[1:]
  assert len(blocks) == len(rows)
  joined = []
  for k, block in enumerate(blocks):
    tokens, segments = rows.read([k]).values()
    mask = targets(tokens, segments)['mask'][0] > 0
    assert f'{mask.sum()} of 96 targets' in block and block.startswith(f'{k}  {(segments > 0).sum()} tokens')
    masked = (
      re.findall(r'(\d+)(?: to (\d+))?', block.split('masked: ')[1].split('\n')[0]) if 'masked: ' in block else []
    )
    places = {t - 1 for a, b in masked for t in range(int(a), int(b or a) + 1)}
    assert places == set(np.flatnonzero(~mask).tolist())
    joined += re.findall(r'  piece \d+: \d+ tokens, [^\n]*\n(.*?)(?=\n  piece|\n\n|\n*$)', block, flags=re.S)
  texts = {text.replace('\n    ', '\n').strip() for text in joined}
  assert {f'<BOS>{visible(t)}<EOS>' for t in TEXTS[:-1]} <= texts
  assert out.count('continues a document') == out.count('is continued') > 0


def test_find(made, capsys):
  """A text in the last row is not found, the row before it is shown, or finding nothing passes for success."""
  status, out = shown(capsys, made[1], '--find', 'Port 7 ')
  assert status == 0 and len(re.findall(r'^row ', out, flags=re.M)) == 1 and '<BOS>The harbour of Port 7 was' in out
  status, out = shown(capsys, made[1], '--find', 'Port 700')
  assert status == 1 and 'row 0' not in out and 'hold' in out
  status, out = shown(capsys, os.path.join(made[0], 'a.jsonl'), '--find', 'Port 29 ')
  assert status == 0 and 'a.jsonl:29' in out and 'a.jsonl:2 ' not in out


def test_documents_and_workdir(made, capsys):
  """The range counts from 1 here and from 0 there, or the list leaves out what was packed."""
  path = os.path.join(made[0], 'a.jsonl')
  status, out = shown(capsys, path, '--rows', '1:3')
  assert status == 0 and re.findall(r'^a.jsonl:(\d+)', out, flags=re.M) == ['1', '2']
  assert '    It held 1 boats.\\x1b[31m red\\u202e\n' in out
  status, out = shown(capsys, made[0])
  assert status == 0 and made[1] in out and path in out


def test_tokenizers(made, copy, tmp_path, capsys):
  """Rows are decoded with a tokenizer that they were not packed with: fluent text, all of it wrong."""
  status, out = shown(capsys, copy)
  assert 'not found (no tokenizer.model in the folder or above it)' in out and 'harbour' not in out and f' {EOS}' in out
  other = tmp_path / 'tokenizer.model'
  other.write_bytes(train(TEXTS, kind='bpe', vocab=330))
  assert f'{other} is {Tokenizer(other).fingerprint}' in shown(capsys, copy)[1]
  with pytest.raises(BadInput, match='but the rows were packed with'):
    command([str(copy), '--tokenizer', str(other)])
  with pytest.raises(BadInput, match='needs the text'):
    command([str(copy), '--find', 'harbour'])
  status, out = shown(capsys, copy, '--tokenizer', os.path.join(made[0], 'tokenizer.model'))
  assert 'harbour' in out


@pytest.mark.parametrize('colour', [True, False])
def test_terminal(made, monkeypatch, colour):
  """A document writes to the terminal as a program would, or colours come despite NO_COLOR."""
  monkeypatch.setenv('PAGER', 'cat')
  monkeypatch.setenv('NO_COLOR', '' if colour else '1')
  main, side = pty.openpty()
  saved = os.dup(1)
  try:
    os.dup2(side, 1)
    with open(1, 'w', closefd=False) as screen:
      monkeypatch.setattr('sys.stdout', screen)
      assert command([made[1], '--find', 'Port 7 ']) == 0
  finally:
    os.dup2(saved, 1)
  out = os.read(main, 100_000).decode()
  assert ('\x1b[7mPort 7 \x1b[0m' in out) == colour and ('\x1b' in out) == colour
  assert '\x1b[31m' not in out and '\\x1b[31m red\\u202e' in out


def damage(path, f):
  data = bytearray(path.read_bytes())
  f(data)
  path.write_bytes(data)


@pytest.mark.parametrize('where', ['row', 'index'])
def test_flipped_bytes(copy, where):
  """A damaged row file ends in a traceback of a C++ library, or its rows are shown as if they were whole."""
  stored = pipeline.Rows(str(copy)).read([5])['tokens'].astype('<u2').tobytes()

  def flip(data):
    at = data.index(stored) if where == 'row' else 1 << 16  # where the header of the last block is
    data[at] ^= 1

  damage(next(copy.glob('*.arrayrecord')), flip)
  with pytest.raises(BadInput, match='cannot be read' if where == 'row' else 'cannot be opened'):
    command([str(copy), '--rows', '0:'])


@pytest.mark.parametrize(
  'make, says',
  [
    (lambda p: [p / 'no'], 'does not exist'),
    (lambda p: [p.parent / 'empty'], 'neither packed rows nor documents'),
    (lambda p: [p, '--rows', '0:9999'], 'is not within 0:'),
    (lambda p: [p, '--rows', '3:3'], 'is not within 0:'),
    (lambda p: [p, '--rows', '-1'], 'is no range'),
    (lambda p: [p, '--rows', 'all'], "'all' is no range"),
    (lambda p: [p / 'a.exe'], 'unknown suffix'),
    (lambda p: [p / 'a.jsonl', '--rows', '5:'], 'is not within 0:1'),
    (lambda p: [p / 'a.jsonl', '--field', 'body'], "no field 'body'"),
    (lambda p: (p / 'manifest.json').write_text('{"rows": 3') and [p], 'not that of packed rows'),
    (lambda p: (p / 'manifest.json').write_text('{"rows": 3}') and [p], 'not that of packed rows'),
    (lambda p: (p / 'manifest.json').write_text('[]') and [p], 'not that of packed rows'),
    (lambda p: damage(next(p.glob('*.arrayrecord')), lambda d: d.pop()) or [p], 'the manifest says'),
    (lambda p: [], 'the following arguments are required'),
  ],
)
def test_bad_input_is_a_sentence(copy, make, says):
  """A wrong path, a range past the end or a damaged folder ends in a traceback, or in silence."""
  (copy.parent / 'empty').mkdir()
  (copy / 'a.exe').write_text('x')
  (copy / 'a.jsonl').write_text('{"text": "one"}\n')
  with pytest.raises(BadInput, match=says):
    command([str(a) for a in make(copy)])


def test_verb(made, capsys):
  """The verb is not wired to the command line."""
  with pytest.raises(SystemExit) as e:
    cli(['llmstack', 'inspect', made[1], '--rows', '0'])
  assert not e.value.code and 'row 0' in capsys.readouterr().out
