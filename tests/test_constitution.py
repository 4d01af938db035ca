"""A constitution is read as a person wrote it, and what is said about drafts is kept, counted and written whole."""

import collections
import json
import os

import pytest
from helpers import model, weights
from ml_collections import ConfigDict

from configs import constitution as configured
from llmstack.align import constitution
from llmstack.align import judge as judging
from llmstack.align.constitution import Principle, critique_prompt, drawn, parse, revision_prompt
from llmstack.data import tokenizer, world_harm
from llmstack.data.prompts import Prompt
from llmstack.errors import BadInput
from llmstack.tasks import constitution as task
from llmstack.tasks import start

WRITTEN = """# ours
critique: Is it kind?
# a comment within
revision: Write it
  kindly.


revision: Write it again.
critique: Is it true?"""
KIND, TRUE = Principle('Is it kind?', 'Write it kindly.'), Principle('Is it true?', 'Write it again.')
C = configured.get_config()


def user(text):
  return [{'role': 'user', 'content': text}]


def test_constitution_by_hand():
  """A comment splits a principle, a line that goes on is lost, or the last one needs a blank line after it."""
  assert parse(WRITTEN, 'a.txt') == [KIND, TRUE]
  assert parse(WRITTEN.replace('\n', '\r\n') + '\r\n\r\n', 'a.txt') == [KIND, TRUE]


@pytest.mark.parametrize(
  'text, sentence',
  [
    ('', 'a.txt has no principles'),
    ('# only a comment\n\n', 'a.txt has no principles'),
    ('critique: Is it kind?', 'a.txt, line 2: the principle that ends here has no revision'),
    ('critique:\nrevision: Again.', 'has no critique'),
    ('critique: A?\nrevision: B.\ncomparison:', 'line 4: the principle that ends here has no comparison'),
    ('critique: A?\ncritique: B?', 'line 2 has a second critique'),
    ('Be kind.', "line 1 is 'Be kind.'"),
    ('  critic: A?', "line 1 is 'critic: A?'"),
  ],
)
def test_what_is_no_constitution(text, sentence):
  """A file without principles revises nothing, and nobody hears of it."""
  with pytest.raises(BadInput, match=sentence.replace('?', r'\?')):
    parse(text, 'a.txt')


def test_prompts_by_hand():
  """A brace that somebody wrote is taken for a field, or the earlier turns of a conversation are lost."""
  asked = critique_prompt('{request}|{draft}|{ask}', KIND, user('Why {draft}?'), '{ask}')
  assert asked == user('Why {draft}?|{ask}|Is it kind?')
  talk = [*user('Hi.'), {'role': 'assistant', 'content': 'Hello.'}, *user('Why?')]
  asked = revision_prompt('{request}|{draft}|{critique}|{ask}', TRUE, talk, 'So.', 'No.')
  assert asked == user('User: Hi.\nAssistant: Hello.\nUser: Why?|So.|No.|Write it again.')
  fields = ('request', 'draft', 'ask')
  for bad in ('{request} {draft}', '{request} {draft} {ask} {more}', '{request', '{} {request} {draft} {ask}'):
    with pytest.raises(BadInput, match='critique = '):
      constitution.check_template(bad, 'critique', fields)


def test_draws_are_even_and_of_their_own():
  """All rows of a round, or all rounds of a row, get one principle; or a draw moves when rows are added."""
  of = {(row, at): drawn(range(4), 0, row, at) for row in range(500) for at in range(2)}
  assert min(collections.Counter(of.values()).values()) > 200
  pairs = collections.Counter((of[row, 0], of[row, 1]) for row in range(500))
  assert len(pairs) == 16 and max(pairs.values()) < 60
  assert [drawn(range(4), 0, 7, 1), drawn(range(4), 1, 7, 1)] == [of[7, 1], drawn(range(4), 1, 7, 1)]
  assert any(drawn(range(4), 1, row, 0) != of[row, 0] for row in range(9))


def test_the_demo_exercises_what_it_asks():
  """Prompts of the demo's constitution are worded as no exercise is: the model was never taught to answer them."""
  with open(C.constitution) as f:
    principles = parse(f.read(), C.constitution)
  assert C.critique == world_harm.CRITIQUE and C.revision == world_harm.REVISION
  assert {p.critique for p in principles} == set(world_harm.CRITIQUES)
  assert {p.revision for p in principles} == set(world_harm.REVISIONS)
  assert {p.comparison for p in principles} - {''} == set(world_harm.COMPARISONS)
  # What a judge is asked, whole: the template of configs/judge.py:world-constitution, and the question behind it.
  with open('configs/comparison.txt') as f:
    text = f.read().removesuffix('\n')
  said = text.format(principle='{ask}', prompt='User: {request}', one=1, two=2, first='{first}', second='{second}')
  assert f'{said}\n\n{judging.WHICH.format(one=1, two=2)}' == world_harm.COMPARISON.format(
    **{k: f'{{{k}}}' for k in ('ask', 'request', 'first', 'second')}, which=world_harm.WHICH
  )


def script(by_text):
  """Returns a `say` that answers from a table, by the last message."""
  return lambda conversations, seeds, second: [by_text[m[-1]['content']] for m in conversations]


def test_what_goes_wrong_is_kept_and_counted():
  """An empty revision becomes an answer to learn, a draft that was cut off is learnt, or a failure is not counted."""
  said = {
    'a': ('A', ''), 'b': ('', 'empty'), 'c': ('C', 'unfinished'), 'd': ('D', ''), 'e': ('E', ''), 'f': ('F', ''),
    'A?': ('Bad.', ''), 'D?': ('', 'empty'), 'E?': ('Bad.', ''), 'F?': ('Fine.', ''),
    'A Bad.': ('A2', ''), 'E Bad.': ('E2', 'unfinished'),
    'A2?': ('Bad.', ''), 'A2 Bad.': ('A2', ''),
  }  # fmt: skip
  rows = task.steps(
    script(said), [Prompt([], user(x), {}) for x in 'abcdef'], [Principle('?', '')], seed=0, first=10, rounds=2,
    critique='{draft}{ask}', revision='{draft} {critique}{ask}', fine='Fine',
  )  # fmt: skip
  assert [row['row'] for row in rows] == [10, 11, 12, 13, 14, 15]
  assert [row['final'] for row in rows] == ['A2', '', 'C', 'D', 'E', 'F']
  assert [row['left_out'] for row in rows] == ['', 'draft empty', 'draft unfinished', '', '', '']
  assert [len(row['rounds']) for row in rows] == [2, 0, 0, 2, 2, 2]
  assert rows[4]['rounds'][0]['revised'] == 'E2' and rows[5]['rounds'][1]['revised'] == ''
  assert task.counted(rows) == {
    'prompts': 6, 'revised': 1, 'unchanged': 3, 'draft empty': 1, 'draft unfinished': 1, 'critique empty': 2,
    'revision unfinished': 2,
  }  # fmt: skip
  assert all(text in task.told(rows[4]) for text in ('user: e', 'Bad.', 'E2', 'revision unfinished'))


@pytest.fixture
def trained(tmp_path):
  """Returns the workdir of a model of random weights, which says a few letters and ends."""
  words = tokenizer.Tokenizer(tokenizer.train(['asky 012345'], kind='char', vocab=99))
  cfg = model('llama_tiny', vocab=words.vocab, layers=1)
  meta = start.record(cfg, ConfigDict(), words) | {'template': 'llmstack'}
  start.save_parameters(str(tmp_path / 'trained'), weights(cfg), meta)
  return tmp_path / 'trained'


def test_run_from_parts(tmp_path, trained, capsys):
  """A run that was killed begins anew, says something else, loses rows, or mixes two constitutions in one folder."""
  (tmp_path / 'asked.jsonl').write_text(''.join(json.dumps({'prompt': f'ask {i}', 'n': i}) + '\n' for i in range(5)))
  (tmp_path / 'rules.txt').write_text(WRITTEN)
  config = configured.get_config()
  config.update(
    dict(
      model=str(trained), constitution=str(tmp_path / 'rules.txt'), files=(str(tmp_path / 'asked.jsonl'),), batch=8,
      group=2, new_tokens=16, temperature=1.0, second_temperature=1.0, critique='{request}{draft}{ask}',
      revision='{request}{draft}{critique}{ask}', fine='',
    )
  )  # fmt: skip
  config.lock()
  done = tmp_path / 'done'
  task.run(config, str(done))
  files = ('steps.jsonl', 'chats.jsonl', 'pairs.jsonl', 'counts.json')
  first = {name: (done / name).read_bytes() for name in files}
  steps = [json.loads(line) for line in first['steps.jsonl'].splitlines()]
  assert [row['row'] for row in steps] == [row['n'] for row in steps] == [0, 1, 2, 3, 4]
  assert json.loads(first['counts.json'])['prompts'] == 5 and len(os.listdir(done / 'parts')) == 3

  for name in files:
    (done / name).unlink()
  (done / 'parts' / '00001.jsonl').rename(done / 'parts' / '00001.jsonl.new')  # killed while it was written
  task.run(config, str(done))
  assert first == {name: (done / name).read_bytes() for name in files}

  capsys.readouterr()
  with config.unlocked():
    config.show = 2
  task.run(config, str(done))
  assert capsys.readouterr().out.count('user: ask') == 2
  with pytest.raises(BadInput, match='no steps.jsonl'):
    task.run(config, str(tmp_path / 'nowhere'))
  config.show = 0
  (tmp_path / 'rules.txt').write_text(WRITTEN.replace('kind', 'good'))
  with pytest.raises(BadInput, match='another constitution'):
    task.run(config, str(done))
  (tmp_path / 'rules.txt').write_text(WRITTEN)
  (tmp_path / 'asked.jsonl').write_text('{"prompt": "ask 9"}\n')
  with pytest.raises(BadInput, match='another files:'):
    task.run(config, str(done))
  (tmp_path / 'rules.txt').write_text('# nothing yet\n')
  with pytest.raises(BadInput, match='rules.txt has no principles'):
    task.run(config, str(tmp_path / 'new'))
  assert not (tmp_path / 'new').exists()
