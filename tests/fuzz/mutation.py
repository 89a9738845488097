"""PTX with a few tokens changed."""

import random
import re

TOKEN = re.compile(r"\s+|//[^\n]*|\.[A-Za-z_][\w:]*|%?[\w$]+|.", re.DOTALL)
NUMBERS = [0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 255, 256, 1023, 1024, 4095, 65535, 65536]
NUMBERS += [2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -1, -2, -8, -128, -(2**31)]
# Operands of every kind, and values at the edges of what fields hold.
ODD = (
    *("%r1", "%d1", "%p1", "%h1", "%f1", "%q1", "_", "L", "smem", "smem+4", "smem[3]", "number", "%tid.x", "%clock64"),
    *("0", "-1", "16", "0x80000000", "4294967296", "18446744073709551615", "-9223372036854775808", "1.5", "1e999"),
    *("0f7F800000", "0d7FF0000000000000", "WARP_SZ", "!%p1", "!nosuch", "nosuch", "%r1|%p1", "_|%p1", "{}", "{%r1}"),
    *("{_, _}", "{1, -1}", "{{%r1}}", "{%r1, %r2, %r3, %r4, %r5, %r6, %r7, %r8, %r9}", "[%d1]", "[%r1+-1]", "[smem]"),
    *("[5]", "[%p1]", "[%f1+4]", "[smem[9]]", "[%d1+9223372036854775807]", "[nosuch]", "[-1]", "1/0", "(1, 2)", ""),
)


def mutated(text: str, words: list[str], rng: random.Random) -> str:
    """The text with one to four tokens changed, dropped, doubled or exchanged."""
    tokens = TOKEN.findall(text)
    places = [n for n, token in enumerate(tokens) if not token.isspace() and not token.startswith("//")]
    body = [n for n in places if n > tokens.index("{")] if "{" in tokens else places
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4))):
        n = rng.choice(body if body and rng.random() < 0.9 else places)
        how = rng.random()
        if how < 0.5 and tokens[n]:
            tokens[n] = _similar(tokens[n], [tokens[rng.choice(places)] for _ in range(20)], words, rng)
        elif how < 0.65:
            tokens[n] = ""
        elif how < 0.75:
            tokens[n] += " " + tokens[n]
        elif how < 0.85:
            tokens[n] = rng.choice(words)
        else:
            other = rng.choice(body or places)
            tokens[n], tokens[other] = tokens[other], tokens[n]
    return "".join(tokens)


def _similar(token: str, others: list[str], words: list[str], rng: random.Random) -> str:
    """Another token of the same kind."""
    if re.fullmatch(r"\d\w*", token):
        return str(rng.choice(NUMBERS))
    kind = token[0]
    same = [other for other in others if other[:1] == kind and other != token]
    if kind == "." or not same:
        same = [word for word in rng.choices(words, k=40) if word[0] == kind] or same
    return rng.choice(same) if same else rng.choice(words)
