"""Thousands of prompts of many kinds, made from a seed. Needs NumPy only."""

import zlib

import numpy as np

SENTENCES = (
    "A golden retriever runs along the beach at sunset, waves crashing behind it.",
    "Close-up of a barista pouring steamed milk; latte art slowly forms, 4K, f/1.8.",
    "An astronaut floats above the Earth while city lights glitter in the night below.",
    "The camera pans left across a foggy pine forest, cinematic, highly detailed.",
    "Two children are flying a red kite on a green hill under heavy grey clouds.",
    "All human beings are born free and equal in dignity and rights.",
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
    "Todos los seres humanos nacen libres e iguales en dignidad y derechos.",
    "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια.",
    "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心。",
    "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
    "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता है।",
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์",
    "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm.",
    "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar.",
    "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności.",
)
_ODD = (
    *("🐶", "👩‍🚀", "🇯🇵", "❤️", "👍🏽", "🏳️‍🌈", "©", "™", "№", "ﬁ", "½", "①", "Ａ", "Å"),
    *("&amp;", "&lt;b&gt;", "&#39;", "&quot;", "&amp;amp;", "&nbsp;", "&hearts;", "&"),
    *("</s>", "<pad>", "<unk>", "<extra_id_0>", "<extra_id_99>", "<extra_id_100>"),
    *("<|endoftext|>", "<|startoftext|>", "<|begin_of_text|>", "<|eot_id|>", "<s>"),
    *("\u2581", "\u200b", "\u200d", "\ufeff", "\u00ad", "\u202e", "e\u0301", "\x00"),
    *("\x07", "\ufffd", "\U0001f9ff", "\ue000", "𝔘𝔫𝔦", "Ⅳ", "ǅ", "ß", "İ", "ı", "Σς"),
    *("don't", "I'LL", "we've", "it's", "--", "...", "…", "“q”", "«", "1,234.5", "3d"),
    *("schÃ¶n", "donâ€™t", "ÃƒÂ©", "â€œ", "http://x.y/?a=1&b=2", "a_b", "#tag", "@me"),
)
_SPACES = (" ", " ", " ", " ", " ", "  ", "   ", "\t", "\n", "\r\n", "\u00a0", "\u3000")
_RARE_SPACES = ("\u2009", "\u2028", "\x0b", "\x0c", "\x85", "\u1680", "\x1c", "")
COUNT = 3000


class _Stream:
    """Numbers from the raw output of PCG64, which NumPy keeps between releases."""

    def __init__(self, seed: int):
        self._bits = np.random.PCG64(seed)

    def below(self, bound: int) -> int:
        return int(self._bits.random_raw() >> 11) % bound

    def choice(self, items):
        return items[self.below(len(items))]


def _word(stream: _Stream) -> str:
    kind = stream.below(8)
    if kind == 0:
        return stream.choice(_ODD)
    if kind == 1:
        # Any character of the basic plane but the surrogates.
        code = stream.below(0xFFFF - 0x800)
        return chr(code if code < 0xD800 else code + 0x800)
    words = stream.choice(SENTENCES).split(" ")
    word = stream.choice(words)
    if kind == 2:
        return word.upper()
    if kind == 3:
        return word[: 1 + stream.below(len(word))] + stream.choice(_ODD)
    return word


def strings() -> list[str]:
    """The prompts: sentences, words between odd characters and spaces, long ones."""
    stream = _Stream(17)
    found = ["", " ", "\n\t", *SENTENCES, *_ODD, " ".join(SENTENCES)]
    while len(found) < COUNT:
        length = stream.choice((1, 2, 3, 5, 8, 13, 30))
        parts = []
        for _ in range(length):
            spaces = _SPACES if stream.below(8) else _RARE_SPACES
            parts += [_word(stream), stream.choice(spaces)]
        text = "".join(parts)
        found.append(text if stream.below(3) else text.strip())
    return found


def crc_of_ids(ids: np.ndarray) -> int:
    """A checksum of the token ids of one prompt."""
    return zlib.crc32(np.ascontiguousarray(ids, np.int32).tobytes())


def crc_of_text(text: str) -> int:
    """A checksum of a text."""
    return zlib.crc32(text.encode("utf-8"))
