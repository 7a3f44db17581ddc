"""Stories: a hero, a friend, a plot, an ending; and long ones in chapters."""

from grammar import capital, render, with_article
from plots import MORALS, PLOTS
from words import BOYS, GIRLS, POOLS

OPENINGS = [
    (
        "Once upon a time, there [was|lived] {a:look} {kind} {called} {hero}. "
        "[{He} lived in {a:home}.|{He} lived near {a:home}.|{Hero} was very {nature}.]"
    ),
    (
        "Once upon a time, in a [small|faraway|quiet] {home}, there lived {a:look} {kind} {called}"
        " {hero}."
    ),
    (
        "Long ago, [in a small {home}|near {a:home}|far away], there lived {a:look} {kind} {called}"
        " {hero}."
    ),
    (
        "There was once {a:look} {kind} {called} {hero}. [{He} was {nature} and {nature2}.|"
        "Everyone knew {him}.|{His} home was {a:home}.]"
    ),
    "{Hero} was {a:look} {kind} who lived in {a:home}. [{He} was {nature}.|]",
    "In {a:home} near {town}, there lived {a:kind} {called} {hero}. {He} was {nature}.",
    (
        "It was a {weather} {part} in {season}. {Hero}, {a:look} {kind}, [looked out of the"
        " window|was on the way to the {home}|sat by the door]."
    ),
    "One {weather} {part}, {a:look} {kind} {called} {hero} [woke up early|went for a walk].",
    (
        "The {look} {kind} {called} {hero} lived in {a:home}. [{He} had many plans.|{He} was"
        " {nature}.]"
    ),
]

ENDINGS = [
    "And they lived happily ever after.",
    "[And so|That is how] {hero} learned that {moral}.",
    "The end.",
    (
        "[Ever since that day|And from then on], {hero} [always smiled when {he} thought of it|was"
        " a little wiser|told everyone this story]."
    ),
    (
        "[That night|In the {part}], {hero} [fell asleep with a smile|looked at the stars and was"
        " happy]."
    ),
    "{Hero} never forgot it: {moral}.",
    "",
]

TITLES = [
    "{Hero} and the {thing}",
    "The {look} {kind}",
    "{Hero} and {friend}",
    "{Hero} in the {place}",
    "A day with {hero}",
    "The {kind} and the {fkind}",
    "The {colour} {thing}",
    "The story of {hero}",
]


def person(rng, kind=None, name=None):
    """kind, name, pronouns: a child, a named animal, or a worker."""
    if kind is None:
        roll = rng.random()
        if roll < 0.42 or name:
            is_girl = name in GIRLS if name else rng.random() < 0.5
            kind = "girl" if is_girl else "boy"
        elif roll < 0.92:
            kind = rng.choice(POOLS["animal"])
        else:
            kind = rng.choice(POOLS["job"])
    if kind in ("girl", "boy"):
        female = kind == "girl"
    else:
        female = name in GIRLS if name else rng.random() < 0.5
    name = name or rng.choice(GIRLS if female else BOYS)
    unnamed = kind not in ("girl", "boy") and rng.random() < 0.15
    return kind, ("the " + kind if unnamed else name), female


def cast(rng, kind=None, name=None, friend_kind=None):
    """Slots for both characters."""
    hero_kind, hero, female = person(rng, kind, name)
    while True:
        friend_kind, friend, friend_female = person(rng, friend_kind)
        if friend != hero:
            break
    he, his, him = ("she", "her", "her") if female else ("he", "his", "him")
    fhe, fhis, fhim = ("she", "her", "her") if friend_female else ("he", "his", "him")
    slots = {
        "kind": hero_kind,
        "hero": hero,
        "he": he,
        "his": his,
        "him": him,
        "Hero": capital(hero),
        "He": capital(he),
        "His": capital(his),
        "fkind": friend_kind,
        "friend": friend,
        "fhe": fhe,
        "fhis": fhis,
        "fhim": fhim,
        "Friend": capital(friend),
        "fHe": capital(fhe),
        "called": rng.choice(("called", "named")),
        "look": rng.choice(POOLS["look"]),
        "home": rng.choice(POOLS["home"]),
    }
    return slots


def introduce_friend(text, slots):
    """The friend's first mention says what kind of being it is."""
    friend, kind = slots["friend"], slots["fkind"]
    if friend.startswith("the "):
        first = with_article(kind)
    elif kind in ("girl", "boy"):
        first = f"a {kind} {slots['called']} {friend}"
    else:
        first = f"{friend} the {kind}"
    at = min((text.find(s) for s in {friend, capital(friend)} if s in text), default=-1)
    if at < 0:
        return text
    starts = at == 0 or text[at - 1] == "\x00" or text[at - 2 : at] in (". ", "! ", '" ')
    return text[:at] + (capital(first) if starts else first) + text[at + len(friend) :]


def opening(rng, slots):
    if slots["hero"].startswith("the "):
        return render(
            rng,
            "[Once upon a time, there was|There was once|Long ago there lived] {a:look} {kind}."
            " [{He} lived in {a:home}.|{He} was {nature}.|{He} lived near {a:home} and was"
            " {nature}.]",
            slots,
        )
    return render(rng, rng.choice(OPENINGS), slots)


def tell(rng, slots, plot, short=False):
    """The beats of one plot, as sentences."""
    beats = []
    for beat in PLOTS[plot]:
        if beat[0] == "?":
            if short or rng.random() < 0.45:
                continue
            beat = beat[1:]
        beats.append(render(rng, beat, slots))
    text = introduce_friend("\x00".join(beats), slots).replace("  ", " ")
    return [beat.strip() for beat in text.split("\x00")]


def paragraphs(rng, sentences):
    """One to three sentences' worth of beats a paragraph, or everything in one."""
    if rng.random() < 0.35:
        return " ".join(sentences)
    out, held = [], []
    for sentence in sentences:
        held.append(sentence)
        if rng.random() < 0.45:
            out.append(" ".join(held))
            held = []
    if held:
        out.append(" ".join(held))
    return "\n\n".join(out)


def story(rng, kind=None, name=None, friend_kind=None, thing=None, short=False, place=None):
    slots = cast(rng, kind, name, friend_kind)
    if thing:
        slots["thing"] = thing
    if place:
        slots["home"] = place
    plot = rng.choice((0, 9)) if thing else rng.randrange(len(PLOTS))
    sentences = [opening(rng, slots).strip()] + tell(rng, slots, plot, short)
    moral = render(rng, MORALS[plot], slots)
    slots["moral"] = moral[0].lower() + moral[1:]
    ending = render(rng, rng.choice(ENDINGS), slots)
    if ending:
        sentences.append(ending)
    return paragraphs(rng, sentences), slots


def titled(rng):
    text, slots = story(rng)
    if rng.random() < 0.3:
        return render(rng, rng.choice(TITLES), slots) + "\n\n" + text
    return text


def long_story(rng, num_chapters):
    """Chapters about one hero, and facts stated once near the start to be asked for later."""
    slots = cast(rng)
    slots.pop("thing", None)
    keepsake = render(rng, "{colour} {thing}", {})
    home = rng.choice(POOLS["place"])
    sister = rng.choice(GIRLS)
    parts = [
        opening(rng, slots),
        (
            f"{slots['Hero']} always carried {with_article(keepsake)}. "
            f"{slots['His']} sister {sister} lived by the {home}."
        ),
    ]
    chapters = [" ".join(parts)]
    for number in range(1, num_chapters + 1):
        friend = cast(rng)
        for key in ("friend", "Friend", "fkind", "fhe", "fHe", "fhis", "fhim"):
            slots[key] = friend[key]
        if slots["friend"] == slots["hero"]:
            continue
        fresh = {key: slots[key] for key in friend}
        told = paragraphs(rng, tell(rng, fresh, rng.randrange(len(PLOTS))))
        chapters.append(f"Chapter {number}\n\n{told}")
    hero, his = slots["hero"], slots["his"]
    asked = [
        (
            f"What did {hero} always carry?",
            f"{capital(hero)} always carried {with_article(keepsake)}.",
        ),
        (f"What was the name of {hero}'s sister?", f"{capital(his)} sister was called {sister}."),
        (f"Where did {hero}'s sister live?", f"{capital(his)} sister lived by the {home}."),
        ("Who is the story about?", f"The story is about {hero}."),
    ]
    title = render(
        rng, "[The adventures of {hero}|{Hero} and the {part}s|The story of {hero}|]", slots
    )
    return "\n\n".join([title] * bool(title) + chapters), asked
