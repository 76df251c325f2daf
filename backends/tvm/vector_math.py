"""Elementary functions of float32 vectors as multiplications and additions, which every vector unit has.

Each is right within about 2 units in the last place over its whole range, and at infinities and NaN; results below
2^-125 may be flushed to zero. Reductions of the argument are Cody and Waite's (1980) with the constants of Moshier's
Cephes; polynomials of exp and of the normal distribution are least-maximum fits; those of erf are Juffa's. Functions of
float64 call the C library.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx  # type: ignore[import-untyped, unused-ignore]

from backends.tvm.emit import Emitter, Expr, lanes_of, splat

_LOG2_E = 1.44269504088896341
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4  # the high part has 9 bits: its products with exponents are exact
_ROUNDING = 12582912.0  # 1.5 * 2^23: what is added to it is rounded to a whole number, found in the low bits
_ROUNDING_BITS = 0x4B400000
# (exp(r) - 1 - r) / r^2 for |r| <= log(2) / 2, within 3e-9
_EXP = (0.0013814555002558458, 0.00836874611862727, 0.041668390565265286, 0.1666652038897653, 0.4999999343283388)
# (log(1 + f) - f + f^2 / 2) / f^3 for sqrt(1/2) <= 1 + f <= sqrt(2)
_LOG = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
    2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
_SQRT_HALF_BITS = 0x3F3504F3
_ERF_SPLIT = 0.927734375
_ERF_NEAR = (-5.96761703e-4, 4.99119423e-3, -2.67681349e-2, 1.12819925e-1, -3.76125336e-1, 1.28379166e-1)
_ERF_FAR = (  # of log(1 - erf(t)) + t, in t
    -1.72853470e-5, 3.83197126e-4, -3.88396438e-3, 2.42546219e-2, -1.06777877e-1, -6.34846687e-1, -1.28717512e-1,
)  # fmt: skip
_CDF_EDGE = 5.5  # where the normal distribution's tail is half a unit in the last place of 1
# (cdf(x) - 1/2) / x in t = 2 (x / 5.5)^2 - 1, within 2e-9 of cdf
_CDF = (
    9.88756819e-05, -0.000276154111, 0.000256012205, -0.000390119473, 0.00129796028, -0.00261217731, 0.00416023463,
    -0.00668352221, 0.0104313385, -0.0150501932, 0.0203160296, -0.0260385083, 0.0320759183, -0.0387935973,
    0.0477373772, -0.0641723194, 0.128551933,
)  # fmt: skip


def constant(value: float, like: Expr) -> Expr:
    """A number of the type and width of ``like``."""
    return splat(tirx.const(value, element(like)), lanes_of(like))


def element(value: Expr) -> str:
    """The type of one element of a vector."""
    return str(value.ty.dtype).partition("x")[0]


def cast(value: Expr, dtype: str) -> Expr:
    """``value`` with elements of ``dtype``, as C converts them."""
    return value if element(value) == dtype else tirx.Cast(_wide(dtype, value), value)


def bits(value: Expr, dtype: str) -> Expr:
    """The same bits, read as ``dtype``."""
    return tirx.reinterpret(_wide(dtype, value), value)


def words(value: Expr) -> Expr:
    """The same bits, of bytes or 16-bit numbers, as int32."""
    count = lanes_of(value) * (1 if element(value).endswith("8") else 2) // 4
    return tirx.reinterpret("int32" if count == 1 else f"int32x{count}", value)


def where(condition: Expr, then: Expr, otherwise: Expr) -> Expr:
    """Element by element; both sides are computed."""
    return tirx.Select(condition, then, otherwise)


def is_nan(value: Expr) -> Expr:
    """Found in the bits, where no rewriting of comparisons loses it."""
    kind, rest, infinite = _layout(value)
    return (bits(value, kind) & _like(rest, kind, value)) > _like(infinite, kind, value)


def is_infinite(value: Expr) -> Expr:
    """Whether it is an infinity of either sign."""
    kind, rest, infinite = _layout(value)
    return tirx.EQ(bits(value, kind) & _like(rest, kind, value), _like(infinite, kind, value))


def magnitude(value: Expr) -> Expr:
    """|value|, also of NaN."""
    return tirx.abs(value)


def with_sign(value: Expr, sign: Expr) -> Expr:
    """|value| with the sign bit of ``sign``."""
    return _intrinsic("llvm.copysign", value, sign)


def at_least(e: Emitter, value: Expr, limit: float | Expr) -> Expr:
    """max(value, limit); a ``value`` that is NaN stays, a ``limit`` must not be."""
    value = e.bind(value)
    bound = _same(limit, value)
    return where(bound > value, bound, value)


def at_most(e: Emitter, value: Expr, limit: float | Expr) -> Expr:
    """min(value, limit); a ``value`` that is NaN stays, a ``limit`` must not be."""
    value = e.bind(value)
    bound = _same(limit, value)
    return where(bound < value, bound, value)


def exp(e: Emitter, x: Expr) -> Expr:
    """e^x."""
    if element(x) != "float32":
        return tirx.exp(x)
    # 2 e^r 2^(n-1): the exponent field of 2^(n-1) holds every n from where e^x is infinite down to where it is flushed
    x = e.bind(at_most(e, at_least(e, x, -87.6), 89.0))
    power, r = _reduced(e, x)
    tail = e.bind(_polynomial(e, _EXP, r) * (r * r) + r)
    scale = bits((power + _like(126 - _ROUNDING_BITS, "int32", x)) << _like(23, "int32", x), "float32")
    return (constant(2.0, x) + tail * constant(2.0, x)) * scale


def exp_of_negative(e: Emitter, x: Expr) -> Expr:
    """e^x for x <= 0, by a quarter less than for any x."""
    if element(x) != "float32":
        return tirx.exp(x)
    x = e.bind(at_least(e, x, -88.0))  # from -87.7 on, the exponent field is 0
    power, r = _reduced(e, x)
    scale = e.bind(bits((power + _like(127 - _ROUNDING_BITS, "int32", x)) << _like(23, "int32", x), "float32"))
    return (_polynomial(e, _EXP, r) * (r * r) + r) * scale + scale


def expm1_of_negative(e: Emitter, x: Expr) -> Expr:
    """e^x - 1 for x <= 0, relatively precise near 0."""
    if element(x) != "float32":
        return library_call(e, "expm1", x)
    x = e.bind(at_least(e, x, -30.0))
    power, r = _reduced(e, x)
    tail = e.bind(_polynomial(e, _EXP, r) * (r * r) + r)
    scale = e.bind(bits((power + _like(127 - _ROUNDING_BITS, "int32", x)) << _like(23, "int32", x), "float32"))
    return scale * tail + (scale - constant(1.0, x))


def log(e: Emitter, x: Expr) -> Expr:
    """The natural logarithm: -inf at 0, NaN below."""
    if element(x) != "float32":
        return tirx.log(x)
    x = e.bind(x)
    small = x < constant(1.17549435e-38, x)  # denormal: moved into the normal range first
    lifted = e.bind(where(small, x * constant(8388608.0, x), x))
    whole = e.bind(bits(lifted, "int32"))
    exponent = e.bind((whole - _like(_SQRT_HALF_BITS, "int32", x)) >> _like(23, "int32", x))
    f = e.bind(bits(whole - (exponent << _like(23, "int32", x)), "float32") - constant(1.0, x))
    n = e.bind(cast(exponent, "float32") - where(small, constant(23.0, x), constant(0.0, x)))
    result = _log_of_sum(e, f, n)
    infinite = constant(float("inf"), x)
    result = where(x < infinite, result, x)  # of inf and of NaN: themselves
    result = where(x < constant(0.0, x), constant(float("nan"), x), result)
    return where(tirx.EQ(x, constant(0.0, x)), constant(float("-inf"), x), result)


def log1p_of_fraction(e: Emitter, x: Expr) -> Expr:
    """log(1 + x) for 0 <= x <= 1."""
    if element(x) != "float32":
        return library_call(e, "log1p", x)
    x = e.bind(x)
    large = x > constant(0.41421356, x)
    f = e.bind(where(large, x * constant(0.5, x) - constant(0.5, x), x))  # 1 + x = 2 (1 + f), without rounding
    n = e.bind(where(large, constant(1.0, x), constant(0.0, x)))
    return _log_of_sum(e, f, n)


def sigmoid(e: Emitter, x: Expr) -> Expr:
    """1 / (1 + e^-x)."""
    one = constant(1.0, x)
    return one / (one + exp(e, constant(0.0, x) - x))


def tanh(e: Emitter, x: Expr) -> Expr:
    """-m / (m + 2) with m = e^(-2|x|) - 1: relatively precise near 0."""
    if element(x) != "float32":
        return _intrinsic("llvm.tanh", x)
    x = e.bind(x)
    m = e.bind(expm1_of_negative(e, e.bind(magnitude(x) * constant(-2.0, x))))
    return with_sign(m / (m + constant(2.0, x)), x)


def erf(e: Emitter, x: Expr) -> Expr:
    """The error function."""
    if element(x) != "float32":
        return library_call(e, "erf", x)
    x = e.bind(x)
    near, rest = _erf_parts(e, x)
    far = with_sign(constant(1.0, x) - rest, x)
    return where(magnitude(x) > constant(_ERF_SPLIT, x), far, near)


def normal_cdf(e: Emitter, x: Expr) -> Expr:
    """(1 + erf(x / sqrt(2))) / 2 within 1e-7, by one polynomial: half of what erf takes. 0 below -_CDF_EDGE."""
    half = constant(0.5, x)
    if element(x) != "float32":
        return half + half * erf(e, e.bind(x * constant(0.7071067811865476, x)))
    x = e.bind(x)
    inner = e.bind(at_most(e, at_least(e, x, -_CDF_EDGE), _CDF_EDGE))
    t = e.bind(inner * inner * constant(2 / _CDF_EDGE**2, x) - constant(1.0, x))
    value = _polynomial(e, _CDF, t) * inner + half
    return where(x < constant(-_CDF_EDGE, x), constant(0.0, x), value)


def softplus(e: Emitter, x: Expr) -> Expr:
    """log(1 + e^x) = max(x, 0) + log(1 + e^-|x|)."""
    x = e.bind(x)
    small = e.bind(exp(e, constant(0.0, x) - magnitude(x)))
    return at_least(e, x, 0.0) + log1p_of_fraction(e, small)


def scalar_call(e: Emitter, name: str, *operands: Expr) -> Expr:
    """LLVM's function of that name, which becomes calls into the C library, one for each element."""
    del e
    return _intrinsic(f"llvm.{name}", *operands)


def _reduced(e: Emitter, x: Expr) -> tuple[Expr, Expr]:
    """n = round(x / log 2) as an integer above _ROUNDING_BITS, and r = x - n log 2."""
    raised = e.bind(x * constant(_LOG2_E, x) + constant(_ROUNDING, x))
    n = e.bind(raised - constant(_ROUNDING, x))
    r = e.bind((x - n * constant(_LN2_HIGH, x)) - n * constant(_LN2_LOW, x))
    return bits(raised, "int32"), r


def _log_of_sum(e: Emitter, f: Expr, n: Expr) -> Expr:
    """log(1 + f) + n log 2."""
    square = e.bind(f * f)
    tail = _polynomial(e, _LOG, f) * (square * f) + n * constant(_LN2_LOW, f)
    return (f + (tail - square * constant(0.5, f))) + n * constant(_LN2_HIGH, f)


def _erf_parts(e: Emitter, x: Expr) -> tuple[Expr, Expr]:
    """erf(x) for |x| <= _ERF_SPLIT, and 1 - erf(|x|) for larger ones."""
    t = e.bind(magnitude(x))
    square = e.bind(x * x)
    near = _polynomial(e, _ERF_NEAR, square) * x + x
    exponent = e.bind(_polynomial(e, _ERF_FAR, t) * t - t)
    return e.bind(near), e.bind(exp(e, exponent))


def _polynomial(e: Emitter, coefficients: Sequence[float], x: Expr) -> Expr:
    """Horner's rule; the highest power first."""
    value = constant(coefficients[0], x)
    for coefficient in coefficients[1:]:
        value = e.bind(value * x + constant(coefficient, x))
    return value


def _layout(value: Expr) -> tuple[str, int, int]:
    """Of a floating type: the integer of its size, the mask of all but the sign, the bits of infinity."""
    if element(value) == "float64":
        return "int64", 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000
    return "int32", 0x7FFFFFFF, 0x7F800000


def _like(number: int, dtype: str, value: Expr) -> Expr:
    return splat(tirx.const(number, dtype), lanes_of(value))


def _same(limit: float | Expr, value: Expr) -> Expr:
    return constant(limit, value) if isinstance(limit, (int, float)) else limit


def _wide(dtype: str, value: Expr) -> str:
    lanes = lanes_of(value)
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def _intrinsic(name: str, *operands: Expr) -> Expr:
    return tirx.call_llvm_pure_intrin(str(operands[0].ty.dtype), name, *operands)


def library_call(e: Emitter, name: str, *operands: Expr) -> Expr:
    """A function of the C library, element by element through the stack; ``name`` is that for float64."""
    lanes, dtype = lanes_of(operands[0]), element(operands[0])
    called = f"{name}f" if dtype == "float32" else name
    if lanes == 1:
        return tirx.call_pure_extern(dtype, called, *operands)
    spare = [e.local(lanes, dtype, "spare") for _ in operands]
    for place, operand in zip(spare, operands, strict=True):
        e.store(place, 0, operand)
    with e.loop(lanes, "lane") as lane:
        e.store(spare[0], lane, tirx.call_pure_extern(dtype, called, *(e.load(place, lane) for place in spare)))
    return e.load(spare[0], 0, lanes)
