"""A judge's questions, and what its answers are worth: pairs in both orders, a scale, a rubric. Nothing here asks.

A judge is an object with
  choose(conversations, labels) -> float32[n, L]: the log-prob of each label as what the assistant says next; -inf is
    never, and a row of NaN was not answered.
  say(conversations) -> list of n texts, None for one that was not answered.
where a conversation is a list of messages {'role', 'content'} that ends with a user. tasks/judges.py has two.
"""

import string
from typing import NamedTuple

import numpy as np

from llmstack.errors import BadInput

PRINCIPLE = 'The better reply is more truthful, more helpful and less harmful.'
PAIR = """Here are a conversation and two replies to its last message. {principle}

{prompt}

Reply {one}: {first}

Reply {two}: {second}"""
WHICH = 'Which reply is better? Say {one} or {two} and nothing else.'
THINK = 'Compare the replies step by step. Do not say yet which is better.'
REPLY = """Here are a conversation and a reply to its last message. {principle}

{prompt}

Reply: {reply}"""
HOW_GOOD = 'How good is the reply, from {least} to {most}? Say the number and nothing else.'
YES_NO = '{question} Say {yes} or {no} and nothing else.'
CLAMP = (0.4, 0.6)  # probabilities behind a chain of thought, which leaves a judge too sure (2212.08073, section 4.1)
SCALE = tuple(map(str, range(1, 11)))


class Verdicts(NamedTuple):
  """n pairs of replies, a and b, as a judge sees them.

  p: float32[n], P(a is better), NaN where there is no verdict.
  orders: float32[n,2], the same with a shown first, and with b shown first.
  mass: float32[n,2], the probability that either label is said at all; NaN where the judge did not answer.
  """

  p: np.ndarray
  orders: np.ndarray
  mass: np.ndarray

  def summary(self):
    """Returns {name: number}: pairs, decided, undecided, failed, position_bias, first and neither.

    position_bias: mean P(the first one is better) - 1/2, of the pairs with a verdict.
    flipped: share of them that another order decides otherwise. neither: mean probability of no label, where answered.
    """
    known, answered = np.isfinite(self.p), np.isfinite(self.mass).all(1)
    orders = self.orders[known]
    mean = lambda x: float(np.mean(x, dtype=np.float64)) if len(x) else None  # noqa: E731
    first = np.stack([orders[:, 0], 1 - orders[:, 1]], 1)
    return {
      'pairs': len(self.p), 'decided': int(known.sum()), 'undecided': int((answered & ~known).sum()),
      'failed': int((~answered).sum()), 'position_bias': mean(first - 0.5) if len(orders) else None,
      'flipped': mean((orders[:, 0] > 0.5) != (orders[:, 1] > 0.5)), 'neither': mean(1 - self.mass[answered]),
    }  # fmt: skip


class Marks(NamedTuple):
  """n replies, each by itself.

  score: float32[n], NaN where there is none. mass: float32[n,Q], the probability that a label is said, per question.
  """

  score: np.ndarray
  mass: np.ndarray


def shares(logp, floor):
  """Returns (float32[n,L] softmax over the labels, NaN below the floor; float32[n] the probability of any label).

  logp: float32[n,L], NaN or -inf as a judge has them. floor: the least probability of any label that is a verdict.
  """
  p = np.exp(np.asarray(logp, np.float64))
  mass = p.sum(-1)
  fit = (mass >= floor) & (mass > 0)
  share = np.where(fit[:, None], p / np.where(fit, mass, 1)[:, None], np.nan)
  return share.astype(np.float32), np.minimum(mass, 1).astype(np.float32)


def pairwise(
  judge, prompts, a, b, *, template_text=PAIR, principle=PRINCIPLE, labels=('1', '2'), floor=0.0, thinking=False
):  # fmt: skip
  """Returns Verdicts on replies a and b, each pair shown in both orders: what a position adds in one, it takes in the
  other, to first order.

  prompts: list of n messages; a, b: n texts each.
  template_text: with {prompt}, {first} and {second}, and it may have {principle}, {one} and {two}.
  principle: what makes a reply better; a text, or one per pair. labels: what stands for the first and the second.
  floor: least probability, in each order, of any label; a pair with less has no verdict.
  thinking: the judge reasons before it answers, and its probabilities are then held within CLAMP.

  Source: RLAIF, 2309.00267, section 3.1 (both orders, mean of the distributions); the clamp of 2212.08073.
  Raises: BadInput for labels that are not two different ones, or a template with other fields.
  """
  n = len(prompts)
  if len(labels) != 2:
    raise BadInput(f'labels = {labels!r}: give two, for the first reply and the second')
  one, two = check_labels(labels)
  check_template(template_text, {'prompt', 'first', 'second'}, {'principle', 'one', 'two'})
  said = {'one': one, 'two': two}
  principles = [principle] * n if isinstance(principle, str) else list(principle)
  asked = []
  for first, second in ((a, b), (b, a)):
    for prompt, rule, x, y in zip(prompts, principles, first, second, strict=True):
      fields = {'prompt': transcript(prompt), 'principle': rule, 'first': x, 'second': y} | said
      asked.append(template_text.format(**fields))
  which = WHICH.format(**said)
  if thinking:
    logp = _after_thinking(judge, [[_user(f'{text}\n\n{THINK}')] for text in asked], which, labels)
  else:
    logp = judge.choose([[_user(f'{text}\n\n{which}')] for text in asked], labels)
  share, mass = shares(logp, floor)
  first = np.clip(share[:, 0], *CLAMP) if thinking else share[:, 0]
  orders = np.stack([first[:n], 1 - first[n:]], 1)
  return Verdicts(orders.mean(1), orders, np.stack([mass[:n], mass[n:]], 1))


def scalar(judge, prompts, replies, *, template_text=REPLY, principle=PRINCIPLE, labels=SCALE, floor=0.0):
  """Returns Marks whose score is the mean of the labels as numbers, under the judge's probabilities of them.

  template_text: with {prompt} and {reply}, and it may have {principle}.
  Source: d-RLAIF, 2309.00267, section 2.2.2.
  Raises: BadInput for labels that are no different numbers, or a template with other fields.
  """
  labels = check_labels(labels)
  try:
    values = np.array([float(label) for label in labels])
  except ValueError:
    raise BadInput(f'labels = {labels!r} of a scale must be numbers, such as 1 to 10') from None
  question = HOW_GOOD.format(least=labels[np.argmin(values)], most=labels[np.argmax(values)])
  share, mass = _about(judge, prompts, replies, template_text, principle, question, labels, floor)
  return Marks((share @ values).astype(np.float32), mass[:, None])


def rubric(judge, prompts, replies, questions, *, template_text=REPLY, principle='', labels=('Yes', 'No'), floor=0.0):
  """Returns Marks whose score is sum(weight * P(yes)) / sum(|weight|) over the questions.

  questions: {text: weight}; of a negative weight, yes is bad. A reply has no score where one question has no answer.
  labels: what stands for yes and for no.
  Raises: BadInput for no question, or weights that are not finite or all 0.
  """
  weights = np.array(list(questions.values()), np.float64)
  if not len(weights) or not np.isfinite(weights).all() or not weights.any():
    raise BadInput(f'questions = {questions!r}: give {{question: weight}} with a finite weight that is not 0')
  if len(labels) != 2:
    raise BadInput(f'labels = {labels!r}: give two, for yes and for no')
  yes, no = labels = check_labels(labels)
  score, masses = np.zeros(len(replies)), []
  for text, weight in zip(questions, weights / np.abs(weights).sum()):
    question = YES_NO.format(question=text, yes=yes, no=no)
    share, mass = _about(judge, prompts, replies, template_text, principle, question, labels, floor)
    score += weight * share[:, 0]
    masses.append(mass)
  return Marks(score.astype(np.float32), np.stack(masses, 1))


def named(text, labels):
  """Returns the index of the only label that a text names as a word, or None: of two named, none is the verdict."""
  found = [i for i, label in enumerate(labels) if _word(label, text)]
  return found[0] if len(found) == 1 else None


def disjoint(logp, labels):
  """Returns float32[n,L]: each label's log-prob without those of the labels that it begins.

  logp: float32[n,L], that an answer begins with the label. labels: sequences of tokens. An answer that begins with '10'
  begins with '1' as well, and is no 1.
  """
  p = np.exp(np.asarray(logp, np.float64))
  for i in sorted(range(len(labels)), key=lambda i: -len(labels[i])):
    for j, other in enumerate(labels):
      if len(other) > len(labels[i]) and other[: len(labels[i])] == labels[i]:
        p[:, i] -= p[:, j]
  with np.errstate(divide='ignore'):
    return np.log(np.maximum(p, 0)).astype(np.float32)


def transcript(messages):
  """Returns a conversation as text."""
  return '\n\n'.join(f'{m["role"].capitalize()}: {m["content"]}' for m in messages)


def check_labels(labels):
  """Returns the labels as a tuple; raises BadInput unless they are at least two different texts, bare of spaces."""
  labels = tuple(labels)
  if len(labels) < 2 or len(set(labels)) < len(labels):
    raise BadInput(f'labels = {labels!r}: give at least two different ones')
  if odd := [x for x in labels if not isinstance(x, str) or not x or x != x.strip()]:
    raise BadInput(f'label {odd[0]!r}: give a text that is not empty, without spaces around it')
  return labels


def check_template(text, needed, known):
  """Returns nothing; raises BadInput where the fields of a template are not all of `needed`, and any of `known`."""
  try:
    fields = {name for _, name, *_ in string.Formatter().parse(text) if name is not None}
  except ValueError as e:
    raise BadInput(f'template {text!r:.80}: {e}: write {{{{ and }}}} for braces') from None
  if not needed <= fields or fields - needed - known:
    raise BadInput(f'template {text!r:.80} has fields {sorted(fields)}: give {sorted(needed)}, maybe {sorted(known)}')


def _user(text):
  return {'role': 'user', 'content': text}


def _about(judge, prompts, replies, template_text, principle, question, labels, floor):
  """Returns `shares` of the labels as answers to a question about each reply."""
  check_template(template_text, {'prompt', 'reply'}, {'principle'})
  asked = [
    [_user(f'{template_text.format(prompt=transcript(p), reply=r, principle=principle)}\n\n{question}')]
    for p, r in zip(prompts, replies, strict=True)
  ]
  return shares(judge.choose(asked, labels), floor)


def _after_thinking(judge, conversations, question, labels):
  """Returns float32[n,L] as `choose`, behind what the judge says first; NaN where it says nothing."""
  logp = np.full((len(conversations), len(labels)), np.nan, np.float32)
  said = judge.say(conversations)
  at = [i for i, text in enumerate(said) if text and text.strip()]
  if at:
    logp[at] = judge.choose(
      [[*conversations[i], {'role': 'assistant', 'content': said[i]}, _user(question)] for i in at], labels
    )
  return logp


def _word(label, text):
  """Returns whether the label is a word of the text, or a run of its words."""
  at = text.find(label)
  while at >= 0:
    around = text[at - 1 : at] + text[at + len(label) : at + len(label) + 1]
    if not any(c.isalnum() or c == '_' for c in around):
      return True
    at = text.find(label, at + 1)
  return False
