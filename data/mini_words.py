"""The vocabulary of the generated mini tasks.

Every word stands in one category only, also where everyday English would allow two (no "orange", which is a
fruit and a colour; no "turkey", which is an animal and a country): answers are unique by construction.
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ANIMALS = _words("""
    badger bear beaver camel cat cow crocodile deer dog donkey eagle elephant ferret fox frog giraffe
    goat gorilla hamster hedgehog horse kangaroo koala lion lizard monkey moose otter owl panda parrot
    penguin pig pigeon rabbit rat shark sheep snake spider squirrel tiger tortoise whale wolf zebra
""")
FRUITS = _words("""
    apple apricot banana blackberry blueberry cherry coconut cranberry fig grape grapefruit lemon mango
    melon nectarine papaya peach pear pineapple pomegranate raspberry strawberry tangerine
""")
VEHICLES = _words("""
    ambulance bicycle boat bus canoe car ferry helicopter kayak lorry minivan moped motorcycle plane
    rocket scooter submarine taxi tractor train tram truck van yacht
""")
CLOTHES = _words("""
    apron blouse cardigan coat dress glove hat hoodie jacket jeans pyjamas raincoat sandals scarf shirt
    shorts skirt slippers socks sweater trousers tuxedo uniform waistcoat
""")
FURNITURE = _words("""
    armchair bed bench bookcase chair couch cupboard desk dresser footstool hammock nightstand ottoman
    shelf sideboard sofa stool table wardrobe
""")
INSTRUMENTS = _words("""
    accordion banjo bassoon cello clarinet drum flute guitar harmonica harp lute mandolin oboe piano
    saxophone trombone trumpet tuba ukulele violin xylophone
""")
JOBS = _words("""
    accountant actor architect baker barber butcher carpenter dentist electrician farmer gardener
    journalist judge lawyer librarian mechanic nurse painter pilot plumber soldier surgeon tailor teacher
    waiter
""")
CATEGORIES = (ANIMALS, FRUITS, VEHICLES, CLOTHES, FURNITURE, INSTRUMENTS, JOBS)

CITIES = _words("""
    Amsterdam Athens Auckland Baghdad Bangkok Barcelona Beijing Berlin Bogota Boston Brussels Budapest
    Cairo Chicago Copenhagen Dallas Delhi Denver Dublin Geneva Hamburg Hanoi Havana Helsinki Istanbul
    Jakarta Lagos Lima Lisbon London Madrid Manila Miami Milan Montreal Moscow Mumbai Munich Nairobi
    Naples Oslo Paris Prague Rome Santiago Seattle Seoul Shanghai Singapore Stockholm Sydney Tokyo
    Toronto Vancouver Venice Vienna Warsaw Zurich
""")
NAMES = _words("""
    Adam Alice Anna Ben Carla Daniel David Emma Felix Grace Hannah Ivan Jack Julia Karim Laura Leo Maria
    Martin Mia Nina Noah Olga Omar Oscar Paula Peter Rosa Sara Simon Sofia Thomas Tina Victor
""")
SURNAMES = _words("""
    Adams Baker Bennett Carter Clarke Cooper Evans Foster Gray Harris Hughes Keller Lambert Mitchell
    Morgan Novak Parker Reed Schmidt Turner Walker Weber Young
""")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _words("""
    January February March April May June July August September October November December
""")

PRODUCTS = _words("""
    backpack blender camera charger clock fan heater hairdryer iron kettle keyboard lamp laptop mixer
    monitor mouse phone printer radio razor speaker suitcase tablet tent toaster torch umbrella watch
""")
GOOD = _words("""
    amazing brilliant excellent fantastic great lovely perfect splendid superb wonderful
""")
BAD = _words("""
    awful disappointing dreadful horrible lousy poor rubbish terrible useless worthless
""")
PRAISE = (
    "I use it every day",
    "my whole family loves it",
    "it works like a charm",
    "it still runs like new",
    "worth every cent",
    "I would buy it again at once",
    "it made my life easier",
    "I could not be happier",
    "it does all it promises",
    "my friends all want one now",
    "it arrived early and well packed",
    "it is far better than my old one",
)
BLAME = (
    "it broke after two days",
    "I want my money back",
    "it never worked at all",
    "the box arrived damaged",
    "a waste of money",
    "I would never buy it again",
    "it makes an annoying noise",
    "I have already sent it back",
    "it stopped working in a week",
    "parts were missing",
    "it fell apart in my hands",
    "my old one was far better",
)
SHOP_QUESTIONS = (
    "do you sell it in blue",
    "how long is the warranty",
    "can I collect it on {day}",
    "is it in stock in {city}",
    "what does it weigh",
    "do you ship it to {city}",
    "will it be on sale on {day}",
    "which size should I choose for a child",
)

FOODS = _words("""
    bread cake cheese chicken chocolate curry lasagne omelette porridge pasta pizza pudding rice risotto
    salad salmon ramen soup steak stew
""")
COOKING = (
    "{name} baked {food} for the guests",
    "the {food} needs a little more salt",
    "serve the {food} hot with fresh herbs",
    "{name} ordered {food} at the new restaurant",
    "this recipe for {food} takes twenty minutes",
    "{name} ate too much {food} for lunch",
    "the {food} in {city} tasted delicious",
)
SPORTS = _words("""
    badminton baseball basketball boxing cricket fencing football handball hockey rowing rugby sailing
    skiing squash swimming tennis volleyball wrestling
""")
PLAYING = (
    "{name} won the {sport} final",
    "the {sport} team from {city} lost again",
    "{name} trains for the {sport} championship",
    "the {sport} coach praised {name}",
    "fans of {sport} filled the stadium in {city}",
    "{name} broke a {sport} record on {day}",
    "a {sport} match was postponed in {city}",
)
TUNES = (
    "{name} plays the {instrument} in an orchestra",
    "the {instrument} solo moved the audience in {city}",
    "{name} wrote a song for {instrument} and choir",
    "the new album of {name} has a {instrument} on every track",
    "{name} practised the {instrument} all {day}",
    "a concert for {instrument} was held in {city}",
    "the band needs someone for the {instrument}",
)
SKIES = _words("fog frost hail rain sleet snow sunshine thunder drizzle wind")
FORECASTS = (
    "expect {sky} in {city} on {day}",
    "{sky} is likely over {city} tonight",
    "after days of {sky} the sky cleared on {day}",
    "the forecast for {city} promises {sky}",
    "{name} got caught in {sky} on {day}",
    "temperatures fell as {sky} reached {city}",
    "{city} saw more {sky} than ever in {month}",
)

THINGS = _words("""
    agenda budget contract document draft file form invoice list manual memo plan presentation
    proposal report schedule sketch summary survey timetable
""")
FORMAL = (
    "Dear Dr. {surname}, I would be grateful if you could send the {thing} by {day}.",
    "I am writing to inform you that the {thing} will be available on {day}.",
    "Please find attached the {thing} requested by Dr. {surname}.",
    "We kindly ask you to return the {thing} no later than {day}.",
    "Ms. {surname}, could you please confirm receipt of the {thing}?",
    "We regret that the {thing} cannot be provided before {day}.",
    "Mr. {surname} would appreciate your comments on the {thing}.",
    "Should you require the {thing}, please contact Ms. {surname}.",
    "With regard to the {thing}, we await your reply by {day}.",
)
CASUAL = (
    "hey {name}, can u send me the {thing} by {day}?",
    "no worries, just drop the {thing} on my desk on {day}",
    "{name} says the {thing} is kinda boring lol",
    "yep, got the {thing}, thanks a bunch {name}!",
    "gonna finish the {thing} on {day}, promise",
    "sorry {name}, totally forgot about the {thing}...",
    "wanna grab a coffee and look at the {thing} on {day}?",
    "{name}, this {thing} is super long, help me out",
    "guess what, the {thing} is done, see ya on {day}",
)

# Past, present and future of the same event, with what it happens to.
VERBS = (
    ("opened", "is opening", "will open", "the {place} door"),
    ("painted", "is painting", "will paint", "the {place} wall"),
    ("cleaned", "is cleaning", "will clean", "the {place} floor"),
    ("bought", "is buying", "will buy", "a {place} table"),
    ("repaired", "is repairing", "will repair", "the {place} roof"),
    ("sold", "is selling", "will sell", "the {place} lamp"),
    ("photographed", "is photographing", "will photograph", "the {place} window"),
    ("moved", "is moving", "will move", "the {place} desk"),
    ("locked", "is locking", "will lock", "the {place} gate"),
    ("decorated", "is decorating", "will decorate", "the {place} ceiling"),
    ("broke", "is breaking", "will break", "the {place} mirror"),
    ("drew", "is drawing", "will draw", "the {place} entrance"),
)
PLACES = _words("""
    bakery cafe classroom garage garden hospital hotel kitchen library museum office school
""")

JOURNEYS = (
    "{name} took the train from {start} to {end}.",
    "On {day}, {name} flew to {end} from {start}.",
    "After a week in {start}, {name} drove to {end}.",
    "{name} left {start} and arrived in {end} on {day}.",
    "The bus to {end} leaves {start} at noon.",
    "{name} moved to {end} in {month}, after years in {start}.",
    "Bound for {end}, {name} set out from {start}.",
    "From {start}, {name} will travel on to {end}.",
)
OFFERS = (
    "The {product} was ${old} but now costs ${now}.",
    "This {product} costs ${now}, down from ${old}.",
    "Instead of ${old}, the {product} is yours for ${now}.",
    "Last {month} the {product} cost ${old}; today it is ${now}.",
    "Buy the {product} for ${now} and save ${saved}.",
    "With ${saved} off, the {product} now sells for ${now}.",
    "{name} raised the price of the {product} from ${old} to ${now}.",
    "The {product} is ${now} today; its old price was ${old}.",
)
