"""Texts with questions about them: finding a fact again, near by or two thousand tokens back."""

import questions
import stories
import talk
import verses
from grammar import capital, render
from words import POOLS

MAX_CHARS = 7200  # about 1,700 tokens: the question must still fit the context


def sentences_about(rng, count):
    """`count` sentences, each about another name, and a question with its answer for each."""
    names = rng.sample(POOLS["name"], count)
    lines, asked = [], []
    for name in names:
        slots = {"n": name}
        says, asks, answer = rng.choice(
            (
                (
                    "{n} has {a:colour} {thing}.",
                    "What colour is {n}'s {thing}?",
                    "{n}'s {thing} is {colour}.",
                ),
                (
                    "{n} has {a:colour} {thing}.",
                    "What does {n} have?",
                    "{n} has {a:colour} {thing}.",
                ),
                ("{n} lives in {town}.", "Where does {n} live?", "{n} lives in {town}."),
                ("{n} is {a:job}.", "What is {n}'s job?", "{n} is {a:job}."),
                ("{n} likes {food}.", "What does {n} like?", "{n} likes {food}."),
                ("{n} has {a:animal}.", "Which animal does {n} have?", "{n} has {a:animal}."),
                (
                    "{n} went to the {place} on {day}.",
                    "When did {n} go to the {place}?",
                    "{n} went there on {day}.",
                ),
                (
                    "{n} went to the {place} on {day}.",
                    "Where did {n} go on {day}?",
                    "{n} went to the {place}.",
                ),
                ("{n} can {sport}.", "What can {n} do?", "{n} can {sport}."),
            )
        )
        lines.append(render(rng, says, slots))
        asked.append((render(rng, asks, slots), render(rng, answer, slots)))
    return lines, asked


def notes(rng, count):
    """A list of where things are; each colour and thing pair once."""
    pairs = [(colour, thing) for colour in POOLS["colour"] for thing in POOLS["thing"]]
    lines, asked = [], []
    for colour, thing in rng.sample(pairs, count):
        place = rng.choice(POOLS["place"])
        lines.append(f"The {colour} {thing} is in the {place}.")
        asked.append(
            (f"Where is the {colour} {thing}?", f"The {colour} {thing} is in the {place}.")
        )
    return lines, asked


def passage(rng, long):
    """Text, and what can be asked about it."""
    roll = rng.random()
    if roll < 0.45:
        count = rng.randint(20, 100) if long else rng.randint(2, 8)
        lines, asked = sentences_about(rng, count)
    elif roll < 0.7:
        count = rng.randint(20, 150) if long else rng.randint(2, 8)
        lines, asked = notes(rng, count)
    else:
        while True:
            text, asked = stories.long_story(rng, rng.randint(5, 9) if long else 1)
            if len(text) <= MAX_CHARS:
                return text, asked
    return rng.choice((" ", "\n")).join(lines), asked


def chat(rng, long=False):
    text, asked = passage(rng, long)
    chosen = rng.sample(asked, min(len(asked), rng.randint(1, 3)))
    question, answer = chosen[0]
    frame = rng.choice(
        (
            "Read this: {t}\n\n{q}",
            "{t}\n\n{q}",
            "Here is a text:\n{t}\n\nQuestion: {q}",
            "{t} {q}",
            "{q}\n\n{t}",
        )
    )
    turns = [("user", frame.format(t=text, q=question)), ("assistant", answer)]
    for question, answer in chosen[1:]:
        turns += [("user", question), ("assistant", answer)]
    return turns


def plain(rng, long=False):
    """The same as running text: the passage, then questions and answers."""
    text, asked = passage(rng, long)
    asked = rng.sample(asked, min(len(asked), 4))
    pairs = "\n".join(f"Question: {question}\nAnswer: {answer}" for question, answer in asked)
    return f"{text}\n\n{pairs}"


def encyclopedia(rng):
    parts = []
    for _ in range(rng.randint(1, 5)):
        roll = rng.random()
        if roll < 0.4:
            parts.append(questions.about_animal(rng)[1])
        elif roll < 0.6:
            parts.append(questions.definition(rng)[1] + " " + questions.definition(rng)[1])
        elif roll < 0.8:
            parts.append(questions.why(rng)[1])
        else:
            parts.append(questions.capital_of(rng)[1] + " " + questions.capital_of(rng)[1])
    return "\n\n".join(parts)


def question_list(rng):
    labels = rng.choice((("Question", "Answer"), ("Q", "A")))
    pairs = []
    for _ in range(rng.randint(1, 6)):
        question, answer = questions.ask(rng)[:2]
        pairs.append(f"{labels[0]}: {question}\n{labels[1]}: {answer}")
    return "\n\n".join(pairs)


def poem(rng):
    topic = rng.choice(list(verses.TOPIC_LINES))
    bare = topic.split(" ", 1)[-1]
    return rng.choice(("", capital(topic) + "\n\n", f"A poem about {bare}\n\n")) + talk.poem_text(
        rng, topic
    )


def diary(rng):
    """A few plain sentences about a day, opening in many ways."""
    slots = {}
    first = render(
        rng,
        "[Today is {day}.|It was a {weather} {part}.|Dear diary, today was {a:weather} day.|My name"
        " is {girl}.|On {day} we went to the {place}.|The {size} {animal} sat by the {place}.|I"
        " like {food} very much.]",
        slots,
    )
    rest = [
        "[I|We] [saw|met|found] {a:*animal} near the {place}.",
        "The sky was {*colour} and the air was {weather}.",
        "[Then|After that] [I|we] ate {food} and {*food}.",
        "My friend {name} gave me {a:*colour} {*thing}.",
        "In the {part} [I|we] [read a book|played a game|told stories|sang songs].",
        "{name} likes to {sport}.",
        "[I|We] felt {feeling}.",
        "It was a good day.",
        "The {*flower} in the garden are {*colour}.",
    ]
    return " ".join(
        [first] + [render(rng, line, slots) for line in rng.sample(rest, rng.randint(2, 6))]
    )
