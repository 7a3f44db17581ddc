"""What can happen in a story: beats in order, each a list of ways to tell it.

A beat that starts with "?" may be left out. Slots beyond the word pools: hero, Hero, he, He, his,
him, and for the other character friend, Friend, fhe, fHe, fhis, fhim.
"""

LOST = [
    (
        "{Hero} [had|owned] {a:colour} {thing} that {he} [loved very much|took everywhere]. "
        "[It had been a gift from {his} grandmother.|It was {his} most precious thing.|]"
    ),
    (
        "[One day|One {part}|Then one {weather} day], the {thing} was gone. {Hero} [looked under"
        " the bed and behind the door|searched the whole house|looked everywhere], but [it was not"
        " there|{he} could not find it]."
    ),
    (
        '?"Where can it be?" {he} [asked|wondered|said]. [{He} felt very sad.|A tear ran down {his}'
        " cheek.|]"
    ),
    (
        '{He} [went|walked|ran] to the {place} and [met|found] {friend}. "Have you seen my'
        ' {thing}?" asked {hero}. [{Friend} thought for a while.|{Friend} shook {fhis} head.]'
    ),
    (
        '"[Let us look together|I will help you|Two can search better than one]," said {friend}. '
        "[So they looked|Together they searched] [near the {tree}|by the water|along the path]"
        "[ and under every stone|, and they did not give up|]."
    ),
    (
        "?They [asked|spoke to] {a:animal}, but {a:animal} [had seen nothing|only said that it was"
        " hungry]."
    ),
    (
        "[At last|In the end|Just before dark], {friend} [saw|noticed] something {colour} [in the"
        " grass|under some leaves|behind the {tree}]. It was the {thing}!"
    ),
    (
        '"Thank you!" [cried|said] {hero}. [{He} jumped for joy.|{He} hugged {friend}.] '
        "[They shared some {food} and laughed.|From then on {he} took better care of {his} things.]"
    ),
]

FRIEND = [
    (
        "{Hero} [lived alone|had no one to play with|was new in the {place}] and [often felt"
        " lonely|wished for a friend]."
    ),
    (
        "One {weather} {part}, {he} [heard|noticed] a [soft|strange|small] {noise} [near|behind]"
        " the {tree}. It was {friend}, who [looked lost|was hiding|sat there all alone]."
    ),
    (
        '"[Hello|Good {part}]," said {hero}. "[Why are you here|Are you all right|What is your'
        ' name]?" "[I do not know anyone here|I am looking for a friend|I was too shy to speak],"'
        " said {friend}."
    ),
    '?"I feel like that too," said {hero}. "[It is hard to be alone|It is not easy to be new]."',
    (
        "{Hero} [shared {his} {food}|offered {fhim} some {food}|showed {fhim} the {place}]. "
        "[They talked until the sun went down.|They played all day.|Soon they were laughing.]"
    ),
    "?They [built a small house of sticks|counted the clouds|told each other stories|flew a kite].",
    (
        "[From that day on|After that|Since then], {hero} and {friend} [were best friends|met every"
        " day|were never lonely again]."
    ),
]

STORM = [
    (
        "{Hero} was [afraid of|scared of] [storms|thunder|the dark]. [When the sky turned black,"
        " {he} hid under {his} blanket.|{He} never told anyone.]"
    ),
    (
        "One {part} a great storm came. The wind [howled|roared] and the rain [fell hard|beat on"
        " the roof]."
    ),
    (
        "[Then|Suddenly] {hero} heard a cry [from the {place}|outside]. It was {friend}, who [was"
        " stuck in the mud|had hurt {fhis} foot|could not find the way home]."
    ),
    (
        "{Hero} was [very afraid|shaking with fear], but {he} [thought of {friend}|took a deep"
        ' breath|knew what to do]. "[I must help|I can do this|I will be brave]," {he} said.'
    ),
    (
        "{He} took {a:thing} and [went out into the rain|ran into the storm|walked through the"
        " wind], step by step."
    ),
    '?"Hold on!" called {hero}. "[I am coming|Do not be afraid|Take my hand]!"',
    (
        "[{He} pulled {friend} free|{He} helped {friend} up], and together they [walked|went] home"
        "[ as the storm grew quiet|, wet but safe|]."
    ),
    (
        '"You are so brave," said {friend}. "I was afraid," said {hero}, "but [I went anyway|you'
        ' needed me]."'
    ),
]

SHARE = [
    (
        "{Hero} had a basket full of {food}. [It smelled wonderful.|{He} had picked everything"
        " {him}self.|]"
    ),
    (
        "{Friend} came by and [looked at the basket|said that {fhe} was hungry]. "
        '"[May I have some|Could you share a little]?" {fhe} asked.'
    ),
    (
        '"No," said {hero}. "[It is all mine|I want to keep it|I may need it later]." {Friend}'
        " [walked away sadly|said nothing and left]."
    ),
    "{Hero} ate and ate until {his} stomach hurt. [But eating alone was no fun.|{He} felt bad.]",
    "?{He} thought about {friend} and [could not sleep|was ashamed].",
    (
        'The next {part}, {hero} [went to find|looked for] {friend}. "[I am sorry|I was wrong],"'
        ' {he} said. "[Please take half|This is for you|Let us eat together]."'
    ),
    (
        "{Friend} [smiled|was very happy]. They [sat under the {tree}|sat by the water] and shared"
        " the {food}, and it [tasted better than ever|was the best meal of the week]."
    ),
]

RACE = [
    "{Hero} [was the fastest of all|could run like the wind] and [liked to say so|told everyone].",
    (
        '"[Nobody can beat me|I am the best]!" {he} [said|boasted]. {Friend}, who was [slow|small]'
        ' but patient, said, "[Let us race to the {place2}|I will race you to the {place2}]."'
    ),
    "Everyone laughed. [But {friend} did not mind.|{Friend} only smiled.]",
    (
        "The race began. {Hero} [ran ahead|was soon far in front]. "
        '"[I have so much time|I can rest a little]," {he} thought, and [lay down under {a:tree}|'
        "stopped to eat {food}]."
    ),
    "?{Friend} kept going, [one step after another|slowly but surely|without a word].",
    (
        "When {hero} [woke up|looked up], {friend} was [almost there|close to the end]. {He} ran as"
        " fast as {he} could, but it was too late. {Friend} had won."
    ),
    (
        '"[Well done|You deserve it]," said {hero} [quietly|after a while]. [{He} never boasted'
        " again.|That day {he} learned something.]"
    ),
]

HELP = [
    (
        "[On the way to|Near] the {place2}, {hero} met {friend}, who [was carrying a heavy load|had"
        " a broken cart|had fallen into a hole]."
    ),
    (
        '"[Please help me|Can you help me|Nobody stops]," said {friend}. {Hero} was [in a'
        " hurry|tired], but {he} [stopped|put down {his} {thing}]."
    ),
    (
        "{Hero} [pushed and pulled|worked hard|found a long stick] until [the job was"
        " done|everything was all right again]. [It took the whole {part}.|]"
    ),
    '?"What can I give you?" asked {friend}. "[Nothing|A smile is enough]," said {hero}.',
    (
        "[Many days later|Some weeks later|In the winter], {hero} [was lost in the snow|had no more"
        " {food}|fell into the river]. [It looked bad.|{He} called for help.]"
    ),
    (
        "[Who came along? It was {friend}!|Then {friend} appeared.] "
        '"[You helped me, and now I help you|I have not forgotten you]," {fhe} said.'
    ),
    (
        "{Friend} [brought {him} home|gave {him} {food} and a warm bed], and they [laughed|talked] "
        "[until late|by the fire]."
    ),
]

MAP = [
    (
        "[In an old box|Inside a dusty book|Under a loose board], {hero} found a map. It showed the"
        " {place2} and a [big red cross|small star|strange mark]."
    ),
    (
        '"A treasure!" [cried|whispered] {hero}. {He} ran to {friend}, and they [packed|took]'
        " {a:thing}, {a:thing2} and some {food}."
    ),
    (
        "They [walked past|went through] the {place}, over a [wooden|stone|narrow] bridge and [up a"
        " steep hill|along the river]."
    ),
    (
        "?[On the way|Halfway], {a:animal} [stood in the way|asked what they were looking for]. "
        '"[Only the patient find it|Look where the {flower} grow]," it said.'
    ),
    (
        "At the [place with the cross|end of the path], they [dug|began to dig]. After [a long"
        " time|an hour], they [hit|found] a small {colour} [chest|box]."
    ),
    (
        "Inside there was [no gold, only {a:thing3} and a note. The note said|a letter. It said]:"
        ' "[The real treasure is the friend who came with you|Share what you find|Whoever finds'
        ' this is brave]."'
    ),
    (
        "{Hero} and {friend} [looked at each other and laughed|smiled]. [It had been a wonderful"
        " day.|They kept the map for ever.]"
    ),
]

GARDEN = [
    (
        "{Hero} [found|was given] a [tiny|strange] seed. {He} [planted it behind the house|put it"
        " in the ground] and [gave it water every day|waited]."
    ),
    (
        "[Day after day|For {few} days] nothing happened. "
        '"[It will never grow|You are wasting your time]," said {friend}.'
    ),
    (
        '[But {hero} did not give up.|"Good things take time," said {hero}.] {He} [sang to the'
        " seed|kept the weeds away|watered it every {part}]."
    ),
    (
        "Then, one {weather} {part}, there was a small green [leaf|shoot]. {Hero} [danced|was so"
        " happy]."
    ),
    "?It grew and grew, [higher than the fence|as high as the roof|until birds sat in it].",
    (
        "By [summer|autumn] it was covered with {colour} flowers, and [everyone came to see it|the"
        " whole {place} smelled sweet]."
    ),
    (
        '"[I was wrong|How did you do it]?" [said|asked] {friend}. "[I only waited|With water and'
        ' patience]," said {hero}, and gave {fhim} [a flower|some seeds].'
    ),
]

LEARN = [
    (
        "{Hero} wanted to learn to {sport}. [All the others could do it.|{He} dreamed about it"
        " every night.]"
    ),
    (
        "{He} tried, but [it went wrong|{he} could not do it]. [{He} tried again, and it went wrong"
        " again.|The others laughed.]"
    ),
    (
        '"I will never {sport}," {he} [said sadly|cried]. {He} sat down [by the {place}|under'
        " {a:tree}]."
    ),
    (
        '{Friend} sat down beside {him}. "[When I was small|Long ago], I could not {sport} either,"'
        ' {fhe} said. "[I fell down a hundred times|I practised every day]."'
    ),
    '?"Really?" asked {hero}. "Really," said {friend}. "[Let me show you|Try it slowly]."',
    (
        "So {hero} practised [every {part}|for {few} weeks]. [Slowly|Little by little] it [got"
        " better|went well]."
    ),
    (
        "[At last|Then one {day}], {he} did it! Everyone [clapped|cheered]. {Friend} [smiled|was"
        " the proudest of all]."
    ),
]

MISCHIEF = [
    "{Hero} liked to [play tricks|make jokes]. [Most of them were funny.|Nobody was safe.]",
    "One {part} {he} hid {friend}'s {thing} [in the {place2}|in a tree|under a bucket] and waited.",
    (
        "{Friend} looked for it [all day|everywhere] and [began to cry|became very sad]. "
        '"[It was my grandfather\'s|I need it for my work]," {fhe} said.'
    ),
    (
        "{Hero} [stopped laughing|felt a lump in {his} throat]. [The joke was not funny any"
        " more.|{He} had not wanted that.]"
    ),
    (
        '{He} [brought the {thing} back|fetched the {thing}]. "[I took it|It was me]," {he} said.'
        ' "I am sorry."'
    ),
    "?{Friend} was quiet for a long time.",
    (
        '"[Thank you for telling me the truth|It takes courage to say that]," said {friend}. They'
        " [shook hands|had {food} together], and {hero} [only played kind tricks after that|never"
        " hid anything again]."
    ),
]

BIRTHDAY = [
    (
        "It was {hero}'s birthday, but nobody [said a word|seemed to remember]. [Even {friend} had"
        " no time.|]"
    ),
    (
        "{Hero} walked to the {place} [alone|with {his} head down]. "
        '"[They have all forgotten me|Nobody cares]," {he} thought.'
    ),
    (
        "There was a light in the [barn|window|distance], and a strange {noise}. {Hero} [opened the"
        " door|came closer] very slowly."
    ),
    (
        '"Surprise!" [shouted everyone|called many voices]. There were {colour} [lamps|ribbons], a'
        " huge cake and {a:thing} [wrapped in paper|with a bow]."
    ),
    '?"[We planned it for weeks|It was so hard to keep the secret]," said {friend}.',
    (
        "{Hero} [did not know what to say|laughed and cried at once]. They [danced|sang] [until the"
        " stars came out|late into the night]."
    ),
]

HOME = [
    (
        "{Hero} followed {a:colour} butterfly deep into the {place2}. [When {he} looked around,"
        " everything was strange.|Soon {he} did not know where {he} was.]"
    ),
    (
        "[It was getting dark|The shadows grew long] and {hero} was [cold|afraid|hungry]. "
        '"[How will I get home|Which way is home]?" {he} asked.'
    ),
    (
        '{Friend} [came down from {a:tree}|looked out of a hole]. "[Follow the river|Look at the'
        ' stars|Listen for the bells]," {fhe} said. "[It always leads home|Then you will find the'
        ' way]."'
    ),
    (
        "{Hero} [walked and walked|went on bravely], past [the old {place}|{a:tree}] and"
        " [over|around] a hill."
    ),
    "?Once {he} fell, but {he} [got up again|went on].",
    (
        "At last {he} saw [a light in the window|the smoke of {his} own house]. {His} mother [ran"
        " out and held {him}|was waiting at the door] with [warm soup|a blanket]."
    ),
    (
        "That night {hero} [slept well|dreamed of the stars], and {he} [always remembered|never"
        " forgot] {friend}."
    ),
]

WORK = [
    (
        "{Friend} was {a:job} and had too much work. [People waited in a long line.|{fHe} was tired"
        " every day.]"
    ),
    (
        '"[I can help|Let me try]," said {hero}. "You are too [small|young]," said {friend}, but'
        " {hero} [did not go away|asked again]."
    ),
    (
        "On {day} {hero} [swept the floor|carried the water|made a mistake and tried again]. On"
        " {day2} {he} [learned to use {a:thing}|did it a little better]."
    ),
    "?[Nobody noticed at first.|The work was hard.] {Hero} kept at it.",
    (
        "Then {friend} became ill. {Hero} [opened the shop|did all the work] [alone|with {his} own"
        " hands], and [everyone was pleased|nobody had to wait]."
    ),
    (
        '"[I could not do it without you|You are a real {job} now]," said {friend} when {fhe} was'
        " well again. [They worked side by side from then on.|{Hero} had never been so proud.]"
    ),
]

PLOTS = [
    LOST, FRIEND, STORM, SHARE, RACE, HELP, MAP, GARDEN, LEARN, MISCHIEF, BIRTHDAY, HOME, WORK,
]  # fmt: skip

MORALS = {
    0: "[It is good to have help|A friend makes every search shorter]",
    1: "[A kind word can start a friendship|Everyone needs a friend]",
    2: (
        "[Being brave means going on when you are afraid|Courage is helping even when you are"
        " scared]"
    ),
    3: "[Things are better when they are shared|Sharing makes two people happy]",
    4: "[Slow and steady wins the race|It is not wise to be too proud]",
    5: "[Help others, and they will help you|A good deed is never lost]",
    6: "[Friends are the best treasure|The best treasure is not gold]",
    7: "[Good things take time|Patience is rewarded]",
    8: "[Nobody is born knowing how|Practice makes things easy]",
    9: "[It is always right to tell the truth|A joke should not hurt anyone]",
    10: "[Your friends do not forget you|Friends are often closer than you think]",
    11: "[There is always a way home|Stay calm when you are lost]",
    12: "[Work done with care is never small|Nobody is too small to help]",
}
