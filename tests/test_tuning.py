"""Conversations and pairs as packed rows: what is learnt, what fits, what is cut, and which split it falls in."""

import json

import numpy as np
import pytest

from llmstack.data import batch as batches
from llmstack.data import chat, pipeline, sources, tuning
from llmstack.data.tokenizer import Tokenizer, train
from llmstack.errors import BadInput


@pytest.fixture(scope='module')
def template():
  texts = ['the cat sat on the mat; is the dog on the log? yes, no 0123456789 ' * 40]
  return chat.template('llmstack', Tokenizer(train(texts, kind='bpe', vocab=300)))


def rows_of(tmp_path, template, records, kind='chat', holdout=0.0, split='train', **changes):
  """Returns the pipeline.Rows of these records."""
  path = tmp_path / 'records.jsonl'
  path.write_text(''.join(json.dumps(r) + '\n' for r in records))
  how = dict(kind=kind, length=48, packed=True, too_long='drop', train_on='assistant', seed=0) | changes
  source = sources.Source((str(path),), holdout=holdout, on_error=how.pop('on_error', 'raise'))
  return pipeline.Rows(tuning.prepare('records', source, template, folder=str(tmp_path / 'rows'), split=split, **how))


def chats(n, words=1):
  return [
    {'messages': [{'role': 'user', 'content': f'cat {i}?'}, {'role': 'assistant', 'content': 'dog ' * (words + i % 3)}]}
    for i in range(n)
  ]


def pairs(n):
  return [{'prompt': f'cat {i}?', 'chosen': 'the mat' + ' yes' * (i % 3), 'rejected': f'log {i}'} for i in range(n)]


def text(template, ids):
  return template.tokenizer.decode_plain([i for i in ids if i not in template.stops])


def said(template, tokens, segments, mask):
  """Returns [(text, learnt text)] of the segments of one row."""
  out = []
  for s in range(1, segments.max() + 1):
    here = segments == s
    out.append(tuple(text(template, tokens[here & keep].tolist()) for keep in (here, mask > 0)))
  return sorted(out)


def test_each_conversation_is_there_once(tmp_path, template):
  """Packing loses or repeats a conversation, or the mask slips by one: both ways of packing hold the same."""
  records, found = chats(20), []
  for packed in (True, False):
    rows = rows_of(tmp_path, template, records, packed=packed)
    read = rows.read(range(len(rows)))
    found.append(sorted(x for row in zip(*read.values()) for x in said(template, *row)))
    assert rows.manifest['documents'] == 20 and rows.manifest['targets'] == sum(read['mask'].sum(1))
    assert len(rows) < 10 if packed else len(rows) == 20
  assert found[0] == found[1] and len(set(found[0])) == 20
  for whole, learnt in found[0]:
    assert learnt.startswith('dog') and learnt in whole and 'cat' not in learnt


def test_a_pair_stands_in_one_row(tmp_path, template):
  """The chosen completion of one pair meets the rejected one of another, or the last token is no input."""
  rows = rows_of(tmp_path, template, pairs(20), kind='pairs')
  read = rows.read(range(len(rows)))
  assert len(rows) < 12 and read['tokens'].shape[1:] == (2, 49) and (read['segments'][..., -1] == 0).all()
  seen = set()
  for tokens, segments, mask in zip(read['tokens'], read['segments'], read['mask']):
    assert segments[0].max() == segments[1].max()
    for s in range(1, segments[0].max() + 1):
      texts = [text(template, t[(g == s) & (m == 0)].tolist()) for t, g, m in zip(tokens, segments, mask)]
      learnt = [text(template, t[(g == s) & (m > 0)].tolist()) for t, g, m in zip(tokens, segments, mask)]
      assert texts[0] == texts[1] and learnt[0].startswith('the mat') and learnt[1].startswith('log')
      assert texts[0].split('?')[0].split()[-1] == learnt[1].split()[1]
      seen.add(texts[0])
  assert len(seen) == 20
  made = batches.make(read)
  assert made['valid'].sum() == 20 and (made['label'][made['valid'] > 0] == 1).all()
  assert ((made['mask'] > 0) <= (made['segments'] > 0)).all()


@pytest.mark.parametrize('kind', ['chat', 'pairs', 'rated'])
def test_every_example_has_one_bos_and_ends_in_a_stop_that_is_learnt(tmp_path, template, kind):
  """No EOS behind a completion (trl#931, trl PR#3091), a BOS before the response too (tunix's DPO), or one more for the
  tokenizer (alignment-handbook#127, NeMo-RL#855): the stop goes only where the row was cut off."""
  records = {'chat': chats(9), 'pairs': pairs(9), 'rated': [
    {'prompt': p['prompt'], 'completion': p['chosen'], 'label': True} for p in pairs(9)]}[kind]  # fmt: skip
  model = template.tokenizer
  for length, cut in ((48, False), (14, True)):
    rows = rows_of(tmp_path, template, records, kind=kind, length=length, too_long='truncate')
    read, ends = rows.read(range(len(rows))), []
    assert bool(rows.manifest['too_long_rows']) == cut
    sides = [read[k].reshape(-1, length + 1) for k in ('tokens', 'segments', 'mask')]
    for tokens, segments, mask in zip(*sides):
      for s in range(1, segments.max() + 1):
        ids, learnt = tokens[segments == s], mask[segments == s]
        assert ids[0] == model.bos and (ids == model.bos).sum() == 1
        ends.append(ids[-1] in template.stops)
        assert learnt[-1] and not learnt[0]
    assert all(ends) != cut and (cut or len(ends) == 9 * (1 if kind == 'chat' else 2))


def test_what_is_too_long_is_counted(tmp_path, template):
  """A conversation longer than a row vanishes, or is cut, without a word."""
  records = [*chats(6), *chats(2, words=40)]
  rows = rows_of(tmp_path, template, records)
  assert rows.manifest['too_long_rows'] == 2 and rows.manifest['documents'] == 8
  assert max(len(t[s > 0]) for t, s in zip(*list(rows.read(range(len(rows))).values())[:2])) <= 48
  cut = rows_of(tmp_path, template, records, too_long='truncate')
  assert cut.manifest['too_long_rows'] == 2 and cut.manifest['targets'] > rows.manifest['targets'] + 60
  with pytest.raises(BadInput, match=r'records.jsonl:7 has \d+ tokens and data.length = 48'):
    rows_of(tmp_path, template, records, too_long='refuse')
  with pytest.raises(BadInput, match='8 too long for data.length = 4'):
    rows_of(tmp_path, template, records, length=4)


def test_a_long_prompt_loses_its_beginning(tmp_path, template):
  """A pair is cut at its end, where the completions differ, or the two prompts are cut differently."""
  records = [{'prompt': 'cat ' * 40 + 'dog?', 'chosen': 'yes', 'rejected': 'no no'}]
  rows = rows_of(tmp_path, template, records, kind='pairs', too_long='truncate')
  tokens, segments, mask = (x[0] for x in list(rows.read([0]).values())[:3])
  texts = [text(template, t[(s > 0) & (m == 0)].tolist()) for t, s, m in zip(tokens, segments, mask)]
  assert texts[0] == texts[1] and texts[0].count('cat') < 40 and 'dog?' in texts[0]
  learnt = [text(template, t[m > 0].tolist()) for t, m in zip(tokens, mask)]
  assert learnt == ['yes', 'no no'] and (tokens[:, 0] == template.tokenizer.bos).all()


def test_a_prompt_is_on_one_side(tmp_path, template):
  """Two answers to one prompt, one of them trained on and the other held out, make the held-out one no test."""
  records = [dict(r, chosen=f'{r["chosen"]} {k}') for r in pairs(40) for k in range(2)]
  sides = []
  for split in ('train', 'eval'):
    rows = rows_of(tmp_path, template, records, kind='pairs', holdout=0.3, split=split)
    read = rows.read(range(len(rows)))
    prompts = set()
    for t, s, m in zip(read['tokens'][:, 0], read['segments'][:, 0], read['mask'][:, 0]):
      prompts |= {text(template, t[(s == k) & (m == 0)].tolist()) for k in range(1, s.max() + 1)}
    sides.append(prompts)
    assert rows.manifest['documents'] == 2 * len(prompts)
  assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 40 and len(sides[1]) > 5


def test_repeated_rows_are_counted(tmp_path, template):
  """The same conversation a thousand times is a thousand epochs of it, and nothing says so."""
  rows = rows_of(tmp_path, template, [*chats(6), *chats(6)])
  assert rows.manifest['repeated'] == 6


def test_documents_beside_conversations(tmp_path, template):
  """Replay: a document's prompt is masked like a user's, or pieces of it overlap by more than a token."""
  rows = rows_of(tmp_path, template, [{'text': 'the cat sat on the mat ' * 30}], kind='text')
  made = batches.make(rows.read(range(len(rows))))
  ids = template.tokenizer.encode('the cat sat on the mat ' * 30)
  assert made['mask'].sum() == len(ids) + 1  # and EOS


def test_rows_are_those_of_their_settings(tmp_path, template):
  """Rows of another template, length or mask are taken for these."""
  changes = ({}, {'length': 40}, {'packed': False}, {'train_on': 'all'}, {'too_long': 'truncate'}, {})
  folders = {rows_of(tmp_path, template, chats(6), **how).folder for how in changes}
  assert len(folders) == 5
  chatml = chat.template('chatml', template.tokenizer)
  assert rows_of(tmp_path, chatml, chats(6), length=96).folder not in folders


def test_kto_needs_two_prompts(tmp_path, template):
  """With one prompt every completion is matched: the baseline is that of nothing (trl#2554)."""
  records = [{'prompt': 'cat?', 'completion': f'dog {i}', 'label': True} for i in range(3)]
  with pytest.raises(BadInput, match='one prompt only'):
    rows_of(tmp_path, template, records, kind='rated')
  mixed = [*records, {'prompt': 'log?', 'completion': 'mat', 'label': False}]
  rows = rows_of(tmp_path, template, mixed, kind='rated', packed=False)
  assert sorted(rows.read(range(4))['label'][:, 0]) == [0, 1, 1, 1]


def test_ktos_mismatch_is_a_rotation(tmp_path, template):
  """Turned around, the middle one of an odd number meets its own prompt (trl#1911); or one completion is met twice."""
  records = [{'prompt': p['prompt'], 'completion': p['rejected'], 'label': True} for p in pairs(9)]
  read = rows_of(tmp_path, template, records, kind='rated', packed=False).read(range(9))
  own, other = ([text(template, t[m > 0].tolist()) for t, m in zip(read['tokens'][:, k], read['mask'][:, k])]
                for k in (0, 1))  # fmt: skip
  assert sorted(own) == sorted(other) == [f'log {i}' for i in range(9)] and all(a != b for a, b in zip(own, other))


def test_margins_and_labels_arrive(tmp_path, template):
  """A soft label or a margin lands on another pair of its row."""
  records = [dict(p, margin=i / 4, label=1 - i / 100) for i, p in enumerate(pairs(12))]
  rows = rows_of(tmp_path, template, records, kind='pairs')
  read = rows.read(range(len(rows)), pairs=9)
  found = []
  for t, s, m, margin, label in zip(*read.values()):
    for k in range(1, s[1].max() + 1):
      i = int(text(template, t[1][(s[1] == k) & (m[1] > 0)].tolist()).split()[1])
      found.append(i)
      np.testing.assert_allclose([margin[k - 1], label[k - 1]], [i / 4, 1 - i / 100], rtol=1e-6)
  assert sorted(found) == list(range(12)) and margin.shape == (9,)
