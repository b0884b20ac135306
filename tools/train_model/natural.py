"""Sentences written by hand, not by the generator: how people might really put it. No line here was used for training, and
none was changed to suit the model; what it gets wrong stays here and is reported.
"""
import random

from sessions import CAN_DO, DIVISION_BY_ZERO, HELLO, Maker, NO_PRICE, NOTHING_REMEMBERED, calculate

# (kind, what the user writes, what the model has to make of it)
CALC = [
    ("what is 17 + 25?", "17 + 25"), ("What's 17+25", "17 + 25"), ("17+25", "17 + 25"), ("17 + 25 = ?", "17 + 25"), ("How much is 12 times 12?", "12 * 12"),
    ("please add 40 and 2", "40 + 2"), ("Could you multiply 19 by 21 for me?", "19 * 21"), ("whats 100 minus 37", "100 - 37"), ("I'd like to know what 8 * 7 is", "8 * 7"),
    ("Can you tell me what 144 divided by 12 is?", "144 / 12"), ("Subtract 15 from 100.", "100 - 15"), ("what do I get if I add 7 and 9?", "7 + 9"),
    ("sum of 250 and 750", "250 + 750"), ("What is the product of 6 and 7?", "6 * 7"), ("calculate 3 plus 4 plus 5", "3 + 4 + 5"), ("1024/8", "1024 / 8"), ("What is 2.5 * 4?", "2.5 * 4"),
    ("Seven times eight please", "7 * 8"), ("hi, what is 5 minus 8?", "5 - 8"), ("how many is 60 + 60", "60 + 60"),
]
PRICE = [
    ("what does a tozek cost?", "tozek"), ("How much is a tozek?", "tozek"), ("price of tozek please", "tozek"), ("What's the price of an apple?", "apple"), ("Do you know what a lamp costs?", "lamp"),
    ("How much do you want for a chair?", "chair"), ("tell me the price of coffee", "coffee"), ("tozek price?", "tozek"), ("And the price of bread?", "bread"), ("I wonder how much a banuko costs", "banuko"),
    ("what is the price of one banuko?", "banuko"), ("Please look up the price of butter.", "butter"),
]
TOTAL = [
    ("how much are 12 tozek?", "12", "tozek"), ("How much are 12 tozek", "12", "tozek"), ("what do 3 lamps cost?", "3", "lamps"), ("I need 25 screws, what's the total?", "25", "screws"),
    ("What would 7 banuko cost me?", "7", "banuko"), ("price for 40 pens?", "40", "pens"), ("How much would I pay for 6 chairs?", "6", "chairs"), ("I want to buy 15 tozek. How much is that?", "15", "tozek"),
    ("What is the price of 12 pieces of tozek?", "12", "tozek"), ("total price for 100 nails please", "100", "nails"), ("how much for two coffees", "2", "coffees"), ("Give me the total for 9 apples", "9", "apples"),
]
REMEMBER = [
    ("remember that my code is kato", "code", "kato"), ("Remember that my code is kato.", "code", "kato"), ("my code is kato", "code", "kato"), ("Please remember: my locker code is 4711", "locker code", "4711"),
    ("My name is Anna", "name", "Anna"), ("Please keep in mind that my dog is called rex", "dog", "rex"), ("My favourite color is blue, please remember that.", "favourite color", "blue"),
    ("note that the wifi password is zuli88", "wifi password", "zuli88"), ("Remember my birthday is monday", "birthday", "monday"), ("you should remember that my team is falcon", "team", "falcon"),
    ("call me Tom", "name", "Tom"), ("Set my pin to 9921", "pin", "9921"),
]
RECALL = [
    ("what is my code?", "code"), ("What's my code?", "code"), ("what was my code again?", "code"), ("Do you remember my locker code?", "locker code"), ("tell me my name please", "name"),
    ("What did I tell you about my dog?", "dog"), ("Who am I?", "name"), ("whats my pin", "pin"), ("Can you tell me the wifi password?", "wifi password"), ("I forgot my code", "code"),
    ("Which team did I tell you?", "team"), ("my code?", "code"),
]
TALK = [("Hello!", HELLO), ("hi", HELLO), ("Good morning", HELLO), ("Thanks!", "You are welcome."), ("thank you", "You are welcome."), ("What can you do?", CAN_DO), ("Bye!", "Goodbye."),
        ("What is the capital of France?", CAN_DO), ("Tell me a joke", CAN_DO), ("Write me a poem about the sea", CAN_DO), ("who are you?", CAN_DO), ("What's the weather like today?", CAN_DO)]


class Plain(Maker):
    """Tools that never fail by chance."""

    def call(self, name, arguments, result):
        self.r = random.Random(1)
        self.r.random = lambda: 0.5
        return super().call(name, arguments, result)


def natural_sessions():
    """-> (messages, kinds) of one turn each, and a few conversations"""
    r, out = random.Random(2), []

    def single(kind, text, rest):
        m = Plain(r)
        m.kinds.append(kind)
        m.user(text)
        rest(m)
        out.append((m.messages, m.kinds))

    for text, expression in CALC:
        single("calc", text, lambda m: m.calculated(expression.split(), expression + " = {v}."))
    for i, (text, item) in enumerate(PRICE):
        def price_turn(m):
            known = "12.50" if i % 4 else None
            m.call("price", {"item": item}, known or NO_PRICE)
            m.answer(f"The price of {item} is {known}." if known else f"I have no price for {item}.")
        single("price", text, price_turn)
    for text, count, item in TOTAL:
        def total_turn(m):
            m.call("price", {"item": item}, "2.50")
            m.calculated([count, "*", "2.50"], f"{count} {item} cost {{v}}.")
        single("total", text, total_turn)
    for text, key, value in REMEMBER:
        def remember_turn(m):
            m.call("memory_set", {"key": key, "value": value}, "remembered")
            m.answer(f"I will remember that your {key} is {value}.")
        single("remember", text, remember_turn)
    for i, (text, key) in enumerate(RECALL):
        def recall_turn(m):
            value = "kato" if i % 4 else None
            m.call("memory_get", {"key": key}, value or NOTHING_REMEMBERED)
            m.answer(f"Your {key} is {value}." if value else f"I do not know your {key}.")
        single("recall", text, recall_turn)
    for text, reply in TALK:
        single("talk", text, lambda m: m.answer(reply))
    single("calc", "What is 5 / 0?", lambda m: m.calculated(["5", "/", "0"], ""))
    assert calculate(["5", "/", "0"]) is None and DIVISION_BY_ZERO
    return out
