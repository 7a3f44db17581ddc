"""Short questions and their answers. Each function returns (question, answer, short answer).

The short answer is the bare fact, for the times a system prompt asks for one word.
"""

import facts
import sums
from grammar import capital, render, with_article
from words import CATEGORIES, POOLS

DAYS, MONTHS = POOLS["day"], POOLS["month"]
UNITS = [
    ("days", "a week", "seven"),
    ("months", "a year", "twelve"),
    ("hours", "a day", "twenty-four"),
    ("minutes", "an hour", "sixty"),
    ("seconds", "a minute", "sixty"),
    ("sides", "a square", "four"),
    ("sides", "a triangle", "three"),
    ("sides", "a hexagon", "six"),
    ("wheels", "a car", "four"),
    ("wheels", "a bicycle", "two"),
    ("fingers", "a hand", "five"),
    ("days", "a leap year", "366"),
    ("days", "a year", "365"),
    ("letters", "the English alphabet", "twenty-six"),
    ("planets", "the solar system", "eight"),
    ("seasons", "a year", "four"),
    ("sides", "a rectangle", "four"),
    ("years", "a century", "a hundred"),
    ("items", "a dozen", "twelve"),
]
BY_SIZE = (
    "ant, bee, mouse, frog, sparrow, squirrel, rabbit, cat, fox, dog, sheep, lion, horse, giraffe, "
    "elephant, whale"
).split(", ")
GREETINGS = facts.rows("""
French=Bonjour; Spanish=Hola; German=Guten Tag; Italian=Ciao; Portuguese=Ola; Dutch=Hallo
Swedish=Hej; Polish=Czesc; Turkish=Merhaba; Swahili=Jambo; Hawaiian=Aloha; Japanese=Konnichiwa
""")


def capital_of(rng):
    country, city = rng.choice(facts.CAPITALS)
    slots = {"x": country, "y": city}
    if rng.random() < 0.12:
        question = render(
            rng, "[{y} is the capital of which country|Which country has the capital {y}]?", slots
        )
        return question, render(rng, "{y} is the capital of {x}.", slots), capital(country)
    question = render(
        rng,
        "[What is the capital of {x}|What's the capital of {x}|Which city is the capital of {x}|"
        "Tell me the capital of {x}|Do you know the capital of {x}|What is the capital city of {x}|"
        "{c:x}: what is the capital]?",
        slots,
    )
    return question, render(rng, "The capital of {x} is {y}.", slots), city


def colour_of(rng):
    thing, colour = rng.choice(facts.COLOURS_OF)
    slots = {"x": thing, "y": colour}
    question = render(
        rng,
        "[What colour is|What is the colour of|Which colour is|Tell me the colour of] {x}?",
        slots,
    )
    if thing == "the sky":
        answer = render(rng, "The sky is blue[ on a clear day| when the Sun shines|].", slots)
    else:
        answer = render(rng, "[{c:x} is|{c:x} is usually] {y}.", slots)
    return question, answer, capital(colour)


def opposite_of(rng):
    left, right = rng.choice(facts.OPPOSITES)
    if rng.random() < 0.5:
        left, right = right, left
    slots = {"x": left, "y": right}
    question = render(
        rng,
        "[What is the opposite of|What's the opposite of|Tell me the opposite of|Which word is the"
        ' opposite of] [{x}|"{x}"]?',
        slots,
    )
    return question, render(rng, "The opposite of {x} is {y}.", slots), capital(right)


def definition(rng):
    thing, meaning = rng.choice(facts.DEFINITIONS)
    slots = {"x": thing, "y": meaning, "A": capital(thing)}
    bare = thing.split(" ", 1)[1] if thing.startswith(("a ", "an ", "the ")) else thing
    slots["z"] = bare
    question = render(
        rng,
        "[What is {x}|What's {x}|What does the word {z} mean|What does {z} mean|Explain what {x}"
        " is|Define {z}|Can you explain what {x} is|Tell me what {x} is|What is meant by {z}]?",
        slots,
    )
    return question, render(rng, "{A} is {y}.", slots), capital(meaning)


def why(rng):
    question, reason = rng.choice(facts.WHY)
    first, rest = question.split(" ", 1)
    answer = capital(statement(first, rest)) + " " + reason + "."
    asked = render(
        rng,
        "[Why {q}|Why {q}|Can you tell me why {s}|Do you know why {s}|Explain why {s}]?",
        {"q": question, "s": statement(first, rest)},
    )
    return asked, answer, capital(reason)


def statement(verb, rest):
    """'do' + 'birds sing' -> 'birds sing'; 'does' + 'it rain' -> 'it rains'."""
    words = rest.split(" ")
    if verb == "do":
        return rest
    at = 2 if words[0] in ("the", "The") else 1
    if verb == "does":
        words[at] = words[at] + "s"
        return " ".join(words)
    return " ".join(words[:at] + [verb] + words[at:])


def animal_fact(rng):
    one, many, kind, home, food, sound, legs, young, true = rng.choice(facts.ANIMALS)
    slots = {
        "x": one,
        "xs": many,
        "k": kind,
        "h": home,
        "f": food,
        "s": sound,
        "l": legs,
        "y": young,
        "t": true,
    }
    frames = [
        (
            "[What do {xs} eat|What does {a:x} eat|What is the food of {a:x}]?",
            "{c:xs} eat {f}.",
            food,
        ),
        (
            "[Where do {xs} live|Where does {a:x} live|Where can I find {xs}]?",
            f"{{c:xs}} live {where(home)}.",
            where(home),
        ),
        (
            "[How many legs does {a:x} have|How many legs do {xs} have|How many legs has {a:x}]?",
            "{A:x} has {l} legs.",
            legs,
        ),
        (
            (
                "[What is a young {x} called|What do you call a baby {x}|What is the young of {a:x}"
                " called]?"
            ),
            "A young {x} is called {a:y}.",
            young,
        ),
        ("What kind of animal is {a:x}?", "{A:x} is {a:k}.", kind),
        (
            "[Is {a:x} {a:k}|Are {xs} {k}s]?" if kind != "fish" else "Is {a:x} a fish?",
            "Yes, {a:x} is {a:k}.",
            "yes",
        ),
        (
            (
                "[What is special about {xs}|Tell me something about {xs}|Tell me a fact about"
                " {xs}|What do you know about {xs}]?"
            ),
            "{A:x} {t}.",
            "it " + true,
        ),
    ]
    if sound != "-":
        frames.append(
            (
                "[What sound does {a:x} make|What noise does {a:x} make|What does {a:x} say]?",
                "{A:x} {s}.",
                "it " + sound,
            )
        )
    if kind != "bird":
        frames.append(("Is {a:x} a bird?", "No, {a:x} is not a bird. It is {a:k}.", "no"))
    if kind != "fish":
        frames.append(("Is {a:x} a fish?", "No, {a:x} is not a fish. It is {a:k}.", "no"))
    question, answer, short = rng.choice(frames)
    return render(rng, question, slots), render(rng, answer, slots), capital(short)


def where(home):
    for start, preposition in (
        ("farm", "on "),
        ("nest", "in "),
        ("homes", "in "),
        ("the sea and the shore", "in "),
    ):
        if home.startswith(start):
            return preposition + home
    return "in " + home


def about_animal(rng, name=None):
    table = [row for row in facts.ANIMALS if row[0] == name] if name else facts.ANIMALS
    one, many, kind, home, food, sound, legs, young, true = rng.choice(table)
    slots = {
        "x": one,
        "xs": many,
        "k": kind,
        "f": food,
        "l": legs,
        "y": young,
        "t": true,
        "h": where(home),
    }
    lines = [
        "{A:x} is {a:k}.",
        "{c:xs} live {h}[| and eat {f}].",
        "It {t}.",
        "A young {x} is called {a:y}.",
        "It has {l} legs.",
    ]
    keep = [lines[0], lines[1]] + rng.sample(lines[2:], rng.randint(1, 3))
    answer = " ".join(render(rng, line, slots) for line in keep)
    question = render(
        rng,
        "[Tell me about {xs}|Tell me about the {x}|Describe {a:x}|Write a few sentences about"
        " {xs}|What is {a:x}|Write something about {xs}].",
        slots,
    )
    return (
        question.replace(
            "What is " + with_article(one) + ".", "What is " + with_article(one) + "?"
        ),
        answer,
        capital(kind),
    )


def how_many(rng):
    what, where_, number = rng.choice(UNITS)
    slots = {"w": what, "x": where_, "n": number}
    verb = "has" if where_ not in ("a week", "a day") else "has"
    question = render(rng, "How many {w} [are there in|are in] {x}?", slots)
    if what == "items":
        return "How many is a dozen?", "A dozen is twelve.", "Twelve"
    return question, f"{capital(where_)} {verb} {number} {what}.", capital(number)


def order(rng):
    series, label = (DAYS, "day") if rng.random() < 0.5 else (MONTHS, "month")
    at = rng.randrange(len(series))
    this, after, before = series[at], series[(at + 1) % len(series)], series[at - 1]
    if rng.random() < 0.5:
        question = render(
            rng,
            f"[What comes after {this}|Which {label} comes after {this}|What {label} is after"
            f" {this}]?",
        )
        return question, f"{after} comes after {this}.", after
    question = render(
        rng,
        f"[What comes before {this}|Which {label} comes before {this}|What {label} is before"
        f" {this}]?",
    )
    return question, f"{before} comes before {this}.", before


def planet(rng):
    name, what, place = rng.choice(facts.PLANETS)
    frames = [
        (f"[What is {name}|Tell me about {name}]?", f"{name} is {what}.", what),
        (f"Which planet is {what}?", f"{name} is {what}.", name),
        (
            f"Which planet is the {place} from the Sun?",
            f"{name} is the {place} planet from the Sun.",
            name,
        ),
    ]
    question, answer, short = rng.choice(frames)
    return render(rng, question), answer, capital(short)


def compare(rng):
    if rng.random() < 0.5:
        low, high = sorted(rng.sample(range(len(BY_SIZE)), 2))
        small, big = BY_SIZE[low], BY_SIZE[high]
        pair = [with_article(small), with_article(big)]
        rng.shuffle(pair)
        if rng.random() < 0.5:
            return (
                f"Which is bigger, {pair[0]} or {pair[1]}?",
                f"{capital(with_article(big))} is bigger than {with_article(small)}.",
                capital(with_article(big)),
            )
        return (
            f"Which is smaller, {pair[0]} or {pair[1]}?",
            f"{capital(with_article(small))} is smaller than {with_article(big)}.",
            capital(with_article(small)),
        )
    left, right = rng.sample(range(1, 100), 2)
    big = max(left, right)
    return (
        f"Which number is bigger, {left} or {right}?",
        f"{big} is bigger than {min(left, right)}.",
        str(big),
    )


def listing(rng, name=None):
    name = name or rng.choice(list(CATEGORIES))
    members = CATEGORIES[name]
    number = rng.randint(2, min(5, len(members)))
    chosen = rng.sample(members, number)
    slots = {"n": sums.NUMBER_WORDS[number] if rng.random() < 0.8 else str(number), "c": name}
    question = render(
        rng,
        "[Name {n} {c}|List {n} {c}|Tell me {n} {c}|Give me {n} {c}|Can you name {n} {c}|Give me a"
        " list of {n} {c}|Say {n} {c}].",
        slots,
    )
    if rng.random() < 0.25 or "list" in question.lower():
        answer = "\n".join(f"{index}. {capital(item)}" for index, item in enumerate(chosen, 1))
    else:
        joined = ", ".join(chosen[:-1]) + " and " + chosen[-1]
        answer = render(
            rng,
            f"[{capital(slots['n'])} {name} are {joined}|{capital(joined)}|Here are {slots['n']}"
            f" {name}: {joined}].",
        )
    return question, answer, capital(chosen[0])


def greeting_in(rng):
    language, word = rng.choice(GREETINGS)
    question = render(
        rng,
        f"[How do you say hello in {language}|Say hello in {language}|What is hello in"
        f" {language}]?",
    )
    return question, f'In {language}, hello is "{word}".', word


def any_fact(rng):
    animal = rng.choice(facts.ANIMALS)
    asked = (
        "[Tell me something|Tell me a fact|Tell me something interesting|Surprise me|Give me a fun"
        " fact|Do you know a fact][.|!|]"
    )
    return (
        render(rng, asked),
        f"Did you know? {capital(with_article(animal[0]))} {animal[8]}.",
        "It " + animal[8],
    )


# (weight, function)
KINDS = [
    (12, capital_of),
    (6, colour_of),
    (5, opposite_of),
    (9, definition),
    (9, why),
    (10, animal_fact),
    (5, about_animal),
    (3, how_many),
    (3, order),
    (2, planet),
    (3, compare),
    (1, sums.parity),
    (14, sums.arithmetic),
    (4, sums.word_problem),
    (7, listing),
    (2, sums.counting),
    (1, greeting_in),
    (2, any_fact),
]
WEIGHTS, FUNCTIONS = zip(*KINDS)


def ask(rng):
    return rng.choices(FUNCTIONS, WEIGHTS)[0](rng)
