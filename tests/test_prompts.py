"""data/prompts.py: every form of record, answers as text, prompts that do not fit, and an order that can be resumed."""

import collections
import gzip
import json
import os

import numpy as np
import pytest

from llmstack.data import chat
from llmstack.data.prompts import fingerprint, order, prompts
from llmstack.data.sources import Source
from llmstack.data.tokenizer import Tokenizer, train
from llmstack.errors import BadInput
from llmstack.rewards import Rewards, answers


@pytest.fixture(scope='module')
def template():
  texts = ['the cat sat on the mat; is the dog on the log? yes, no 0123456789 ' * 40]
  return chat.template('llmstack', Tokenizer(train(texts, kind='bpe', vocab=300)))


def read(tmp_path, template, *rows, limit=200, on_error='raise', **how):
  (tmp_path / 'a.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return prompts(Source((str(tmp_path / 'a.jsonl'),), on_error=on_error), template, limit=limit, **how)


def user(*turns):
  return [{'role': ('user', 'assistant')[i % 2], 'content': turn} for i, turn in enumerate(turns)]


FORMS = [
  ({'prompt': 'q', 'answer': 4, 'level': 2}, user('q'), {'answer': '4', 'level': 2}),
  ({'prompt': user('q', 'a', 'r'), 'tests': ['assert f() == 1']}, user('q', 'a', 'r'), {'tests': ['assert f() == 1']}),
  ({'prompt': '\n\nHuman: q\n\nAssistant:'}, user('q'), {}),
  ({'messages': user('q', 'a', 'r', 'b'), 'answer': None}, user('q', 'a', 'r'), {}),
  ({'conversations': [{'from': 'human', 'value': 'q'}, {'from': 'gpt', 'value': 'a'}]}, user('q'), {}),
  ({'question': 'q', 'answer': 'She has 1 + 1 = 2.\n#### 2'}, user('q'), {'answer': '2'}),
  ({'question': 'q', 'answer': '#### is a heading\nso B '}, user('q'), {'answer': '#### is a heading\nso B'}),
  ({'problem': 'q', 'answer': r'\frac{1}{2}'}, user('q'), {'answer': r'\frac{1}{2}'}),
  ({'Body': 'A cat.', 'Question': 'q?', 'Answer': 51.0, 'ID': 'x'}, user('A cat. q?'), {'answer': '51', 'ID': 'x'}),
  ({'Body': 'If it sat', 'Question': 'q?', 'Answer': 0.5}, user('If it sat, q?'), {'answer': '0.5'}),
  ({'context': '17 * 94 =', 'continuation': ' 1598'}, user('17 * 94 ='), {'answer': '1598'}),
  ({'question': 'q', 'options': ['A)1', 'B)2'], 'correct': 'B', 'rationale': 'r'}, user('q\nA)1\nB)2'),
   {'answer': 'B', 'rationale': 'r'}),
  ({'text': 'q', 'test_list': ['assert f()'], 'code': 'c'}, user('q'), {'test_list': ['assert f()'], 'code': 'c'}),
  ({'chosen': '\n\nHuman: q\n\nAssistant: a', 'rejected': '\n\nHuman: q\n\nAssistant: b'}, user('q'), {}),
]  # fmt: skip


def test_every_form(tmp_path, template):
  """A form's question is cut, the reply is left in the prompt, or the reference answer is lost."""
  listed = read(tmp_path, template, *(record for record, _, _ in FORMS), instruction='\nA number.')
  for prompt, (record, messages, info) in zip(listed, FORMS, strict=True):
    told = [*messages[:-1], messages[-1] | {'content': f'{messages[-1]["content"]}\nA number.'}]
    assert (prompt.messages, prompt.info) == (told, info), record
    assert prompt.ids == template.prompt(told)


BAD = [
  ({'prompt': ' '}, 'a.jsonl:2: the prompt is empty', 'empty prompt'),
  ({'prompt': 3}, 'a.jsonl:2: 3 is no list of messages', 'field not messages'),
  ({'question': ['q']}, "a.jsonl:2: field 'question' is list", 'field not text'),
  ({'messages': [{'role': 'assistant', 'content': 'a'}]}, 'a.jsonl:2: messages is', 'no messages'),
  ({'query': 'q'}, r"a.jsonl:2 has fields \['query'\]", 'missing field'),
  ({'prompt': 'q', 'answer': True}, 'a.jsonl:2: the answer is True', 'bad answer'),
  ({'prompt': 'q', 'answer': ' '}, 'a.jsonl:2: the answer is empty', 'bad answer'),
  ({'question': 'q', 'options': 'A', 'correct': 'A'}, 'a.jsonl:2: options is', 'field not a list'),
  ({'prompt': user('q', 'a')}, 'a.jsonl:2: the prompt ends with assistant', 'no prompt'),
]


@pytest.mark.parametrize('record, sentence, kind', BAD, ids=range(len(BAD)))
def test_bad_records(tmp_path, template, record, sentence, kind):
  """A record that is no prompt is trained on as if it were, or stops the run without its line."""
  with pytest.raises(BadInput, match=sentence):
    read(tmp_path, template, {'prompt': 'q'}, record)
  counts = collections.Counter()
  assert len(read(tmp_path, template, {'prompt': 'q'}, record, on_error='skip', counts=counts)) == 1
  assert counts == {kind: 1}


def test_prompts_that_do_not_fit(tmp_path, template):
  """A prompt that fills the window leaves nothing to generate, or is cut without a word."""
  short = len(template.prompt(user('cat')))
  counts = collections.Counter()
  listed = read(tmp_path, template, {'prompt': 'cat'}, {'prompt': 'cat' * 99}, limit=short, counts=counts)
  assert [p.messages for p in listed] == [user('cat')] and counts == {'too long': 1}
  with pytest.raises(BadInput, match=f'a.jsonl:2: the prompt has .* and {short} fit'):
    read(tmp_path, template, {'prompt': 'cat'}, {'prompt': 'cat' * 99}, limit=short, too_long='refuse')
  with pytest.raises(BadInput, match="no prompt is left .*'too long': 1"):
    read(tmp_path, template, {'prompt': 'cat'}, limit=short - 1)
  with pytest.raises(BadInput, match='0 tokens are left for the prompt'):
    read(tmp_path, template, {'prompt': 'cat'}, limit=0)
  with pytest.raises(BadInput, match='too_long'):
    read(tmp_path, template, {'prompt': 'cat'}, too_long='truncate')


def test_fingerprint(tmp_path, template):
  """A resumed run goes on with other prompts, answers or another order under the same name."""
  one, two = {'prompt': 'cat', 'answer': '1'}, {'prompt': 'dog', 'answer': '2'}
  files = [(one, two), (two, one), (one,), (one, two | {'answer': '3'}), (one, two | {'prompt': 'log'})]
  found = [fingerprint(read(tmp_path, template, *rows)) for rows in files]
  assert len(set(found)) == len(files) and found[0] == fingerprint(read(tmp_path, template, one, two))
  assert found[0] != fingerprint(read(tmp_path, template, one, two, instruction='!'))


@pytest.mark.parametrize('n', [1, 2, 7, 100])
def test_order(n):
  """An epoch repeats or leaves out a prompt, all epochs are alike, or a resumed run sees another order."""
  index = order(n, 5)
  whole = index(np.arange(4 * n))
  assert all(sorted(epoch) == list(range(n)) for epoch in whole.reshape(4, n))
  np.testing.assert_array_equal(order(n, 5)(np.arange(n, 3 * n)), whole[n : 3 * n])
  np.testing.assert_array_equal(index(2 * n), whole[2 * n : 2 * n + 1])
  if n == 100:
    assert len({tuple(epoch) for epoch in whole.reshape(4, n)}) == 4
    assert (order(n, 6)(np.arange(n)) != whole[:n]).any()


FILES = {
  'gsm8k_train': 7473, 'gsm8k_test_a': 644, 'svamp_a': 694, 'aqua_dev': 254, 'simple_arithmetic_nospaces': 1000,
  'simple_arithmetic_withspaces': 1000,
}  # fmt: skip


def real(name):
  path = os.path.join(os.environ.get('LLMSTACK_DATA', 'none'), 'math', f'{name}.jsonl.gz')
  if not os.path.exists(path):
    pytest.skip('LLMSTACK_DATA does not name the folder of real data')
  return path


@pytest.mark.parametrize('name', FILES)
def test_real_files(name, template):
  """Every record of the real files is a prompt, and its own reference answer, given as the reply, is right."""
  listed = prompts(Source((real(name),)), template, limit=10**6)
  assert len(listed) == FILES[name]
  reward = answers.exact if name == 'aqua_dev' else answers.numeric
  info = [p.info for p in listed]
  for said in ('{}', 'I think of 12 and 13.\n#### {}', 'So \\boxed{{{}}}, not 5.', 'Answer: {}.'):
    scored = Rewards({'r': (1, reward)})([p.messages for p in listed], [said.format(i['answer']) for i in info], info)
    assert scored.failed == {'r': 0} and scored.total.sum() == len(listed), said


def test_agrees_with_labels_of_model_solutions():
  """The reward takes a wrong solution of GSM8K for a right one, or the reverse, against the published labels."""
  agree, n = 0, 0
  with gzip.open(real('gsm8k_model_solutions_a'), 'rt') as file:
    for line in file:
      record = json.loads(line)
      info = {'answer': record['ground_truth'].rpartition('A:')[2]}
      for solution in record['solutions']:
        n += 1
        agree += bool(answers.numeric([[]], [solution['solution']], [info])[0]) == solution['is_correct']
  assert (agree, n) == (2576, 2576)
