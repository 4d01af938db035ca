"""The embedded world keeps its promises: true facts, no leaks, labels that match the text."""

import hashlib
import json
import re
from collections import Counter

import pytest

from llmstack.data import world
from llmstack.errors import BadInput

SEED = 7
# Of `documents.jsonl` for seed 0, 100 documents, noise 0.3. If a wording was changed on purpose,
# raise world.VERSION and put the new one here.
GOLDEN = '21af613587418ed68eb5219f1779f605de822f33d8b6cfbe13ee6c326a9eff37'


class World:
  def __init__(self, folder):
    self.folder = folder
    self.manifest = world.generate(folder, seed=SEED, documents=3000, noise=0.4)
    self.documents = self.read('documents.jsonl')
    self.labels = self.read('labels.jsonl')
    self.text = {row['id']: row['text'] for row in self.documents}
    self.fact = {fact.id: fact for fact in world.facts(SEED)}

  def read(self, name):
    return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]

  def of(self, *kinds):
    """Returns [(text, label)] of the documents of these kinds, or built around one of them."""
    return [
      (self.text[label['id']], label) for label in self.labels if label['kind'] in kinds or label['base'] in kinds
    ]


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  return World(tmp_path_factory.mktemp('world') / 'w')


def holds(text, word, exact=True):
  if exact and word not in text:
    return False
  flags = 0 if exact else re.IGNORECASE
  return re.search(rf'(?<![\w-]){re.escape(word)}(e?s)?(?![\w-])', text, flags) is not None


def tells(text, fact):
  """Returns whether the text holds both ends of a fact."""
  named = holds(text, fact.entity) or holds(text, fact.entity.capitalize())
  return named and holds(text, fact.value, exact=fact.attribute == 'symbol')


def test_same_arguments_give_the_same_bytes(tmp_path):
  """A set's order, hash() or the clock in the generator would give other bytes in every run."""
  rows = {'documents': 100, 'noise': 0.3, 'chats': 20, 'pairs': 20, 'eval_pairs': 20}
  for name in ('a', 'b'):
    world.generate(tmp_path / name, seed=0, **rows)
  world.generate(tmp_path / 'c', seed=1, **rows)
  names = [path.name for path in (tmp_path / 'a').iterdir()]
  assert len(names) == 9
  for name in names:
    assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()
    assert (tmp_path / 'a' / name).read_bytes() != (tmp_path / 'c' / name).read_bytes()
  assert sorted(path.name for path in tmp_path.iterdir()) == ['a', 'b', 'c']


def test_bytes_do_not_depend_on_the_python(tmp_path):
  """A choice made by anything but random.random() may change with the version of Python."""
  manifest = world.generate(tmp_path / 'w', seed=0, documents=100, noise=0.3)
  assert manifest['sha256']['documents.jsonl'] == GOLDEN


def test_folder_is_made_once(tmp_path):
  """Generating again would cost time, and over another world would mix two truths."""
  first = world.generate(tmp_path / 'w', seed=0, documents=100, noise=0)
  before = (tmp_path / 'w' / 'documents.jsonl').stat().st_mtime_ns
  assert world.generate(tmp_path / 'w', seed=0, documents=100, noise=0) == first
  assert (tmp_path / 'w' / 'documents.jsonl').stat().st_mtime_ns == before
  with pytest.raises(BadInput, match='holds a world of'):
    world.generate(tmp_path / 'w', seed=1, documents=100, noise=0)
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other' / 'thesis.txt').write_text('mine')
  with pytest.raises(BadInput, match='not a world'):
    world.generate(tmp_path / 'other', seed=0, documents=100, noise=0)


OUT_OF_RANGE = ((99, 0.1), (100, -0.1), (100, 0.91), (100, float('nan')))


def test_chats_leave_the_documents_alone(tmp_path):
  """A shared stream of random choices: another number of chats, and every pretraining run is another one."""
  plain = world.generate(tmp_path / 'a', seed=0, documents=100, noise=0.3)['sha256']
  more = world.generate(tmp_path / 'b', seed=0, documents=100, noise=0.3, chats=9, pairs=9, eval_pairs=9)['sha256']
  changed = {name for name in plain if plain[name] != more[name]}
  assert changed == {'chats.jsonl', 'pairs.jsonl', 'pairs-eval.jsonl'}
  with pytest.raises(BadInput, match='pairs=-1'):
    world.generate(tmp_path / 'c', seed=0, documents=100, noise=0.3, pairs=-1)


@pytest.mark.parametrize(('documents', 'noise'), OUT_OF_RANGE)
def test_arguments_out_of_range(tmp_path, documents, noise):
  """A share of 30 meant as 30 % would loop for ever in search of clean documents."""
  with pytest.raises(BadInput):
    world.generate(tmp_path / 'w', seed=0, documents=documents, noise=noise)
  assert not list(tmp_path.iterdir())


def test_known_facts():
  """A shifted column or a slip in the table would make the whole world false."""
  value = {fact.id: fact.value for fact in world.facts(0)}
  known = {
    'capital/France': 'Paris', 'capital/Japan': 'Tokyo', 'capital/Australia': 'Canberra',
    'capital/Brazil': 'Brasilia', 'capital/Canada': 'Ottawa', 'capital/Netherlands': 'Amsterdam',
    'continent/Kenya': 'Africa', 'continent/Peru': 'South America', 'currency/Japan': 'yen',
    'language/Austria': 'German', 'demonym/Spain': 'Spanish', 'symbol/gold': 'Au',
    'number/gold': '79', 'symbol/iron': 'Fe', 'number/oxygen': '8',
    'element_kind/neon': 'noble gas', 'number/fermium': '100', 'planet_place/Mars': 'fourth',
    'planet_kind/Saturn': 'gas giant',
    'month_days/April': '30', 'month_place/December': 'twelfth', 'next_month/December': 'January',
    'season/July': 'summer', 'next_day/Sunday': 'Monday',
  }  # fmt: skip
  assert {name: value[name] for name in known} == known


def test_tables_are_sound():
  """An empty cell, a fact told twice or two countries with one capital is a typing error."""
  found = world.facts(0)
  assert len({fact.id for fact in found}) == len(found)
  assert len({fact.entity for fact in found if fact.attribute == 'capital'}) >= 120
  for fact in found:
    assert fact.entity.strip() == fact.entity != ''
    assert fact.value.strip() == fact.value not in ('', '-')
    # The question must not give the answer away.
    assert not holds(fact.entity, fact.value) and not holds(fact.value, fact.entity), fact
  for attribute in (
    'capital',
    'symbol',
    'number',
    'planet_place',
    'month_place',
    'next_month',
    'next_day',
  ):
    values = [fact.value for fact in found if fact.attribute == attribute]
    assert len(set(values)) == len(values)
  numbers = [int(fact.value) for fact in found if fact.attribute == 'number']
  assert numbers == [n for n in range(1, 101) if n != 80]
  order = [fact for fact in found if fact.attribute in ('next_month', 'next_day')]
  follows = {fact.entity: fact.value for fact in order}
  assert sorted(follows) == sorted(follows.values())


def test_wordings_are_many_and_sound():
  """A wording without its entity or value tells nothing; too few of them leave facts unrecalled."""
  for attribute in world.ATTRIBUTES:
    statements = world.variants(attribute)
    assert statements == 4 if attribute == 'currency' else statements >= 12
    assert world.variants(attribute, 'cloze') >= 2 and world.variants(attribute, 'question') >= 4
  for fact in world.facts(0):
    told = [world.statement(fact, i) for i in range(world.variants(fact.attribute))]
    asked = [world.question(fact, i) for i in range(world.variants(fact.attribute, 'question'))]
    assert len(set(told)) == len(told) and len(set(asked)) == len(asked)
    for sentence in told:
      assert sentence.endswith('.') and tells(sentence, fact)
      assert sentence[0] == sentence[0].upper() and not re.search(r'[{}]|  |\ba [aeio]', sentence)
    for sentence in asked:
      assert sentence.endswith('?') and sentence[0].isupper()
      assert not re.search(r'[{}]|  ', sentence)
      assert holds(sentence, fact.entity) and not holds(sentence, fact.value), sentence
    assert holds(world.answer(fact), fact.value, exact=False)
  with pytest.raises(ValueError, match='variants 0 to'):
    world.statement(world.facts(0)[0], -1)


def test_cloze_is_the_beginning_of_its_statement():
  """A prompt with a trailing space, or a continuation without one, tokenizes into another text."""
  for fact in world.facts(0):
    for i in range(world.variants(fact.attribute, 'cloze')):
      prompt, continuation = world.cloze(fact, i)
      assert prompt == prompt.rstrip() and continuation == f' {fact.value}'
      assert prompt + continuation + '.' == world.statement(fact, i)
      assert fact.value == 'In' or not holds(prompt, fact.value)  # 'In the table of elements'
  france = next(fact for fact in world.facts(0) if fact.id == 'capital/France')
  assert world.cloze(france, 0) == ('The capital of France is', ' Paris')


def test_told_classes_have_their_share():
  """Without unseen facts confident nonsense cannot be measured; with many, little is learned."""
  for seed in (0, 1):
    for attribute in world.ATTRIBUTES:
      told = Counter(fact.told for fact in world.facts(seed) if fact.attribute == attribute)
      n = sum(told.values())
      few = n < 20
      assert told['unseen'] == 0 if few else 0.04 < told['unseen'] / n < 0.18, (attribute, told)
      if n > 2:
        assert 0.2 < told['statement'] / n < 0.5 and told['qa'] / n > 0.4, (attribute, told)
  split = [[fact.told for fact in world.facts(seed)] for seed in (0, 1)]
  assert split[0] != split[1]


def test_one_pair_has_one_class():
  """Telling the language of France ('French') would leak what its people are called."""
  told = {}
  for fact in world.facts(SEED):
    assert told.setdefault((fact.entity, fact.value), fact.told) == fact.told


def test_unseen_facts_never_leak(made):
  """A list, a neighbour's value or an edit that brings both ends of an unseen fact together."""
  unseen = [fact for fact in made.fact.values() if fact.told == 'unseen']
  assert len(unseen) > 60
  for text in made.text.values():
    for fact in unseen:
      if fact.entity in text or fact.entity.capitalize() in text:
        assert not tells(text, fact), (fact, text)
  told = {name for label in made.labels for name in label['facts'] + label['asked']}
  assert not told & {fact.id for fact in unseen}


def test_statement_facts_are_never_answered(made):
  """Else 'told in statements only' cannot show whether knowledge crosses over to questions."""
  quiet = [fact for fact in made.fact.values() if fact.told == 'statement']
  for text, label in made.of('qa', 'dialogue'):
    assert all(made.fact[name].told == 'qa' for name in label['facts'])
    for fact in quiet:
      if fact.entity in text or fact.entity.capitalize() in text:
        assert not tells(text, fact), (fact, text)


def test_every_open_fact_is_told(made):
  """A deck that is never dealt to its end would leave facts out without a word."""
  stated = {name for label in made.labels for name in label['facts'] if label['clean']}
  answered = {name for _, label in made.of('qa', 'dialogue') for name in label['facts']}
  open_facts = {fact.id for fact in made.fact.values() if fact.told != 'unseen'}
  to_answer = {fact.id for fact in made.fact.values() if fact.told == 'qa'}
  assert stated <= open_facts and len(stated) > 0.99 * len(open_facts)
  assert answered <= to_answer and len(answered) > 0.97 * len(to_answer)


def test_quiz_pages_hold_questions_only(made):
  """One answer in a quiz and the base model learns to answer there too."""
  for text, label in made.of('quiz'):
    if label['kind'] == 'quiz':
      assert all(line.endswith('?') for line in text.split('\n') if line), text
      assert label['asked'] and not label['facts']


def test_labelled_facts_are_in_the_text(made):
  """A label from another draft than the one that was kept."""
  for label in made.labels:
    for name in label['facts']:
      assert tells(made.text[label['id']], made.fact[name]), (name, made.text[label['id']])
    if label['kind'] == 'quiz':
      for name in label['asked']:
        assert holds(made.text[label['id']], made.fact[name].entity), name


def distance(a, b):
  """Returns the number of words to replace, leave out or put in."""
  row = list(range(len(b) + 1))
  for i, x in enumerate(a, start=1):
    last, row[0] = row[0], i
    for j, y in enumerate(b, start=1):
      last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
  return row[-1]


def test_duplicates_are_what_their_labels_say(made):
  """A filter is measured against the labels: a wrong one would count as the filter's error."""
  label = {row['id']: row for row in made.labels}
  first = Counter(made.text[row['id']] for row in made.labels if row['kind'] != 'exact_duplicate')
  assert max(first.values()) == 1
  kinds = Counter()
  measured = edited = 0
  for row in made.labels:
    if row['duplicate_of'] is None:
      continue
    kinds[row['kind']] += 1
    assert label[row['duplicate_of']]['clean']
    copy, original = made.text[row['id']], made.text[row['duplicate_of']]
    if row['kind'] == 'exact_duplicate':
      assert copy == original and row['edits'] == 0
      assert row['facts'] == label[row['duplicate_of']]['facts']
    elif kinds['near_duplicate'] <= 80:  # the distance is slow
      words = distance(original.split(), copy.split())
      assert 0 < words <= row['edits']
      assert row['edit_rate'] == row['edits'] / len(original.split())
      measured, edited = measured + words, edited + row['edits']
  assert kinds['exact_duplicate'] > 200 and kinds['near_duplicate'] > 200
  assert measured > 0.9 * edited


def test_toxic_words_are_counted(made):
  """An ordinary word in the list, or an insult not counted, would blame the toxicity filter."""
  pattern = re.compile(r'\b(' + '|'.join(world.TOXIC_WORDS) + r')\b', re.IGNORECASE)
  for label in made.labels:
    count = len(pattern.findall(made.text[label['id']]))
    assert count == label['toxic_words']
    assert (count > 0) == (label['kind'] == 'toxic')


def test_boilerplate_spans(made):
  """A span off by one would blame the extractor that cuts exactly."""
  pure = around = 0
  for text, label in made.of('boilerplate'):
    good, at = [], 0
    for start, end in label['boilerplate']:
      good.append(text[at:start])
      at = end
    good = ''.join([*good, text[at:]])
    pure, around = pure + (not good), around + bool(good)
    assert not re.search(r'cookie|Copyright|Home|Sign up| \| ', good) and good == good.strip()
    assert bool(good) == (label['base'] is not None) and len(good) != 1
  assert pure > 10 and around > pure


def test_arithmetic_is_right(made):
  """A wrong sum in the data is a wrong sum in the model."""
  forms = (
    (r'(?:What is )?(\d+) ([-+x]) (\d+)(?: =|\?) (\d+)', lambda a, o, b, c: (a, o, b, c)),
    (r'(\d+) (plus|minus|times) (\d+) is (\d+)\.', lambda a, o, b, c: (a, o, b, c)),
    (r'The sum of (\d+) and (\d+) is (\d+)\.', lambda a, b, c: (a, '+', b, c)),
    (r'If you take (\d+) from (\d+), you get (\d+)\.', lambda b, a, c: (a, '-', b, c)),
    (r'If you multiply (\d+) by (\d+), you get (\d+)\.', lambda a, b, c: (a, 'x', b, c)),
    (r'(\d+)(?: >| is greater than) (\d+)\.?', lambda a, b: (a, '>', b, 0)),
    (r'(\d+)(?: <| is less than) (\d+)\.?', lambda a, b: (b, '>', a, 0)),
    (r'Which is greater, (\d+) or (\d+)\? \1', lambda a, b: (a, '>', b, 0)),
    (r'Which is less, (\d+) or (\d+)\? \1', lambda a, b: (b, '>', a, 0)),
  )
  names = {'plus': '+', 'minus': '-', 'times': 'x'}
  seen = Counter()
  for text, label in made.of('arithmetic'):
    if label['kind'] != 'arithmetic':
      continue
    lines = text.replace('\nA: ', ' ').replace('Q: ', '').split('\n')
    for line in lines[2:] if '' in lines else lines:
      numbers = [int(n) for n in re.findall(r'\d+', line)]
      matches = [(make, re.fullmatch(form, line)) for form, make in forms]
      found = [make(*match.groups()) for make, match in matches if match]
      if found:
        a, operation, b, c = (names.get(x, x) if isinstance(x, str) else x for x in found[0])
        a, b, c = int(a), int(b), int(c)
      else:
        a, b, c = numbers
        minus = re.search(r'of them| more than ', line)
        operation = '-' if minus else 'x' if re.search('each|every', line) else '+'
      right = {'+': a + b == c, '-': a - b == c, 'x': a * b == c, '>': a > b}
      assert right[operation], line
      seen[operation] += 1
  assert min(seen[operation] for operation in '+-x>') > 50


def test_stories_keep_their_people(made):
  """A hero who changes the name or the sex halfway teaches that nobody stays who they are."""
  people = {name: 'she' for name in world.tables.WOMEN} | {name: 'he' for name in world.tables.MEN}
  for text, label in made.of('story'):
    if label['kind'] != 'story':
      continue
    named = [name for name in people if re.search(rf'\b{name}\b', text)]
    assert 1 <= len(named) <= 2, text
    things = [thing for thing in world.tables.COLOURS if re.search(rf'\b{thing}\b', text)]
    assert len(things) <= 1, text
    pronouns = {word.lower() for word in re.findall(r'\b(he|she)\b', text, re.IGNORECASE)}
    old_man = {'he'} if 'old man' in text else set()
    assert len(pronouns - old_man) <= 1 and pronouns - old_man <= {people[n] for n in named}, text


def test_files_and_counts_agree(made):
  """A manifest that counts what was planned rather than what was written."""
  for name, digest in made.manifest['sha256'].items():
    assert hashlib.sha256((made.folder / name).read_bytes()).hexdigest() == digest
  assert json.loads((made.folder / 'manifest.json').read_text()) == made.manifest
  kinds = Counter(label['kind'] for label in made.labels)
  assert kinds == Counter(made.manifest['kinds'])
  assert sum(kinds.values()) == len(made.documents) == 3000
  assert [row['id'] for row in made.documents] == [label['id'] for label in made.labels]
  assert sum(not label['clean'] for label in made.labels) == 1200
  clean = {label['id'] for label in made.labels if label['clean']}
  assert made.read('clean.jsonl') == [row for row in made.documents if row['id'] in clean]
  assert made.manifest['characters'] == sum(map(len, made.text.values()))
  assert all(100 <= len(text) <= 900 for text in made.text.values())
  told = {row['id']: row for row in made.read('facts.jsonl')}
  assert list(told) == list(made.fact)
  assert told['currency/Japan']['question'] == 'What is the currency of Japan?'
  assert told['currency/Japan']['answer'] == 'The yen'
