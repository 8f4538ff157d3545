"""Library modules written in C and in Python: hashes, floating point, long integers, text."""

import decimal
import fractions
import hashlib
import json
import math
import random
import re
import struct
import zlib
from pathlib import Path

data = Path("corpus").read_bytes()
print(hashlib.sha512(data).hexdigest(), hashlib.blake2b(data).hexdigest(), zlib.crc32(data))
print(math.pi**math.e, math.sin(1e22), math.gamma(5.5), math.fsum([0.1] * 10), 2**0.5)
print(decimal.Decimal(2).sqrt(decimal.Context(prec=60)), fractions.Fraction(0.1))
print(3**500 % 10**40, 7**300 // 11**80, 1e308 * 10, -(1e308) * 10)
random.seed(5)
print([random.gauss(0, 1) for _ in range(5)], random.getrandbits(200))
words = re.findall(rb"[a-z]+", data)
print(len(words), len(set(words)), sorted(words)[:5])
print(json.dumps({str(n): [n / 7, n**0.5] for n in range(30)}))
print(struct.pack("<dfq", 1 / 3, 2 / 3, -5).hex(), complex(1, 2) ** 3.5, float.hex(0.1 + 0.2))
print(round(2.675, 2), f"{1e-320:.30g}", sum(n * n for n in range(100_000)))
