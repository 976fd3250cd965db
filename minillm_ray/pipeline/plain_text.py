"""Plain text for the coming round, in order; scored by the teacher where the text loss asks for it."""

from minillm_ray.pipeline.protocols import PlainText, Reference, Task
from minillm_ray.pipeline.responses import Response, Responses


class TextOrders:
    """supply: None where there is no plain text. num_taken: chunks that steps have taken so far."""

    def __init__(self, supply: PlainText | None, responses: Responses, *, steps_a_round: int) -> None:
        self._supply = supply
        self._responses = responses
        self._steps_a_round = steps_a_round
        self.go_to(0)

    def go_to(self, num_taken: int) -> None:
        """Continue after `num_taken` chunks; what was ordered is forgotten."""
        self.num_taken = num_taken
        self._ordered: set[int] = set()
        self._scored: dict[int, Response] = {}

    def order(self) -> bool:
        """Have the chunks of a round scored. True once they are."""
        if self._supply is None or not self._supply.with_teacher:
            return True
        coming = range(self.num_taken, self.num_taken + self._supply.chunks_a_step * self._steps_a_round)
        for number in coming:
            if number not in self._ordered:
                self._ordered.add(number)
                self._responses.score(number, Task("text", number, 0, mixed=False), self._supply.chunk(number))
        return all(number in self._scored for number in coming)

    def scored(self, response: Response) -> None:
        """A chunk is scored. One that nobody waits for any more, since it was ordered twice, is forgotten."""
        if response.key in self._ordered:
            self._scored[response.key] = response  # type: ignore[index]

    def lost(self, response: Response) -> None:
        """A chunk is lost; it is ordered again."""
        self._ordered.discard(response.key)  # type: ignore[arg-type]

    def take(self) -> tuple[list[Reference], list[Reference]]:
        """The chunks of the next step and their payloads."""
        if self._supply is None:
            return [], []
        numbers = range(self.num_taken, self.num_taken + self._supply.chunks_a_step)
        self.num_taken = numbers.stop
        if not self._supply.with_teacher:
            return [self._supply.chunk(number) for number in numbers], [self._supply.no_payload()] * len(numbers)
        scored = [self._scored.pop(number) for number in numbers]
        self._ordered.difference_update(numbers)
        return [text.trajectory for text in scored], [text.payload for text in scored]

    def give_back(self) -> None:
        """The step that took chunks last was not made."""
        if self._supply is not None:
            self.go_to(self.num_taken - self._supply.chunks_a_step)
