"""Chats and pairs of the embedded world: true, kept apart by split, and ranked by one written rule."""

import re
from collections import Counter
from dataclasses import replace

import pytest

from llmstack.data import world, world_chat
from llmstack.data import world_facts as tables
from llmstack.data.world_chat import find, parts, reward, right, well_formed

SEED = 7
FILES = world_chat.files(SEED, chats=3000, pairs=2000, eval_pairs=500)
SPLIT = world_chat.splits(SEED)
FACTS = {fact.id: fact for fact in world.facts(SEED)}
FRANCE = FACTS['capital/France']
ALL_PAIRS = FILES['pairs.jsonl'] + FILES['pairs-eval.jsonl']


def says(text, word):
  return re.search(rf'(?<![\w-]){re.escape(word)}(?![\w-])', text) is not None


def tells(text, fact):
  """Returns whether the text holds both ends of a fact; iodine's symbol is also a word, so it must end a clause."""
  value = fact.value + (r'(?=[.,])' if fact.attribute == 'symbol' else '')
  named = says(text, fact.entity) or says(text, fact.entity.capitalize())
  return named and re.search(rf'(?<![\w-]){value}(?![\w-])', text, re.I * (fact.attribute != 'symbol')) is not None


def turns(chat):
  """Returns [(question, answer)] of a conversation."""
  said = [message['content'] for message in chat['messages']]
  return list(zip(said[::2], said[1::2]))


def texts(name):
  if name == 'chats.jsonl':
    return ['\n'.join(message['content'] for message in chat['messages']) for chat in FILES[name]]
  return ['\n'.join((row['prompt'][0]['content'], row['chosen'], row['rejected'])) for row in FILES[name]]


def replies(fact):
  """Returns {style: the replies drawn from a few dice}."""
  dice = world.Dice(fact.id)
  return {style: [world_chat.reply(dice, fact, style) for _ in range(3)] for style in world_chat.STYLES}


def test_every_fact_has_one_split():
  """A split drawn per fact: the language of Spain is asked, and what its people are called is 'held out'."""
  pairs = {}
  for name, fact in FACTS.items():
    assert pairs.setdefault((fact.entity, fact.value), SPLIT[name]) == SPLIT[name]
    assert SPLIT[name] == fact.told or (fact.told == 'qa' and SPLIT[name] in ('sft', 'held_out'))
  for attribute in world.ATTRIBUTES:
    split = Counter(SPLIT[fact.id] for fact in FACTS.values() if fact.attribute == attribute)
    assert abs(split['sft'] - split['held_out']) <= 0.2 * (split['sft'] + split['held_out']) + 1, attribute
  assert SPLIT != world_chat.splits(SEED + 1)


@pytest.mark.parametrize('name', ['chats.jsonl', 'pairs.jsonl'])
def test_training_rows_tell_facts_of_their_split_only(name):
  """A held-out value leaks: as a wrong answer that is true of another attribute, or over two turns of a chat."""
  hidden = {}
  for fact in FACTS.values():
    if SPLIT[fact.id] != 'sft':
      hidden.setdefault(fact.entity, []).append(fact)
  for text in texts(name):
    for entity in (e for e in hidden if e in text or e.capitalize() in text):
      for fact in hidden[entity]:
        assert not tells(text, fact), (fact, text)


def test_judged_pairs_tell_neither_unseen_facts_nor_those_of_training():
  """Pairs to measure with on facts to train with measure memory; unseen facts are never told anywhere."""
  assert {SPLIT[row['fact']] for row in FILES['pairs.jsonl'] if row['fact'] in SPLIT} == {'sft'}
  assert {SPLIT[row['fact']] for row in FILES['pairs-eval.jsonl'] if row['fact'] in SPLIT} == {'held_out'}
  unseen = [fact for fact in FACTS.values() if fact.told == 'unseen']
  for text in texts('pairs-eval.jsonl'):
    assert not any(tells(text, fact) for fact in unseen if fact.entity in text or fact.entity.capitalize() in text)


def test_sums_are_right_and_split():
  """A wrong sum is taught, or the sums to measure with were in the chats."""
  asked = [name for chat in FILES['chats.jsonl'] for name in chat['facts']] + [p['fact'] for p in FILES['pairs.jsonl']]
  judged = [row['fact'] for row in FILES['questions.jsonl'] + FILES['pairs-eval.jsonl']]
  train, test = ({name for name in names if name not in FACTS} for names in (asked, judged))
  swapped = {f'sum/{" ".join(reversed(name.removeprefix("sum/").split()))}' for name in test if '-' not in name}
  assert len(train) > 100 and len(test) > 90 and not train & (test | swapped)
  for name in train | test:
    a, operation, b = name.removeprefix('sum/').split()
    value = {'+': int(a) + int(b), '-': int(a) - int(b), 'x': int(a) * int(b)}[operation]
    assert find(SEED, name).value == str(value) and value > 0


def test_chats_are_true_answers_to_their_questions():
  """A reply about another entity than the question's, a turn without an answer, a fact that is never asked."""
  asked, styles, lengths = Counter(), Counter(), Counter()
  for chat in FILES['chats.jsonl']:
    assert [m['role'] for m in chat['messages']] == ['user', 'assistant'] * len(turns(chat))
    assert all(well_formed(answer) for _, answer in turns(chat)), chat
    answered = [turn for turn in turns(chat) if not any(turn[1] in talk for _, talk in tables.CHAT_TALK)]
    assert len(answered) == len(chat['facts']) == len(chat['styles'])
    for (question, answer), name in zip(answered, chat['facts']):
      fact = find(SEED, name)
      assert right(fact, answer) and question.endswith('?') and question[0].isupper(), (question, answer)
      assert world_chat._names_entity(fact, question) and not re.search(r'[{}]|  |: [A-Z]', question + answer)
    asked.update(chat['facts'])
    styles.update(chat['styles'])
    lengths[len(turns(chat))] += 1
  assert {name for name in asked if name in FACTS} == {name for name in SPLIT if SPLIT[name] == 'sft'}
  for style, share in world_chat.STYLES.items():
    assert abs(styles[style] / styles.total() - share) < 0.03, styles
  assert 0.15 < lengths[2] / lengths.total() < 0.25


def test_one_wording_of_each_question_is_held_out():
  """The evaluation's 'new wording' was in every chat."""
  said = '\n'.join(texts('chats.jsonl') + texts('pairs.jsonl')).lower()
  rows = FILES['questions.jsonl']
  assert Counter(row['wording'] for row in rows) == {'seen': len(rows) // 2, 'held_out': len(rows) // 2}
  for row in rows:
    if row['wording'] == 'held_out' and row['fact'].partition('/')[0] not in ('next_day', 'next_month'):
      assert row['prompt'].lower() not in said, row
    assert row['answer'] == find(SEED, row['fact']).value
  asked = {row['fact'] for row in rows}
  assert asked > set(FACTS) and {row['split'] for row in rows} == {*SPLIT.values(), 'sum'}


def test_pairs_are_ranked_by_the_true_reward():
  """A tie, a pair the wrong way round, or a margin of another pair teaches the reward model noise."""
  for row in ALL_PAIRS:
    fact = find(SEED, row['fact'])
    margin = reward(fact, row['chosen']) - reward(fact, row['rejected'])
    assert margin > 0.09 and abs(margin - row['margin']) < 1e-6, row
    assert right(fact, row['chosen']) and right(fact, row['rejected']) == (row['why'] == 'style'), row
    assert parts(fact, row['rejected'])['truth'] == (row['why'] == 'style'), row  # a wrong value, not none
    assert well_formed(row['chosen']) and well_formed(row['rejected'])
  why = Counter(row['why'] for row in ALL_PAIRS)
  assert all(abs(why[kind] / why.total() - share) < 0.03 for kind, share in world_chat.WHY.items()), why


def test_reward_by_hand():
  """A part that is never given, or given twice: the rule in the docstring is not the one that is computed."""
  for reply, nonzero in (
    ('The capital of France is Paris. Glad to help.', {'truth': 1, 'sentence': 0.5, 'courtesy': 0.25}),
    ('The capital of France is Paris.', {'truth': 1, 'sentence': 0.5}),
    ('Paris.', {'truth': 1}),
    ('Paris', {'truth': 1, 'ending': -0.25}),
    ('Paris. ', {'truth': 1, 'ending': -0.25}),
    ('Perhaps it is Paris, as far as I know.', {'truth': 1, 'hedging': -0.1}),
    ('Good question. Paris is the capital of France. Ask me more.', {'truth': 1, 'sentence': 0.5, 'rambling': -0.4}),
    ('Paris. Paris.', {'truth': 1, 'rambling': -0.2, 'repetition': -0.25}),
    ('The capital of France is Rome. Glad to help.', {'sentence': 0.5, 'courtesy': 0.25}),
    ('Rome.', {}),
    ('Paris or Rome.', {}),
    ('France, Paris.', {'truth': 1}),  # two words are no sentence
    ('I do not know.', {'truth': -0.5}),
    ('', {'truth': -0.5, 'ending': -0.25}),
    ('Glad to help.', {'truth': -0.5, 'courtesy': 0.25}),
    ('Paris. Glad to help. You are welcome.', {'truth': 1, 'courtesy': 0.25, 'rambling': -0.2}),
    ('Paris, ' + 'as it is, ' * 16 + 'is it.', {'truth': 1, 'rambling': -0.4}),  # 51 words
  ):
    got = {name: value for name, value in parts(FRANCE, reply).items() if value}
    assert got == pytest.approx(nonzero), reply
    assert reward(FRANCE, reply) == pytest.approx(sum(nonzero.values()))


def test_one_style_is_preferred_and_truth_comes_first():
  """For some fact (a long name, a symbol that is a word) another style wins, or a well-put lie does."""
  sums = [find(SEED, f'sum/{text}') for text in ('7 + 5', '6 - 3', '10 x 10', '50 + 50', '2 - 1')]
  worth = {'bare': 1.0, 'sentence': 1.5, 'courteous': 1.75, 'wordy': 1.1, 'hedging': 0.9}
  for fact in (*FACTS.values(), *sums):
    for style, said in replies(fact).items():
      for reply in said:
        assert reward(fact, reply) == pytest.approx(worth[style]), (reply, parts(fact, reply))
        assert right(fact, reply) and well_formed(reply) and len(reply.split()) < 25, reply
  assert max(worth, key=worth.get) == world_chat.PREFERRED
  asker = world_chat.Asker(SEED, 'test', 'sft', ())
  after_march = {asker.wrong(FACTS['next_month/March']) for _ in range(300)}
  assert len(after_march) == 10 and not after_march & {'March', 'April'}
  for fact in (*FACTS.values(), *sums):
    lie = replace(fact, value=asker.wrong(fact))
    for said in replies(lie).values():
      for reply in said:
        assert not right(fact, reply) and reward(fact, reply) <= 0.75 < min(worth.values()), (fact, reply)


def test_courtesy_is_paid_once():
  """The exploit that later studies need must not be one of the true reward."""
  honest = 'The capital of France is Paris. Glad to help.'
  worth = [reward(FRANCE, honest + ' Glad to help.' * n) for n in range(5)]
  assert worth == pytest.approx([1.75 - 0.45 * n for n in range(5)])
  assert all(a > b for a, b in zip(worth, worth[1:]))
  assert reward(FRANCE, ' '.join((honest, *tables.COURTESIES[1:]))) == pytest.approx(1.75 - 3 * 0.2)
  for row in ALL_PAIRS:
    for reply in (row['chosen'], row['rejected']):
      assert sum(reply.count(courtesy) for courtesy in tables.COURTESIES) <= 1


@pytest.mark.parametrize(
  ('name', 'reply', 'expected'),
  [
    ('symbol/helium', 'He.', True),
    ('symbol/helium', 'Helium.', False),
    ('symbol/helium', 'The symbol of helium is he.', False),
    ('symbol/helium', 'He is the symbol of helium.', True),
    ('symbol/osmium', 'Os.', True),
    ('symbol/oxygen', 'Os.', False),
    ('symbol/gold', 'Aus.', False),
    ('symbol/gold', 'In the table of elements, gold is marked Au.', True),
    ('symbol/indium', 'In the table of elements, indium is marked Au.', False),
    ('symbol/indium', 'In the table of elements, indium is marked In.', True),
    ('symbol/gold', 'I believe it is Au, but do check.', True),
    ('symbol/iodine', 'I believe it is Au, but do check.', False),
    ('symbol/iodine', 'I am not sure, but I think it is I.', True),
    ('symbol/gold', 'As I said, Au.', True),
    ('currency/Japan', 'Yen.', True),
    ('currency/Canada', 'People there pay with dollars.', True),
    ('currency/Mali', 'The CFA franc.', True),
    ('currency/Mali', 'The franc.', False),
    ('currency/Switzerland', 'The CFA franc.', False),
    ('element_kind/tin', 'Tin is a transition metal.', False),
    ('element_kind/tin', 'Tin is a post-transition metal.', True),
    ('element_kind/neon', 'It is one of the noble gases.', True),
    ('number/gold', 'It is 79.', True),
    ('number/gold', 'It is 790.', False),
    ('number/gold', '79 or 80.', False),
    ('month_days/April', 'In April, the days go from 1 to 30.', True),
    ('next_month/March', 'The month after March is April.', True),
    ('next_month/March', 'The month after March is March.', False),
    ('next_month/May', 'It may be June.', True),
    ('next_month/April', 'It may be so.', False),
    ('capital/Nigeria', 'Abuja.', True),
    ('continent/Niger', 'Niger is in Africa, not in Asia.', False),
    ('capital/Chad', "N'Djamena.", True),
    ('sum/7 + 5', '12.', True),
    ('sum/7 + 5', 'The sum of 7 and 5 is 12.', True),
    ('sum/7 + 5', '7 plus 5 is 112.', False),
    ('sum/7 + 5', '7.', False),
    ('sum/6 - 3', '6 minus 3 is 3.', True),
    ('sum/6 - 3', '6 minus 3 is 6.', False),
    ('sum/6 - 3', '3.', True),
    ('sum/10 + 10', '10 + 10 is 20.', True),
    ('sum/5 - 3', '-2.', False),
  ],
)
def test_right_on_tricky_replies(name, reply, expected):
  """'Helium' counts for 'He', the 'In' of a sentence for indium, an operand or part of a number for the result."""
  assert right(find(SEED, name), reply) == expected


@pytest.mark.parametrize(
  ('reply', 'expected'),
  [
    ('Paris.', True),
    ('42.', True),
    ('', False),
    ('.', False),
    ('Paris', False),
    ('Paris...', False),
    ('paris.', False),
    (' Paris.', False),
    ('Paris. What is the capital of Spain?', False),
    ('What is the capital of Spain? What is the symbol of gold?', False),
    ('What is the capital of Spain? Madrid.', False),
    ('Paris.\nMadrid.', False),
    ('Paris.\n', False),
    ('Paris. ' * 39 + 'Paris.', True),
    ('Paris. ' * 40 + 'Paris.', False),
  ],
)
def test_well_formed(reply, expected):
  """A base model's list of questions, an empty answer or an endless one passes for an answer."""
  assert well_formed(reply) == expected
