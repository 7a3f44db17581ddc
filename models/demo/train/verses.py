"""Lines of poems, and steps of instructions."""

TOPIC_LINES = {
    "rain": [
        "The rain falls soft upon the street,\nit taps and sings beneath our feet.",
        "The clouds are grey, the drops are small,\nthey dance along the garden wall.",
    ],
    "the sun": ["The sun climbs up above the hill\nand warms the stones, so calm and still."],
    "the moon": ["The moon looks down with silver light\nand keeps us company at night."],
    "the sea": ["The sea rolls in, the sea rolls out,\nthe gulls fly high and turn about."],
    "snow": ["The snow lies white on every tree,\nas quiet as the world can be."],
    "the wind": ["The wind runs laughing through the trees\nand tells its secrets to the bees."],
    "spring": ["The spring has come with leaves of green,\nthe brightest days we ever have seen."],
    "summer": ["The summer days are long and bright,\nthe fields are full of golden light."],
    "autumn": ["The autumn leaves are red and brown,\nthey turn and slowly tumble down."],
    "winter": ["The winter night is cold and deep,\nthe hills and woods are fast asleep."],
    "a cat": ["The cat lies curled up in a chair\nand does not have a single care."],
    "a dog": ["The dog runs out to greet the day,\nhe only wants to run and play."],
    "a bird": ["A bird sings in the apple tree,\nit sings for you, it sings for me."],
    "a tree": ["The tree stands tall beside the stream,\nits branches move as in a dream."],
    "a river": ["The river runs down to the sea,\nit never stops, so wild and free."],
    "the stars": ["The stars come out when day is done,\nI try to count them one by one."],
    "a flower": ["A flower opens to the sun,\nits little life has just begun."],
    "a friend": ["A friend is someone who will stay\nand walk beside you all the way."],
    "the night": ["The night comes softly, dark and deep,\nand sings the weary world to sleep."],
    "the morning": ["The morning wakes with golden light\nand slowly folds away the night."],
    "home": ["A lamp is burning in the hall,\nmy home is warm, my home is small."],
    "love": ["Love is a light that does not end,\nit finds a stranger, makes a friend."],
    "a mouse": ["A mouse came out to look for bread\nand found a piece of cheese instead."],
    "a garden": ["The garden sleeps in morning dew,\nwith flowers white and flowers blue."],
}
COUPLETS = [
    "I stop to listen, I stop to see\nhow good and kind the world can be.",
    "And all is quiet, all is well,\nwith more to see than I can tell.",
    "I sit and watch it from my door\nand could not ask for any more.",
    "So take my hand and walk with me,\nthere is so much for us to see.",
    "It makes me happy, makes me sing,\nI would not change a single thing.",
    "The day is gone, the light is low,\nbut I am happy, this I know.",
    "And when I close my eyes to dream,\nI see it in a silver gleam.",
    "A little song, a little rhyme,\nto hold a little bit of time.",
    "Oh stay a while and do not go,\nthe world is better, taking slow.",
    "And though tomorrow may be grey,\nI keep the light of this one day.",
]
RECIPES = {
    "make tea": (
        "Boil some water.|Put a tea bag in a cup.|Pour the hot water over it.|Wait a few minutes.|"
        "Take out the bag and add milk if you like."
    ),
    "make a sandwich": (
        "Take two slices of bread.|Spread butter on them.|Add cheese or tomato.|Put the slices "
        "together and enjoy it."
    ),
    "plant a seed": (
        "Fill a pot with soil.|Make a small hole.|Put the seed in and cover it.|Water it.|Put the "
        "pot in the light."
    ),
    "boil an egg": (
        "Boil some water in a pan.|Lower the egg in with a spoon.|Wait about eight minutes.|Cool"
        " the egg in cold water."
    ),
    "wash my hands": (
        "Wet your hands.|Use soap.|Rub for twenty seconds.|Rinse with clean water.|Dry them."
    ),
    "make soup": (
        "Cut some vegetables.|Cook them in water until they are soft.|Add salt.|Serve it hot."
    ),
    "build a snowman": (
        "Roll a big ball of snow.|Roll two smaller balls.|Put them on top of each other.|Add "
        "stones for eyes and a carrot for a nose."
    ),
    "brush my teeth": (
        "Put some toothpaste on the brush.|Brush for two minutes.|Spit and rinse your mouth."
    ),
    "fly a kite": (
        "Find an open place with wind.|Hold the kite up.|Let the string out slowly.|Pull the string"
        " to keep it up."
    ),
    "make a fruit salad": (
        "Wash the fruit.|Cut it into small pieces.|Put it in a bowl.|Add some juice and mix."
    ),
    "fall asleep": (
        "Turn off bright lights.|Put away your phone.|Breathe slowly.|Think of something calm."
    ),
    "make a friend": (
        "Smile and say hello.|Ask a question and listen.|Be kind.|Find something to do together."
    ),
    "ride a bicycle": (
        "Put on a helmet.|Sit on the seat and hold the bars.|Push off and turn the pedals.|Look "
        "ahead and keep moving."
    ),
    "write a letter": (
        "Write the date at the top.|Begin with a greeting.|Say what you want to say.|End with "
        "your name."
    ),
}
