"""Questions that the model should not try to answer, and how it says so."""

from grammar import capital, render
from words import split

UNKNOWN_ASKED = [
    "[Who won|Who lost] the [world cup|election|war|race|game|prize] in {year}?",
    "What [happened|did people eat|was the weather like] [in {year}|on {day}|yesterday|last week]?",
    (
        "[What is|What's] the [news|weather|time|date|score|temperature] [today|now|right now|in"
        " {town}]?"
    ),
    (
        "[Write|Can you write|Show me] [a program in|some code in|a function in]"
        " [Python|Rust|C|Java|JavaScript]."
    ),
    (
        "Explain [quantum mechanics|relativity|the stock market|calculus|string"
        " theory|photosynthesis in detail|machine"
        " learning|philosophy|inflation|genetics|blockchain|thermodynamics|the theory of"
        " evolution]."
    ),
    (
        "[Who is|Who was|Who were|Tell me about] [the president of {land}|the king of {land}|the"
        " mayor of {town}|Doctor {name}|{name} {surname}|the inventor of the {thing}|the author of"
        " that book]."
    ),
    (
        "[How do I|How can I] [fix my car|install Linux|build a rocket|invest my money|file my"
        " taxes|sell a house|repair a phone|learn physics|become rich|win the lottery|hack a"
        " computer]."
    ),
    (
        "What is the [population|area|currency|history|national anthem|longest river|highest"
        " mountain] of {land}?"
    ),
    (
        "[What is the square root of|What is the cube of|What are the factors of|Is {big} a"
        " prime|What is the logarithm of] {big}?"
    ),
    "[What is|What's|What does it mean to] {a:nonsense}?",
    "What does {nonsense} mean?",
    "Where is {nonsense}?",
    "What is the capital of {nonsense2}?",
    "Tell me about the {nonsense}.",
    "Who is {nonsense2}?",
    (
        "[How far is|How long does it take to get to|How do I get to] [{land}|the Moon|the"
        " Sun|Mars|{town}]?"
    ),
    (
        "[Summarise|Review|Who wrote|Have you read] [the latest film|Hamlet|Moby Dick|the"
        " Bible|this article]."
    ),
    "How much [is a house|does a car cost|money do I need|is the dollar worth|does gold cost]?",
    (
        "[Translate this into|How do you say thank you in|Write a letter in]"
        " [Latin|Greek|Chinese|Arabic]."
    ),
    "[What will happen|Who will win|Will it rain] [tomorrow|next year|in {year}]?",
    (
        "[Should I|Would you] [buy a house|change my job|vote|marry {name}|take this medicine|sell"
        " my shares]?"
    ),
    (
        "[What is|What are|Who is|Tell me about|Explain|What do you think about|What do you know"
        " about|Describe|Write an essay about|What can you tell me about|How does {subject} work,"
        " and what is|Have you heard of] {subject}?"
    ),
    (
        "[Where can I buy|Who invented|Who discovered|How much is|When was|What is the history of]"
        " {subject}?"
    ),
    "[Give me a recipe for|How do I cook|How do I bake|What goes well with] {food}?",
    "What is {bignum} [times|divided by|plus] {bignum2}?",
]
SUBJECTS = split("""
    dinosaurs, politics, football clubs, democracy, Albert Einstein, Shakespeare, Napoleon, Julius
    Caesar,
    the Roman Empire, the history of Rome, the war, climate change, electricity, magnets, atoms,
    DNA, cancer,
    vaccines, bitcoin, money, taxes, the law, religion, art, jazz, opera, the Beatles, Mozart,
    movies, television,
    Kubernetes, Docker, Linux, Java, C++, databases, algorithms, neural networks, compilers, the
    cloud, NATS,
    black holes, galaxies, the Big Bang, evolution, chemistry, biology, geometry, algebra,
    statistics, economics,
    psychology, sociology, grammar, Latin, Esperanto, yoga, karate, cricket, golf, baseball, the
    Olympics,
    Formula One, aeroplanes, submarines, rockets, satellites, batteries, solar panels, nuclear
    power, oil, plastic,
    steel, cotton, silk, pizza, sushi, curry, chocolate cake, wine, beer, espresso, vitamins,
    diets, insurance,
    banks, stocks, marketing, management, Amazon, Google, the stock exchange, fashion,
    architecture, the pyramids,
    Stonehenge, Mount Everest, the Great Wall, the Eiffel Tower, New York, Texas, Siberia,
    Antarctica, the Sahara,
    unicorns, ghosts, vampires, mermaids, aliens, superheroes, Harry Potter, Sherlock Holmes,
    chess openings, poker,
    lawyers, engineers, dentists, surgery, blood pressure, allergies, earthquakes, hurricanes,
    tsunamis, glaciers,
    mushrooms, bacteria, viruses, fungi, ferns, cactuses, dragonflies, mosquitoes, jellyfish,
    hamsters, llamas,
    printers, keyboards, telephones, cameras, the radio, clocks of the future, tomorrow, the year
    2000, the economy
    """)
UNKNOWN_SAID = (
    "[I am sorry, I am a very small model and I do not know that.|I am a very small model and do"
    " not know that.|I do not know that. I am only a very small model.|I am a very small model and"
    " do not know that. You could ask me for a story.]"
)
SUBJECT_ASKED = [asked for asked in UNKNOWN_ASKED if "{subject}" in asked]
SYLLABLES = (
    "bla bor dri fim gra kle lom mur nix ota plu quo ran sil tov ubi vex wim yar zog".split()
)


def nonsense(rng):
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 3)))


def unknown(rng):
    slots = {
        "year": str(rng.randint(1500, 2030)),
        "land": rng.choice(
            ("France", "Peru", "Japan", "Kenya", "Canada", "Italy", "Norway", "China")
        ),
        "surname": capital(nonsense(rng)),
        "big": str(rng.randint(200, 9999)),
        "bignum": str(rng.randint(1000, 99999)),
        "bignum2": str(rng.randint(1000, 99999)),
        "nonsense": nonsense(rng),
        "nonsense2": capital(nonsense(rng)),
        "subject": rng.choice(SUBJECTS),
    }
    asked = SUBJECT_ASKED if rng.random() < 0.3 else UNKNOWN_ASKED
    question = render(rng, rng.choice(asked), slots)
    return question, render(rng, UNKNOWN_SAID)
