"""Word lists that the templates draw from."""


def split(text):
    return [" ".join(word.split()) for word in text.split(",") if word.strip()]


GIRLS = split("""
Mia, Anna, Lucy, Rosa, Clara, Emma, Nora, Ella, Ruby, Lily, Grace, Alice, Maya, Zoe, Ivy, Hana,
Sara, Leila, Nina, Eva, Julia, Molly, Daisy, Amy, Kate, Jane, Rose, Tara, Priya, Mei, Aiko, Fatima,
Sofia, Elena, Olga, Ines, Carmen, Heidi, Freya, Greta, Bella, Dora, Edith, Flora, Hazel, Iris, Joan,
Kira, Lola, Mary, Nell, Olive, Penny, Poppy, Ruth, Sally, Tess, Una, Vera, Wendy, Yara, Zara
""")
BOYS = split("""
Tom, Ben, Sam, Max, Leo, Jack, Noah, Finn, Oscar, Hugo, Adam, Luke, Omar, Ravi, Kenji, Ali, Ivan,
Pedro, Carlos, Marco, Paul, Peter, John, James, Harry, George, Arthur, Felix, Theo, Jonah, Daniel,
David, Simon, Mark, Eric, Karl, Lars, Nils, Otto, Rex, Toby, Will, Zack, Amir, Bruno, Cyril, Dan,
Elias, Frank, Gus, Henry, Isaac, Jasper, Kofi, Liam, Milo, Ned, Owen, Percy, Quinn, Robin, Sid
""")

POOLS = {
    "girl": GIRLS,
    "boy": BOYS,
    "name": GIRLS + BOYS,
    "animal": split("""
        fox, rabbit, bear, mouse, cat, dog, owl, frog, duck, hedgehog, squirrel, deer, wolf, lion,
        elephant, monkey, turtle, penguin, otter, badger, goat, sheep, horse, pig, hen, sparrow,
        crow,
        bee, ant, snail, beaver, mole, robin, goose, donkey, tiger, panda, koala, seal, dolphin,
        camel, parrot, swan, bat, crab, whale, kitten, puppy, lamb, dragon
        """),
    "nature": split("""
        kind, brave, clever, shy, quiet, cheerful, curious, careful, gentle, proud, lazy, busy,
        patient, stubborn, friendly, honest, playful, dreamy, sleepy, thoughtful, lively, polite
        """),
    "size": split("little, small, tiny, big, tall, young, old, round, thin"),
    "place": split("""
        forest, village, valley, garden, meadow, farm, harbour, castle, island, mountain, town,
        park,
        orchard, cave, beach, desert, lighthouse, mill, lake, river, wood, field, market, school,
        library, hill, bridge, windmill, barn, marsh
        """),
    "home": split("""
        forest, village, valley, garden, meadow, castle, town, wood, cave, barn, cottage,
        lighthouse,
        house by the sea, house on a hill, small town, old mill, warm house, green valley, quiet
        street,
        house near the river, tree house, harbour town, windmill, city
        """),
    "look": split("""
        little, small, tiny, tall, young, kind, brave, clever, shy, quiet, cheerful, curious,
        careful,
        gentle, proud, lazy, busy, patient, stubborn, friendly, honest, playful, lively, polite
        """),
    "thing": split("""
        key, ball, kite, lantern, drum, hat, boat, bell, book, map, coin, ring, scarf, basket,
        clock,
        mirror, flute, box, cup, button, spoon, feather, shell, stone, pencil, umbrella, whistle,
        blanket, ladder, rope, compass, jar, bucket, wagon, doll, marble, ribbon, candle, teapot,
        coat
        """),
    "colour": split("""
        red, blue, green, yellow, white, black, brown, orange, purple, pink, grey, golden, silver
        """),
    "food": split("""
        bread, cheese, apples, pears, soup, honey, berries, nuts, cake, carrots, rice, beans, eggs,
        plums, cherries, porridge, pancakes, potatoes, cookies, grapes, oranges, jam, pie, noodles
        """),
    "weather": split("""
        sunny, rainy, windy, cloudy, snowy, foggy, stormy, warm, cold, bright, frosty, mild
        """),
    "season": split("spring, summer, autumn, winter"),
    "part": split("morning, afternoon, evening"),
    "day": split("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"),
    "month": split("""
        January, February, March, April, May, June, July, August, September, October, November,
        December
        """),
    "flower": split("roses, daisies, tulips, poppies, sunflowers, lilies, violets, bluebells"),
    "tree": split("oak, apple tree, willow, pine, birch, chestnut tree, maple, cherry tree, elm"),
    "job": split("""
        baker, farmer, teacher, fisherman, gardener, doctor, painter, carpenter, sailor, tailor,
        miller, shepherd, librarian, blacksmith, postman, cook, clockmaker, musician
        """),
    "sport": split(
        "swim, run, climb, dance, sing, read, paint, skate, ride, whistle, juggle, cook"
    ),
    "feeling": split("happy, sad, tired, proud, worried, lonely, excited, afraid, calm, hungry"),
    "few": split("two, three, four, five, six, seven, eight, nine, ten"),
    "town": split("""
        Oakford, Millbrook, Ashby, Redhill, Seaton, Westbridge, Fernley, Greystone, Larkfield,
        Brookside, Highmoor, Stonebay, Willowdale, Marlow, Eastwick, Pinehurst
        """),
    "noise": split("whisper, splash, thump, creak, rustle, squeak, tap, hum, rattle, sigh"),
}

# Categories for "name three ...": singular name, then members.
CATEGORIES = {
    "animals": split("a fox, a horse, an owl, a whale, a frog, a lion, a bear, a rabbit, a snake"),
    "birds": split("a robin, an owl, a swan, an eagle, a sparrow, a penguin, a parrot, a crow"),
    "farm animals": split("a cow, a pig, a sheep, a hen, a goat, a horse, a duck"),
    "sea animals": split("a whale, a dolphin, a crab, a seal, a shark, an octopus, a starfish"),
    "insects": split("a bee, an ant, a butterfly, a beetle, a fly, a moth, a grasshopper"),
    "pets": split("a cat, a dog, a hamster, a rabbit, a goldfish, a parrot"),
    "colours": split("red, blue, green, yellow, orange, purple, pink, brown, white, black"),
    "fruits": split("apples, bananas, pears, oranges, grapes, cherries, plums, strawberries"),
    "vegetables": split("carrots, potatoes, peas, onions, cabbages, beans, spinach, tomatoes"),
    "drinks": split("water, milk, tea, coffee, orange juice, lemonade"),
    "trees": split("the oak, the pine, the birch, the willow, the maple, the elm"),
    "flowers": split("roses, daisies, tulips, lilies, poppies, sunflowers, violets"),
    "countries": split("France, Japan, Brazil, Kenya, Canada, Spain, India, Egypt, Norway, Peru"),
    "cities": split("Paris, Tokyo, London, Rome, Cairo, Madrid, Berlin, Lima, Oslo, Nairobi"),
    "planets": split("Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, Neptune"),
    "sports": split("football, tennis, swimming, running, cycling, hockey, skiing, rowing"),
    "games": split("chess, hide and seek, cards, dominoes, tag, hopscotch"),
    "musical instruments": split(
        "the piano, the violin, the drum, the flute, the guitar, the harp"
    ),
    "clothes": split("a shirt, a coat, a hat, a scarf, trousers, socks, gloves, a dress"),
    "tools": split("a hammer, a saw, a spade, a screwdriver, a rake, an axe"),
    "vehicles": split("a car, a bus, a train, a bicycle, a boat, a plane, a lorry, a tram"),
    "jobs": split("a teacher, a doctor, a baker, a farmer, a nurse, a pilot, a cook"),
    "shapes": split("a circle, a square, a triangle, a rectangle, a star, a hexagon"),
    "rooms in a house": split("the kitchen, the bedroom, the bathroom, the hall, the living room"),
    "days of the week": split("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"),
    "months": split("January, March, May, July, October, December, April, June"),
    "seasons": split("spring, summer, autumn, winter"),
    "parts of the body": split("the head, the arm, the hand, the knee, the foot, the nose"),
    "oceans": split("the Pacific, the Atlantic, the Indian Ocean, the Arctic, the Southern Ocean"),
    "metals": split("iron, gold, silver, copper, tin, lead"),
    "things in a kitchen": split("a spoon, a pan, a kettle, an oven, a plate, a fridge"),
    "things that are red": split("a tomato, a strawberry, a cherry, a poppy, a fire engine"),
    "things that are round": split("a ball, a coin, the Moon, a wheel, an orange"),
    "things that fly": split("a bird, a bee, a plane, a kite, a butterfly, a bat"),
}
