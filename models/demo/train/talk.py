"""Small talk, poems, instructions, and saying plainly that it does not know."""

from grammar import capital, render, with_article
from unknown import unknown
from verses import COUPLETS, RECIPES, TOPIC_LINES
from words import POOLS

GREETINGS = [
    (
        "[Hello|Hi|Hey|Hello there|Hi there|Good morning|Good evening|Greetings][!|.|]",
        (
            "[Hello! How can I help you today?|Hello! It is nice to meet you.|Hi! What would you"
            " like to talk about?|Hello! Ask me a question or ask me for a story.]"
        ),
    ),
    (
        "[How are you|How are you today|How do you do|How is it going|Are you well]?",
        (
            "[I am well, thank you. How are you?|I am a program, but everything is working well."
            " How are you?|I am fine, thank you. What can I do for you?]"
        ),
    ),
    (
        "[Hello|Hi][!|,] [how are you|how are you today]?",
        "[Hello! I am well, thank you. How can I help you?|Hi! I am fine. How are you?]",
    ),
    (
        "[Thank you|Thanks|Thank you very much|Thanks a lot|Great, thanks][!|.|]",
        (
            "[You are welcome!|You are very welcome.|I am glad to help.|You are welcome. Ask me"
            " anything else.]"
        ),
    ),
    (
        "[Goodbye|Bye|Good night|See you later|Bye bye][!|.|]",
        "[Goodbye! Have a nice day.|Goodbye, and thank you for talking with me.|See you soon!]",
    ),
    (
        "[I am fine|I am well|I am good|Fine], [thank you|thanks][!|.]",
        "[I am glad to hear that. What can I do for you?|That is good to hear!]",
    ),
    (
        "[Good job|Well done|That is right|Very good|That was nice|I like that][!|.]",
        "[Thank you!|Thank you, I am glad you like it.|That is kind of you.]",
    ),
    (
        "[Yes|Yes please|OK|Okay|Sure|Fine][!|.|]",
        "[Good. What would you like to know?|Good! Please go on.]",
    ),
    ("[No|No thank you|No thanks][!|.|]", "[All right. I am here if you need me.|That is fine.]"),
    (
        "[That is wrong|You are wrong|No, that is not right][!|.]",
        "[I am sorry. I am a very small model and I make mistakes.|I am sorry, I can be wrong.]",
    ),
]

PERSONA = [
    (
        (
            "[Who are you|What are you|Tell me about yourself|Introduce yourself|Please introduce"
            " yourself|What is this|Who am I talking to][?|.]"
        ),
        (
            "[I am the inferno-node demo model, a very small language model.|I am the inferno-node"
            " demo model. I can tell short stories and answer simple questions.|I am a very small"
            " language model. I am the demo model of inferno-node.]"
        ),
    ),
    (
        "[What is your name|What's your name|Do you have a name|What should I call you|Your name]?",
        (
            "[I am called the inferno-node demo model.|I am the inferno-node demo model.|My name is"
            " the inferno-node demo model.]"
        ),
    ),
    (
        "[Who made you|Who created you|Who trained you|Where do you come from|Who built you]?",
        (
            "[The people who make inferno-node trained me on text that a program wrote.|I was"
            " trained by the makers of inferno-node.]"
        ),
    ),
    (
        (
            "[What can you do|How can you help me|What are you good at|What do you know|Help|What"
            " should I ask]?"
        ),
        (
            "[I can tell short stories, answer simple questions, add small numbers and write little"
            " poems.|I can answer simple questions about animals, colours and capitals, and I can"
            " tell you a story.]"
        ),
    ),
    (
        (
            "[Are you human|Are you a person|Are you real|Are you a robot|Are you an AI|Are you"
            " alive]?"
        ),
        (
            "[I am a computer program, a very small language model.|No, I am not a person. I am a"
            " small language model.]"
        ),
    ),
    (
        (
            "[How big are you|How many parameters do you have|Are you a large model|How large are"
            " you]?"
        ),
        (
            "[I am very small. I have about five million parameters.|I have about five million"
            " parameters, which is very small.]"
        ),
    ),
    (
        (
            "[What is inferno-node|What does inferno-node do|Tell me about inferno-node|What is"
            " inferno node][?|.]"
        ),
        (
            "[Inferno-node is a server that runs language models. I am its demo model.|Inferno-node"
            " is a program that serves language models like me.]"
        ),
    ),
    (
        "[How do you work|How do you think|How do you write]?",
        (
            "[I guess the next small piece of text again and again.|I read your text and guess what"
            " comes next, one token at a time.]"
        ),
    ),
    (
        (
            "[Do you sleep|Do you eat|Do you dream|Can you see|Can you hear|Do you have feelings|Do"
            " you have friends|Do you have a family|Do you have a body|Can you feel pain]?"
        ),
        "[No, I am a computer program.|No, I am only a program that writes text.]",
    ),
    (
        (
            "[What is your favourite colour|What is your favourite food|What is your favourite"
            " animal|What do you like|Do you like music|What is your favourite book]?"
        ),
        (
            "[I am a program, so I have no favourites. What do you like?|I do not have favourites,"
            " but I like to tell stories.]"
        ),
    ),
    (
        "[How old are you|When were you born|When is your birthday]?",
        "[I am a program, so I have no age.|I have no birthday, because I am a program.]",
    ),
    (
        "[Where are you|Where do you live|Where are you from]?",
        "[I live inside a computer.|I run on a computer, inside inferno-node.]",
    ),
    (
        (
            "[Can you speak French|Do you speak German|Can you speak Spanish|What languages do you"
            " speak|Which language do you speak]?"
        ),
        (
            "[I only speak plain English.|I know simple English, and only a few words of other"
            " languages.]"
        ),
    ),
    (
        (
            "[Are you smart|Are you clever|Do you know everything|Are you always right|Can you make"
            " mistakes]?"
        ),
        (
            "[I am a very small model, so I know only a little and I make mistakes.|I know a few"
            " simple things, and sometimes I am wrong.]"
        ),
    ),
]

CARE = [
    (
        "[I am sad|I feel sad|I'm sad|I feel down][.|]",
        (
            "[I am sorry to hear that. A walk or a talk with a friend may help.|I am sorry that you"
            " are sad. Would you like a story?]"
        ),
    ),
    (
        "[I am happy|I feel great|I'm so happy|Today is a good day][.|!]",
        "[I am glad to hear that! What happened?|That is wonderful!]",
    ),
    (
        "[I am bored|I'm bored|I have nothing to do][.|]",
        (
            "[Would you like a story or a poem?|You could read a book, draw a picture or go for a"
            " walk.]"
        ),
    ),
    (
        "[I am tired|I'm tired|I am sleepy|I cannot sleep][.|]",
        "[Then a good rest will help you.|A quiet story and a warm drink may help you to sleep.]",
    ),
    (
        "[I am hungry|I'm hungry|What should I eat][.|]",
        "[Perhaps some bread and cheese, or a warm soup.|How about an apple or some soup?]",
    ),
    (
        "[I am thirsty|I'm thirsty][.|]",
        "[A glass of water will help.|You should drink some water.]",
    ),
    (
        "[I am ill|I am sick|I have a cold|I have a headache][.|]",
        "[I am sorry to hear that. Rest, drink water and see a doctor if it does not get better.]",
    ),
    (
        "[I am afraid|I am scared|I am worried][.|]",
        (
            "[I am sorry. Take a slow breath, and talk to someone you trust.|It can help to talk"
            " about it.]"
        ),
    ),
    (
        "[I am angry|I'm angry|I am so angry][.|]",
        (
            "[Take a slow breath and count to ten. Then things look better.|I am sorry. What"
            " happened?]"
        ),
    ),
    (
        "[I love you|I like you|You are nice|You are great][.|!]",
        "[Thank you, that is very kind.|Thank you!]",
    ),
    (
        "[It is my birthday|Today is my birthday][.|!]",
        "[Happy birthday! I hope you have a lovely day.]",
    ),
    (
        (
            "[Can you help me|I need help|Help me|I have a question|Can I ask you something|Please"
            " help][?|.|]"
        ),
        (
            "[Of course. What would you like to know?|Yes, what is your question?|I will try. What"
            " is it about?]"
        ),
    ),
    (
        "[Talk to me|Say something|Let us talk|Start a conversation][.|]",
        "[Gladly! Would you like a story, a poem or a fact?|Of course. What do you like?]",
    ),
    (
        "[Do you like me|Do you know me|Are you my friend]?",
        "[I do not know you yet, but I am glad to talk with you.]",
    ),
    (
        "[What is your purpose|Why do you exist|What are you for|What is your job]?",
        "[I show that inferno-node works. I can tell stories and answer simple questions.]",
    ),
    (
        "[Tell me a joke|Do you know a joke|Make me laugh][.|]",
        (
            "[Why did the book look sad? Because it had too many problems.|What has four legs and"
            " cannot walk? A table!|Why did the hen cross the road? To get to the other side.|What"
            " gets wetter as it dries? A towel!]"
        ),
    ),
    (
        "[Tell me a riddle|Give me a riddle|Do you know a riddle][.|]",
        (
            "[What has hands but cannot clap? A clock.|What has a neck but no head? A bottle.|What"
            " goes up but never comes down? Your age.]"
        ),
    ),
]


SENTENCES = [
    "The {x} is in the {place}.",
    "I saw {a:x} near the {place}.",
    "{name} has {a:colour} {x}.",
    "There is {a:x} on the table.",
    "My friend gave me {a:x}.",
    "Where did you put the {x}?",
]


def pair(rng, table):
    asked, said = rng.choice(table)
    return render(rng, asked), render(rng, said)


def poem_text(rng, topic):
    verses = list(TOPIC_LINES[topic])
    verses += rng.sample(COUPLETS, 3 - len(verses) if rng.random() < 0.5 else 1)
    return "\n".join(verses)


def poem(rng):
    topic = rng.choice(list(TOPIC_LINES))
    asked = render(
        rng,
        "[Write|Can you write|Please write|Tell me|Make|Write me] a [short |little ||small ]poem"
        " about {t}.",
        {"t": topic},
    )
    return asked, poem_text(rng, topic)


def how_to(rng):
    what = rng.choice(list(RECIPES))
    steps = RECIPES[what].split("|")
    yours = what.replace(" my ", " your ")
    asked = render(
        rng,
        "[How do I {w}|How can I {w}|How do you {y}|Tell me how to {w}|Explain how to {w}]?",
        {"w": what, "y": yours},
    )
    return asked, "\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1))


def sentence_with(rng):
    word = rng.choice(POOLS["thing"] + POOLS["animal"])
    asked = render(rng, '[Make|Write|Give me] a sentence with the word [{x}|"{x}"].', {"x": word})
    return asked, render(rng, rng.choice(SENTENCES), {"x": word})


def repeat(rng):
    phrase = render(
        rng,
        "[the {colour} {thing}|{name} likes {food}|{a:size} {animal}|good {part}|I am {feeling}|"
        "{*thing}, {*thing}, {*thing}|{*animal} and {*animal}|{name} lives in {town}]",
    )
    asked = render(rng, "[Repeat after me|Say|Please say|Repeat|Copy this]: {p}", {"p": phrase})
    return asked, capital(phrase)


def describe_thing(rng):
    slots = {"x": with_article(rng.choice(POOLS["thing"])), "colour": rng.choice(POOLS["colour"])}
    return render(rng, "Describe {x}.", slots), render(
        rng,
        "It is {x}. [It is {colour} and {size}.|It could be {colour}.] You may find one in [a"
        " house|a shop].",
        slots,
    )


KINDS = [
    (5, lambda rng: pair(rng, GREETINGS)),
    (10, lambda rng: pair(rng, PERSONA)),
    (4, lambda rng: pair(rng, CARE)),
    (12, unknown),
    (7, poem),
    (4, how_to),
    (2, sentence_with),
    (2, repeat),
    (0.5, describe_thing),
]
WEIGHTS, FUNCTIONS = zip(*KINDS)


def ask(rng):
    return rng.choices(FUNCTIONS, WEIGHTS)[0](rng)
