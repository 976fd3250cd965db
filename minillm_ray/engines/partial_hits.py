"""A vLLM scheduler whose prefix cache is read to the last common token, and no further than a request allows.

    blocks of a request that has ended    [ a b c d ][ e f x y ]
    the next one of the session             a b c d    e f g         vLLM: 4 tokens from the cache; here: 6

A correction falls anywhere in a block, and vLLM would compute the block again from its beginning. Models with
state-space layers made it learn to copy a block of which a request shares the beginning only; that copy is used here,
unless nobody else can read the block: then the request goes on in it.
"""

from typing import Any

from vllm.v1.core.kv_cache_coordinator import UnitaryKVCacheCoordinator
from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.request import Request

from minillm_ray.engines.block_contents import BlockContents

LIMIT = "cached_tokens"
"""Of a pooling request's extra arguments: how many of its first tokens may be read from the cache. Others: all."""


class PartialHitScheduler(Scheduler):
    """vLLM's own, with another look at its cache. To be named as the engine argument `scheduler_cls`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.kv_cache_manager: KVCacheManager = PartialHits(self.kv_cache_manager)


class PartialHits(KVCacheManager):
    """In place of `manager`, with all that it has.

    Hits end inside blocks where each token attends to all before it. Models of other kinds have whole blocks as ever.
    """

    def __init__(self, manager: KVCacheManager) -> None:
        self.__dict__.update(vars(manager))
        (group, *others) = manager.coordinator.single_type_managers
        self._can_split = (
            isinstance(manager.coordinator, UnitaryKVCacheCoordinator)
            and not others
            and type(group) is FullAttentionManager
        )
        self._block_tokens = group.block_size
        self._contents = BlockContents()
        if self._can_split:
            self._copy = group._apply_cow
            group._apply_cow = self._go_on

    def get_computed_blocks(self, request: Request) -> tuple[KVCacheBlocks, int, int]:
        """As vLLM's own: the blocks that are read from the cache and how many tokens of them."""
        blocks, num_cached, boundary = super().get_computed_blocks(request)
        if not self.prefix_cache_lookup_enabled(request):
            return blocks, num_cached, boundary
        limit = min(_limit(request), request.num_tokens - 1)
        if not self._can_split:
            return (blocks, num_cached, boundary) if num_cached <= limit else (self.empty_kv_cache_blocks, 0, 0)
        if num_cached > limit:
            read = blocks.blocks[0][: -(-limit // self._block_tokens)]
            return self.create_kv_cache_blocks((read,)), limit, boundary
        asked = request.all_token_ids[num_cached : min(limit, num_cached + self._block_tokens - 1)]
        block, num_common = self._contents.best(_before(request, num_cached // self._block_tokens), asked)
        if num_common:
            read = [*blocks.blocks[0], self.block_pool.blocks[block]]
            blocks = self.create_kv_cache_blocks((read,))
        return blocks, num_cached + num_common, boundary

    def free(self, request: Request) -> None:
        """As vLLM's own. What was computed stays readable until its block is needed, the last one's part too."""
        if not self._can_split:
            super().free(request)
            return
        num_computed = request.num_computed_tokens - request.num_in_flight_tokens
        num_blocks = -(-num_computed // self._block_tokens)
        blocks = self.pop_blocks_for_free(request)
        for number, block in enumerate(blocks[:num_blocks]):
            start = number * self._block_tokens
            held = request.all_token_ids[start : min(start + self._block_tokens, num_computed)]
            self._contents.put(block.block_id, _before(request, number), held)
        self.block_pool.free_blocks(reversed(blocks[num_blocks:]))
        self.block_pool.unpin_blocks(reversed(blocks[:num_blocks]), lambda block: self._contents.forget(block.block_id))

    def _go_on(self, request_id: str, number: int, held: KVCacheBlock, spare: KVCacheBlock) -> None:
        """In place of copying `held`, block `number` of the request, to `spare`, where it may be written to."""
        if not self.block_pool.is_block_writable(held):
            self._copy(request_id, number, held, spare)
            return
        self._contents.forget(held.block_id)
        self.block_pool.free_blocks([spare])


def _limit(request: Request) -> int:
    arguments = request.pooling_params.extra_kwargs if request.pooling_params else None
    return arguments[LIMIT] if arguments else request.num_tokens


def _before(request: Request, number: int) -> Any:
    """The hash of all tokens before block `number`; None before the first."""
    return request.block_hashes[number - 1] if number else None
