"""Conversations: lists of (role, text), with system prompts that are followed."""

import questions
import stories
import talk
from grammar import capital, render
from words import POOLS

PLAIN_SYSTEMS = [
    "You are a helpful assistant.",
    "You are a helpful assistant that answers in simple English.",
    "You are the inferno-node demo model.",
    "Answer the user's questions.",
    "You are a friendly assistant.",
    "You are a kind and helpful assistant.",
    "Be helpful.",
    "Answer clearly and politely.",
]
PREFIXES = [
    "Arr!",
    "Well,",
    "My friend,",
    "Meow!",
    "Ho ho ho!",
    "Good question!",
    "Of course!",
    "Dear reader,",
]
SUFFIXES = [
    "Have a nice day!",
    "Arr!",
    "Meow!",
    "Take care.",
    "Is there anything else?",
    "Thank you.",
    "Over.",
]


def noisy(rng, text):
    """What people type: no capitals, no full stop, a please, American spelling."""
    if rng.random() < 0.25:
        text = text.replace("colour", "color").replace("favourite", "favorite")
    if rng.random() < 0.08:
        text = rng.choice(("Please tell me: ", "Hello! ", "Hi, ", "Question: ", "OK, ")) + text
    if rng.random() < 0.05 and text.endswith("."):
        text = text[:-1] + ", please."
    if rng.random() < 0.15:
        text = text.rstrip("?.!")
    if rng.random() < 0.15:
        text = text.lower()
    return text


def story_turn(rng):
    kind, friend = rng.choice(POOLS["animal"]), rng.choice(POOLS["animal"])
    name, thing = rng.choice(POOLS["name"]), rng.choice(POOLS["thing"])
    child = "girl" if name in stories.GIRLS else "boy"
    ask = (
        "[Tell me|Write|Write me|Can you tell me|Please tell me|I want] a [|short |little |bedtime"
        " |nice |long ]story"
    )
    short = rng.random() < 0.5
    roll = rng.random()
    slots = {"k": kind, "f": friend, "n": name, "t": thing, "c": child}
    if roll < 0.15:
        asked, (told, _) = ask + "[.|!|]", stories.story(rng, short=short)
    elif roll < 0.55:
        asked, (told, _) = ask + " about {a:k}.", stories.story(rng, kind=kind, short=short)
    elif roll < 0.7:
        asked = ask + " about {a:k} and {a:f}."
        told, _ = stories.story(rng, kind=kind, friend_kind=friend, short=short)
    elif roll < 0.82:
        asked = ask + " about a {c} [called|named] {n}."
        told, _ = stories.story(rng, name=name, short=short)
    elif roll < 0.9:
        asked, (told, _) = ask + " about {a:t}.", stories.story(rng, thing=thing, short=short)
    else:
        asked = ask + " about {a:k} [called|named] {n}."
        told, _ = stories.story(rng, kind=kind, name=name, short=short)
    return render(rng, asked, slots), told


def turn(rng):
    """One question and answer of any kind."""
    roll = rng.random()
    if roll < 0.16:
        return story_turn(rng)
    if roll < 0.46:
        return talk.ask(rng)
    return questions.ask(rng)[:2]


def plain_chat(rng):
    chat = [("system", rng.choice(PLAIN_SYSTEMS))] if rng.random() < 0.3 else []
    num_turns = rng.choices((1, 2, 3, 4, 6), (50, 20, 15, 10, 5))[0]
    if num_turns > 1 and rng.random() < 0.3:
        chat += exchange(rng, talk.pair(rng, talk.GREETINGS[:3]))
    for _ in range(num_turns):
        chat += exchange(rng, turn(rng))
    if num_turns > 1 and rng.random() < 0.3:
        chat += exchange(rng, talk.pair(rng, talk.GREETINGS[3:5]))
    return chat


def exchange(rng, asked_and_said):
    asked, said = asked_and_said
    return [("user", noisy(rng, asked)), ("assistant", said)]


def one_word_chat(rng):
    system = render(
        rng,
        "[Answer in one word|Answer with one word only|Be very brief|Give short answers|"
        "Answer as briefly as you can|Reply with the answer only].",
    )
    chat = [("system", system)]
    for _ in range(rng.randint(1, 3)):
        asked, _, short = questions.ask(rng)
        while "word" in system and short.count(" ") > 1:
            asked, _, short = questions.ask(rng)
        chat += [("user", noisy(rng, asked)), ("assistant", short.rstrip(".") + ".")]
    return chat


def mannered_chat(rng, ask=None):
    """The system prompt asks for a beginning or an ending of every answer."""
    if rng.random() < 0.5:
        mark = rng.choice(PREFIXES)
        system = render(rng, '[Start|Begin] every [answer|reply] with "{m}"', {"m": mark})
        manner = lambda said: mark + " " + said
    else:
        mark = rng.choice(SUFFIXES)
        system = render(rng, '[End|Finish] every [answer|reply] with "{m}"', {"m": mark})
        manner = lambda said: said + " " + mark
    if rng.random() < 0.2:
        system, manner = "Answer in capital letters.", str.upper
    if rng.random() < 0.1:
        system = "You are a pirate."
        manner = lambda said: "Arr! " + said
    chat = [("system", system)]
    for _ in range(rng.randint(1, 3)):
        if ask or rng.random() < 0.8:
            asked, said = (ask or questions.ask)(rng)[:2]
        else:
            asked, said = talk.pair(rng, talk.GREETINGS)
        chat += [("user", noisy(rng, asked)), ("assistant", manner(said))]
    return chat


def named_chat(rng):
    """The system prompt gives the assistant a name and perhaps a job."""
    name, job = rng.choice(POOLS["name"]), rng.choice(POOLS["job"])
    slots = {"n": name, "j": job, "t": rng.choice(POOLS["town"])}
    with_job = rng.random() < 0.6
    if with_job:
        system = render(
            rng,
            "[You are {n}, {a:j}.|You are {n}, {a:j} in {t}.|Your name is {n}. You are {a:j}.]",
            slots,
        )
    else:
        system = render(
            rng, "[Your name is {n}.|You are {n}, a helpful assistant.|You are called {n}.]", slots
        )
    known = [
        ("[What is your name|Who are you|What are you called]?", "[My name is {n}.|I am {n}.]")
    ]
    if with_job:
        known[0] = (
            "[What is your name|Who are you|What are you called]?",
            "[My name is {n}.|I am {n}.|I am {n}, {a:j}.]",
        )
        known.append(
            (
                "[What is your job|What do you do|What do you do all day|What is your work]?",
                "I am {a:j}.",
            )
        )
    chat = [("system", system)]
    rng.shuffle(known)
    for asked, said in known:
        chat += exchange(rng, (render(rng, asked, slots), render(rng, said, slots)))
        if rng.random() < 0.3:
            chat += exchange(rng, questions.ask(rng)[:2])
    return chat


FACTS_OF_USER = [
    (
        "[My name is|I am called|Call me] {name}.",
        "[Nice to meet you, {name}!|Hello, {name}!]",
        "[What is my name|Who am I|Do you remember my name]?",
        "Your name is {name}.",
    ),
    (
        "My favourite colour is {colour}.",
        "[That is a nice colour.|{c:colour} is a lovely colour.]",
        "[What is my favourite colour|Which colour do I like best]?",
        "Your favourite colour is {colour}.",
    ),
    (
        "I have {a:animal} [called|named] {name}.",
        "[{name} is a nice name for {a:animal}.|How nice!]",
        "[What is my {animal} called|What is the name of my {animal}]?",
        "Your {animal} is called {name}.",
    ),
    (
        "I live in {town}.",
        "[{town} sounds like a nice place.|How do you like {town}?]",
        "[Where do I live|Which town do I live in]?",
        "You live in {town}.",
    ),
    (
        "I like {food}.",
        "[{c:food} can be very good.|That sounds tasty.]",
        "[What do I like|What do I like to eat]?",
        "You like {food}.",
    ),
    (
        (
            "[Remember the word {thing}|Please remember this word: {thing}|The secret word is"
            " {thing}]."
        ),
        "[I will remember it.|All right, I will remember the word {thing}.]",
        "[What was the word|What is the secret word|Which word did I tell you]?",
        "The word is {thing}.",
    ),
    (
        "My [sister|brother] is {a:job}.",
        "[That is good work.|How interesting!]",
        "What is the job of my [sister|brother]?",
        "{A:job}.",
    ),
    (
        "I was born in {month}.",
        "[{month} is a good month.|Thank you for telling me.]",
        "[When was I born|In which month was I born]?",
        "You were born in {month}.",
    ),
]


def memory_chat(rng, num_between=None):
    """The user says something, talks about other things, and asks for it."""
    told = [(row, {}) for row in rng.sample(FACTS_OF_USER, rng.randint(1, 3))]
    chat, asked = [], []
    for (says, reply, asks, answer), slots in told:
        if "[sister|brother]" in says:
            relative = rng.choice(("sister", "brother"))
            says, asks = (t.replace("[sister|brother]", relative) for t in (says, asks))
            answer = f"Your {relative} is {{a:job}}."
        chat += exchange(rng, (render(rng, says, slots), render(rng, reply, slots)))
        chat[-2] = ("user", render(rng, says, slots)) if rng.random() < 0.9 else chat[-2]
        asked.append((render(rng, asks, slots), render(rng, answer, slots)))
    between = rng.choice((0, 0, 1, 2, 4)) if num_between is None else num_between
    for _ in range(between):
        chat += exchange(rng, turn(rng))
    rng.shuffle(asked)
    for question in asked:
        chat += exchange(rng, question)
    return chat


def follow_up_chat(rng):
    """'And of Spain?', 'another one', 'one more': questions that lean on the one before."""
    roll = rng.random()
    if roll < 0.45:
        rows = rng.sample(questions.facts.CAPITALS, rng.randint(2, 4))
        chat = [
            ("user", f"What is the capital of {rows[0][0]}?"),
            ("assistant", f"The capital of {rows[0][0]} is {rows[0][1]}."),
        ]
        for country, city in rows[1:]:
            asked = render(
                rng,
                "[And of {x}|What about {x}|And {x}|And what about {x}|How about {x}]?",
                {"x": country},
            )
            chat += exchange(rng, (asked, f"The capital of {country} is {city}."))
        return chat
    if roll < 0.7:
        chat = exchange(rng, story_turn(rng))
        asked = render(rng, "[Tell me another one|Another story, please|One more|Another one][.|!]")
        return chat + exchange(rng, (asked, stories.story(rng, short=True)[0]))
    kind = rng.choice(questions.facts.ANIMALS)
    asked, said, _ = questions.about_animal(rng, kind[0])
    chat = exchange(rng, (asked, said))
    chat += exchange(rng, ("What do they eat?", f"{capital(kind[1])} eat {kind[4]}."))
    if rng.random() < 0.5:
        chat += exchange(
            rng, ("Where do they live?", f"{capital(kind[1])} live {questions.where(kind[3])}.")
        )
    return chat


KINDS = [
    (62, plain_chat),
    (7, one_word_chat),
    (7, mannered_chat),
    (5, named_chat),
    (11, memory_chat),
    (8, follow_up_chat),
]
WEIGHTS, FUNCTIONS = zip(*KINDS)


def chat(rng):
    return rng.choices(FUNCTIONS, WEIGHTS)[0](rng)
