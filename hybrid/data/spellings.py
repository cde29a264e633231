"""Tables for the one set whose slugs are joined words and nicknames (fxemoji), and for a few odd slugs elsewhere."""

from __future__ import annotations

# Joined or misspelt stretches, replaced before a slug is split into words.
WORDS = """
australia americas anger anticlockwise asia europe africa meridian back bold script check cross dollar euro pound yen
cancellation hard shell floppy pennant pushpin question skull crossbones touch tone double missing smiley bolt tab
boot flowers bouquet bull horn sound waves bunny ears side cell phone celtic chart downwards upwards trend chili
clamshell mobile clap clockwise down up circled arrows closed lowered raised cold sweat contact knob decrease increase
font size devil inside document text picture envelope above lightning falling leaf fax icon fish cake swirl fisted
flexed bicep flying folder fork frame tiles front facing chick frown mouth grin squint eyes sweat tears wide handheld
massage high brightness bullet nose hourglass flowing sand kiss lips lower upper magnifying bubble writing lock
mantelpiece marks chapter symbol medical mask mens womens shoe shirt runner music ascend descend negative squared
latin capital small letter gesture under notched semi dot decorative cover note notepad page pages personal computer
optical disc over stamped overlap snout portable stereo potable water system printer ringing sandals scream screen
sideways black white down pointing index left right silhouette of six pointed sleuth spy speaker one two three
soundwave soundwaves spurting stock storm studio rays rain cloud tape cartridge telephone modem receiver thought
balloon networked computers below tongue out wink turned ok waning gibbous waxing moon wired keyboard worried weary
winking cjk unified ideograph droplet rosette reverse hand middle finger fingers splayed victory thumbs bathtub acorn
arrow leftwards rightwards with circle television basketball sunrise snowman pineapple sailboat crescent volcano
vibration wheelchair cone revolving
""".split()

# fxemoji's slug → the label of what it shows.
FIREFOX = {
    "2hearts": "two hearts", "acorn": "chestnut", "americasglobe": "globe showing americas", "angry": "angry face",
    "anguish": "anguished face", "anticlockwiseupwardsanddownwardsarrows": "counterclockwise arrows button",
    "aok": "ok hand", "asiaaustraliaglobe": "globe showing asia australia", "astonished": "astonished face",
    "aubergine": "eggplant", "automatedtellermachine": "atm sign", "backwithleftwardsarrow": "back arrow",
    "banknotedollar": "dollar banknote", "banknoteeuro": "euro banknote", "banknotepound": "pound banknote",
    "banknoteyen": "yen banknote", "beachumbrella": "umbrella on ground", "bellcancellation": "bell with slash",
    "blackdownpointingbackhand": "backhand index pointing down", "blackdownpointingdoublearrow": "fast down button",
    "blackdroplet": "droplet", "blackfolder": "file folder", "blackleftpointingarrow": "reverse button",
    "blackleftpointingbackhand": "backhand index pointing left", "blackleftpointingdoublearrow": "fast reverse button",
    "blackpushpin": "pushpin", "blackquestionmark": "question mark", "blackrightpointingarrow": "play button",
    "blackrightpointingbackhand": "backhand index pointing right",
    "blackrightpointingdoublearrow": "fast forward button", "blackskullcrossbones": "skull and crossbones",
    "blacktouchtonetelephone": "telephone", "blackuppointingbackhand": "backhand index pointing up",
    "blackuppointingdoublearrow": "fast up button", "blackwaving": "black flag", "blonde": "person blond hair",
    "bolt": "high voltage", "bookmarktab": "bookmark tabs", "boot": "woman's boot", "bouquetofflowers": "bouquet",
    "bow": "ribbon", "bowing": "person bowing", "bride": "person with veil", "bullhorn": "loudspeaker",
    "bullhornwithsoundwaves": "loudspeaker", "bunny": "rabbit face", "bunny-ears": "people with bunny ears",
    "bunnyside": "rabbit", "cat": "cat face", "catside": "cat", "cellphone": "mobile phone",
    "chartdownwardstrend": "chart decreasing", "chartupwardstrend": "chart increasing",
    "chartupwardstrendyen": "chart increasing with yen", "chilipepper": "hot pepper", "clamshellmobile": "mobile phone",
    "clap": "clapping hands", "clinkingbeermugs": "clinking beer mugs",
    "clockwiserightwardsleftwardscirclearrows": "repeat button",
    "clockwiserightwardsleftwardscirclearrowsone": "repeat single button",
    "closedmailboxlowered": "closed mailbox with lowered flag",
    "closedmailboxraised": "closed mailbox with raised flag",
    "coldsweat": "anxious face with sweat", "confetti": "confetti ball", "confounded": "confounded face",
    "confused": "confused face", "construct": "construction worker", "controlknob": "control knobs",
    "cop": "police officer", "couple": "woman and man holding hands", "couplekiss": "kiss", "crying": "crying face",
    "custard": "custard", "dancer": "woman dancing", "dash": "dashing away", "devilhorns": "smiling face with horns",
    "diamondshapewithdotinside": "diamond with a dot", "disappointed": "disappointed face",
    "dissapointedrelief": "sad but relieved face", "document": "page facing up", "documentwithtext": "page facing up",
    "dog": "dog face", "dogside": "dog", "dizzyface": "face with crossed out eyes",
    "doubleexclaimationmark": "double exclamation mark", "down": "down button",
    "downpointingsmallredtrisngle": "red triangle pointed down", "downpointingredtriangle": "red triangle pointed down",
    "dragonhead": "dragon face", "dragonside": "dragon", "eightspokedasterix": "eight spoked asterisk",
    "endwithleftwardsarrow": "end arrow", "envelopedownarrowabove": "envelope with arrow",
    "europeafricaglobe": "globe showing europe africa", "evergreen": "evergreen tree",
    "exclaimationquestionmark": "exclamation question mark", "expressionless": "expressionless face",
    "fallingleaf": "fallen leaf", "faxicon": "fax machine", "fearful": "fearful face",
    "fishcakeswirl": "fish cake with swirl", "fistedhand": "raised fist", "flexbicep": "flexed biceps",
    "floppydisk2": "floppy disk", "flushed": "flushed face", "folder": "file folder", "forkknife": "fork and knife",
    "foxcrying": "crying cat", "foxgrin": "grinning cat", "foxheart": "smiling cat with heart eyes",
    "foxkissing": "kissing cat", "foxpouting": "pouting cat", "foxsmiling": "grinning cat with smiling eyes",
    "foxtearofjoy": "cat with tears of joy", "foxweary": "weary cat", "foxwry": "cat with wry smile",
    "frontfacingchick": "front facing baby chick", "frown": "frowning face",
    "frownmouth": "frowning face with open mouth", "gem": "gem stone", "girlgirl": "women holding hands",
    "girlguy": "woman and man holding hands", "guyguy": "men holding hands", "gma": "old woman", "gpa": "old man",
    "grimacing": "grimacing face", "grin": "grinning face", "grineyes": "beaming face with smiling eyes",
    "grinsquint": "grinning squinting face", "grinsweat": "grinning face with sweat",
    "grintears": "face with tears of joy", "grinwide": "grinning face with big eyes",
    "grinwideeyes": "grinning face with smiling eyes", "guapimao": "person with skullcap",
    "halo": "smiling face with halo", "hand": "raised hand", "hands": "raising hands", "handup": "person raising hand",
    "handheldvideocamera": "video camera", "headmassage": "person getting massage",
    "haircut": "person getting haircut", "heartarrow": "heart with arrow", "heartblue": "blue heart",
    "hearteyes": "smiling face with heart eyes", "heartgreen": "green heart", "heartpurple": "purple heart",
    "heartribbon": "heart with ribbon", "heartyellow": "yellow heart", "heels": "high heeled shoe",
    "heavyexclaimationmarksymbol": "red exclamation mark", "heavylatincross": "latin cross",
    "heavymultiplicationsymbol": "multiply", "high5": "folded hands", "highbrightness": "bright button",
    "highspeedtrainbulletnose": "bullet train", "hourglassflowingsand": "hourglass not done", "hushed": "hushed face",
    "imp": "angry face with horns", "index": "index pointing up", "japaneseangrymask": "goblin",
    "kissclosedeyes": "kissing face with closed eyes", "kisseyes": "kissing face with smiling eyes",
    "kissing": "kissing face", "leaffluttering": "leaf fluttering in wind", "left": "left arrow",
    "leftangerbubble": "right anger bubble",
    "leftmagnifyingglass": "magnifying glass tilted left", "leftspeechbubble": "left speech bubble",
    "leftthoughtbubble": "thought balloon", "leftwritinghand": "writing hand", "leopardside": "leopard",
    "lightningmood": "right anger bubble", "lightningmoodbubble": "right anger bubble", "lips": "mouth",
    "lockandkey": "locked with key", "loudlycrying": "loudly crying face", "lowbrightness": "dim button",
    "lowerleftcrayon": "crayon", "lowerleftfountainpen": "fountain pen", "lowerleftpaintbrush": "paintbrush",
    "lowerleftpen": "pen", "lowerleftpencil": "pencil", "mahjong": "mahjong red dragon", "makeupbag": "clutch bag",
    "manltepiececlock": "mantelpiece clock", "mansshirt": "t shirt", "medicalmask": "face with medical mask",
    "mensrunner": "running shoe", "mensshoe": "man's shoe", "meridianglobe": "globe with meridians",
    "monkeyhear": "hear no evil monkey", "monkeysee": "see no evil monkey", "monkeyspeak": "speak no evil monkey",
    "mouse": "mouse face", "mouseside": "mouse", "monkey": "monkey",
    "negativesquaredlatincaptiala": "a button blood type",
    "negativesquaredlatincaptialb": "b button blood type", "negativesquaredlatincaptialo": "o button blood type",
    "neutral": "neutral face", "nogesture": "person gesturing no", "nomouth": "face without mouth",
    "nooneunder18symbol": "no one under eighteen", "notebookdecorativecover": "notebook with decorative cover",
    "notepad": "spiral notepad", "okgesture": "person gesturing ok", "oldpersonalcomputer": "desktop computer",
    "onarrowleftright": "on arrow", "onebuttonmouse": "computer mouse", "twobuttonmouse": "computer mouse",
    "threebuttonmouse": "computer mouse", "openfolder": "open file folder",
    "openmailboxlowered": "open mailbox with lowered flag", "openmailboxraised": "open mailbox with raised flag",
    "openmouth": "face with open mouth", "opticaldiscicon": "optical disk", "opticaldisc": "optical disk",
    "outbox": "outbox tray", "page": "page facing up", "pensive": "pensive face", "perservere": "persevering face",
    "phonerightarrowleft": "mobile phone with arrow", "pig": "pig face", "pigside": "pig", "pigsnout": "pig nose",
    "pinkwallet": "purse", "portablestereo": "radio", "potablewatersystem": "potable water", "pout": "enraged face",
    "pouting": "person pouting", "pray": "folded hands", "present": "wrapped gift", "printericon": "printer",
    "racecar": "racing car", "raincloud": "cloud with rain", "raisedhandpartfingers": "vulcan salute",
    "raisedhandsfingerssplayed": "hand with fingers splayed", "relieved": "relieved face",
    "reminder": "reminder ribbon",
    "reversehandmiddlefinger": "middle finger", "reverseraisedhandsfingerssplayed": "hand with fingers splayed",
    "reversethumbsdown": "thumbs down", "reversethumbsup": "thumbs up", "reversevictoryhand": "victory hand",
    "right": "right arrow", "rightmagnifyingglass": "magnifying glass tilted right",
    "rightspeaker": "speaker low volume", "rightspeaker3soundwaves": "speaker high volume",
    "rightspeechbubble": "speech balloon", "rightthoughtbubble": "thought balloon", "ringingbell": "bell",
    "running": "person running", "sandals": "woman's sandal", "screamfear": "face screaming in fear",
    "sidewaysdownpointingindex": "backhand index pointing down",
    "sidewaysleftpointingindex": "backhand index pointing left",
    "sidewaysrightpointingindex": "backhand index pointing right",
    "sidewaysuppointingindex": "backhand index pointing up",
    "sidewaysblackdownpointingindex": "backhand index pointing down",
    "sidewaysblackleftpointingindex": "backhand index pointing left",
    "sidewaysblackrightpointingindex": "backhand index pointing right",
    "sidewaysblackuppointingindex": "backhand index pointing up", "silhouetteohjapan": "map of japan",
    "sixpointedstarwithdot": "dotted six pointed star", "sleeping": "sleeping face", "sleepy": "sleepy face",
    "sleuthspy": "detective", "smallfrown": "slightly frowning face", "smallsmile": "slightly smiling face",
    "smileeyes": "smiling face with smiling eyes", "smiletongue": "face savoring food", "smirk": "smirking face",
    "snowcloud": "cloud with snow", "snowmountains": "snow capped mountain", "soonwithrightarrow": "soon arrow",
    "speaker3soundwaves": "speaker high volume", "speakercancellation": "muted speaker",
    "speakeronesoundwave": "speaker medium volume", "speakerwith1soundwave": "speaker medium volume",
    "speechbubble": "speech balloon", "spurtingwhale": "spouting whale", "squaredup": "up button",
    "stampedenvelope": "envelope", "stockchart": "chart increasing", "stormcloud": "cloud with lightning",
    "studiomic": "studio microphone", "sunglasses": "smiling face with sunglasses", "darksunglasses": "sunglasses",
    "sunraincloud": "sun behind rain cloud", "sunrays": "sun", "sweat": "downcast face with sweat",
    "sweatsplash": "sweat droplets", "swimming": "person swimming", "tapecartridge": "videocassette",
    "telephonereceiver2": "telephone receiver", "ten": "keycap 10", "tennisball": "tennis",
    "thoughtbaloon": "thought balloon", "threenetworkedcomputers": "three networked computers",
    "threespeechbubbles": "speech balloon", "tie": "necktie", "tiger": "tiger face", "tigerside": "tiger",
    "tired": "tired face", "tongueout": "face with tongue", "tongueoutwink": "winking face with tongue",
    "tongueoutwink2": "squinting face with tongue", "topwithupwardsarrow": "top arrow", "toykotower": "tokyo tower",
    "triumph": "face with steam from nose", "turban": "person wearing turban", "turnedokhand": "ok hand",
    "twospeechbubbles": "speech balloon", "unamused": "unamused face", "up": "up arrow",
    "uppointingsmallredtrisngle": "red triangle pointed up", "uppointingredtriangle": "red triangle pointed up",
    "waitress": "person tipping hand", "walking": "person walking", "waningbibbousmoon": "waning gibbous moon",
    "wave": "water wave", "waving": "waving hand", "weary": "weary face", "wedding": "wedding",
    "whitedownpointinglefthand": "backhand index pointing down", "whiteexclaimationmark": "white exclamation mark",
    "whitelatincross": "latin cross", "whitestar": "star", "whitemediumstar": "star", "whitesun": "sun",
    "whitesmilingface": "smiling face", "whitesunsmallcloud": "sun behind small cloud",
    "whitesunbehindcloud": "sun behind large cloud", "whitetouchtonephone": "telephone", "winking": "winking face",
    "wiredkeyboard": "keyboard", "womansshirt": "woman's clothes", "womanshat": "woman's hat",
    "worried": "worried face", "hampster": "hamster", "hocho": "kitchen knife", "poo": "pile of poo",
    "saggitarius": "sagittarius", "videocasette": "videocassette", "roastedsweetpotato": "roasted sweet potato",
    "horseface": "horse face", "cow": "cow", "highspeedtrain": "high speed train", "daggerknife": "dagger",
    "clock1oclock": "one o'clock", "clock2oclock": "two o'clock", "clock3oclock": "three o'clock",
    "clock4oclock": "four o'clock", "clock6oclock": "six o'clock", "clock7oclock": "seven o'clock",
    "clock12oclock": "twelve o'clock", "clock1thirty": "one thirty", "clock2thirty": "two thirty",
    "clock3thirty": "three thirty", "clock4thirty": "four thirty", "clock5thirty": "five thirty",
    "clock6thirty": "six thirty", "clock7thirty": "seven thirty", "clock12thirty": "twelve thirty",
    "italianflag": "flag of italy", "spanishflag": "flag of spain", "russianflag": "flag of russia",
    "chineseflag": "flag of china", "greatbritainflag": "flag of united kingdom", "koreaflag": "flag of south korea",
    "franceflag": "flag of france", "japanflag": "flag of japan", "blackmissingsmiley": "smiling face",
    "blackrosette": "rosette",
    **{f"regionalindicator{letter}": f"letter {letter}" for letter in "abcdefghijklmnopqrstuvwxyz"},
    **{f"cjkunifiedideograph-{letter}": "chinese character" for letter in "abcdefghijk"},
}  # fmt: skip

# Other sets' names → the label they mean.
OTHERS = {
    "pound symbol": "pound banknote", "gesturing ok": "person gesturing ok", "flag of swaziland": "flag of eswatini",
    "flag of cocos islands": "flag of cocos keeling islands", "game dice": "game die",
    "champagne glass": "bottle with popping cork", "red wine glass": "wine glass", "white wine glass": "wine glass",
    "crazy face": "zany face", "amazed face": "astonished face", "flag of turkey": "flag of turkiye",
    "anxious face": "anxious face with sweat", "determined face": "face with steam from nose",
    **{f"digit {word}": f"keycap {digit}" for digit, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])},
}  # fmt: skip

# Labels → what people call the thing, as one more caption (`X face` of an animal is also X).
EVERYDAY_NAMES = {
    "automobile": "car", "evergreen tree": "tree", "deciduous tree": "tree", "red heart": "heart",
    "crescent moon": "moon", "hot beverage": "cup of coffee", "gem stone": "diamond", "wrapped gift": "gift",
    "glasses": "eyeglasses", "open book": "book", "closed book": "red book", "jack o lantern": "pumpkin",
    "sport utility vehicle": "car", "fallen leaf": "leaf", "beer mug": "beer", "wine glass": "glass of wine",
    "soccer ball": "football", "soft ice cream": "ice cream cone", "doughnut": "donut", "shortcake": "cake",
    "house with garden": "house", "high voltage": "lightning", "lady beetle": "ladybug", "honeybee": "bee",
    "musical note": "note", "loudspeaker": "megaphone", "ear of corn": "corn", "hot pepper": "red pepper",
    "sun with face": "sun", "full moon face": "moon", "glowing star": "star", "spouting whale": "whale",
    "spiral shell": "shell", "locomotive": "steam train", "delivery truck": "truck", "articulated lorry": "truck",
    "necktie": "tie", "wrist watch": "watch", "cooking": "fried egg", "poultry leg": "chicken leg",
    "pile of poo": "poo", "front facing baby chick": "chick", "globe showing americas": "earth",
    "globe showing europe africa": "earth", "globe showing asia australia": "earth", "t-shirt": "shirt",
    "running shoe": "sneaker", "person running": "runner", "mobile phone": "smartphone", "desktop computer": "computer",
}  # fmt: skip
ANIMALS = frozenset(
    "cat dog cow pig mouse rabbit tiger horse monkey dragon unicorn panda bear wolf fox hamster lion frog".split()
)

# Last words that take no article.
UNCOUNTED = frozenset(
    """locked unlocked foggy fog construction bread butter bacon broccoli dna voltage ice salt wood soap popcorn rice
    sushi spaghetti garlic hockey lacrosse badminton pong sake candy coral custard fondue oden luggage yarn thread fuji
    food tea liquid salad cricket rail landslide decoration volume fire mate food""".split()
)
