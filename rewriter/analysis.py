"""What is derived about terms in the e-graph: constness, liveness, values, and who reads what.

These are rules without a right side. Every fact is positive and monotone: it can be derived late but never turn false.
"""

from __future__ import annotations

from rewriter.terms import OPERATORS, Operator

# Facts about values. Each line is a theorem: a pattern, the facts it needs, the fact it gives.
VALUES = """
(rule ((= t (scale z s a)) (zero z)) ((zero t)) :ruleset analysis)
(rule ((= t (scale x z a)) (zero z) (const x)) ((zero t)) :ruleset analysis)
(rule ((= t (scalar z c)) (zero z)) ((zero t)) :ruleset analysis)
(rule ((= t (scalar x z)) (zero z) (const x)) ((zero t)) :ruleset analysis)
(rule ((= t (matmul z b)) (zero z) (const b)) ((zero t)) :ruleset analysis)
(rule ((= t (matmul a z)) (zero z) (const a)) ((zero t)) :ruleset analysis)
(rule ((= t (mul z b)) (zero z) (const b)) ((zero t)) :ruleset analysis)
(rule ((= t (mul a z)) (zero z) (const a)) ((zero t)) :ruleset analysis)
(rule ((= t (zero_like a))) ((zero t)) :ruleset analysis)
(rule ((= t (zero_row a))) ((zero t)) :ruleset analysis)
(rule ((= t (zero_outputs a))) ((zero t)) :ruleset analysis)
(rule ((= t (add y z)) (zero y) (zero z)) ((zero t)) :ruleset analysis)
(rule ((= t (cat y z a)) (zero y) (zero z)) ((zero t)) :ruleset analysis)
(rule ((= t (kernel_widen z e)) (zero z)) ((zero t)) :ruleset analysis)
(rule ((= t (kernel_sum_inputs z c w)) (zero z)) ((zero t)) :ruleset analysis)
(rule ((= t (kernel_sum_inputs k z w)) (zero z)) ((zero t)) :ruleset analysis)
(rule ((= t (kernel_ones w))) ((one t)) :ruleset analysis)
(rule ((= t (scalar (minus_one) (minus_one)))) ((one t)) :ruleset analysis)
(rule ((= t (scale a b x)) (one a) (one b)) ((one t)) :ruleset analysis)
(rule ((= t (scalar a b)) (one a) (one b)) ((one t)) :ruleset analysis)
(rule ((= t (move m z)) (zero z)) ((zero t)) :ruleset analysis)
(rule ((= t (slice z a i j)) (zero z)) ((zero t)) :ruleset analysis)
(rule ((= t (tile z p q)) (zero z)) ((zero t)) :ruleset analysis)
(rule ((= t (padded z n m)) (zero z)) ((zero t)) :ruleset analysis)
(rule ((= t (block_sum z b p q)) (zero z)) ((zero t)) :ruleset analysis)
(rule ((= t (minus_one))) ((nonzero t)) :ruleset analysis)
(rule ((= t (inverse a)) (nonzero a)) ((nonzero t)) :ruleset analysis)
(rule ((= t (inverse a)) (positive a)) ((positive t)) :ruleset analysis)
(rule ((= t (scale a b x)) (positive a) (positive b)) ((positive t)) :ruleset analysis)
(rule ((= t (scalar a b)) (positive a) (positive b)) ((positive t)) :ruleset analysis)
(rule ((= t (tile a p q)) (positive a)) ((positive t)) :ruleset analysis)
(rule ((= t (scale a b x)) (nonzero a) (nonzero b)) ((nonzero t)) :ruleset analysis)
(rule ((= t (scalar a b)) (nonzero a) (nonzero b)) ((nonzero t)) :ruleset analysis)
"""

# The length of the last axis, where a law made the term; the encoder says it of the model's own.
LENGTHS = """
(rule ((= t (linear x a b)) (last a n)) ((last t n)) :ruleset analysis)
(rule ((= t (matmul x a)) (last a n)) ((last t n)) :ruleset analysis)
(rule ((= t (padded a n m)) (last a k)) ((last t (+ n (+ k m)))) :ruleset analysis)
(rule ((= t (add x y)) (last x n)) ((last t n)) :ruleset analysis)
(rule ((= t (map f x)) (last x n)) ((last t n)) :ruleset analysis)
(rule ((= t (norm k x e)) (last x n)) ((last t n)) :ruleset analysis)
(rule ((= t (scale x s a)) (last x n)) ((last t n)) :ruleset analysis)
(rule ((= t (bias x b a)) (last x n)) ((last t n)) :ruleset analysis)
(rule ((= t (scalar x c)) (last x n)) ((last t n)) :ruleset analysis)
(rule ((= t (shift x c)) (last x n)) ((last t n)) :ruleset analysis)
(rule ((= t (cat x y -1)) (last x n) (last y m)) ((last t (+ n m))) :ruleset analysis)
(rule ((= t (slice x -1 i j))) ((last t (- j i))) :ruleset analysis)
(rule ((= t (pick e i)) (last e n)) ((last t n)) :ruleset analysis)
"""

# The length of every axis, for the laws of ``rules.GENERAL``.
EVERY_LENGTH = """
(rule ((= t (cat x y a)) (length x a n) (length y a m)) ((length t a (+ n m))) :ruleset analysis)
(rule ((= t (cat x y a)) (length x b n) (!= a b)) ((length t b n)) :ruleset analysis)
(rule ((= t (add x y)) (length x a n)) ((length t a n)) :ruleset analysis)
(rule ((= t (mul x y)) (length x a n)) ((length t a n)) :ruleset analysis)
(rule ((= t (scalar x c)) (length x a n)) ((length t a n)) :ruleset analysis)
(rule ((= t (map f x)) (length x a n)) ((length t a n)) :ruleset analysis)
(rule ((= t (product x y)) (length x -2 n)) ((length t -2 n)) :ruleset analysis)
(rule ((= t (product x y)) (length y -1 n)) ((length t -1 n)) :ruleset analysis)
(rule ((= t (conv x k b w)) (channels w a) (= e (- a 1)) (length x e n)) ((length t e n)) :ruleset analysis)
(rule ((= t (conv x k b w)) (channels w a) (= e (- a 1)) (length k e n)) ((length t a n)) :ruleset analysis)
(rule ((= t (mean_pool x w)) (channels w a) (= e (- a 1)) (length x e n)) ((length t e n)) :ruleset analysis)
(rule ((= t (max_pool x w)) (channels w a) (= e (- a 1)) (length x e n)) ((length t e n)) :ruleset analysis)
(rule ((= t (move m x)) (turns_last_two m) (length x -1 n)) ((length t -2 n)) :ruleset analysis)
(rule ((= t (move m x)) (turns_last_two m) (length x -2 n)) ((length t -1 n)) :ruleset analysis)
"""

# A weight is dense if folding a number into it does not unpack what the model stores small (int8 with a scale, a fill value).
# A multiple of x: scaled, by a vector or a number. Two tensors are siblings if each is an element-wise function of an affine map of
# one tensor, and they meet again in a sum: worth writing side by side.
READING = """
(rule ((= x (linear y a b)) (live x) (dense a)) ((absorbs x)) :ruleset analysis)
(rule ((= x (conv y k b w)) (live x) (dense k)) ((absorbs x)) :ruleset analysis)
(rule ((= t (matmul a b)) (const t)) ((dense t)) :ruleset analysis)
(rule ((= t (add a b)) (const t)) ((dense t)) :ruleset analysis)
(rule ((= t (scale a s i)) (const t)) ((dense t)) :ruleset analysis)
(rule ((= t (scalar a c)) (const t) (dense a)) ((dense t)) :ruleset analysis)
(rule ((= x (move f y)) (absorbs y)) ((absorbs x)) :ruleset analysis)
(rule ((= x (linear y a b)) (live x)) ((joinable x)) :ruleset analysis)
(rule ((= x (pick y i)) (live x)) ((joinable x)) :ruleset analysis)
(rule ((= x (move f y)) (joinable y)) ((joinable x)) :ruleset analysis)
(rule ((= x (cat u c a)) (const c)) ((joinable c)) :ruleset analysis)
(rule ((= x (cat c u a)) (const c)) ((joinable c)) :ruleset analysis)
(rule ((= x (move f y)) (live x)) ((other x)) :ruleset analysis)
(rule ((= x (scale y s a)) (other y)) ((other x)) :ruleset analysis)
(rule ((= x (scalar y c)) (other y)) ((other x)) :ruleset analysis)
(rule ((= x (slice y a i j)) (live x)) ((other x)) :ruleset analysis)
(rule ((= x (norm k y e)) (live x)) ((other x)) :ruleset analysis)
(rule ((= x (normed k y e g b)) (live x)) ((other x)) :ruleset analysis)
(rule ((= x (rowmap f y)) (live x)) ((other x)) :ruleset analysis)
(rule ((= x (pick y i)) (live x)) ((other x)) :ruleset analysis)
(rule ((= x (max_pool y w)) (live x)) ((other x)) :ruleset analysis)
(rule ((= x (product y z)) (live x)) ((other x)) :ruleset analysis)
(rule ((= x (leaf i)) (live x)) ((other x)) :ruleset analysis)
(rule ((= x (op s v)) (live x)) ((other x)) :ruleset analysis)
(rule ((= x (map f y)) (live x)) ((other x)) :ruleset analysis)
(rule ((= x (mul p q)) (live x)) ((other x)) :ruleset analysis)
(rule ((= x (mean_pool y w)) (live x)) ((other x)) :ruleset analysis)
(rule ((= y (scale x s a)) (live x)) ((multiple y x)) :ruleset analysis)
(rule ((= y (scalar x c)) (live x)) ((multiple y x)) :ruleset analysis)
(rule ((= u (linear x a b)) (live x)) ((reads u x)) :ruleset analysis)
(rule ((= u (map f p)) (= v (map g q)) (reads p x) (reads q x) (= s (add l r)) (= l (linear u a b)) (= r (linear v c d)) (!= u v))
      ((siblings u v)) :ruleset analysis)
(rule ((= u (mul p q)) (= v (mul m n)) (= s (add l r)) (= l (linear u a b)) (= r (linear v c d)) (!= u v)
       (= p (linear x e h)) (= m (linear x i j))) ((siblings u v)) :ruleset analysis)
"""


def rules(*, lengths: bool = False) -> list[str]:
    """All analysis rules as egglog commands, in the ruleset ``analysis``; with ``lengths`` also of axes that are not last."""
    lines = [line for o in OPERATORS.values() for line in _structural(o)]
    lines.append("(rule ((= t (minus_one))) ((const t)) :ruleset analysis)")
    lines += EVERY_LENGTH.strip().splitlines() if lengths else []
    return [*lines, *VALUES.strip().splitlines(), *LENGTHS.strip().splitlines(), *READING.strip().replace("\n     ", " ").splitlines()]


def _structural(o: Operator) -> list[str]:
    """An operator's result is constant if all its tensors are, live if one of them is."""
    names = [f"v{i}" for i in range(len(o.kinds))]
    tensors = [n for n, k in zip(names, o.kinds, strict=True) if k == "t"]
    call = f"(= t ({o.name} {' '.join(names)}))"
    rules = [f"(rule ({call} {' '.join(f'(const {t})' for t in tensors)}) ((const t)) :ruleset analysis)"]
    if not o.weights_only:
        rules += [f"(rule ({call} (live {t})) ((live t)) :ruleset analysis)" for t in tensors]
    return rules
