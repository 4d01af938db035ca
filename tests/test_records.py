"""data/records.py: every form of record that people have, and a sentence or a count for what is none."""

import collections
import json
import os

import pytest

from llmstack.data import records
from llmstack.data.sources import Source
from llmstack.errors import BadInput


def said(*turns, first='user'):
  """Returns messages whose roles alternate."""
  roles = ('user', 'assistant') if first == 'user' else ('assistant', 'user')
  return [{'role': roles[i % 2], 'content': turn} for i, turn in enumerate(turns)]


def source(tmp_path, *rows, **options):
  (tmp_path / 'a.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return Source((str(tmp_path / 'a.jsonl'),), **options)


SYSTEM = {'role': 'system', 'content': 'S'}
CONVERSATIONS = [
  ({'messages': said('q', 'a')}, said('q', 'a')),
  ({'messages': [SYSTEM, *said('q', 'a')], 'prompt': 'q'}, [SYSTEM, *said('q', 'a')]),
  ({'messages': [{'role': 'prompter', 'content': 'q', 'name': None}, {'role': 'assistant', 'content': 'a'}]}, said('q', 'a')),  # noqa: E501
  ({'conversations': [{'from': 'human', 'value': 'q'}, {'from': 'gpt', 'value': 'a'}]}, said('q', 'a')),
  ({'prompt': 'q', 'completion': 'a'}, said('q', 'a')),
  ({'prompt': said('q', 'a', 'r'), 'completion': said('b', first='assistant')}, said('q', 'a', 'r', 'b')),
  ({'prompt': 'q', 'response': 'a'}, said('q', 'a')),
  ({'instruction': 'q', 'output': 'a'}, said('q', 'a')),
  ({'instruction': 'q', 'input': '', 'output': 'a'}, said('q', 'a')),
  ({'instruction': 'q', 'input': 'x', 'output': 'a'}, said('q\n\nx', 'a')),
  ({'instruction': 'q', 'context': None, 'response': 'a'}, said('q', 'a')),
  ({'instruction': 'q', 'context': 'x', 'response': 'a'}, said('q\n\nx', 'a')),
  ({'question': 'q', 'answer': 'a'}, said('q', 'a')),
  ({'question': 'q', 'answer': 'a', 'rationale': 'because'}, said('q', 'because\n\nAnswer: a')),
]  # fmt: skip


@pytest.mark.parametrize('row, expected', CONVERSATIONS)
def test_conversations(tmp_path, row, expected):
  """A field is read under another name, or input and context are lost."""
  ((where, messages),) = records.conversations(source(tmp_path, row))
  assert messages == expected and where.endswith('a.jsonl:1')


HH = '\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant:'
PAIRS = [
  ({'prompt': 'q', 'chosen': 'a', 'rejected': 'b'}, said('q')),
  ({'prompt': said('q'), 'chosen': said('a', first='assistant'), 'rejected': said('b', first='assistant')}, said('q')),
  ({'chosen': said('q', 'a'), 'rejected': said('q', 'b')}, said('q')),
  ({'chosen': said('q', 'a'), 'rejected': said('q', 'b'), 'prompt': 'q'}, said('q')),
  ({'chosen': [SYSTEM, *said('q', 'a')], 'rejected': [SYSTEM, *said('q', 'b')], 'prompt': 'q'}, [SYSTEM, *said('q')]),
  ({'chosen': f'{HH} a', 'rejected': f'{HH} b'}, said('q', 'a', 'r')),
  ({'prompt': HH, 'chosen': ' a'.strip(), 'rejected': 'b'}, said('q', 'a', 'r')),
  ({'messages': said('q'), 'replies': ['a', 'b']}, said('q')),
  ({'instruction': 'q', 'input': 'x', 'response1': 'b', 'response2': 'a', 'annotator1': 2, 'annotator2': 2, 'annotator3': 0}, said('q\n\nx')),  # noqa: E501
  ({'question': 'q', 'answer_matching_behavior': ' a', 'answer_not_matching_behavior': ' b'}, said('q')),
  ({'question': 'q', 'passages': ['x'], 'predictions': ['b', 'a'], 'preference': [2]}, said('x\n\nq')),
]  # fmt: skip


@pytest.mark.parametrize('row, prompt', PAIRS)
def test_pairs(tmp_path, row, prompt):
  """Chosen and rejected change places, or the prompt is repeated in both replies (trl PR#1930)."""
  ((_, pair),) = records.pairs(source(tmp_path, row))
  assert pair == (prompt, said('a', first='assistant'), said('b', first='assistant'), 0.0, 1.0)


def test_margin_label_and_ranks(tmp_path):
  """Margins and soft labels are dropped; a ranking of three gives other pairs than asked for."""
  row = {'prompt': 'q', 'chosen': 'a', 'rejected': 'b'}
  rows = [row | {'margin': 2, 'label': 0.75}, row | {'score_chosen': 7.5, 'score_rejected': 9}]
  assert [pair[3:] for _, pair in records.pairs(source(tmp_path, *rows))] == [(2.0, 0.75), (-1.5, 1.0)]
  ranked = source(tmp_path, {'messages': said('q'), 'replies': ['a', 'b', 'c', 'b']}, on_error='skip')
  text = lambda ranks, counts: [  # noqa: E731
    pair.chosen[0]['content'] + pair.rejected[0]['content'] for _, pair in records.pairs(ranked, counts, ranks=ranks)
  ]
  counts = collections.Counter()
  assert text('all', counts) == ['ab', 'ac', 'ab', 'bc', 'cb'] and counts == {'equal replies': 1}
  assert text('adjacent', None) == ['ab', 'bc', 'cb']
  with pytest.raises(BadInput, match="ranks = 'best': choose"):
    text('best', None)


def test_rated(tmp_path):
  """A label that is a string is true, whatever it says."""
  rows = [{'prompt': 'q', 'completion': 'a', 'label': True}, {'prompt': 'q', 'response': 'b', 'label': 0}]
  found = [example[1:] for example in records.rated(source(tmp_path, *rows))]
  assert found == [(said('q'), said(x, first='assistant'), good) for x, good in (('a', True), ('b', False))]
  with pytest.raises(BadInput, match="a.jsonl:1: label is 'False': write true"):
    list(records.rated(source(tmp_path, rows[0] | {'label': 'False'})))


def test_a_tie_is_neither_desirable_nor_undesirable(tmp_path):
  """People's ties, label 0.5, teach KTO that whichever stands first is the better one."""
  pair, counts = {'prompt': 'a?', 'chosen': 'b', 'rejected': 'c'}, collections.Counter()
  found = list(records.rated(source(tmp_path, pair | {'label': 0.5}, pair | {'label': 1.0}), counts))
  assert [desirable for *_, desirable in found] == [True, False] and counts == {'tie': 1}


def test_ties_are_counted(tmp_path):
  """A tie is trained on as a win for the first."""
  row = {'instruction': 'q', 'response1': 'a', 'response2': 'b'}
  votes = [(0, 0, 1), (0, 1, 2), (1, 2, 1)]
  rows = [row | dict(zip(('annotator1', 'annotator2', 'annotator3'), vote)) for vote in votes]
  counts = collections.Counter()
  assert len(list(records.pairs(source(tmp_path, *rows), counts))) == 1 and counts == {'tie': 2}


def test_parquet_and_fields(tmp_path):
  """A table's null columns count as fields; names from elsewhere need a new file."""
  import pyarrow
  import pyarrow.parquet

  rows = [{'query': 'q', 'gold': 'a', 'messages': None}, {'query': None, 'gold': None, 'messages': said('r', 'b')}]
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / 'a.parquet')
  table = Source((str(tmp_path / 'a.parquet'),), on_error='skip')
  counts = collections.Counter()
  assert list(records.conversations(table, counts)) == [(f'{tmp_path}/a.parquet, row 1', said('r', 'b'))]
  assert counts == {'missing field': 1}
  found = records.conversations(table, counts, fields={'prompt': 'query', 'completion': 'gold'})
  assert [messages for _, messages in found] == [said('q', 'a')] and counts == {'missing field': 2}
  with pytest.raises(BadInput, match=r"fields has \['query'\]: choose from"):
    list(records.conversations(table, fields={'query': 'prompt'}))


BAD = [
  (records.conversations, {'text': 'a'}, 'missing field', r"has fields \['text'\], where messages, or conversations"),
  (records.conversations, {'messages': 'a'}, 'field not messages', "'a' is no list of messages"),
  (records.conversations, {'messages': ['a']}, 'field not messages', "message 'a' is no object"),
  (records.conversations, {'messages': said('q', 'a', 'r')}, 'no reply', 'ends with user, nothing to learn'),
  (records.conversations, {'messages': said('a', 'q', first='assistant')}, 'does not alternate', 'message 0 is'),
  (records.conversations, {'messages': [{'role': 'critic', 'content': 'a'}]}, 'unknown role', "has role 'critic'"),
  (records.conversations, {'prompt': 'q', 'completion': ' '}, 'empty assistant turn', 'message 1 is an assistant turn'),
  (records.conversations, {'question': 'q', 'answer': 4}, 'field not text', "field 'answer' is int, not text"),
  (records.pairs, {'chosen': 'a', 'rejected': 'b'}, 'missing field', 'are replies without their prompt: add'),
  (records.pairs, {'prompt': 'q', 'chosen': 'a', 'rejected': 'a'}, 'equal replies', 'are the same: drop the pair'),
  (records.pairs, {'chosen': said('q', 'a'), 'rejected': said('q', 'a')}, 'equal replies', 'are the same: drop'),
  (records.pairs, {'chosen': said('q', 'a'), 'rejected': said('r', 'a')}, 'prompts differ', 'at message 0: drop'),
  (records.pairs, {'chosen': said('q', 'a'), 'rejected': said('q')}, 'prompts differ', 'at message 1: drop'),
  (records.pairs, {'prompt': 'z', 'chosen': said('q', 'a'), 'rejected': said('q', 'b')}, 'prompts differ', 'is not'),
  (records.pairs, {'messages': said('q'), 'replies': ['a']}, 'too few replies', 'give at least two, the best first'),
]  # fmt: skip
PAIR = {'prompt': 'q', 'chosen': 'a', 'rejected': 'b'}
BAD += [
  (records.pairs, PAIR | {'margin': float('nan')}, 'bad margin', 'margin is nan: give a finite number'),
  (records.pairs, PAIR | {'margin': float('inf')}, 'bad margin', 'margin is inf'),
  (records.pairs, PAIR | {'margin': 1e39}, 'bad margin', 'margin is 1e[+]39'),  # infinite in float32
  (records.pairs, PAIR | {'margin': 10**400}, 'bad margin', 'margin is 1000'),  # no float at all
  (records.pairs, PAIR | {'score_chosen': 1}, 'bad score', 'has one of score_chosen and score_rejected'),
  (records.pairs, PAIR | {'score_chosen': 1, 'score_rejected': float('nan')}, 'bad score', 'score_rejected is nan'),
  (records.pairs, PAIR | {'label': float('nan')}, 'bad label', 'label is nan'),
  (records.pairs, PAIR | {'label': 1.5}, 'bad label', 'label is 1.5: give the probability'),
  (records.pairs, PAIR | {'rejected': ''}, 'empty assistant turn', 'message 1 is an assistant turn without text'),
  (
    records.rated,
    {'prompt': 'q', 'completion': 'a'},
    'missing field',
    r"\['completion', 'prompt'\], where prompt\+comp",
  ),
]


@pytest.mark.parametrize('reader, row, kind, sentence', BAD)
def test_bad_records(tmp_path, reader, row, kind, sentence):
  """A record that cannot be learnt from is learnt from, ends in a KeyError, or goes without a trace."""
  with pytest.raises(BadInput, match=rf'a\.jsonl:1.*{sentence}.*; or have .* data.on_error=skip'):
    list(reader(source(tmp_path, row)))
  good = {'prompt': 'q', 'completion': 'a', 'chosen': 'a', 'rejected': 'b', 'label': 1}
  counts = collections.Counter()
  found = list(reader(source(tmp_path, row, good, on_error='skip'), counts))
  assert len(found) == 1 and counts == {kind: 1}


REAL = {
  'sft/dolly_sample.jsonl.gz': (151, {}), 'sft/flan_cot_qasc.jsonl.gz': (1084, {}),
  'sft/oasst_octopack_a.jsonl.gz': (1010, {}), 'sft/self_instruct_seed.jsonl.gz': (175, {}),
  'sft/taskmaster4_dialogs_a.jsonl.zst': (3297, {'no reply': 67}),
  'prefs/hh_harmless_base_a.jsonl.gz': (1590, {'empty assistant turn': 3, 'does not alternate': 6}),
  'prefs/oasst_en100_ranked.jsonl.gz': (754, {}),
  'prefs/pandalm_a.jsonl.gz': (646, {'tie': 81, 'field not messages': 6, 'empty assistant turn': 16}),
}  # fmt: skip


@pytest.mark.parametrize('name', REAL)
def test_real_files(name):
  """A form that real files have is read in part, and nobody sees how much."""
  path = os.path.join(os.environ.get('LLMSTACK_DATA', 'none'), name)
  if not os.path.isfile(path):
    pytest.skip('LLMSTACK_DATA does not name the folder of real data')
  counts, reader = collections.Counter(), records.conversations if name.startswith('sft') else records.pairs
  assert (len(list(reader(Source((path,), on_error='skip'), counts))), dict(counts)) == REAL[name]
