"""Facts in tables, one a field; `questions.py` turns them into sentences."""


def rows(text, sep=";"):
    """Rows ended by a newline or `sep`, fields split at '='."""
    lines = text.replace("\n", sep).split(sep)
    return [tuple(field.strip() for field in line.split("=")) for line in lines if line.strip()]


CAPITALS = rows("""
France=Paris; Germany=Berlin; Spain=Madrid; Italy=Rome; Portugal=Lisbon; England=London
Scotland=Edinburgh; Wales=Cardiff; Ireland=Dublin; Belgium=Brussels; the Netherlands=Amsterdam
Denmark=Copenhagen; Norway=Oslo; Sweden=Stockholm; Finland=Helsinki; Iceland=Reykjavik
Poland=Warsaw; Austria=Vienna; Hungary=Budapest; Greece=Athens; Turkey=Ankara; Russia=Moscow
Ukraine=Kyiv; Romania=Bucharest; Bulgaria=Sofia; Serbia=Belgrade; Croatia=Zagreb; Estonia=Tallinn
Latvia=Riga; Lithuania=Vilnius; Switzerland=Bern; Slovakia=Bratislava; Slovenia=Ljubljana
the Czech Republic=Prague; China=Beijing; Japan=Tokyo; South Korea=Seoul; India=New Delhi
Thailand=Bangkok; Vietnam=Hanoi; Indonesia=Jakarta; the Philippines=Manila; Nepal=Kathmandu
Pakistan=Islamabad; Bangladesh=Dhaka; Mongolia=Ulaanbaatar; Iran=Tehran; Iraq=Baghdad
Jordan=Amman; Lebanon=Beirut; Saudi Arabia=Riyadh; Egypt=Cairo; Morocco=Rabat; Algeria=Algiers
Tunisia=Tunis; Kenya=Nairobi; Ethiopia=Addis Ababa; Ghana=Accra; Nigeria=Abuja; Senegal=Dakar
Uganda=Kampala; Angola=Luanda; Zambia=Lusaka; Canada=Ottawa; Mexico=Mexico City; Cuba=Havana
the United States=Washington; Brazil=Brasilia; Argentina=Buenos Aires; Chile=Santiago; Peru=Lima
Colombia=Bogota; Ecuador=Quito; Uruguay=Montevideo; Venezuela=Caracas; Paraguay=Asuncion
Australia=Canberra; New Zealand=Wellington; Jamaica=Kingston; Fiji=Suva; Malta=Valletta
""")

# animal = plural = class = home = food = sound (or -) = legs = young = something true
ANIMALS = rows("""
fox=foxes=mammal=woods and fields=mice, birds and berries=barks=four=cub=has a long bushy tail
dog=dogs=mammal=homes with people=meat and dog food=barks=four=puppy=has a very good nose
cat=cats=mammal=homes with people=fish and meat=meows=four=kitten=can see well in dim light
cow=cows=mammal=farms=grass and hay=moos=four=calf=gives us milk
horse=horses=mammal=farms and stables=grass and oats=neighs=four=foal=can sleep standing up
sheep=sheep=mammal=farms and hills=grass=bleats=four=lamb=gives us wool
pig=pigs=mammal=farms=roots, grain and scraps=grunts=four=piglet=rolls in mud to keep cool
goat=goats=mammal=farms and mountains=leaves and grass=bleats=four=kid=climbs very well
hen=hens=bird=farms=seeds and worms=clucks=two=chick=lays eggs
duck=ducks=bird=ponds and rivers=water plants and insects=quacks=two=duckling=has webbed feet
goose=geese=bird=lakes and farms=grass and grain=honks=two=gosling=flies in a V shape
owl=owls=bird=woods and barns=mice and small birds=hoots=two=owlet=hunts at night
robin=robins=bird=gardens and woods=worms and insects=sings=two=chick=has a red breast
eagle=eagles=bird=mountains=fish and small animals=screams=two=eaglet=has very sharp eyes
penguin=penguins=bird=the cold south=fish=brays=two=chick=cannot fly but swims very well
parrot=parrots=bird=warm forests=fruit and seeds=squawks=two=chick=can copy human words
swan=swans=bird=lakes and rivers=water plants=hisses=two=cygnet=has a long curved neck
crow=crows=bird=fields and towns=seeds, insects and scraps=caws=two=chick=is very clever
sparrow=sparrows=bird=towns and gardens=seeds and insects=chirps=two=chick=is small and brown
lion=lions=mammal=grassland in Africa=meat=roars=four=cub=lives in a group called a pride
tiger=tigers=mammal=forests in Asia=meat=roars=four=cub=has orange fur with black stripes
elephant=elephants=mammal=Africa and Asia=leaves, grass and fruit=trumpets=four=calf=has a long trunk
giraffe=giraffes=mammal=grassland in Africa=leaves=hums=four=calf=is the tallest animal on land
zebra=zebras=mammal=grassland in Africa=grass=barks=four=foal=has black and white stripes
monkey=monkeys=mammal=warm forests=fruit, leaves and insects=chatters=four=infant=is good at climbing
bear=bears=mammal=forests and mountains=berries, fish and roots=growls=four=cub=sleeps through winter
wolf=wolves=mammal=forests and mountains=meat=howls=four=cub=lives in a group called a pack
rabbit=rabbits=mammal=fields and burrows=grass and carrots=squeaks=four=kitten=has long ears
mouse=mice=mammal=fields and houses=seeds and grain=squeaks=four=pup=is very small and quick
hedgehog=hedgehogs=mammal=gardens and hedges=worms and slugs=snuffles=four=hoglet=has sharp spines
squirrel=squirrels=mammal=woods and parks=nuts and seeds=chatters=four=kitten=hides nuts for the winter
deer=deer=mammal=forests=leaves and grass=bellows=four=fawn=runs very fast
camel=camels=mammal=deserts=dry plants and grass=grunts=four=calf=can live many days without water
kangaroo=kangaroos=mammal=Australia=grass=grunts=four=joey=carries its young in a pouch
koala=koalas=mammal=Australia=eucalyptus leaves=grunts=four=joey=sleeps most of the day
panda=pandas=mammal=forests in China=bamboo=bleats=four=cub=has black and white fur
bat=bats=mammal=caves and old roofs=insects and fruit=squeaks=two=pup=is a mammal that can fly
whale=whales=mammal=the sea=small sea animals and fish=sings=no=calf=breathes air at the surface
dolphin=dolphins=mammal=the sea=fish=clicks and whistles=no=calf=is clever and playful
seal=seals=mammal=cold seas and coasts=fish=barks=no=pup=has flippers for swimming
shark=sharks=fish=the sea=fish and seals=-=no=pup=has many rows of teeth
salmon=salmon=fish=rivers and the sea=insects and small fish=-=no=fry=swims up rivers to lay eggs
frog=frogs=amphibian=ponds and wet places=flies and worms=croaks=four=tadpole=can jump a long way
snake=snakes=reptile=grass, deserts and forests=mice and eggs=hisses=no=snakelet=smells with its tongue
turtle=turtles=reptile=the sea and ponds=plants and small animals=-=four=hatchling=has a hard shell
crocodile=crocodiles=reptile=warm rivers=fish and meat=hisses=four=hatchling=has strong jaws
bee=bees=insect=hives and gardens=nectar and pollen=buzzes=six=larva=makes honey
ant=ants=insect=nests in the ground=seeds and insects=-=six=larva=can carry things bigger than itself
butterfly=butterflies=insect=gardens and meadows=nectar=-=six=caterpillar=has bright wings
spider=spiders=arachnid=webs and dark corners=flies and other insects=-=eight=spiderling=spins a web
crab=crabs=crustacean=the sea and the shore=plants and small animals=-=ten=larva=walks sideways
octopus=octopuses=mollusc=the sea=crabs and shellfish=-=no=larva=has eight arms
snail=snails=mollusc=gardens=leaves=-=no=hatchling=carries its shell on its back
""")

COLOURS_OF = rows("""
the sky=blue; grass=green; snow=white; coal=black; blood=red; the Sun=yellow; a banana=yellow
a lemon=yellow; a carrot=orange; a tomato=red; a strawberry=red; an orange=orange; milk=white
chocolate=brown; a plum=purple; the sea=blue; a leaf=green; a frog=green; an elephant=grey
a crow=black; a polar bear=white; a flamingo=pink; a pumpkin=orange; a cloud=white; mud=brown
the night sky=black; gold=yellow; silver=grey; a cucumber=green; a cherry=red; sand=yellow
a fire engine=red; a daffodil=yellow; spinach=green; salt=white; a swan=white; tea=brown
""")

OPPOSITES = rows("""
hot=cold; big=small; tall=short; fast=slow; happy=sad; up=down; left=right; day=night; wet=dry
open=closed; full=empty; hard=soft; heavy=light; old=young; rich=poor; strong=weak; early=late
loud=quiet; clean=dirty; near=far; high=low; long=short; good=bad; light=dark; in=out; on=off
easy=difficult; brave=afraid; sweet=sour; thick=thin; deep=shallow; wide=narrow; first=last
true=false; win=lose; push=pull; buy=sell; give=take; start=finish; love=hate; laugh=cry
kind=cruel; safe=dangerous; smooth=rough; sharp=blunt; always=never; before=after; inside=outside
black=white; summer=winter; morning=evening; north=south; east=west; friend=enemy; question=answer
""")

DEFINITIONS = rows("""
a teacher=a person who helps others to learn; a doctor=a person who helps sick people to get well
a baker=a person who makes bread and cakes; a farmer=a person who grows food and keeps animals
a pilot=a person who flies a plane; a carpenter=a person who makes things from wood
a nurse=a person who cares for sick people; a sailor=a person who works on a ship
a painter=a person who makes pictures or paints walls; a poet=a person who writes poems
an island=a piece of land with water all around it
a river=a long stream of water that runs to the sea
a lake=a large area of water with land around it; a mountain=a very high hill of rock
a valley=low land between hills; a desert=a very dry place where few plants grow
a forest=a large place with many trees; a volcano=a mountain that can throw out hot melted rock
a cave=a hollow place in the side of a hill; a beach=a strip of sand or stones beside the sea
a cloud=many tiny drops of water floating in the sky; rain=water that falls from clouds in drops
snow=soft white flakes of ice that fall from the sky; ice=water that is frozen hard
fog=a cloud that lies close to the ground; wind=air that is moving
lightning=a flash of electricity in the sky
thunder=the loud sound that lightning makes; a rainbow=a curve of colours made by sun and rain
a star=a huge ball of hot gas far away in space; the Sun=the star that gives us light and heat
the Moon=a ball of rock that travels around the Earth
a planet=a large round body that goes around a star
a comet=a ball of ice and dust with a long bright tail
gravity=the force that pulls things to the ground
a clock=a machine that shows the time; a map=a drawing that shows where places are
a compass=a tool that shows which way is north; a telescope=a tool for looking at things far away
a microscope=a tool for looking at very small things; a bridge=a way built over water or a road
a lighthouse=a tower with a bright light that guides ships
a library=a place where books are kept and lent
a school=a place where people learn; a hospital=a place where sick people are cared for
a museum=a place that shows old or interesting things
a market=a place where people buy and sell things
a farm=land where food is grown and animals are kept
a castle=a large strong building with thick walls
a book=pages of writing held together in a cover
a poem=a piece of writing with rhythm and often rhyme
a story=a telling of things that happened or were made up; a song=words and music made to be sung
a letter=a message written on paper; a word=a sound or group of letters that means something
a sentence=a group of words that says something complete
a dictionary=a book that tells what words mean
a seed=a small thing from which a plant grows; a root=the part of a plant under the ground
a leaf=a flat green part of a plant; a flower=the bright part of a plant that makes seeds
a tree=a tall plant with a trunk made of wood; honey=a sweet food that bees make from nectar
bread=a food made by baking flour and water; cheese=a food made from milk
butter=a soft yellow food made from cream; soup=a hot liquid food made with vegetables or meat
a mammal=an animal that feeds its young with milk; a bird=an animal with feathers and two wings
a fish=an animal that lives in water and breathes with gills; an insect=a small animal with six legs
a reptile=an animal with dry scaly skin; an amphibian=an animal that lives in water and on land
a computer=a machine that works with information
the internet=many computers joined together around the world
a program=a list of steps that a computer follows; a robot=a machine that can do jobs by itself
a language model=a program that has learned to write by guessing the next word
a server=a computer that answers requests from other computers
a token=a small piece of text, often a word
a friend=a person you know well and like; courage=doing the right thing even when you are afraid
patience=waiting calmly for something; kindness=helping others and thinking of how they feel
a secret=something that only a few people know
a dream=pictures and stories in your mind while you sleep
a promise=saying that you will surely do something; a triangle=a shape with three sides
a square=a shape with four equal sides; a circle=a round shape with no corners
a shadow=a dark shape made when something blocks the light
a mirror=a smooth glass in which you see yourself
a wheel=a round thing that turns and helps vehicles to move
a boat=a thing that carries people over water
love=a deep feeling of care for someone; happiness=the feeling that life is good
music=sound made to please the ear
a GPU=a chip that does many sums at the same time; a CPU=the chip that runs a computer's programs
Rust=a programming language that is fast and safe
Python=a programming language that is easy to read
an LLM=a large language model, a program that writes text
a chatbot=a program that talks with people
time=what a clock measures; water=a clear liquid that all living things need
fire=the light and heat of something burning
air=what we breathe, a mix of gases; light=what lets us see
sleep=the rest of body and mind at night
a train=a row of carriages that runs on rails
a bicycle=a thing with two wheels that you ride with your feet
""")

WHY = rows("""
do birds sing=to call a mate and to tell other birds that this place is theirs
do birds fly south=to find food and warmer weather in the winter
is the sky blue=because air scatters blue light from the Sun more than the other colours
is the sea salty=because rivers carry salt from the rocks into the sea
is grass green=because it has a green substance that catches sunlight
do leaves fall=because trees save water and energy in the cold months
do leaves change colour=because the green substance in them breaks down in autumn
does it rain=because water in the clouds gathers into drops that are too heavy to float
does it snow=because the air is so cold that the water in the clouds freezes
do we sleep=so that our bodies can rest and our minds can sort what we learned
do we eat=because food gives our bodies energy and helps us to grow
do we drink water=because our bodies need water to work
do we breathe=because our bodies need the oxygen in the air
do we dream=because our minds stay busy while we sleep, though nobody is quite sure
do we laugh=because something is funny, and because it brings us close to others
do we cry=because strong feelings can bring tears, and tears also keep our eyes clean
do cats purr=mostly because they are happy and calm
do cats have whiskers=to feel what is near them in the dark
do dogs bark=to warn others, to ask for something or to say hello
do dogs wag their tails=to show how they feel, and often that they are happy
do bees make honey=to have food for the winter
do bees like flowers=because flowers give them nectar and pollen
do bears sleep in winter=because there is little food in the cold months
do fish have gills=so that they can breathe under water
do ducks have webbed feet=so that they can swim well
do owls hunt at night=because they see and hear very well in the dark
do zebras have stripes=perhaps to confuse flies and lions
do giraffes have long necks=so that they can reach leaves high in the trees
do camels have humps=to store fat for long trips without food
do spiders make webs=to catch insects for food
do squirrels hide nuts=so that they have food in the winter
do snakes shed their skin=because they grow and the old skin gets too small
do plants need light=because they use it to make their food
do plants need water=because water carries food through them and keeps them firm
do flowers smell sweet=to bring bees and other insects to them
do trees have roots=to hold them in the ground and to drink water
does the Moon shine=because it reflects the light of the Sun
does the Moon change shape=because we see different parts of its bright side as it moves
do stars twinkle=because their light is bent by the moving air
does the Sun rise in the east=because the Earth turns towards the east
do we have night and day=because the Earth turns around once every day
do we have seasons=because the Earth is tilted as it goes around the Sun
does ice float=because ice is lighter than the same amount of water
does ice melt=because heat turns it back into water
does wood float=because it is lighter than water
do boats float=because they push aside water that weighs as much as they do
do things fall down=because gravity pulls them to the ground
do we have shadows=because our bodies block the light
do we wash our hands=to remove dirt and germs
do we brush our teeth=to keep them clean and strong
do we wear coats=to keep warm in cold weather
do people tell stories=to share what they know and to enjoy time together
do people keep pets=because animals are good company
do people read books=to learn new things and to enjoy good stories
do people write letters=to send their thoughts to someone far away
do we say thank you=to show that we are glad about what someone did
do we say sorry=to show that we are sad about a mistake and want to make it right
is exercise good=because it makes the body strong and the mind calm
is sharing good=because it makes others happy and builds friendship
is the Sun hot=because it makes energy deep inside by joining tiny particles
is fire hot=because burning sets energy free
is it cold in winter=because the days are short and the Sun is low in the sky
is it warm in summer=because the days are long and the Sun is high in the sky
does thunder come after lightning=because light travels faster than sound
does metal feel cold=because it carries heat away from your hand
does bread rise=because yeast fills the dough with tiny bubbles
does popcorn pop=because the water inside it turns to steam and bursts the shell
do volcanoes erupt=because hot melted rock pushes up from inside the Earth
do we have bones=to hold up our bodies and to protect what is inside
do hearts beat=to push blood around the body
""")

PLANETS = rows("""
Mercury=the closest planet to the Sun=first; Venus=the hottest planet=second
Earth=the planet that we live on=third; Mars=the red planet=fourth
Jupiter=the largest planet=fifth; Saturn=the planet with bright rings=sixth
Uranus=a cold planet that spins on its side=seventh; Neptune=the planet farthest from the Sun=eighth
""")
