"""The one-pass walk: KL, returns and gradients while a chunk's logits are in memory.

    for chunk in chunks from the last token to the first:
        z_s = h_s W_s.T    z_t = h_t W_t.T                             products 1 and 2
        for tile in the chunk, last to first:
            log q, log p, l = log q - log p, KL = sum q l
            A from the carry of later tokens -> b = dJ_long / dlog q(y)
            z_s <- q (c (l - KL) - b) + b [v = y]                      the logit gradient
        dh_s = z_s W_s     dW_s += z_s.T h_s                           products 3 and 4

Product 2 is there where the teacher is given by hidden states; `divergence` has the forms of KL for the other kinds.
No tensor is [N, V]. Source: the closed forms d KL / dz_v = q_v (l_v - KL) and d log q(y) / dz_v = [v = y] - q_v, from
MiniLLM eq. 3. What must be known before the first gradient (whitened returns, products of current ratios) costs
`survey`, a walk without gradients.
"""

from torch import Tensor

from minillm_ray.objective.divergence import Divergence
from minillm_ray.objective.gradients import Gradients
from minillm_ray.objective.returns import ReturnWalk
from minillm_ray.objective.terms import Terms, TokenStatistics
from minillm_ray.objective.workspace import Workspace, pick


def survey(
    space: Workspace, divergence: Divergence, *, teacher: bool = True, forward_kl: bool = False
) -> TokenStatistics:
    """Statistics of every token, no gradient. With teacher=False only log q(y) is made, and the rest is 0."""
    stats = _empty_statistics(space, forward_kl)
    for start, end in space.chunks(with_teacher=teacher):
        for tile in space.tiles(start, end):
            if teacher:
                divergence.visit(space, tile, stats.rows(tile.rows))
            else:
                space.log_softmax_(tile, with_teacher=False)
                pick(tile.student, tile.tokens, out=stats.student_logprob[tile.rows])
    return stats


def walk(
    space: Workspace,
    divergence: Divergence,
    terms: Terms,
    *,
    normalizer: float,
    made: Gradients,
    advantage: Tensor | None = None,
    forward_kl: bool = False,
    single_step: bool = True,
    long_term: bool = True,
) -> tuple[TokenStatistics, Tensor]:
    """Statistics and advantages [N] of every token, each chunk visited once; `made` is filled.

    advantage                [N], where it is known before.
    single_step, long_term   which halves of the loss the gradients are of.
    """
    stats = _empty_statistics(space, forward_kl)
    used = space.vector() if advantage is None else advantage
    returns = ReturnWalk(terms.layout, terms.settings, space.dtype)
    factor = space.student.slope / normalizer
    single_factor, long_factor = factor * single_step, factor * long_term
    for start, end in space.chunks():
        for tile in space.tiles(start, end):
            rows, here = tile.rows, stats.rows(tile.rows)
            divergence.visit(space, tile, here)
            if advantage is None:
                used[rows] = returns.advance(rows.start, rows.stop, terms.reward(rows, here))
            correction = terms.correction(rows, here)
            step = terms.single_step_weight(rows, correction) * single_factor
            slope = terms.long_term(used[rows], correction).slope * long_factor
            divergence.logit_gradient(tile, here, step, slope)
        space.add_products(made, start, end)
    return stats, used


def _empty_statistics(space: Workspace, forward_kl: bool) -> TokenStatistics:
    return TokenStatistics(
        kl=space.vector(),
        student_logprob=space.vector(),
        teacher_logprob=space.vector(),
        entropy=space.vector(),
        forward_kl=space.vector() if forward_kl else None,
    )
