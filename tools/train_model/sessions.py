"""What the small model is trained and examined on: synthetic sessions of one narrow domain.

A session is a list of messages in the shape of Chat Completions, with the texts that Mainstay's runtime produces: names
and arguments of the tools, and results word for word (runtime/session/decide_tool.cpp, runtime/tool/builtin.cpp). Only
the standard library is used; a session depends on nothing but the random.Random that it is made with.
"""
import json
from fractions import Fraction

# Texts of the runtime. A change there is a change here, and a training anew.
REMEMBERED = "remembered"
FORGOTTEN = "forgotten"
NOTHING_REMEMBERED = "nothing is remembered under this key"
NO_PRICE = "no price is known for this item"
DIVISION_BY_ZERO = "division by zero"

CAN_DO = "I can calculate, look up prices, remember things and tell the time."
DID_NOT_WORK = "Sorry, that did not work."
UNKNOWN_OUTCOME = "Sorry, I cannot tell whether that worked."

CONSONANTS, VOWELS = "bcdfghjklmnprstvwzkxyq", "aeiou"
NOUNS = (
    "apple apples pear banana bananas orange lemon plum grape grapes melon cherry cherries carrot potato potatoes onion garlic "
    "tomato bread butter cheese milk egg eggs sugar salt pepper rice flour honey tea coffee juice water wine beer cake "
    "cookie soup pen pens pencil pencils paper book books lamp chair table desk sofa shelf cup cups plate bowl spoon knife fork "
    "bottle bag box candle rope nail nails hammer screw screws saw drill brush paint wire cable battery bulb phone mouse keyboard "
    "screen ticket tickets stamp stamps shirt shoe shoes sock socks hat coat scarf glove gloves belt ring watch toy ball kite bike tyre bolt "
    "brick bricks tile tiles plank pipe pump valve widget widgets gadget sprocket gear bearing magnet lens filter fuse"
).split()
ADJECTIVES = "red green blue black white small large big fresh dry sweet sour old new cheap fine raw".split()
KEYS = (
    "code name pin password color colour dog cat car city street birthday hobby team song book food drink number room seat "
    "locker badge nickname teacher sister brother friend boss job school plant bike boat phone email address flight "
    "ticket size bank language animal movie game fruit lucky token key word secret signal id login desk gate bus train"
).split()
KEY_PAIRS = (
    "favourite color|favourite food|favorite color|favorite food|favourite song|favorite animal|lucky number|phone number|"
    "door code|gate code|locker code|secret word|room number|seat number|wifi password|bank pin|first name|last name|"
    "best friend|flight number|shoe size|home town|pet name|car key|bike lock|order number|user name"
).split("|")
THE_KEYS = (
    "door code|gate code|locker code|wifi password|room number|meeting room|order number|flight number|code|password|"
    "secret word|deadline|pin|gate|room|code word|alarm code|safe code"
).split("|")
NAMES = (
    "Anna Ben Carla David Emma Felix Greta Hugo Ida Jonas Klara Leo Maria Nils Olga Paul Rosa Simon Tina Urs Vera Walter Yara Zoe "
    "Tom Lisa Kim Alex Sam Max Noah Mia Lena Omar Ali Chen Yuki Raj Priya Ivan"
).split()
VALUES = (
    "blue red green yellow purple orange black white pizza pasta rice soup apple sushi tea coffee milk London Paris Berlin Rome Oslo "
    "Madrid Vienna tennis chess football music piano guitar nurse baker pilot teacher engineer rex luna bella max "
    "monday tuesday friday sunday spring summer winter english german french spanish tiger horse eagle falcon dolphin"
).split()
NUMBER_WORDS = dict(zip(
    "one two three four five six seven eight nine ten eleven twelve fifteen twenty thirty fifty hundred".split(),
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15, 20, 30, 50, 100]))


def word(r):
    """A word that was never seen: half pronounceable, half any letters."""
    d = r.random()
    if d < 0.6:
        text = "".join(r.choice(CONSONANTS) + r.choice(VOWELS) for _ in range(r.randint(1, 3)))
        text += r.choice(CONSONANTS) if r.random() < 0.5 or len(text) < 3 else ""
    elif d < 0.85:
        text = "".join(r.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(r.randint(2, 8)))
    else:
        noun = r.choice(NOUNS)
        at = r.randrange(len(noun))
        text = noun[:at] + r.choice("abcdefghijklmnopqrstuvwxyz") + noun[at + (r.random() < 0.5):]
    if r.random() < 0.06:
        text = text.capitalize()
    return text


def item_name(r):
    d = r.random()
    if d < 0.62:
        return word(r)
    if d < 0.93:
        return r.choice(NOUNS)
    return r.choice(ADJECTIVES) + " " + r.choice([r.choice(NOUNS), word(r)])


def number(r):
    digits = r.choices([1, 2, 3, 4, 5], [22, 42, 24, 10, 2])[0]
    return r.randint(10 ** (digits - 1) if digits > 1 else 0, 10 ** digits - 1)


def price(r):
    d = r.random()
    if d < 0.35:
        return str(r.randint(1, 99))
    whole = r.choice([r.randint(0, 9), r.randint(0, 99), r.randint(0, 999)])
    return f"{whole}.{r.randint(0, 99):02d}" if d < 0.85 else f"{whole}.{r.choice([5, 50]):02d}"


def value_of(r):
    d = r.random()
    if d < 0.40:
        return word(r)
    if d < 0.58:
        return str(r.randint(0, 10 ** r.randint(1, 6) - 1))
    if d < 0.68:
        return word(r) + str(r.randint(0, 999))
    if d < 0.76:
        return r.choice(NAMES)
    if d < 0.92:
        return r.choice(VALUES)
    return r.choice([r.choice(VALUES), word(r)]) + " " + r.choice([r.choice(VALUES), word(r)])


def key_name(r):
    d = r.random()
    return word(r).lower() if d < 0.35 else r.choice(KEYS) if d < 0.82 else r.choice(KEY_PAIRS)


def show(value):
    """A result as the tool `calc` prints it: at most six decimals, none that say nothing."""
    scaled = abs(value) * 10 ** 6
    whole = (2 * scaled.numerator + scaled.denominator) // (2 * scaled.denominator)  # half away from zero
    text = str(whole // 10 ** 6)
    rest = f"{whole % 10 ** 6:06d}".rstrip("0")
    if rest:
        text += "." + rest
    return "-" + text if value < 0 and whole else text


def calculate(terms):
    """terms: number text, operator, number text, ...; products before sums, left to right; None: division by zero."""
    values, signs = [Fraction(terms[0])], []
    for op, text in zip(terms[1::2], terms[2::2]):
        v = Fraction(text)
        if op == "*":
            values[-1] *= v
        elif op == "/":
            if v == 0:
                return None
            values[-1] /= v
        else:
            signs.append(op)
            values.append(v)
    total = values[0]
    for sign, v in zip(signs, values[1:]):
        total = total + v if sign == "+" else total - v
    return show(total)


# ---- how people put it -----------------------------------------------------------------------------------------------

def say(r, text, question=True):
    """One of the ways in which somebody types this sentence."""
    if r.random() < 0.10:
        text = r.choice(["please ", "hey, ", "hi, ", "ok, ", "now ", "and ", "so ", "then ", "quick: ", "also, "]) + text
    if r.random() < 0.10:
        text += r.choice([" please", ", please", " now", " then", " again"] if question else [" please", ", please", ", ok", ", thanks"])
        if text.endswith("again") and r.random() < 0.5:
            text = text[:-6]
    if r.random() < 0.55:
        text = text[0].upper() + text[1:]
    d = r.random()
    if question:
        text += "?" if d < 0.6 else "" if d < 0.85 else "." if d < 0.93 else " ?" if d < 0.97 else "!"
    else:
        text += "." if d < 0.45 else "" if d < 0.9 else "!"
    return text


def whats(r):
    return r.choice(["what is", "what is", "what is", "what's", "what's", "whats", "tell me", "do you know", "say", "give me", "i need", "i want to know"])


class Mix:
    """How often what is rare comes. Examinations use `usual`; the end of the training dwells on what is hard."""

    def __init__(self, turns, number_words, calc):
        self.turns, self.number_words, self.calc = turns, number_words, calc


USUAL = Mix([53, 25, 11, 6, 5], 0.05, 27)
HARD = Mix([35, 27, 16, 11, 11], 0.16, 36)
mix = USUAL


def spoken(r, value, words=tuple(NUMBER_WORDS)):
    """A number as it is typed: digits, rarely a word; and as it goes into a call."""
    if r.random() < mix.number_words:
        text = r.choice(words)
        return text, str(NUMBER_WORDS[text])
    return str(value), str(value)


def operand(r):
    if r.random() < 0.08:
        text = f"{r.randint(0, 99)}.{r.choice([r.randint(1, 9), r.randint(10, 99)])}"
        return text, text
    return spoken(r, number(r))


OP_WORDS = {"+": ["plus"], "-": ["minus"], "*": ["times", "multiplied by", "x"], "/": ["divided by", "over"]}


def calc_turn(r):
    """-> sentence of the user, terms of the expression"""
    (xs, x), (ys, y) = operand(r), operand(r)
    op = r.choices("+-*/", [32, 26, 28, 14])[0]
    if r.random() < 0.09:  # a chain of three
        zs, z = operand(r)
        op2 = r.choice("+-*")
        if r.random() < 0.7:
            sep = r.choice([" ", " ", ""])
            text = f"{xs}{sep}{op}{sep}{ys}{sep}{op2}{sep}{zs}"
        else:
            text = f"{xs} {OP_WORDS[op][0]} {ys} {OP_WORDS[op2][0]} {zs}"
        terms = [x, op, y, op2, z]
        text = r.choice(["", whats(r) + " ", "calculate ", "compute ", "how much is "]) + text
        return say(r, text), terms
    terms = [x, op, y]
    d = r.random()
    if d < 0.42:
        sign = op
        if op == "*" and r.random() < 0.35:
            sign = "x"
        sep = r.choice([" ", " ", " ", ""])
        body = f"{xs}{sep}{sign}{sep}{ys}"
    elif d < 0.72:
        body = f"{xs} {r.choice(OP_WORDS[op])} {ys}"
    else:
        forms = {
            "+": ["add {x} and {y}", "add {x} to {y}", "the sum of {x} and {y}", "sum of {x} and {y}", "sum {x} and {y}", "add {x} {y}"],
            "-": ["subtract {y} from {x}", "take {y} from {x}", "take {y} away from {x}", "the difference of {x} and {y}",
                  "the difference between {x} and {y}", "subtract {y} from {x}"],
            "*": ["multiply {x} by {y}", "multiply {x} and {y}", "the product of {x} and {y}", "multiply {x} with {y}"],
            "/": ["divide {x} by {y}", "the quotient of {x} and {y}", "divide {x} by {y}"],
        }[op]
        form = r.choice(forms)
        body = form.format(x=xs, y=ys)
        if form.startswith(("the ", "sum of")):
            body = r.choice([whats(r) + " ", whats(r) + " ", "calculate ", "compute ", ""]) + body
        else:
            body = r.choice(["", "", "can you ", "could you ", "i want to "]) + body
        return say(r, body, r.random() < 0.5), terms
    lead = r.choice([whats(r) + " ", "what is ", "what's ", "how much is ", "calculate ", "compute ", "", "", "can you calculate ", "please calculate ",
                     "what do you get for ", "work out ", "what does ", "solve "])
    if lead == "what does ":
        body += r.choice([" make", " give", " equal"])
    elif r.random() < 0.05:
        body += r.choice([" =", "="])
    return say(r, lead + body), terms


def price_turn(r, item):
    art = r.choice(["", "", "", "a ", "the ", "one "]) if " " not in item else ""
    if art == "a " and item[0].lower() in VOWELS:
        art = "an "
    if r.random() < 0.04:  # begins with the name, so a capital letter there would be the name's own
        return item + " price" + r.choice(["", "?"])
    return say(r, r.choice([
        "{w} the price of {a}{i}", "{w} the price of {a}{i}", "price of {i}", "price of {a}{i}", "how much is {a}{i}", "how much does {a}{i} cost", "what does {a}{i} cost",
        "how much are {i}", "how much do {i} cost", "what do {i} cost", "{w} the cost of {a}{i}", "cost of {i}", "the price of {i}",
        "tell me the price of {a}{i}", "can you tell me the price of {a}{i}", "look up the price of {i}", "how expensive is {a}{i}",
        "what do you charge for {a}{i}", "what is the price for {a}{i}", "check the price of {i}", "price for {i}", "do you know the price of {i}",
        "could you look up the price of {i}", "what would {a}{i} cost me", "how much for {a}{i}", "what's {a}{i} going for", "find the price of {i}",
    ]).format(i=item, a=art, w=whats(r)))


def total_turn(r, count, item):
    of = r.choice(["", "", "", "", "", "pieces of ", "units of "])
    n = f"{count} {of}{item}"
    return say(r, r.choice([
        "how much are {n}", "how much are {n}", "how much is {n}", "what do {n} cost", "how much do {n} cost", "how much would {n} cost", "{w} the price of {n}",
        "price of {n}", "total for {n}", "{w} the total for {n}", "i want {n}, what is the total", "i want to buy {n}", "i need {n}, how much is that",
        "{n}", "cost of {n}", "{w} the cost of {n}", "how much for {n}", "what would {n} cost", "i would like {n}, what do they cost",
        "calculate the price of {n}", "what do i pay for {n}", "how much money do i need for {n}", "can you tell me the price of {n}", "how much will {n} be",
        "if i buy {n}, what do i pay", "price for {n}", "tell me the price of {n}", "i'd like {n}, how much is it",
    ]).format(n=n, w=whats(r)))


def remember_turn(r, key, value, the):
    own = "the" if the else "my"
    return say(r, r.choice([
        "remember that {o} {k} is {v}", "remember that {o} {k} is {v}", "remember {o} {k} is {v}", "please remember that {o} {k} is {v}", "{o} {k} is {v}", "{o} {k} is {v}",
        "{o} {k} is {v}, remember it", "{o} {k} is {v}, please remember that", "note that {o} {k} is {v}", "note: {o} {k} is {v}",
        "remember: {o} {k} is {v}", "remember this: {o} {k} is {v}", "keep in mind that {o} {k} is {v}", "don't forget that {o} {k} is {v}",
        "remember {v} as {o} {k}", "save {v} as {o} {k}", "store {o} {k}: {v}", "set {o} {k} to {v}", "save {o} {k} as {v}", "can you remember that {o} {k} is {v}",
        "i want you to remember that {o} {k} is {v}", "could you remember {o} {k} is {v}", "from now on {o} {k} is {v}", "write down that {o} {k} is {v}",
        "remember {o} {k}: {v}", "change {o} {k} to {v}", "{o} {k} is now {v}", "you should know that {o} {k} is {v}",
    ]).format(o=own, k=key, v=value), False)


def introduce_turn(r, name):
    return say(r, r.choice(["call me {v}", "i am {v}", "i'm {v}", "my name is {v}", "i am called {v}", "please call me {v}", "you can call me {v}"]).format(v=name), False)


def recall_turn(r, key, the):
    own = "the" if the else "my"
    if key == "name" and r.random() < 0.4:
        return say(r, r.choice(["who am i", "what am i called", "do you know who i am", "what is my name", "what's my name"]))
    forms = [
        "{w} {o} {k}", "what is {o} {k}", "what is {o} {k}", "what's {o} {k}", "do you know {o} {k}", "do you remember {o} {k}", "tell me {o} {k}", "what was {o} {k}",
        "can you tell me {o} {k}", "{o} {k}", "i forgot {o} {k}, what is it", "what {k} did i tell you", "recall {o} {k}", "remind me of {o} {k}",
        "can you remember {o} {k}", "please tell me {o} {k}", "do you still know {o} {k}", "do you still remember {o} {k}", "what did i say {o} {k} is", "what is {o} {k} again",
        "look up {o} {k}", "could you tell me {o} {k}", "what did i tell you about {o} {k}", "i need {o} {k}",
    ]
    return say(r, r.choice(forms).format(o=own, k=key, w=whats(r)))


def forget_turn(r, key, the):
    return say(r, r.choice(["forget {o} {k}", "please forget {o} {k}", "delete {o} {k}", "you can forget {o} {k}", "remove {o} {k}", "erase {o} {k}",
                            "forget about {o} {k}", "don't remember {o} {k} any more"]).format(o="the" if the else "my", k=key), False)


HELLO = "Hello! Ask me for a sum or a price, or tell me something to remember."
SMALL_TALK = [
    (["hello", "hi", "hey", "good morning", "good evening", "hello there", "hi there", "good day", "hey there", "hello mainstay", "greetings", "good afternoon", "hi, how are you",
      "hello, how are you", "how are you", "moin", "hallo", "yo"], HELLO),
    (["thanks", "thank you", "thank you very much", "many thanks", "great, thanks", "thanks a lot", "ok thanks", "cheers", "perfect, thank you", "nice, thanks", "thx",
      "thank you so much"], "You are welcome."),
    (["bye", "goodbye", "see you", "good night", "bye bye", "see you later", "that is all", "see you tomorrow", "ciao", "have a nice day"], "Goodbye."),
    (["what can you do", "help", "who are you", "what are you", "how can you help me", "what do you do", "help me", "what can i ask you", "what are you able to do",
      "are you a robot", "what is this", "how does this work", "what can you do for me", "are you human", "who made you", "what is your name"], CAN_DO),
    (["ok", "fine", "great", "good", "nice", "cool", "i see", "alright", "very good", "well done", "yes", "no", "perfect", "awesome", "okay", "super"], "All right."),
]
ELSEWHERE = [
    "tell me a joke", "write a poem about {i}", "what is the capital of {v}", "who is {n}", "what is the weather in {v}", "how is the weather", "translate {i} to german",
    "write an essay about {i}", "who won the game", "what is the meaning of life", "tell me a story about {i}", "sing a song", "how do i cook {i}", "why is the sky blue",
    "is {i} healthy", "who wrote {v}", "where is {v}", "how far is {v}", "explain {i} to me", "what do you think about {i}", "draw a picture of {i}", "open the door",
    "play some music", "send an email to {n}", "book a flight to {v}", "write code for {i}", "how old is {n}", "do you like {i}", "are you happy", "where is {n}",
    "what is {i} made of", "can you dance", "what happened in {v}", "who invented {i}", "is it going to rain", "what is love", "give me advice", "tell me about {v}",
    "how do you make {i}", "can i eat {i}", "what is the news", "recommend a book", "i am bored", "i am hungry", "i like {i}", "{n} is here", "why",
    "how many people live in {v}", "turn on the light", "call {n}", "define {i}", "spell {i}", "what colour is {i}", "buy {i} for me", "summarize {i}",
]
FAILURES = [
    "Error: tool_timeout: the tool did not answer within {n} s", "Error: tool_unavailable: {w}", "Error: tool_not_allowed: the agent does not offer {w}",
    "Error: tool_protocol_error: {w} {w}", "Error: tool_result_too_large: the answer has {n} bytes", "Error: {w} {w} {w}", "Error: {w}",
]
UNKNOWN = "The outcome of this call is unknown: it may or may not have taken effect."

KINDS = {"calc": 27, "price": 15, "total": 17, "remember": 14, "recall": 14, "forget": 2, "list": 1.5, "clock": 2, "talk": 4, "elsewhere": 3.5}


class Maker:
    """One session in the making: its memory and its price list, and what was said so far."""

    def __init__(self, r):
        self.r, self.messages, self.kinds = r, [], []
        self.memory, self.prices = {}, {}

    def user(self, text):
        self.messages.append({"role": "user", "content": text})

    def answer(self, text):
        self.messages.append({"role": "assistant", "content": text})

    def call(self, name, arguments, result):
        """The call and its result; now and then the tool fails as tools do. Returns what the model is shown."""
        if self.r.random() < 0.012:
            w = lambda: word(self.r)
            result = UNKNOWN if self.r.random() < 0.2 else self.r.choice(FAILURES).replace("{n}", str(number(self.r))).replace("{w}", w(), 1).replace("{w}", w())
        text = json.dumps(arguments, separators=(",", ":"), ensure_ascii=False)
        self.messages.append({"role": "assistant", "tool_calls": [{"name": name, "arguments": text}]})
        self.messages.append({"role": "tool", "content": result})
        return result

    def failed(self, result):
        if result.startswith("Error: "):
            self.answer(DID_NOT_WORK)
            return True
        if result == UNKNOWN:
            self.answer(UNKNOWN_OUTCOME)
            return True
        return False

    def calculated(self, terms, sentence):
        value = calculate(terms)
        result = self.call("calc", {"expression": "".join(terms)}, DIVISION_BY_ZERO if value is None else value)
        if self.failed(result):
            return
        self.answer(f"I cannot calculate that: {result}." if value is None else sentence.format(v=result))

    def price_of(self, item):
        if item not in self.prices:
            self.prices[item] = None if self.r.random() < 0.14 else price(self.r)
        known = self.prices[item]
        return known, self.call("price", {"item": item}, NO_PRICE if known is None else known)

    def old_key(self):
        known = [k for k in self.memory if self.memory[k] is not None]
        return self.r.choice(known) if known and self.r.random() < 0.6 else None

    def turn(self, kind):
        r = self.r
        self.kinds.append(kind)
        if kind == "calc":
            text, terms = calc_turn(r)
            self.user(text)
            self.calculated(terms, " ".join(terms) + " = {v}.")
        elif kind == "price":
            item = r.choice(list(self.prices)) if self.prices and r.random() < 0.15 else item_name(r)
            self.user(price_turn(r, item))
            known, result = self.price_of(item)
            if not self.failed(result):
                self.answer(f"I have no price for {item}." if known is None else f"The price of {item} is {result}.")
        elif kind == "total":
            item = r.choice(list(self.prices)) if self.prices and r.random() < 0.25 else item_name(r)
            shown, count = spoken(r, r.choice([r.randint(2, 20), r.randint(2, 99), r.randint(2, 99), r.randint(100, 999)]),
                                  tuple(NUMBER_WORDS)[1:])  # "one apple" asks for the price
            self.user(total_turn(r, shown, item))
            known, result = self.price_of(item)
            if self.failed(result):
                return
            if known is None:
                self.answer(f"I have no price for {item}.")
            else:
                self.calculated([count, "*", result], f"{count} {item} cost {{v}}.")
        elif kind == "remember":
            the = r.random() < 0.12
            key = r.choice(THE_KEYS) if the else key_name(r)
            value = value_of(r)
            if r.random() < 0.06:
                key, value = "name", r.choice([r.choice(NAMES), word(r).capitalize()])
                self.user(introduce_turn(r, value))
            else:
                self.user(remember_turn(r, key, value, the))
            if not self.failed(self.call("memory_set", {"key": key, "value": value}, REMEMBERED)):
                self.memory[key] = value
                self.answer(f"I will remember that your {key} is {value}.")
        elif kind == "recall":
            the = r.random() < 0.12
            key = self.old_key() or (r.choice(THE_KEYS) if the else key_name(r))
            if key not in self.memory:  # told in an earlier session, or never
                self.memory[key] = None if r.random() < 0.18 else value_of(r)
            self.user(recall_turn(r, key, the))
            value = self.memory[key]
            result = self.call("memory_get", {"key": key}, NOTHING_REMEMBERED if value is None else value)
            if not self.failed(result):
                self.answer(f"I do not know your {key}." if value is None else f"Your {key} is {result}.")
        elif kind == "forget":
            the = r.random() < 0.12
            key = self.old_key() or (r.choice(THE_KEYS) if the else key_name(r))
            if key not in self.memory:
                self.memory[key] = None if r.random() < 0.3 else value_of(r)
            self.user(forget_turn(r, key, the))
            known = self.memory[key] is not None
            if not self.failed(self.call("memory_delete", {"key": key}, FORGOTTEN if known else NOTHING_REMEMBERED)):
                self.memory[key] = None
                self.answer(f"I have forgotten your {key}." if known else f"I do not know your {key}.")
        elif kind == "list":
            for _ in range(r.randint(0, 2)):
                self.memory.setdefault(key_name(r), value_of(r))
            keys = sorted(k for k in self.memory if self.memory[k] is not None)[:6]
            self.user(say(r, r.choice(["what do you remember", "what do you know about me", "list what you remember", "what have i told you", "list your memory",
                                       "which things do you remember", "what did i tell you", "show me your memory"])))
            if not self.failed(self.call("memory_list", {}, json.dumps(keys, separators=(",", ":")))):
                self.answer("I remember: " + ", ".join(keys) + "." if keys else "I remember nothing yet.")
        elif kind == "clock":
            self.user(say(r, r.choice(["what time is it", "what's the time", "tell me the time", "what is the time", "what is the time now", "what day is it", "what is the date", "what date is it",
                                       "do you know what time it is", "what is today's date", "time", "which day is today", "can you tell me the time", "what's the date today", "current time"])))
            day, minute = f"{r.randint(2024, 2035)}-{r.randint(1, 12):02d}-{r.randint(1, 28):02d}", f"{r.randint(0, 23):02d}:{r.randint(0, 59):02d}"
            result = self.call("clock_now", {}, f"{day}T{minute}:{r.randint(0, 59):02d}.{r.randint(0, 999):03d}Z")
            if not self.failed(result):
                self.answer(f"It is {minute} UTC on {day}.")
        elif kind == "talk":
            said, reply = r.choice(SMALL_TALK)
            self.user(say(r, r.choice(said), r.random() < 0.3))
            self.answer(reply)
        else:
            nonsense = " ".join(word(r).lower() for _ in range(r.randint(1, 6)))
            text = nonsense if r.random() < 0.15 else r.choice(ELSEWHERE).replace("{i}", item_name(r)).replace("{v}", r.choice([r.choice(VALUES), word(r)])).replace("{n}", r.choice(NAMES))
            self.user(say(r, text, r.random() < 0.6))
            self.answer(CAN_DO)


def length_of(messages):
    """About the number of tokens: bytes, with the plumbing of calls counted as a few."""
    return sum(len(m.get("content") or "") + 3 + sum(len(c["arguments"]) for c in m.get("tool_calls", [])) for m in messages)


def make_session(r, tokens_max=700, of=USUAL):
    """-> (messages, kinds of its turns)"""
    global mix
    mix = of
    turns = r.choices([1, 2, 3, 4, r.randint(5, 10)], mix.turns)[0]
    maker = Maker(r)
    kinds, weights = list(KINDS), [mix.calc if kind == "calc" else weight for kind, weight in KINDS.items()]
    for _ in range(turns):
        maker.turn(r.choices(kinds, weights)[0])
        if length_of(maker.messages) > tokens_max - 150:
            break
    return maker.messages, maker.kinds


if __name__ == "__main__":
    import random
    import sys
    r = random.Random(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    for _ in range(int(sys.argv[2]) if len(sys.argv) > 2 else 20):
        for m in make_session(r)[0]:
            print(f"{m['role']:10} {m.get('content') or m['tool_calls']}")
        print()
