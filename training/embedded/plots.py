"""What can happen in a story: each plot a row of beats, each beat a few ways to tell it.

Slots in braces are filled by `stories`: {name} {kind} {trait} {home} {food} {gift}
{friend} {fkind} {place} {place2} {thing} {a_thing} {he} {him} {his}
{He} {His}, and {fhe} ... {FHe} of the friend. Knows no grammar and no chance.
"""

from __future__ import annotations

from typing import Final

OPENINGS: Final = (
    "Once upon a time there was a {trait} {kind} named {name}. {name} lived in {home}.",
    "Once upon a time, in {home}, there lived a {trait} {kind}. {His} name was {name}.",
    "Long ago there lived a {trait} {kind} called {name}, and {his} home was {home}.",
    "{name} was a {trait} {kind} who lived in {home}.",
    "There once was a {kind} named {name}. Everyone said that {name} was very {trait}.",
)
DETAILS: Final = (
    "Every morning {name} ate {food} and looked out at the world.",
    "{He} had {gift}, and {he} was proud of it.",
    "{His} favourite food was {food}, and {he} never had enough of it.",
    "On quiet evenings {he} sang a little song and watched the stars.",
    "{He} knew every path to {place}, even in the dark.",
    "{He} often thought of the far places that {he} had never seen.",
    "The days were warm, the nights were calm, and {name} was content.",
)
WEATHER: Final = (
    "The wind blew softly over {place}.",
    "A light rain began to fall, but {name} did not mind.",
    "The sun stood high and the air smelled of flowers.",
    "The moon was bright and everything was silver.",
    "Somewhere a bell rang, and the birds flew up.",
    "It was cold, and {name} wished for {food}.",
)
TALK: Final = (
    '"Do not be afraid," said {friend}. "We will do it together."',
    '"I have an idea," whispered {name}. "Follow me, and be very quiet."',
    '"What would you do?" asked {name}. {friend} thought for long. "I would try," {fhe} said.',
    '"Look!" cried {friend}. "Over there, by {place2}!"',
    '"You are a true friend," said {name}, and {friend} smiled.',
    '"One step at a time," said {friend}. That was good advice.',
)
ENDINGS: Final = (
    "From that day on {name} and {friend} were the best of friends.",
    "That night {name} fell asleep with a smile.",
    "And whenever {name} passed {place}, {he} remembered that day and laughed.",
    "They shared {food} and told the story again and again.",
    "And they all lived happily ever after.",
    "{name} had learned that a kind heart is worth more than gold.",
    "So {name} learned that it is good to ask for help.",
    "Since then {name} has never been lonely again.",
)

#: Each beat is a tuple of ways to say the same thing; the beats of a plot follow one another.
PLOTS: Final = (
    (  # something is found
        (
            "One morning {name} found {a_thing} near {place}.",
            "One day, on the way to {place}, {name} saw something in the grass. It was {a_thing}.",
        ),
        (
            '"Who does this belong to?" {he} wondered.',
            "{He} turned it over and over. Somebody must have lost it.",
        ),
        (
            "{He} asked everyone on the way, but nobody had lost {a_thing}.",
            "{He} knocked on every door, and every time the answer was no.",
        ),
        (
            "At last {he} came to {place2}. There sat {friend} the {fkind}, crying.",
            "Near {place2} {he} met {friend} the {fkind}, who looked very sad.",
        ),
        (
            '"I have lost my {thing}," said {friend}. "My grandmother gave it to me."',
            '"My {thing} is gone," said {friend}. "I have looked for it all day."',
        ),
        (
            "{name} held out the {thing}. {friend} jumped for joy and thanked {him} many times.",
            '"Is this the one?" asked {name}. {friend} laughed and hugged {him}.',
        ),
    ),
    (  # somebody is lost
        (
            "One evening {friend} the {fkind} did not come home.",
            "One day {friend} the {fkind} went to {place} and did not come back.",
        ),
        (
            "{name} was worried. {He} took a lantern and went to look for {fhim}.",
            '"I must find {fhim}," said {name}, and {he} set out at once.',
        ),
        (
            "First {he} looked at {place}, but there was nobody there.",
            "{He} searched {place} and called, but only the wind answered.",
        ),
        (
            "Then {he} heard a small voice near {place2}.",
            "At {place2} {he} found footprints, and {he} followed them.",
        ),
        (
            "It was {friend}! {FHe} had fallen into a hole and could not get out.",
            "There was {friend}, stuck between two big stones.",
        ),
        (
            "With {gift} {name} pulled {fhim} out, and they walked home under the stars.",
            "{name} pulled and pulled, and at last {friend} was free. They walked home together.",
        ),
    ),
    (  # a storm
        (
            "One night a great storm came over {place}.",
            "One autumn day black clouds gathered, and a storm began.",
        ),
        (
            "The wind howled and the rain fell like stones. {name} was safe in {home}.",
            "Thunder rolled, and the trees bent low. {name} hid under a blanket.",
        ),
        (
            "Then there was a knock. Outside stood {friend} the {fkind}, wet and cold.",
            "Suddenly {name} heard a cry. It was {friend} the {fkind}, who had lost {fhis} home.",
        ),
        (
            '"Come in, come in!" said {name}. {He} made a fire and gave {fhim} {food}.',
            "{name} opened the door at once and shared {food} with {fhim}.",
        ),
        (
            "All night they told each other stories, and the storm did not seem so loud.",
            "They sat close together and sang until the thunder went away.",
        ),
        (
            "In the morning the sun came out, and together they built a new home for {friend}.",
            "When the sun rose, everyone came to help, and soon {friend} had a new home.",
        ),
    ),
    (  # a race
        (
            "One summer there was a great race from {place} to {place2}.",
            "One day the village held a race, and the prize was {a_thing}.",
        ),
        (
            "{name} wanted to win. {He} practised every day.",
            '"I will never win," thought {name}, but {he} wanted to try.',
        ),
        (
            "{friend} the {fkind} was the fastest of all and laughed at {him}.",
            "Everyone thought that {friend} the {fkind} would win.",
        ),
        (
            "The race began. {friend} was soon far ahead, and {name} ran as well as {he} could.",
            "One, two, three, go! Off they went, with {friend} in front.",
        ),
        (
            "But near the end {friend} stumbled and hurt {fhis} foot. {name} stopped to help.",
            "Then {friend} fell into the mud. {name} did not run on. {He} went back.",
        ),
        (
            "They crossed the line side by side, and both of them won the {thing}.",
            "Arm in arm they came in last, but everyone cheered, and {name} got the {thing}.",
        ),
    ),
    (  # afraid of the dark
        (
            "But {name} had a secret: {he} was afraid of the dark.",
            "There was only one thing that {name} did not like, and that was the night.",
        ),
        (
            "One evening {he} had to go to {place} alone.",
            "One night the lamp went out, and {name} could not sleep.",
        ),
        (
            "{He} saw two shining eyes and began to shake.",
            "Something moved behind the trees. {name} held {his} breath.",
        ),
        (
            '"Good evening," said a soft voice. It was {friend} the {fkind}.',
            "But it was only {friend} the {fkind}, out for a walk.",
        ),
        (
            '"The dark is only the day asleep," said {friend}. "Look up!"',
            "{friend} showed {him} the stars, and told {him} their names.",
        ),
        (
            "{name} looked up, and the sky was full of light. {He} was not afraid any more.",
            "After that the night was not so dark, and {name} began to like it.",
        ),
    ),
    (  # a birthday
        (
            "It was nearly the birthday of {friend} the {fkind}.",
            "One day {name} remembered that {friend} the {fkind} had a birthday soon.",
        ),
        (
            '"I will make a cake," said {name}. But there was no flour in the house.',
            "{name} wanted to give {fhim} {a_thing}, but {he} had no money.",
        ),
        (
            "So {he} went to {place} to ask for help.",
            "So {he} thought hard, and then {he} walked to {place}.",
        ),
        (
            "The miller gave {him} flour, the hens gave eggs, and the cow gave milk.",
            "Everybody gave something small: a ribbon, an egg, a cup of sugar.",
        ),
        (
            "They worked all night, and nobody told {friend}.",
            "They hid at {place2} and waited, as quiet as stones.",
        ),
        (
            '"Surprise!" they shouted. {friend} was so happy that {fhe} danced on the table.',
            "When {friend} came home, there was a party, and {fhe} could not stop smiling.",
        ),
    ),
    (  # a journey
        (
            "One day {name} found an old map. It showed the way to {place}.",
            'One morning {name} said, "I want to see {place} before the winter comes."',
        ),
        (
            "{He} packed {food} and a warm scarf and walked all day.",
            "{He} said goodbye, took a little bag with {food}, and set off.",
        ),
        (
            "On the road {he} met {friend} the {fkind}, who was going the same way.",
            'Soon {he} met {friend} the {fkind}. "May I come with you?" asked {friend}.',
        ),
        (
            "They came to a wide river, and there was no bridge.",
            "The path was steep, and more than once they lost their way.",
        ),
        (
            "But {name} had {gift}, and {friend} had a long rope, and so they got across.",
            "{friend} wanted to turn back, but {name} said that the best things are far away.",
        ),
        (
            "At last they stood at {place}. It was more beautiful than they had dreamed.",
            "And there it was: {place}. In the middle of it lay {a_thing}.",
        ),
    ),
    (  # sharing
        (
            "The winter was long, and there was not much to eat at {place}.",
            "One year the harvest was poor, and everyone was hungry.",
        ),
        (
            "{name} had only a little {food} left.",
            "{name} had hidden some {food} for the cold days.",
        ),
        (
            "Then {friend} the {fkind} came by, thin and tired.",
            "One evening {friend} the {fkind} stood at the door and asked for a bite.",
        ),
        (
            "{name} thought about it for a while. Then {he} gave {fhim} half.",
            '"Take it," said {name}. "Half is enough for me."',
        ),
        (
            "{friend} never forgot it. In spring {fhe} came back with {a_thing}.",
            "Spring came, and one day {friend} returned with a full basket and {a_thing}.",
        ),
        (
            '"This is for you," said {friend}, "because you shared when you had so little."',
            "They planted a garden together, and nobody was ever hungry there again.",
        ),
    ),
)
