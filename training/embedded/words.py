"""The vocabulary of the corpus: plain lists and tables, no grammar."""

from __future__ import annotations

from typing import Final

GIRLS: Final = (
    "Mia",
    "Lily",
    "Anna",
    "Ruby",
    "Nora",
    "Ella",
    "Zoe",
    "Ivy",
    "Rosa",
    "Maya",
    "Clara",
    "Luna",
    "Daisy",
    "Hazel",
    "Emma",
    "Sara",
)
BOYS: Final = (
    "Tom",
    "Max",
    "Leo",
    "Sam",
    "Ben",
    "Oscar",
    "Finn",
    "Noah",
    "Hugo",
    "Milo",
    "Jack",
    "Theo",
    "Felix",
    "Otto",
    "Ravi",
    "Kai",
)
#: Each hero of a story with what it is like to be one: (creature, home, food, gift).
CREATURES: Final = (
    ("fox", "a warm den under an old oak", "berries", "quick feet"),
    ("rabbit", "a cosy burrow on the hill", "carrots", "long ears"),
    ("bear", "a deep cave by the river", "honey", "strong arms"),
    ("mouse", "a tiny hole behind the mill", "cheese", "small paws"),
    ("owl", "a hollow tree in the dark wood", "warm soup", "sharp eyes"),
    ("cat", "a red house near the market", "fish", "soft paws"),
    ("dog", "a farm at the end of the road", "biscuits", "a clever nose"),
    ("hedgehog", "a pile of dry leaves", "apples", "sharp spines"),
    ("squirrel", "a nest high in a pine tree", "nuts", "a bushy tail"),
    ("duck", "a quiet pond with white lilies", "bread", "wide feet"),
    ("frog", "a green pond in the meadow", "cake", "long legs"),
    ("turtle", "a sandy beach by the sea", "lettuce", "a hard shell"),
    ("elephant", "a wide plain under the sun", "bananas", "a long trunk"),
    ("lion", "a golden hill in the south", "meat pies", "a loud roar"),
    ("penguin", "an island of ice and snow", "fish", "a fine black coat"),
    ("dragon", "a tall mountain full of smoke", "hot soup", "a little fire"),
    ("horse", "a stable with a blue door", "oats", "fast legs"),
    ("wolf", "a rocky valley in the north", "stew", "a brave heart"),
    ("robot", "a workshop full of tools", "oil", "bright lamps for eyes"),
    ("whale", "the deep blue sea", "tiny shrimps", "a great voice"),
    ("bird", "a round nest in an apple tree", "seeds", "light wings"),
    ("monkey", "a tall tree in the jungle", "bananas", "clever hands"),
    ("pig", "a muddy farm behind the church", "potatoes", "a round nose"),
    ("bee", "a golden hive in the garden", "honey", "busy wings"),
)
#: People as heroes; the story gives them a name as well.
PEOPLE: Final = (
    ("girl", "a small house by the sea", "pancakes", "kind words"),
    ("boy", "a white house on the hill", "pancakes", "a good idea"),
    ("baker", "a bakery in the old town", "fresh bread", "steady hands"),
    ("sailor", "a little boat with a green sail", "fish", "strong arms"),
    ("farmer", "a farm at the edge of the wood", "apple pie", "patience"),
    ("king", "a castle with seven towers", "cherry cake", "a fair mind"),
    ("queen", "a palace of white stone", "cherry cake", "a wise heart"),
    ("wizard", "a crooked tower in the marsh", "mushroom soup", "a little magic"),
    ("knight", "a stone castle by the lake", "stew", "a brave heart"),
    ("princess", "a castle above the clouds", "plum cake", "a clear voice"),
    ("pirate", "an old ship called the Blue Star", "fish", "a good map"),
    ("astronaut", "a silver ship among the stars", "soup from a tube", "steady hands"),
)
#: Further heroes, whose home, food and gift are drawn from those of the others: with so many, the
#: model must read the hero's name in the question rather than know it by heart.
OTHERS: Final = (
    "zebra", "tiger", "goat", "cow", "hen", "goose", "swan", "deer", "mole", "badger", "otter",
    "beaver", "seal", "crab", "octopus", "snail", "butterfly", "spider", "ant", "donkey", "camel",
    "giraffe", "panda", "koala", "kangaroo", "parrot", "raven", "eagle", "bat", "rat", "hamster",
    "unicorn", "giant", "witch", "fairy", "elf", "ghost", "snowman", "mermaid", "teacher",
    "doctor", "gardener", "fisherman", "painter", "dancer", "cook", "clown", "thief", "prince",
    "computer", "phone", "cloud", "star", "tree", "train", "car", "dinosaur", "shark", "dolphin",
    "snake", "worm", "sheep", "donut", "shoe", "spoon", "teapot", "pumpkin", "snowflake",
)  # fmt: skip
TRAITS: Final = (
    "little",
    "brave",
    "clever",
    "kind",
    "shy",
    "curious",
    "gentle",
    "cheerful",
    "young",
    "lonely",
    "lively",
    "quiet",
)
PLACES: Final = (
    "the forest", "the river", "the mountain", "the village", "the old bridge", "the meadow",
    "the lake", "the dark cave", "the garden", "the beach", "the market", "the windmill",
)  # fmt: skip
TREASURES: Final = (
    "silver key", "golden bell", "blue stone", "old map", "red lantern", "tiny music box",
    "glass star", "wooden flute", "shiny button", "magic seed", "green ring", "paper boat",
)  # fmt: skip
FEELINGS: Final = ("sad", "tired", "lonely", "worried", "angry", "nervous", "bored", "scared")
CAPITALS: Final = (
    ("France", "Paris"), ("Germany", "Berlin"), ("Italy", "Rome"), ("Spain", "Madrid"),
    ("Portugal", "Lisbon"), ("England", "London"), ("Ireland", "Dublin"), ("Japan", "Tokyo"),
    ("China", "Beijing"), ("India", "New Delhi"), ("Egypt", "Cairo"), ("Kenya", "Nairobi"),
    ("Greece", "Athens"), ("Norway", "Oslo"), ("Sweden", "Stockholm"), ("Finland", "Helsinki"),
    ("Poland", "Warsaw"), ("Austria", "Vienna"), ("Canada", "Ottawa"), ("Peru", "Lima"),
    ("the United States", "Washington"), ("Russia", "Moscow"), ("Turkey", "Ankara"),
    ("Brazil", "Brasilia"), ("Australia", "Canberra"), ("Denmark", "Copenhagen"),
)  # fmt: skip
COLOURS_OF: Final = (
    ("the sky", "blue"), ("grass", "green"), ("snow", "white"), ("a banana", "yellow"),
    ("a strawberry", "red"), ("coal", "black"), ("a carrot", "orange"), ("the sun", "yellow"),
    ("chocolate", "brown"), ("a lemon", "yellow"), ("blood", "red"), ("milk", "white"),
    ("the sea", "blue"), ("a tomato", "red"), ("a leaf", "green"), ("a cloud", "white"),
)  # fmt: skip
OPPOSITES: Final = (
    ("big", "small"), ("hot", "cold"), ("up", "down"), ("day", "night"), ("fast", "slow"),
    ("happy", "sad"), ("old", "new"), ("open", "closed"), ("light", "dark"), ("wet", "dry"),
    ("high", "low"), ("rich", "poor"), ("hard", "soft"), ("long", "short"), ("good", "bad"),
    ("full", "empty"), ("left", "right"), ("early", "late"), ("strong", "weak"), ("near", "far"),
    ("loud", "quiet"), ("clean", "dirty"), ("young", "old"), ("black", "white"), ("true", "false"),
    ("inside", "outside"), ("begin", "end"), ("love", "hate"), ("win", "lose"), ("buy", "sell"),
)  # fmt: skip
SOUNDS: Final = (
    ("dog", "woof"), ("cat", "meow"), ("cow", "moo"), ("duck", "quack"), ("sheep", "baa"),
    ("pig", "oink"), ("lion", "roar"), ("frog", "ribbit"), ("bee", "buzz"), ("owl", "hoot"),
    ("horse", "neigh"), ("mouse", "squeak"), ("snake", "hiss"), ("wolf", "howl"),
)  # fmt: skip
YOUNG: Final = (
    ("dog", "puppy"), ("cat", "kitten"), ("cow", "calf"), ("sheep", "lamb"), ("horse", "foal"),
    ("duck", "duckling"), ("lion", "cub"), ("frog", "tadpole"), ("pig", "piglet"), ("goat", "kid"),
)  # fmt: skip
LEGS: Final = (
    ("a spider", "eight"), ("a dog", "four"), ("an ant", "six"), ("a bird", "two"),
    ("a cat", "four"), ("a bee", "six"), ("a horse", "four"), ("a person", "two"),
    ("a snake", "no"), ("an octopus", "eight"),
)  # fmt: skip
DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS: Final = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
NUMBERS: Final = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]
GROUPS: Final = {
    "fruits": ["apples", "pears", "bananas", "cherries", "plums", "grapes", "lemons", "oranges"],
    "animals": ["foxes", "bears", "owls", "rabbits", "whales", "horses", "frogs", "lions"],
    "colours": ["red", "blue", "green", "yellow", "orange", "purple", "white", "black"],
    "vegetables": ["carrots", "potatoes", "onions", "peas", "beans", "tomatoes", "leeks"],
    "planets": ["Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune"],
    "musical instruments": ["piano", "guitar", "violin", "flute", "drum", "trumpet", "harp"],
    "seasons": ["spring", "summer", "autumn", "winter"],
    "sports": ["football", "tennis", "swimming", "running", "cycling", "basketball"],
    "trees": ["oak", "pine", "birch", "maple", "willow", "apple"],
    "countries": ["France", "Japan", "Kenya", "Peru", "Canada", "India", "Norway", "Egypt"],
}
HELLOS: Final = (
    ("French", "bonjour"), ("Spanish", "hola"), ("German", "hallo"), ("Italian", "ciao"),
    ("Japanese", "konnichiwa"), ("Portuguese", "ola"), ("Swedish", "hej"), ("Hindi", "namaste"),
)  # fmt: skip
FACTS: Final = (
    ("How many days are in a week?", "There are seven days in a week."),
    ("How many months are in a year?", "There are twelve months in a year."),
    ("How many hours are in a day?", "There are twenty-four hours in a day."),
    ("How many minutes are in an hour?", "There are sixty minutes in an hour."),
    ("Why is the sky blue?", "Air scatters blue light more than red light, so the sky looks blue."),
    ("Why does it rain?", "Water rises from the sea, cools into clouds and falls back as rain."),
    ("What is water made of?", "Water is made of hydrogen and oxygen."),
    ("What do bees make?", "Bees make honey from the nectar of flowers."),
    ("What do plants need?", "Plants need light, water, air and good soil."),
    ("What is the moon?", "The moon is a ball of rock that travels around the Earth."),
    ("What is the sun?", "The sun is a star. It gives us light and warmth."),
    ("What is a computer?", "A computer is a machine that follows instructions very quickly."),
    ("What is the largest planet?", "Jupiter is the largest planet of our solar system."),
    ("What is the largest animal?", "The blue whale is the largest animal."),
    ("What is ice?", "Ice is frozen water."),
    ("Where do fish live?", "Fish live in water: in rivers, in lakes and in the sea."),
    ("What is a rainbow?", "A rainbow is sunlight split into its colours by drops of rain."),
    ("What is music?", "Music is sound arranged in time so that it moves us."),
)  # fmt: skip
