"""Sums to be reasoned out: demonstrations as bad as their labels say, and problems that nobody has seen."""

import re
from collections import Counter

import pytest

from llmstack.data import world_sums
from llmstack.data.world_sums import LENGTHS, MANNERS, SLIPS, TOP, right, work
from llmstack.errors import BadInput

SEED = 7
FILES = world_sums.files(SEED, shown=3000, prompts=1000, judged=400)


def signed(prompt):
  """Returns the numbers of a question by a parser of its own."""
  return [int(sign + n) for sign, n in re.findall(r'([+-]?) ?(\d+)', prompt)]


def asked(name):
  return [row['prompt'] if 'prompt' in row else row['messages'][0]['content'] for row in FILES[name]]


def test_work_by_hand():
  """A step that starts from another number than the last one ended with is no reasoning."""
  assert world_sums.question((7, 8, 5, -3)) == 'What is 7 + 8 + 5 - 3?'
  assert work((7, 8, 5, -3), 'steps') == '7+8=15, 15+5=20, 20-3=17.'
  assert work((7, 8, 5, -3), 'steps', (0, -1, 0)) == '7+8=15, 15+5=19, 19-3=16.'
  assert work((7, 8, 5, -3), 'head', (1,)) == 'It is 18.'


def test_right_by_hand():
  """A reward that takes '117.' or '-17.' for 17, or a reply that the budget cut off."""
  for reply in ('17.', 'It is 17.', '20-3=17.'):
    assert right('17', reply), reply
  for reply in ('17', '117.', '7.', '-17.', '17.5', '20-17.', '17. It is 18.', '20-3=17. ', '', '17.\n', '1.17.'):
    assert not right('17', reply), reply


def test_judged_numbers_are_nowhere_else():
  """A split by problem: who learnt 7 + 8 - 3 - 2 was told most of 8 + 7 - 3 - 2."""
  sets = {name: {tuple(sorted(map(abs, signed(p)))) for p in asked(name)} for name in FILES}
  judged = sets.pop('sums-eval.jsonl')
  assert len(judged) > 100 and not judged & set().union(*sets.values())
  for name in ('sums-train.jsonl', 'sums-eval.jsonl'):
    assert len(set(asked(name))) == len(FILES[name])
    lengths = Counter(row['length'] for row in FILES[name])
    assert all(lengths[n] > 0.1 * len(FILES[name]) for n in LENGTHS), lengths


def test_answers_are_true_and_results_small():
  """A wrong answer rewards wrong work; a result outside the range has digits that no demonstration shows."""
  for name, rows in FILES.items():
    for row, prompt in zip(rows, asked(name)):
      numbers = signed(prompt)
      assert row['answer'] == str(sum(numbers)) and len(numbers) in LENGTHS, row
      assert all(1 <= sum(numbers[:i]) <= TOP for i in range(1, len(numbers) + 1)), row


def test_demonstrations_are_as_bad_as_they_say():
  """The planted truth is not what is in the text: the plateau of imitation would then have another cause."""
  manners, results, slips = Counter(), Counter(), Counter()
  for row in FILES['sums.jsonl']:
    numbers, said = signed(row['messages'][0]['content']), row['messages'][1]['content']
    steps = re.findall(r'(\d+)([+-]\d)=(\d+)', said)
    if row['manner'] == 'steps':
      assert [int(n) for _, n, _ in steps] == numbers[1:], row
      assert [int(a) for a, *_ in steps] == [numbers[0], *(int(b) for *_, b in steps[:-1])], row
      wrong = sum(int(a) + int(n) != int(b) for a, n, b in steps)
    else:
      wrong = not right(row['answer'], said)
      assert re.fullmatch(r'It is [1-9]\d*\.', said), row
    assert row['slips'] == wrong and row['right'] == right(row['answer'], said)
    manners[row['manner']] += 1
    results[row['manner']] += len(steps) or 1
    slips[row['manner']] += wrong
  for manner, share in MANNERS.items():
    assert abs(manners[manner] / manners.total() - share) < 0.03, manners
    assert abs(slips[manner] / results[manner] - SLIPS[manner]) < 0.04 * SLIPS[manner] ** 0.5, slips


def test_careful_work_is_of_the_same_problems():
  """A ceiling measured on other, easier problems is none."""
  assert asked('sums-careful.jsonl') == asked('sums.jsonl')
  assert all(row['manner'] == 'steps' and row['right'] and not row['slips'] for row in FILES['sums-careful.jsonl'])


def test_folder_keeps_what_it_has(tmp_path):
  """Other sums under the same name: a model is judged on problems that it was trained on."""
  counts = {'shown': 20, 'prompts': 20, 'judged': 20}
  assert set(world_sums.write(tmp_path, 0, **counts).values()) == {20}
  before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
  world_sums.write(tmp_path, 0, **counts)
  assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()} and len(before) == 4
  with pytest.raises(BadInput, match='holds other sums'):
    world_sums.write(tmp_path, 1, **counts)
  with pytest.raises(BadInput, match='judged=-1'):
    world_sums.write(tmp_path, 0, shown=1, prompts=1, judged=-1)
